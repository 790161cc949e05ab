// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

constexpr u64 kHandler = 0x3000;
constexpr u64 kVictim = 0x280000;  // linear page the tests play with
constexpr u64 kVictimPte = kTables + 0x3000 + 8 * (kVictim >> 12);
constexpr u64 kAccessed = 0x20, kDirty = 0x40;

class PagingGuest : public Guest {
 public:
  explicit PagingGuest(bool user = false) {
    long_mode(user);
    gate(14, kHandler);
    code({0x58, 0x0f, 0x20, 0xd1, 0xf4}, kHandler);  // pop rax; mov rcx, cr2; hlt
    reg(kRbx) = kVictim;
  }
  void pte(u64 value) { write<u64>(kVictimPte, value); }
  u64 pte() { return read<u64>(kVictimPte); }
  // Runs code that must fault; returns the error code.
  u64 error_of(const Bytes& bytes) {
    code(bytes);
    EXPECT_EQ(run().kind, ExitKind::kHlt);
    EXPECT_EQ(state().rip, kHandler + 5) << "no page fault";
    EXPECT_EQ(reg(kRcx), kVictim);
    return reg(kRax);
  }
};

const Bytes kLoad = {0x48, 0x8b, 0x03, 0xf4};   // mov rax, [rbx]; hlt
const Bytes kStore = {0x48, 0x89, 0x03, 0xf4};  // mov [rbx], rax; hlt
const Bytes kCall = {0xff, 0xe3, 0xf4};         // jmp rbx

TEST(Paging, ReadSetsAccessedAndWriteSetsDirty) {
  PagingGuest g;
  g.code({0x48, 0x8b, 0x03, 0x48, 0x89, 0x03, 0xf4});
  g.pte(kVictim | 3);
  g.code(kLoad);
  g.run_to_hlt();
  EXPECT_EQ(g.pte(), kVictim | 3 | kAccessed);
  g.state().rip = kCode;
  g.code(kStore);
  g.run_to_hlt();
  EXPECT_EQ(g.pte(), kVictim | 3 | kAccessed | kDirty);
  EXPECT_NE(g.read<u64>(kTables) & kAccessed, 0u);
}

TEST(Paging, ErrorCodesSayPresentWriteUserReservedFetch) {
  struct Case {
    const char* name;
    bool user;
    u64 pte;
    const Bytes& code;
    u64 error;
  };
  const Case cases[] = {
      {"absent read", false, 0, kLoad, 0},
      {"absent write", false, 0, kStore, 2},
      {"read-only", false, kVictim | 1, kStore, 3},
      {"absent, user", true, 0, kLoad, 4},
      {"supervisor page, user", true, kVictim | 3, kLoad, 5},
      {"supervisor page, user write", true, kVictim | 3, kStore, 7},
      {"no execute", false, kVictim | 3 | u64{1} << 63, kCall, 0x11},
      {"absent fetch", false, 0, kCall, 0x10},
      {"reserved address bit", false, kVictim | 3 | u64{1} << 50, kLoad, 9},
      {"reserved address bit, write", false, kVictim | 3 | u64{1} << 50, kStore, 0xb},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    PagingGuest g(c.user);
    g.pte(c.pte);
    EXPECT_EQ(g.error_of(c.code), c.error);
  }
}

// Bit 40 is an address bit of the processor, and beyond the guest's CPUID.
class NarrowGuest : public PagingGuest {
 public:
  NarrowGuest() {
    policy.physical_width = 48;
    policy.exit_on_emulation_failure = true;
    const CpuidEntry table[] = {{0x80000000, 0, 0, 0x80000008, 0, 0, 0},
                                {0x80000001, 0, 0, 0, 0, 0, 0x20100800},
                                {0x80000008, 0, 0, 0x3024, 0, 0, 0}};
    EXPECT_TRUE(cpu().set_cpuid(table).has_value());
  }
};

const Bytes kFld = {0xd9, 0x03, 0xf4};  // fld dword [rbx]; hlt

TEST(Paging, AnAddressBitBeyondTheGuestsWidthIsReservedForWhatTheKernelEmulates) {
  NarrowGuest g;
  g.pte(kVictim | 3 | u64{1} << 40);
  EXPECT_EQ(g.error_of(kLoad), 9u);
}

