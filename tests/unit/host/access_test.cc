// SPDX-License-Identifier: Apache-2.0
// Goal: a guarded access reads and writes what a plain one would, and answers false where a plain
// one would kill. Method: pages at the end of which there is nothing.
#include "host/access.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "host/backstop.h"
#include "tests/support/pages.h"

namespace stagetwo::host {
namespace {

class Access : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(backstop::install()); }
  test::GuardedPages pages_{2};
  Hva hole() const { return Hva(pages_.address() + pages_.bytes()); }
  Hva at(u64 offset) const { return Hva(pages_.address() + offset); }
};

template <typename T>
void load_and_store_every_offset(Hva base, u64 bytes) {
  for (u64 offset = 0; offset + sizeof(T) <= bytes; ++offset) {
    T value{};
    std::memset(&value, static_cast<int>(offset + 1), sizeof(T));
    ASSERT_TRUE(store(base + offset, value));
    T back{};
    ASSERT_TRUE(load(base + offset, &back));
    ASSERT_EQ(0, std::memcmp(&value, &back, sizeof(T)));
  }
}

struct Sixteen {
  u64 low, high;
};

TEST_F(Access, LoadsAndStoresEverySizeAtEveryAlignment) {
  load_and_store_every_offset<u8>(at(0), 32);
  load_and_store_every_offset<u16>(at(0), 32);
  load_and_store_every_offset<u32>(at(0), 32);
  load_and_store_every_offset<u64>(at(0), 32);
  load_and_store_every_offset<Sixteen>(at(0), 48);
}

template <typename T>
void every_form_fails(Hva hole) {
  T value{};
  bool swapped = true;
  EXPECT_FALSE(load(hole, &value));
  EXPECT_FALSE(store(hole, value));
  if constexpr (std::is_integral_v<T>) {
    EXPECT_FALSE(exchange(hole, value, &value));
    EXPECT_FALSE(fetch_add(hole, value, &value));
    EXPECT_FALSE(fetch_or(hole, value, &value));
    EXPECT_FALSE(cmpxchg(hole, &value, value, &swapped));
  }
}

TEST_F(Access, AnswersFalseWhereNothingIsMapped) {
  every_form_fails<u8>(hole());
  every_form_fails<u16>(hole());
  every_form_fails<u32>(hole());
  every_form_fails<u64>(hole());
  every_form_fails<Sixteen>(hole());
  u64 expected[2] = {0, 0};
  const u64 desired[2] = {1, 1};
  bool swapped = false;
  EXPECT_FALSE(cmpxchg16b(hole(), expected, desired, &swapped));
}

TEST_F(Access, AnswersFalseForNonCanonicalAndKernelAddresses) {
  u64 value = 0;
  EXPECT_FALSE(load(Hva(u64{1} << 52), &value));
  EXPECT_FALSE(load(Hva(0xffff800000000000), &value));
  EXPECT_FALSE(store(Hva(0), u64{1}));
}

TEST_F(Access, AFailedAccessAcrossThePageEndChangesNothing) {
  const Hva last = hole() - 4;
  ASSERT_TRUE(store(last, u32{0x11223344}));
  EXPECT_FALSE(store(last, ~u64{0}));
  u32 back = 0;
  ASSERT_TRUE(load(last, &back));
  EXPECT_EQ(0x11223344U, back);
}

TEST_F(Access, ALoadFromAReadOnlyPageSucceedsAndAStoreDoesNot) {
  ASSERT_EQ(0, mprotect(pages_.pointer(), pages_.bytes(), PROT_READ));
  u64 value = 1;
  EXPECT_TRUE(load(at(0), &value));
  EXPECT_EQ(0U, value);
  EXPECT_FALSE(store(at(0), u64{1}));
  u64 old = 0;
  EXPECT_FALSE(fetch_add(at(0), u64{1}, &old));
}

TEST_F(Access, LockFormsReturnWhatWasThere) {
  u32 old = 0;
  ASSERT_TRUE(store(at(8), u32{0b1100}));
  ASSERT_TRUE(fetch_add(at(8), u32{1}, &old));
  EXPECT_EQ(0b1100U, old);
  ASSERT_TRUE(fetch_and(at(8), u32{0b0111}, &old));
  EXPECT_EQ(0b1101U, old);
  ASSERT_TRUE(fetch_or(at(8), u32{0b1000}, &old));
  EXPECT_EQ(0b0101U, old);
  ASSERT_TRUE(fetch_xor(at(8), u32{0b1111}, &old));
  EXPECT_EQ(0b1101U, old);
  ASSERT_TRUE(exchange(at(8), u32{7}, &old));
  EXPECT_EQ(0b0010U, old);
}

