// SPDX-License-Identifier: Apache-2.0
// Goal: memory for secrets is in no dump and in no child, and what leaves a holder's hands is
// zeros; the pool of secure pages is finite, says whose each page is, and finds a victim.
#include "mem/secure_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/failpoint.h"
#include "mem/secure_pool.h"

namespace stagetwo::mem {
namespace {

using Want = SecureMemory::Want;
using Kind = SecureMemory::Kind;

// The flags of the mapping at `at`, as /proc/self/smaps says them.
std::string flags_of(const void* at) {
  std::ifstream smaps("/proc/self/smaps");
  const auto address = reinterpret_cast<unsigned long>(at);
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long start = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2) {
      inside = start <= address && address < end;
    }
    if (inside && line.starts_with("VmFlags:")) return line + " ";
  }
  return {};
}

class Wanted : public testing::TestWithParam<Want> {};

TEST_P(Wanted, IsZerosInWholePagesExcludedFromDumpsAndFromChildren) {
  const auto memory = SecureMemory::map(5000, GetParam(), "test");
  ASSERT_TRUE(memory.has_value()) << to_int(memory.error());
  EXPECT_EQ(memory->size(), 2 * kPageSize);
  for (size_t i = 0; i < memory->size(); ++i) EXPECT_EQ(memory->data()[i], 0);
  const std::string flags = flags_of(memory->data());
  EXPECT_NE(flags.find(" dd "), std::string::npos) << flags;
  EXPECT_NE(flags.find(" dc "), std::string::npos) << flags;
  const bool locked = flags.find(" lo ") != std::string::npos;
  EXPECT_EQ(locked, memory->kind() != Kind::kPageable) << flags;
}

TEST_P(Wanted, IsNotThereInAChildOfForkWhichMayEndItAllTheSame) {
  auto memory = SecureMemory::map(kPageSize, GetParam(), "test");
  ASSERT_TRUE(memory.has_value());
  memory->data()[0] = 1;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    u8 byte = 0;
    const iovec to{&byte, 1}, from{memory->data(), 1};
    const bool gone = ::process_vm_readv(::getpid(), &to, 1, &from, 1, 0) < 0;
    memory->release();
    ::_exit(gone ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(memory->data()[0], 1);
}

TEST_P(Wanted, GivesBackAllOfItsMemory) {
  const AllocUse before = alloc_use();
  {
    const auto memory = SecureMemory::map(kPageSize, GetParam(), "test");
  }
  EXPECT_EQ(alloc_use().bytes, before.bytes);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Wanted,
                         testing::Values(Want::kSecretOrLocked, Want::kLocked, Want::kWhatThereIs));

TEST(SecureMemory, KeepsTheKernelsOwnDoorOutWhereItIsSecret) {
  const auto memory = SecureMemory::map(kPageSize, Want::kSecretOrLocked, "test");
  ASSERT_TRUE(memory.has_value());
  if (memory->kind() != Kind::kSecret) GTEST_SKIP() << "this kernel has no memfd_secret";
  memory->data()[0] = 7;
  u8 byte = 0;
  const iovec to{&byte, 1}, from{memory->data(), 1};
  EXPECT_EQ(::process_vm_readv(::getpid(), &to, 1, &from, 1, 0), -1);
  EXPECT_EQ(byte, 0);
}

TEST(SecureMemory, RefusesNoBytesAndNoMemory) {
  EXPECT_EQ(SecureMemory::map(0, Want::kWhatThereIs, "test").error(), Errno{EINVAL});
  failpoint::arm("test.secure", 1);
  EXPECT_EQ(SecureMemory::map(1, Want::kWhatThereIs, "test.secure").error(), Errno{ENOMEM});
  failpoint::disarm();
}

// ---- the pool ---------------------------------------------------------------------------------

TEST(SecurePool, RefusesWhatIsNoPool) {
  SecurePool pool;
  EXPECT_EQ(pool.open(0, kPageSize, Want::kWhatThereIs).error(), Errno{EINVAL});
  EXPECT_EQ(pool.open(4, kPageSize / 2, Want::kWhatThereIs).error(), Errno{EINVAL});
  EXPECT_EQ(pool.open(4, 3 * kPageSize, Want::kWhatThereIs).error(), Errno{EINVAL});
  EXPECT_TRUE(pool.open(4, kPageSize, Want::kWhatThereIs).has_value());
}

TEST(SecurePool, GivesEachPageOnceAndThenNone) {
  for (const u64 size : {kPageSize, 16 * kPageSize}) {
    SecurePool pool;
    ASSERT_TRUE(pool.open(5, size, Want::kWhatThereIs).has_value());
    std::set<u32> seen;
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(seen.insert(pool.take({1, 0})).second);
    EXPECT_FALSE(seen.contains(SecurePool::kNone));
    EXPECT_EQ(pool.take({1, 0}), SecurePool::kNone);
    EXPECT_EQ(pool.free_count(), 0u);
    for (const u32 page : seen) pool.give_back(page);
    EXPECT_EQ(pool.free_count(), 5u);
  }
}

TEST(SecurePool, PassesOverWhoHasNoMoreThanTheQuota) {
  SecurePool pool;
  ASSERT_TRUE(pool.open(8, kPageSize, Want::kWhatThereIs).has_value());
  std::vector<u32> pages;
  for (const u32 guest : {1U, 1U, 2U, 2U, 2U, 3U}) pages.push_back(pool.take({guest, 0}));
  EXPECT_EQ(pool.held(1), 2u);
  EXPECT_EQ(pool.held(2), 3u);
  EXPECT_EQ(pool.held(9), 0u);
  u32 hand = 0;
  SecurePool::Holder victim;
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(pool.next_victim(3, true, 2, &hand, &victim));
    EXPECT_EQ(victim.guest, 2u);
  }
  EXPECT_FALSE(pool.next_victim(3, true, 3, &hand, &victim));
  EXPECT_FALSE(pool.next_victim(2, true, 2, &hand, &victim)) << "its own do not count";
  ASSERT_TRUE(pool.next_victim(3, false, 16, &hand, &victim)) << "of its own there is no quota";
  pool.give_back(pages[2]);
  EXPECT_FALSE(pool.next_victim(3, true, 2, &hand, &victim));
  // An account that is empty is another's: as many guests as there can be, one after the other.
  for (const size_t page : {0U, 1U, 3U, 4U, 5U}) pool.give_back(pages[page]);
  for (u32 guest = 0; guest < 3 * SecurePool::kMostGuests; ++guest) {
    const u32 page = pool.take({guest, 0});
    EXPECT_EQ(pool.held(guest), 1u);
    pool.give_back(page);
    EXPECT_EQ(pool.held(guest), 0u);
  }
}