TEST(Paging, AnAddressBitBeyondTheGuestsWidthFailsToEmulateWhatTheKernelDoesNotKnow) {
  NarrowGuest g;
  g.pte(kVictim | 3 | u64{1} << 40);
  g.code(kFld);
  const Exit& exit = g.run();
  ASSERT_EQ(exit.kind, ExitKind::kInternalError);
  EXPECT_EQ(exit.internal.suberror, 1u);
  u8 image[16];
  std::memcpy(image, &exit.internal.data[1], 16);
  EXPECT_EQ(image[1], 0xd9);
  EXPECT_EQ(image[2], 0x03);
  EXPECT_EQ(g.state().rip, kCode);
  g.state().rip += 2;
  g.cpu().registers_changed();
  g.run_to_hlt();
}

TEST(Paging, AnAddressBitBeyondTheProcessorsWidthIsReservedForEveryInstruction) {
  NarrowGuest g;
  g.pte(kVictim | 3 | u64{1} << 50);
  EXPECT_EQ(g.error_of(kFld), 9u);
}

TEST(Paging, NxBitIsReservedWithoutEferNx) {
  PagingGuest g;
  SystemState sys = g.state().sys;
  sys.efer &= ~efer::kNx;
  ASSERT_TRUE(g.cpu().set_system_state(sys).has_value());
  g.pte(kVictim | 3 | u64{1} << 63);
  EXPECT_EQ(g.error_of(kLoad), 9u);
}

TEST(Paging, SupervisorWritesReadOnlyPagesWithoutWp) {
  PagingGuest g;
  SystemState sys = g.state().sys;
  sys.cr0 &= ~cr0::kWp;
  ASSERT_TRUE(g.cpu().set_system_state(sys).has_value());
  g.pte(kVictim | 1);
  g.code(kStore);
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, kCode + 4);
}

class UserPageGuest : public PagingGuest {
 public:
  explicit UserPageGuest(u64 cr4_bit) {
    for (u64 table : {kTables, kTables + 0x1000, kTables + 0x2008}) {
      write<u64>(table, read<u64>(table) | 4);
    }
    SystemState sys = state().sys;
    sys.cr4 |= cr4_bit;
    EXPECT_TRUE(cpu().set_system_state(sys).has_value());
    pte(kVictim | 7);
  }
};

TEST(Paging, SmepForbidsFetchFromUserPages) {
  UserPageGuest g(cr4::kSmep);
  EXPECT_EQ(g.error_of(kCall), 0x11u);
}

TEST(Paging, SmapForbidsDataOfUserPagesUnlessAcIsSet) {
  UserPageGuest g(cr4::kSmap);
  EXPECT_EQ(g.error_of(kLoad), 1u);
  UserPageGuest h(cr4::kSmap);
  h.code({0x0f, 0x01, 0xcb, 0x48, 0x8b, 0x03, 0xf4});  // stac; mov rax, [rbx]; hlt
  h.run_to_hlt();
  EXPECT_EQ(h.state().rip, kCode + 7);
}

TEST(Paging, TwoMegabyteAndOneGigabytePagesTranslate) {
  PagingGuest g;
  g.write<u64>(kTables + 0x2010, 0x200000 | 0x83);  // linear 4 MiB -> 2 MiB
  g.write<u64>(kTables + 0x1008, 0 | 0x83);         // linear 1 GiB -> 0
  g.write<u64>(0x201238, 0x1234);
  g.reg(kRbx) = 0x401238;
  g.code(kLoad);
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 0x1234u);
  g.state().rip = kCode;
  g.reg(kRbx) = 0x40201238;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 0x1234u);
  EXPECT_NE(g.read<u64>(kTables + 0x1008) & kAccessed, 0u);
}

TEST(Paging, LargePageWithReservedBitsFaults) {
  PagingGuest g;
  g.write<u64>(kTables + 0x2010, 0x202000 | 0x83);
  g.reg(kRbx) = 0x401000;
  g.code(kLoad);
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 9u);
}

TEST(Paging, FiveLevelsTranslate) {
  PagingGuest g;
  g.write<u64>(kTables + 0x8000, kTables | 3);
  SystemState sys = g.state().sys;
  sys.cr3 = kTables + 0x8000;
  sys.cr4 |= cr4::kLa57;
  ASSERT_TRUE(g.cpu().set_system_state(sys).has_value());
  g.pte(kVictim | 3);
  g.write<u64>(kVictim, 99);
  g.code(kLoad);
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 99u);
}

