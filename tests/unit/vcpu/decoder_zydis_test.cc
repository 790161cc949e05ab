// SPDX-License-Identifier: Apache-2.0
// Goal: our decoder and Zydis say the same about the same bytes: length, mnemonic, operands.
// Method: random bytes, and for every row of the opcode table random encodings of that row, in all
// three modes. What differs on purpose is one explained list, `deliberate`; each entry has an
// example that must still differ, so that the list cannot rot.

#include <Zydis/Zydis.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <string>
#include <vector>

#include "tests/support/insn_bytes.h"
#include "tests/support/random_source.h"
#include "vcpu/decoder.h"
#include "vcpu/opcode_table.h"

namespace stagetwo::vcpu {
namespace {

using test::InsnBytes;
using test::RandomSource;

struct Theirs {
  bool ok = false;
  ZyanStatus status = 0;
  ZydisDecodedInstruction insn{};
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT]{};
};

struct Ours {
  DecodeStatus status = DecodeStatus::kInvalid;
  Insn insn;
};

struct Case {
  Mode mode = Mode::k64;
  InsnBytes bytes{};
  Ours ours;
  Theirs theirs;
};

class Zydis {
 public:
  Zydis() {
    init(Mode::k16, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    init(Mode::k32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    init(Mode::k64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  }
  Theirs decode(const InsnBytes& bytes, Mode mode) const {
    Theirs t;
    t.status = ZydisDecoderDecodeFull(&decoder_[static_cast<int>(mode)], bytes.data(), bytes.size(),
                                      &t.insn, t.operands);
    t.ok = ZYAN_SUCCESS(t.status);
    return t;
  }

 private:
  void init(Mode mode, ZydisMachineMode machine, ZydisStackWidth width) {
    ZydisDecoder* d = &decoder_[static_cast<int>(mode)];
    ZydisDecoderInit(d, machine, width);
    // The guest has neither MPX, CET nor CLDEMOTE: their encodings are the hints they were.
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
  }
  ZydisDecoder decoder_[3];
};

// ---- mnemonics -------------------------------------------------------------------------------

const char* const kCondNames[] = {"o", "no", "b", "nb", "z", "nz", "be", "nbe",
                                  "s", "ns", "p", "np", "l", "nl", "le", "nle"};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

const char* by_size(unsigned size, const char* b, const char* w, const char* d, const char* q) {
  return size == 1 ? b : size == 2 ? w : size == 4 ? d : q;
}

// The name Zydis gives to what `insn` is.
std::string zydis_name(const Insn& insn) {
  const std::string cond = kCondNames[static_cast<int>(insn.cond)];
  const unsigned size = insn.operand_size;
  const unsigned reg = (insn.modrm >> 3) & 7U;
  switch (insn.op) {
    case Op::kJcc:
      return "j" + cond;
    case Op::kSetcc:
      return "set" + cond;
    case Op::kCmovcc:
      return "cmov" + cond;
    case Op::kCbw:
      return by_size(size, "", "cbw", "cwde", "cdqe");
    case Op::kCwd:
      return by_size(size, "", "cwd", "cdq", "cqo");
    case Op::kIret:
      return by_size(size, "", "iret", "iretd", "iretq");
    case Op::kPushf:
      return by_size(size, "", "pushf", "pushfd", "pushfq");
    case Op::kPopf:
      return by_size(size, "", "popf", "popfd", "popfq");
    case Op::kPusha:
      return by_size(size, "", "pusha", "pushad", "");
    case Op::kPopa:
      return by_size(size, "", "popa", "popad", "");
    case Op::kJcxz:
      return by_size(insn.address_size, "", "jcxz", "jecxz", "jrcxz");
    case Op::kMovs:
    case Op::kCmps:
    case Op::kLods:
    case Op::kStos:
    case Op::kScas:
    case Op::kIns:
    case Op::kOuts:
      return lower(op_name(insn.op)) + by_size(size, "b", "w", "d", "q");
    case Op::kImulWide:
      return "imul";
    case Op::kPushSeg:
      return "push";
    case Op::kPopSeg:
      return "pop";
    case Op::kCallFar:
      return "call";
    case Op::kJmpFar:
      return "jmp";
    case Op::kRetFar:
      return "ret";
    case Op::kMovFromSeg:
    case Op::kMovToSeg:
    case Op::kMovFromCr:
    case Op::kMovToCr:
    case Op::kMovFromDr:
    case Op::kMovToDr:
      return "mov";
    case Op::kPrefetch:
      return reg == 0   ? "prefetchnta"
             : reg == 1 ? "prefetcht0"
             : reg == 2 ? "prefetcht1"
                        : "prefetcht2";
    case Op::kPrefetchw:
      return reg == 1 ? "prefetchw" : reg == 2 ? "prefetchwt1" : "prefetch";
    case Op::kMovd:
    case Op::kMmxMovd:
      return insn.rex_w ? "movq" : "movd";
    default:
      break;
  }
  std::string name = lower(op_name(insn.op));
  if (name.rfind("mmx", 0) == 0) name.erase(0, 3);
  return name;
}

std::string theirs_name(const Theirs& t) {
  return ZydisMnemonicGetString(t.insn.mnemonic);
}

bool same_mnemonic(const Case& c) {
  const Insn& insn = c.ours.insn;
  const std::string name = theirs_name(c.theirs);
  switch (insn.op) {
    case Op::kX87:
      return c.theirs.insn.meta.isa_ext == ZYDIS_ISA_EXT_X87 || name[0] == 'f';
    case Op::kVex:
      return c.theirs.insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    case Op::kEvex:
      return c.theirs.insn.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ||
             c.theirs.insn.encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX;
    case Op::kSseLater:
      switch (c.theirs.insn.meta.isa_ext) {
        case ZYDIS_ISA_EXT_SSE3:
        case ZYDIS_ISA_EXT_SSSE3:
        case ZYDIS_ISA_EXT_SSE4:
        case ZYDIS_ISA_EXT_AES:
        case ZYDIS_ISA_EXT_PCLMULQDQ:
        case ZYDIS_ISA_EXT_SHA:
        case ZYDIS_ISA_EXT_KEYLOCKER:
        case ZYDIS_ISA_EXT_GFNI:
          return true;
        default:
          return false;
      }
    default:
      break;
  }
  const std::string ours = zydis_name(insn);
  // 64-bit forms carry a suffix there: fxsave64, xsave64, sysexit, xrstors64.
  return name == ours || name == ours + "64";
}

// ---- operands --------------------------------------------------------------------------------

std::uint8_t zydis_reg(ZydisRegister reg) {
  if (reg == ZYDIS_REGISTER_NONE) return kNoReg;
  if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP) return kRipBase;
  return static_cast<std::uint8_t>(ZydisRegisterGetId(reg));
}

Operand zydis_register_operand(ZydisRegister reg) {
  const auto id = static_cast<std::uint8_t>(ZydisRegisterGetId(reg));
  switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8: {
      const unsigned n = static_cast<unsigned>(reg - ZYDIS_REGISTER_AL);
      if (n >= 4 && n < 8) return {OperandKind::kGprHigh, static_cast<std::uint8_t>(n - 4), 1};
      return {OperandKind::kGpr, static_cast<std::uint8_t>(n < 4 ? n : n - 4), 1};
    }
    case ZYDIS_REGCLASS_GPR16:
      return {OperandKind::kGpr, id, 2};
    case ZYDIS_REGCLASS_GPR32:
      return {OperandKind::kGpr, id, 4};
    case ZYDIS_REGCLASS_GPR64:
      return {OperandKind::kGpr, id, 8};
    case ZYDIS_REGCLASS_MMX:
      return {OperandKind::kMmx, id, 0};
    case ZYDIS_REGCLASS_XMM:
      return {OperandKind::kXmm, id, 0};
    case ZYDIS_REGCLASS_SEGMENT:
      return {OperandKind::kSegment, id, 2};
    case ZYDIS_REGCLASS_CONTROL:
      return {OperandKind::kControl, id, 0};
    case ZYDIS_REGCLASS_DEBUG:
      return {OperandKind::kDebug, id, 0};
    default:
      return {};
  }
}

std::string memory_difference(const Case& c, const ZydisDecodedOperand& theirs,
                              const Operand& ours) {
  const Insn& insn = c.ours.insn;
  if (ours.kind != OperandKind::kMem) return "kind";
  if (zydis_reg(theirs.mem.base) != insn.mem.base) return "base";
  if (zydis_reg(theirs.mem.index) != insn.mem.index) return "index";
  if (insn.mem.index != kNoReg && theirs.mem.scale != insn.mem.scale) return "scale";
  const std::uint64_t mask = insn.address_size == 8 ? ~0ULL : (1ULL << (8 * insn.address_size)) - 1;
  const auto disp = static_cast<std::uint64_t>(insn.mem.disp);
  if (((static_cast<std::uint64_t>(theirs.mem.disp.value) ^ disp) & mask) != 0) return "disp";
  const auto segment = static_cast<Seg>(ZydisRegisterGetId(theirs.mem.segment));
  if (theirs.mem.type == ZYDIS_MEMOP_TYPE_MEM && segment != insn.segment) return "segment";
  if (ours.size != 0 && theirs.size != 8U * ours.size) return "memory size";
  return "";
}

std::string operand_difference(const Case& c, const ZydisDecodedOperand& theirs,
                               const Operand& ours) {
  const Insn& insn = c.ours.insn;
  switch (theirs.type) {
    case ZYDIS_OPERAND_TYPE_REGISTER: {
      const Operand reg = zydis_register_operand(theirs.reg.value);
      if (reg.kind != ours.kind) return "kind";
      if (reg.reg != ours.reg) return "register";
      if (reg.size != 0 && reg.size != ours.size) return "register size";
      return "";
    }
    case ZYDIS_OPERAND_TYPE_MEMORY:
      return memory_difference(c, theirs, ours);
    case ZYDIS_OPERAND_TYPE_POINTER:
      if (ours.kind != OperandKind::kFarPointer) return "kind";
      if (theirs.ptr.segment != insn.selector) return "selector";
      return theirs.ptr.offset == insn.imm ? "" : "offset";
    case ZYDIS_OPERAND_TYPE_IMMEDIATE: {
      if (ours.kind != (theirs.imm.is_relative ? OperandKind::kRel : OperandKind::kImm))
        return "kind";
      // Sign extension beyond the operand size is a matter of taste.
      const unsigned bits = std::max(8U * insn.operand_size, 8U * ours.size);
      const std::uint64_t mask = bits >= 64 || theirs.imm.is_relative ? ~0ULL : (1ULL << bits) - 1;
      return ((theirs.imm.value.u ^ insn.imm) & mask) == 0 ? "" : "immediate";
    }
    default:
      return "type";
  }
}

// Empty if the two agree.
std::string difference(const Case& c) {
  const Insn& insn = c.ours.insn;
  const Theirs& t = c.theirs;
  if (insn.length != t.insn.length) return "length";
  if (!same_mnemonic(c)) return "mnemonic";
  if (is_length_only(insn.op)) return "";
  if (insn.lock != ((t.insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0)) return "lock";
  const bool x87 = insn.op == Op::kX87;
  unsigned n = 0;
  for (unsigned i = 0; i < t.insn.operand_count_visible; ++i) {
    const ZydisDecodedOperand& theirs = t.operands[i];
    if (theirs.visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) continue;
    if (x87 && theirs.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;  // st(i) is in modrm
    if (insn.op == Op::kEnter && i == 1) {
      if (theirs.imm.value.u != insn.imm2) return "enter level";
      continue;
    }
    if (n >= insn.operand_count) return "too few operands";
    const std::string what = operand_difference(c, theirs, insn.operand[n]);
    if (!what.empty()) return "operand " + std::to_string(n) + " " + what;
    ++n;
  }
  return n == insn.operand_count ? "" : "too many operands";
}

// ---- what differs on purpose -----------------------------------------------------------------

struct Deliberate {
  const char* reason;
  Mode example_mode;
  InsnBytes example;
  bool (*applies)(const Case&);
  std::uint64_t met = 0;
};

bool theirs_only(const Case& c, ZydisISAExt extension) {
  return c.theirs.ok && c.ours.status == DecodeStatus::kInvalid &&
         c.theirs.insn.meta.isa_ext == extension;
}
bool ours_only(const Case& c, Op op) {
  return !c.theirs.ok && c.ours.status == DecodeStatus::kOk && c.ours.insn.op == op;
}
bool both(const Case& c, Op op) {
  return c.theirs.ok && c.ours.status == DecodeStatus::kOk && c.ours.insn.op == op;
}
bool same_length(const Case& c) {
  return c.ours.insn.length == c.theirs.insn.length;
}
bool any_of(const Case& c, std::initializer_list<ZydisISAExt> extensions) {
  return std::any_of(extensions.begin(), extensions.end(),
                     [&](ZydisISAExt e) { return theirs_only(c, e); });
}

Deliberate deliberate[] = {
    {"VEX and EVEX are decoded for their length alone, so unassigned opcodes pass",
     Mode::k64,
     {0xc5, 0xf8, 0x01, 0xc0},
     [](const Case& c) { return ours_only(c, Op::kVex) || ours_only(c, Op::kEvex); }},
    {"Knights Corner's opcodes in the VEX and EVEX space (other lengths, MVEX)",
     Mode::k64,
     {0xc5, 0xdc, 0x85, 0xca},
     [](const Case& c) {
       return c.theirs.ok && c.ours.status != DecodeStatus::kNeedMoreBytes &&
              (c.theirs.insn.meta.isa_ext == ZYDIS_ISA_EXT_KNC ||
               c.theirs.insn.meta.isa_ext == ZYDIS_ISA_EXT_KNCE ||
               c.theirs.insn.meta.isa_ext == ZYDIS_ISA_EXT_KNCV);
     }},
    {"3E before an indirect branch is a segment override: without CET there is no NOTRACK",
     Mode::k32,
     {0x3e, 0xff, 0x55, 0x10},
     [](const Case& c) {
       return c.mode != Mode::k64 && c.ours.insn.segment == Seg::kDs && same_length(c) &&
              (both(c, Op::kCall) || both(c, Op::kJmp));
     }},
    {"XOP and TBM (AMD, Bulldozer only) are POP with a wrong /reg: #UD",
     Mode::k64,
     {0x8f, 0xe9, 0x78, 0x01, 0xc8},
     [](const Case& c) { return any_of(c, {ZYDIS_ISA_EXT_XOP, ZYDIS_ISA_EXT_TBM}); }},
    {"3DNow! and SSE4a: never announced to a guest, #UD",
     Mode::k64,
     {0x0f, 0x0f, 0xc1, 0x9e},
     [](const Case& c) { return any_of(c, {ZYDIS_ISA_EXT_AMD3DNOW, ZYDIS_ISA_EXT_SSE4A}); }},
    {"transactional memory: never announced to a guest, #UD",
     Mode::k64,
     {0x0f, 0x01, 0xd5},
     [](const Case& c) { return any_of(c, {ZYDIS_ISA_EXT_RTM, ZYDIS_ISA_EXT_TSX_LDTRK}); }},
    {"SGX, SMX, TDX, SNP: never announced to a guest, #UD",
     Mode::k64,
     {0x0f, 0x37},
     [](const Case& c) {
       return any_of(c, {ZYDIS_ISA_EXT_SGX, ZYDIS_ISA_EXT_SGX_ENCLV, ZYDIS_ISA_EXT_SMX,
                         ZYDIS_ISA_EXT_TDX, ZYDIS_ISA_EXT_SNP, ZYDIS_ISA_EXT_AMD_INVLPGB});
     }},
    {"CET beyond ENDBR: #UD, and the shadow-stack reads among the hints are NOP",
     Mode::k64,
     {0xf3, 0x0f, 0x1e, 0xc9},
     [](const Case& c) {
       return theirs_only(c, ZYDIS_ISA_EXT_CET) ||
              (both(c, Op::kNop) && c.theirs.insn.meta.isa_ext == ZYDIS_ISA_EXT_CET &&
               same_length(c));
     }},
    {"later additions that no announced CPUID bit covers: #UD",
     Mode::k64,
     {0x0f, 0x01, 0xe8},
     [](const Case& c) {
       return any_of(
           c, {ZYDIS_ISA_EXT_PCONFIG, ZYDIS_ISA_EXT_SERIALIZE, ZYDIS_ISA_EXT_MOVDIR,
               ZYDIS_ISA_EXT_ENQCMD, ZYDIS_ISA_EXT_PT, ZYDIS_ISA_EXT_WAITPKG, ZYDIS_ISA_EXT_UINTR,
               ZYDIS_ISA_EXT_HRESET, ZYDIS_ISA_EXT_KEYLOCKER, ZYDIS_ISA_EXT_KEYLOCKER_WIDE});
     }},
    {"AMD's MONITORX, CLZERO, RDPRU, MCOMMIT and VIA's PadLock: #UD",
     Mode::k64,
     {0x0f, 0x01, 0xfc},
     [](const Case& c) {
       return any_of(c, {ZYDIS_ISA_EXT_MONITORX, ZYDIS_ISA_EXT_CLZERO, ZYDIS_ISA_EXT_RDPRU,
                         ZYDIS_ISA_EXT_MCOMMIT, ZYDIS_ISA_EXT_PADLOCK});
     }},
    {"operands of a NOP are not compared: nothing reads them",
     Mode::k64,
     {0x66, 0x0f, 0x1a, 0xe9},
     [](const Case& c) {
       return both(c, Op::kNop) && same_length(c) && theirs_name(c.theirs) == "nop";
     }},
    {"cache-line operations: 1 byte here (what is checked for access), 64 there",
     Mode::k64,
     {0x0f, 0xae, 0x3b},
     [](const Case& c) {
       return same_length(c) &&
              (both(c, Op::kClflush) || both(c, Op::kClflushopt) || both(c, Op::kClwb));
     }},
    {"LAR and LSL read 16 bits of the source register, which Zydis calls a 32-bit one",
     Mode::k64,
     {0x0f, 0x02, 0xd0},
     [](const Case& c) { return same_length(c) && (both(c, Op::kLar) || both(c, Op::kLsl)); }},
    {"MOVSXD with operand size 16 reads 16 bits (Intel); Zydis says 32 (AMD)",
     Mode::k64,
     {0x66, 0x63, 0x00},
     [](const Case& c) {
       return both(c, Op::kMovsxd) && same_length(c) && c.ours.insn.operand_size == 2;
     }},
    {"SVM instructions: rAX is implied here, listed there",
     Mode::k64,
     {0x0f, 0x01, 0xd8},
     [](const Case& c) {
       return c.ours.status == DecodeStatus::kOk && c.theirs.ok && same_length(c) &&
              c.theirs.insn.meta.isa_ext == ZYDIS_ISA_EXT_SVM;
     }},
    {"F3 with REX.B before 90 is XCHG (as the processor does); Zydis 4.0 says PAUSE",
     Mode::k64,
     {0xf3, 0x41, 0x90},
     [](const Case& c) {
       return both(c, Op::kXchg) && same_length(c) && theirs_name(c.theirs) == "pause";
     }},
    {"67 with SIB base 5, mod 0 and REX.B: no base (as the processor does); Zydis 4.0 says r13d",
     Mode::k64,
     {0x67, 0x41, 0xd3, 0x0c, 0x35},
     [](const Case& c) {
       return c.ours.status == DecodeStatus::kOk && c.theirs.ok && c.mode == Mode::k64 &&
              c.ours.insn.address_size == 4 && c.ours.insn.has_mem && same_length(c) &&
              (c.ours.insn.modrm & 0xc7) == 4 && c.ours.insn.mem.base == kNoReg;
     }},
};

// ---- the comparison --------------------------------------------------------------------------

class Comparison {
 public:
  // Returns the row that matched, or -1.
  int check(const InsnBytes& bytes, Mode mode) {
    Case c;
    c.mode = mode;
    c.bytes = bytes;
    c.ours.status = decode(bytes, mode, &c.ours.insn);
    c.theirs = zydis_.decode(bytes, mode);
    ++compared_;
    std::string what;
    if (c.ours.status == DecodeStatus::kOk && c.theirs.ok) {
      what = difference(c);
      if (what.empty()) ++both_;
    } else if (c.ours.status == DecodeStatus::kOk) {
      what = "only we decode it";
    } else if (c.theirs.ok) {
      what = "only Zydis decodes it";
    } else {
      ++neither_;
    }
    if (!what.empty() && !excused(c)) report(c, what);
    return c.ours.status == DecodeStatus::kOk && !is_length_only(c.ours.insn.op)
               ? static_cast<int>(c.ours.insn.row)
               : -1;
  }
  void print() const {
    std::printf("compared %llu: equal %llu, invalid for both %llu\n",
                static_cast<unsigned long long>(compared_), static_cast<unsigned long long>(both_),
                static_cast<unsigned long long>(neither_));
    for (const Deliberate& d : deliberate) {
      std::printf("  %8llu  %s\n", static_cast<unsigned long long>(d.met), d.reason);
    }
  }
  [[nodiscard]] std::uint64_t failures() const { return failures_; }

 private:
  static bool excused(const Case& c) {
    for (Deliberate& d : deliberate) {
      if (!d.applies(c)) continue;
      ++d.met;
      return true;
    }
    return false;
  }

  void report(const Case& c, const std::string& what) {
    ++failures_;
    const std::string ours =
        c.ours.status == DecodeStatus::kOk ? zydis_name(c.ours.insn) : std::string("-");
    const std::string theirs = c.theirs.ok ? theirs_name(c.theirs) : std::string("-");
    const std::string kind = what + " " + ours + " " + theirs;
    if (seen_[kind]++ >= 2 || seen_.size() > 60) return;
    std::string hex;
    char text[8];
    for (const std::uint8_t b : c.bytes) {
      std::snprintf(text, sizeof text, "%02x ", static_cast<unsigned>(b));
      hex += text;
    }
    ADD_FAILURE() << what << ": mode " << (16 << static_cast<int>(c.mode)) << " bytes " << hex
                  << "ours " << ours << "/" << unsigned{c.ours.insn.length} << " zydis " << theirs
                  << "/" << (c.theirs.ok ? unsigned{c.theirs.insn.length} : 0U) << " status "
                  << std::hex << c.theirs.status;
  }

  Zydis zydis_;
  std::uint64_t compared_ = 0, both_ = 0, neither_ = 0, failures_ = 0;
  std::map<std::string, int> seen_;
};

TEST(DecoderAgainstZydis, DiffersOnPurposeOnlyWhereTheListSays) {
  Comparison comparison;
  for (const Deliberate& d : deliberate) {
    const std::uint64_t before = d.met;
    comparison.check(d.example, d.example_mode);
    EXPECT_EQ(d.met, before + 1) << "no longer a difference: " << d.reason;
  }
}

constexpr Mode kModes[] = {Mode::k16, Mode::k32, Mode::k64};

TEST(DecoderAgainstZydis, AgreesOnEveryRowOfTheTable) {
  RandomSource random(test::announced_seed("decoder_zydis rows"));
  Comparison comparison;
  const auto rows = opcode_rows();
  std::vector<std::uint64_t> hits(rows.size());
  for (std::size_t n = 0; n < rows.size(); ++n) {
    for (unsigned tries = 0; tries < 20000 && hits[n] < 1000; ++tries) {
      const Mode mode = random.one_in(3) ? kModes[random.small(2)] : Mode::k64;
      if (((rows[n].modes >> static_cast<int>(mode)) & 1) == 0) continue;
      const int row = comparison.check(test::random_encoding(rows[n], mode, random), mode);
      if (row >= 0)
        ++hits[static_cast<std::size_t>(row)];
      else if (is_length_only(rows[n].op))
        ++hits[n];
    }
  }
  comparison.print();
  const auto least = std::min_element(hits.begin(), hits.end());
  std::printf("rows %zu, least hit %llu times\n", rows.size(),
              static_cast<unsigned long long>(*least));
  for (std::size_t n = 0; n < rows.size(); ++n) {
    EXPECT_GE(hits[n], 1000U) << "row " << n << " " << op_name(rows[n].op) << " map "
                              << static_cast<int>(rows[n].map) << " opcode " << std::hex
                              << static_cast<int>(rows[n].opcode);
  }
}

TEST(DecoderAgainstZydis, AgreesOnRandomBytes) {
  RandomSource random(test::announced_seed("decoder_zydis bytes"));
  Comparison comparison;
  const test::Deadline deadline;
  do {
    for (int i = 0; i < 1000; ++i) {
      InsnBytes bytes;
      for (std::uint8_t& b : bytes) b = random.byte();
      // Prefixes and escapes are rare in uniform bytes.
      if (random.one_in(2)) bytes[0] = 0x0f;
      if (random.one_in(4)) {
        constexpr std::uint8_t kStart[] = {0x66, 0xf2, 0xf3, 0xf0, 0x48, 0x67, 0x64, 0x2e};
        bytes[1] = bytes[0];
        bytes[0] = kStart[random.small(8)];
      }
      comparison.check(bytes, kModes[random.small(3)]);
    }
  } while (deadline.running());
  comparison.print();
}

}  // namespace
}  // namespace stagetwo::vcpu
