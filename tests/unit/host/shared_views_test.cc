// SPDX-License-Identifier: Apache-2.0
// Absent pages of shared memory: one page, several addresses, a file behind it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "base/failpoint.h"
#include "base/own_memory.h"
#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/faultin.h"
#include "host/file_change.h"
#include "host/held_pages.h"
#include "host/page_owner.h"
#include "host/process_map.h"
#include "host/shared_objects.h"
#include "host/userfault.h"
#include "tests/support/counting_clients.h"
#include "tests/support/pages.h"
#include "tests/support/shared_pages.h"

namespace stagetwo {
namespace {

using host::BringBack;

using test::hiding_name;
using test::kPages;
using test::SharedPages;

INSTANTIATE_TEST_SUITE_P(Hiding, SharedPages, testing::Bool(), hiding_name);

TEST_P(SharedPages, TakenFromTheFileAndFromEveryView) {
  ASSERT_EQ(kPages, take());
  EXPECT_EQ(0u, blocks());
  EXPECT_TRUE(host::is_absent(range(one_).start()));
  EXPECT_TRUE(host::is_absent(range(two_).start()));
}

TEST_P(SharedPages, ATouchThroughAnyViewBringsItBackOnceForAll) {
  ASSERT_EQ(kPages, take());
  EXPECT_TRUE(all(two(3), 3));
  EXPECT_EQ(1, store_.back);
  EXPECT_FALSE(host::is_absent(range(one_, 3).start()));
  EXPECT_TRUE(all(one(3), 3));
  two(3)[7] = 99;
  EXPECT_EQ(99, one(3)[7]);
  one(3)[8] = 98;
  EXPECT_EQ(98, two(3)[8]);
  EXPECT_EQ(1, store_.back);
}

TEST_P(SharedPages, AGuestTouchesItThroughTheOtherView) {
  ASSERT_EQ(kPages, take());
  EXPECT_TRUE(host::faultin(range(two_, 5).start(), Access::kWrite));
  EXPECT_TRUE(all(one(5), 5));
  EXPECT_EQ(1, store_.back);
}

TEST_P(SharedPages, TakenAgainAndAgain) {
  for (int round = 0; round < 5; ++round) {
    ASSERT_EQ(kPages, take());
    for (size_t i = 0; i < kPages; ++i) ASSERT_TRUE(all(i % 2 == 0 ? one(i) : two(i), i));
  }
}

TEST_P(SharedPages, AHoleHasNothingToTake) {
  ASSERT_EQ(0, ::madvise(one(2), kPageSize, MADV_REMOVE));
  EXPECT_EQ(kPages - 1, take());
  EXPECT_EQ(0, two(2)[0]);
}

class Listener final : public host::MmuNotifier {
 public:
  bool invalidate_range_start(const host::InvalidateEvent& event) override {
    rung.push_back(event.range);
    return true;
  }
  void invalidate_range_end(const host::InvalidateEvent&) override {}
  std::vector<HvaRange> rung;
};

TEST_P(SharedPages, TheBellRingsAtEveryAddress) {
  Listener listener;
  ASSERT_TRUE(host::register_notifier(&listener));
  ASSERT_EQ(2u, take(1, 2));
  host::unregister_notifier(&listener);
  const std::vector<HvaRange> both{range(one_, 1, 2), range(two_, 1, 2)};
  EXPECT_EQ(both, listener.rung);
}

TEST_P(SharedPages, AViewMadeWhilePagesAreAbsentShowsTheirBytes) {
  ASSERT_EQ(kPages, take());
  u8* three = map();
  EXPECT_TRUE(all(three + 4 * kPageSize, 4));
  EXPECT_EQ(kPages, take());
  EXPECT_TRUE(all(three + 5 * kPageSize, 5));
  unmap(three);
}

// Of one more mapping than can be named nothing is taken, and what is absent has to come back.
TEST_P(SharedPages, OneViewTooManyLosesNothing) {
  constexpr size_t kNamed = 8;  // host::kMaxViews
  u8* more[kNamed - 2];
  for (u8*& view : more) view = map();
  ASSERT_EQ(kPages, take());
  void* const at =
      ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  u8* const last = static_cast<u8*>(at);
  EXPECT_EQ(0u, take()) << "a taker comes before it is announced";
  host::owners_see_mapping(range(last));
  for (size_t i = 0; i < kPages; ++i) ASSERT_TRUE(all(last + i * kPageSize, i)) << i;
  EXPECT_EQ(0u, take());
  EXPECT_EQ(0, unmap(last));
  EXPECT_EQ(kPages, take());
  EXPECT_TRUE(all(more[3] + 5 * kPageSize, 5));
  for (u8* view : more) EXPECT_EQ(0, unmap(view));
}

// Its pages are as absent as before, and it shows them by their touches.
TEST_P(SharedPages, AnUnmappingThatIsRefusedLosesNothing) {
  ASSERT_EQ(kPages, take());
  store_.refuses = true;
  EXPECT_EQ(-1, unmap(one_));
  EXPECT_EQ(ENOMEM, errno);
  store_.refuses = false;
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(one(i), i)) << i;
}

TEST_P(SharedPages, AMoveThatIsRefusedLosesNothing) {
  ASSERT_EQ(kPages, take());
  store_.refuses = true;
  const void* const moved =
      host::change(range(one_).start().raw(), kPages * kPageSize, host::EventKind::kUnmap,
                   host::Announced::kMoves, [] { return static_cast<void*>(nullptr); });
  EXPECT_EQ(MAP_FAILED, moved);
  store_.refuses = false;
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(one(i), i)) << i;
}

