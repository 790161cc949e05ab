// SPDX-License-Identifier: Apache-2.0
// What cannot be kept when its client drops it, and where there are as many mappings as there may
// be.
#include "host/pin_store.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <vector>

#include "base/failpoint.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/pin.h"
#include "host/process.h"
#include "tests/support/child.h"
#include "tests/unit/host/pins_world.h"

namespace stagetwo {
namespace {

using namespace test;

constexpr size_t kPages = 64;

// Pages of which every second one is pinned, each with a number.
class Scattered {
 public:
  Scattered() {
    at_ = static_cast<u8*>(::mmap(nullptr, 2 * kPages * kPageSize, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t i = 0; i < kPages; ++i) {
      *page(i) = static_cast<u8>(i + 1);
      host::FrameRun run;
      if (host::pin_pages(HvaRange(hva(i), kPageSize), {.write = true}, &run, 1)) {
        runs_.push_back(run);
      }
    }
  }
  [[nodiscard]] bool all_pinned() const { return runs_.size() == kPages; }
  u8* page(size_t i) const { return at_ + 2 * i * kPageSize; }
  Hva hva(size_t i) const { return Hva(reinterpret_cast<u64>(page(i))); }
  bool drop(size_t i) const {
    return host::change(hva(i).raw(), kPageSize, host::EventKind::kClear,
                        [&] { return ::madvise(page(i), kPageSize, MADV_DONTNEED); }) == 0;
  }
  [[nodiscard]] bool is_readable(size_t i) const {
    u8 byte = 0;
    return host::read_frame(runs_[i].first, 0, &byte, 1) && byte == i + 1;
  }
  void unpin() const {
    for (const host::FrameRun& run : runs_) host::unpin_pages(run);
  }

 private:
  u8* at_;
  std::vector<host::FrameRun> runs_;
};

// All the mappings there may be, but `room`.
class Filler {
 public:
  explicit Filler(u64 most, size_t room) : bytes_(2 * most * kPageSize) {
    at_ = static_cast<u8*>(
        ::mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    fill();
    while (room >= 2) {
      static_cast<void>(::mprotect(at_ + --used_ * 2 * kPageSize, kPageSize, PROT_NONE));
      room -= 2;
    }
  }
  ~Filler() { ::munmap(at_, bytes_); }
  // Answers how many more.
  size_t fill() {
    const size_t before = used_;
    while (::mprotect(at_ + used_ * 2 * kPageSize, kPageSize, PROT_READ) == 0) ++used_;
    return 2 * (used_ - before);
  }

 private:
  size_t bytes_, used_ = 0;
  u8* at_;
};

int drop_with_all_mappings_in_use(u64 most) {
  if (!host::backstop::install()) return 1;
  const Scattered memory;
  if (!memory.all_pinned()) return 2;
  constexpr size_t kRoom = 60;
  Filler filler(most, kRoom);
  size_t dropped = 0;
  for (size_t i = 0; i < kPages; ++i) {
    errno = 0;
    const bool went = memory.drop(i);
    if (!went && errno != ENOMEM) return 3;
    if (*memory.page(i) != (went ? 0 : i + 1)) return 4;
    if (!memory.is_readable(i)) return 5;
    dropped += went ? 1 : 0;
  }
  if (dropped == 0 || dropped == kPages) return 6;
  for (size_t i = 0; i < kPages; ++i) {
    if (!memory.is_readable(i)) return 7;
  }
  static_cast<void>(filler.fill());
  memory.unpin();
  if (host::pin_use().stored != 0) return 8;
  return filler.fill() + 8 >= 2 * dropped ? 0 : 9;  // what they took is free again
}

// Rather than to lose the second page, nothing is done at all.
TEST_F(Pins, WhatThereIsNoMemoryToKeepIsNotTakenAway) {
  for (const bool copies : {true, false}) {
    const Memory memory(3);
    const auto frames = pin(memory.range(0, 1)), others = pin(memory.range(2, 1));
    host::pin_store::debug_copy_only(copies);
    const auto refuse_second = [&](auto&& call) {
      if (copies) failpoint::arm("host.pin_copy", 2);
      if (!copies) failpoint::arm(nullptr, 2, 2);  // the second is neither moved nor copied
      errno = 0;
      EXPECT_EQ(call(), -1);
      EXPECT_EQ(errno, ENOMEM);
      failpoint::disarm();
      EXPECT_EQ(*memory.page(0), 1);
      EXPECT_EQ(*memory.page(2), 3);
      EXPECT_EQ(byte(frames[0]), 1);
      EXPECT_EQ(byte(others[0]), 3);
      *(memory.page(0) + 100) = 0;
      EXPECT_TRUE(put(frames[0], 1, 100));
      EXPECT_EQ(host::pin_use().stored, 0u);
      EXPECT_EQ(*(memory.page(0) + 100), 1) << "client and device see one page";
    };
    refuse_second([&] { return memory.unmap(0, 3); });
    refuse_second([&] { return memory.advise(0, 3, MADV_DONTNEED); });
    refuse_second([&] { return memory.map_over(0, 3) == MAP_FAILED ? -1 : 0; });
    ASSERT_EQ(memory.advise(0, 3, MADV_DONTNEED), 0);
    EXPECT_EQ(byte(frames[0]), 1);
    EXPECT_EQ(byte(others[0]), 3);
    EXPECT_EQ(*memory.page(2), 0);
    unpin_all();
  }
}
// Of a page that nobody can read nothing could be kept.
TEST_F(Pins, WhatCannotBeReadIsLostAndSaysSo) {
  const int fd = ::memfd_create("pins", 0);
  ASSERT_EQ(::ftruncate(fd, 2 * kPageSize), 0);
  const Memory memory(2, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  const auto frames = pin(memory.range(0, 2), {.long_term = false});
  ASSERT_EQ(frames.size(), 2u);
  ASSERT_EQ(::ftruncate(fd, kPageSize), 0);  // by another process: nobody was told
  ASSERT_EQ(memory.unmap(0, 2), 0);
  EXPECT_NE(byte(frames[0]), -1);
  EXPECT_EQ(byte(frames[1]), -1);
  EXPECT_FALSE(put(frames[1], 1));
  ::close(fd);
}

TEST(PinStore, LosesNoPageAndNoMappingWhereAllAreInUse) {
  u64 most = 0;
  std::ifstream("/proc/sys/vm/max_map_count") >> most;
  if (most > 200'000) GTEST_SKIP() << "vm.max_map_count is too large to use up";
  const pid_t child = ::fork();
  if (child == 0) {
    host::after_fork_child();
    ::_exit(drop_with_all_mappings_in_use(most));
  }
  EXPECT_EQ(0, test::exit_of(child));
}

}  // namespace
}  // namespace stagetwo
