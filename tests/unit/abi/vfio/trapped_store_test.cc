// SPDX-License-Identifier: Apache-2.0
// Stores to registers that are mapped: what the model is told, and the processor after it.
#include "abi/vfio/trapped_store.h"

#include <algorithm>
#include <cstring>

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

TEST_F(TrappedStore, LessUsualFormsOfStoresAreTheProcessors) {
  u8* const at = map_region(0, kPageSize);
  auto& word = *reinterpret_cast<u32*>(at);
  asm volatile("movbe %1, %0" : "=m"(word) : "r"(0x01020304));
  expect_last(0, 0x04030201, 4);
  asm volatile("cmpl $7, %1; sete %0" : "=m"(*(at + 5)) : "r"(7) : "cc");
  expect_last(5, 1, 1);
  asm volatile("cmpl $7, %1; setg %0" : "=m"(*(at + 6)) : "r"(7) : "cc");
  expect_last(6, 0, 1);
  asm volatile("push %1; popq 8(%0)" ::"r"(at), "r"(u64{0x1122334455667788}) : "memory");
  expect_last(8, 0x1122334455667788, 8);
  put<u32>(at, 5);
  u32 expected = 5;
  bool same = false;
  asm volatile("lock cmpxchgl %3, %1; setz %2"
               : "+a"(expected), "+m"(word), "=r"(same)
               : "r"(9)
               : "cc");
  EXPECT_TRUE(same);
  expect_last(0, 9, 4);
  asm volatile("lock cmpxchgl %3, %1; setz %2"
               : "+a"(expected), "+m"(word), "=r"(same)
               : "r"(11)
               : "cc");
  EXPECT_FALSE(same);
  EXPECT_EQ(expected, 9u);
  expect_last(0, 9, 4);
  bool carry = true;
  asm volatile("lock btsl $4, %0; setc %1" : "+m"(word), "=r"(carry)::"cc");
  EXPECT_FALSE(carry);
  expect_last(0, 0x19, 4);
  asm volatile("btrl %2, %0; setc %1" : "+m"(*(&word + 1)), "=r"(carry) : "r"(-32) : "cc");
  EXPECT_TRUE(carry);
  expect_last(0, 0x18, 4);
  asm volatile("stc; adcl $1, %0" : "+m"(word)::"cc");
  expect_last(0, 0x1a, 4);
}

struct Seen {
  Hva at;
  u8 bytes[64];
  size_t size = 0;
};

// By hand: few processors have it.
TEST(DirectStore, SixtyFourBytesGoAtOnce) {
  const u8 code[16] = {0x66, 0x41, 0x0f, 0x38, 0xf8, 0x42, 0x20};  // movdir64b 32(%r10), %rax
  u8 bytes[96];
  for (size_t i = 0; i < sizeof(bytes); ++i) bytes[i] = static_cast<u8>(i * 7 + 3);
  ucontext_t context{};
  auto& regs = context.uc_mcontext.gregs;
  regs[REG_RIP] = static_cast<greg_t>(reinterpret_cast<u64>(code));
  regs[REG_RAX] = 0x10040;
  regs[REG_R10] = static_cast<greg_t>(reinterpret_cast<u64>(bytes));
  Seen seen;
  const auto note = [](void* who, Hva at, std::span<const u8> stored) {
    auto& told = *static_cast<Seen*>(who);
    told.at = at;
    told.size = stored.size();
    std::memcpy(told.bytes, stored.data(), std::min(stored.size(), sizeof(told.bytes)));
  };
  EXPECT_FALSE(abi_vfio::emulate_store(&context, HvaRange(Hva(0x10041), kPageSize), note, &seen));
  EXPECT_EQ(seen.size, 0u);
  ASSERT_TRUE(abi_vfio::emulate_store(&context, HvaRange(Hva(0x10000), kPageSize), note, &seen));
  EXPECT_EQ(seen.at.raw(), 0x10040u);
  ASSERT_EQ(seen.size, 64u);
  EXPECT_EQ(std::memcmp(seen.bytes, bytes + 32, 64), 0);
  EXPECT_EQ(regs[REG_RIP], static_cast<greg_t>(reinterpret_cast<u64>(code) + 7));
}

}  // namespace
}  // namespace stagetwo