TEST_P(SharedPages, TheFileOutlivesAViewAndTheLastView) {
  ASSERT_EQ(kPages, take());
  ASSERT_EQ(0, unmap(one_));
  one_ = two_;
  two_ = nullptr;
  EXPECT_TRUE(all(one(1), 1));
  ASSERT_EQ(kPages, take());
  ASSERT_EQ(0, unmap(one_));
  one_ = map();
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(one(i), i));
  EXPECT_EQ(0, store_.discarded);
}

TEST_P(SharedPages, DontneedOfAViewDropsNothing) {
  ASSERT_EQ(kPages, take());
  ASSERT_EQ(0, host::change(range(one_).start().raw(), kPages * kPageSize, host::EventKind::kClear,
                            [&] { return ::madvise(one_, kPages * kPageSize, MADV_DONTNEED); }));
  EXPECT_EQ(0, store_.discarded);
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(one(i), i));
}

TEST_P(SharedPages, AHoleTheClientMakesDiscardsThem) {
  ASSERT_EQ(kPages, take());
  {
    host::FileChange change(file_, 2 * kPageSize, 3 * kPageSize);
    ASSERT_EQ(0, ::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * kPageSize,
                             3 * kPageSize));
    change.succeeded();
  }
  EXPECT_EQ(3, store_.discarded);
  EXPECT_EQ(0, one(2)[0]);
  EXPECT_EQ(0, two(4)[0]);
  EXPECT_TRUE(all(one(1), 1));
  EXPECT_TRUE(all(two(5), 5));
}

TEST_P(SharedPages, AHoleRingsAtEveryAddressAlsoOfPrivateMappings) {
  void* three = ::mmap(nullptr, 2 * kPageSize, PROT_READ, MAP_PRIVATE, file_, 2 * kPageSize);
  Listener listener;
  ASSERT_TRUE(host::register_notifier(&listener));
  {
    const host::FileChange change(file_, 2 * kPageSize, kPageSize);
  }
  host::unregister_notifier(&listener);
  EXPECT_EQ(3u, listener.rung.size());
  for (const u8* at : {one(2), two(2), static_cast<u8*>(three)}) {
    const HvaRange there = range(at, 0, 1);
    EXPECT_NE(listener.rung.end(), std::find(listener.rung.begin(), listener.rung.end(), there));
  }
  ::munmap(three, 2 * kPageSize);
}

TEST_P(SharedPages, AHoleOfAPartOfAPageBringsThatPageBack) {
  ASSERT_EQ(kPages, take());
  {
    host::FileChange change(file_, 100, kPageSize);
    ASSERT_EQ(0, ::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, kPageSize));
    change.succeeded();
  }
  EXPECT_EQ(1, one(0)[99]);
  EXPECT_EQ(0, one(0)[100]);
  EXPECT_EQ(0, two(1)[99]);
  EXPECT_EQ(2, two(1)[100]);
}

