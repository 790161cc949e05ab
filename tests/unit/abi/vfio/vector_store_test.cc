// SPDX-License-Identifier: Apache-2.0
// Stores out of vector registers to registers of a device: what libc's and compilers' copies are
// made of. The same instructions on plain memory say what is right.
#include "abi/vfio/vector_store.h"

#include <array>
#include <cstring>

#include "tests/unit/abi/vfio/mapped_region.h"

namespace stagetwo {
namespace {

using VectorStores = MappedRegion;

std::array<u8, 256> pattern() {
  std::array<u8, 256> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<u8>(i * 7 + 3);
  return bytes;
}

// Whichever this machine's libc takes.
TEST_F(VectorStores, LibcsCopiesOfEverySizeArrive) {
  u8* const at = map_region(0, kPageSize);
  void* (*volatile copy)(void*, const void*, size_t) = std::memcpy;
  void* (*volatile fill)(void*, int, size_t) = std::memset;
  const auto bytes = pattern();
  for (size_t size = 1; size <= bytes.size(); size += size < 70 ? 1 : 31) {
    fill(at, 0, kPageSize);
    copy(at + 64, bytes.data(), size);
    ASSERT_EQ(std::memcmp(at + 64, bytes.data(), size), 0) << size;
    EXPECT_EQ(at[63], 0);
    EXPECT_EQ(at[64 + size], 0) << size;
    fill(at + 1024, static_cast<int>(size), size);
    for (size_t i = 0; i < size; ++i) ASSERT_EQ(at[1024 + i], static_cast<u8>(size)) << size;
    EXPECT_EQ(at[1024 + size], 0) << size;
  }
}

[[gnu::target("avx2")]] void store_by_avx(u8* at, const u8* bytes) {
  asm volatile(
      "vmovdqu (%1), %%ymm5; vmovdqu 32(%1), %%ymm14;"
      "vmovdqu %%ymm5, (%0); vmovdqa %%ymm14, 32(%0);"
      "vmovntdq %%ymm14, 64(%0); vmovups %%xmm5, 96(%0); vmovaps %%ymm5, 128(%0);"
      "vextracti128 $1, %%ymm5, 160(%0); vextractf128 $0, %%ymm14, 176(%0);"
      "vmovlps %%xmm5, 192(%0); vmovhps %%xmm5, 200(%0); vmovd %%xmm5, 208(%0);"
      "vmovq %%xmm14, 216(%0); vmovss %%xmm5, 224(%0); vmovsd %%xmm14, 232(%0);"
      "vpextrb $3, %%xmm5, 240(%0); vpextrw $2, %%xmm14, 242(%0); vpextrd $1, %%xmm5, 244(%0);"
      "pextrq $1, %%xmm14, 248(%0); vzeroupper" ::"r"(at),
      "r"(bytes)
      : "memory", "xmm5", "xmm14");
}

TEST_F(VectorStores, StoresByAvxAreKnown) {
  if (__builtin_cpu_supports("avx2") == 0) GTEST_SKIP() << "this processor has no AVX2";
  u8* const at = map_region(0, kPageSize);
  const auto bytes = pattern();
  alignas(32) u8 native[256] = {};
  store_by_avx(native, bytes.data());
  store_by_avx(at, bytes.data());
  for (size_t i = 0; i < sizeof(native); ++i) ASSERT_EQ(at[i], native[i]) << i;
}

[[gnu::target("avx512f,avx512bw,avx512vl,avx512dq")]] void store_by_avx512(u8* at,
                                                                           const u8* bytes) {
  asm volatile(
      "vmovdqu64 (%1), %%zmm3; vmovdqu64 64(%1), %%zmm21; vmovdqu64 64(%1), %%ymm29;"
      "movq %2, %%rax; kmovq %%rax, %%k3;"
      "vmovdqu64 %%zmm3, (%0); vmovntdq %%zmm21, 64(%0); vmovdqu8 %%ymm29, 128(%0);"
      "vmovdqu64 %%xmm21, 160(%0); vmovups %%xmm29, 192(%0); vmovdqu8 %%zmm21, 256(%0)%{%%k3%};"
      "vmovdqu32 %%zmm3, 320(%0)%{%%k3%}; vmovapd %%ymm29, 384(%0)%{%%k3%};"
      "vextracti32x4 $3, %%zmm3, 416(%0); vextracti64x4 $1, %%zmm21, 432(%0);"
      "vmovsd %%xmm29, 472(%0); vmovd %%xmm21, 484(%0); vpextrw $5, %%xmm29, 490(%0);"
      "vmovss %%xmm21, 496(%0)%{%%k3%}; vzeroupper" ::"r"(at),
      "r"(bytes), "r"(0x8001'0f0f'1234'5677)
      : "memory", "rax", "xmm3", "xmm21", "xmm29", "k3");
}

TEST_F(VectorStores, StoresByAvx512AreKnownAndObeyTheirMasks) {
  if (__builtin_cpu_supports("avx512bw") == 0 || __builtin_cpu_supports("avx512vl") == 0) {
    GTEST_SKIP() << "this processor has no AVX-512";
  }
  u8* const at = map_region(0, kPageSize);
  const auto bytes = pattern();
  alignas(64) u8 native[512] = {};
  store_by_avx512(native, bytes.data());
  store_by_avx512(at, bytes.data());
  for (size_t i = 0; i < sizeof(native); ++i) ASSERT_EQ(at[i], native[i]) << i;
  ASSERT_NE(native[256], 0);
  ASSERT_EQ(native[259], 0) << "the mask leaves some out";
}

}  // namespace
}  // namespace stagetwo
