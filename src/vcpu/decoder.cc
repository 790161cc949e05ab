// SPDX-License-Identifier: Apache-2.0
#include "vcpu/decoder.h"

#include <algorithm>

#include "vcpu/opcode_table.h"

// One pass over the bytes: prefixes, opcode and map, ModRM with its displacement, the row of the
// table, then the row's operands, which take the immediates in order. The order of the steps is the
// order of the bytes, so that running out of them is one condition.

namespace stagetwo::vcpu {
namespace {

constexpr const char* kOpNames[] = {
#define ST_OP(name) #name,
#include "vcpu/op_list.inc"
#undef ST_OP
};
static_assert(std::size(kOpNames) == kOpCount, "Op::kEvex is the last operation");

constexpr std::uint8_t kRexW = 8;
constexpr std::uint8_t kRexR = 4;
constexpr std::uint8_t kRexX = 2;
constexpr std::uint8_t kRexB = 1;

class Decoder {
 public:
  Decoder(std::span<const std::uint8_t> bytes, Mode mode, Insn* insn)
      : bytes_(bytes.first(std::min(bytes.size(), kMaxInsnLength))),
        whole_(bytes.size() >= kMaxInsnLength),
        mode_(mode),
        insn_(*insn) {}

  DecodeStatus run();

 private:
  // Bytes. After the end every read is 0 and `ran_out_` is set; it is looked at once a step.
  std::uint8_t next() {
    if (position_ == bytes_.size()) [[unlikely]] {
      ran_out_ = true;
      return 0;
    }
    return bytes_[position_++];
  }
  std::uint64_t next_unsigned(unsigned size);
  std::int64_t next_signed(unsigned size);
  [[nodiscard]] DecodeStatus out_of_bytes() const {
    return whole_ ? DecodeStatus::kTooLong : DecodeStatus::kNeedMoreBytes;
  }

  // Steps.
  std::uint8_t take_prefixes();
  bool take_one_prefix(std::uint8_t byte);
  bool starts_vex(std::uint8_t byte) const;
  DecodeStatus take_vex(std::uint8_t escape);
  void take_modrm();
  void take_memory();
  void take_memory16(unsigned mod, unsigned rm);
  std::uint8_t take_sib(unsigned mod);
  void settle_segment();
  const Row* find_row() const;
  void settle_sizes(const Row& row);
  bool take_operand(Enc enc, Operand* operand);
  bool operand_in_rm(const EncSpec& spec, Operand* operand) const;
  bool operand_in_reg(const EncSpec& spec, Operand* operand) const;

  [[nodiscard]] bool rex(std::uint8_t bit) const { return (rex_ & bit) != 0; }
  [[nodiscard]] unsigned extended(unsigned low, std::uint8_t bit) const {
    return low | (rex(bit) ? 8U : 0U);
  }
  [[nodiscard]] std::uint8_t resolve(std::uint8_t size) const;
  [[nodiscard]] PrefixClass prefix_class() const;
  void set_gpr(Operand* operand, unsigned reg, std::uint8_t size) const;

  const std::span<const std::uint8_t> bytes_;
  const bool whole_;  // the span is as long as an instruction can be
  const Mode mode_;
  Insn& insn_;