TEST(SecurePool, WipesAPageBeforeSomebodyElseHasIt) {
  SecurePool pool;
  ASSERT_TRUE(pool.open(1, kPageSize, Want::kWhatThereIs).has_value());
  const u32 page = pool.take({1, 0});
  std::memset(pool.at(page), 0xa5, kPageSize);
  pool.give_back(page);
  const std::vector<u8> zeros(kPageSize);
  EXPECT_EQ(std::memcmp(pool.at(page), zeros.data(), kPageSize), 0);
}

// A page that was taken and not used has no memory, and giving it back makes none.
TEST(SecurePool, APageThatNobodyAskedForTakesNoMemory) {
  SecurePool pool;
  ASSERT_TRUE(pool.open(2, kPageSize, Want::kLocked));
  const u32 used = pool.take({1, 1}), unused = pool.take({1, 2});
  std::memset(pool.at(used), 0x5a, kPageSize);
  pool.give_back(used);
  pool.give_back(unused);
  unsigned char there[2] = {};
  ASSERT_EQ(::mincore(pool.at(0), 2 * kPageSize, there), 0);
  EXPECT_EQ(there[used] & 1, 1);
  EXPECT_EQ(there[unused] & 1, 0);
}

TEST(SecurePool, NamesAVictimOfTheGuestItIsAskedFor) {
  SecurePool pool;
  ASSERT_TRUE(pool.open(4, kPageSize, Want::kWhatThereIs).has_value());
  static_cast<void>(pool.take({1, 10}));
  const u32 second = pool.take({1, 11});
  static_cast<void>(pool.take({2, 20}));
  SecurePool::Holder victim;
  u32 hand = 0, other = 0;
  ASSERT_TRUE(pool.next_victim(1, false, 0, &hand, &victim));
  EXPECT_EQ(victim.guest, 1u);
  EXPECT_EQ(victim.page, 10u);
  // Used again since: the other one is next, though the hand comes by this one first.
  pool.used(second);
  ASSERT_TRUE(pool.next_victim(1, false, 0, &hand, &victim));
  EXPECT_EQ(victim.page, 10u);
  ASSERT_TRUE(pool.next_victim(1, true, 0, &other, &victim));
  EXPECT_EQ(victim.guest, 2u);
  EXPECT_FALSE(pool.next_victim(3, false, 0, &other, &victim));
  // Two who ask in turn: neither makes the other pass a page over.
  ASSERT_TRUE(pool.next_victim(1, false, 0, &hand, &victim));
  EXPECT_EQ(victim.page, 11u);
}

TEST(SecurePool, KnowsItsOwnAddresses) {
  SecurePool pool;
  ASSERT_TRUE(pool.open(2, kPageSize, Want::kWhatThereIs).has_value());
  const u64 start = reinterpret_cast<std::uintptr_t>(pool.at(0));
  EXPECT_TRUE(pool.contains(start, 1));
  EXPECT_TRUE(pool.contains(start - 1, 2));
  EXPECT_TRUE(pool.contains(start + 2 * kPageSize - 1, 1));
  EXPECT_FALSE(pool.contains(start - 1, 1));
  EXPECT_FALSE(pool.contains(start + 2 * kPageSize, 1));
}

TEST(SecurePool, IsRefusedCleanlyAtEveryAllocation) {
  const u64 ways = failpoint::sweep([] {
    SecurePool pool;
    const AllocUse before = alloc_use();
    const bool refused = !pool.open(4, kPageSize, Want::kWhatThereIs).has_value();
    EXPECT_TRUE(!refused || alloc_use().bytes == before.bytes);
  });
  EXPECT_EQ(ways, 3u);
}

}  // namespace
}  // namespace stagetwo::mem