TEST_P(SharedPages, AnEndOfTheFileDiscardsWhatIsBehindIt) {
  ASSERT_EQ(kPages, take());
  {
    host::FileChange change(file_, kPageSize, host::FileChange::kToTheEnd);
    ASSERT_EQ(0, ::ftruncate(file_, kPageSize));
    change.succeeded();
  }
  EXPECT_EQ(kPages - 1, store_.discarded);
  ASSERT_EQ(0, ::ftruncate(file_, kPages * kPageSize));
  EXPECT_EQ(0, two(3)[0]);
  EXPECT_TRUE(all(two(0), 0));
}

TEST_P(SharedPages, AReadOfTheFileFindsTheBytesAndHoldsThem) {
  ASSERT_EQ(kPages, take());
  host::HeldPages held;
  held.hold_file(file_, 3 * kPageSize + 10, 2 * kPageSize);
  EXPECT_TRUE(held.fetch_file());
  EXPECT_EQ(3, store_.back);
  EXPECT_EQ(0u, take(3, 3));
  u8 got = 0;
  ASSERT_EQ(1, ::pread(file_, &got, 1, 4 * kPageSize));
  EXPECT_EQ(5, got);
  const u8 put = 77;
  ASSERT_EQ(1, ::pwrite(file_, &put, 1, 5 * kPageSize + 1));
  held.release();
  EXPECT_EQ(3u, take(3, 3));
  EXPECT_EQ(77, two(5)[1]);
}

class WatchedSharedPages : public SharedPages {};
INSTANTIATE_TEST_SUITE_P(Hiding, WatchedSharedPages, testing::Values(false), hiding_name);

TEST_P(WatchedSharedPages, ASystemCallOnAnyViewIsServed) {
  if (!host::userfault::serves_kernel()) {
    GTEST_SKIP() << "userfaultfd serves user mode only here (vm.unprivileged_userfaultfd)";
  }
  ASSERT_EQ(kPages, take());
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  ASSERT_EQ(64, ::write(ends[1], two(5), 64));
  ASSERT_EQ(64, ::read(ends[0], one(6) + 1, 64));
  EXPECT_EQ(7, two(6)[0]);
  EXPECT_EQ(6, two(6)[1]);
  EXPECT_EQ(7, two(6)[65]);
  ::close(ends[0]);
  ::close(ends[1]);
}

class HiddenSharedPages : public SharedPages {};
INSTANTIATE_TEST_SUITE_P(Hiding, HiddenSharedPages, testing::Values(true), hiding_name);

// vm.max_map_count: its bytes are put in through a second mapping.
TEST_P(HiddenSharedPages, WhereTheProcessMayHaveNoOtherMappingItStaysWithItsOwner) {
  ASSERT_EQ(kPages, take());
  failpoint::arm("host.page_alias", 1, failpoint::kForever);
  EXPECT_EQ(BringBack::kStuck, host::bring_back(range(two_).start()));
  EXPECT_FALSE(host::faultin(range(one_).start(), Access::kRead));
  u8 byte = 0;
  EXPECT_FALSE(host::load(range(two_).start(), &byte)) << "it does not go round for ever";
  failpoint::disarm();
  EXPECT_TRUE(all(two(0), 0));
}
TEST_P(HiddenSharedPages, OneThatIsInPlaceAndHasNoRightsIsShownLater) {
  ASSERT_EQ(kPages, take());
  failpoint::arm("host.page_rights", 1, failpoint::kForever);
  EXPECT_EQ(BringBack::kStuck, host::bring_back(range(two_).start()));
  failpoint::disarm();
  EXPECT_TRUE(all(one(0), 0));
  EXPECT_TRUE(all(two(0), 0));
}

