// SPDX-License-Identifier: Apache-2.0
#pragma once

// The files of /sys/module/kvm*/parameters: what they show, what may be written to them and what
// then becomes of it. Analogue: module_param_cb and its ops (kernel files: params.c, mmu.c, x86.c).
// The values are the session's (host/session.h): a write in one process is the next fault's policy
// in all of them.
//
// Only parameters that somebody follows can be written; the others show the value that is true here
// and have mode 0444 whatever the kernel gives them.
// Locking: values are words; a write stands in host::SessionLock (the caller's).

#include <string_view>

#include "base/result.h"
#include "base/text.h"
#include "base/types.h"

namespace stagetwo::abi_kvm {

struct ParameterRow;

class Parameter {
 public:
  constexpr Parameter() = default;
  explicit constexpr Parameter(const ParameterRow* row) : row_(row) {}
  explicit operator bool() const { return row_ != nullptr; }

  [[nodiscard]] std::string_view path() const;  // below /sys/module/
  [[nodiscard]] unsigned mode() const;          // 0444 or 0644
  [[nodiscard]] unsigned index() const;
  // With the newline.
  void show(TextWriter& out) const;
  // What a write of `text` does. Failure: the kernel's; the value is as before.
  [[nodiscard]] Result<void> store(std::string_view text) const;

 private:
  const ParameterRow* row_ = nullptr;
};

inline constexpr unsigned kMaxParameters = 32;

// `path` as in "kvm/parameters/tdp_mmu", with or without "/sys/module/". Empty: no such file.
[[nodiscard]] Parameter find_parameter(std::string_view path);

// The table, vendors' rows of other processors included; empty behind its end.
[[nodiscard]] Parameter parameter_at(unsigned index);

namespace parameters {
[[nodiscard]] bool nx_huge_pages();
[[nodiscard]] u64 nx_recovery_ratio();
[[nodiscard]] u64 nx_recovery_period_ms();
[[nodiscard]] bool eager_page_split();
}  // namespace parameters

}  // namespace stagetwo::abi_kvm
