// SPDX-License-Identifier: Apache-2.0
// Pages pinned one by one: the same pins, and a change between two of them is met like any other.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "base/failpoint.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/pin.h"

namespace stagetwo {
namespace {

using host::EventKind;
using host::Frame;

constexpr host::PinHow kForWriting{.write = true, .long_term = true};
constexpr host::PinHow kForReading{.write = false, .long_term = true};
constexpr size_t kPages = 1100;  // of three blocks

class PinPage : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    memory_ = static_cast<u8*>(::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::memset(memory_, 7, kPages * kPageSize);
    for (size_t page = 0; page < kPages; ++page) ASSERT_EQ(0, pin(page));
  }
  void TearDown() override {
    for (const Frame frame : held_) host::unpin_pages({frame, 1});
    EXPECT_EQ(host::pin_use().pages, 0u);
    EXPECT_EQ(host::pin_use().blocks, 0u);
    ::munmap(memory_, kPages * kPageSize);
  }
  [[nodiscard]] Hva at(size_t page) const {
    return Hva(reinterpret_cast<u64>(memory_ + page * kPageSize));
  }
  // The refusal; 0: it is held until the end.
  int pin(size_t page, host::PinHow how = kForWriting) {
    const auto pinned = host::pin_page(at(page), how);
    if (!pinned) return to_int(pinned.error());
    EXPECT_EQ(host::frame_at(at(page)), pinned->frame);
    held_.push_back(pinned->frame);
    return 0;
  }
  u32 pins(size_t page) const { return host::pins_of(*host::frame_at(at(page))); }
  template <typename F>
  void change(size_t page, EventKind kind, F&& call) {
    host::change(at(page).raw(), kPageSize, kind, [&] { return call(memory_ + page * kPageSize); });
  }

  u8* memory_ = nullptr;
  std::vector<Frame> held_;
};

TEST_F(PinPage, IsCountedAndFoundLikeAPageOfARange) {
  EXPECT_EQ(host::pin_use().pages, kPages);
  for (size_t page = 0; page < kPages; ++page) ASSERT_EQ(pins(page), 1u);
  host::FrameRun run;
  ASSERT_TRUE(host::pin_pages(HvaRange(at(kPages - 1), kPageSize), kForWriting, &run, 1));
  EXPECT_EQ(run.first, held_.back());
  EXPECT_EQ(pin(kPages - 1), 0);
  EXPECT_EQ(pins(kPages - 1), 3u);
  EXPECT_EQ(host::pin_use().pages, kPages);
  host::unpin_pages(run);
  EXPECT_EQ(pins(kPages - 1), 2u);
}

TEST_F(PinPage, AChangeBetweenTwoPinsIsMet) {
  constexpr size_t kLast = kPages - 1;
  const Frame before = held_[kLast];
  change(kLast, EventKind::kUnmap, [](u8* page) {
    return ::mmap(page, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                  -1, 0);
  });
  ASSERT_EQ(pin(kLast), 0);
  EXPECT_NE(held_.back(), before);
  u8 byte = 0;
  ASSERT_TRUE(host::read_frame(before, 5, &byte, 1));
  EXPECT_EQ(byte, 7);
  ASSERT_TRUE(host::read_frame(held_.back(), 5, &byte, 1));
  EXPECT_EQ(byte, 0);
  change(kLast - 1, EventKind::kUnmap, [](u8* page) { return ::munmap(page, kPageSize); });
  EXPECT_EQ(pin(kLast - 1, kForReading), EFAULT);
  change(kLast - 2, EventKind::kProtection,
         [](u8* page) { return ::mprotect(page, kPageSize, PROT_READ); });
  EXPECT_EQ(pin(kLast - 2), EFAULT);
  // The block that was entered last is given back, and comes again.
  for (const Frame frame : held_) host::unpin_pages({frame, 1});
  held_.clear();
  EXPECT_EQ(host::pin_use().blocks, 0u);
  EXPECT_EQ(pin(kLast), 0);
}

// The kernel is not asked twice for what follows each other, block after block; a change of any of
// it ends that. A page that went behind the engine's back tells whether it was.
TEST_F(PinPage, WhatWasSeenIsKnownUntilAChange) {
  const auto is_there = [&](size_t page) {
    unsigned char there = 0;
    EXPECT_EQ(::mincore(memory_ + page * kPageSize, kPageSize, &there), 0);
    return (there & 1) != 0;
  };
  const auto unpin_all = [&] {
    for (const Frame frame : held_) host::unpin_pages({frame, 1});
    held_.clear();
  };
  unpin_all();
  for (const size_t page : {3u, 600u, 1090u}) {
    ASSERT_EQ(::madvise(memory_ + page * kPageSize, kPageSize, MADV_DONTNEED), 0);
    ASSERT_EQ(pin(page), 0);
    EXPECT_FALSE(is_there(page)) << page << ": the kernel was asked";
  }
  unpin_all();
  change(700, EventKind::kUnmap,
         [](u8* page) { return ::madvise(page, kPageSize, MADV_DONTNEED); });
  for (const size_t page : {3u, 600u, 1090u}) {
    ASSERT_EQ(pin(page), 0);
    EXPECT_TRUE(is_there(page)) << page << ": what has changed was believed";
  }
}

TEST_F(PinPage, IsRefusedWhereItsFailpointIsAlsoInKnownMemory) {
  ASSERT_EQ(pin(kPages - 1), 0);
  failpoint::arm("host.pin", 1);
  EXPECT_EQ(pin(kPages - 1), ENOMEM);
  failpoint::disarm();
  EXPECT_EQ(pins(kPages - 1), 2u);
}

}  // namespace
}  // namespace stagetwo
