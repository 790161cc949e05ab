// SPDX-License-Identifier: Apache-2.0
// Absent pages of shared memory in runs, with other rights, and in mappings that are made
// meanwhile.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "host/access.h"
#include "host/change.h"
#include "host/held_pages.h"
#include "host/piecewise.h"
#include "tests/support/counting_clients.h"
#include "tests/support/shared_pages.h"

namespace stagetwo {
namespace {

using test::kPages;
using test::SharedPages;

// Takes and gives back neighbours in one go.
class RunStore final : public test::Store {
 public:
  unsigned take_run(const host::AbsentPage& first, unsigned, host::PageExit& exit) override {
    if (before_run != nullptr) ::munmap(before_run, kPageSize);
    before_run = nullptr;
    const unsigned went = exit.run_to(place_of(first));
    in_runs += went;
    return went;
  }
  unsigned bring_back_run(const host::AbsentPage& first, unsigned pages,
                          host::PageEntry& entry) override {
    const auto* const bytes = reinterpret_cast<const u8*>(place_of(first).raw());
    const unsigned came = entry.run_from_bytes(bytes, pages);
    back_in_runs += came;
    return came;
  }
  u64 in_runs = 0;
  u64 back_in_runs = 0;
  void* before_run = nullptr;  // a page that is unmapped under the next run, behind our back
};

class SharedRuns : public SharedPages {
 protected:
  void SetUp() override {
    SharedPages::SetUp();
    if (!IsSkipped() && !host::userfault::serves_kernel()) GTEST_SKIP() << "no system call waits";
  }
  u64 take_in_runs(size_t first = 0, size_t pages = kPages) {
    const auto taken = host::take_away(range(one_, first, pages), &runs_, this, host::Which::kAll);
    return taken ? *taken : ~u64{0};
  }
  template <typename F>
  void protect(u8* at, int rights, F&& meanwhile) {
    const auto call = [&](int prot) {
      return host::change(range(at).start().raw(), kPages * kPageSize, host::EventKind::kProtection,
                          [&] { return ::mprotect(at, kPages * kPageSize, prot); });
    };
    ASSERT_EQ(0, call(rights));
    meanwhile();
    ASSERT_EQ(0, call(PROT_READ | PROT_WRITE));
  }
  RunStore runs_;
};
INSTANTIATE_TEST_SUITE_P(Hiding, SharedRuns, testing::Values(false), test::hiding_name);

TEST_P(SharedRuns, GoAndComeBackInOneGo) {
  ASSERT_EQ(kPages, take_in_runs());
  EXPECT_EQ(kPages, runs_.in_runs);
  EXPECT_EQ(0u, blocks());
  EXPECT_EQ(kPages, host::bring_back_range(range(two_)));
  EXPECT_EQ(kPages, runs_.back_in_runs);
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(one(i), i) && all(two(i), i));
  one(2)[1] = 77;
  two(2)[2] = 78;
  EXPECT_EQ(77, two(2)[1]);
  EXPECT_EQ(78, one(2)[2]);
}

// Pages of which the file has nothing end a run.
TEST_P(SharedRuns, EndWhereAViewEnds) {
  unmap(two_);
  two_ = static_cast<u8*>(
      ::mmap(nullptr, 3 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 2 * kPageSize));
  host::owners_see_mapping(range(two_, 0, 3));
  ASSERT_EQ(kPages, take_in_runs());
  EXPECT_EQ(6u, runs_.in_runs) << "two and two and two, and one alone where a view ends";
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(all(two_ + i * kPageSize, i + 2));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(one(i), i));
  host::change(range(two_).start().raw(), 3 * kPageSize, host::EventKind::kUnmap,
               [&] { return ::munmap(two_, 3 * kPageSize); });
  two_ = nullptr;
}

TEST_P(SharedRuns, WhatIsUnmappedUnderOneLosesNobodysBytes) {
  // The run goes by the lower one: without it there the kernel makes a part of the hole.
  u8* const low = std::min(one_, two_);
  u8* const high = std::max(one_, two_);
  runs_.before_run = low + 5 * kPageSize;
  EXPECT_GE(kPages, take_in_runs());
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(high + i * kPageSize, i)) << i;
  u8* const gone = low + 5 * kPageSize;
  ASSERT_EQ(gone, ::mmap(gone, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_,
                         5 * kPageSize));
  host::owners_see_mapping(range(low, 5, 1));
  EXPECT_TRUE(all(gone, 5));
}

