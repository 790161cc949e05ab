// SPDX-License-Identifier: Apache-2.0
// The bodies of real libcs, byte for byte, and what must not be taken for one.
#include "base/arch/syscall_site.h"

#include <gtest/gtest.h>

#include <vector>

namespace stagetwo::arch {
namespace {

using Bytes = std::vector<u8>;

// glibc 2.36, Debian 12: munmap.
const Bytes kMunmap = {0xb8, 0x0b, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0,
                       0xff, 0xff, 0x73, 0x01, 0xc3, 0x48, 0x8b, 0x0d, 0xc9, 0x13, 0x0d,
                       0x00, 0xf7, 0xd8, 0x64, 0x89, 0x01, 0x48, 0x83, 0xc8, 0xff, 0xc3};

// The same built for control-flow enforcement.
Bytes with_endbr() {
  Bytes code = {0xf3, 0x0f, 0x1e, 0xfa};
  code.insert(code.end(), kMunmap.begin(), kMunmap.end());
  return code;
}

// glibc 2.36: mmap tests its offset first.
const Bytes kMmap = {0x41, 0x89, 0xca, 0x41, 0xf7, 0xc1, 0xff, 0x0f, 0x00, 0x00, 0x75, 0x14,
                     0xb8, 0x09, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x48, 0x3d, 0x00, 0xf0, 0xff,
                     0xff, 0x77, 0x25, 0xc3, 0x0f, 0x1f, 0x40, 0x00, 0x48, 0x8b, 0x05, 0x19,
                     0x14, 0x0d, 0x00, 0x64, 0xc7, 0x00, 0x16, 0x00, 0x00, 0x00, 0x48, 0xc7,
                     0xc0, 0xff, 0xff, 0xff, 0xff, 0xc3, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00,
                     0x00, 0x00, 0x00, 0x00, 0x48, 0x8b, 0x15, 0xf9, 0x13, 0x0d, 0x00, 0xf7,
                     0xd8, 0x64, 0x89, 0x02, 0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xc3};

// glibc 2.36: the head of mremap, which branches back to the site.
const Bytes kMremapHead = {0x48, 0x83, 0xec, 0x58, 0x4c, 0x89, 0x44, 0x24, 0x40, 0x64, 0x48, 0x8b,
                           0x04, 0x25, 0x28, 0x00, 0x00, 0x00, 0x48, 0x89, 0x44, 0x24, 0x18, 0x31,
                           0xc0, 0x83, 0xf9, 0x07, 0x77, 0x5a, 0x41, 0x89, 0xca, 0x45, 0x31, 0xc0,
                           0xf6, 0xc1, 0x06, 0x75, 0x27, 0xb8, 0x19, 0x00, 0x00, 0x00, 0x0f, 0x05,
                           0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff, 0x77, 0x58};

auto find(const Bytes& code, u32 number) {
  return find_syscall_site(code.data(), code.size(), number);
}

TEST(SyscallSite, IsFoundInASmallFunction) {
  const auto site = find(kMunmap, 11);
  ASSERT_TRUE(site);
  EXPECT_EQ(site->jump, 0u);
  EXPECT_EQ(site->after, 7u);
}
TEST(SyscallSite, IsFoundBehindALandingPad) {
  const auto site = find(with_endbr(), 11);
  ASSERT_TRUE(site);
  EXPECT_EQ(site->jump, 4u);
  EXPECT_EQ(site->after, 11u);
}
TEST(SyscallSite, IsFoundBehindATestAndInAFrame) {
  ASSERT_TRUE(find(kMmap, 9));
  EXPECT_EQ(find(kMmap, 9)->jump, 12u);
  ASSERT_TRUE(find(kMremapHead, 25));
  EXPECT_EQ(find(kMremapHead, 25)->after, 48u);
}
TEST(SyscallSite, OfAnotherNumberIsNone) {
  EXPECT_FALSE(find(kMunmap, 12));
}
TEST(SyscallSite, IsNotGuessedWhereAnInstructionIsUnknown) {
  Bytes code = kMunmap;
  code.insert(code.end(), {0x0f, 0x10, 0x00});  // movups
  EXPECT_FALSE(find(code, 11));
}
TEST(SyscallSite, IsNotTakenFromAFunctionSomebodyPatched) {
  Bytes code = kMunmap;
  code[0] = 0xe9;  // their jump
  EXPECT_FALSE(find(code, 11));
  code[0] = 0xcc;  // a debugger's
  EXPECT_FALSE(find(code, 11));
}
TEST(SyscallSite, IsNotTakenWhenABranchLeadsIntoIt) {
  for (int offset = 1; offset < 7; ++offset) {
    Bytes code = kMunmap;
    code.insert(code.end(), {0xeb, static_cast<u8>(offset - 35)});
    EXPECT_FALSE(find(code, 11)) << offset;
  }
  Bytes to_its_head = kMunmap;
  to_its_head.insert(to_its_head.end(), {0xeb, static_cast<u8>(-35)});
  EXPECT_TRUE(find(to_its_head, 11));
}
TEST(SyscallSite, IsNotTakenWhenThereAreTwo) {
  Bytes code = kMunmap;
  code.insert(code.end(), kMunmap.begin(), kMunmap.end());
  EXPECT_FALSE(find(code, 11));
}
TEST(SyscallSite, NeedsAnInstructionBehindIt) {
  EXPECT_FALSE(find(Bytes(kMunmap.begin(), kMunmap.begin() + 7), 11));
}
// Whatever the bytes are, nothing beyond them is read (the sanitizers watch) and nothing is found
// that does not stand there.
TEST(SyscallSite, OfCutCodeIsNone) {
  for (const Bytes& whole : {kMunmap, kMmap, kMremapHead}) {
    for (size_t size = 0; size < whole.size(); ++size) {
      const Bytes code(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
      const auto site = find(code, whole == kMunmap ? 11 : whole == kMmap ? 9 : 25);
      if (site) {
        EXPECT_LT(site->after, size);
      }
    }
  }
}

TEST(Jump, ReachesTwoGibibytesAndNoFurther) {
  const auto jump = encode_jump(0x1000, 0x1005);
  ASSERT_TRUE(jump);
  EXPECT_EQ(*jump, (std::array<u8, 5>{0xe9, 0, 0, 0, 0}));
  EXPECT_TRUE(encode_jump(u64{1} << 40, (u64{1} << 40) + (u64{1} << 31) + 4));
  EXPECT_FALSE(encode_jump(u64{1} << 40, (u64{1} << 40) + (u64{1} << 31) + 5));
  EXPECT_FALSE(encode_jump(u64{1} << 40, 0));
}

}  // namespace
}  // namespace stagetwo::arch
