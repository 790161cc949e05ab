// SPDX-License-Identifier: Apache-2.0
#pragma once

// A flush that ageing owes the vCPUs' soft TLBs, asked for at most once in kInterval and waited for
// by nobody. ageing.cc says why.
//
// Locking: none; both words are hints, and a lost one costs a page that looks cold a little longer.

#include "sync/ack_line.h"
#include "sync/futex.h"

namespace stagetwo::stage2 {

class AgeFlush {
 public:
  static constexpr u64 kInterval = 1'000'000;  // nanoseconds

  void owe() {
    if (!owed()) owed_.store(true, sync::kRelaxed);
  }
  [[nodiscard]] bool owed() const { return owed_.load(sync::kRelaxed); }
  void ask(sync::AckSet& lines) {
    owed_.store(false,
                sync::kRelaxed);  // before the lines are asked: what is owed later stays owed
    asked_at_.store(sync::now_ns(), sync::kRelaxed);
    ticket_.store(lines.bump_all(), sync::kRelaxed);
  }
  // May a vCPU still use what was marked old before? A flush that is waited for settles it.
  [[nodiscard]] bool outstanding(sync::AckSet& lines) const {
    return owed() || lines.passed() < ticket_.load(sync::kRelaxed);
  }
  void settle() { owed_.store(false, sync::kRelaxed); }
  void ask_if_due(sync::AckSet& lines) {
    if (owed() && sync::now_ns() - asked_at_.load(sync::kRelaxed) >= kInterval) ask(lines);
  }

 private:
  sync::Atomic<bool> owed_{false};
  sync::Atomic<u64> asked_at_{0};
  sync::Atomic<u64> ticket_{0};  // of the last one asked for
};

}  // namespace stagetwo::stage2
