// SPDX-License-Identifier: Apache-2.0
// Absent pages: every way a page can be touched, taken, given up and inherited.
#include "host/page_owner.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "base/alloc.h"
#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/faultin.h"
#include "host/process_map.h"
#include "host/userfault.h"
#include "tests/support/absent_pages.h"
#include "tests/support/counting_clients.h"

namespace stagetwo {
namespace {

using test::AbsentPages;
using test::BringBack;
using test::hiding_name;
using test::Keeper;

INSTANTIATE_TEST_SUITE_P(Hiding, AbsentPages, testing::Bool(), hiding_name);

TEST_P(AbsentPages, TheirBytesAreWithTheOwner) {
  ASSERT_EQ(kPages, take());
  EXPECT_TRUE(host::is_absent(at(3)));
  EXPECT_TRUE(keeper_.writable);
  EXPECT_EQ(4, keeper_.bytes_of(page(3))[100]);
}

// For a core dump, or another process: behind a protection, too.
TEST_P(AbsentPages, NothingIsLeftInTheirPlace) {
  ASSERT_EQ(take(), kPages);
  const int memory = ::open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  for (size_t i = 0; i < kPages; ++i) {
    u8 left[kPageSize] = {};
    unsigned char there = 0;
    ASSERT_EQ(::mincore(page(i), kPageSize, &there), 0);
    // Where there is no page to look at a look would be a touch.
    const auto offset = static_cast<off_t>(at(i).raw());
    const bool looks = (there & 1) == 0 || ::pread(memory, left, kPageSize, offset) == kPageSize;
    ASSERT_TRUE(looks);
    EXPECT_EQ(std::count(left, left + kPageSize, 0), static_cast<ptrdiff_t>(kPageSize)) << i;
  }
  ::close(memory);
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i)) << i;
}

TEST_P(AbsentPages, AReadBringsThePageBackOnce) {
  ASSERT_EQ(kPages, take());
  EXPECT_TRUE(is_page_of(2));
  EXPECT_TRUE(is_page_of(2));
  EXPECT_EQ(1, keeper_.back);
  EXPECT_FALSE(host::is_absent(at(2)));
  EXPECT_TRUE(host::is_absent(at(3)));
}

TEST_P(AbsentPages, AWriteBringsThePageBackBeforeItStores) {
  ASSERT_EQ(kPages, take());
  page(1)[7] = 99;
  EXPECT_EQ(99, page(1)[7]);
  EXPECT_EQ(2, page(1)[8]);
  EXPECT_EQ(1, keeper_.back);
}

TEST_P(AbsentPages, WhatTheOwnerWroteMeanwhileIsWhatTheProcessReads) {
  ASSERT_EQ(kPages, take());
  keeper_.bytes_of(page(4))[0] = 77;
  EXPECT_EQ(77, page(4)[0]);
  EXPECT_EQ(5, page(4)[1]);
}