// Two MiB in one piece, of which a part is to go while somebody else has a reference of it.
class HugePage {
 public:
  static constexpr size_t kBytes = 2 << 20;
  HugePage() : file_(::memfd_create("huge", MFD_CLOEXEC)) {
    room_ = ::mmap(nullptr, 2 * kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    auto* const at = reinterpret_cast<u8*>((reinterpret_cast<u64>(room_) + kBytes - 1) & -kBytes);
    if (::ftruncate(file_, kBytes) != 0) return;
    host::shared_file_made(file_);
    at_ = static_cast<u8*>(
        ::mmap(at, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_, 0));
    host::owners_see_mapping(HvaRange(Hva(reinterpret_cast<u64>(at_)), kBytes));
    for (size_t i = 0; i < kBytes / kPageSize; ++i) {
      std::memset(at_ + i * kPageSize, static_cast<int>(i + 1), kPageSize);
    }
    constexpr int kCollapse = 25;  // MADV_COLLAPSE
    usable_ = ::madvise(at_, kBytes, kCollapse) == 0;
  }
  ~HugePage() {
    host::change(reinterpret_cast<u64>(at_), kBytes, host::EventKind::kUnmap,
                 [&] { return ::munmap(room_, 2 * kBytes); });
    ::close(file_);
  }
  HugePage(const HugePage&) = delete;
  HugePage& operator=(const HugePage&) = delete;

  [[nodiscard]] bool usable() const { return usable_; }
  [[nodiscard]] int file() const { return file_; }
  [[nodiscard]] u8* page(size_t i) const { return at_ + i * kPageSize; }

 private:
  int file_;
  void* room_;
  u8* at_ = nullptr;
  bool usable_ = false;
};

TEST_P(SharedRuns, OfAHugePageThatIsInAPipeTooStay) {
  const HugePage huge;
  if (!huge.usable()) GTEST_SKIP() << "no huge page of shared memory is to be had here";
  int pipe[2];
  ASSERT_EQ(0, ::pipe(pipe));
  off64_t from = 3 * kPageSize;
  ASSERT_EQ(ssize_t{kPageSize}, ::splice(huge.file(), &from, pipe[1], nullptr, kPageSize, 0));
  const auto take = [&] {
    const auto taken = host::take_away(range(huge.page(0)), &runs_, this, host::Which::kAll);
    return taken ? *taken : ~u64{0};
  };
  EXPECT_EQ(0u, take());
  for (size_t i = 0; i < 512; ++i) {
    ASSERT_EQ(static_cast<u8>(i + 1), huge.page(i)[17]) << i;
  }
  u8 bytes[kPageSize];
  ASSERT_EQ(ssize_t{kPageSize}, ::read(pipe[0], bytes, kPageSize));
  EXPECT_TRUE(all(bytes, 3));
  EXPECT_EQ(kPages, take()) << "and go when nobody else has it";
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(huge.page(i), i)) << i;
  ::close(pipe[0]);
  ::close(pipe[1]);
}

TEST_P(SharedRuns, OtherRightsBringNothingBack) {
  ASSERT_EQ(kPages, take_in_runs());
  protect(one_, PROT_READ, [&] {
    EXPECT_EQ(0u, blocks());
    EXPECT_TRUE(all(one(3), 3));
    EXPECT_EQ(1u, take_in_runs()) << "it goes again though it may not be written there";
    EXPECT_EQ(0u, blocks());
  });
  // Nor by any other address: the kernel makes no hole through such a mapping.
  protect(one_, PROT_READ, [&] {
    protect(two_, PROT_READ, [&] {
      EXPECT_TRUE(all(two(4), 4));
      EXPECT_EQ(1u, take_in_runs());
      EXPECT_EQ(0u, blocks());
    });
  });
  protect(one_, PROT_NONE, [&] { EXPECT_TRUE(all(two(6), 6)); });
  EXPECT_TRUE(all(one(6), 6));
  one(0)[0] = 50;
  EXPECT_EQ(50, two(0)[0]);
}