TEST(Paging, InvlpgForgetsAndOtherwiseTheTranslationStays) {
  PagingGuest g;
  g.pte(kVictim | 3);
  g.write<u64>(kVictim, 1);
  g.write<u64>(kVictim + 0x1000, 2);
  // mov rax, [rbx]; mov [rsi], rdi; invlpg [rbx]; mov rdx, [rbx]; hlt
  g.code({0x48, 0x8b, 0x03, 0x48, 0x89, 0x3e, 0x0f, 0x01, 0x3b, 0x48, 0x8b, 0x13, 0xf4});
  g.reg(kRsi) = kVictimPte;
  g.reg(kRdi) = (kVictim + 0x1000) | 3;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 1u);
  EXPECT_EQ(g.reg(kRdx), 2u);
}

TEST(Paging, TableInNoSlotReadsAsNotPresent) {
  PagingGuest g;
  g.write<u64>(kTables + 0x2008, 0x7000000000 | 3);
  EXPECT_EQ(g.error_of(kLoad), 0u);
}

// Two pages that are neighbours by their linear addresses only. Where the second was used last, an
// access that ends in it has begun in the first all the same.
TEST(Paging, AnAccessAcrossPagesIsOfBothBehindOneOfTheSecond) {
  constexpr u64 kFirst = 0x300000, kSecond = 0x310000;
  PagingGuest g;
  g.pte(kFirst | 3);
  g.write<u64>(kVictimPte + 8, kSecond | 3);
  g.write<u32>(kFirst + 0xffc, 0x11111111);
  g.write<u32>(kSecond, 0x22222222);
  g.write<u32>(kSecond - 4, 0xbad);
  g.reg(kRcx) = 0x0000000100000001;
  g.code({0x48, 0x8b, 0x83, 0x00, 0x10, 0x00, 0x00,        // mov rax, [rbx+0x1000], a miss
          0x48, 0x8b, 0x83, 0x00, 0x10, 0x00, 0x00,        // and a hit
          0x48, 0x8b, 0x93, 0xfc, 0x0f, 0x00, 0x00,        // mov rdx, [rbx+0xffc]
          0x48, 0x89, 0x83, 0x00, 0x10, 0x00, 0x00,        // mov [rbx+0x1000], rax
          0x48, 0x89, 0x83, 0x00, 0x10, 0x00, 0x00,        //
          0x48, 0x01, 0x8b, 0xfc, 0x0f, 0x00, 0x00,        // add [rbx+0xffc], rcx
          0x48, 0x89, 0x83, 0x00, 0x10, 0x00, 0x00,        //
          0xf0, 0x48, 0x01, 0x8b, 0xfc, 0x0f, 0x00, 0x00,  // lock add [rbx+0xffc], rcx
          0x66, 0x89, 0x83, 0xff, 0x0f, 0x00, 0x00,        // mov [rbx+0xfff], ax
          0xf4});
  g.write<u16>(kSecond + 4, 0x9999);
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRdx), 0x2222222211111111u);
  EXPECT_EQ(g.reg(kRax), 0x999922222222u);
  EXPECT_EQ(g.read<u32>(kFirst + 0xffc), 0x22111113u);
  EXPECT_EQ(g.read<u32>(kSecond), 0x22222222u);
  EXPECT_EQ(g.read<u32>(kSecond - 4), 0xbadu);
}

TEST(Paging, StoreAcrossPagesChangesNothingIfTheSecondFaults) {
  PagingGuest g;
  g.pte(0);
  g.write<u64>(kVictim - 8, 0x5555555555555555);
  g.reg(kRbx) = kVictim - 4;
  g.reg(kRax) = ~u64{0};
  EXPECT_EQ(g.error_of(kStore), 2u);
  EXPECT_EQ(g.read<u64>(kVictim - 8), 0x5555555555555555u);
}

TEST(Paging, TranslateWalksWithoutSettingBits) {
  PagingGuest g;
  g.pte(0x5000 | 3);
  Gpa gpa;
  ASSERT_TRUE(g.cpu().translate(Gva(kVictim + 0x123), &gpa));
  EXPECT_EQ(gpa, Gpa(0x5123));
  EXPECT_EQ(g.pte(), 0x5000u | 3);
  EXPECT_FALSE(g.cpu().translate(Gva(0x700000), &gpa));
}

}  // namespace
}  // namespace stagetwo::vcpu::testing
