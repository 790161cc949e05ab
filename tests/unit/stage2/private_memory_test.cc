// SPDX-License-Identifier: Apache-2.0
// Goal: a frame is served from the half its attribute names, and only ever from that one; what
// takes a half away leaves the other alone.
#include "stage2/private_memory.h"

#include "base/failpoint.h"
#include "base/trace.h"
#include "host/pin.h"
#include "stage2/file_pages.h"
#include "tests/support/private_fixture.h"
#include "tests/support/private_swap.h"
#include "tests/support/sanitizers.h"

namespace stagetwo::stage2 {
namespace {

class Halves : public PrivateVm {
 protected:
  void SetUp() override {
    PrivateVm::SetUp();
    ASSERT_EQ(0, bind(0, kGpa, kFilePages, pages_.address(), file_));
  }
};

TEST_F(Halves, EverythingIsSharedUntilItIsSaidOtherwise) {
  EXPECT_FALSE(memory_->private_memory().attributes().is_private(Gfn(0)));
  host_word(0) = 11;
  EXPECT_EQ(11U, load(kGpa));
  EXPECT_EQ(0U, file_.resident_pages());
}

TEST_F(Halves, EachHasItsOwnContents) {
  host_word(0) = 11;
  ASSERT_EQ(0, convert(kGpa, 1, true));
  EXPECT_EQ(0U, load(kGpa));
  EXPECT_EQ(FaultOutcome::kFixed, store(kGpa, 22));
  EXPECT_EQ(11U, host_word(0));
  ASSERT_EQ(0, convert(kGpa, 1, false));
  EXPECT_EQ(11U, load(kGpa));
  ASSERT_EQ(0, convert(kGpa, 1, true));
  EXPECT_EQ(22U, load(kGpa));
}

TEST_F(Halves, AConversionTakesTheHalfThatIsLeftOutBeforeItReturns) {
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 1));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa + kPageSize, 2));
  ASSERT_EQ(0, convert(kGpa, 1, true));
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa));
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa + kPageSize));
  EXPECT_EQ(0U, load(kGpa));
  ASSERT_EQ(0, convert(kGpa, 1, true));  // nothing to do
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa));
}

// DMA x conversion: what a device was given and its VMM did not take back is told, by each slot.
TEST_F(Halves, AConversionWithAMappingLeftBehindIsTold) {
  host::FrameRun runs[2];
  const HvaRange mapped(Hva(pages_.address() + 2 * kPageSize), 3 * kPageSize);
  const auto pinned = host::pin_pages(mapped, {.write = true}, runs, 2);
  ASSERT_TRUE(pinned);
  ASSERT_EQ(pinned->pages, 3u);
  struct Told {
    unsigned events = 0;
    u64 gfn = 0, hva = 0, pages = 0;
  };
  const auto told_by = [&](u64 page, u64 pages, bool to_private) {
    EXPECT_TRUE(trace::start());
    EXPECT_EQ(0, convert(kGpa + page * kPageSize, pages, to_private));
    trace::stop();
    Told told;
    trace::for_each([&](const trace::Record& r) {
      if (r.event != trace::Event::st_pinned_private) return;
      told = {told.events + 1, r.arg[0], r.arg[1], r.arg[2]};
    });
    return told;
  };
  EXPECT_EQ(told_by(0, 2, true).events, 0u) << "nobody pinned these";
  const Told told = told_by(1, 3, true);
  EXPECT_EQ(told.events, 1u);
  EXPECT_EQ(told.gfn, (kGpa >> kPageShift) + 1);
  EXPECT_EQ(told.hva, pages_.address() + 2 * kPageSize);
  EXPECT_EQ(told.pages, 2u);
  EXPECT_EQ(told_by(1, 3, false).events, 0u) << "to shared nothing is left behind";
  for (unsigned i = 0; i < pinned->runs; ++i) host::unpin_pages(runs[i]);
  EXPECT_EQ(told_by(1, 3, true).events, 0u);
}

TEST_F(Halves, AConversionOfARangeKeepsWhatIsAlreadyThere) {
  ASSERT_EQ(0, convert(kGpa + kPageSize, 1, true));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa + kPageSize, 5));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 6));
  ASSERT_EQ(0, convert(kGpa, 4, true));
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa));
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa + kPageSize));
}

TEST_F(Halves, AChangeOfTheClientsAddressesTakesSharedEntriesOnly) {
  ASSERT_EQ(0, convert(kGpa, 1, true));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 7));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa + kPageSize, 8));
  host::change(pages_.address(), 2 * kPageSize, host::EventKind::kUnmap, [] {});
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa));
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa + kPageSize));
}

