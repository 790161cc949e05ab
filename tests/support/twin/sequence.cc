// SPDX-License-Identifier: Apache-2.0
#include "tests/support/twin/sequence.h"

#include <array>
#include <cstring>

#include "tests/support/insn_bytes.h"
#include "tests/support/twin/flag_effects.h"
#include "vcpu/decoder.h"
#include "vcpu/sse.h"

namespace stagetwo::twin {
namespace {

using vcpu::Insn;
using vcpu::kNoReg;
using vcpu::kRipBase;
using vcpu::Op;
using vcpu::OperandKind;
using vcpu::Seg;

// Bases of FS and GS at the start of every sequence: below the areas, so that 32-bit addressing
// reaches them too.
constexpr u64 kFsBase = 0x7000, kGsBase = 0x12'3450;

u64 segment_base(Seg segment) {
  return segment == Seg::kFs ? kFsBase : segment == Seg::kGs ? kGsBase : 0;
}

void put64(std::vector<u8>& out, u64 value, unsigned bytes = 8) {
  for (unsigned i = 0; i < bytes; ++i) out.push_back(static_cast<u8>(value >> (8 * i)));
}

u8 here(const std::vector<u8>& bytes) {
  return static_cast<u8>(bytes.size());
}

// MOV r64, imm64: no flags.
void put_movabs(std::vector<u8>& out, unsigned reg, u64 value) {
  out.push_back(static_cast<u8>(0x48 | reg >> 3));
  out.push_back(static_cast<u8>(0xb8 | (reg & 7)));
  put64(out, value);
}
// MOV dword [absolute], imm32.
void put_store32(std::vector<u8>& out, u32 value, u64 address) {
  out.insert(out.end(), {0xc7, 0x04, 0x25});
  put64(out, address, 4);
  put64(out, value, 4);
}
// MOV [absolute], r64.
void put_store(std::vector<u8>& out, unsigned reg, u64 address) {
  out.push_back(static_cast<u8>(0x48 | (reg >> 3) << 2));
  out.insert(out.end(), {0x89, static_cast<u8>(0x04 | (reg & 7) << 3), 0x25});
  put64(out, address, 4);
}

bool is_legacy_prefix(u8 byte) {
  switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3:
      return true;
    default:
      return false;
  }
}

bool has_prefix(std::span<const u8> bytes, u8 prefix) {
  for (const u8 byte : bytes) {
    if (byte == prefix) return true;
    if (!is_legacy_prefix(byte)) return false;
  }
  return false;
}

// Pre: a decoded instruction with a ModRM byte.
unsigned modrm_offset(std::span<const u8> bytes) {
  unsigned at = 0;
  while (is_legacy_prefix(bytes[at])) ++at;
  if ((bytes[at] & 0xf0) == 0x40) ++at;
  if (bytes[at] == 0x0f) {
    ++at;
    if (bytes[at] == 0x38 || bytes[at] == 0x3a) ++at;
  }
  return at + 1;
}

bool is_near_branch(Op op) {
  switch (op) {
    case Op::kCall:
    case Op::kJmp:
    case Op::kJcc:
    case Op::kLoop:
    case Op::kLoope:
    case Op::kLoopne:
    case Op::kJcxz:
    case Op::kRet:
      return true;
    default:
      return false;
  }
}

bool uses_stack(Op op) {
  switch (op) {
    case Op::kPush:
    case Op::kPop:
    case Op::kPushf:
    case Op::kPopf:
    case Op::kCall:
    case Op::kRet:
    case Op::kEnter:
    case Op::kLeave:
    case Op::kPushSeg:
      return true;
    default:
      return false;
  }
}

// Results the architecture leaves open; nothing can be compared then.
bool is_unpredictable(const Insn& insn, std::span<const u8> bytes) {
  if (insn.op == Op::kBswap && insn.operand_size == 2) return true;
  if ((insn.op == Op::kShld || insn.op == Op::kShrd) && insn.operand_size == 2)
    return insn.operand[2].kind != OperandKind::kImm || (insn.imm & 31) > 16;
  // AMD reads four bytes, Intel two.
  if (insn.op == Op::kMovsxd && insn.operand_size == 2 && insn.has_mem) return true;
  // Processors let a repeat prefix change the condition.
  if ((insn.op == Op::kLoope || insn.op == Op::kLoopne) &&
      (has_prefix(bytes, 0xf2) || has_prefix(bytes, 0xf3)))
    return true;
  // Intel ignores 66 before a near branch in 64-bit mode, AMD does not.
  if (is_near_branch(insn.op) && has_prefix(bytes, 0x66)) return true;
  return false;
}

constexpr std::array<u8, 4> kSkipped = {0x48, 0x8d, 0x40, 0x01};  // lea rax, [rax + 1]
constexpr std::array<u8, 3> kDefineFlags = {0x48, 0x39, 0xd8};    // cmp rax, rbx

}  // namespace

