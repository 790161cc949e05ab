// SPDX-License-Identifier: Apache-2.0
#include "abi/vfio/trapped_store.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "abi/vfio/vector_store.h"
#include "host/access.h"
#include "vcpu/alu.h"
#include "vcpu/decoder.h"

namespace stagetwo::abi_vfio {
namespace {

using vcpu::Insn;
using vcpu::Op;
using vcpu::Operand;
using vcpu::OperandKind;
using vcpu::rflags::kArithmetic;

constexpr u64 kDirection = 1 << 10;
constexpr unsigned kMostBytes = 16;

// The encoding's numbers of the registers, as the kernel keeps them in a signal frame.
constexpr int kPlaces[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                             REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                             REG_R12, REG_R13, REG_R14, REG_R15};
constexpr unsigned kRax = 0, kRcx = 1, kRsp = 4, kRsi = 6, kRdi = 7;

class Store {
 public:
  Store(ucontext_t* context, HvaRange trapped, StoreSink sink, void* who)
      : context_(context), trapped_(trapped), sink_(sink), who_(who) {}
  bool run();

 private:
  greg_t& reg(int place) { return context_->uc_mcontext.gregs[place]; }
  u64 gpr(unsigned number) { return static_cast<u64>(reg(kPlaces[number])); }
  void set_gpr(unsigned number, unsigned size, u64 value);
  void skip() { reg(REG_RIP) += insn_.length; }

  [[nodiscard]] bool fetch();
  [[nodiscard]] bool fetch_direct_store();
  u64 address();
  [[nodiscard]] bool is_trapped(u64 at, u64 bytes) const {
    const u64 start = trapped_.start().raw();
    return at >= start && bytes <= trapped_.size() && at - start <= trapped_.size() - bytes;
  }
  bool put(u64 at, const void* bytes, unsigned size) {
    if (!is_trapped(at, size)) return false;
    sink_(who_, Hva(at), {static_cast<const u8*>(bytes), size});
    return true;
  }
  bool source(const Operand& from, u8* bytes);
  bool move();
  bool move_vector();
  bool move_64_bytes();
  bool pop();
  bool change();
  template <typename T>
  bool compare_and_exchange(vcpu::LazyFlags& flags, T old, T value, T* result);
  template <typename T>
  u64 bit_place();
  template <typename T>
  bool change_as();
  template <typename T>
  bool result_of(vcpu::LazyFlags& flags, T old, T value, T* result);
  bool string();

