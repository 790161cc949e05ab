// SPDX-License-Identifier: Apache-2.0
// Goal: an entry counts for its page, its right and its sequence, and for nothing else.
#include "stage2/resident_cache.h"

#include <gtest/gtest.h>

#include <memory>

namespace stagetwo::stage2 {
namespace {

const Hva kPage(0x7f1234567000);

TEST(ResidentCache, KnowsNothingAtFirst) {
  const auto cache = std::make_unique<ResidentCache>();
  EXPECT_FALSE(cache->contains(kPage, 0, false));
}

TEST(ResidentCache, AnEntryDiesWithTheSequence) {
  const auto cache = std::make_unique<ResidentCache>();
  cache->insert(kPage, 7, true);
  EXPECT_TRUE(cache->contains(kPage, 7, true));
  EXPECT_TRUE(cache->contains(kPage, 7, false));
  EXPECT_FALSE(cache->contains(kPage, 8, false));
}

TEST(ResidentCache, AReadableEntryIsNotAWritableOne) {
  const auto cache = std::make_unique<ResidentCache>();
  cache->insert(kPage, 7, false);
  EXPECT_TRUE(cache->contains(kPage, 7, false));
  EXPECT_FALSE(cache->contains(kPage, 7, true));
}

TEST(ResidentCache, AReadDoesNotForgetTheRightToWrite) {
  const auto cache = std::make_unique<ResidentCache>();
  cache->insert(kPage, 7, true);
  cache->insert(kPage, 7, false);
  EXPECT_TRUE(cache->contains(kPage, 7, true));
}

TEST(ResidentCache, OtherPagesAreNotThere) {
  const auto cache = std::make_unique<ResidentCache>();
  cache->insert(kPage, 7, true);
  for (u64 i = 1; i < 5000; ++i) ASSERT_FALSE(cache->contains(kPage + i * 4096, 7, false));
}

}  // namespace
}  // namespace stagetwo::stage2
