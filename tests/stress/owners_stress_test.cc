// SPDX-License-Identifier: Apache-2.0
// A few pages, private and shared with two addresses each, that are taken all the time while
// threads touch them in every way there is. Each byte has a place of its own to be counted in, so
// that a page that came back twice, or with older bytes, shows as a count that is too small.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "host/access.h"
#include "host/backstop.h"
#include "host/faultin.h"
#include "host/page_owner.h"
#include "host/shared_objects.h"
#include "host/userfault.h"
#include "tests/support/pages.h"
#include "tests/support/seeds.h"

namespace stagetwo {
namespace {

using host::BringBack;
constexpr size_t kPages = 6;
constexpr unsigned kTouchers = 8;

// One place a page; every take and bring-back of a page must meet the other.
class Store final : public host::PageOwner {
 public:
  bool take(const host::AbsentPage& page, host::PageExit& exit) override {
    const u64 i = number(page);
    if (with_us[i].exchange(true)) ++wrong;
    if (exit.to(place(i))) return true;
    with_us[i] = false;
    return false;
  }
  BringBack bring_back(const host::AbsentPage& page, host::PageEntry& entry) override {
    const u64 i = number(page);
    if (!with_us[i]) ++wrong;
    // Now and then there is no memory.
    if (asked.fetch_add(1) % 7 == 0) return BringBack::kRetry;
    with_us[i] = false;
    if (!entry.from(place(i))) {
      with_us[i] = true;
      return BringBack::kRetry;
    }
    ++back;
    return BringBack::kBack;
  }
  void discard(const host::AbsentPage&) override { ++wrong; }

  Hva first_private;
  std::atomic<bool> with_us[2 * kPages]{};
  std::atomic<u64> wrong{0}, asked{0}, back{0};

 private:
  u64 number(const host::AbsentPage& page) const {
    if (page.key.object != host::kPrivateMemory) return kPages + page.key.index;
    return page.key.index - (first_private.raw() >> kPageShift);
  }
  Hva place(u64 i) const { return Hva(places_.address() + i * kPageSize); }
  test::GuardedPages places_{2 * kPages};
};

class OwnersStress : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    host::userfault::debug_deny(GetParam());
    const int file = ::memfd_create("stress", MFD_CLOEXEC);
    ASSERT_EQ(0, ::ftruncate(file, kPages * kPageSize));
    host::shared_file_made(file);
    for (u8*& view : views_) {
      view = static_cast<u8*>(
          ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    }
    ::close(file);
    store_.first_private = address(private_.bytes_at(0));
    store_.asked = test::seed() % 7;
    for (size_t i = 0; i < kPages * kPageSize; i += 8) {
      *reinterpret_cast<u64*>(private_.bytes_at(i)) = *reinterpret_cast<u64*>(views_[0] + i) = 0;
    }
  }
  void TearDown() override {
    for (u8* view : views_) {
      host::bring_back_range(HvaRange(address(view), kPages * kPageSize));
      ::munmap(view, kPages * kPageSize);
    }
    host::bring_back_range(HvaRange(store_.first_private, kPages * kPageSize));
    host::userfault::debug_deny(false);
  }
  static Hva address(const u8* at) { return Hva(reinterpret_cast<u64>(at)); }
  // The word of thread `t` on page `i`; of shared pages at one address or the other.
  u8* word(u64 i, unsigned t, unsigned round) {
    u8* memory = i < kPages ? private_.bytes_at(0) : views_[round % 2];
    return memory + (i % kPages) * kPageSize + t * 64;
  }
  // One more, in the way of this thread: by the process, by a system call, by a guest.
  bool raise(unsigned t, u8* at) {
    u64 value = 0;
    switch (t % 3) {
      case 0:
        reinterpret_cast<std::atomic<u64>*>(at)->fetch_add(1, std::memory_order_relaxed);
        return true;
      case 1:
        if (GetParam() || !host::userfault::serves_kernel()) {
          return host::fetch_add(address(at), u64{1}, &value);
        }
        return through_a_pipe(at);
      default:
        static_cast<void>(host::bring_back(address(at)));
        return host::faultin(page_floor(address(at)), Access::kWrite) &&
               host::fetch_add(address(at), u64{1}, &value);
    }
  }
  static bool through_a_pipe(u8* at) {
    int ends[2];
    if (::pipe(ends) != 0) return false;
    u64 value = 0;
    bool done = ::write(ends[1], at, 8) == 8 && ::read(ends[0], &value, 8) == 8;
    ++value;
    done = done && ::write(ends[1], &value, 8) == 8 && ::read(ends[0], at, 8) == 8;
    ::close(ends[0]);
    ::close(ends[1]);
    return done;
  }

  test::GuardedPages private_{kPages};
  u8* views_[2] = {};
  Store store_;
};
std::string hiding_name(const testing::TestParamInfo<bool>& denied) {
  return denied.param ? "Protection" : "Userfault";
}
INSTANTIATE_TEST_SUITE_P(Hiding, OwnersStress, testing::Bool(), hiding_name);

TEST_P(OwnersStress, EveryKindOfTouchFindsTheLatestBytesOnce) {
  std::atomic<bool> stop{false};
  std::atomic<u64> failed{0};
  u64 counts[kTouchers][2 * kPages] = {};
  std::vector<std::thread> touchers;
  for (unsigned t = 0; t < kTouchers; ++t) {
    touchers.emplace_back([&, t] {
      std::mt19937_64 random(test::seed() + t);
      for (unsigned round = 0; !stop; ++round) {
        const u64 i = random() % (2 * kPages);
        if (raise(t, word(i, t, round))) {
          ++counts[t][i];
        } else {
          ++failed;
        }
      }
    });
  }
  u64 taken = 0;
  const test::Deadline deadline(0.4);
  while (deadline.running()) {
    for (const Hva at : {store_.first_private, address(views_[taken % 2])}) {
      const HvaRange all(at, kPages * kPageSize);
      const auto now = host::take_away(all, &store_, this, host::Which::kAll);
      taken += now ? *now : 0;
    }
  }
  stop = true;
  for (auto& thread : touchers) thread.join();
  EXPECT_EQ(0u, failed);
  EXPECT_EQ(0u, store_.wrong);
  EXPECT_GT(taken, 10u);
  for (unsigned t = 0; t < kTouchers; ++t) {
    for (u64 i = 0; i < 2 * kPages; ++i) {
      u64 value = 0;
      ASSERT_TRUE(host::load(address(word(i, t, 0)), &value));
      EXPECT_EQ(counts[t][i], value) << "thread " << t << " page " << i << " seed " << test::seed();
    }
  }
}

}  // namespace
}  // namespace stagetwo
