// SPDX-License-Identifier: Apache-2.0
#pragma once

// Random sequences of 1 to 16 instructions that can run both in this process and in a guest: each
// instruction of a row of the opcode table comes as a unit with the set-up it needs (its address
// registers pointed into the scratch pages, a jump's target placed behind it), so that it mostly
// completes and sometimes faults on purpose. Units can be left out and the rest laid out anew: that
// is how a failing sequence shrinks.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tests/support/random_source.h"
#include "tests/support/twin/cpu_image.h"
#include "vcpu/opcode_table.h"

namespace stagetwo::twin {

// Why a row cannot run beside the host's processor, or null.
[[nodiscard]] const char* not_for_user_mode(const vcpu::Insn& insn);

// A place in a unit's bytes that depends on where the unit stands.
struct Fixup {
  u8 at = 0;
  u8 size = 0;          // 4: relative to `origin`; 8: absolute
  u8 origin = 0;        // offset of the end of the instruction a relative value counts from
  bool to_end = false;  // the unit's own end, else `target`
  u64 target = 0;
};

struct Unit {
  std::vector<u8> bytes;
  u8 insn_at = 0;  // where the instruction of the row starts
  u8 insn_end = 0;
  vcpu::Insn insn;
  std::vector<Fixup> fixups;
};

struct Placed {
  u64 start = 0;             // of the unit
  u64 insn = 0;              // of its instruction
  u64 undefined_before = 0;  // arithmetic flags undefined when its instruction starts
  bool image = false;        // accesses 512 bytes, and may fault at any of them first
};

struct Sequence {
  CpuImage start;
  u64 data_seed = 0;  // scratch and stack contents
  std::vector<Unit> units;

  // Writes the code at `where` (an address within kCode) into `code`, sets start.rip; the last
  // entry stands for the jump to kExit. Set-up that the flags make necessary is inserted here.
  [[nodiscard]] std::vector<Placed> lay_out(u64 where, std::vector<u8>* code);
};

using test::RandomSource;

class SequenceGenerator {
 public:
  explicit SequenceGenerator(RandomSource& random) : random_(random) {}

  // 1 to 16 units of rows taken from `rows`. One of a row that is_last() says yes to ends the
  // sequence. Pre: rows not empty.
  template <typename IsLast>
  [[nodiscard]] Sequence sequence(const std::vector<u16>& rows, IsLast&& is_last) {
    Sequence s = empty_sequence();
    const unsigned count = 1 + random_.small(16);
    while (s.units.size() < count) {
      const u16 row = rows[random_.below(rows.size())];
      const bool last = is_last(row);
      if (last && s.units.size() + 1 < count && !random_.one_in(16)) continue;
      Unit u;
      if (!unit(row, &u)) continue;
      s.units.push_back(std::move(u));
      if (last) break;
    }
    return s;
  }
  // Only instructions it says yes to, besides those that may run at all.
  using Filter = std::function<bool(const vcpu::Insn&, std::span<const u8>)>;
  void set_filter(Filter filter) { filter_ = std::move(filter); }

  // False: this row gave nothing that may run (it is excluded, or the dice were against it).
  [[nodiscard]] bool unit(u16 row, Unit* unit);

 private:
  struct Build;
  [[nodiscard]] Sequence empty_sequence();
  [[nodiscard]] CpuImage random_start();
  u64 value();
  u64 target(unsigned bytes, bool aligned = false);
  u32 new_mxcsr();
  Xmm vector_value();
  void point_operand(Build& b);
  void point_strings(Build& b);
  void tame_counts(Build& b);
  void aim_branch(Build& b);

  RandomSource& random_;
  Filter filter_;
};

// Fills an area of memory, the same for the same seed.
void fill_random(u64 seed, u8* to, std::size_t bytes);

[[nodiscard]] std::string to_text(const Sequence& sequence, const std::vector<Placed>& placed,
                                  const std::vector<u8>& code);

}  // namespace stagetwo::twin
