// SPDX-License-Identifier: Apache-2.0
// The yardstick itself: the host's processor as an executor of test sequences.

#include "tests/support/twin/native_cpu.h"

#include <gtest/gtest.h>

#include <cstring>
#include <initializer_list>

#include "tests/support/twin/differ.h"

namespace stagetwo::twin {
namespace {

class NativeCpuTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string reason;
    if (!cpu_.open(&reason)) GTEST_SKIP() << reason;
    start_.rip = kCode;
    start_.rflags = 0x202;
    start_.gpr[vcpu::kRsp] = kStack + 0x800;
  }
  CpuEnd run(std::initializer_list<int> bytes) {
    std::vector<u8> code;
    for (const int byte : bytes) code.push_back(static_cast<u8>(byte));
    code.push_back(0xe9);
    const auto distance = static_cast<u32>(kExit - (kCode + code.size() + 4));
    for (unsigned i = 0; i < 4; ++i) code.push_back(static_cast<u8>(distance >> (8 * i)));
    std::memcpy(cpu_.code().data(), code.data(), code.size());
    return cpu_.run(start_);
  }

  NativeCpu cpu_;
  CpuImage start_;
};

TEST_F(NativeCpuTest, ReturnsWhatAnInstructionDid) {
  start_.gpr[vcpu::kRax] = ~u64{0};
  start_.gpr[vcpu::kRcx] = 1;
  const CpuEnd end = run({0x48, 0x01, 0xc8});  // add rax, rcx
  EXPECT_EQ(end.vector, -1);
  EXPECT_EQ(end.image.rip, kExit);
  EXPECT_EQ(end.image.gpr[vcpu::kRax], 0u);
  EXPECT_EQ(end.image.rflags, 0x257u);
}

TEST_F(NativeCpuTest, TurnsSignalsBackIntoExceptions) {
  EXPECT_EQ(run({0x48, 0xf7, 0xf1}).vector, 0);  // div rcx
  EXPECT_EQ(run({0xcc}).vector, 3);
  EXPECT_EQ(run({0x0f, 0x0b}).vector, 6);
  EXPECT_EQ(run({0xf4}).vector, 13);
  EXPECT_EQ(run({0xcd, 0x55}).error, 0x55u * 8 + 2);  // int 0x55
  start_.gpr[vcpu::kRbx] = kScratch + kScratchSize - 3;
  const CpuEnd page_fault = run({0x48, 0x8b, 0x03});  // mov rax, [rbx]
  EXPECT_EQ(page_fault.vector, 14);
  EXPECT_EQ(page_fault.cr2, kScratch + kScratchSize);
  start_.mxcsr = 0;
  EXPECT_EQ(run({0x0f, 0x5e, 0xc0}).vector, 19);  // divps xmm0, xmm0
}

TEST_F(NativeCpuTest, LendsItsSegmentBases) {
  start_.fs_base = kScratch;
  cpu_.scratch()[8] = 0x77;
  const CpuEnd end = run({0x64, 0x8a, 0x04, 0x25, 8, 0, 0, 0});  // mov al, fs:[8]
  EXPECT_EQ(end.image.gpr[vcpu::kRax], 0x77u);
  EXPECT_EQ(end.image.fs_base, kScratch);
}

// Each sequence twice from the same state: whatever differs is a flaw of generator or harness, such
// as a result that the architecture leaves open and time decides.
TEST_F(NativeCpuTest, AgreesWithItself) {
  std::vector<u8> scratch(kScratchSize), stack(kStackSize), after(kScratchSize),
      after_stack(kStackSize);
  const World first{cpu_.code(), cpu_.scratch(), cpu_.stack(),
                    [&](const CpuImage& start, CpuEnd* end, std::string*) {
                      *end = cpu_.run(start);
                      std::memcpy(after.data(), cpu_.scratch().data(), kScratchSize);
                      std::memcpy(after_stack.data(), cpu_.stack().data(), kStackSize);
                      return true;
                    }};
  const World second{cpu_.code(), scratch, stack,
                     [&](const CpuImage& start, CpuEnd* end, std::string*) {
                       std::memcpy(cpu_.scratch().data(), scratch.data(), kScratchSize);
                       std::memcpy(cpu_.stack().data(), stack.data(), kStackSize);
                       *end = cpu_.run(start);
                       std::memcpy(scratch.data(), cpu_.scratch().data(), kScratchSize);
                       std::memcpy(stack.data(), cpu_.stack().data(), kStackSize);
                       std::memcpy(cpu_.scratch().data(), after.data(), kScratchSize);
                       std::memcpy(cpu_.stack().data(), after_stack.data(), kStackSize);
                       return true;
                     }};
  RandomSource random(test::announced_seed("native_cpu_test"));
  Differ differ(first, second);
  SequenceGenerator generator(random);
  Coverage coverage;
  const auto is_last = [&](u16 row) { return coverage.fatal(row); };
  for (unsigned i = 0; i < 20000; ++i) {
    Sequence sequence = generator.sequence(coverage.rows(), is_last);
    if (differ.difference(sequence, &coverage).empty()) continue;
    differ.shrink(sequence);
    FAIL() << differ.describe(sequence);
  }
  std::printf("20000 sequences, %llu ended in an exception\n",
              static_cast<unsigned long long>(differ.faulted()));
}

}  // namespace
}  // namespace stagetwo::twin
