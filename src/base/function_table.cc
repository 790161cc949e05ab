// SPDX-License-Identifier: Apache-2.0
#include "base/function_table.h"

#include <elf.h>

#include <cstring>

namespace stagetwo {
namespace {

// DWARF's pointer encodings, as every linker of this platform writes them.
constexpr u8 kPcRelative4 = 0x1b;
constexpr u8 kUnsigned4 = 0x03;
constexpr u8 kTableRelative4 = 0x3b;

struct Head {
  u8 version;
  u8 frames_encoding;
  u8 count_encoding;
  u8 table_encoding;
  s32 frames;
  u32 count;
};
struct Row {
  s32 function;  // both from the head on, sorted by the first
  s32 frame;
};
struct Frame {
  u32 length;
  u32 common;
  s32 function;  // from this field on
  u32 size;
};

template <typename T>
T read(u64 at) {
  T value;
  std::memcpy(&value, reinterpret_cast<const void*>(at), sizeof(value));
  return value;
}
u64 plus(u64 base, s32 offset) {
  return base + static_cast<u64>(s64{offset});
}

}  // namespace

std::optional<FunctionTable> FunctionTable::of_object(u64 base) {
  const auto elf = read<Elf64_Ehdr>(base);
  if (std::memcmp(elf.e_ident, ELFMAG, SELFMAG) != 0) return std::nullopt;
  CodeSpan text;
  u64 unwind = 0;
  for (unsigned i = 0; i < elf.e_phnum; ++i) {
    const auto segment = read<Elf64_Phdr>(base + elf.e_phoff + i * sizeof(Elf64_Phdr));
    if (segment.p_type == PT_GNU_EH_FRAME) unwind = base + segment.p_vaddr;
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_X) == 0) continue;
    if (text.size != 0) return std::nullopt;
    text = {base + segment.p_vaddr, segment.p_filesz};
  }
  if (unwind == 0 || text.size == 0) return std::nullopt;
  const auto head = read<Head>(unwind);
  const bool known = head.version == 1 && head.frames_encoding == kPcRelative4 &&
                     head.count_encoding == kUnsigned4 && head.table_encoding == kTableRelative4;
  if (!known) return std::nullopt;
  return FunctionTable(text, unwind, head.count);
}

std::optional<CodeSpan> FunctionTable::function_at(u64 pc) const {
  const u64 rows = table_ + sizeof(Head);
  u64 first = 0;
  u64 end = count_;
  while (first < end) {
    const u64 middle = first + (end - first) / 2;
    if (plus(table_, read<Row>(rows + middle * sizeof(Row)).function) <= pc) {
      first = middle + 1;
    } else {
      end = middle;
    }
  }
  if (first == 0) return std::nullopt;
  const auto row = read<Row>(rows + (first - 1) * sizeof(Row));
  const u64 at = plus(table_, row.frame);
  const auto frame = read<Frame>(at);
  const u64 start = plus(at + offsetof(Frame, function), frame.function);
  // The frame says the same in its own words, or its encoding is another.
  if (start != plus(table_, row.function) || pc - start >= frame.size) return std::nullopt;
  return CodeSpan{start, frame.size};
}

}  // namespace stagetwo
