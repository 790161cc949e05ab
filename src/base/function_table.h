// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where the functions of a loaded object begin and end, also those without a name: its table for
// unwinding says so (.eh_frame_hdr; LSB Core, "Exception Frames"). The dynamic loader has no names
// for its own munmap; its text is read this way (shim/libc_calls.h).
//
// Pre: the object is mapped from its first byte on and stays. Context: any; reads only, allocates
// nothing. Failure: nullopt; the table is missing or of a form that is not known.

#include <optional>

#include "base/types.h"

namespace stagetwo {

struct CodeSpan {
  u64 start = 0;
  u64 size = 0;
  [[nodiscard]] u64 end() const { return start + size; }
};

class FunctionTable {
 public:
  // `base`: where the object's file begins in memory.
  [[nodiscard]] static std::optional<FunctionTable> of_object(u64 base);

  // Its executable segment.
  [[nodiscard]] CodeSpan text() const { return text_; }
  // The function that `pc` is in.
  [[nodiscard]] std::optional<CodeSpan> function_at(u64 pc) const;

 private:
  FunctionTable(CodeSpan text, u64 table, u32 count) : text_(text), table_(table), count_(count) {}

  CodeSpan text_;
  u64 table_;  // of .eh_frame_hdr
  u32 count_;
};

}  // namespace stagetwo
