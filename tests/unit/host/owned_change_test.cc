// SPDX-License-Identifier: Apache-2.0
// What becomes of absent pages when the client changes their addresses: calls that fail halfway,
// and rights the kernel does not give back.
#include "host/owned_change.h"

#include <gtest/gtest.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/failpoint.h"
#include "host/access.h"
#include "host/faultin.h"
#include "host/process.h"
#include "host/process_map.h"
#include "tests/support/absent_pages.h"
#include "tests/support/child.h"
#include "tests/support/failing_calls.h"

namespace stagetwo {
namespace {

using host::EventKind;
using test::AbsentPages;
using test::hiding_name;
using test::Keeper;

// Pages of a mapping of their own, taken.
struct Taken {
  explicit Taken(size_t pages) : bytes(pages * kPageSize) {
    std::memset(at, 8, bytes);
    EXPECT_EQ(pages, *host::take_away(range(), &keeper, this, host::Which::kAnonymous));
  }
  ~Taken() { ::munmap(at, bytes); }
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;
  [[nodiscard]] HvaRange range() const { return HvaRange(Hva(reinterpret_cast<u64>(at)), bytes); }
  // Something else of the client's at the same address, which nobody announces.
  void map_anew(int prot = PROT_READ | PROT_WRITE) const {
    ASSERT_EQ(at, ::mmap(at, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  }

  size_t bytes;
  u8* at = static_cast<u8*>(
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  Keeper keeper{Hva(reinterpret_cast<u64>(at))};
};

class OwnedChange : public AbsentPages {};
INSTANTIATE_TEST_SUITE_P(Hiding, OwnedChange, testing::Bool(), hiding_name);

TEST_P(OwnedChange, AMappingOverThemThatFailsAfterTheKernelUnmappedDiscardsThem) {
  void* mine =
      ::mmap(nullptr, 4 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const HvaRange all(Hva(reinterpret_cast<u64>(mine)), 4 * kPageSize);
  Keeper keeper{all.start()};
  std::memset(mine, 8, all.size());
  ASSERT_EQ(4u, *host::take_away(all, &keeper, this, host::Which::kAnonymous));
  void* over = host::change(all.start().raw(), all.size(), EventKind::kUnmap,
                            [&] { return test::map_socket_over(mine, all.size()); });
  ASSERT_EQ(MAP_FAILED, over);
  ASSERT_FALSE(host::shown_mapping_at(all.start())) << "the kernel unmaps before it asks the file";
  EXPECT_EQ(4, keeper.discarded);
  EXPECT_FALSE(host::is_absent(all.start()));
  // What is mapped there later has its own bytes, also once pages of it are taken.
  ASSERT_EQ(mine, ::mmap(mine, all.size(), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  *static_cast<u8*>(mine) = 5;
  ASSERT_EQ(4u, *host::take_away(all, &keeper, this, host::Which::kAnonymous));
  EXPECT_EQ(5, *static_cast<u8*>(mine));
  EXPECT_EQ(0, static_cast<u8*>(mine)[kPageSize]);
  host::bring_back_range(all);
  ::munmap(mine, all.size());
}

TEST_P(OwnedChange, SomethingElseThatIsMappedThereWhenTheCallHasFailedIsLeftAlone) {
  Taken taken(2);
  host::change(taken.range().start().raw(), taken.bytes, EventKind::kUnmap, [&] {
    void* failed = test::map_socket_over(taken.at, taken.bytes);
    taken.map_anew();
    taken.at[0] = 3;
    return failed;
  });
  EXPECT_EQ(2, taken.keeper.discarded);
  EXPECT_EQ(3, taken.at[0]);
  EXPECT_EQ(0, taken.at[kPageSize]);
}

TEST_P(OwnedChange, AMappingOverThemThatIsRefusedAtOnceLeavesThem) {
  ASSERT_EQ(kPages, take());
  void* over = host::change(at(0).raw(), kPages * kPageSize, EventKind::kUnmap, [&] {
    return ::mmap(page(0), kPages * kPageSize, PROT_READ, MAP_SHARED | MAP_FIXED, -1, 0);
  });
  ASSERT_EQ(MAP_FAILED, over);
  EXPECT_EQ(EBADF, errno);
  EXPECT_EQ(0, keeper_.discarded);
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

TEST_P(OwnedChange, LostPagesAreLostNoLongerThanTheirAddress) {
  void* mine =
      ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const Hva at(reinterpret_cast<u64>(mine));
  Keeper keeper{at};
  std::memset(mine, 8, kPageSize);
  ASSERT_EQ(1u, *host::take_away(HvaRange(at, kPageSize), &keeper, this, host::Which::kAnonymous));
  keeper.answer = host::BringBack::kLost;
  EXPECT_FALSE(host::faultin(at, Access::kRead));
  ::munmap(mine, kPageSize);  // nobody hears of it
  ASSERT_EQ(mine, ::mmap(mine, kPageSize, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  EXPECT_TRUE(host::faultin(at, Access::kWrite));
  EXPECT_EQ(0, *static_cast<u8*>(mine));
  ::munmap(mine, kPageSize);
}

TEST_P(OwnedChange, AMoveThatLeavesTheOldMappingLeavesItEmpty) {
  Taken taken(2);
  u8* moved = nullptr;
  host::change(
      taken.range().start().raw(), taken.bytes, EventKind::kUnmap, host::Announced::kMoves,
      [&] {
        void* there = ::mremap(taken.at, taken.bytes, taken.bytes,
                               MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr);
        moved = static_cast<u8*>(there);
        return there;
      },
      taken.bytes);
  ASSERT_NE(MAP_FAILED, moved);
  EXPECT_EQ(8, moved[kPageSize]);
  EXPECT_EQ(0, taken.at[kPageSize]);
  EXPECT_EQ(2u, *host::take_away(taken.range(), &taken.keeper, this, host::Which::kAnonymous));
  EXPECT_EQ(0, taken.at[0]);
  EXPECT_EQ(8, moved[0]);
  ::munmap(moved, taken.bytes);
}

TEST_P(OwnedChange, RightsTakenFromAbsentPagesAndGivenBackKeepTheBytes) {
  ASSERT_EQ(kPages, take());
  const auto protect = [&](int prot, EventKind kind) {
    return host::change(at(0).raw(), kPages * kPageSize, kind,
                        [&] { return ::mprotect(page(0), kPages * kPageSize, prot); });
  };
  ASSERT_EQ(0, protect(PROT_NONE, EventKind::kProtection));
  EXPECT_FALSE(host::faultin(at(2), Access::kRead)) << "the client's own PROT_NONE";
  u8 byte = 0;
  EXPECT_FALSE(host::load(at(3), &byte));
  ASSERT_EQ(0, protect(PROT_READ | PROT_WRITE, EventKind::kProtection));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

TEST_P(OwnedChange, AChildFindsPagesWipedThatAreToBeWiped) {
  ASSERT_EQ(0, ::madvise(page(0), kPages * kPageSize, MADV_WIPEONFORK));
  ASSERT_EQ(kPages, take());
  host::owners_before_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    host::after_fork_child();
    ::_exit(page(0)[0] + page(kPages - 1)[7]);
  }
  host::owners_after_fork_parent();
  int status = -1;
  ASSERT_EQ(child, ::waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
  ::madvise(page(0), kPages * kPageSize, MADV_KEEPONFORK);
}

TEST_P(OwnedChange, LockedMemoryGoesAndComesOrStays) {
  if (::mlock(page(0), kPages * kPageSize) != 0) GTEST_SKIP() << "RLIMIT_MEMLOCK is too low";
  static_cast<void>(take());
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
  ::munlock(page(0), kPages * kPageSize);
}

// ---- memory that userfaultfd watches ----------------------------------------------------------

class WatchedChange : public AbsentPages {};
INSTANTIATE_TEST_SUITE_P(Hiding, WatchedChange, testing::Values(false), hiding_name);

// libc unmaps large blocks by calls of its own, and the next one may have the same address. A page
// hidden behind PROT_NONE could be told from a new one by its rights alone.
TEST_P(WatchedChange, AnAddressUnmappedBehindOurBackHasNoOldBytes) {
  Taken taken(1);
  const auto take_again = [&] {
    return *host::take_away(taken.range(), &taken.keeper, this, host::Which::kAnonymous);
  };
  taken.map_anew();
  taken.at[0] = 5;
  EXPECT_TRUE(host::faultin(taken.range().start(), Access::kWrite));
  EXPECT_EQ(5, taken.at[0]);
  ASSERT_EQ(1u, take_again());
  taken.map_anew();
  taken.at[0] = 6;
  EXPECT_EQ(1u, take_again());
  EXPECT_EQ(1, taken.keeper.discarded);
  EXPECT_EQ(6, taken.at[0]);
}

TEST_P(WatchedChange, NeitherHasANeighbourThatNobodyTouchedBeforeTheRangeIsTakenAgain) {
  Taken taken(3);
  taken.map_anew();
  taken.at[0] = 5;
  EXPECT_EQ(3u, *host::take_away(taken.range(), &taken.keeper, this, host::Which::kAnonymous));
  EXPECT_EQ(3, taken.keeper.discarded);
  EXPECT_EQ(5, taken.at[0]);
  EXPECT_EQ(0, taken.at[kPageSize]);
  EXPECT_EQ(0, taken.at[2 * kPageSize]);
}

// ---- memory that is hidden behind PROT_NONE -----------------------------------------------------

class HiddenChange : public AbsentPages {
 protected:
  void TearDown() override {
    failpoint::disarm();
    AbsentPages::TearDown();
  }
};
INSTANTIATE_TEST_SUITE_P(Hiding, HiddenChange, testing::Values(true), hiding_name);

sigjmp_buf back;
bool gets_a_signal(const volatile u8* at) {
  struct sigaction mine{};
  struct sigaction before{};
  mine.sa_sigaction = [](int, siginfo_t*, void*) { siglongjmp(back, 1); };
  mine.sa_flags = SA_SIGINFO;
  EXPECT_TRUE(host::backstop::exchange_client_action(SIGSEGV, &mine, &before));
  const bool jumped = sigsetjmp(back, 1) != 0;
  if (!jumped) static_cast<void>(*at);
  EXPECT_TRUE(host::backstop::exchange_client_action(SIGSEGV, &before, nullptr));
  return jumped;
}

TEST_P(HiddenChange, APageThatGetsNoRightsAloneComesBackWithItsNeighbours) {
  ASSERT_EQ(kPages, take());
  failpoint::arm("host.page_rights", 1, kPages);  // each page by itself
  EXPECT_TRUE(is_page_of(3));
  failpoint::disarm();
  EXPECT_EQ(kPages, keeper_.back);
  for (size_t i = 0; i < kPages; ++i) EXPECT_FALSE(host::is_absent(at(i)));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

TEST_P(HiddenChange, OneThatGetsNoneAtAllFailsItsTouchesUntilThereIsRoom) {
  ASSERT_EQ(kPages, take());
  static int told;
  told = 0;
  host::set_owner_warning([](std::string_view what, std::string_view) {
    told += what.find("max_map_count") != std::string_view::npos ? 1 : 100;
  });
  failpoint::arm("host.page_rights", 1, failpoint::kForever);
  EXPECT_EQ(host::BringBack::kStuck, host::bring_back(at(3)));
  EXPECT_FALSE(host::faultin(at(3), Access::kRead));
  EXPECT_EQ(1, told) << "the user is told once";
  u8 byte = 0;
  EXPECT_FALSE(host::load(at(3), &byte));
  EXPECT_TRUE(gets_a_signal(page(3))) << "the client's own handler hears of it";
  failpoint::disarm();
  EXPECT_TRUE(is_page_of(3));
  EXPECT_EQ(kPages, keeper_.back) << "its owner gave it once";
}

TEST_P(HiddenChange, APageInPlaceThatIsStillHiddenDiesWithItsAddress) {
  ASSERT_EQ(kPages, take());
  failpoint::arm("host.page_rights", 1, failpoint::kForever);
  EXPECT_EQ(host::BringBack::kStuck, host::bring_back(at(3)));
  host::change(at(0).raw(), kPages * kPageSize, EventKind::kClear,
               [&] { return ::madvise(page(0), kPages * kPageSize, MADV_DONTNEED); });
  EXPECT_FALSE(host::faultin(at(3), Access::kRead)) << "zeros that are hidden";
  failpoint::disarm();
  EXPECT_EQ(0, page(3)[0]);
  EXPECT_EQ(0, keeper_.discarded) << "the owner had given all of them";
}

// As if its mapping were gone, its bytes would be lost, and the page hidden for good.
TEST_P(HiddenChange, APageOfWhichTheKernelTellsNothingStaysWithItsOwner) {
  ASSERT_EQ(kPages, take());
  failpoint::arm("host.page_shown", 1);
  EXPECT_EQ(host::BringBack::kRetry, host::bring_back(at(3)));
  EXPECT_EQ(1u, failpoint::failed());
  EXPECT_TRUE(host::is_absent(at(3)));
  EXPECT_TRUE(is_page_of(3));
  failpoint::arm("host.page_shown", 1, failpoint::kForever);
  EXPECT_EQ(-1,
            host::change(at(0).raw(), kPages * kPageSize, EventKind::kClear, [] { return -1; }));
  failpoint::disarm();
  EXPECT_EQ(0, keeper_.discarded) << "the call has failed";
  EXPECT_TRUE(is_page_of(4));
}

TEST_P(HiddenChange, AMoveOfPagesThatCannotComeBackIsRefused) {
  ASSERT_EQ(kPages, take());
  failpoint::arm("host.page_rights", 1, failpoint::kForever);
  void* moved = host::change(at(0).raw(), kPages * kPageSize, EventKind::kUnmap,
                             host::Announced::kMoves, [&] {
                               ADD_FAILURE() << "the call was made";
                               return MAP_FAILED;
                             });
  EXPECT_EQ(MAP_FAILED, moved);
  EXPECT_EQ(ENOMEM, errno);
  failpoint::disarm();
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i));
}

u64 most_mappings() {
  u64 most = 0;
  std::ifstream("/proc/sys/vm/max_map_count") >> most;
  return most;
}

// In a child, which has every mapping the kernel lets it have.
int touch_with_all_mappings_in_use(u64 most) {
  Taken taken(64);
  const size_t bytes = 2 * most * kPageSize;
  auto* filler = static_cast<u8*>(
      ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (filler == MAP_FAILED) return 2;
  size_t i = 0;
  while (::mprotect(filler + i * kPageSize, kPageSize, PROT_READ) == 0) i += 2;
  if (i + 1000 < most || taken.at[20 * kPageSize + 7] != 8) return 3;
  if (taken.keeper.back != 64) return 5;  // all at once
  for (size_t at = 0; at < taken.bytes; at += kPageSize) {
    if (taken.at[at] != 8) return 4;
  }
  ::munmap(filler, bytes);
  return 0;
}

TEST_P(HiddenChange, WithEveryMappingInUseAPageInTheMiddleComesBack) {
  const u64 most = most_mappings();
  if (most > 200'000) GTEST_SKIP() << "vm.max_map_count is too large to use up";
  host::owners_before_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    host::after_fork_child();
    ::_exit(touch_with_all_mappings_in_use(most));
  }
  host::owners_after_fork_parent();
  EXPECT_EQ(0, test::exit_of(child));
}

}  // namespace
}  // namespace stagetwo
