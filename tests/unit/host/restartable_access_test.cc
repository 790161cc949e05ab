// SPDX-License-Identifier: Apache-2.0
// Goal: a restartable access is a guarded access that a request refuses, that the kernel takes
// back, and that no barrier lets through late. Method: a line that is asked; a page without rights;
// a window that is wide on purpose.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "host/access.h"
#include "host/backstop.h"
#include "sync/ack_line.h"
#include "sync/restartable.h"
#include "tests/support/pages.h"
#include "tests/support/widened_access.h"

namespace stagetwo::host {
namespace {

class RestartableAccess : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(backstop::install());
    if constexpr (!arch::kRestartable) {
      GTEST_SKIP() << "ThreadSanitizer: accesses are not restartable";
    }
    section_ = sync::restartable_section();
    if (section_ == nullptr) GTEST_SKIP() << "libc or the kernel has no restartable sections";
    set_.add(line_);
    static_cast<void>(line_.enter());
    line_.let_go();
  }
  void TearDown() override {
    if (section_ == nullptr) return;
    sync::forget_restartable_section(section_);
    line_.leave();
    set_.remove(line_);
  }
  arch::Restart how() { return line_.restart(section_); }
  // A request of somebody else, which is not answered.
  void ask() {
    std::thread([this] { set_.bump_all(); }).join();
  }
  Hva hole() const { return Hva(pages_.address() + pages_.bytes()); }
  Hva at(u64 offset) const { return Hva(pages_.address() + offset); }

  // An access that was taken back is asked for again: this thread may be preempted at any time.
  template <typename F>
  bool done(F&& access) {
    for (;;) {
      const u64 before = line_.aborted();
      if (access()) return true;
      if (line_.aborted() == before) return false;
    }
  }

  template <typename T>
  void every_form(T first, T second) {
    T value{};
    ASSERT_TRUE(done([&] { return store(at(3), first, how()); }));
    ASSERT_TRUE(done([&] { return load(at(3), &value, how()); }));
    EXPECT_EQ(value, first);
    bool swapped = false;
    T expected = second;
    ASSERT_TRUE(done([&] { return cmpxchg(at(3), &expected, second, &swapped, how()); }));
    EXPECT_FALSE(swapped);
    EXPECT_EQ(expected, first);
    ASSERT_TRUE(done([&] { return cmpxchg(at(3), &expected, second, &swapped, how()); }));
    EXPECT_TRUE(swapped);
    ASSERT_TRUE(done([&] { return load(at(3), &value, how()); }));
    EXPECT_EQ(value, second);
  }
  template <typename T>
  void every_form_refuses(Hva where) {
    T value{5};
    bool swapped = false;
    EXPECT_FALSE(done([&] { return load(where, &value, how()); }));
    EXPECT_FALSE(done([&] { return store(where, T{9}, how()); }));
    EXPECT_FALSE(done([&] { return cmpxchg(where, &value, T{9}, &swapped, how()); }));
    EXPECT_EQ(value, T{5});
  }

  test::GuardedPages pages_{2};
  sync::AckSet set_;
  sync::AckLine line_;
  u64* section_ = nullptr;
};

TEST_F(RestartableAccess, ReadsAndWritesEverySize) {
  every_form<u8>(0x11, 0x22);
  every_form<u16>(0x1122, 0x3344);
  every_form<u32>(0x11223344, 0x55667788);
  every_form<u64>(0x1122334455667788, 0x99aabbccddeeff00);
}

TEST_F(RestartableAccess, IsRefusedWhileARequestIsPending) {
  ASSERT_TRUE(done([&] { return store(at(0), u64{5}, how()); }));
  ask();
  every_form_refuses<u8>(at(0));
  every_form_refuses<u64>(at(0));
  EXPECT_TRUE(line_.hold());
  line_.let_go();
  u64 value = 0;
  EXPECT_TRUE(done([&] { return load(at(0), &value, how()); }));
  EXPECT_EQ(value, 5U);
}

TEST_F(RestartableAccess, IsRefusedWhereThereIsNothing) {
  const u64 before = backstop::fixed_count();
  every_form_refuses<u8>(hole());
  every_form_refuses<u16>(hole());
  every_form_refuses<u32>(hole());
  every_form_refuses<u64>(hole());
  EXPECT_EQ(backstop::fixed_count(), before + 12);
}

TEST_F(RestartableAccess, ComparesBytesUpToTheLast) {
  constexpr u64 kSize = 27;
  for (u64 i = 0; i < kSize; ++i) ASSERT_TRUE(store(at(i), static_cast<u8>(i + 1)));
  u64 words[4];
  std::memcpy(words, pages_.pointer(), 24);
  std::memcpy(&words[3], static_cast<u8*>(pages_.pointer()) + kSize - 8, 8);
  EXPECT_TRUE(done([&] { return equal(at(0), words, 4, kSize, how()); }));
  for (u64 i = 0; i < kSize; ++i) {
    ASSERT_TRUE(store(at(i), u8{0}));
    EXPECT_FALSE(done([&] { return equal(at(0), words, 4, kSize, how()); })) << i;
    ASSERT_TRUE(store(at(i), static_cast<u8>(i + 1)));
  }
  // One word, at the end of what there is; and one byte further.
  ASSERT_TRUE(store(hole() - 8, words[0]));
  EXPECT_TRUE(done([&] { return equal(hole() - 8, words, 1, 8, how()); }));
  EXPECT_FALSE(done([&] { return equal(hole() - 7, words, 1, 8, how()); }));
  EXPECT_FALSE(done([&] { return equal(hole() - 7, words, 2, 9, how()); }));
  ask();
  EXPECT_FALSE(done([&] { return equal(at(0), words, 4, kSize, how()); }));
}

TEST_F(RestartableAccess, WithAWideWindowNoAccessIsLate) {
  const test::WidenedRounds done = test::run_widened(300);
  EXPECT_EQ(done.late, 0U);
  EXPECT_GT(done.accesses, 0U);
  EXPECT_GT(done.aborted, 0U);
  EXPECT_GT(done.set.let_go, 0U);
}

// Whoever asked before a barrier began is served by it.
TEST_F(RestartableAccess, BarriersAreShared) {
  constexpr int kThreads = 4, kEach = 200;
  const sync::RestartCounts before = sync::restart_counts();
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([] {
      for (int n = 0; n < kEach; ++n) EXPECT_TRUE(sync::restart_barrier());
    });
  }
  for (std::thread& thread : threads) thread.join();
  const sync::RestartCounts after = sync::restart_counts();
  EXPECT_EQ(after.issued - before.issued + after.shared - before.shared, u64{kThreads} * kEach);
}

TEST_F(RestartableAccess, WithoutSectionsThereIsNoBarrier) {
  const sync::NoRestartableSections none;
  EXPECT_EQ(sync::restartable_section(), nullptr);
  EXPECT_FALSE(sync::restart_barrier());
}

}  // namespace
}  // namespace stagetwo::host