  std::size_t position_ = 0;
  bool ran_out_ = false;
  bool lock_ = false;
  bool operand_override_ = false;
  bool address_override_ = false;
  bool segment_override_ = false;
  bool has_rex_ = false;
  std::uint8_t repeat_ = 0;  // F3, F2 or none: the last one counts
  std::uint8_t rex_ = 0;
  std::uint8_t size_v_ = 0;  // operand size before byte forms are told apart
  bool mod3_ = false;
};

std::uint64_t Decoder::next_unsigned(unsigned size) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= std::uint64_t{next()} << (8 * i);
  return value;
}

std::int64_t Decoder::next_signed(unsigned size) {
  const unsigned shift = 64 - 8 * size;
  return static_cast<std::int64_t>(next_unsigned(size) << shift) >> shift;
}

bool Decoder::take_one_prefix(std::uint8_t byte) {
  switch (byte) {
    case 0xf0:
      lock_ = true;
      return true;
    case 0xf2:
    case 0xf3:
      repeat_ = byte;
      return true;
    case 0x66:
      operand_override_ = true;
      return true;
    case 0x67:
      address_override_ = true;
      return true;
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
      // Null prefixes in 64-bit mode: the four segments have no base there.
      if (mode_ != Mode::k64) {
        segment_override_ = true;
        insn_.segment = static_cast<Seg>((byte - 0x26) >> 3);
      }
      return true;
    case 0x64:
    case 0x65:
      segment_override_ = true;
      insn_.segment = static_cast<Seg>(byte - 0x64 + static_cast<int>(Seg::kFs));
      return true;
    default:
      return false;
  }
}

// Returns the first opcode byte. A REX prefix counts only directly before the opcode.
std::uint8_t Decoder::take_prefixes() {
  while (true) {
    const std::uint8_t byte = next();
    if (ran_out_) return 0;
    if (take_one_prefix(byte)) {
      has_rex_ = false;
      rex_ = 0;
    } else if (mode_ == Mode::k64 && (byte & 0xf0) == 0x40) {
      has_rex_ = true;
      rex_ = byte;
    } else {
      return byte;
    }
  }
}

// C4, C5 and 62 are LES, LDS and BOUND outside 64-bit mode, where their ModRM names memory.
bool Decoder::starts_vex(std::uint8_t byte) const {
  if (byte != 0xc4 && byte != 0xc5 && byte != 0x62) return false;
  if (mode_ == Mode::k64) return true;
  return position_ < bytes_.size() && (bytes_[position_] & 0xc0) == 0xc0;
}

DecodeStatus Decoder::take_vex(std::uint8_t escape) {
  insn_.op = escape == 0x62 ? Op::kEvex : Op::kVex;
  const std::uint8_t first = next();
  unsigned map = 1;
  if (escape == 0xc4) {
    map = first & 0x1f;
    next();
  } else if (escape == 0x62) {
    map = first & 0x07;
    const std::uint8_t second = next();
    next();
    if (!ran_out_ && ((first & 0x08) != 0 || (second & 0x04) == 0)) return DecodeStatus::kInvalid;
  }
  if (ran_out_) return out_of_bytes();
  const bool legacy = lock_ || repeat_ != 0 || operand_override_ || has_rex_;
  const bool half = escape == 0x62 && (map == 5 || map == 6);  // AVX512-FP16
  if (legacy || (!half && (map == 0 || map > 3))) return DecodeStatus::kInvalid;
  // R and X are stored inverted; B stands in the three-byte forms only.
  if ((first & 0x80) == 0) rex_ |= kRexR;
  if (escape != 0xc5 && (first & 0x40) == 0) rex_ |= kRexX;
  if (escape != 0xc5 && (first & 0x20) == 0) rex_ |= kRexB;
  insn_.map = static_cast<std::uint8_t>(map);
  insn_.opcode = next();
  const bool vzero = insn_.op == Op::kVex && map == 1 && insn_.opcode == 0x77;
  if (!vzero) {
    take_modrm();
    if (!mod3_) take_memory();
  }
  const bool shift_group = insn_.opcode >= 0x70 && insn_.opcode <= 0x73;
  const bool has_imm = map == 3 || (map == 1 && (shift_group || insn_.opcode == 0xc2 ||
                                                 (insn_.opcode >= 0xc4 && insn_.opcode <= 0xc6)));
  if (has_imm) insn_.imm = next();
  if (ran_out_) return out_of_bytes();
  settle_segment();
  insn_.length = static_cast<std::uint8_t>(position_);
  return DecodeStatus::kOk;
}

void Decoder::take_modrm() {
  insn_.modrm = next();
  insn_.has_modrm = true;
  mod3_ = insn_.modrm >= 0xc0;
}

void Decoder::take_memory16(unsigned mod, unsigned rm) {
  constexpr std::uint8_t kBx = 3, kBp = 5, kSi = 6, kDi = 7;
  constexpr std::uint8_t kBase[8] = {kBx, kBx, kBp, kBp, kSi, kDi, kBp, kBx};
  constexpr std::uint8_t kIndex[8] = {kSi, kDi, kSi, kDi, kNoReg, kNoReg, kNoReg, kNoReg};
  if (mod == 0 && rm == 6) {
    insn_.mem.disp = next_signed(2);
    return;
  }
  insn_.mem.base = kBase[rm];
  insn_.mem.index = kIndex[rm];
  if (mod != 0) insn_.mem.disp = next_signed(mod);
}

// Returns the number of displacement bytes.
std::uint8_t Decoder::take_sib(unsigned mod) {
  const std::uint8_t sib = next();
  const unsigned index = extended((sib >> 3) & 7U, kRexX);
  if (index != 4) {
    insn_.mem.index = static_cast<std::uint8_t>(index);
    insn_.mem.scale = static_cast<std::uint8_t>(1U << (sib >> 6));
  }
  if ((sib & 7) == 5 && mod == 0) return 4;
  insn_.mem.base = static_cast<std::uint8_t>(extended(sib & 7U, kRexB));
  return mod == 0 ? 0 : mod == 1 ? 1 : 4;
}

void Decoder::take_memory() {
  const unsigned mod = insn_.modrm >> 6;
  const unsigned rm = insn_.modrm & 7U;
  insn_.has_mem = true;
  if (insn_.address_size == 2) {
    take_memory16(mod, rm);
    return;
  }
  unsigned disp_size = mod == 0 ? 0 : mod == 1 ? 1 : 4;
  if (rm == 4) {
    disp_size = take_sib(mod);
  } else if (rm == 5 && mod == 0) {
    disp_size = 4;
    if (mode_ == Mode::k64) insn_.mem.base = kRipBase;
  } else {
    insn_.mem.base = static_cast<std::uint8_t>(extended(rm, kRexB));
  }
  if (disp_size != 0) insn_.mem.disp = next_signed(disp_size);
}

// Without an override the stack pointers as base mean SS.
void Decoder::settle_segment() {
  if (segment_override_) return;
  const bool stack = insn_.has_mem && (insn_.mem.base == 4 || insn_.mem.base == 5);
  insn_.segment = stack ? Seg::kSs : Seg::kDs;
}

PrefixClass Decoder::prefix_class() const {
  if (repeat_ == 0xf3) return PrefixClass::kF3;
  if (repeat_ == 0xf2) return PrefixClass::kF2;
  return operand_override_ ? PrefixClass::k66 : PrefixClass::kNp;
}

const Row* Decoder::find_row() const {
  std::uint8_t key = rex(kRexW) ? kKeyW : 0;
  if (insn_.has_modrm) {
    key |= insn_.modrm & (kKeyReg | kKeyRm);
    if (mod3_) key |= kKeyMod3;
  } else if (rex(kRexB)) {
    key |= kKeyB;
  }
  const PrefixClass prefix = prefix_class();
  const std::span<const Row> rows = opcode_rows();
  for (const std::uint16_t n : rows_of(static_cast<OpcodeMap>(insn_.map), insn_.opcode)) {
    if (rows[n].matches(prefix, mode_, key)) return &rows[n];
  }
  return nullptr;
}

void Decoder::settle_sizes(const Row& row) {
  constexpr std::uint8_t kMandatory66 = 1U << static_cast<unsigned>(PrefixClass::k66);
  const bool override = operand_override_ && row.prefixes != kMandatory66;
  if (mode_ == Mode::k64) {
    if ((row.flags & kRowForce64) != 0) {
      size_v_ = 8;
    } else if ((row.flags & kRowDefault64) != 0) {
      size_v_ = override && !rex(kRexW) ? 2 : 8;
    } else {
      size_v_ = rex(kRexW) ? 8 : override ? 2 : 4;
    }
  } else {
    size_v_ = (mode_ == Mode::k32) != override ? 4 : 2;
  }
  if ((row.flags & kRowPort) != 0) size_v_ = std::min<std::uint8_t>(size_v_, 4);
  insn_.operand_size = (row.flags & kRowByte) != 0 ? 1 : size_v_;
}

std::uint8_t Decoder::resolve(std::uint8_t size) const {
  switch (size) {
    case kSizeV:
      return size_v_;
    case kSizeZ:
      return std::min<std::uint8_t>(size_v_, 4);
    case kSizeY:
      return rex(kRexW) ? 8 : 4;
    case kSizeN:
      return mode_ == Mode::k64 ? 8 : 4;
    case kSizeP:
      return static_cast<std::uint8_t>(2 + size_v_);
    case kSizeS:
      return mode_ == Mode::k64 ? 10 : 6;
    case kSizeA:
      return static_cast<std::uint8_t>(2 * size_v_);
    default:
      return size;
  }
}

void Decoder::set_gpr(Operand* operand, unsigned reg, std::uint8_t size) const {
  const bool high = size == 1 && !has_rex_ && reg >= 4;
  operand->kind = high ? OperandKind::kGprHigh : OperandKind::kGpr;
  operand->reg = static_cast<std::uint8_t>(high ? reg - 4 : reg);
  operand->size = size;
}

bool Decoder::operand_in_rm(const EncSpec& spec, Operand* operand) const {
  const unsigned rm = insn_.modrm & 7U;
  if (insn_.has_mem) {
    operand->kind = OperandKind::kMem;
    operand->size = resolve(spec.other);
  } else if (spec.kind == OperandKind::kGpr) {
    set_gpr(operand, extended(rm, kRexB), resolve(spec.reg_size));
  } else {
    const bool mmx = spec.kind == OperandKind::kMmx;
    *operand = {spec.kind, static_cast<std::uint8_t>(mmx ? rm : extended(rm, kRexB)),
                spec.reg_size};
  }
  return true;
}

bool Decoder::operand_in_reg(const EncSpec& spec, Operand* operand) const {
  const unsigned low = (insn_.modrm >> 3) & 7U;
  const unsigned reg = extended(low, kRexR);
  const std::uint8_t size = resolve(spec.reg_size);
  switch (spec.kind) {
    case OperandKind::kGpr:
      set_gpr(operand, reg, size);
      return true;
    case OperandKind::kMmx:
    case OperandKind::kSegment:
      *operand = {spec.kind, static_cast<std::uint8_t>(low), size};
      if (spec.kind == OperandKind::kMmx) return true;
      // CS cannot be loaded by MOV.
      return low <= 5 && (insn_.op != Op::kMovToSeg || low != static_cast<unsigned>(Seg::kCs));
    case OperandKind::kControl:
      *operand = {spec.kind, static_cast<std::uint8_t>(reg), size};
      return reg == 0 || (reg >= 2 && reg <= 4) || reg == 8;
    case OperandKind::kDebug:
      *operand = {spec.kind, static_cast<std::uint8_t>(reg), size};
      return reg < 8;
    default:
      *operand = {spec.kind, static_cast<std::uint8_t>(reg), size};
      return true;
  }
}

// False: the encoding names a register that does not exist.
bool Decoder::take_operand(Enc enc, Operand* operand) {
  const EncSpec spec = enc_spec(enc);
  const std::uint8_t size = resolve(spec.other);
  switch (spec.source) {
    case Source::kNone:
      return true;
    case Source::kRm:
      return operand_in_rm(spec, operand);
    case Source::kReg:
      return operand_in_reg(spec, operand);
    case Source::kOpcodeLow:
      set_gpr(operand, extended(insn_.opcode & 7U, kRexB), resolve(spec.reg_size));
      return true;
    case Source::kFixed:
      *operand = {spec.kind, spec.other, resolve(spec.reg_size)};
      return true;
    case Source::kOne:
      *operand = {spec.kind, 0, 1};
      insn_.imm = 1;
      return true;
    case Source::kImmZero:
      *operand = {spec.kind, 0, size};
      insn_.imm = next_unsigned(size);
      return true;
    case Source::kImmSign:
    case Source::kRel:
      *operand = {spec.kind, 0, size};
      insn_.imm = static_cast<std::uint64_t>(next_signed(size));
      return true;
    case Source::kImmLevel:
      insn_.imm2 = next();
      return true;
    case Source::kFar:
      *operand = {spec.kind, 0, size};
      insn_.imm = next_unsigned(size_v_);
      insn_.selector = static_cast<std::uint16_t>(next_unsigned(2));
      return true;
    case Source::kMoffs:
      *operand = {spec.kind, 0, size};
      insn_.has_mem = true;
      insn_.mem.disp = insn_.address_size == 8
                           ? static_cast<std::int64_t>(next_unsigned(8))
                           : static_cast<std::int64_t>(next_unsigned(insn_.address_size));
      return true;
  }
  return false;
}

DecodeStatus Decoder::run() {
  insn_ = Insn{};
  std::uint8_t opcode = take_prefixes();
  if (ran_out_) return out_of_bytes();
  insn_.address_size = mode_ == Mode::k64                          ? (address_override_ ? 4 : 8)
                       : (mode_ == Mode::k32) != address_override_ ? 4
                                                                   : 2;
  if (starts_vex(opcode)) return take_vex(opcode);
  OpcodeMap map = OpcodeMap::kOneByte;
  if (opcode == 0x0f) {
    map = OpcodeMap::k0F;
    opcode = next();
    if (!ran_out_ && (opcode == 0x38 || opcode == 0x3a)) {
      map = opcode == 0x38 ? OpcodeMap::k0F38 : OpcodeMap::k0F3A;
      opcode = next();
    }
    if (ran_out_) return out_of_bytes();
  }
  insn_.map = static_cast<std::uint8_t>(map);
  insn_.opcode = opcode;
  if (has_modrm(map, opcode)) take_modrm();
  if (ran_out_) return out_of_bytes();
  const Row* row = find_row();
  if (row == nullptr) return DecodeStatus::kInvalid;

  insn_.op = row->op;
  insn_.row = static_cast<std::uint16_t>(row - opcode_rows().data());
  insn_.rex = has_rex_;
  insn_.rex_w = rex(kRexW);
  settle_sizes(*row);
  if (insn_.has_modrm && !mod3_ && (row->flags & kRowModIgnored) == 0) take_memory();
  for (const Enc enc : row->enc) {
    if (enc == Enc::None) break;
    if (!take_operand(enc, &insn_.operand[insn_.operand_count])) return DecodeStatus::kInvalid;
    if (insn_.operand[insn_.operand_count].kind != OperandKind::kNone) ++insn_.operand_count;
  }
  if (ran_out_) return out_of_bytes();
  if (lock_) {
    const bool lockable = (row->flags & kRowLock) != 0;
    if (!lockable || insn_.operand[0].kind != OperandKind::kMem) return DecodeStatus::kInvalid;
    insn_.lock = true;
  }
  if ((row->flags & kRowCond) != 0) insn_.cond = static_cast<Cond>(opcode & 0x0f);
  if ((row->flags & kRowString) != 0) {
    insn_.rep = repeat_ == 0xf3;
    insn_.repne = repeat_ == 0xf2;
  }
  settle_segment();
  insn_.length = static_cast<std::uint8_t>(position_);
  return DecodeStatus::kOk;
}

}  // namespace

const char* op_name(Op op) {
  return kOpNames[static_cast<std::size_t>(op)];
}

DecodeStatus decode(std::span<const std::uint8_t> bytes, Mode mode, Insn* insn) {
  return Decoder(bytes, mode, insn).run();
}

}  // namespace stagetwo::vcpu
