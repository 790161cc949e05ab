// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

constexpr u64 kHole = 0x300000;      // linear
constexpr u64 kDevice = 0x40000000;  // physical: no slot

class MmioGuest : public Guest {
 public:
  MmioGuest() {
    long_mode();
    write<u64>(kTables + 0x3000 + 8 * (kHole >> 12), kDevice | 3);
    write<u64>(kTables + 0x3008 + 8 * (kHole >> 12), (kDevice + 0x1000) | 3);
    reg(kRbx) = kHole;
  }
};

u64 data_of(const Exit& exit) {
  u64 value;
  std::memcpy(&value, exit.mmio.data, 8);
  return value;
}

TEST(Mmio, ReadWaitsForTheClientAndRestartsTheInstruction) {
  MmioGuest g;
  g.code({0x48, 0x8b, 0x03, 0x03, 0x43, 0x08, 0xf4});  // mov rax, [rbx]; add eax, [rbx+8]; hlt
  const Exit* exit = &g.run();
  ASSERT_EQ(exit->kind, ExitKind::kMmio);
  EXPECT_EQ(exit->mmio.gpa, Gpa(kDevice));
  EXPECT_EQ(exit->mmio.len, 8u);
  EXPECT_FALSE(exit->mmio.write);
  EXPECT_EQ(g.state().rip, kCode);
  exit = &g.run_with_mmio(0x1111111122222222);
  ASSERT_EQ(exit->kind, ExitKind::kMmio);
  EXPECT_EQ(g.reg(kRax), 0x1111111122222222u);
  EXPECT_EQ(exit->mmio.len, 4u);
  ASSERT_EQ(g.run_with_mmio(3).kind, ExitKind::kHlt);
  EXPECT_EQ(g.reg(kRax), 0x22222225u);
}

TEST(Mmio, WriteIsReportedWithTheInstructionDone) {
  MmioGuest g;
  g.code({0x48, 0x89, 0x03, 0x90, 0xf4});  // mov [rbx], rax; nop; hlt
  g.reg(kRax) = 0x1122334455667788;
  const Exit& exit = g.run();
  ASSERT_EQ(exit.kind, ExitKind::kMmio);
  EXPECT_TRUE(exit.mmio.write);
  EXPECT_EQ(exit.mmio.len, 8u);
  EXPECT_EQ(data_of(exit), 0x1122334455667788u);
  EXPECT_EQ(g.state().rip, kCode + 3);
  g.run_to_hlt();
}

TEST(Mmio, ReadModifyWriteIsAReadThenAWrite) {
  MmioGuest g;
  g.code({0x83, 0x03, 0x05, 0xf4});  // add dword [rbx], 5; hlt
  ASSERT_EQ(g.run().kind, ExitKind::kMmio);
  const Exit& exit = g.run_with_mmio(0xfffffffe);
  ASSERT_EQ(exit.kind, ExitKind::kMmio);
  EXPECT_TRUE(exit.mmio.write);
  EXPECT_EQ(exit.mmio.len, 4u);
  EXPECT_EQ(data_of(exit), 3u);
  g.run_to_hlt();
  EXPECT_NE(g.state().rflags & rflags::kCf, 0u);
}

TEST(Mmio, AccessAcrossAPageIsTwoFragments) {
  MmioGuest g;
  g.code({0x48, 0x8b, 0x03, 0xf4});
  g.reg(kRbx) = kHole + 0xffd;
  const Exit* exit = &g.run();
  ASSERT_EQ(exit->kind, ExitKind::kMmio);
  EXPECT_EQ(exit->mmio.len, 3u);
  exit = &g.run_with_mmio(0x332211);
  ASSERT_EQ(exit->kind, ExitKind::kMmio);
  EXPECT_EQ(exit->mmio.gpa, Gpa(kDevice + 0x1000));
  EXPECT_EQ(exit->mmio.len, 5u);
  ASSERT_EQ(g.run_with_mmio(0x8877665544).kind, ExitKind::kHlt);
  EXPECT_EQ(g.reg(kRax), 0x8877665544332211u);
}

