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

// The last page is never touched.
template <u64 kPageBytes, u64 kPageCount>
class GuestInProcess : public testing::Test {
 protected:
  using Bytes = std::vector<u8>;
  static constexpr u64 kBytes = kPageBytes;  // of a page of the guest
  static constexpr u64 kPages = kPageCount;
  static constexpr u32 kLpid = 3;

  void SetUp() override {
    ASSERT_TRUE(host::backstop::install().has_value());
    if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
    // Room above, which the kernel prefers to the holes that tests make: under a sanitizer the
    // engine does not choose the places of its own mappings.
    constexpr u64 kRoom = u64{4} << 20;
    memory = static_cast<u8*>(::mmap(nullptr, kPages * kBytes + kRoom, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    ASSERT_NE(memory, MAP_FAILED);
    ASSERT_EQ(::munmap(memory + kPages * kBytes, kRoom), 0);
    for (u64 page = 0; page + 1 < kPages; ++page) {
      std::memcpy(at(page), text(page).data(), kBytes);
    }
    UltravisorOptions options;
    options.page_bytes = kBytes;
    options.pool_pages = kPages + 8;
    options.memory = mem::SecureMemory::Want::kWhatThereIs;
    ASSERT_TRUE(ultravisor.open(options, &hypervisor, &real).has_value());
    guest = std::make_unique<SecureGuest>(kLpid, kBytes, &pages, &ultravisor);
    pages.set_guest(guest.get());
    guest->enable();
    ASSERT_TRUE(hypervisor.add(guest.get()).has_value());
    ASSERT_TRUE(pages.map(Gpa(0), range()).has_value());
    ASSERT_TRUE(guest->add_slot(0, Gpa(0), kPages * kBytes).has_value());
  }
  void TearDown() override {
    if (guest == nullptr) return;
    EXPECT_TRUE(guest->svm_off().has_value());
    EXPECT_EQ(pages.frames_in_use(), 0u);
    pages.forget(Gpa(0));
    hypervisor.remove(guest.get());
    ::munmap(memory, kPages * kBytes);
  }
  void become_secure() {
    ASSERT_EQ(guest_call(Call::kUvEsm, 1, 1, Caller::kGuest), Status::kSuccess);
  }

  u8* at(u64 page) const { return memory + page * kBytes; }
  Hva hva(u64 page) const { return Hva(reinterpret_cast<std::uintptr_t>(at(page))); }
  HvaRange range(u64 first = 0, u64 pages_of = kPages) const {
    return {hva(first), pages_of * kBytes};
  }
  static Bytes text(u64 page) {
    Bytes bytes(kBytes);
    for (u64 i = 0; i < kBytes; ++i)
      bytes[i] = static_cast<u8>("what only the guest may know "[(i + page) % 29]);
    return bytes;
  }
  Bytes seen(u64 page) const { return Bytes(at(page), at(page) + kBytes); }
  Bytes guest_bytes(u64 page) {
    Bytes bytes(kBytes);
    GuestAccess done = GuestAccess::kRetry;
    for (int i = 0; i < 1000 && done == GuestAccess::kRetry; ++i) {
      done = ultravisor.access(kLpid, Gpa(page * kBytes), bytes.data(), kBytes, false);
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
  ProcessPages pages{kBytes};
  Hypervisor hypervisor;
  Ultravisor ultravisor;
};

using ProcessGuest = GuestInProcess<kPageSize, 16>;

}  // namespace stagetwo::uv