const char* not_for_user_mode(const Insn& insn) {
  if (vcpu::is_mmx(insn.op)) return "MMX and x87 registers are not computed with";
  if (vcpu::is_length_only(insn.op)) return "beyond SSE2";
  if (insn.op == Op::kNop && insn.opcode == 0x0d) return "#UD on AMD, a hint on Intel";
  switch (insn.op) {
    case Op::kRdtsc:
    case Op::kRdtscp:
    case Op::kRdrand:
    case Op::kRdseed:
    case Op::kRdpmc:
    case Op::kRdpid:
    case Op::kCpuid:
      return "its result is not a function of the state";
    case Op::kSyscall:
    case Op::kSysenter:
    case Op::kSysexit:
    case Op::kSysret:
      return "enters the host's kernel, or is judged by vendor";
    case Op::kInt1:
      return "the host's kernel reports it in its own way";
    case Op::kVmcall:
    case Op::kVmmcall:
    case Op::kVmfunc:
      return "reaches the host's own hypervisor";
    case Op::kSgdt:
    case Op::kSidt:
    case Op::kSldt:
    case Op::kStr:
    case Op::kSmsw:
      return "the host's kernel emulates it (UMIP)";
    case Op::kLar:
    case Op::kLsl:
    case Op::kVerr:
    case Op::kVerw:
    case Op::kMovToSeg:
    case Op::kPopSeg:
    case Op::kLfs:
    case Op::kLgs:
    case Op::kLss:
    case Op::kLds:
    case Op::kLes:
    case Op::kCallFar:
    case Op::kJmpFar:
    case Op::kRetFar:
    case Op::kIret:
      return "depends on the host kernel's descriptor tables";
    case Op::kXgetbv:
    case Op::kXsetbv:
    case Op::kXsave:
    case Op::kXsavec:
    case Op::kXsaveopt:
    case Op::kXsaves:
    case Op::kXrstor:
    case Op::kXrstors:
    case Op::kRdpkru:
    case Op::kWrpkru:
      return "depends on which extended state the host's kernel enabled";
    case Op::kX87:
      return "x87 registers are not computed with";
    case Op::kMonitor:
    case Op::kMwait:
    case Op::kVmrun:
    case Op::kVmload:
    case Op::kVmsave:
    case Op::kStgi:
    case Op::kClgi:
    case Op::kSkinit:
    case Op::kInvlpga:
    case Op::kVmclear:
    case Op::kVmlaunch:
    case Op::kVmptrld:
    case Op::kVmptrst:
    case Op::kVmread:
    case Op::kVmresume:
    case Op::kVmwrite:
    case Op::kVmxoff:
    case Op::kVmxon:
    case Op::kInvept:
    case Op::kInvvpid:
    case Op::kInvpcid:
    case Op::kRsm:
      return "virtualisation extensions are the host's business";
    default:
      return nullptr;
  }
}

// A unit under construction.
struct SequenceGenerator::Build {
  test::InsnBytes raw;
  Insn insn;
  std::vector<std::pair<unsigned, u64>> loads;  // register, value; in order
  u64 memory_target = 0;
  std::vector<Fixup> fixups;  // relative to the instruction until it is placed
  bool branch = false;
  bool exact = true;  // the operand will be at memory_target, not just near it
  unsigned return_reg = 0;

  void load(unsigned reg, u64 value) { loads.emplace_back(reg, value); }
  [[nodiscard]] bool addresses(unsigned reg) const {
    return insn.has_mem && (insn.mem.base == reg || insn.mem.index == reg);
  }
};

