// SPDX-License-Identifier: Apache-2.0
// Stores to registers that are mapped: what the model is told, and the processor after it.
#include "abi/vfio/trapped_store.h"

#include "tests/unit/abi/vfio/mapped_region.h"

namespace stagetwo {
namespace {

using TrappedStore = MappedRegion;

TEST_F(TrappedStore, StoresToRegistersAreTheModels) {
  u8* const at = map_region(0, kPageSize);
  put<u8>(at + 3, 0x12);
  expect_last(3, 0x12, 1);
  put<u16>(at + 6, 0x1234);
  expect_last(6, 0x1234, 2);
  put<u32>(at + 8, 0x12345678);
  expect_last(8, 0x12345678, 4);
  put<u64>(at + 16, 0x123456789abcdef0);
  expect_last(16, 0x123456789abcdef0, 8);
  EXPECT_EQ(seen().count, 4u);
  EXPECT_EQ(get<u64>(at + 16), 0x123456789abcdef0u) << "loads see what the model put there";
  EXPECT_EQ(seen().count, 4u);
}

TEST_F(TrappedStore, AnOddStoreIsMadeOfAlignedOnes) {
  u8* const at = map_region(0, kPageSize);
  asm volatile("movl $0x04030201, %0" : "=m"(*reinterpret_cast<u32*>(at + 3)));
  ASSERT_EQ(seen().count, 3u);
  EXPECT_EQ(seen().stored[0].bytes, 1u);
  EXPECT_EQ(seen().stored[1].bytes, 2u);
  EXPECT_EQ(seen().stored[1].value, 0x0302u);
  EXPECT_EQ(seen().stored[2].value, 4u);
}

TEST_F(TrappedStore, EveryFormOfAStoreIsKnown) {
  u8* const at = map_region(0, kPageSize);
  const u64 value = 0x1122334455667788;
  asm volatile("movnti %1, %0" : "=m"(*reinterpret_cast<u64*>(at)) : "r"(value));
  expect_last(0, value, 8);
  asm volatile("movb %%ah, %0" : "=m"(*at) : "a"(value));
  expect_last(0, 0x77, 1);
  asm volatile("movq %1, %%xmm3; movq %%xmm3, 8(%0)" ::"r"(at), "r"(value) : "xmm3", "memory");
  expect_last(8, value, 8);
  asm volatile("movq %1, %%xmm9; punpcklqdq %%xmm9, %%xmm9; movdqu %%xmm9, 16(%0)" ::"r"(at),
               "r"(value)
               : "xmm9", "memory");
  expect_last(24, value, 8);
  EXPECT_EQ(get<u64>(at + 16), value);
  asm volatile("movl $7, (%0, %1, 4)" ::"r"(at), "r"(u64{10}) : "memory");
  expect_last(40, 7, 4);
}

TEST_F(TrappedStore, ReadChangeWriteIsOneLoadAndOneStore) {
  u8* const at = map_region(0, kPageSize);
  put<u32>(at, 0xf0);
  auto& word = *reinterpret_cast<u32*>(at);
  asm volatile("orl $0x0f, %0" : "+m"(word)::"cc");
  expect_last(0, 0xff, 4);
  asm volatile("andl $0x3c, %0" : "+m"(word)::"cc");
  expect_last(0, 0x3c, 4);
  bool carry = false;
  asm volatile("subl $0x3d, %0; setc %1" : "+m"(word), "=r"(carry)::"cc");
  expect_last(0, 0xffffffff, 4);
  EXPECT_TRUE(carry);
  bool zero = false;
  asm volatile("lock incl %0; setz %1" : "+m"(word), "=r"(zero)::"cc");
  expect_last(0, 0, 4);
  EXPECT_TRUE(zero);
  u32 other = 5;
  asm volatile("xchgl %1, %0" : "+m"(word), "+r"(other));
  expect_last(0, 5, 4);
  EXPECT_EQ(other, 0u);
}

TEST_F(TrappedStore, StringStoresGoElementByElement) {
  u8* const at = map_region(0, kPageSize);
  u8* to = at + 0x100;
  u64 count = 3;
  asm volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(9) : "memory");
  EXPECT_EQ(seen().count, 3u);
  expect_last(0x108, 9, 4);
  EXPECT_EQ(to, at + 0x10c);
  EXPECT_EQ(count, 0u);
  const u16 source[] = {1, 2};
  const u16* from = source;
  to = at + 0x200;
  count = 2;
  asm volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(count)::"memory");
  expect_last(0x202, 2, 2);
  EXPECT_EQ(from, source + 2);
}

}  // namespace
}  // namespace stagetwo