TEST_F(Halves, APunchTakesPrivateEntriesOnlyAndItsPageIsZeroAgain) {
  ASSERT_EQ(0, convert(kGpa, 1, true));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 7));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa + kPageSize, 8));
  EXPECT_EQ(1U, file_.resident_pages());
  ASSERT_EQ(0, file_.punch(0, 2));
  EXPECT_EQ(0U, file_.resident_pages());
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa));
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa + kPageSize));
  EXPECT_EQ(0U, load(kGpa));
  EXPECT_EQ(8U, host_word(1));
}

TEST_F(Halves, APunchOfPagesNobodyIsBoundToTellsNobody) {
  ASSERT_EQ(0, slot(0, kGpa, 0, 0));
  const u64 before = memory_->counts().invalidations;
  ASSERT_EQ(0, file_.punch(0, kFilePages));
  EXPECT_EQ(before, memory_->counts().invalidations);
}

TEST_F(Halves, ASlotThatGoesUnbindsAndSaysNothing) {
  ASSERT_EQ(0, convert(kGpa, 1, true));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 7));
  const u64 before = memory_->counts().invalidations;
  ASSERT_EQ(0, slot(0, kGpa, 0, 0));
  EXPECT_EQ(before, memory_->counts().invalidations);
  EXPECT_EQ(0U, file_.object.binding_count());
  EXPECT_EQ(1U, file_.resident_pages());  // what it was bound to stays
  ASSERT_EQ(0, bind(0, kGpa, kFilePages, pages_.address(), file_));
  EXPECT_EQ(7U, load(kGpa));  // and so does what was said of its frames
}

TEST_F(Halves, WithoutAFileOrASlotPrivateIsTheVmmsToArrange) {
  ASSERT_EQ(0, slot(1, 2 * kGpa, kPageSize, pages_.address()));
  ASSERT_EQ(0, convert(2 * kGpa, 16, true));
  for (const u64 gpa : {2 * kGpa, 2 * kGpa + kPageSize}) {
    Fault found;
    EXPECT_EQ(FaultOutcome::kMemoryFault, fault(gpa, Access::kRead, &found)) << gpa;
    EXPECT_EQ(EFAULT, found.error);
    EXPECT_TRUE(found.is_private);
  }
}

TEST_F(Halves, AReleasedFileIsEfaultAndItsMemoryIsFree) {
  ASSERT_EQ(0, convert(kGpa, 2, true));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 7));
  file_.object.release();
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa));
  Fault found;
  EXPECT_EQ(FaultOutcome::kMemoryFault, fault(kGpa, Access::kRead, &found));
  EXPECT_EQ(EFAULT, found.error);
  EXPECT_EQ(FaultOutcome::kFixed, store(kGpa + 2 * kPageSize, 1));  // shared still is
  EXPECT_EQ(0, slot(0, kGpa, 0, 0));
}

TEST_F(Halves, KvmsOwnAccessesUseTheClientsAddress) {
  host_word(0) = 11;
  ASSERT_EQ(0, convert(kGpa, 1, true));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 22));
  u64 value = 0;
  EXPECT_EQ(FaultOutcome::kFixed, memory_->read(Gpa(kGpa), &value, sizeof(value)));
  EXPECT_EQ(11U, value);
  EXPECT_EQ(FaultOutcome::kFixed, memory_->read_as_guest(Gpa(kGpa), &value, sizeof(value)));
  EXPECT_EQ(22U, value);
}

TEST_F(Halves, AConversionWithoutMemoryChangesNothing) {
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 1));
  ASSERT_EQ(0, convert(kGpa + 4 * kPageSize, 1, true));
  failpoint::sweep(
      [this] {
        const int error = convert(kGpa, 8, true);
        const bool refused = error != 0;
        EXPECT_TRUE(error == 0 || error == ENOMEM);
        EXPECT_EQ(!refused,
                  memory_->private_memory().attributes().is_private(gpa_to_gfn(Gpa(kGpa))));
        if (!refused) static_cast<void>(convert(kGpa, 8, false));
        if (!refused) static_cast<void>(convert(kGpa + 4 * kPageSize, 1, true));
      },
      "stage2.attributes");
  failpoint::disarm();
}

TEST_F(Halves, ABindingWithoutMemoryLeavesNothing) {
  ASSERT_EQ(0, slot(0, kGpa, 0, 0));
  failpoint::sweep([this] {
    const int error = bind(0, kGpa, kFilePages, pages_.address(), file_);
    EXPECT_TRUE(error == 0 || error == ENOMEM) << error;
    EXPECT_EQ(error == 0 ? 1U : 0U, file_.object.binding_count());
    failpoint::disarm();  // what failed stays counted
    if (error == 0) {
      EXPECT_EQ(0, slot(0, kGpa, 0, 0));
    }
  });
}

using HalvesDeathTest = Halves;

