// SPDX-License-Identifier: Apache-2.0
// What the decoder promises, one named case each; the breadth is in decoder_zydis_test.cc.

#include "vcpu/decoder.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <vector>

#include "tests/support/insn_bytes.h"
#include "tests/support/random_source.h"
#include "vcpu/opcode_table.h"

namespace stagetwo::vcpu {
namespace {

using Bytes = std::initializer_list<std::uint8_t>;

DecodeStatus status_of(Bytes bytes, Mode mode = Mode::k64) {
  Insn insn;
  return decode(std::span(bytes.begin(), bytes.size()), mode, &insn);
}

Insn decoded(Bytes bytes, Mode mode = Mode::k64) {
  Insn insn;
  EXPECT_EQ(decode(std::span(bytes.begin(), bytes.size()), mode, &insn), DecodeStatus::kOk);
  EXPECT_EQ(insn.length, bytes.size());
  return insn;
}

TEST(Decoder, PutsTheDestinationFirst) {
  const Insn insn = decoded({0x48, 0x89, 0xd8});  // mov rax, rbx
  EXPECT_EQ(insn.op, Op::kMov);
  ASSERT_EQ(insn.operand_count, 2);
  EXPECT_EQ(insn.operand[0].kind, OperandKind::kGpr);
  EXPECT_EQ(insn.operand[0].reg, 0);
  EXPECT_EQ(insn.operand[1].reg, 3);
  EXPECT_EQ(insn.operand_size, 8);
}

TEST(Decoder, TellsHighBytesFromTheNewLowOnesByRex) {
  const Insn high = decoded({0x88, 0xe0});  // mov al, ah
  EXPECT_EQ(high.operand[1].kind, OperandKind::kGprHigh);
  EXPECT_EQ(high.operand[1].reg, 0);
  const Insn low = decoded({0x40, 0x88, 0xe0});  // mov al, spl
  EXPECT_EQ(low.operand[1].kind, OperandKind::kGpr);
  EXPECT_EQ(low.operand[1].reg, 4);
}

TEST(Decoder, CountsARexPrefixOnlyDirectlyBeforeTheOpcode) {
  EXPECT_EQ(decoded({0x48, 0x66, 0x89, 0xd8}).operand_size, 2);
  EXPECT_EQ(decoded({0x66, 0x48, 0x89, 0xd8}).operand_size, 8);
}

TEST(Decoder, ResolvesSibWithAndWithoutBase) {
  const Insn full = decoded({0x4a, 0x8b, 0x44, 0xa3, 0xf8});  // mov rax, [rbx + r12*4 - 8]
  EXPECT_EQ(full.mem.base, 3);
  EXPECT_EQ(full.mem.index, 12);
  EXPECT_EQ(full.mem.scale, 4);
  EXPECT_EQ(full.mem.disp, -8);
  const Insn bare = decoded({0x8b, 0x04, 0x25, 0x00, 0x10, 0x00, 0x80});
  EXPECT_EQ(bare.mem.base, kNoReg);
  EXPECT_EQ(bare.mem.index, kNoReg);
  EXPECT_EQ(bare.mem.disp, -0x7ffff000);
}

TEST(Decoder, HasNoBaseForSibBase5WithMod0WhateverRexBSays) {
  EXPECT_EQ(decoded({0x41, 0x8b, 0x04, 0x35, 0, 0, 0, 0}).mem.base, kNoReg);
}

TEST(Decoder, AddressesRelativeToRipIn64BitModeOnly) {
  const Bytes bytes = {0x8b, 0x05, 0x10, 0x00, 0x00, 0x00};
  EXPECT_EQ(decoded(bytes).mem.base, kRipBase);
  EXPECT_EQ(decoded(bytes, Mode::k32).mem.base, kNoReg);
}

TEST(Decoder, KnowsTheSixteenBitAddressForms) {
  const Insn insn = decoded({0x8b, 0x42, 0xff}, Mode::k16);  // mov ax, [bp + si - 1]
  EXPECT_EQ(insn.address_size, 2);
  EXPECT_EQ(insn.operand_size, 2);
  EXPECT_EQ(insn.mem.base, 5);
  EXPECT_EQ(insn.mem.index, 6);
  EXPECT_EQ(insn.mem.disp, -1);
  EXPECT_EQ(insn.segment, Seg::kSs);
}

TEST(Decoder, GivesStackBasesTheStackSegment) {
  EXPECT_EQ(decoded({0x8b, 0x45, 0x00}).segment, Seg::kSs);        // [rbp]
  EXPECT_EQ(decoded({0x8b, 0x03}).segment, Seg::kDs);              // [rbx]
  EXPECT_EQ(decoded({0x41, 0x8b, 0x45, 0x00}).segment, Seg::kDs);  // [r13]
  EXPECT_EQ(decoded({0x64, 0x8b, 0x45, 0x00}).segment, Seg::kFs);
  EXPECT_EQ(decoded({0x26, 0x8b, 0x45, 0x00}).segment, Seg::kSs);        // ES is a null prefix
  EXPECT_EQ(decoded({0x64, 0x26, 0x8b, 0x45, 0x00}).segment, Seg::kFs);  // and cancels nothing
  EXPECT_EQ(decoded({0x26, 0x8b, 0x45, 0x00}, Mode::k32).segment, Seg::kEs);
}

TEST(Decoder, ExtendsImmediatesAsTheInstructionDefines) {
  EXPECT_EQ(decoded({0x83, 0xc0, 0xff}).simm(), -1);
  EXPECT_EQ(decoded({0x48, 0x81, 0xc0, 0xff, 0xff, 0xff, 0xff}).simm(), -1);
  EXPECT_EQ(decoded({0xc1, 0xe0, 0xff}).imm, 0xffU);
  EXPECT_EQ(decoded({0xe4, 0x80}).imm, 0x80U);
  EXPECT_EQ(decoded({0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8}).imm, 0x0807060504030201U);
  EXPECT_EQ(decoded({0xd1, 0xe0}).imm, 1U);
}

TEST(Decoder, ReadsBothImmediatesOfEnter) {
  const Insn insn = decoded({0xc8, 0x34, 0x12, 0x05});
  EXPECT_EQ(insn.imm, 0x1234U);
  EXPECT_EQ(insn.imm2, 5);
  EXPECT_EQ(insn.operand_size, 8);
}

TEST(Decoder, ReadsMoffsInTheAddressSize) {
  EXPECT_EQ(decoded({0xa1, 1, 0, 0, 0, 0, 0, 0, 0x7f}).mem.disp, 0x7f00000000000001);
  EXPECT_EQ(decoded({0x67, 0xa1, 1, 0, 0, 0x80}).mem.disp, 0x80000001);
  EXPECT_EQ(decoded({0xa0, 1, 0x80}, Mode::k16).mem.disp, 0x8001);
}

TEST(Decoder, ReadsFarPointersOutside64BitMode) {
  const Insn insn = decoded({0xea, 0x00, 0x7c, 0x34, 0x12}, Mode::k16);
  EXPECT_EQ(insn.op, Op::kJmpFar);
  EXPECT_EQ(insn.operand[0].kind, OperandKind::kFarPointer);
  EXPECT_EQ(insn.imm, 0x7c00U);
  EXPECT_EQ(insn.selector, 0x1234);
  EXPECT_EQ(status_of({0xea, 0, 0, 0, 0, 0, 0}), DecodeStatus::kInvalid);
}

TEST(Decoder, DefaultsStackOperationsTo64Bits) {
  EXPECT_EQ(decoded({0x50}).operand_size, 8);
  EXPECT_EQ(decoded({0x66, 0x50}).operand_size, 2);
  EXPECT_EQ(decoded({0x6a, 0xff}).operand_size, 8);
  EXPECT_EQ(decoded({0x9c}).operand_size, 8);
  EXPECT_EQ(decoded({0xcf}).operand_size, 4);
  EXPECT_EQ(decoded({0x48, 0xcf}).operand_size, 8);
}

TEST(Decoder, IgnoresTheOperandSizePrefixOnNearBranchesIn64BitMode) {
  const Insn insn = decoded({0x66, 0xe9, 0xfc, 0xff, 0xff, 0xff});
  EXPECT_EQ(insn.operand_size, 8);
  EXPECT_EQ(insn.simm(), -4);
  EXPECT_EQ(decoded({0x66, 0xe9, 0xfc, 0xff}, Mode::k32).simm(), -4);
}

TEST(Decoder, KeepsPortAccessesAtFourBytes) {
  EXPECT_EQ(decoded({0x48, 0xed}).operand_size, 4);
  EXPECT_EQ(decoded({0x48, 0x6d}).operand_size, 4);
  EXPECT_EQ(decoded({0x66, 0xed}).operand_size, 2);
  EXPECT_EQ(decoded({0xec}).operand_size, 1);
}

TEST(Decoder, ReportsRepeatsOnStringOperationsOnly) {
  EXPECT_TRUE(decoded({0xf3, 0xa4}).rep);
  EXPECT_TRUE(decoded({0xf2, 0xae}).repne);
  EXPECT_FALSE(decoded({0xf3, 0xc3}).rep);
  const Insn both = decoded({0xf3, 0xf2, 0xae});
  EXPECT_FALSE(both.rep);
  EXPECT_TRUE(both.repne);
}

TEST(Decoder, NamesTheConditionOfConditionalInstructions) {
  EXPECT_EQ(decoded({0x74, 0x00}).cond, Cond::kZ);
  EXPECT_EQ(decoded({0x0f, 0x8f, 0, 0, 0, 0}).cond, Cond::kNle);
  EXPECT_EQ(decoded({0x0f, 0x92, 0xc0}).cond, Cond::kB);
  EXPECT_EQ(decoded({0x0f, 0x4d, 0xc1}).cond, Cond::kNl);
}

TEST(Decoder, TellsNopPauseAndExchangeApart) {
  EXPECT_EQ(decoded({0x90}).op, Op::kNop);
  EXPECT_EQ(decoded({0x66, 0x90}).op, Op::kNop);
  EXPECT_EQ(decoded({0xf3, 0x90}).op, Op::kPause);
  EXPECT_EQ(decoded({0x41, 0x90}).op, Op::kXchg);
  EXPECT_EQ(decoded({0xf3, 0x41, 0x90}).op, Op::kXchg);
  EXPECT_EQ(decoded({0x87, 0xc0}).op, Op::kXchg);
}

TEST(Decoder, TellsBitScansFromBitCounts) {
  EXPECT_EQ(decoded({0x0f, 0xbc, 0xc1}).op, Op::kBsf);
  EXPECT_EQ(decoded({0xf3, 0x0f, 0xbc, 0xc1}).op, Op::kTzcnt);
  EXPECT_EQ(decoded({0xf3, 0x0f, 0xbd, 0xc1}).op, Op::kLzcnt);
  EXPECT_EQ(decoded({0xf3, 0x0f, 0xb8, 0xc1}).op, Op::kPopcnt);
  EXPECT_EQ(status_of({0x0f, 0xb8, 0xc1}), DecodeStatus::kInvalid);
}

TEST(Decoder, ChoosesCmpxchg16bByRexW) {
  EXPECT_EQ(decoded({0x0f, 0xc7, 0x0f}).op, Op::kCmpxchg8b);
  const Insn wide = decoded({0xf0, 0x48, 0x0f, 0xc7, 0x0f});
  EXPECT_EQ(wide.op, Op::kCmpxchg16b);
  EXPECT_EQ(wide.operand[0].size, 16);
  EXPECT_TRUE(wide.lock);
}

TEST(Decoder, RefusesLockWithoutAMemoryDestination) {
  EXPECT_TRUE(decoded({0xf0, 0x01, 0x03}).lock);                           // lock add [rbx], eax
  EXPECT_EQ(status_of({0xf0, 0x01, 0xc3}), DecodeStatus::kInvalid);        // register
  EXPECT_EQ(status_of({0xf0, 0x03, 0x03}), DecodeStatus::kInvalid);        // memory is the source
  EXPECT_EQ(status_of({0xf0, 0x39, 0x03}), DecodeStatus::kInvalid);        // CMP
  EXPECT_EQ(status_of({0xf0, 0x0f, 0xa3, 0x03}), DecodeStatus::kInvalid);  // BT
  EXPECT_EQ(status_of({0xf0, 0x90}), DecodeStatus::kInvalid);
  EXPECT_EQ(status_of({0xf0, 0x0f, 0x58, 0x03}), DecodeStatus::kInvalid);
}

TEST(Decoder, RefusesRegistersThatDoNotExist) {
  EXPECT_EQ(status_of({0x8e, 0xc8}), DecodeStatus::kInvalid);              // mov cs, ax
  EXPECT_EQ(status_of({0x8e, 0xf0}), DecodeStatus::kInvalid);              // segment 6
  EXPECT_EQ(status_of({0x0f, 0x20, 0xc8}), DecodeStatus::kInvalid);        // cr1
  EXPECT_EQ(status_of({0x44, 0x0f, 0x20, 0xc8}), DecodeStatus::kInvalid);  // cr9
  EXPECT_EQ(status_of({0x44, 0x0f, 0x21, 0xc0}), DecodeStatus::kInvalid);  // dr8
  EXPECT_EQ(decoded({0x44, 0x0f, 0x20, 0xc0}).operand[1].reg, 8);
}

TEST(Decoder, TakesControlRegisterMovesAsRegisterFormsWhateverModSays) {
  const Insn insn = decoded({0x0f, 0x22, 0x18});  // mov cr3, rax with mod 0
  EXPECT_EQ(insn.op, Op::kMovToCr);
  EXPECT_FALSE(insn.has_mem);
  EXPECT_EQ(insn.operand[0].reg, 3);
  EXPECT_EQ(insn.operand[1].size, 8);
}

TEST(Decoder, SelectsSimdInstructionsByTheirMandatoryPrefix) {
  EXPECT_EQ(decoded({0x0f, 0x58, 0xc1}).op, Op::kAddps);
  EXPECT_EQ(decoded({0x66, 0x0f, 0x58, 0xc1}).op, Op::kAddpd);
  EXPECT_EQ(decoded({0xf3, 0x0f, 0x58, 0xc1}).op, Op::kAddss);
  EXPECT_EQ(decoded({0xf2, 0x0f, 0x58, 0xc1}).op, Op::kAddsd);
  EXPECT_EQ(decoded({0x66, 0xf2, 0x0f, 0x58, 0xc1}).op, Op::kAddsd);
  EXPECT_EQ(decoded({0x0f, 0xfc, 0xc1}).op, Op::kMmxPaddb);
  EXPECT_EQ(decoded({0x66, 0x0f, 0xfc, 0xc1}).op, Op::kPaddb);
  EXPECT_TRUE(is_mmx(decoded({0x0f, 0xfc, 0xc1}).op));
  EXPECT_TRUE(is_mmx(decoded({0x0f, 0x2a, 0xc1}).op));
  EXPECT_FALSE(is_mmx(decoded({0x66, 0x0f, 0xfc, 0xc1}).op));
}

TEST(Decoder, GivesSimdOperandsTheSizeOfTheDataAccessed) {
  EXPECT_EQ(decoded({0xf3, 0x0f, 0x10, 0x00}).operand[1].size, 4);
  EXPECT_EQ(decoded({0x0f, 0x16, 0x00}).operand[1].size, 8);
  EXPECT_EQ(decoded({0x66, 0x48, 0x0f, 0x6e, 0xc0}).operand[1].size, 8);
}

TEST(Decoder, RecognisesVexAndEvexForTheirLength) {
  EXPECT_EQ(decoded({0xc5, 0xf8, 0x77}).op, Op::kVex);                    // vzeroupper
  EXPECT_EQ(decoded({0xc4, 0xe3, 0x79, 0x0f, 0x00, 0x08}).op, Op::kVex);  // vpalignr … imm8
  EXPECT_EQ(decoded({0x62, 0xf1, 0x7c, 0x48, 0x10, 0x40, 0x01}).op, Op::kEvex);
  EXPECT_EQ(status_of({0x66, 0xc5, 0xf8, 0x77}), DecodeStatus::kInvalid);
  EXPECT_EQ(status_of({0x48, 0xc5, 0xf8, 0x77}), DecodeStatus::kInvalid);
  EXPECT_EQ(decoded({0xc5, 0x03}, Mode::k32).op, Op::kLds);
  EXPECT_EQ(decoded({0xc5, 0xf8, 0x77}, Mode::k32).op, Op::kVex);
}

TEST(Decoder, KnowsTheForcedEmulationPrefixAsUd2) {
  EXPECT_EQ(decoded({0x0f, 0x0b}).op, Op::kUd2);
}

TEST(Decoder, DropsSixtyFourBitOnlyAndLegacyOnlyForms) {
  EXPECT_EQ(status_of({0x06}), DecodeStatus::kInvalid);
  EXPECT_EQ(decoded({0x06}, Mode::k32).op, Op::kPushSeg);
  EXPECT_EQ(decoded({0x63, 0xc1}, Mode::k32).op, Op::kArpl);
  EXPECT_EQ(decoded({0x63, 0xc1}).op, Op::kMovsxd);
  EXPECT_EQ(decoded({0x40}, Mode::k16).op, Op::kInc);
  EXPECT_EQ(status_of({0x0f, 0x01, 0xf8}, Mode::k32), DecodeStatus::kInvalid);  // swapgs
}

TEST(Decoder, RefusesMoreThanFifteenBytes) {
  EXPECT_EQ(status_of({0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                       0x66, 0x66, 0x90}),
            DecodeStatus::kTooLong);
  EXPECT_EQ(status_of({0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                       0x66, 0x90}),
            DecodeStatus::kOk);
}

TEST(Decoder, AsksForMoreBytesAtEveryCutOfEveryRow) {
  test::RandomSource random(test::announced_seed("decoder cuts"));
  std::uint64_t cuts = 0;
  for (const Row& row : opcode_rows()) {
    for (int i = 0; i < 40; ++i) {
      const Mode mode = static_cast<Mode>(random.small(3));
      if (((row.modes >> static_cast<unsigned>(mode)) & 1) == 0) continue;
      const test::InsnBytes bytes = test::random_encoding(row, mode, random);
      Insn whole;
      if (decode(bytes, mode, &whole) != DecodeStatus::kOk) continue;
      for (std::size_t size = 0; size < whole.length; ++size) {
        // A copy of exactly that size, so that a sanitizer sees a read past its end.
        const std::vector<std::uint8_t> cut(bytes.begin(), bytes.begin() + static_cast<long>(size));
        Insn insn;
        ASSERT_EQ(decode(cut, mode, &insn), DecodeStatus::kNeedMoreBytes)
            << op_name(whole.op) << " cut at " << size << " of " << unsigned{whole.length};
        ++cuts;
      }
    }
  }
  EXPECT_GT(cuts, opcode_rows().size() * 40);
}

}  // namespace
}  // namespace stagetwo::vcpu
