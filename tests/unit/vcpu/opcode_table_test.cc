// SPDX-License-Identifier: Apache-2.0
// The invariants of the opcode table as a whole. That no row is unreachable is asserted by
// decoder_zydis_test.cc, which meets every row a thousand times.

#include "vcpu/opcode_table.h"

#include <gtest/gtest.h>

#include <vector>

namespace stagetwo::vcpu {
namespace {

TEST(OpcodeTable, NamesEveryOperationInSomeRow) {
  std::vector<bool> seen(kOpCount);
  for (const Row& row : opcode_rows()) seen[static_cast<std::size_t>(row.op)] = true;
  for (std::size_t n = 0; n < kOpCount; ++n) {
    const Op op = static_cast<Op>(n);
    if (op == Op::kVex || op == Op::kEvex) continue;  // recognised before the table
    EXPECT_TRUE(seen[n]) << op_name(op);
  }
}

TEST(OpcodeTable, AgreesPerOpcodeWhetherModRmFollows) {
  for (const Row& row : opcode_rows()) {
    for (unsigned i = 0; i < row.opcode_count; ++i) {
      const bool follows = has_modrm(row.map, static_cast<std::uint8_t>(row.opcode + i));
      // 0F B8 and the like: a row without ModRM operands would be read with one.
      EXPECT_EQ(follows, (row.flags & kRowModRm) != 0) << op_name(row.op);
    }
  }
}

}  // namespace
}  // namespace stagetwo::vcpu