  ucontext_t* const context_;
  const HvaRange trapped_;
  const StoreSink sink_;
  void* const who_;
  Insn insn_{};
  u8 code_[vcpu::kMaxInsnLength] = {};
  bool direct_ = false;  // MOVDIR64B
};

bool Store::fetch() {
  const u64 got = host::copy_from(code_, Hva(static_cast<u64>(reg(REG_RIP))), sizeof(code_));
  if (vcpu::decode({code_, got}, vcpu::Mode::k64, &insn_) == vcpu::DecodeStatus::kOk) return true;
  return fetch_direct_store();
}

// 66 0F 38 F8, which the decoder leaves out, as the guests' processor does: but for its number it
// looks as MOVBE from memory.
bool Store::fetch_direct_store() {
  static constexpr u8 kNumber[] = {0x0f, 0x38, 0xf8};
  const auto found =
      std::search(std::begin(code_), std::end(code_), std::begin(kNumber), std::end(kNumber));
  if (found == std::end(code_) || std::find(std::begin(code_), found, 0x66) == found) return false;
  found[2] = 0xf0;
  direct_ = vcpu::decode(code_, vcpu::Mode::k64, &insn_) == vcpu::DecodeStatus::kOk &&
            insn_.op == Op::kMovbe;
  return direct_;
}

u64 Store::address() {
  const vcpu::MemOperand& mem = insn_.mem;
  u64 at = static_cast<u64>(mem.disp);
  if (mem.base == vcpu::kRipBase) {
    at += static_cast<u64>(reg(REG_RIP)) + insn_.length;
  } else if (mem.base != vcpu::kNoReg) {
    at += gpr(mem.base);
  }
  if (mem.index != vcpu::kNoReg) at += gpr(mem.index) * mem.scale;
  return insn_.address_size == 4 ? static_cast<u32>(at) : at;
}

// A value of four bytes clears the upper half, shorter ones keep the rest.
void Store::set_gpr(unsigned number, unsigned size, u64 value) {
  u64 whole = gpr(number);
  if (size == 4) {
    whole = static_cast<u32>(value);
  } else {
    std::memcpy(&whole, &value, size);
  }
  reg(kPlaces[number]) = static_cast<greg_t>(whole);
}

bool Store::source(const Operand& from, u8* bytes) {
  u64 value = 0;
  switch (from.kind) {
    case OperandKind::kGpr:
      value = gpr(from.reg);
      break;
    case OperandKind::kGprHigh:
      value = gpr(from.reg) >> 8;
      break;
    case OperandKind::kImm:
      value = insn_.imm;
      break;
    case OperandKind::kXmm:
      if (context_->uc_mcontext.fpregs == nullptr) return false;
      std::memcpy(bytes, &context_->uc_mcontext.fpregs->_xmm[from.reg], kMostBytes);
      return true;
    default:
      return false;
  }
  std::memcpy(bytes, &value, sizeof(value));
  return true;
}

bool Store::move() {
  u8 bytes[kMostBytes] = {};
  if (insn_.op != Op::kSetcc && !source(insn_.operand[1], bytes)) return false;
  const unsigned size = insn_.operand[0].size;
  if (insn_.op == Op::kMovhps || insn_.op == Op::kMovhpd) std::memcpy(bytes, bytes + 8, 8);
  if (insn_.op == Op::kMovbe) std::reverse(bytes, bytes + size);
  if (insn_.op == Op::kSetcc) {
    vcpu::LazyFlags flags;
    flags.set_exact(static_cast<u64>(reg(REG_EFL)));
    bytes[0] = flags.test(insn_.cond) ? 1 : 0;
  }
  if (!put(address(), bytes, size)) return false;
  skip();
  return true;
}

bool Store::move_vector() {
  VectorStore store;
  if (!read_vector_store({code_, insn_.length}, *context_, &insn_, &store)) return false;
  const u64 at = address();
  for (unsigned i = 0; i < store.bytes; ++i) {
    if (store.keeps(i) && !is_trapped(at + i, 1)) return false;
  }
  for (unsigned i = 0; i < store.bytes;) {
    unsigned end = i;
    while (end < store.bytes && store.keeps(end)) ++end;
    if (end != i) put(at + i, store.value + i, end - i);
    i = end + 1;
  }
  skip();
  return true;
}

bool Store::move_64_bytes() {
  u8 bytes[64];
  if (host::copy_from(bytes, Hva(address()), sizeof(bytes)) != sizeof(bytes)) return false;
  const u64 to = gpr(insn_.operand[0].reg);
  if (!put(insn_.address_size == 4 ? static_cast<u32>(to) : to, bytes, sizeof(bytes))) return false;
  skip();
  return true;
}

// The address is that of after it.
bool Store::pop() {
  u64 value = 0;
  const unsigned size = insn_.operand[0].size;
  const u64 stack = gpr(kRsp);
  if (host::copy_from(&value, Hva(stack), size) != size) return false;
  reg(REG_RSP) = static_cast<greg_t>(stack + size);
  if (put(address(), &value, size)) {
    skip();
    return true;
  }
  reg(REG_RSP) = static_cast<greg_t>(stack);
  return false;
}

// ---- read, change, write

template <typename T>
bool Store::result_of(vcpu::LazyFlags& flags, T old, T value, T* result) {
  namespace alu = vcpu::alu;
  switch (insn_.op) {
    case Op::kAdd:
    case Op::kXadd:
      *result = alu::add<T>(flags, old, value);
      return true;
    case Op::kSub:
      *result = alu::sub<T>(flags, old, value);
      return true;
    case Op::kOr:
      *result = alu::logic<T>(flags, static_cast<T>(old | value));
      return true;
    case Op::kAnd:
      *result = alu::logic<T>(flags, static_cast<T>(old & value));
      return true;
    case Op::kXor:
      *result = alu::logic<T>(flags, static_cast<T>(old ^ value));
      return true;
    case Op::kInc:
      *result = alu::inc<T>(flags, old);
      return true;
    case Op::kDec:
      *result = alu::dec<T>(flags, old);
      return true;
    case Op::kNeg:
      *result = alu::sub<T>(flags, T{0}, old);
      return true;
    case Op::kNot:
      *result = static_cast<T>(~old);
      return true;
    case Op::kAdc:
      *result = alu::adc<T>(flags, old, value);
      return true;
    case Op::kSbb:
      *result = alu::sbb<T>(flags, old, value);
      return true;
    case Op::kXchg:
      *result = value;
      return true;
    case Op::kCmpxchg:
      return compare_and_exchange<T>(flags, old, value, result);
    case Op::kBts:
    case Op::kBtr:
    case Op::kBtc: {
      const T one = static_cast<T>(T{1} << (value & (8 * sizeof(T) - 1)));
      *result = static_cast<T>(insn_.op == Op::kBts   ? old | one
                               : insn_.op == Op::kBtr ? old & ~one
                                                      : old ^ one);
      flags.set_exact((flags.bits() & ~vcpu::rflags::kCf) |
                      ((old & one) != 0 ? vcpu::rflags::kCf : 0));
      return true;
    }
    default:
      return false;
  }
}

// What differs is written back as it was.
template <typename T>
bool Store::compare_and_exchange(vcpu::LazyFlags& flags, T old, T value, T* result) {
  const T wanted = static_cast<T>(gpr(kRax));
  static_cast<void>(vcpu::alu::sub<T>(flags, wanted, old));
  *result = wanted == old ? value : old;
  if (wanted != old) set_gpr(kRax, sizeof(T), old);
  return true;
}

// Of a single bit: a number in a register counts from the operand on, either way.
template <typename T>
u64 Store::bit_place() {
  const bool bits = insn_.op == Op::kBts || insn_.op == Op::kBtr || insn_.op == Op::kBtc;
  if (!bits || insn_.operand[1].kind != OperandKind::kGpr) return address();
  const auto number = static_cast<std::make_signed_t<T>>(gpr(insn_.operand[1].reg));
  constexpr s64 kBits = 8 * sizeof(T);
  const s64 words = (number < 0 ? number - (kBits - 1) : number) / kBits;
  return address() + static_cast<u64>(words) * sizeof(T);
}

template <typename T>
bool Store::change_as() {
  // An exchange names its memory first or second.
  const bool first = insn_.operand[0].kind == OperandKind::kMem;
  const Operand& other = insn_.operand[first ? 1 : 0];
  const u64 at = bit_place<T>();
  u8 bytes[kMostBytes] = {};
  T old = 0, value = 0, result = 0;
  if (insn_.operand_count > 1 && !source(other, bytes)) return false;
  std::memcpy(&value, bytes, sizeof(T));
  if (!is_trapped(at, sizeof(T)) || !host::load(Hva(at), &old)) return false;
  vcpu::LazyFlags flags;
  flags.set_exact(static_cast<u64>(reg(REG_EFL)));
  if (!result_of<T>(flags, old, value, &result)) return false;
  const bool swaps = insn_.op == Op::kXchg || insn_.op == Op::kXadd;
  if (swaps && other.kind == OperandKind::kGprHigh) return false;
  put(at, &result, sizeof(T));
  if (swaps) set_gpr(other.reg, sizeof(T), old);
  reg(REG_EFL) = static_cast<greg_t>((static_cast<u64>(reg(REG_EFL)) & ~kArithmetic) |
                                     (flags.bits() & kArithmetic));
  skip();
  return true;
}

bool Store::change() {
  switch (insn_.operand_size) {
    case 1:
      return change_as<u8>();
    case 2:
      return change_as<u16>();
    case 4:
      return change_as<u32>();
    default:
      return change_as<u64>();
  }
}

// ---- STOS and MOVS

bool Store::string() {
  if (insn_.address_size != 8) return false;
  const unsigned size = insn_.operand_size;
  const bool repeats = insn_.rep || insn_.repne;
  const bool down = (static_cast<u64>(reg(REG_EFL)) & kDirection) != 0;
  const u64 step = down ? ~u64{size} + 1 : u64{size};
  bool any = false;
  for (u64 left = repeats ? gpr(kRcx) : 1; left != 0; --left) {
    u64 value = gpr(kRax);
    if (insn_.op == Op::kMovs) {
      value = 0;
      if (host::copy_from(&value, Hva(gpr(kRsi)), size) != size) return any;
    }
    if (!put(gpr(kRdi), &value, size)) return any;
    any = true;
    reg(REG_RDI) = static_cast<greg_t>(gpr(kRdi) + step);
    if (insn_.op == Op::kMovs) reg(REG_RSI) = static_cast<greg_t>(gpr(kRsi) + step);
    if (repeats) reg(REG_RCX) = static_cast<greg_t>(left - 1);
  }
  skip();
  return true;
}

bool Store::run() {
  if (!fetch()) return false;
  if (direct_) return move_64_bytes();
  const bool own_segment = insn_.segment != vcpu::Seg::kFs && insn_.segment != vcpu::Seg::kGs;
  if (insn_.op == Op::kStos || insn_.op == Op::kMovs) return own_segment && string();
  if (!insn_.has_mem || !own_segment) return false;
  switch (insn_.op) {
    case Op::kMov:
    case Op::kMovnti:
    case Op::kMovups:
    case Op::kMovupd:
    case Op::kMovaps:
    case Op::kMovapd:
    case Op::kMovdqa:
    case Op::kMovdqu:
    case Op::kMovntps:
    case Op::kMovntpd:
    case Op::kMovntdq:
    case Op::kMovss:
    case Op::kMovsd:
    case Op::kMovlps:
    case Op::kMovlpd:
    case Op::kMovhps:
    case Op::kMovhpd:
    case Op::kMovd:
    case Op::kMovq:
    case Op::kMovbe:
    case Op::kSetcc:
      return insn_.operand[0].kind == OperandKind::kMem && move();
    case Op::kPop:
      return pop();
    case Op::kVex:
    case Op::kEvex:
    case Op::kSseLater:
      return move_vector();
    default:
      return change();
  }
}

}  // namespace

bool emulate_store(ucontext_t* context, HvaRange trapped, StoreSink sink, void* who) {
  return Store(context, trapped, sink, who).run();
}

}  // namespace stagetwo::abi_vfio
