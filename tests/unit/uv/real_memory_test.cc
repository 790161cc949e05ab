// SPDX-License-Identifier: Apache-2.0
// Goal: a real address that leads nowhere is an answer, not a fault.
#include "uv/real_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "host/backstop.h"

namespace stagetwo::uv {
namespace {

TEST(ProcessMemory, ReadsAndWritesTheProcessAndAnswersFalseWhereThereIsNothing) {
  ASSERT_TRUE(host::backstop::install().has_value());
  ProcessMemory memory;
  u64 word = 5, got = 0;
  const u64 at = reinterpret_cast<std::uintptr_t>(&word);
  EXPECT_TRUE(memory.read(at, &got, sizeof(got)));
  EXPECT_EQ(got, 5u);
  got = 6;
  EXPECT_TRUE(memory.write(at, &got, sizeof(got)));
  EXPECT_EQ(word, 6u);
  void* const none = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_FALSE(memory.read(reinterpret_cast<std::uintptr_t>(none), &got, sizeof(got)));
  EXPECT_FALSE(memory.write(reinterpret_cast<std::uintptr_t>(none), &got, sizeof(got)));
  ::munmap(none, 4096);
}

}  // namespace
}  // namespace stagetwo::uv