u64 SequenceGenerator::value() {
  static constexpr u64 kEdges[] = {0,
                                   1,
                                   2,
                                   0x7f,
                                   0x80,
                                   0xff,
                                   0x7fff,
                                   0x8000,
                                   0xffff,
                                   0x7fffffff,
                                   0x80000000,
                                   0xffffffff,
                                   0x7fffffffffffffff,
                                   0x8000000000000000,
                                   ~u64{0},
                                   ~u64{0} - 1,
                                   0x100000000,
                                   31,
                                   32,
                                   63,
                                   64};
  switch (random_.small(5)) {
    case 0:
      return kEdges[random_.below(std::size(kEdges))];
    case 1:
      return random_.below(256);
    case 2:
      return u64{1} << random_.small(64);
    case 3:
      return ~u64{0} << random_.small(64);
    default:
      return random_.next();
  }
}

Xmm SequenceGenerator::vector_value() {
  static constexpr u32 kSingles[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 1,
                                     0x807fffff, 0x00800000, 0x7f7fffff, 0x7f800000, 0xff800000,
                                     0x7fc00000, 0x7f800001, 0xffa00000, 0x4f000000, 0xcf000000,
                                     0x5f000000, 0x3eaaaaab, 0x40490fdb, 0x34000000, 0x00000100};
  static constexpr u64 kDoubles[] = {0,
                                     0x8000000000000000,
                                     0x3ff0000000000000,
                                     0xbff0000000000000,
                                     1,
                                     0x800fffffffffffff,
                                     0x0010000000000000,
                                     0x7fefffffffffffff,
                                     0x7ff0000000000000,
                                     0xfff0000000000000,
                                     0x7ff8000000000000,
                                     0x7ff0000000000001,
                                     0xfff4000000000000,
                                     0x41e0000000000000,
                                     0xc1e0000000000000,
                                     0x43e0000000000000,
                                     0x3fd5555555555555,
                                     0x400921fb54442d18,
                                     0x36a0000000000000,
                                     0x47efffffe0000000,
                                     0x3810000000000000};
  Xmm x;
  switch (random_.small(4)) {
    case 0: {
      u32 lanes[4];
      for (u32& lane : lanes) lane = kSingles[random_.below(std::size(kSingles))];
      std::memcpy(&x, lanes, sizeof x);
      return x;
    }
    case 1:
      return {kDoubles[random_.below(std::size(kDoubles))],
              kDoubles[random_.below(std::size(kDoubles))]};
    case 2:
      return {value(), value()};
    default:
      return {random_.next(), random_.next()};
  }
}

CpuImage SequenceGenerator::random_start() {
  CpuImage start;
  for (u64& reg : start.gpr) reg = value();
  for (Xmm& x : start.xmm) x = vector_value();
  start.gpr[vcpu::kRsp] = kStack + 0x800;
  start.rflags = 0x202 | (random_.next() & vcpu::rflags::kArithmetic);
  if (random_.one_in(4)) start.rflags |= vcpu::rflags::kDf;
  if (random_.one_in(64)) start.rflags |= vcpu::rflags::kAc;
  start.fs_base = kFsBase;
  start.gs_base = kGsBase;
  switch (random_.small(4)) {
    case 0:
      start.mxcsr = static_cast<u32>(random_.below(0x10000));
      break;
    case 1:
      start.mxcsr = 0x1f80 | static_cast<u32>(random_.below(0x10000));
      break;
    default:
      start.mxcsr = 0x1f80;
      break;
  }
  return start;
}

// An address for an operand of so many bytes: mostly inside and aligned, sometimes not, sometimes
// over a page border, seldom over the end.
u64 SequenceGenerator::target(unsigned bytes, bool aligned) {
  const unsigned dice = random_.small(128);
  if (dice < (aligned ? 120 : 70)) return kScratch + (random_.below(kScratchSize - 64) & ~u64{15});
  if (dice < 116) return kScratch + random_.below(kScratchSize - 64);
  if (dice < 126) return kScratch + 0x1000 - random_.below(bytes + 1);
  if (dice < 127) return kScratch + kScratchSize - random_.below(bytes + 1);
  return random_.one_in(2) ? kScratch - random_.below(bytes + 1) : kCode + random_.below(0x100);
}