TEST_P(AbsentPages, ASystemCallSeesThemWhereUserfaultfdServesTheKernel) {
  ASSERT_EQ(kPages, take());
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  const ssize_t put = ::write(ends[1], page(5), 64);
  if (!serves_system_calls()) {
    EXPECT_EQ(-1, put);
    EXPECT_EQ(EFAULT, errno);
  } else {
    ASSERT_EQ(64, put);
    u8 got[64];
    ASSERT_EQ(64, ::read(ends[0], got, 64));
    EXPECT_EQ(6, got[63]);
  }
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_P(AbsentPages, AGuardedAccessOfTheEngineBringsThemBack) {
  ASSERT_EQ(kPages, take());
  u64 word = 0;
  EXPECT_TRUE(host::load(at(6), &word));
  EXPECT_EQ(0x0707070707070707u, word);
}

TEST_P(AbsentPages, FaultinAsksTheOwnerBeforeTheKernel) {
  ASSERT_EQ(kPages, take());
  EXPECT_TRUE(host::faultin(at(0), Access::kWrite));
  EXPECT_EQ(1, keeper_.back);
  EXPECT_TRUE(is_page_of(0));
}

TEST_P(AbsentPages, ManyTouchersGetOneBringBack) {
  for (int round = 0; round < 50; ++round) {
    ASSERT_EQ(kPages, take());
    const u64 before = keeper_.back;
    std::atomic<int> wrong{0};
    std::vector<std::thread> touchers;
    for (int t = 0; t < 4; ++t) {
      touchers.emplace_back([&, t] {
        for (size_t i = 0; i < kPages; ++i) {
          if (t == 0 && !host::faultin(at(i), Access::kRead)) ++wrong;
          if (!is_page_of(i)) ++wrong;
        }
      });
    }
    for (auto& thread : touchers) thread.join();
    ASSERT_EQ(0, wrong);
    ASSERT_EQ(before + kPages, keeper_.back);
    ASSERT_EQ(keeper_.asked, keeper_.back);
  }
}

TEST_P(AbsentPages, APageThatWasNeverTouchedIsZerosWithTheOwnerToo) {
  test::GuardedPages fresh(2);
  Keeper keeper{Hva(fresh.address())};
  const HvaRange both(Hva(fresh.address()), 2 * kPageSize);
  ASSERT_EQ(2u, *host::take_away(both, &keeper, this, host::Which::kAnonymous));
  EXPECT_EQ(0, keeper.bytes_of(fresh.bytes_at(0))[5]);
  EXPECT_EQ(0, fresh.bytes_at(0)[5]);
  EXPECT_EQ(0, fresh.bytes_at(4096)[5]);
  host::bring_back_range(both);
  EXPECT_EQ(2, keeper.back);
}

// Whoever borrows the range hears of it, and whose doing it is.
class Listener final : public host::MmuNotifier {
 public:
  bool invalidate_range_start(const host::InvalidateEvent& event) override {
    started = event;
    ++open;
    return true;
  }
  void invalidate_range_end(const host::InvalidateEvent&) override { --open; }
  host::InvalidateEvent started{};
  int open = 0;
};

TEST_P(AbsentPages, TakingRingsTheBellWithItsOwner) {
  Listener listener;
  ASSERT_TRUE(host::register_notifier(&listener));
  ASSERT_EQ(2u, take(0, 2));
  EXPECT_EQ(host::EventKind::kMigrate, listener.started.kind);
  EXPECT_EQ(this, listener.started.owner);
  EXPECT_EQ(range(0, 2), listener.started.range);
  EXPECT_EQ(0, listener.open);
  ASSERT_TRUE(host::take_away(range(2, 1), &keeper_, &keeper_, host::Which::kPresent));
  EXPECT_EQ(host::EventKind::kExclusive, listener.started.kind);
  EXPECT_EQ(&keeper_, listener.started.owner);
  host::unregister_notifier(&listener);
}

TEST_P(AbsentPages, AnOwnerMayRefuse) {
  keeper_.refuses = true;
  EXPECT_EQ(0u, take());
  EXPECT_FALSE(host::is_absent(at(0)));
  EXPECT_TRUE(is_page_of(0));
  page(0)[0] = 1;
  EXPECT_EQ(0, keeper_.asked);
}

// The bytes that come to a page after the taker has looked at its mapping are the process's: nobody
// watches the new mapping, so a page taken from it would be zeros at the next touch.
TEST_P(AbsentPages, APageMappedAnewWhileItsNeighbourIsTakenKeepsItsNewBytes) {
  keeper_.while_taking = [this](const host::AbsentPage& taken) {
    if (taken.at != at(0)) return;
    std::thread([this] {
      host::change(at(1).raw(), kPageSize, host::EventKind::kUnmap, [this] {
        return ::mmap(page(1), kPageSize, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      });
      std::memset(page(1), 0x77, kPageSize);
    }).join();
  };
  EXPECT_EQ(kPages, take()) << "and it is looked at anew";
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(i == 1 ? 0x77 : i + 1, page(i)[9]);
}

TEST_P(AbsentPages, RightsLostWhileANeighbourIsTakenDoNotComeBackWithThePage) {
  keeper_.while_taking = [this](const host::AbsentPage& taken) {
    if (taken.at != at(0)) return;
    std::thread([this] {
      host::change(at(1).raw(), kPageSize, host::EventKind::kProtection,
                   [this] { return ::mprotect(page(1), kPageSize, PROT_READ); });
    }).join();
  };
  EXPECT_EQ(kPages, take());
  EXPECT_EQ(2, page(1)[0]);
  EXPECT_FALSE(host::shown_mapping_at(at(1))->prot.write);
  ASSERT_EQ(0, ::mprotect(page(1), kPageSize, PROT_READ | PROT_WRITE));
}

// The copy of a page that cannot be moved meets it then, and must not wait for its own end.
TEST_P(AbsentPages, APageThatTheProcessMayNoLongerReadStaysWhereItIs) {
  keeper_.while_taking = [this](const host::AbsentPage& taken) {
    if (taken.at != at(3)) return;
    EXPECT_EQ(0, ::mprotect(page(3), kPageSize, PROT_NONE));
  };
  // Behind protection it is read past its rights, and is the owner's.
  EXPECT_EQ(GetParam() ? kPages : kPages - 1, take());
  const int given_back = GetParam() ? 0 : ::mprotect(page(3), kPageSize, PROT_READ | PROT_WRITE);
  EXPECT_EQ(0, given_back);
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

TEST_P(AbsentPages, OneOwnerAPage) {
  Keeper other{Hva(memory_.address())};
  ASSERT_EQ(2u, take(0, 2));
  EXPECT_EQ(kPages - 2, *host::take_away(range(), &other, this, host::Which::kAnonymous));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
  EXPECT_EQ(2, keeper_.back);
  EXPECT_EQ(kPages - 2, other.back);
}

TEST_P(AbsentPages, RetryAsksAgain) {
  ASSERT_EQ(kPages, take());
  keeper_.answer = BringBack::kRetry;
  EXPECT_EQ(BringBack::kRetry, host::bring_back(at(0)));
  EXPECT_TRUE(host::is_absent(at(0)));
  keeper_.answer = BringBack::kBack;
  EXPECT_TRUE(is_page_of(0));
}

TEST_P(AbsentPages, LostIsLostForTheGuestAndABusErrorForTheProcess) {
  ASSERT_EQ(kPages, take());
  keeper_.answer = BringBack::kLost;
  EXPECT_EQ(BringBack::kLost, host::bring_back(at(0)));
  EXPECT_EQ(BringBack::kLost, host::bring_back(at(0)));
  EXPECT_EQ(1, keeper_.asked) << "an owner is asked once for a lost page";
  const auto refused = host::faultin(at(0), Access::kRead);
  ASSERT_FALSE(refused);
  EXPECT_EQ(EFAULT, to_int(refused.error()));
  u8 byte = 0;
  EXPECT_FALSE(host::load(at(0), &byte));
  EXPECT_EXIT(
      { [[maybe_unused]] volatile u8 touched = *page(0); }, testing::KilledBySignal(SIGBUS), "");
  keeper_.answer = BringBack::kBack;
  EXPECT_TRUE(is_page_of(1)) << "the others are not";
}

TEST_P(AbsentPages, DontneedDiscardsThem) {
  ASSERT_EQ(kPages, take());
  const int result = host::change(at(0).raw(), 4 * kPageSize, host::EventKind::kClear,
                                  [&] { return ::madvise(page(0), 4 * kPageSize, MADV_DONTNEED); });
  ASSERT_EQ(0, result);
  EXPECT_EQ(4, keeper_.discarded);
  EXPECT_FALSE(host::is_absent(at(0)));
  EXPECT_EQ(0, page(0)[0]);
  EXPECT_TRUE(is_page_of(4));
}

// Its owner's alone, and only where a touch of what is missing is reported.
TEST_P(AbsentPages, AnOwnerThatGivesOneUpLeavesAHole) {
  ASSERT_EQ(kPages, take());
  const bool is_missing = host::leave_hole(at(2), &keeper_);
  EXPECT_FALSE(host::leave_hole(at(2), &keeper_)) << "it has it no more, or never could";
  Keeper other{at(0)};
  EXPECT_FALSE(host::leave_hole(at(3), &other));
  EXPECT_EQ(is_missing, !host::is_absent(at(2)));
  unsigned char there = 0;
  ASSERT_EQ(0, ::mincore(page(2), kPageSize, &there));
  if (is_missing) {
    EXPECT_EQ(0, there & 1);
    EXPECT_EQ(0, page(2)[0]);
  } else {
    EXPECT_TRUE(is_page_of(2));
  }
  EXPECT_EQ(0, keeper_.discarded);
  EXPECT_TRUE(is_page_of(3));
  for (u64 n = 0; n < kPages; ++n) host::bring_back(at(n));
  EXPECT_FALSE(host::leave_hole(at(4), &keeper_)) << "it is back";
  EXPECT_TRUE(is_page_of(4));
}

TEST_P(AbsentPages, AChangeThatFailsDiscardsNothing) {
  ASSERT_EQ(kPages, take());
  const int result = host::change(at(0).raw(), 4 * kPageSize, host::EventKind::kClear,
                                  [&] { return ::madvise(page(0), 4 * kPageSize, MADV_REMOVE); });
  ASSERT_EQ(-1, result);
  EXPECT_EQ(0, keeper_.discarded);
  EXPECT_TRUE(is_page_of(0));
}

TEST_P(AbsentPages, MunmapDiscardsThemAndTheAddressIsFreeForOthers) {
  void* mine =
      ::mmap(nullptr, 4 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Keeper keeper{Hva(reinterpret_cast<u64>(mine))};
  std::memset(mine, 9, 4 * kPageSize);
  const HvaRange all(Hva(reinterpret_cast<u64>(mine)), 4 * kPageSize);
  ASSERT_EQ(4u, *host::take_away(all, &keeper, this, host::Which::kAnonymous));
  host::change(all.start().raw(), all.size(), host::EventKind::kUnmap,
               [&] { return ::munmap(mine, 4 * kPageSize); });
  EXPECT_EQ(4, keeper.discarded);
  void* again = ::mmap(mine, 4 * kPageSize, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  ASSERT_EQ(mine, again);
  EXPECT_EQ(0, *static_cast<u8*>(again));
  EXPECT_TRUE(host::faultin(all.start(), Access::kWrite));
  EXPECT_EQ(0, keeper.asked);
  ::munmap(mine, 4 * kPageSize);
}

TEST_P(AbsentPages, MremapTakesTheBytesAlong) {
  void* mine =
      ::mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Keeper keeper{Hva(reinterpret_cast<u64>(mine))};
  std::memset(mine, 8, 2 * kPageSize);
  const HvaRange all(Hva(reinterpret_cast<u64>(mine)), 2 * kPageSize);
  ASSERT_EQ(2u, *host::take_away(all, &keeper, this, host::Which::kAnonymous));
  void* target = ::mmap(nullptr, 2 * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* moved = host::change(
      all.start().raw(), all.size(), host::EventKind::kUnmap, host::Announced::kMoves, [&] {
        return ::mremap(mine, 2 * kPageSize, 2 * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, target);
      });
  ASSERT_EQ(target, moved);
  EXPECT_EQ(8, static_cast<u8*>(moved)[kPageSize]);
  ::munmap(moved, 2 * kPageSize);
}

TEST_P(AbsentPages, LockedMemoryGoesAsAnyOther) {
  ASSERT_EQ(0, ::mlock(page(0), kPages * kPageSize));
  ASSERT_EQ(kPages, take());
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
  ASSERT_EQ(0, ::munlock(page(0), kPages * kPageSize));
}

// The kernel joins what the client may not read with what is hidden behind the same rights.
TEST_P(AbsentPages, MemoryTheClientMayNotReadEndsWhereHiddenPagesBegin) {
  ASSERT_EQ(0, ::mprotect(page(0), 4 * kPageSize, PROT_NONE));
  ASSERT_EQ(4U, take(4, 4));
  const auto unreadable = host::mapping_at(at(1));
  ASSERT_TRUE(unreadable);
  EXPECT_FALSE(unreadable->prot.read);
  EXPECT_TRUE(unreadable->range.contains(at(1)));
  EXPECT_FALSE(unreadable->range.contains(at(4)));
  EXPECT_TRUE(host::mapping_at(at(4))->prot.read);
  ASSERT_EQ(0, ::mprotect(page(0), 4 * kPageSize, PROT_READ | PROT_WRITE));
}

TEST_P(AbsentPages, MprotectKeepsTheBytesAndTheRightsAreTheClients) {
  ASSERT_EQ(kPages, take());
  const auto mapping = host::mapping_at(at(0));
  ASSERT_TRUE(mapping);
  EXPECT_TRUE(mapping->prot.write) << "hidden or not, the client may write it";
  ASSERT_EQ(0, host::change(at(0).raw(), kPages * kPageSize, host::EventKind::kProtection,
                            [&] { return ::mprotect(page(0), kPages * kPageSize, PROT_READ); }));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
  EXPECT_FALSE(host::faultin(at(0), Access::kWrite));
  ASSERT_EQ(0, host::gain(at(0).raw(), kPages * kPageSize, [&] {
              return ::mprotect(page(0), kPages * kPageSize, PROT_READ | PROT_WRITE);
            }));
  EXPECT_TRUE(host::faultin(at(0), Access::kWrite));
}

// It writes there while it takes, and the kernel does before it lets the thread run on.
TEST_P(AbsentPages, TheDataOfTheThreadItselfIsNotTaken) {
  const HvaRange own(page_floor(Hva(reinterpret_cast<u64>(__builtin_thread_pointer()))), kPageSize);
  Keeper keeper{own.start()};
  const auto taken = host::take_away(own, &keeper, this, host::Which::kAnonymous);
  ASSERT_TRUE(taken);
  EXPECT_EQ(0u, *taken);
  for (int i = 0; i < 100; ++i) std::this_thread::yield();
}

TEST_P(AbsentPages, ReadOnlyPagesGoAndComeBackReadOnly) {
  ASSERT_EQ(0, ::mprotect(page(0), 2 * kPageSize, PROT_READ));
  ASSERT_EQ(2u, take(0, 2));
  EXPECT_FALSE(keeper_.writable);
  EXPECT_TRUE(is_page_of(1));
  EXPECT_FALSE(host::faultin(at(1), Access::kWrite));
}

TEST_P(AbsentPages, AChildOfForkHasEverything) {
  ASSERT_EQ(kPages, take());
  host::owners_before_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    host::owners_after_fork_child();
    int wrong = host::is_absent(at(0)) ? 1 : 0;
    for (size_t i = 0; i < kPages; ++i) wrong += is_page_of(i) ? 0 : 1;
    ::_exit(wrong);
  }
  host::owners_after_fork_parent();
  int status = 0;
  ASSERT_EQ(child, ::waitpid(child, &status, 0));
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(0, WEXITSTATUS(status));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
  // Shared with a child that has gone: copied now, where moving is refused.
  ASSERT_EQ(kPages, take());
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

TEST_P(AbsentPages, ANeighbourThatWasNeverTakenIsOrdinaryMemory) {
  ASSERT_EQ(4u, take(0, 4));
  host::change(at(1).raw(), kPageSize, host::EventKind::kClear,
               [&] { return ::madvise(page(1), kPageSize, MADV_DONTNEED); });
  EXPECT_EQ(0, page(1)[0]);
  page(1)[0] = 3;
  EXPECT_EQ(3, page(1)[0]);
  EXPECT_TRUE(is_page_of(0));
}

TEST_P(AbsentPages, WhatIsNotPrivateStays) {
  void* shared =
      ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  *static_cast<u8*>(shared) = 1;
  const HvaRange one(Hva(reinterpret_cast<u64>(shared)), kPageSize);
  EXPECT_EQ(0u, *host::take_away(one, &keeper_, this, host::Which::kAnonymous));
  ::munmap(shared, kPageSize);
  EXPECT_FALSE(host::take_away(one, &keeper_, this, host::Which::kAnonymous));
}

TEST_P(AbsentPages, WritersLoseNothingWhileTheirPageIsTakenAndTouched) {
  const auto word = [&](size_t i) { return reinterpret_cast<u64*>(page(0)) + i * 64; };
  test::CountingClients writers({word(0), word(1), word(2)});
  u64 taken = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto longer_than = [&](int seconds) {
    return std::chrono::steady_clock::now() - start > std::chrono::seconds(seconds);
  };
  // On a busy machine the writers have it most of the time.
  while (taken < 300 && !longer_than(taken > 10 ? 1 : 30)) {
    taken += take(0, 1);
    std::this_thread::yield();
  }
  writers.stop();
  EXPECT_EQ(0u, writers.wrong());
  EXPECT_GT(taken, 10u);
}

}  // namespace
}  // namespace stagetwo