TEST_F(Access, CompareAndExchangeTellsBothOutcomesApart) {
  bool swapped = false;
  u64 expected = 0;
  ASSERT_TRUE(cmpxchg(at(16), &expected, u64{5}, &swapped));
  EXPECT_TRUE(swapped);
  expected = 4;
  ASSERT_TRUE(cmpxchg(at(16), &expected, u64{6}, &swapped));
  EXPECT_FALSE(swapped);
  EXPECT_EQ(5U, expected);
  u64 pair[2] = {5, 0};
  const u64 wanted[2] = {8, 9};
  ASSERT_TRUE(cmpxchg16b(at(16), pair, wanted, &swapped));
  EXPECT_TRUE(swapped);
  ASSERT_TRUE(cmpxchg16b(at(16), pair, wanted, &swapped));
  EXPECT_FALSE(swapped);
  EXPECT_EQ(8U, pair[0]);
  EXPECT_EQ(9U, pair[1]);
}

TEST_F(Access, MisalignedCompareExchange16IsAFault) {
  u64 pair[2] = {0, 0};
  const u64 wanted[2] = {1, 1};
  bool swapped = false;
  EXPECT_FALSE(cmpxchg16b(at(8), pair, wanted, &swapped));
}

TEST_F(Access, LockFormsOfManyThreadsLoseNothing) {
  constexpr u64 kEach = 100'000;
  const auto add = [this] {
    for (u64 i = 0; i < kEach; ++i) {
      u64 old = 0;
      ASSERT_TRUE(fetch_add(at(64), u64{1}, &old));
      ASSERT_TRUE(fetch_update(at(72), &old, [](u64 x) { return x + 3; }));
    }
  };
  std::thread other(add);
  add();
  other.join();
  u64 value = 0;
  ASSERT_TRUE(load(at(64), &value));
  EXPECT_EQ(2 * kEach, value);
  ASSERT_TRUE(load(at(72), &value));
  EXPECT_EQ(6 * kEach, value);
}

TEST_F(Access, CopiesEveryLengthBothWays) {
  std::mt19937_64 random(7);
  std::vector<u8> source(6000);
  for (u8& byte : source) byte = static_cast<u8>(random());
  for (size_t length = 0; length < 700; ++length) {
    const u64 skew = length % 13;
    ASSERT_EQ(length, copy_to(at(skew), source.data(), length));
    std::vector<u8> back(length + 1, 0xEE);
    ASSERT_EQ(length, copy_from(back.data(), at(skew), length));
    ASSERT_EQ(0, std::memcmp(back.data(), source.data(), length)) << length;
    ASSERT_EQ(0xEE, back[length]);
  }
}

TEST_F(Access, ACopyIntoTheHoleSaysHowFarItGot) {
  std::vector<u8> buffer(9000, 0x5A);
  for (const size_t before : {0U, 1U, 7U, 8U, 100U, 255U, 256U, 1000U, 4096U}) {
    for (const size_t total : {before + 1, before + 8, before + 300}) {
      const size_t copied = copy_to(hole() - before, buffer.data(), total);
      EXPECT_LE(copied, before);
      EXPECT_GT(copied + 8, before);
      const size_t fetched = copy_from(buffer.data(), hole() - before, total);
      EXPECT_LE(fetched, before);
      EXPECT_GT(fetched + 8, before);
    }
  }
}

TEST(UserRange, IsTheUserHalfAndNothingThatWraps) {
  EXPECT_TRUE(is_user_range(Hva(0), 0));
  EXPECT_TRUE(is_user_range(Hva(0), kUserEnd));
  EXPECT_FALSE(is_user_range(Hva(0), kUserEnd + 1));
  EXPECT_TRUE(is_user_range(Hva(kUserEnd), 0));
  EXPECT_FALSE(is_user_range(Hva(kUserEnd), 1));
  EXPECT_FALSE(is_user_range(Hva(kPageSize), ~u64{0}));
  EXPECT_FALSE(is_user_range(Hva(u64{1} << 63), kPageSize));
}

}  // namespace
}  // namespace stagetwo::host
