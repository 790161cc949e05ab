// SPDX-License-Identifier: Apache-2.0
#pragma once

// One VM and a thread that plays its vCPU: a line and a context of its own, and accesses made in
// the order vcpu makes them.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "host/backstop.h"
#include "host/change.h"
#include "stage2/address_space.h"
#include "tests/support/pages.h"
#include "tests/support/region.h"

namespace stagetwo::stage2 {

inline constexpr u64 kGpa = 0x100000;

class Memory : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    auto made = GuestMemory::create(policy_);
    ASSERT_TRUE(made);
    memory_ = std::move(*made);
    context_ = std::move(*memory_->new_context());
    memory_->lines().add(line_);
  }
  void TearDown() override {
    if (!memory_) return;
    memory_->check_world();
    memory_->lines().remove(line_);
    context_.reset();
  }
  int slot(u32 id, u64 gpa, u64 size, u64 hva, u32 flags = 0) {
    const auto done = memory_->slots().set_region(test::region_of(id, gpa, size, hva, flags));
    return done ? 0 : to_int(done.error());
  }
  static Fault ask(u64 gpa, Access access) {
    Fault fault;
    fault.gpa = Gpa(gpa);
    fault.access = access;
    return fault;
  }
  // What the table says now.
  Walk::Kind look(u64 gpa, Access access = Access::kRead, Fault* out = nullptr) {
    Fault fault = ask(gpa, access);
    const sync::RunningSection running(line_);
    if (running.must_flush()) memory_->flushed(*context_);
    const Walk::Kind found = memory_->translate(*context_, fault);
    if (out != nullptr) *out = fault;
    return found;
  }
  // One fault, whatever the table says.
  FaultOutcome fault_once(u64 gpa, Access access) {
    Fault fault = ask(gpa, access);
    return memory_->handle_fault(*context_, fault);
  }
  // One guest access as vcpu makes it, until it has a translation or is not memory.
  FaultOutcome fault(u64 gpa, Access access, Fault* out) {
    for (;;) {
      const Walk::Kind found = look(gpa, access, out);
      if (found == Walk::Kind::kHit) return FaultOutcome::kFixed;
      if (found == Walk::Kind::kMmio) return FaultOutcome::kMmio;
      const FaultOutcome outcome = memory_->handle_fault(*context_, *out);
      if (outcome != FaultOutcome::kFixed && outcome != FaultOutcome::kSpurious &&
          outcome != FaultOutcome::kRetry) {
        return outcome;
      }
    }
  }
  FaultOutcome fault(u64 gpa, Access access) {
    Fault ignored;
    return fault(gpa, access, &ignored);
  }

  SlotPolicy policy_;  // before SetUp()
  Box<GuestMemory> memory_;
  Box<MmuContext> context_;
  sync::AckLine line_;
  test::GuardedPages pages_{16};
};

}  // namespace stagetwo::stage2