// A guard stands in the page table of one view; what is behind it stays. Where write-protection had
// left something there the kernel went round for ever.
TEST_P(SharedRuns, AGuardStandsWherePagesAreAbsent) {
  constexpr int kInstall = 102;  // Linux 6.13, of shared memory 6.15
  constexpr int kRemove = 103;
  u8* const three = map();
  const bool known = ::madvise(three, kPageSize, kInstall) == 0;
  unmap(three);
  if (!known) GTEST_SKIP() << "no guards in shared memory";
  const auto advise = [&](u8* at, size_t pages, int advice) {
    return host::discard(reinterpret_cast<u64>(at), pages * kPageSize, advice,
                         [&](u64 start, u64 bytes) {
                           return ::madvise(reinterpret_cast<void*>(start), bytes, advice);
                         });
  };
  ASSERT_EQ(kPages, take_in_runs());
  ASSERT_EQ(0, advise(one(2), 3, kInstall)) << errno;
  EXPECT_EQ(0u, blocks()) << "nothing comes back for it";
  u8 byte = 0;
  EXPECT_FALSE(host::load(range(one_, 3).start(), &byte));
  EXPECT_TRUE(all(one(5), 5));
  ASSERT_EQ(0, ::madvise(one(2), 3 * kPageSize, kRemove)) << errno;
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(one(i), i) && all(two(i), i)) << i;
  one(3)[0] = 44;
  EXPECT_EQ(44, two(3)[0]);
}

TEST_P(SharedRuns, StoresThroughNewMappingsAreNotLost) {
  test::CountingClients old({reinterpret_cast<u64*>(one(0)), reinterpret_cast<u64*>(two(1))});
  u64 stored = 0;
  auto* const word = reinterpret_cast<u64*>(one(2));
  __atomic_store_n(word, 0, __ATOMIC_RELAXED);
  std::atomic<bool> over{false};
  std::atomic<u64> taken{0};
  std::thread taker([&] {
    while (!over.load()) taken += take_in_runs();
  });
  for (int i = 0; i < 50 || taken.load() < 500; ++i) {
    u8* const three = map();
    if (i % 2 == 0) std::this_thread::sleep_for(std::chrono::microseconds(500));  // late lists come
    for (int k = 0; k < 20; ++k, ++stored) {
      __atomic_fetch_add(reinterpret_cast<u64*>(three + 2 * kPageSize), 1, __ATOMIC_RELAXED);
      std::this_thread::yield();
    }
    unmap(three);
  }
  over.store(true);
  taker.join();
  old.stop();
  EXPECT_EQ(0u, old.wrong());
  EXPECT_EQ(stored, __atomic_load_n(word, __ATOMIC_RELAXED));
  EXPECT_TRUE(all(one(7), 7));
}

// What is absent is known by the address it was taken from: the other views come and go.
TEST_P(SharedRuns, AnUnmappingOfAnotherViewBringsNothingBack) {
  ASSERT_EQ(kPages, take_in_runs());
  const auto cut = [&](u8* at, size_t pages) {
    return host::change(reinterpret_cast<u64>(at), pages * kPageSize, host::EventKind::kUnmap,
                        [&] { return ::munmap(at, pages * kPageSize); });
  };
  ASSERT_EQ(0, cut(two(3), 2));
  EXPECT_EQ(0u, blocks());
  EXPECT_TRUE(all(two(2), 2) && all(two(5), 5));
  EXPECT_TRUE(all(one(3), 3) && all(one(4), 4));
  one(2)[0] = 22;
  EXPECT_EQ(22, two(2)[0]);
  one(2)[0] = 3;
  EXPECT_EQ(4u, take_in_runs(2, 4));
  ASSERT_EQ(0, unmap(two_));
  two_ = nullptr;
  EXPECT_EQ(0u, blocks());
  two_ = map();  // comes back for it, with the rest
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(one(i), i) && all(two(i), i)) << i;
}

