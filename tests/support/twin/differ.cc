// SPDX-License-Identifier: Apache-2.0
#include "tests/support/twin/differ.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "vcpu/decoder.h"
#include "vcpu/in_flight.h"

namespace stagetwo::twin {
namespace {

constexpr u64 kSlotBytes = 2048;
constexpr u64 kFaultPresent = 1;

void add(std::string& text, const char* what, u64 expected, u64 actual) {
  char line[120];
  std::snprintf(line, sizeof line, "    %-10s expected %016llx, got %016llx\n", what,
                static_cast<unsigned long long>(expected), static_cast<unsigned long long>(actual));
  text += line;
}

void compare(std::string& text, const char* what, u64 expected, u64 actual) {
  if (expected != actual) add(text, what, expected, actual);
}

constexpr const char* kNames[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                  "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

void compare_registers(std::string& text, const CpuImage& e, const CpuImage& a) {
  for (unsigned i = 0; i < 16; ++i) compare(text, kNames[i], e.gpr[i], a.gpr[i]);
  for (unsigned i = 0; i < 16; ++i) {
    const std::string name = "xmm" + std::to_string(i);
    compare(text, (name + ".lo").c_str(), e.xmm[i].lo, a.xmm[i].lo);
    compare(text, (name + ".hi").c_str(), e.xmm[i].hi, a.xmm[i].hi);
  }
  compare(text, "mxcsr", e.mxcsr, a.mxcsr);
  compare(text, "fs base", e.fs_base, a.fs_base);
  compare(text, "gs base", e.gs_base, a.gs_base);
}

void compare_areas(std::string& text, const char* what, std::span<u8> e, std::span<u8> a) {
  if (std::memcmp(e.data(), a.data(), e.size()) == 0) return;
  for (std::size_t at = 0; at < e.size(); at += 8) {
    u64 left = 0, right = 0;
    std::memcpy(&left, &e[at], 8);
    std::memcpy(&right, &a[at], 8);
    if (left == right) continue;
    // MXCSR_MASK of an FXSAVE after which a trap came: AMD's processors have bit 17.
    if (left - right == u64{2} << 48 && right >> 32 == 0xffff) continue;
    char name[40];
    std::snprintf(name, sizeof name, "%s+%zx", what, at);
    add(text, name, left, right);
    return;
  }
}

// Which exception a misaligned image is, with alignment checking on, is the processor's choice.
bool is_same_vector(int e, int a, bool image) {
  if (e == a) return true;
  return image && std::min(e, a) == vcpu::kVectorGp && std::max(e, a) == vcpu::kVectorAc;
}

bool is_trap(int vector) {
  return vector == 1 || vector == 3;
}

const Placed& at_or_before(const std::vector<Placed>& placed, u64 rip) {
  std::size_t i = placed.size();
  while (i > 1 && placed[i - 1].start > rip) --i;
  return placed[i - 1];
}

void compare_ends(std::string& text, const CpuEnd& e, const CpuEnd& a,
                  const std::vector<Placed>& placed) {
  if (!is_same_vector(e.vector, a.vector, at_or_before(placed, e.image.rip).image))
    add(text, "vector", static_cast<u64>(e.vector), static_cast<u64>(a.vector));
  compare(text, "rip", e.image.rip, a.image.rip);
  u64 ignored = at_or_before(placed, e.image.rip).undefined_before;
  if (e.image.rip < placed.front().start || e.image.rip > placed.back().start)
    for (const Placed& p : placed) ignored |= p.undefined_before;
  if (e.vector < 0) ignored = placed.back().undefined_before | vcpu::rflags::kRf;
  compare(text, "rflags", e.image.rflags & ~ignored, a.image.rflags & ~ignored);
  if (e.vector < 0 || e.vector != a.vector) return;
  // Where the process has something of the kernel's, a guest has nothing.
  const u64 mask = e.vector == 14 ? ~kFaultPresent : ~u64{0};
  compare(text, "error code", e.error & mask, a.error & mask);
  if (e.vector != 14) return;
  if (!at_or_before(placed, e.image.rip).image || e.cr2 - a.cr2 + 511 > 1022)
    compare(text, "cr2", e.cr2, a.cr2);
}

}  // namespace

Coverage::Coverage() : counts_(vcpu::opcode_rows().size()), faults_(counts_.size()) {
  // The forms a row has are found by trying: the decoder is asked, not told.
  RandomSource random(1);
  SequenceGenerator generator(random);
  for (u16 row = 0; row < counts_.size(); ++row) {
    if ((vcpu::opcode_rows()[row].modes & 4) == 0) continue;
    bool found[2] = {false, false};
    for (unsigned tries = 0; tries < 200; ++tries) {
      Unit unit;
      if (generator.unit(row, &unit) && unit.insn.row == row)
        found[unit.insn.has_mem ? 1 : 0] = true;
    }
    for (const bool memory : {false, true})
      if (found[memory ? 1 : 0]) forms_.push_back({row, memory});
    if (found[0] || found[1]) rows_.push_back(row);
  }
}

Coverage::Minimum Coverage::minimum() const {
  Minimum m{.count = ~u64{0}};
  for (const Form& form : forms_) {
    const u64 n = of(form.row, form.memory);
    if (n < 1000) ++m.below_1000;
    if (n >= m.count) continue;
    m.count = n;
    m.row = form.row;
    m.memory = form.memory;
  }
  m.forms = forms_.size();
  return m;
}

std::vector<u16> Coverage::rows_below(u64 limit) const {
  std::vector<u16> rows;
  for (const Form& form : forms_)
    if (of(form.row, form.memory) < limit && (rows.empty() || rows.back() != form.row))
      rows.push_back(form.row);
  return rows;
}

void Coverage::print_missing(u64 limit) const {
  for (const Form& form : forms_) {
    if (of(form.row, form.memory) >= limit) continue;
    const vcpu::Row& row = vcpu::opcode_rows()[form.row];
    std::printf("  row %u %s map %u opcode %02x %s: %llu\n", form.row, op_name(row.op),
                static_cast<unsigned>(row.map), row.opcode, form.memory ? "memory" : "registers",
                static_cast<unsigned long long>(of(form.row, form.memory)));
  }
}

void Differ::prepare(const World& world, const Sequence& sequence, const std::vector<u8>& code) {
  std::memcpy(world.code.data() + (sequence.start.rip - kCode), code.data(), code.size());
  fill_random(sequence.data_seed, world.scratch.data(), world.scratch.size());
  fill_random(sequence.data_seed >> 20, world.stack.data(), world.stack.size());
}

std::string Differ::compare_all(const CpuEnd& expected, const CpuEnd& actual,
                                const std::vector<Placed>& placed) {
  std::string text;
  compare_ends(text, expected, actual, placed);
  compare_registers(text, expected.image, actual.image);
  compare_areas(text, "scratch", expected_.scratch, actual_.scratch);
  compare_areas(text, "stack", expected_.stack, actual_.stack);
  return text;
}

std::string Differ::difference(Sequence& sequence, Coverage* coverage) {
  std::vector<u8> code;
  slot_ = (slot_ + 1) % (kCodeSize / kSlotBytes);
  const std::vector<Placed> placed = sequence.lay_out(kCode + slot_ * kSlotBytes, &code);
  if (code.size() > kSlotBytes) return "a sequence longer than its slot\n";
  prepare(expected_, sequence, code);
  prepare(actual_, sequence, code);
  CpuEnd expected, actual;
  std::string what;
  if (!expected_.run(sequence.start, &expected, &what)) {
    std::string ignored;
    (void)actual_.run(sequence.start, &actual, &ignored);
    const char* reason = excuse_ ? excuse_(expected, actual, what) : nullptr;
    if (reason == nullptr) return "the reference: " + what + "\n";
    ++excused_[reason];
    return {};
  }
  if (!actual_.run(sequence.start, &actual, &what)) return "    left: " + what + "\n";
  if (expected.vector >= 0) ++faulted_;
  if (coverage != nullptr) {
    for (std::size_t i = 0; i < sequence.units.size(); ++i) {
      const u64 stop = expected.vector < 0 ? kExit : expected.image.rip;
      if (placed[i].insn > stop) break;
      const vcpu::Insn& insn = sequence.units[i].insn;
      // A trap stops behind its instruction, which is before the next unit.
      const bool here =
          stop < placed[i + 1].start || (stop == placed[i + 1].start && is_trap(expected.vector));
      coverage->count(insn.row, insn.has_mem, here);
    }
  }
  std::string text = compare_all(expected, actual, placed);
  // Once more now and then: the code is known by now, and code that is known runs otherwise.
  if (text.empty() && slot_ % 4 == 0) {
    prepare(actual_, sequence, code);
    if (!actual_.run(sequence.start, &actual, &what))
      return "    left the second time: " + what + "\n";
    text = compare_all(expected, actual, placed);
    if (!text.empty()) text += "    (the second time)\n";
  }
  if (text.empty() || !excuse_) return text;
  if (const char* reason = excuse_(expected, actual, {})) {
    ++excused_[reason];
    return {};
  }
  return text;
}

void Differ::shrink(Sequence& sequence) {
  bool smaller = true;
  while (smaller) {
    smaller = false;
    for (std::size_t i = sequence.units.size(); i-- > 0 && sequence.units.size() > 1;) {
      Sequence candidate = sequence;
      candidate.units.erase(candidate.units.begin() + static_cast<std::ptrdiff_t>(i));
      if (difference(candidate, nullptr).empty()) continue;
      sequence = std::move(candidate);
      smaller = true;
    }
  }
  for (unsigned i = 0; i < 16; ++i) {
    Sequence candidate = sequence;
    if (i != vcpu::kRsp) candidate.start.gpr[i] = 0;
    candidate.start.xmm[i] = {};
    if (!difference(candidate, nullptr).empty()) sequence = std::move(candidate);
  }
}

std::string Differ::describe(Sequence& sequence) {
  const std::string text = difference(sequence, nullptr);
  std::vector<u8> code;
  const std::vector<Placed> placed = sequence.lay_out(sequence.start.rip, &code);
  std::string story = to_text(sequence, placed, code);
  char line[120];
  for (unsigned i = 0; i < 16; ++i) {
    const CpuImage& s = sequence.start;
    std::snprintf(line, sizeof line, "    %-4s %016llx   xmm%-2u %016llx %016llx\n", kNames[i],
                  static_cast<unsigned long long>(s.gpr[i]), i,
                  static_cast<unsigned long long>(s.xmm[i].hi),
                  static_cast<unsigned long long>(s.xmm[i].lo));
    if (s.gpr[i] != 0 || s.xmm[i].lo != 0 || s.xmm[i].hi != 0) story += line;
  }
  std::snprintf(line, sizeof line, "    rflags %llx mxcsr %x\n",
                static_cast<unsigned long long>(sequence.start.rflags), sequence.start.mxcsr);
  return story + line + text;
}

}  // namespace stagetwo::twin
