// SPDX-License-Identifier: Apache-2.0
// The interpreter against a real /dev/kvm, where this machine has a usable one: random sequences as
// a whole in user and kernel mode, in lock step one instruction at a time, and snippets of
// privileged instructions. Without one each case is skipped with "oracle: absent".
//
// Where the device is not the upstream KVM on hardware virtualisation its differences are named,
// counted and printed; the upstream source is right and the interpreter follows that.

#include <cpuid.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "tests/support/twin/differ.h"
#include "tests/support/twin/interpreted_cpu.h"
#include "tests/support/twin/kvm_cpu.h"
#include "tests/support/twin/privileged_snippets.h"
#include "vcpu/sse.h"

namespace stagetwo::twin {
namespace {

constexpr std::size_t kMaxFindings = 8;

bool is_pvm() {
  return access("/sys/module/kvm_pvm", F_OK) == 0;
}

// What this device is known to do otherwise. Null: not known, a difference.
const char* known_oddity(const CpuEnd& oracle, const CpuEnd& ours, const std::string& left) {
  if (left.find("suberror 1") != std::string::npos) {
    return "the device emulates this code and does not know an instruction (exit 17)";
  }
  if (!is_pvm() || !left.empty()) return nullptr;
  if (oracle.vector == 6 && ours.vector == 13) {
    return "PVM: #GP of an instruction its emulator does not know becomes #UD";
  }
  if (oracle.vector == 14 && ours.vector == 14 && oracle.image.rip == ours.image.rip &&
      (oracle.image.rflags & vcpu::rflags::kIf) == (ours.image.rflags & vcpu::rflags::kIf) &&
      oracle.cr2 % kPageSize == 0) {
    return "PVM: its emulator stores the first part of what faults on the second page";
  }
  return nullptr;
}

// Snippets that PVM, which runs a guest's kernel outside ring 0, answers in its own way.
const char* pvm_answers_otherwise(const std::string& name) {
  static const std::map<std::string, const char*> list = {
      {"a reserved bit of CR4 is refused", "PVM: reserved bits of CR4 are ignored"},
      {"PAT reads back, and refuses a reserved type", "PVM: any PAT is taken"},
      {"SYSCALL and SYSRET", "PVM: SYSCALL enters through its own MSRs"},
      {"user mode writes neither IOPL nor IF", "PVM: IF is set in user mode"},
  };
  const auto found = list.find(name);
  return is_pvm() && found != list.end() ? found->second : nullptr;
}

class AgainstKvm : public testing::Test {
 protected:
  void SetUp() override {
    std::string reason;
    if (!kvm_.open(&reason)) {
      std::printf("oracle: absent (%s)\n", reason.c_str());
      GTEST_SKIP() << "oracle: absent (" << reason << ")";
    }
    ASSERT_TRUE(interpreted_.open(&reason, cpuid_of_both())) << reason;
  }

