// SPDX-License-Identifier: Apache-2.0
// Goal: memory that is taken away all the time loses no store and shows no other bytes, whoever
// stores: several threads, system calls, a client that gives memory up and moves it.
#include <fcntl.h>
#include <unistd.h>

#include "tests/support/reclaimed_guest.h"
#include "tests/support/stress_time.h"

namespace stagetwo::test {
namespace {

constexpr size_t kPages = 512;

class ReclaimStress : public ReclaimedGuest {
 protected:
  // Three writers increment counters of their own in every page; what each has counted is there.
  void add_up(int flags) {
    start(kPages / 4 * kPageSize);
    u8* const memory = map(kPages, flags);
    ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
    constexpr int kWriters = 3;
    std::vector<std::vector<u64>> counted(kWriters, std::vector<u64>(kPages));
    const Deadline deadline(0.4);
    std::vector<std::thread> writers;
    const u64 seed = announced_seed("increments");
    for (int t = 0; t < kWriters; ++t) {
      writers.emplace_back([&, t] {
        RandomSource random(seed + static_cast<u64>(t));
        while (deadline.running()) {
          const size_t page = random.below(kPages);
          for (int i = 0; i < 50; ++i) {
            ++reinterpret_cast<u64*>(memory + (page << kPageShift))[t * 8];
            ++counted[static_cast<size_t>(t)][page];
          }
        }
      });
    }
    for (std::thread& writer : writers) writer.join();
    u64 increments = 0, lost = 0;
    for (int t = 0; t < kWriters; ++t) {
      for (size_t page = 0; page < kPages; ++page) {
        const u64 wanted = counted[static_cast<size_t>(t)][page];
        increments += wanted;
        lost += wanted - reinterpret_cast<u64*>(memory + (page << kPageShift))[t * 8];
      }
    }
    const reclaim::Statistics now = reclaim::statistics();
    std::printf(
        "%llu increments, %llu taken, %llu refaults\n", static_cast<unsigned long long>(increments),
        static_cast<unsigned long long>(now.taken), static_cast<unsigned long long>(now.refaults));
    EXPECT_EQ(0U, lost) << "seed " << seed;
    EXPECT_GT(now.refaults, 100U);
  }
};

// Check 13, the right order; the wrong ones are in tests/mutation/owners_guards_test.cc.
TEST_F(ReclaimStress, IncrementsOfPrivateMemoryAddUp) {
  add_up(MAP_PRIVATE);
}
TEST_F(ReclaimStress, IncrementsOfSharedMemoryAddUp) {
  add_up(MAP_SHARED);
}

// What the client gives up reads zero, what it moves comes along, what it copies by a system call
// is whole; all against a model, page by page.
TEST_F(ReclaimStress, TheClientChangesItsMemoryMeanwhile) {
  start(kPages / 4 * kPageSize);
  u8* const memory = map(kPages);
  ASSERT_TRUE(guest_->use(0, range_of(memory, kPages)));
  const u64 seed = announced_seed("changes under a limit");
  RandomSource random(seed);
  std::vector<u64> model(kPages, 0);  // the seed of each page's bytes; 0: zeros
  u64 next = 2;
  int pipe[2];
  ASSERT_EQ(0, ::pipe2(pipe, O_CLOEXEC));
  const auto at = [&](size_t page) { return memory + (page << kPageShift); };
  const auto is_right = [&](const u8* bytes, size_t page) {
    static const u8 zeros[kPageSize] = {};
    return model[page] == 0 ? std::memcmp(bytes, zeros, kPageSize) == 0
                            : is_filled(bytes, model[page]);
  };
  const Deadline deadline(0.4);
  for (u64 round = 0; deadline.running(); ++round) {
    const size_t page = random.below(kPages);
    switch (random.below(8)) {
      case 0:
      case 1:
      case 2:
        fill(at(page), ++next);
        model[page] = next;
        break;
      case 3: {
        const size_t count = std::min<size_t>(1 + random.below(16), kPages - page);
        ASSERT_EQ(0, host::change(reinterpret_cast<u64>(at(page)), count << kPageShift,
                                  host::EventKind::kClear, [&] {
                                    return ::madvise(at(page), count << kPageShift, MADV_DONTNEED);
                                  }));
        for (size_t i = page; i < page + count; ++i) model[i] = 0;
        break;
      }
      case 4: {
        if (!host::userfault::serves_kernel()) break;
        u8 copy[kPageSize];
        ASSERT_EQ(static_cast<ssize_t>(kPageSize), ::write(pipe[1], at(page), kPageSize));
        ASSERT_EQ(static_cast<ssize_t>(kPageSize), ::read(pipe[0], copy, kPageSize));
        ASSERT_TRUE(is_right(copy, page)) << page << ", seed " << seed;
        break;
      }
      case 5:
        if (!guest_->use(0, {}) || !guest_->use(0, range_of(memory, kPages))) FAIL();
        break;
      default:
        ASSERT_TRUE(is_right(at(page), page)) << page << ", round " << round << ", seed " << seed;
    }
  }
  for (size_t page = 0; page < kPages; ++page) {
    ASSERT_TRUE(is_right(at(page), page)) << page << ", seed " << seed;
  }
  EXPECT_GT(reclaim::statistics().taken, 100U);
  EXPECT_EQ(0U, reclaim::statistics().lost);
  ::close(pipe[0]);
  ::close(pipe[1]);
}

}  // namespace
}  // namespace stagetwo::test