TEST_P(HiddenSharedPages, AViewOfWhichTheKernelTellsNothingIsShownLater) {
  constexpr u64 kAsked = 3;  // once for the bytes, and for each of the views
  for (u64 nth = 1; nth <= kAsked; ++nth) {
    ASSERT_EQ(1u, take(0, 1));
    failpoint::arm("host.page_shown", nth);
    EXPECT_EQ(nth == 1 ? BringBack::kBack : BringBack::kStuck,
              host::bring_back(range(two_).start()));
    EXPECT_EQ(1u, failpoint::failed());
    failpoint::disarm();
    EXPECT_TRUE(all(one(0), 0));
    EXPECT_TRUE(all(two(0), 0));
  }
}

TEST_P(SharedPages, LostForEveryView) {
  ASSERT_EQ(kPages, take());
  store_.loses = true;
  EXPECT_EQ(BringBack::kLost, host::bring_back(range(two_).start()));
  EXPECT_FALSE(host::faultin(range(one_).start(), Access::kRead));
  u8 byte = 0;
  EXPECT_FALSE(host::load(range(one_).start(), &byte));
  EXPECT_FALSE(host::load(range(two_).start(), &byte));
  // The kernel gives the mark to no child: that is the announcement's.
  const auto touch_in_child = [&] {
    host::owners_after_fork_child();
    [[maybe_unused]] volatile u8 touched = *two(0);
  };
  EXPECT_EXIT(touch_in_child(), testing::KilledBySignal(SIGBUS), "");
  host::HeldPages held;
  held.hold_file(file_, 0, 1);
  EXPECT_FALSE(held.fetch_file()) << "EIO, never zeros";
  held.release();
  store_.loses = false;
  EXPECT_TRUE(all(two(1), 1));
}

// MADV_REMOVE asks for a shared mapping that may be written: the client's own is still there.
TEST_P(WatchedSharedPages, AHoleHealsALostPageInEveryView) {
  ASSERT_EQ(kPages, take());
  const u64 lost_before = host::owner_counts().lost_now;
  store_.loses = true;
  ASSERT_EQ(BringBack::kLost, host::bring_back(range(two_).start()));
  store_.loses = false;
  for (const u8* view : {one_, two_}) {
    const auto shown = host::shown_mapping_at(range(view).start());
    ASSERT_TRUE(shown);
    EXPECT_TRUE(shown->shared);
    EXPECT_GE(shown->range.end(), range(view).end()) << "one mapping, as before";
  }
  {
    host::FileChange change(file_, 0, kPageSize);
    ASSERT_EQ(0, ::madvise(two(0), kPageSize, MADV_REMOVE)) << errno;
    change.succeeded();
  }
  u8 byte = 1;
  ASSERT_TRUE(host::load(range(two_).start(), &byte)) << "a bus error still";
  EXPECT_EQ(0, byte);
  ASSERT_TRUE(host::load(range(one_).start(), &byte)) << "a bus error still";
  two(0)[7] = 5;
  EXPECT_EQ(5, one(0)[7]);
  EXPECT_EQ(lost_before, host::owner_counts().lost_now);
  EXPECT_TRUE(all(one(1), 1));
}

TEST_P(SharedPages, WhatOthersMayMapIsNeverTakenAndIsCounted) {
  const u64 before = host::owner_counts().refused_shared;
  EXPECT_NE(0u, host::shared_file_escapes(file_, host::GivenTo::kReceiver));
  EXPECT_EQ(0u, take());
  EXPECT_EQ(before + kPages, host::owner_counts().refused_shared);
  EXPECT_TRUE(all(two(0), 0));
}

TEST_P(SharedPages, AFileMadeBeforeWeLookedIsNeverTaken) {
  const int other = ::memfd_create("unknown", MFD_CLOEXEC);
  ASSERT_EQ(0, ::ftruncate(other, kPageSize));
  void* at = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
  *static_cast<u8*>(at) = 1;
  EXPECT_EQ(0u,
            *host::take_away(range(static_cast<u8*>(at), 0, 1), &store_, this, host::Which::kAll));
  ::munmap(at, kPageSize);
  ::close(other);
}