// Mostly valid; seldom with a reserved bit, but not 17, which AMD defines.
u32 SequenceGenerator::new_mxcsr() {
  const auto low = static_cast<u32>(random_.below(0x10000));
  if (random_.one_in(8)) return low | 1u << (random_.one_in(2) ? 16 : 18 + random_.small(14));
  return random_.one_in(2) ? low | 0x1f80 : low;
}

void SequenceGenerator::point_operand(Build& b) {
  const auto& mem = b.insn.mem;
  const bool aligned = sse_aligned(b.insn.op) || b.insn.op == Op::kCmpxchg16b;
  b.memory_target = target(16, aligned);
  const bool image = b.insn.op == Op::kFxsave || b.insn.op == Op::kFxrstor;
  if (image) b.memory_target = kScratch + (random_.below(kScratchSize - 512) & ~u64{15});
  const u64 ea = b.memory_target - segment_base(b.insn.segment);
  const auto length = b.insn.length;
  if (!b.insn.has_modrm) {  // moffs: the address is the last thing in the instruction
    std::memcpy(&b.raw[static_cast<std::size_t>(length - b.insn.address_size)], &ea,
                b.insn.address_size);
    return;
  }
  const unsigned modrm = modrm_offset(b.raw);
  if (mem.base == kRipBase) {
    b.fixups.push_back(
        {.at = static_cast<u8>(modrm + 1), .size = 4, .origin = length, .target = ea});
    return;
  }
  if (mem.base == kNoReg && mem.index == kNoReg) {
    std::memcpy(&b.raw[modrm + 2], &ea, 4);
    return;
  }
  const auto disp = static_cast<u64>(mem.disp);
  const auto rest = static_cast<std::int64_t>(ea - disp);
  const u64 high = b.insn.address_size == 4 ? random_.next() << 32 : 0;
  const auto trim = [&](u64 v) { return high != 0 ? (v & 0xffffffff) | high : v; };
  if (mem.index == kNoReg) {
    b.load(mem.base, trim(static_cast<u64>(rest)));
  } else if (mem.base == kNoReg) {
    b.exact = rest % mem.scale == 0;
    b.load(mem.index, trim(static_cast<u64>(rest / mem.scale)));
  } else if (mem.base == mem.index) {
    b.exact = rest % (mem.scale + 1) == 0;
    b.load(mem.base, trim(static_cast<u64>(rest / (mem.scale + 1))));
  } else {
    const u64 index = random_.below(128) - 64;
    b.load(mem.index, trim(index));
    b.load(mem.base, trim(static_cast<u64>(rest) - index * mem.scale));
  }
}

void SequenceGenerator::point_strings(Build& b) {
  const Op op = b.insn.op;
  const bool source = op == Op::kMovs || op == Op::kCmps || op == Op::kLods || op == Op::kOuts;
  const bool destination =
      op == Op::kMovs || op == Op::kCmps || op == Op::kScas || op == Op::kStos || op == Op::kIns;
  const u64 high = b.insn.address_size == 4 && random_.one_in(2) ? random_.next() << 32 : 0;
  if (source) b.load(vcpu::kRsi, (target(8) - segment_base(b.insn.segment)) | high);
  if (destination) b.load(vcpu::kRdi, target(8) | high);
  if ((b.insn.rep || b.insn.repne) && !random_.one_in(24))
    b.load(vcpu::kRcx, random_.below(40) | high);
  if (op == Op::kXlat) b.load(vcpu::kRbx, (target(256) - segment_base(b.insn.segment)) | high);
  if (op == Op::kMaskmovdqu) b.load(vcpu::kRdi, (target(16) - segment_base(b.insn.segment)) | high);
}

