// SPDX-License-Identifier: Apache-2.0
#pragma once

// The I/O APIC: 24 pins, each with a redirection entry, behind an index and a window register at
// guest-physical 0xfec00000.
//
// Linux analogue: arch/x86/kvm/ioapic.c. Source: Intel 82093AA data sheet.
// Invariant I1: Remote IRR is set only while a level-triggered message waits for its EOI.
// Locking: none of its own; the irqchip's lock is held by every caller (see irqchip.h).

#include "vcpu/lapic.h"

namespace stagetwo::vcpu {

// Layout of struct kvm_ioapic_state.
struct IoApicState {
  u64 base_address = 0xfec00000;
  u32 ioregsel = 0;
  u32 id = 0;
  u32 irr = 0;
  u32 pad = 0;
  u64 redirection[24] = {};
};
static_assert(sizeof(IoApicState) == 216, "KVM_GET_IRQCHIP hands it out as it is");

class IoApic {
 public:
  static constexpr u32 kPinCount = 24;
  static constexpr u64 kLength = 0x100;

  explicit IoApic(ApicBus* bus);

  [[nodiscard]] bool claims(u64 gpa) const {
    return gpa >= state_.base_address && gpa - state_.base_address < kLength;
  }
  void mmio_read(u64 gpa, u8* data, u32 size) const;
  void mmio_write(u64 gpa, const u8* data, u32 size);

  // A device moves a pin. Returns KVM_IRQ_LINE_STATUS's answer: > 0 delivered, 0 coalesced,
  // < 0 masked or no target.
  int set_pin(u32 pin, bool level);
  // A processor ended a level-triggered interrupt.
  void end_of_interrupt(u8 vector);

  [[nodiscard]] const IoApicState& state() const { return state_; }
  void set_state(const IoApicState& state);

 private:
  [[nodiscard]] u32 read_window() const;
  void write_window(u32 value);
  int service(u32 pin);

  ApicBus* bus_;
  IoApicState state_;
};

}  // namespace stagetwo::vcpu
