// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/parameters.h"

#include <array>

#include "abi/kvm/host_cpu.h"
#include "base/text.h"
#include "host/mmu_notifier.h"
#include "host/session.h"
#include "host/worker.h"

namespace stagetwo::abi_kvm {

enum class Vendor : u8 { kAny, kAmd, kIntel };
enum class Form : u8 {
  kBool,         // Y or N; written as kstrtobool reads it
  kNxHugePages,  // the same, and off, force, auto, never
  kUint,
};

struct ParameterRow {
  std::string_view path;
  Form form;
  u32 standard;
  bool written;  // may be
  Vendor vendor;
};

namespace {

// What programs read before they look at the device. The vendor module that exists is the one the
// processor has: a program that finds neither takes itself for being on unknown hardware.
constexpr std::array kParameters = {
    ParameterRow{"kvm/parameters/force_emulation_prefix", Form::kUint, 0, false, Vendor::kAny},
    ParameterRow{"kvm/parameters/enable_pmu", Form::kBool, 0, false, Vendor::kAny},
    ParameterRow{"kvm/parameters/eager_page_split", Form::kBool, 1, true, Vendor::kAny},
    ParameterRow{"kvm/parameters/tdp_mmu", Form::kBool, 1, false, Vendor::kAny},
    ParameterRow{"kvm/parameters/nx_huge_pages", Form::kNxHugePages, 0, true, Vendor::kAny},
    ParameterRow{"kvm/parameters/nx_huge_pages_recovery_ratio", Form::kUint, 60, true,
                 Vendor::kAny},
    ParameterRow{"kvm/parameters/nx_huge_pages_recovery_period_ms", Form::kUint, 0, true,
                 Vendor::kAny},
    ParameterRow{"kvm/parameters/ignore_msrs", Form::kBool, 0, false, Vendor::kAny},
    ParameterRow{"kvm/parameters/halt_poll_ns", Form::kUint, 0, false, Vendor::kAny},
    ParameterRow{"kvm_amd/parameters/npt", Form::kBool, 1, false, Vendor::kAmd},
    ParameterRow{"kvm_amd/parameters/avic", Form::kBool, 0, false, Vendor::kAmd},
    ParameterRow{"kvm_amd/parameters/nested", Form::kBool, 0, false, Vendor::kAmd},
    ParameterRow{"kvm_intel/parameters/ept", Form::kBool, 1, false, Vendor::kIntel},
    ParameterRow{"kvm_intel/parameters/unrestricted_guest", Form::kBool, 1, false, Vendor::kIntel},
    ParameterRow{"kvm_intel/parameters/nested", Form::kBool, 0, false, Vendor::kIntel},
};
static_assert(kParameters.size() <= kMaxParameters);

// Rows whose values the engine asks for.
constexpr const ParameterRow& kEagerSplitRow = kParameters[2];
constexpr const ParameterRow& kNxRow = kParameters[4];
constexpr const ParameterRow& kNxRatioRow = kParameters[5];
constexpr const ParameterRow& kNxPeriodRow = kParameters[6];

constexpr u64 kSet = u64{1} << 63;  // of a word: it was written
constexpr u64 kNever = 2;           // of kNxHugePages: off, and no later write changes it

sync::Atomic<u64>& word_of(const ParameterRow& row) {
  return host::session_word(host::kParameterWords +
                            static_cast<unsigned>(&row - kParameters.data()));
}
u64 value_of(const ParameterRow& row) {
  const u64 word = word_of(row).load(sync::kRelaxed);
  return (word & kSet) != 0 ? word & ~kSet : row.standard;
}
void set_value(const ParameterRow& row, u64 value) {
  word_of(row).store(value | kSet, sync::kRelaxed);
}

// kstrtobool: the first letter decides, after an o the second.
Result<bool> parse_bool(std::string_view text) {
  const auto is_one_of = [&](size_t at, std::string_view set) {
    return at < text.size() && set.find(text[at]) != std::string_view::npos;
  };
  if (is_one_of(0, "eEyYtT1")) return true;
  if (is_one_of(0, "dDnNfF0")) return false;
  if (is_one_of(0, "oO") && is_one_of(1, "nN")) return true;
  if (is_one_of(0, "oO") && is_one_of(1, "fF")) return false;
  return refuse(EINVAL);
}

bool is_word(std::string_view text, std::string_view word) {
  if (text.ends_with('\n')) text.remove_suffix(1);
  return text == word;
}

// "auto" means on for a processor with the multi-hit erratum. Ours is interpreted.
Result<void> store_nx(std::string_view text) {
  if (is_word(text, "off") || is_word(text, "auto")) {
    set_value(kNxRow, 0);
  } else if (is_word(text, "force")) {
    set_value(kNxRow, 1);
  } else if (is_word(text, "never")) {
    if (host::debug_notifier_count() != 0) return refuse(EBUSY);  // there is a VM
    set_value(kNxRow, kNever);
  } else {
    set_value(kNxRow, ST_TRY(parse_bool(text)) ? 1 : 0);
  }
  return {};
}

Result<void> store_row(const ParameterRow& row, std::string_view text) {
  const bool is_nx = row.path.find("nx_huge_pages") != std::string_view::npos;
  if (is_nx && value_of(kNxRow) == kNever) return refuse(EPERM);
  switch (row.form) {
    case Form::kNxHugePages:
      ST_TRY(store_nx(text));
      break;
    case Form::kBool:
      set_value(row, ST_TRY(parse_bool(text)) ? 1 : 0);
      break;
    case Form::kUint:
      set_value(row, ST_TRY(parse_kernel_unsigned(text, ~u32{0})));
      break;
  }
  if (is_nx) host::kick_worker();
  return {};
}

}  // namespace

std::string_view Parameter::path() const {
  return row_->path;
}

unsigned Parameter::mode() const {
  return row_->written ? 0644 : 0444;
}

unsigned Parameter::index() const {
  return static_cast<unsigned>(row_ - kParameters.data());
}

void Parameter::show(TextWriter& out) const {
  const u64 value = value_of(*row_);
  if (row_->form == Form::kUint) {
    out.append_int(value);
  } else if (row_->form == Form::kNxHugePages && value == kNever) {
    out.append("never");
  } else {
    out.append_char(value != 0 ? 'Y' : 'N');
  }
  out.append_char('\n');
}

Result<void> Parameter::store(std::string_view text) const {
  if (!row_->written) return refuse(EACCES);
  return store_row(*row_, text);
}

Parameter find_parameter(std::string_view path) {
  constexpr std::string_view prefix = "/sys/module/";
  if (path.starts_with(prefix)) path.remove_prefix(prefix.size());
  for (const ParameterRow& row : kParameters) {
    if (row.path != path) continue;
    const bool here = row.vendor == Vendor::kAny || (row.vendor == Vendor::kAmd) == host_is_amd();
    return here ? Parameter(&row) : Parameter();
  }
  return {};
}

Parameter parameter_at(unsigned index) {
  return index < kParameters.size() ? Parameter(&kParameters[index]) : Parameter();
}

namespace parameters {
bool nx_huge_pages() {
  return value_of(kNxRow) == 1;
}
u64 nx_recovery_ratio() {
  return value_of(kNxRatioRow);
}
u64 nx_recovery_period_ms() {
  return value_of(kNxPeriodRow);
}
bool eager_page_split() {
  return value_of(kEagerSplitRow) != 0;
}
}  // namespace parameters

}  // namespace stagetwo::abi_kvm
