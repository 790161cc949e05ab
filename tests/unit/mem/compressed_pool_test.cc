// SPDX-License-Identifier: Apache-2.0
// Goal: objects of every size keep their bytes whatever comes and goes beside them, take little
// more room than their bytes, and give it back.
#include "mem/compressed_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <vector>

#include "base/failpoint.h"
#include "tests/support/random_source.h"

namespace stagetwo::mem {
namespace {

using Object = CompressedPool::Object;

std::vector<u8> bytes_of(u64 seed, u32 size) {
  test::RandomSource random(seed);
  std::vector<u8> bytes(size);
  for (u8& byte : bytes) byte = random.byte();
  return bytes;
}
bool has(const CompressedPool& pool, Object object, const std::vector<u8>& bytes) {
  return std::memcmp(pool.at(object), bytes.data(), bytes.size()) == 0;
}

TEST(CompressedPool, NothingIsTakenBeforeTheFirstObject) {
  CompressedPool pool;
  EXPECT_EQ(0U, pool.bytes());
}

TEST(CompressedPool, KeepsObjectsOfEverySize) {
  CompressedPool pool;
  std::vector<Object> objects;
  for (u32 size = 1; size <= CompressedPool::kMaxObject; ++size) {
    objects.push_back(*pool.put(bytes_of(size, size).data(), size));
  }
  for (u32 size = 1; size <= CompressedPool::kMaxObject; ++size) {
    ASSERT_TRUE(has(pool, objects[size - 1], bytes_of(size, size))) << size;
  }
}

TEST(CompressedPool, TakesLittleMoreThanTheBytes) {
  CompressedPool pool;
  test::RandomSource random(7);
  const std::vector<u8> bytes = bytes_of(1, CompressedPool::kMaxObject);
  u64 put = 0;
  for (int i = 0; i < 20'000; ++i) {
    const u32 size = 256 + random.small(CompressedPool::kMaxObject - 255);
    ASSERT_TRUE(pool.put(bytes.data(), size));
    put += size;
  }
  EXPECT_LT(static_cast<double>(pool.bytes()), static_cast<double>(put) * 1.1);
}

TEST(CompressedPool, AnEmptySlabGivesItsMemoryBackAndServesAnotherSize) {
  CompressedPool pool;
  const std::vector<u8> small = bytes_of(1, 64), large = bytes_of(2, 3000);
  std::vector<Object> objects;
  for (int i = 0; i < 1024; ++i) objects.push_back(*pool.put(small.data(), 64));
  EXPECT_EQ(CompressedPool::kSlabBytes, pool.bytes());
  for (const Object object : objects) pool.free(object);
  EXPECT_EQ(0U, pool.bytes());
  const Object again = *pool.put(large.data(), 3000);
  EXPECT_EQ(CompressedPool::kSlabBytes, pool.bytes());
  EXPECT_TRUE(has(pool, again, large));
}

TEST(CompressedPool, SaysThatThereIsNoMemoryAndGoesOn) {
  CompressedPool pool;
  const std::vector<u8> bytes = bytes_of(3, 100);
  for (const char* site : {"mem.pool_space", "mem.pool_slabs", "mem.pool_slab"}) {
    failpoint::arm(site, 1);
    EXPECT_FALSE(pool.put(bytes.data(), 100)) << site;
    failpoint::disarm();
    EXPECT_EQ(0U, pool.bytes());
  }
  EXPECT_TRUE(has(pool, *pool.put(bytes.data(), 100), bytes));
}

TEST(CompressedPool, KeepsEverythingThroughAnyOrderOfPutsAndFrees) {
  const u64 seed = test::announced_seed("compressed pool");
  test::RandomSource random(seed);
  CompressedPool pool;
  std::map<u32, std::pair<u64, u32>> kept;  // object → seed, size
  for (u64 round = 0; round < 60'000; ++round) {
    if (!kept.empty() && random.one_in(kept.size() > 3000 ? 1 : 3)) {
      auto victim = kept.lower_bound(static_cast<u32>(random.next()));
      if (victim == kept.end()) victim = kept.begin();
      const auto [made_of, size] = victim->second;
      ASSERT_TRUE(has(pool, Object{victim->first}, bytes_of(made_of, size))) << seed;
      pool.free(Object{victim->first});
      kept.erase(victim);
      continue;
    }
    const u32 size = 1 + random.small(CompressedPool::kMaxObject);
    const auto object = pool.put(bytes_of(round, size).data(), size);
    ASSERT_TRUE(object);
    ASSERT_TRUE(kept.emplace(static_cast<u32>(*object), std::pair(round, size)).second);
  }
  for (const auto& [object, what] : kept) {
    ASSERT_TRUE(has(pool, Object{object}, bytes_of(what.first, what.second))) << seed;
    pool.free(Object{object});
  }
  EXPECT_EQ(0U, pool.bytes());
}

}  // namespace
}  // namespace stagetwo::mem