  // KVM cannot hide an instruction that needs no permission: the guest has it, whatever its CPUID
  // says.
  std::vector<vcpu::CpuidEntry> cpuid_of_both() {
    std::vector<vcpu::CpuidEntry> entries = kvm_.cpuid();
    for (vcpu::CpuidEntry& e : entries) {
      u32 a = 0, b = 0, c = 0, d = 0;
      __cpuid_count(e.function, e.index, a, b, c, d);
      if (e.function == 1) e.ecx |= c & (1u << 13 | 1u << 20 | 1u << 22 | 1u << 23);
      if (e.function == 7 && e.index == 0) {
        fsgsbase_ = (e.ebx & 1) != 0;
        e.ebx |= b & (1u << 3 | 1u << 19 | 1u << 23 | 1u << 24);
      }
      if (e.function == 0x80000001) e.ecx |= c & (1u << 5);
    }
    return entries;
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
  bool fsgsbase_ = false;
};

// Privileged instructions with random operands would end the kernel that runs the sequence.
bool fit_for_kernel_mode(vcpu::Op op) {
  using vcpu::Op;
  static const std::set<Op> unfit = {
      Op::kHlt,       Op::kIn,      Op::kOut,       Op::kIns,      Op::kOuts,   Op::kMovToCr,
      Op::kMovFromCr, Op::kMovToDr, Op::kMovFromDr, Op::kLgdt,     Op::kLidt,   Op::kLldt,
      Op::kLtr,       Op::kLmsw,    Op::kWrmsr,     Op::kRdmsr,    Op::kInvd,   Op::kWbinvd,
      Op::kClts,      Op::kSwapgs,  Op::kWrfsbase,  Op::kWrgsbase, Op::kInvlpg, Op::kSti,
      Op::kCli,       Op::kPopf,    Op::kMonitor,   Op::kMwait};
  return !unfit.contains(op);
}

// PVM runs a guest's kernel by the instruction emulator, which is no processor: it knows little of
// SSE, takes REX.R for part of a segment register's number, lets a null segment prefix cancel FS or
// GS, runs LZCNT and TZCNT as BSR and BSF, does not probe the new stack of ENTER, writes the
// register of a CMPXCHG that fails and of a bit scan of zero, and does not stop inside a repeated
// string instruction.
bool known_to_the_emulator(const vcpu::Insn& insn, std::span<const u8> bytes) {
  using vcpu::Op;
  static const std::set<Op> unknown = {Op::kMovFromSeg, Op::kMovbe, Op::kLzcnt,   Op::kTzcnt,
                                       Op::kInt,        Op::kEnter, Op::kCmpxchg, Op::kFxsave,
                                       Op::kFxrstor,    Op::kBsf,   Op::kBsr};
  const auto segment_prefixes =
      std::ranges::count_if(bytes.first(4 < bytes.size() ? 4 : bytes.size()), [](u8 b) {
        return b == 0x26 || b == 0x2e || b == 0x36 || b == 0x3e || b == 0x64 || b == 0x65;
      });
  if (insn.rep || insn.repne) return false;
  return !vcpu::is_sse(insn.op) && !unknown.contains(insn.op) && segment_prefixes < 2;
}

void AgainstKvm::compare_random(const char* name, Differ& differ, unsigned cpl,
                                const std::function<std::string()>& also) {
  RandomSource random(test::announced_seed(name));
  SequenceGenerator generator(random);
  Coverage coverage;
  const bool stepping = static_cast<bool>(also);
  std::vector<u16> rows;
  for (const u16 row : coverage.rows()) {
    const vcpu::Op op = vcpu::opcode_rows()[row].op;
    // The device under test may emulate kernel mode, and then knows little of SSE.
    if (cpl == 0 && !fit_for_kernel_mode(op)) continue;
    if (stepping && op == vcpu::Op::kPopf) continue;  // TF belongs to the stepping kernel
    if (!fsgsbase_ && op >= vcpu::Op::kRdfsbase && op <= vcpu::Op::kRdgsbase) continue;
    if (!fsgsbase_ && op >= vcpu::Op::kWrfsbase && op <= vcpu::Op::kWrgsbase) continue;
    rows.push_back(row);
  }
  if (cpl == 0 && is_pvm()) generator.set_filter(known_to_the_emulator);
  // PVM answers some INT n of user mode itself, and emulates an FXRSTOR that is refused.
  if (cpl == 3 && is_pvm())
    generator.set_filter([](const vcpu::Insn& insn, auto) {
      return insn.op != vcpu::Op::kInt && insn.op != vcpu::Op::kFxrstor;
    });
  differ.set_excuse(known_oddity);
  const test::Deadline deadline(0.25);
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

bool same_registers(const CpuImage& a, const CpuImage& b) {
  return a.rip == b.rip && std::memcmp(a.gpr, b.gpr, sizeof a.gpr) == 0 &&
         std::memcmp(a.xmm, b.xmm, sizeof a.xmm) == 0;
}

// Every state the oracle shows must be one of ours, in order. (PVM does not show the first one.)
// Flags that may be undefined on the way are compared at the end only.
std::string compare_steps(const std::vector<CpuImage>& oracle, const std::vector<CpuImage>& ours) {
  std::size_t next = 0;
  for (std::size_t i = 0; i < oracle.size(); ++i) {
    std::size_t at = next;
    while (at < ours.size() && !same_registers(oracle[i], ours[at])) ++at;
    if (at < ours.size()) {
      next = at + 1;
      continue;
    }
    while (next < ours.size() && ours[next].rip != oracle[i].rip) ++next;
    char line[160];
    std::snprintf(line, sizeof line, "    step %zu of %zu (%zu), at %llx\n", i, oracle.size(),
                  ours.size(), static_cast<unsigned long long>(oracle[i].rip));
    std::string text = line;
    for (unsigned reg = 0; next < ours.size() && reg < 16; ++reg) {
      if (oracle[i].gpr[reg] == ours[next].gpr[reg]) continue;
      std::snprintf(line, sizeof line, "    r%u expected %llx, got %llx\n", reg,
                    static_cast<unsigned long long>(oracle[i].gpr[reg]),
                    static_cast<unsigned long long>(ours[next].gpr[reg]));
      text += line;
    }
    return text;
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
                     steps += oracle.size();
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
    if (const char* reason = pvm_answers_otherwise(snippet.name);
        !text.empty() && reason != nullptr) {
      std::printf("  known difference: %s\n", reason);
      continue;
    }
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