// Registers whose random value would make an instruction fault or wander off nearly always.
void SequenceGenerator::tame_counts(Build& b) {
  const Insn& insn = b.insn;
  if (uses_stack(insn.op) && !random_.one_in(4))
    b.load(vcpu::kRsp, kStack + 0x200 + (random_.below(0x900) & ~u64{7}));
  if ((insn.op == Op::kLeave || insn.op == Op::kEnter) && !random_.one_in(8))
    b.load(vcpu::kRbp, kStack + 0x400 + (random_.below(0x800) & ~u64{7}));
  if ((insn.op == Op::kDiv || insn.op == Op::kIdiv) && !random_.one_in(4)) {
    b.load(vcpu::kRdx, random_.below(3));
    if (insn.operand_size == 1) b.load(vcpu::kRax, random_.below(1024));
  }
  if ((insn.op == Op::kJcxz || insn.op == Op::kLoop || insn.op == Op::kLoope ||
       insn.op == Op::kLoopne) &&
      random_.one_in(2))
    b.load(vcpu::kRcx, random_.below(3));
  const bool bit_string =
      insn.op == Op::kBt || insn.op == Op::kBts || insn.op == Op::kBtr || insn.op == Op::kBtc;
  if (bit_string && insn.has_mem && insn.operand[1].kind == OperandKind::kGpr)
    b.load(insn.operand[1].reg, random_.below(4096) - 2048);
}

// Jumps go to the end of the unit, over an instruction that shows whether they were taken.
void SequenceGenerator::aim_branch(Build& b) {
  const Insn& insn = b.insn;
  if (!is_near_branch(insn.op)) return;
  b.branch = true;
  if (insn.operand[0].kind == OperandKind::kRel) {
    const unsigned size = insn.operand[0].size;
    const u64 distance = random_.one_in(4) ? 0 : kSkipped.size();
    std::memcpy(&b.raw[insn.length - size], &distance, size);
    return;
  }
  do {
    b.return_reg = random_.small(16);
  } while (b.return_reg == vcpu::kRsp || b.addresses(b.return_reg));
}

bool SequenceGenerator::unit(u16 row, Unit* unit) {
  Build b;
  b.raw = test::random_encoding(vcpu::opcode_rows()[row], vcpu::Mode::k64, random_);
  if (vcpu::decode(b.raw, vcpu::Mode::k64, &b.insn) != vcpu::DecodeStatus::kOk) return false;
  const std::span<const u8> encoded(b.raw.data(), b.insn.length);
  if (not_for_user_mode(b.insn) != nullptr || is_unpredictable(b.insn, encoded)) return false;
  if (b.insn.op == Op::kInt && (b.insn.imm < 5 || b.insn.imm >= 0x80)) return false;
  if (filter_ && !filter_(b.insn, encoded)) return false;
  tame_counts(b);
  point_strings(b);
  if (b.insn.has_mem) point_operand(b);
  aim_branch(b);
  // What was stored there for it must be found.
  const bool image = b.insn.op == Op::kFxsave || b.insn.op == Op::kFxrstor;
  if ((b.branch || image || b.insn.op == Op::kLdmxcsr) && b.insn.has_mem && !b.exact) return false;

  std::vector<u8>& out = unit->bytes;
  out.clear();
  unit->fixups.clear();
  const bool indirect = b.branch && b.insn.operand[0].kind != OperandKind::kRel;
  const bool through_register = indirect && b.insn.operand[0].kind == OperandKind::kGpr;
  if (indirect && !through_register) {
    put_movabs(out, b.return_reg, 0);
    unit->fixups.push_back({.at = static_cast<u8>(here(out) - 8), .size = 8, .to_end = true});
    if (b.insn.op != Op::kRet) put_store(out, b.return_reg, b.memory_target);
  }
  if (b.insn.op == Op::kFxrstor) {
    put_store32(out, new_mxcsr(), b.memory_target + 24);
    // What becomes of the last instruction's opcode and pointers differs from processor to
    // processor.
    put_store32(out, random_.byte(), b.memory_target + 4);
    for (const u64 at : {8u, 12u, 16u, 20u}) put_store32(out, 0, b.memory_target + at);
  }
  if (b.insn.op == Op::kLdmxcsr) put_store32(out, new_mxcsr(), b.memory_target);
  for (const auto& [reg, v] : b.loads) put_movabs(out, reg, v);
  if (b.insn.op == Op::kRet) {
    if (b.return_reg >= 8) out.push_back(0x41);
    out.push_back(static_cast<u8>(0x50 | (b.return_reg & 7)));
  }
  if (through_register) {
    put_movabs(out, b.insn.operand[0].reg, 0);
    unit->fixups.push_back({.at = static_cast<u8>(here(out) - 8), .size = 8, .to_end = true});
  }
  unit->insn_at = here(out);
  for (Fixup fixup : b.fixups) {
    fixup.at = static_cast<u8>(fixup.at + unit->insn_at);
    fixup.origin = static_cast<u8>(fixup.origin + unit->insn_at);
    unit->fixups.push_back(fixup);
  }
  out.insert(out.end(), b.raw.begin(), b.raw.begin() + b.insn.length);
  unit->insn_end = here(out);
  if (b.branch) out.insert(out.end(), kSkipped.begin(), kSkipped.end());
  // MXCSR_MASK of the image is the processor's: AMD's has a bit more.
  if (b.insn.op == Op::kFxsave) put_store32(out, 0, b.memory_target + 28);
  // The patches may have changed immediates and displacements.
  return vcpu::decode({out.data() + unit->insn_at, b.insn.length}, vcpu::Mode::k64, &unit->insn) ==
         vcpu::DecodeStatus::kOk;
}