TEST_P(SharedPages, AForkBringsThemBackAndTheChildHasThemToo) {
  ASSERT_EQ(kPages, take());
  host::owners_before_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    host::owners_after_fork_child();
    int wrong = 0;
    for (size_t i = 0; i < kPages; ++i) wrong += all(one(i), i) && all(two(i), i) ? 0 : 1;
    two(0)[0] = 55;
    ::_exit(wrong);
  }
  host::owners_after_fork_parent();
  int status = 0;
  ASSERT_EQ(child, ::waitpid(child, &status, 0));
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(0, WEXITSTATUS(status));
  EXPECT_EQ(55, one(0)[0]);
  EXPECT_EQ(0u, take()) << "another process may have it now";
}

TEST_P(SharedPages, AnonymousSharedMemoryIsAnObjectToo) {
  void* mine =
      ::mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* bytes = static_cast<u8*>(mine);
  host::shared_memory_mapped(range(bytes).start());
  std::memset(mine, 9, 2 * kPageSize);
  ASSERT_EQ(2u, *host::take_away(range(bytes, 0, 2), &store_, this, host::Which::kAll));
  EXPECT_EQ(9, bytes[5]);
  EXPECT_EQ(9, bytes[kPageSize]);
  ::munmap(mine, 2 * kPageSize);
}

// As libc does it with a large block.
TEST_P(SharedPages, AnAddressUnmappedBehindOurBackIsFreeForOthers) {
  ASSERT_EQ(kPages, take());
  host::bring_back_range(range(one_));
  ASSERT_EQ(0, ::munmap(one_, kPages * kPageSize));
  ASSERT_EQ(one_, ::mmap(one_, kPages * kPageSize, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  std::memset(one_, 7, kPages * kPageSize);
  class Private final : public host::PageOwner {
   public:
    bool take(const host::AbsentPage& page, host::PageExit& exit) override {
      EXPECT_EQ(host::kPrivateMemory, page.key.object);
      return exit.to(Hva(place.address()));
    }
    BringBack bring_back(const host::AbsentPage&, host::PageEntry& entry) override {
      return entry.from(Hva(place.address())) ? BringBack::kBack : BringBack::kRetry;
    }
    void discard(const host::AbsentPage&) override {}
    test::GuardedPages place{1};
  } owner;
  ASSERT_EQ(1u, *host::take_away(range(one_, 3, 1), &owner, this, host::Which::kAll));
  EXPECT_EQ(7, one(3)[1]);
  EXPECT_TRUE(all(two(3), 3));
}

// As whoever brings a page back makes one for its copy: hidden, that copy would wait for itself.
TEST_P(SharedPages, ASecondMappingOfTheEnginesOwnIsNoView) {
  void* const again = *map_again_apart(one(1), kPageSize);
  ASSERT_EQ(0, ::mprotect(again, kPageSize, PROT_READ | PROT_WRITE));
  ASSERT_EQ(kPages, take());
  const Hva there(reinterpret_cast<u64>(again));
  const auto shown = host::shown_mapping_at(there);
  ASSERT_TRUE(shown);
  EXPECT_TRUE(shown->prot.read) << "hidden";
  EXPECT_FALSE(host::userfault::is_watched(there));
  unmap_again(again, kPageSize);
  EXPECT_TRUE(all(two(1), 1));
}

TEST_P(SharedPages, AnOwnerOfPrivatePagesAloneLeavesThem) {
  EXPECT_EQ(0u, *host::take_away(range(one_), &store_, this, host::Which::kAnonymous));
  EXPECT_EQ(0u, *host::take_away(range(one_), &store_, this, host::Which::kPresent));
}

TEST_P(SharedPages, WritersThroughTwoViewsLoseNothing) {
  const auto word = [&](size_t i) {
    return reinterpret_cast<u64*>(i % 2 == 0 ? one(0) : two(0)) + i * 16;
  };
  test::CountingClients writers({word(0), word(1), word(2), word(3)});
  // However long a busy machine needs for that many.
  for (u64 taken = 0; taken < 40;) {
    const u64 more = take(0, 1);
    ASSERT_LE(more, 1U) << "refused";
    taken += more;
    std::this_thread::yield();
  }
  writers.stop();
  EXPECT_EQ(0u, writers.wrong());
}

}  // namespace
}  // namespace stagetwo
