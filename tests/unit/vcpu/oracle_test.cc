// SPDX-License-Identifier: Apache-2.0
// The interpreter against a real /dev/kvm, where this machine has a usable one: random sequences as a
// whole in user and kernel mode, in lock step one instruction at a time, and snippets of privileged
// instructions. Without one each case is skipped with "oracle: absent".
//
// Where the device is not the upstream KVM on hardware virtualisation its differences are named,
// counted and printed; the upstream source is right and the interpreter follows that.

#include <gtest/gtest.h>
#include <unistd.h>

#include <set>

#include "tests/support/twin/differ.h"
#include "tests/support/twin/interpreted_cpu.h"
#include "tests/support/twin/kvm_cpu.h"
#include "tests/unit/vcpu/privileged_snippets.h"
#include "vcpu/sse.h"

namespace stagetwo::twin {
namespace {

constexpr std::size_t kMaxFindings = 8;

bool is_pvm() { return access("/sys/module/kvm_pvm", F_OK) == 0; }

// What this device is known to do otherwise. Null: not known, a difference.
const char* known_oddity(const CpuEnd& oracle, const CpuEnd& ours, const std::string& left) {
  if (left.find("suberror 1") != std::string::npos) {
    return "the device emulates this code and does not know an instruction (exit 17)";
  }
  if (!is_pvm() || !left.empty()) return nullptr;
  if (oracle.vector == 6 && ours.vector == 13) {
    return "PVM: #GP of an instruction its emulator does not know becomes #UD";
  }
  return nullptr;
}

class AgainstKvm : public testing::Test {
 protected:
  void SetUp() override {
    std::string reason;
    if (!kvm_.open(&reason)) {
      std::printf("oracle: absent (%s)\n", reason.c_str());
      GTEST_SKIP() << "oracle: absent (" << reason << ")";
    }
    ASSERT_TRUE(interpreted_.open(&reason, kvm_.cpuid())) << reason;
  }

  template <typename Cpu>
  World world_of(Cpu& cpu, unsigned cpl) {
    GuestWorld& world = cpu.world();
    return {world.code(), world.scratch(), world.stack(),
            [&cpu, cpl](const CpuImage& start, CpuEnd* end, std::string* what) {
              return cpu.run(start, cpl, end, what);
            }};
  }
  // The same, every step recorded.
  template <typename Cpu>
  World stepping_world_of(Cpu& cpu, unsigned cpl, std::vector<CpuImage>* steps) {
    World world = world_of(cpu, cpl);
    world.run = [&cpu, cpl, steps](const CpuImage& start, CpuEnd* end, std::string* what) {
      steps->clear();
      const auto record = [&](const CpuImage& image) { steps->push_back(image); };
      return cpu.step(start, cpl, record, end, what);
    };
    return world;
  }

  void compare_random(const char* name, Differ& differ, unsigned cpl,
                      const std::function<std::string()>& also = {});

