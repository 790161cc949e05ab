// SPDX-License-Identifier: Apache-2.0
#include "base/check.h"

#include "base/sys.h"
#include "base/text.h"

namespace stagetwo::detail {
namespace {

[[noreturn]] void die(FixedString<512>& line) {
  line.append("\n");
  sys::write_stderr(line.data(), line.size());
  sys::abort_process();
}

}  // namespace

void check_failed(const char* file, int line, const char* text) {
  FixedString<512> out;
  out.append("stagetwo: check failed at ").append(file).append(":").append_int(line);
  out.append(": ").append(text);
  die(out);
}

void check_op_failed(const char* file, int line, const char* text, u64 left, u64 right) {
  FixedString<512> out;
  out.append("stagetwo: check failed at ").append(file).append(":").append_int(line);
  out.append(": ").append(text).append(" (").append_hex(left).append(" and ").append_hex(right);
  out.append(")");
  die(out);
}

}  // namespace stagetwo::detail
