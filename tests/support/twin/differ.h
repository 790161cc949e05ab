// SPDX-License-Identifier: Apache-2.0
#pragma once

// Runs one sequence in two worlds and says where they differ; makes a failing sequence minimal;
// counts what was covered.

#include <array>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "tests/support/twin/sequence.h"

namespace stagetwo::twin {

// One world a sequence runs in: the host's processor, the interpreter, a real /dev/kvm.
struct World {
  std::span<u8> code, scratch, stack;
  // False: the run left in a way no sequence should; the string says which.
  std::function<bool(const CpuImage&, CpuEnd*, std::string*)> run;
};

// How often a form of a row was executed: [row][0 registers, 1 memory].
class Coverage {
 public:
  Coverage();
  void count(u16 row, bool memory, bool faulted) {
    counts_[row][memory ? 1 : 0] += 1;
    if (faulted) ++faults_[row];
  }
  [[nodiscard]] u64 of(u16 row, bool memory) const { return counts_[row][memory ? 1 : 0]; }
  // The least executed among the forms that exist in 64-bit mode and may run in user mode.
  struct Minimum {
    u64 count = 0;
    u16 row = 0;
    bool memory = false;
    std::size_t forms = 0;       // how many there are
    std::size_t below_1000 = 0;  // of these
  };
  [[nodiscard]] Minimum minimum() const;
  // Rows with a form executed fewer than `limit` times.
  [[nodiscard]] std::vector<u16> rows_below(u64 limit) const;
  // Does it fault nearly always (a privileged instruction)? Nothing behind it would be executed.
  [[nodiscard]] bool fatal(u16 row) const {
    const u64 n = counts_[row][0] + counts_[row][1];
    return n >= 16 && faults_[row] * 10 > n * 9;
  }
  // Every row that may run.
  [[nodiscard]] const std::vector<u16>& rows() const { return rows_; }
  void print_missing(u64 limit) const;

 private:
  struct Form {
    u16 row;
    bool memory;
  };
  std::vector<std::array<u64, 2>> counts_;
  std::vector<u64> faults_;
  std::vector<Form> forms_;
  std::vector<u16> rows_;
};

class Differ {
 public:
  // `expected` is right, `actual` is tested.
  Differ(World expected, World actual)
      : expected_(std::move(expected)), actual_(std::move(actual)) {}

  // Empty: both agree. `end` (if not null) is how the expected world ended.
  [[nodiscard]] std::string difference(Sequence& sequence, Coverage* coverage);
  // Post: the sequence still differs, and leaving out any unit makes it agree.
  void shrink(Sequence& sequence);
  // The whole story of a minimal sequence, for a person.
  [[nodiscard]] std::string describe(Sequence& sequence);

  [[nodiscard]] u64 faulted() const { return faulted_; }

  // A reference with known oddities: asked about each disagreement (`left` says how the reference
  // left the sequence, empty if it ended as it should). A reason instead of null: no difference,
  // but counted under that reason.
  using Excuse = std::function<const char*(const CpuEnd& expected, const CpuEnd& actual,
                                           const std::string& left)>;
  void set_excuse(Excuse excuse) { excuse_ = std::move(excuse); }
  [[nodiscard]] const std::map<std::string, u64>& excused() const { return excused_; }

 private:
  [[nodiscard]] std::string compare_all(const CpuEnd& expected, const CpuEnd& actual,
                                        const std::vector<Placed>& placed);
  void prepare(const World& world, const Sequence& sequence, const std::vector<u8>& code);

  World expected_, actual_;
  Excuse excuse_;
  std::map<std::string, u64> excused_;
  u64 slot_ = 0;
  u64 faulted_ = 0;
};

}  // namespace stagetwo::twin
