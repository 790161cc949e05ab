// SPDX-License-Identifier: Apache-2.0
#include "base/arch/syscall_site.h"

#include <cstring>

namespace stagetwo::arch {
namespace {

enum class Shape : u8 {
  kUnknown,
  kPlain,   // opcode
  kImm8,    // opcode, byte
  kImm32,   // opcode, four bytes
  kRel8,    // a branch
  kRel32,   // a branch or a call
  kModrm,   // opcode, operand
  kModrm8,  // opcode, operand, byte
  kModrm32,
  kTest8,   // F6: with a byte for /0 and /1
  kTest32,  // F7
};

// What compilers make of small functions of integers; nothing that touches a vector register.
Shape shape_of(u8 opcode) {
  if (opcode >= 0x50 && opcode <= 0x5f) return Shape::kPlain;  // push, pop
  if (opcode >= 0x70 && opcode <= 0x7f) return Shape::kRel8;   // jcc
  if (opcode >= 0xb8 && opcode <= 0xbf) return Shape::kImm32;  // mov
  // add, or, adc, sbb, and, sub, xor, cmp between a register and an operand
  if (opcode < 0x40 && (opcode & 7) < 4) return Shape::kModrm;
  switch (opcode) {
    case 0x90:  // nop
    case 0xc3:  // ret
    case 0xc9:  // leave
    case 0xf4:  // hlt, behind a call that does not come back
      return Shape::kPlain;
    case 0x3d:  // cmp
    case 0x25:  // and
    case 0xa9:  // test
      return Shape::kImm32;
    case 0x3c:
    case 0xa8:
      return Shape::kImm8;
    case 0xeb:
      return Shape::kRel8;
    case 0xe8:
    case 0xe9:
      return Shape::kRel32;
    case 0x63:  // movsxd
    case 0x84:  // test
    case 0x85:
    case 0x88:  // mov
    case 0x89:
    case 0x8a:
    case 0x8b:
    case 0x8d:  // lea
    case 0xff:  // call through a table, inc, dec
      return Shape::kModrm;
    case 0x80:
    case 0x83:
    case 0xc0:
    case 0xc1:
    case 0xc6:
      return Shape::kModrm8;
    case 0x81:
    case 0xc7:
      return Shape::kModrm32;
    case 0xf6:
      return Shape::kTest8;
    case 0xf7:
      return Shape::kTest32;
    default:
      return Shape::kUnknown;
  }
}

Shape shape_of_second(u8 opcode) {
  if (opcode == 0x05 || opcode == 0x0b) return Shape::kPlain;  // syscall, ud2
  if (opcode == 0x1f) return Shape::kModrm;                    // nop
  if (opcode >= 0x40 && opcode <= 0x4f) return Shape::kModrm;  // cmov
  if (opcode >= 0x80 && opcode <= 0x8f) return Shape::kRel32;  // jcc
  if (opcode >= 0x90 && opcode <= 0x9f) return Shape::kModrm;  // setcc
  const bool extends = (opcode & 0xf6) == 0xb6;                // movzx, movsx
  return extends ? Shape::kModrm : Shape::kUnknown;
}

// ModRM, SIB and displacement; 0: it does not end before `left`.
size_t operand_size(const u8* at, size_t left) {
  if (left < 1) return 0;
  const unsigned mod = *at >> 6;
  const unsigned rm = *at & 7;
  size_t size = 1;
  unsigned base = rm;
  if (mod != 3 && rm == 4) {
    if (left < 2) return 0;
    base = at[1] & 7;
    size = 2;
  }
  if (mod == 1) size += 1;
  if (mod == 2 || (mod == 0 && base == 5)) size += 4;
  return size <= left ? size : 0;
}

struct Instruction {
  size_t size = 0;
  bool branches = false;
  s64 target = 0;  // of a branch: from the instruction's end
};

Instruction with_immediate(size_t head, size_t immediate, size_t left) {
  return {head + immediate <= left ? head + immediate : 0};
}

Instruction decode_tail(Shape shape, const u8* code, size_t head, size_t left) {
  Instruction branch;
  switch (shape) {
    case Shape::kUnknown:
      return {};
    case Shape::kPlain:
      return {head};
    case Shape::kImm8:
      return with_immediate(head, 1, left);
    case Shape::kImm32:
      return with_immediate(head, 4, left);
    case Shape::kRel8:
    case Shape::kRel32: {
      branch = with_immediate(head, shape == Shape::kRel8 ? 1 : 4, left);
      branch.branches = branch.size != 0;
      s32 wide = 0;
      if (branch.branches && shape == Shape::kRel32) std::memcpy(&wide, code + head, sizeof(wide));
      if (branch.branches && shape == Shape::kRel8) wide = static_cast<signed char>(code[head]);
      branch.target = wide;
      return branch;
    }
    default:
      break;
  }
  const size_t operand = operand_size(code + head, left - head);
  if (operand == 0) return {};
  const bool tests = (code[head] >> 3 & 7) < 2;
  size_t immediate = 0;
  if (shape == Shape::kModrm8 || (shape == Shape::kTest8 && tests)) immediate = 1;
  if (shape == Shape::kModrm32 || (shape == Shape::kTest32 && tests)) immediate = 4;
  return with_immediate(head + operand, immediate, left);
}

// The instruction at `code`; size 0: not one of those known here.
Instruction decode(const u8* code, size_t left) {
  constexpr u8 kEndbr[] = {0xf3, 0x0f, 0x1e, 0xfa};
  if (left >= sizeof(kEndbr) && std::memcmp(code, kEndbr, sizeof(kEndbr)) == 0) {
    return {sizeof(kEndbr)};
  }
  size_t head = 0;
  bool short_operands = false;
  while (head < left && (code[head] == 0x64 || code[head] == 0x2e || code[head] == 0x66)) {
    short_operands |= code[head] == 0x66;
    ++head;
  }
  bool wide = false;
  if (head < left && (code[head] & 0xf0) == 0x40) {
    wide = (code[head] & 8) != 0;
    ++head;
  }
  if (head >= left) return {};
  Shape shape = Shape::kUnknown;
  const u8 first = code[head++];
  if (first == 0x0f) {
    if (head >= left) return {};
    shape = shape_of_second(code[head++]);
  } else {
    shape = shape_of(first);
  }
  const bool moves_constant = first >= 0xb8 && first <= 0xbf;
  const bool has_imm32 = shape == Shape::kImm32 || shape == Shape::kModrm32 ||
                         shape == Shape::kTest32 || shape == Shape::kRel32;
  if ((short_operands && has_imm32) || (wide && moves_constant)) return {};  // other lengths
  return decode_tail(shape, code, head, left);
}

}  // namespace

std::array<u8, 7> syscall_pair(u32 number) {
  std::array<u8, 7> pair{0xb8, 0, 0, 0, 0, 0x0f, 0x05};
  std::memcpy(pair.data() + 1, &number, sizeof(number));
  return pair;
}

std::optional<SyscallSite> find_syscall_site(const u8* code, size_t size, u32 number) {
  const auto pair = syscall_pair(number);
  std::optional<SyscallSite> site;
  // The pair first: which branches lead into it is only known then.
  for (size_t at = 0; at < size;) {
    const Instruction one = decode(code + at, size - at);
    if (one.size == 0) return std::nullopt;
    if (size - at > pair.size() && std::memcmp(code + at, pair.data(), pair.size()) == 0) {
      if (site) return std::nullopt;
      site = SyscallSite{static_cast<u32>(at), static_cast<u32>(at + pair.size())};
    }
    at += one.size;
  }
  if (!site) return std::nullopt;
  for (size_t at = 0; at < size;) {
    const Instruction one = decode(code + at, size - at);
    at += one.size;
    const s64 target = static_cast<s64>(at) + one.target;
    if (one.branches && target > site->jump && target < site->after) return std::nullopt;
  }
  return site;
}

std::optional<std::array<u8, kJumpBytes>> encode_jump(u64 from, u64 to) {
  const s64 distance = static_cast<s64>(to - (from + kJumpBytes));
  const s32 near = static_cast<s32>(distance);
  if (near != distance) return std::nullopt;
  std::array<u8, kJumpBytes> jump{0xe9};
  std::memcpy(jump.data() + 1, &near, sizeof(near));
  return jump;
}

}  // namespace stagetwo::arch
