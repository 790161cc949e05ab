// SPDX-License-Identifier: Apache-2.0
#pragma once

// The pair of 8259A interrupt controllers of a PC: sixteen lines, ports 0x20, 0x21, 0xa0, 0xa1 and
// the edge/level registers 0x4d0, 0x4d1.
//
// Linux analogue: arch/x86/kvm/i8259.c, whose state struct kvm_pic_state this mirrors field for
// field. Source: Intel 8259A data sheet (initialisation and operation command words).
// Locking: none of its own; the irqchip's lock is held by every caller (see irqchip.h).

#include <optional>

#include "vcpu/state.h"

namespace stagetwo::vcpu {

// One controller; layout of struct kvm_pic_state.
struct PicState {
  u8 last_irr = 0;  // levels at the last look, for edge detection
  u8 irr = 0;
  u8 imr = 0;
  u8 isr = 0;
  u8 priority_add = 0;  // the line with the highest priority
  u8 irq_base = 0;
  u8 read_reg_select = 0;
  u8 poll = 0;
  u8 special_mask = 0;
  u8 init_state = 0;  // which initialisation word is expected next; 0: none
  u8 auto_eoi = 0;
  u8 rotate_on_auto_eoi = 0;
  u8 special_fully_nested_mode = 0;
  u8 init4 = 0;
  u8 elcr = 0;
  u8 elcr_mask = 0;
};
static_assert(sizeof(PicState) == 16, "KVM_GET_IRQCHIP hands it out as it is");

class Pic {
 public:
  static constexpr u32 kLineCount = 16;

  Pic();

  // A device moves a line. Returns KVM_IRQ_LINE_STATUS's answer: 1 taken, 0 was pending already,
  // -1 masked.
  int set_line(u32 line, bool level);

  // True if the port is one of ours.
  bool read_port(u16 port, u8* data, u32 size);
  bool write_port(u16 port, const u8* data, u32 size);

  [[nodiscard]] bool output() const { return output_; }
  // The processor's interrupt acknowledge cycle; a spurious vector if nothing is pending.
  u8 acknowledge();

  [[nodiscard]] const PicState& state(u32 index) const { return chip_[index]; }
  void set_state(u32 index, const PicState& state);

 private:
  [[nodiscard]] std::optional<u32> wanted(const PicState& chip) const;
  void update_output();
  void acknowledge_line(PicState& chip, u32 line);
  void write_command(PicState& chip, u8 value);
  void write_operation(PicState& chip, u8 value);
  void write_data(PicState& chip, u8 value);
  u8 read_register(PicState& chip, u16 port);
  u8 read_poll(PicState& chip);

  PicState chip_[2];  // master, slave
  bool output_ = false;
};

}  // namespace stagetwo::vcpu