TEST_F(HalvesDeathTest, AVmThatEndsBetweenABeginAndItsEndEndsTheProcess) {
  const GfnRange frame(gpa_to_gfn(Gpa(kGpa)), 1);
  EXPECT_DEATH(
      {
        memory_->lines().remove(line_);
        context_.reset();
        memory_->private_memory().pages_going(frame, HvaRange(Hva(pages_.address()), kPageSize),
                                              Half::kPrivate);
        memory_.reset();
      },
      "gate_.active");
  EXPECT_DEATH(memory_->private_memory().pages_gone(HvaRange(Hva(pages_.address()), kPageSize)),
               "left != ");
}

using Attributes = PrivateVm;

TEST_F(Attributes, ATebibyteCostsARangeAndMicroseconds) {
  const AllocUse before = alloc_use();
  u64 best = ~u64{0};
  for (int round = 0; round < 20; ++round) {
    for (const bool to_private : {true, false}) {
      const u64 start = sys::monotonic_ns();
      ASSERT_EQ(0, convert(kPageSize, u64{1} << 28, to_private));
      EXPECT_LT(alloc_use().bytes - before.bytes, 1024);
      best = std::min(best, sys::monotonic_ns() - start);
    }
  }
  if (!test::kThreadSanitizer && !test::kAddressSanitizer) {
    EXPECT_LT(best, 10'000U);
  }
  RecordProperty("ns", std::to_string(best));
  std::printf("1 TiB: %llu ns, %lld bytes\n", static_cast<unsigned long long>(best),
              static_cast<long long>(alloc_use().bytes - before.bytes));
}

TEST_F(Attributes, RangesOfOneKindAreOne) {
  for (u64 page = 0; page < 64; page += 2) ASSERT_EQ(0, convert(page * kPageSize, 1, true));
  EXPECT_EQ(32U, memory_->private_memory().attributes().range_count());
  ASSERT_EQ(0, convert(0, 64, true));
  EXPECT_EQ(1U, memory_->private_memory().attributes().range_count());
  ASSERT_EQ(0, convert(0, 64, false));
  EXPECT_EQ(0U, memory_->private_memory().attributes().range_count());
}

// Pages of the file leave memory beside the guest.
class PrivateUnderALimit : public PrivateVm {
 protected:
  void SetUp() override {
    PrivateVm::SetUp();
    swap_.use_file();
    ASSERT_TRUE(mem::private_pages::open(&swap_));
    ASSERT_EQ(0, bind(0, kGpa, kFilePages, pages_.address(), file_));
    ASSERT_EQ(0, convert(kGpa, kFilePages, true));
  }
  void TearDown() override {
    PrivateVm::TearDown();
    memory_.reset();
    file_.object.release();
    mem::private_pages::close();
  }
  HvaRange at(u64 page) {
    Fault found;
    EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa + page * kPageSize, Access::kRead, &found));
    return HvaRange(page_floor(found.page), kPageSize);
  }
  mem::PageStore store_;
  test::TestSwap swap_{store_};
};

TEST_F(PrivateUnderALimit, APageThatIsAwayIsOutOfTheTableAndComesBackAtAFault) {
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 7));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa + kPageSize, 8));
  const u64 given_up = memory_->private_memory().times_given_up();
  ASSERT_EQ(1U, swap_.take(at(0)).pages);
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa));
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa + kPageSize));
  EXPECT_EQ(1U, file_.resident_pages());
  EXPECT_EQ(7U, load(kGpa));
  EXPECT_EQ(1U, swap_.back);
  EXPECT_EQ(given_up, memory_->private_memory().times_given_up());
  u64 value = 0;
  ASSERT_EQ(1U, swap_.take(at(1)).pages);
  EXPECT_EQ(FaultOutcome::kFixed,
            memory_->read_as_guest(Gpa(kGpa + kPageSize), &value, sizeof(value)));
  EXPECT_EQ(8U, value);
}

TEST_F(PrivateUnderALimit, ALostPageIsEfaultForTheGuestAndNoOtherOneIs) {
  for (u64 page = 0; page < 2; ++page) {
    Fault found;
    ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + page * kPageSize, Access::kWrite, &found));
    for (u64 i = 0; i < kPageSize; i += 8) {
      ASSERT_TRUE(host::store(found.page + i, (i + 1) * 0x9e3779b97f4a7c15U));
    }
    ASSERT_EQ(1U, swap_.take(at(page)).pages);
  }
  swap_.damage(5);
  Fault found;
  EXPECT_EQ(FaultOutcome::kMemoryFault, fault(kGpa, Access::kRead, &found));
  EXPECT_EQ(EFAULT, found.error);
  EXPECT_EQ(0x9e3779b97f4a7c15U, load(kGpa + kPageSize));
}

