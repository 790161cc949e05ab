// SPDX-License-Identifier: Apache-2.0
// Goal: which system calls ring, for which pages, and in which order.
#include "host/change.h"

#include <gtest/gtest.h>

namespace stagetwo::host {
namespace {

TEST(PagesOf, RoundsOutwards) {
  EXPECT_EQ(HvaRange(Hva(0x1000), 0x1000), pages_of(0x1000, 1));
  EXPECT_EQ(HvaRange(Hva(0x1000), 0x2000), pages_of(0x1fff, 2));
  EXPECT_EQ(HvaRange(Hva(0), 0x1000), pages_of(0, 0x1000));
}

TEST(PagesOf, KnowsWhatTheKernelRefuses) {
  EXPECT_EQ(std::nullopt, pages_of(0x1000, 0));
  EXPECT_EQ(std::nullopt, pages_of(0x1000, ~u64{0}));
  EXPECT_EQ(std::nullopt, pages_of(~u64{0} - 1, 1));
}

class Recorder final : public MmuNotifier {
 public:
  explicit Recorder(std::string* log) : log_(log) {}
  bool invalidate_range_start(const InvalidateEvent& event) override {
    *log_ += "start ";
    last = event;
    return true;
  }
  void invalidate_range_end(const InvalidateEvent&) override { *log_ += "end "; }
  InvalidateEvent last{};

 private:
  std::string* log_;
};

TEST(Change, IsStartThenCallThenEnd) {
  std::string log;
  Recorder recorder(&log);
  ASSERT_TRUE(register_notifier(&recorder));
  const int answer = change(0x5001, 1, EventKind::kUnmap, [&] {
    log += "call ";
    return 17;
  });
  EXPECT_EQ(17, answer);
  EXPECT_EQ("start call end ", log);
  EXPECT_EQ(HvaRange(Hva(0x5000), 0x1000), recorder.last.range);
  EXPECT_EQ(EventKind::kUnmap, recorder.last.kind);
  unregister_notifier(&recorder);
}

TEST(Change, OfAnImpossibleRangeIsTheCallAlone) {
  std::string log;
  Recorder recorder(&log);
  ASSERT_TRUE(register_notifier(&recorder));
  EXPECT_EQ(3, change(0x5000, 0, EventKind::kUnmap, [] { return 3; }));
  EXPECT_EQ("", log);
  unregister_notifier(&recorder);
}

TEST(Loss, OfMprotectIsAnythingLessThanReadAndWrite) {
  EXPECT_EQ(std::nullopt, loss_by_mprotect(PROT_READ | PROT_WRITE));
  EXPECT_EQ(std::nullopt, loss_by_mprotect(PROT_READ | PROT_WRITE | PROT_EXEC));
  EXPECT_EQ(EventKind::kProtection, loss_by_mprotect(PROT_READ));
  EXPECT_EQ(EventKind::kProtection, loss_by_mprotect(PROT_NONE));
  EXPECT_EQ(EventKind::kProtection, loss_by_mprotect(PROT_READ | PROT_EXEC));
}

TEST(Loss, OfMadviseIsWhatDiscards) {
  for (const int advice : {MADV_DONTNEED, MADV_FREE, MADV_REMOVE, 24, 100, 102}) {
    EXPECT_EQ(EventKind::kClear, loss_by_madvise(advice)) << advice;
  }
  for (const int advice :
       {MADV_NORMAL, MADV_WILLNEED, MADV_HUGEPAGE, MADV_DONTFORK, 22, 23, 103, 9999}) {
    EXPECT_EQ(std::nullopt, loss_by_madvise(advice)) << advice;
  }
}

TEST(Loss, OfMmapIsAFixedOneThatReplaces) {
  EXPECT_TRUE(mmap_replaces(MAP_FIXED | MAP_PRIVATE));
  EXPECT_FALSE(mmap_replaces(MAP_PRIVATE));
  EXPECT_FALSE(mmap_replaces(0x100000 | MAP_FIXED));
}

}  // namespace
}  // namespace stagetwo::host
