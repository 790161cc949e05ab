// SPDX-License-Identifier: Apache-2.0
// libFuzzer entry of the decoder: any bytes, any mode. The sanitizers watch for a read past the
// span; the promises of decoder.h are checked here.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "vcpu/decoder.h"

namespace {

using stagetwo::vcpu::decode;
using stagetwo::vcpu::DecodeStatus;
using stagetwo::vcpu::Insn;
using stagetwo::vcpu::kMaxInsnLength;
using stagetwo::vcpu::kOpCount;
using stagetwo::vcpu::Mode;

void require(bool promise) {
  if (!promise) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto mode = static_cast<Mode>(data[0] % 3);
  // A heap copy of exactly this size ends where the sanitizer watches.
  const std::vector<std::uint8_t> bytes(data + 1, data + size);
  Insn insn;
  const DecodeStatus status = decode(bytes, mode, &insn);
  if (status == DecodeStatus::kNeedMoreBytes) require(bytes.size() < kMaxInsnLength);
  if (status == DecodeStatus::kTooLong) require(bytes.size() >= kMaxInsnLength);
  if (status != DecodeStatus::kOk) return 0;
  require(insn.length > 0 && insn.length <= bytes.size() && insn.length <= kMaxInsnLength);
  require(static_cast<std::size_t>(insn.op) < kOpCount && insn.operand_count <= 4);
  return 0;
}
