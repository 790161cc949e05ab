// SPDX-License-Identifier: Apache-2.0
#pragma once

// A memfd of this process alone, mapped twice, and an owner of its pages. Parameter: is userfaultfd
// denied?

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>

#include "host/backstop.h"
#include "host/change.h"
#include "host/page_owner.h"
#include "host/shared_objects.h"
#include "host/userfault.h"
#include "tests/support/pages.h"

namespace stagetwo::test {

inline constexpr size_t kPages = 8;

// A place for each page of the object.
class Store : public host::PageOwner {
 public:
  virtual ~Store() = default;
  bool take(const host::AbsentPage& page, host::PageExit& exit) override {
    EXPECT_NE(host::kPrivateMemory, page.key.object);
    if (!exit.to(place_of(page))) return false;
    ++taken;
    return true;
  }
  host::BringBack bring_back(const host::AbsentPage& page, host::PageEntry& entry) override {
    if (loses) return host::BringBack::kLost;
    if (refuses) return host::BringBack::kStuck;  // asked less often than who answers kRetry
    if (!entry.from(place_of(page))) return host::BringBack::kRetry;
    ++back;
    return host::BringBack::kBack;
  }
  void discard(const host::AbsentPage&) override { ++discarded; }

  // A touch that another thread serves orders nothing in the eyes of a sanitizer.
  std::atomic<bool> loses{false}, refuses{false};
  std::atomic<u64> taken{0}, back{0}, discarded{0};

 protected:
  Hva place_of(const host::AbsentPage& page) const {
    return Hva(places_.address() + page.key.index * kPageSize);
  }
  GuardedPages places_{kPages};
};

class SharedPages : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    host::userfault::debug_deny(GetParam());
    if (!GetParam() && !host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
    file_ = ::memfd_create("shared", MFD_CLOEXEC);
    ASSERT_EQ(0, ::ftruncate(file_, kPages * kPageSize));
    host::shared_file_made(file_);
    one_ = map();
    two_ = map();
    for (size_t i = 0; i < kPages; ++i) std::memset(one(i), static_cast<int>(i + 1), kPageSize);
  }
  void TearDown() override {
    host::bring_back_range(range(one_));
    unmap(one_);
    unmap(two_);
    ::close(file_);
    host::userfault::debug_deny(false);
  }
  u8* map() {
    void* at = ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    host::owners_see_mapping(range(static_cast<u8*>(at)));
    return static_cast<u8*>(at);
  }
  int unmap(u8* at) {
    if (at == nullptr) return 0;
    return host::change(reinterpret_cast<u64>(at), kPages * kPageSize, host::EventKind::kUnmap,
                        [&] { return ::munmap(at, kPages * kPageSize); });
  }
  static HvaRange range(const u8* at, size_t first = 0, size_t pages = kPages) {
    return HvaRange(Hva(reinterpret_cast<u64>(at)) + first * kPageSize, pages * kPageSize);
  }
  u64 take(size_t first = 0, size_t pages = kPages) {
    const auto taken = host::take_away(range(one_, first, pages), &store_, this, host::Which::kAll);
    return taken ? *taken : ~u64{0};
  }
  u8* one(size_t i) { return one_ + i * kPageSize; }
  u8* two(size_t i) { return two_ + i * kPageSize; }
  static bool all(const u8* page, size_t i) {
    for (size_t b = 0; b < kPageSize; ++b) {
      if (page[b] != i + 1) return false;
    }
    return true;
  }
  u64 blocks() {
    struct ::stat said{};
    EXPECT_EQ(0, ::fstat(file_, &said));
    return static_cast<u64>(said.st_blocks);
  }

  int file_ = -1;
  u8* one_ = nullptr;
  u8* two_ = nullptr;
  Store store_;
};
inline std::string hiding_name(const testing::TestParamInfo<bool>& denied) {
  return denied.param ? "Protection" : "Userfault";
}

}  // namespace stagetwo::test
