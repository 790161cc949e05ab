// SPDX-License-Identifier: Apache-2.0
#pragma once

// A guest in this process's own memory that may become secure: both halves, its pages absent where
// they are secure. The process is its own VMM.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <vector>

#include "host/backstop.h"
#include "host/userfault.h"
#include "uv/hypervisor.h"
#include "uv/process_pages.h"
#include "uv/ultravisor.h"

namespace stagetwo::uv {

class ProcessGuest : public testing::Test {
 protected:
  using Bytes = std::vector<u8>;
  static constexpr u64 kPages = 16;
  static constexpr u32 kLpid = 3;

  void SetUp() override {
    ASSERT_TRUE(host::backstop::install().has_value());
    if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
    memory = static_cast<u8*>(::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory, MAP_FAILED);
    for (u64 page = 0; page + 1 < kPages; ++page) {
      std::memcpy(at(page), text(page).data(), kPageSize);
    }
    UltravisorOptions options;
    options.pool_pages = 24;
    options.memory = mem::SecureMemory::Want::kWhatThereIs;
    ASSERT_TRUE(ultravisor.open(options, &hypervisor, &real).has_value());
    guest = std::make_unique<SecureGuest>(kLpid, kPageSize, &pages, &ultravisor);
    pages.set_guest(guest.get());
    guest->enable();
    ASSERT_TRUE(hypervisor.add(guest.get()).has_value());
    const HvaRange range(Hva(reinterpret_cast<std::uintptr_t>(memory)), kPages * kPageSize);
    ASSERT_TRUE(pages.map(Gpa(0), range).has_value());
    ASSERT_TRUE(guest->add_slot(0, Gpa(0), kPages * kPageSize).has_value());
  }
  void TearDown() override {
    if (guest == nullptr) return;
    EXPECT_TRUE(guest->svm_off().has_value());
    EXPECT_EQ(pages.frames_in_use(), 0u);
    pages.forget(Gpa(0));
    hypervisor.remove(guest.get());
    ::munmap(memory, kPages * kPageSize);
  }
  void become_secure() {
    ASSERT_EQ(guest_call(Call::kUvEsm, 1, 1, Caller::kGuest), Status::kSuccess);
  }

  u8* at(u64 page) const { return memory + page * kPageSize; }
  Hva hva(u64 page) const { return Hva(reinterpret_cast<std::uintptr_t>(at(page))); }
  HvaRange range(u64 first = 0, u64 pages_of = kPages) const {
    return {hva(first), pages_of * kPageSize};
  }
  static Bytes text(u64 page) {
    Bytes bytes(kPageSize);
    for (u64 i = 0; i < kPageSize; ++i)
      bytes[i] = static_cast<u8>("what only the guest may know "[(i + page) % 29]);
    return bytes;
  }
  Bytes seen(u64 page) const { return Bytes(at(page), at(page) + kPageSize); }
  Bytes guest_bytes(u64 page) {
    Bytes bytes(kPageSize);
    GuestAccess done = GuestAccess::kRetry;
    for (int i = 0; i < 1000 && done == GuestAccess::kRetry; ++i) {
      done = ultravisor.access(kLpid, Gpa(page * kPageSize), bytes.data(), kPageSize, false);
    }
    return done == GuestAccess::kDone ? bytes : Bytes();
  }
  Status guest_call(Call call, u64 a, u64 b, Caller who = Caller::kSecureGuest) {
    return ultravisor.call({call, kLpid, {a, b}}, who);
  }
  static u64 equal_bytes(const Bytes& a, const Bytes& b) {
    u64 equal = 0;
    for (u64 i = 0; i < a.size(); ++i) equal += a[i] == b[i];
    return equal;
  }

  u8* memory = nullptr;
  ProcessMemory real;
  std::unique_ptr<SecureGuest> guest;  // outlives the pages, which hear the bell
  ProcessPages pages;
  Hypervisor hypervisor;
  Ultravisor ultravisor;
};

}  // namespace stagetwo::uv