  KvmCpu kvm_;
  InterpretedCpu interpreted_;
};

// Privileged instructions with random operands would end the kernel that runs the sequence.
bool fit_for_kernel_mode(vcpu::Op op) {
  using vcpu::Op;
  static const std::set<Op> unfit = {
      Op::kHlt, Op::kIn, Op::kOut, Op::kIns, Op::kOuts, Op::kMovToCr, Op::kMovFromCr, Op::kMovToDr,
      Op::kMovFromDr, Op::kLgdt, Op::kLidt, Op::kLldt, Op::kLtr, Op::kLmsw, Op::kWrmsr,
      Op::kRdmsr, Op::kInvd, Op::kWbinvd, Op::kClts, Op::kSwapgs, Op::kWrfsbase, Op::kWrgsbase,
      Op::kInvlpg, Op::kSti, Op::kCli, Op::kPopf, Op::kMonitor, Op::kMwait};
  return !unfit.contains(op);
}

void AgainstKvm::compare_random(const char* name, Differ& differ, unsigned cpl,
                                const std::function<std::string()>& also) {
  RandomSource random(test::announced_seed(name));
  SequenceGenerator generator(random);
  Coverage coverage;
  std::vector<u16> rows;
  for (const u16 row : coverage.rows()) {
    const vcpu::Op op = vcpu::opcode_rows()[row].op;
    // The device under test may emulate kernel mode, and then knows little of SSE.
    if (cpl == 3 || (fit_for_kernel_mode(op) && !vcpu::is_sse(op))) rows.push_back(row);
  }
  differ.set_excuse(known_oddity);
  const test::Deadline deadline;
  const auto is_last = [&](u16 row) { return coverage.fatal(row); };
  std::set<vcpu::Op> found;
  u64 sequences = 0;
  while (found.size() < kMaxFindings && deadline.running()) {
    Sequence sequence = generator.sequence(rows, is_last);
    ++sequences;
    std::string text = differ.difference(sequence, &coverage);
    if (text.empty() && also) text = also();
    if (text.empty()) continue;
    differ.shrink(sequence);
    if (!found.insert(sequence.units.back().insn.op).second) continue;
    ADD_FAILURE() << "sequence " << sequences << ":\n" << differ.describe(sequence) << text;
  }
  std::printf("%llu sequences, %llu ended in an exception\n",
              static_cast<unsigned long long>(sequences),
              static_cast<unsigned long long>(differ.faulted()));
  for (const auto& [reason, count] : differ.excused()) {
    std::printf("  known difference, %llu times: %s\n", static_cast<unsigned long long>(count),
                reason.c_str());
  }
}

TEST_F(AgainstKvm, UserModeSequencesEndInTheSameState) {
  Differ differ(world_of(kvm_, 3), world_of(interpreted_, 3));
  compare_random("oracle_test user", differ, 3);
}

TEST_F(AgainstKvm, KernelModeSequencesEndInTheSameState) {
  Differ differ(world_of(kvm_, 0), world_of(interpreted_, 0));
  compare_random("oracle_test kernel", differ, 0);
}

// Flags that may be undefined on the way are compared at the end only.
std::string compare_steps(const std::vector<CpuImage>& oracle, const std::vector<CpuImage>& ours) {
  const std::size_t count = std::min(oracle.size(), ours.size());
  for (std::size_t i = 0; i < count; ++i) {
    const CpuImage& a = oracle[i];
    const CpuImage& b = ours[i];
    if (a.rip == b.rip && std::memcmp(a.gpr, b.gpr, sizeof a.gpr) == 0 &&
        std::memcmp(a.xmm, b.xmm, sizeof a.xmm) == 0) {
      continue;
    }
    char line[160];
    std::snprintf(line, sizeof line, "    step %zu of %zu and %zu: rip %llx and %llx\n", i,
                  oracle.size(), ours.size(), static_cast<unsigned long long>(a.rip),
                  static_cast<unsigned long long>(b.rip));
    return line;
  }
  return {};
}

TEST_F(AgainstKvm, EveryStepLeavesTheSameRegisters) {
  std::vector<CpuImage> oracle, ours;
  u64 steps = 0;
  for (const unsigned cpl : {3u, 0u}) {
    Differ differ(stepping_world_of(kvm_, cpl, &oracle),
                  stepping_world_of(interpreted_, cpl, &ours));
    compare_random(cpl == 3 ? "oracle_test user steps" : "oracle_test kernel steps", differ, cpl,
                   [&] {
                     steps += std::min(oracle.size(), ours.size());
                     return compare_steps(oracle, ours);
                   });
  }
  std::printf("%llu steps compared\n", static_cast<unsigned long long>(steps));
}

TEST_F(AgainstKvm, PrivilegedSnippetsEndInTheSameState) {
  Differ differ(world_of(kvm_, 0), world_of(interpreted_, 0));
  differ.set_excuse(known_oddity);
  RandomSource random(test::announced_seed("oracle_test snippets"));
  for (const Snippet& snippet : privileged_snippets()) {
    Sequence sequence = sequence_of(snippet, random);
    const std::string text = differ.difference(sequence, nullptr);
    EXPECT_TRUE(text.empty()) << snippet.name << ":\n" << differ.describe(sequence);
  }
  std::printf("%zu snippets\n", privileged_snippets().size());
  for (const auto& [reason, count] : differ.excused()) {
    std::printf("  known difference, %llu times: %s\n", static_cast<unsigned long long>(count),
                reason.c_str());
  }
}

}  // namespace
}  // namespace stagetwo::twin
