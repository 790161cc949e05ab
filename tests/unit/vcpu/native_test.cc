// SPDX-License-Identifier: Apache-2.0
// The interpreter against the processor this test runs on: random sequences of 1 to 16 instructions
// run natively and interpreted from the same state; registers, flags, vector registers, memory and
// exceptions must be the same. STAGETWO_SEED repeats a run.

#include <gtest/gtest.h>

#include <set>

#include "tests/support/twin/differ.h"
#include "tests/support/twin/interpreted_cpu.h"
#include "tests/support/twin/native_cpu.h"

namespace stagetwo::twin {
namespace {

constexpr std::size_t kMaxFindings = 12;
constexpr u64 kEnough = 1000;  // executions of each form

class AgainstTheHost : public testing::Test {
 protected:
  void SetUp() override {
    std::string reason;
    ASSERT_TRUE(interpreted_.open(&reason)) << reason;
    if (kShadowMemory) {
      ASSERT_TRUE(again_.open(&reason)) << reason;
    } else if (!native_.open(&reason)) {
      GTEST_SKIP() << reason;
    }
  }
  // Under a sanitizer the interpreter runs against itself: there its memory accesses are the point.
  World native_world() {
    if (kShadowMemory) return world_of(again_);
    return {native_.code(), native_.scratch(), native_.stack(),
            [this](const CpuImage& start, CpuEnd* end, std::string*) {
              *end = native_.run(start);
              return true;
            }};
  }
  World world_of(InterpretedCpu& cpu) {
    GuestWorld& world = cpu.world();
    return {world.code(), world.scratch(), world.stack(),
            [&cpu](const CpuImage& start, CpuEnd* end, std::string* what) {
              return cpu.run(start, 3, end, what);
            }};
  }

  InterpretedCpu again_;
  InterpretedCpu interpreted_;  // first: the native one's signal handlers stand before all others
  NativeCpu native_;
};

TEST_F(AgainstTheHost, RandomSequencesEndInTheSameState) {
  RandomSource random(test::announced_seed("native_test"));
  Differ differ(native_world(), world_of(interpreted_));
  SequenceGenerator generator(random);
  Coverage coverage;
  const test::Deadline deadline;
  std::vector<u16> rare = coverage.rows();
  const auto is_last = [&](u16 row) { return coverage.fatal(row); };
  std::set<vcpu::Op> found;
  u64 sequences = 0;
  while (found.size() < kMaxFindings && (sequences % 64 != 0 || deadline.running())) {
    if (sequences % 4096 == 0) rare = coverage.rows_below(kEnough);
    const bool hunt = !rare.empty() && random.one_in(2);
    Sequence sequence = generator.sequence(hunt ? rare : coverage.rows(), is_last);
    ++sequences;
    if (differ.difference(sequence, &coverage).empty()) continue;
    differ.shrink(sequence);
    if (!found.insert(sequence.units.back().insn.op).second) continue;
    ADD_FAILURE() << "sequence " << sequences << ":\n" << differ.describe(sequence);
  }
  const Coverage::Minimum least = coverage.minimum();
  std::printf(
      "%llu sequences, %llu ended in an exception; %zu forms of %zu rows, the least executed %llu "
      "times (%s, row %u), %zu below %llu\n",
      static_cast<unsigned long long>(sequences), static_cast<unsigned long long>(differ.faulted()),
      least.forms, coverage.rows().size(), static_cast<unsigned long long>(least.count),
      op_name(vcpu::opcode_rows()[least.row].op), least.row, least.below_1000,
      static_cast<unsigned long long>(kEnough));
  if (std::getenv("STAGETWO_COVERAGE") != nullptr) coverage.print_missing(kEnough);
}

}  // namespace
}  // namespace stagetwo::twin