Sequence SequenceGenerator::empty_sequence() {
  Sequence s;
  s.start = random_start();
  s.data_seed = random_.next();
  return s;
}

std::vector<Placed> Sequence::lay_out(u64 where, std::vector<u8>* code) {
  code->clear();
  start.rip = where;
  std::vector<Placed> placed;
  u64 undefined = 0;
  for (const Unit& unit : units) {
    Placed p{.start = where + code->size(), .undefined_before = undefined};
    const FlagEffect effect = flag_effect(unit.insn);
    if ((effect.read & undefined) != 0) {
      code->insert(code->end(), kDefineFlags.begin(), kDefineFlags.end());
      undefined = 0;
    }
    const std::size_t base = code->size();
    p.insn = where + base + unit.insn_at;
    p.image = unit.insn.op == Op::kFxsave || unit.insn.op == Op::kFxrstor;
    code->insert(code->end(), unit.bytes.begin(), unit.bytes.end());
    for (const Fixup& fixup : unit.fixups) {
      u64 v = fixup.to_end ? where + code->size() : fixup.target;
      if (fixup.size == 4) v -= where + base + fixup.origin;
      std::memcpy(code->data() + base + fixup.at, &v, fixup.size);
    }
    undefined = effect.undefined_after(undefined);
    placed.push_back(p);
  }
  const u64 jump = where + code->size();
  placed.push_back({.start = jump, .insn = jump, .undefined_before = undefined});
  code->push_back(0xe9);
  put64(*code, kExit - (jump + 5), 4);
  return placed;
}

void fill_random(u64 seed, u8* to, std::size_t bytes) {
  constexpr std::size_t kPool = 1 << 16;
  static const std::vector<u64> pool = [] {
    RandomSource random(0x5eed);
    std::vector<u64> words(2 * kPool / 8);
    for (u64& word : words) word = random.next() >> (random.one_in(4) ? random.small(64) : 0);
    return words;
  }();
  std::memcpy(to, pool.data() + seed % (kPool / 8), bytes);
}

std::string to_text(const Sequence& sequence, const std::vector<Placed>& placed,
                    const std::vector<u8>& code) {
  std::string text;
  char line[160];
  for (std::size_t i = 0; i < placed.size(); ++i) {
    const u64 begin = placed[i].start - sequence.start.rip;
    const u64 end = i + 1 < placed.size() ? placed[i + 1].start - sequence.start.rip : code.size();
    const char* name = i < sequence.units.size() ? op_name(sequence.units[i].insn.op) : "(end)";
    std::snprintf(line, sizeof line, "  %08llx %-12s",
                  static_cast<unsigned long long>(placed[i].start), name);
    text += line;
    for (u64 at = begin; at < end; ++at) {
      const bool first = at == placed[i].insn - sequence.start.rip;
      std::snprintf(line, sizeof line, "%s%02x", first ? " | " : " ", code[at]);
      text += line;
    }
    text += '\n';
  }
  return text;
}

}  // namespace stagetwo::twin