// One that fails may have unmapped all the same.
TEST_P(SharedRuns, AnUnmappingThatFailsLeavesEveryByte) {
  ASSERT_EQ(kPages, take_in_runs());
  const u64 there = reinterpret_cast<u64>(two_);
  const auto fail = [] {
    errno = ENOMEM;
    return -1;
  };
  ASSERT_EQ(-1, host::change(there, kPages * kPageSize, host::EventKind::kUnmap, fail));
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(two(i), i)) << i;
  ASSERT_EQ(kPages, take_in_runs());
  EXPECT_TRUE(all(two(6), 6));
}

// While it goes what is touched by other views comes by those: at this address may be somebody
// else's memory, which is missing there.
TEST_P(SharedRuns, NothingIsPutWhereAViewWasUnmapped) {
  ASSERT_EQ(kPages, take_in_runs());
  const u64 there = reinterpret_cast<u64>(two_);
  const int other = ::memfd_create("other", MFD_CLOEXEC);
  ASSERT_EQ(0, ::ftruncate(other, kPages * kPageSize));
  ASSERT_EQ(0, host::change(there, kPages * kPageSize, host::EventKind::kUnmap, [&] {
              void* const at = ::mmap(two_, kPages * kPageSize, PROT_READ | PROT_WRITE,
                                      MAP_SHARED | MAP_FIXED, other, 0);
              EXPECT_EQ(two_, at);
              EXPECT_TRUE(host::userfault::watch(range(two_)));
              EXPECT_TRUE(all(one(4), 4));
              EXPECT_EQ(host::BringBack::kBack, host::bring_back(range(one_, 5).start()));
              return at == two_ ? 0 : -1;
            }));
  host::userfault::forget(range(two_));
  struct ::stat said{};
  ASSERT_EQ(0, ::fstat(other, &said));
  EXPECT_EQ(0, said.st_blocks) << "pages of the other file";
  ::munmap(two_, kPages * kPageSize);
  ::close(other);
  two_ = nullptr;
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(all(one(i), i)) << i;
}

// The one that goes relies on the other, which goes, too.
TEST_P(SharedRuns, TwoUnmappingsAtOnceLoseNothing) {
  for (int round = 0; round < 30; ++round) {
    u8* const stays = map();
    ASSERT_EQ(kPages, take_in_runs());
    std::atomic<int> ready{0};
    const auto go = [&](u8* at) {
      ++ready;
      while (ready.load() < 2) std::this_thread::yield();
      EXPECT_EQ(0, unmap(at));
    };
    std::thread other([&] { go(two_); });
    go(one_);
    other.join();
    one_ = stays;
    two_ = nullptr;
    for (size_t i = 0; i < kPages; ++i) ASSERT_TRUE(all(one(i), i)) << i;
    two_ = map();
  }
}

TEST_P(SharedRuns, ALostPageIsLostInANewMapping) {
  ASSERT_EQ(kPages, take());
  store_.loses = true;
  EXPECT_EQ(host::BringBack::kLost, host::bring_back(range(two_, 3).start()));
  store_.loses = false;
  u8* const three = map();
  u8 byte = 1;
  EXPECT_EQ(0u, host::copy_from(&byte, range(three, 3).start(), 1)) << "never zeros";
  EXPECT_EQ(-1, ::write(file_, three + 3 * kPageSize, 1));
  EXPECT_EQ(EFAULT, errno);
  EXPECT_TRUE(all(three + 4 * kPageSize, 4));
  unmap(three);
}

// What the file has holes for is data all the same.
TEST_P(SharedRuns, AreToldFromHoles) {
  ASSERT_EQ(4u, take_in_runs(2, 4));
  const u64 object = host::object_behind(file_);
  EXPECT_EQ(2u, host::next_page_of(object, 0, kPages, true));
  EXPECT_EQ(6u, host::next_page_of(object, 2, kPages, false));
  EXPECT_EQ(kPages, host::next_page_of(object, 6, kPages, true));
  EXPECT_EQ(4u, host::kept_pages_of(object));
}

}  // namespace
}  // namespace stagetwo