TEST(Mmio, ImmediateExitFinishesTheRead) {
  MmioGuest g;
  g.code({0x48, 0x8b, 0x03, 0xf4});
  ASSERT_EQ(g.run().kind, ExitKind::kMmio);
  u64 data = 77;
  RunRequest request;
  request.immediate_exit = true;
  request.completion.mmio_data = reinterpret_cast<const u8*>(&data);
  const Exit& exit = g.run(request);
  EXPECT_EQ(exit.kind, ExitKind::kInterrupted);
  EXPECT_TRUE(exit.immediate);
  EXPECT_EQ(g.reg(kRax), 77u);
  EXPECT_EQ(g.state().rip, kCode + 3);
}

TEST(Mmio, RepStosReportsEachElement) {
  MmioGuest g;
  g.code({0xf3, 0xaa, 0xf4});  // rep stosb; hlt
  g.reg(kRdi) = kHole;
  g.reg(kRcx) = 3;
  g.reg(kRax) = 0xab;
  for (u64 i = 0; i < 3; ++i) {
    const Exit& exit = g.run();
    ASSERT_EQ(exit.kind, ExitKind::kMmio) << i;
    EXPECT_EQ(exit.mmio.gpa, Gpa(kDevice + i));
    EXPECT_EQ(data_of(exit), 0xabu);
  }
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRcx), 0u);
}

TEST(Mmio, InstructionOutsideTheExecutorIsAnEmulationFailureWithItsBytes) {
  MmioGuest g;
  g.policy.exit_on_emulation_failure = true;
  g.code({0xd9, 0x03, 0xf4});  // fld dword [rbx]
  const Exit& exit = g.run();
  ASSERT_EQ(exit.kind, ExitKind::kInternalError);
  EXPECT_EQ(exit.internal.suberror, 1u);
  EXPECT_GE(exit.internal.ndata, 3u);
  EXPECT_EQ(exit.internal.data[0], 1u);
  u8 image[16];
  std::memcpy(image, &exit.internal.data[1], 16);
  EXPECT_GE(image[0], 2);
  EXPECT_EQ(image[1], 0xd9);
  EXPECT_EQ(image[2], 0x03);
  EXPECT_EQ(g.state().rip, kCode);
  g.state().rip += 2;
  g.cpu().registers_changed();
  g.run_to_hlt();
}

TEST(Mmio, FetchFromNowhereIsAnEmulationFailure) {
  MmioGuest g;
  g.state().rip = kHole;
  const Exit& exit = g.run();
  EXPECT_EQ(exit.kind, ExitKind::kInternalError);
  EXPECT_EQ(g.state().rip, kHole);
}

TEST(Mmio, VanishedHostMemoryIsABareEfault) {
  Guest g;
  g.long_mode();
  void* page = mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  g.add_slot(1, kDevice, kPageSize, page);
  ASSERT_EQ(mprotect(page, kPageSize, PROT_NONE), 0);
  g.write<u64>(kTables + 0x3000 + 8 * (kHole >> 12), kDevice | 3);
  g.reg(kRbx) = kHole;
  g.code({0x48, 0x8b, 0x03, 0xf4});
  const Exit& exit = g.run();
  EXPECT_EQ(exit.kind, ExitKind::kUnknown);
  EXPECT_EQ(exit.error, EFAULT);
  EXPECT_EQ(g.state().rip, kCode);
  munmap(page, kPageSize);
}

TEST(Mmio, WriteToAReadonlySlotIsMmioAndAReadIsMemory) {
  Guest g;
  g.long_mode();
  void* page = mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  g.add_slot(1, kDevice, kPageSize, page, stage2::kReadonly);
  g.write<u64>(kTables + 0x3000 + 8 * (kHole >> 12), kDevice | 3);
  *static_cast<u64*>(page) = 42;
  g.reg(kRbx) = kHole;
  g.code({0x48, 0x8b, 0x03, 0x48, 0x89, 0x0b, 0xf4});  // mov rax, [rbx]; mov [rbx], rcx; hlt
  const Exit& exit = g.run();
  ASSERT_EQ(exit.kind, ExitKind::kMmio);
  EXPECT_TRUE(exit.mmio.write);
  EXPECT_EQ(g.reg(kRax), 42u);
  g.run_to_hlt();
  EXPECT_EQ(*static_cast<u64*>(page), 42u);
  munmap(page, kPageSize);
}

}  // namespace
}  // namespace stagetwo::vcpu::testing