TEST_F(PrivateUnderALimit, UseIsKnownByTheEnginesAddress) {
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 1));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa + 2 * kPageSize, 1));
  const HvaRange all(at(0).start(), kFilePages * kPageSize);
  u64 young = 0;
  host::collect_young(all, &young);
  EXPECT_EQ(0b101U, young);
  young = 0;
  host::collect_young(all, &young);
  EXPECT_EQ(0U, young);
  EXPECT_EQ(1U, load(kGpa + 2 * kPageSize));
  host::collect_young(all, &young);
  EXPECT_EQ(0b100U, young);
}

// A huge page of the client's under a slot of two.
class Mixed : public PrivateVm {
 protected:
  void SetUp() override {
    PrivateVm::SetUp();
    file_2m_ = std::make_unique<TestFile>(1024);
    raw_ = ::mmap(nullptr, 6 * kTwo, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(MAP_FAILED, raw_);
    at_ = align_up(reinterpret_cast<u64>(raw_), kTwo);
    ASSERT_EQ(0, ::madvise(reinterpret_cast<void*>(at_), 2 * kTwo, MADV_HUGEPAGE));
    std::memset(reinterpret_cast<void*>(at_), 0x5a, 2 * kTwo);
    ASSERT_EQ(0, bind(0, kBase, 1024, at_, *file_2m_));
    Fault found;
    ASSERT_EQ(FaultOutcome::kFixed, fault(kBase, Access::kWrite, &found));
    if (found.level != 2) GTEST_SKIP() << "no transparent huge pages here";
  }
  void TearDown() override {
    if (memory_ && at_ != 0) static_cast<void>(slot(0, kBase, 0, 0));
    PrivateVm::TearDown();
    if (raw_ != nullptr) ::munmap(raw_, 6 * kTwo);
  }
  unsigned level_after_touch(u64 gpa) {
    Fault found;
    EXPECT_EQ(FaultOutcome::kFixed, fault(gpa, Access::kWrite, &found));
    return found.level;
  }
  static constexpr u64 kTwo = 2 << 20;
  static constexpr u64 kBase = u64{1} << 30;
  void* raw_ = nullptr;
  u64 at_ = 0;
  std::unique_ptr<TestFile> file_2m_;
};

TEST_F(Mixed, OnePrivateFrameForbidsTheHugePageUntilItIsSharedAgain) {
  ASSERT_EQ(0, convert(kBase + 7 * kPageSize, 1, true));
  EXPECT_EQ(Walk::Kind::kMiss, look(kBase));  // gone before the call returned
  EXPECT_EQ(0x5a5a5a5a5a5a5a5aU, load(kBase + 6 * kPageSize));
  EXPECT_EQ(0U, load(kBase + 7 * kPageSize));
  EXPECT_EQ(1U, level_after_touch(kBase + 8 * kPageSize));
  EXPECT_EQ(2U, level_after_touch(kBase + kTwo));  // its neighbour is not concerned
  ASSERT_EQ(0, convert(kBase + 7 * kPageSize, 1, false));
  EXPECT_EQ(2U, level_after_touch(kBase + 8 * kPageSize));
  EXPECT_EQ(0x5a5a5a5a5a5a5a5aU, load(kBase + 7 * kPageSize));
}

TEST_F(Mixed, AllPrivateAndAllSharedAgainIsHuge) {
  ASSERT_EQ(0, convert(kBase, 512, true));
  EXPECT_EQ(1U, level_after_touch(kBase));  // a file's pages are single
  EXPECT_EQ(1U, level_after_touch(kBase + 511 * kPageSize));
  ASSERT_EQ(0, convert(kBase, 512, false));
  EXPECT_EQ(2U, level_after_touch(kBase));
}

// What a file says that is served to shared faults as well (a file its owner may map).
class FileOnly : public PrivateVm {
 protected:
  void SetUp() override {
    PrivateVm::SetUp();
    Region region;
    region.flags = kGuestMemfd;
    region.gpa = kGpa;
    region.size = kFilePages * kPageSize;
    region.hva = pages_.address();
    region.file = &file_.object;
    region.file_only = true;
    ASSERT_TRUE(memory_->slots().set_region(region));
  }
};

TEST_F(FileOnly, BothHalvesAreTheFilesAndKvmsOwnAccessesAreNot) {
  host_word(0) = 11;
  EXPECT_EQ(0U, load(kGpa));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 33));
  ASSERT_EQ(0, convert(kGpa, 1, true));
  EXPECT_EQ(33U, load(kGpa));
  u64 value = 0;
  EXPECT_EQ(FaultOutcome::kFixed, memory_->read(Gpa(kGpa), &value, sizeof(value)));
  EXPECT_EQ(11U, value);
  ASSERT_EQ(0, convert(kGpa, 1, false));
  EXPECT_EQ(33U, load(kGpa));
  ASSERT_EQ(0, file_.punch(0, 1));
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa));
  EXPECT_EQ(0U, load(kGpa));
}

}  // namespace
}  // namespace stagetwo::stage2
