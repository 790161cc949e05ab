// SPDX-License-Identifier: Apache-2.0
#include "vcpu/pic.h"

#include <cstring>

namespace stagetwo::vcpu {
namespace {

constexpr u32 kCascade = 2;  // the master's line that carries the slave
constexpr u32 kNoPriority = 8;

u8 bit(u32 line) {
  return static_cast<u8>(1u << line);
}
void clear(u8& mask, u32 line) {
  mask = static_cast<u8>(mask & ~bit(line));
}
void set(u8& mask, u32 line) {
  mask = static_cast<u8>(mask | bit(line));
}

// Distance of the most urgent line of `mask` from the top of the rotation; kNoPriority for none.
u32 priority_of(const PicState& chip, u8 mask) {
  if (mask == 0) return kNoPriority;
  u32 priority = 0;
  while ((mask & bit((priority + chip.priority_add) & 7)) == 0) ++priority;
  return priority;
}

u32 line_at(const PicState& chip, u32 priority) {
  return (priority + chip.priority_add) & 7;
}

int move_line(PicState& chip, u32 line, bool level) {
  const u8 mask = bit(line);
  int taken = 1;
  const bool level_triggered = (chip.elcr & mask) != 0;
  const bool rising = level && (level_triggered || (chip.last_irr & mask) == 0);
  if (rising) {
    taken = (chip.irr & mask) == 0;
    set(chip.irr, line);
  } else if (!level && level_triggered) {
    clear(chip.irr, line);
  }
  if (level) {
    set(chip.last_irr, line);
  } else {
    clear(chip.last_irr, line);
  }
  return (chip.imr & mask) != 0 ? -1 : taken;
}

// ICW1: everything but the base and the trigger modes starts again.
void initialise(PicState& chip, u8 icw1) {
  chip.init4 = icw1 & 1;
  chip.last_irr = 0;
  chip.irr = chip.irr & chip.elcr;
  chip.imr = 0;
  chip.priority_add = 0;
  chip.special_mask = 0;
  chip.read_reg_select = 0;
  if (!chip.init4) {
    chip.special_fully_nested_mode = 0;
    chip.auto_eoi = 0;
  }
  chip.init_state = 1;
}

}  // namespace

Pic::Pic() {
  // Lines 0, 1, 2, 8 and 13 of a PC cannot be level triggered.
  chip_[0].elcr_mask = 0xf8;
  chip_[1].elcr_mask = 0xde;
}

void Pic::set_state(u32 index, const PicState& state) {
  chip_[index] = state;
  update_output();
}

// The line a controller asks service for: pending, unmasked and more urgent than what is served.
std::optional<u32> Pic::wanted(const PicState& chip) const {
  const u32 priority = priority_of(chip, static_cast<u8>(chip.irr & ~chip.imr));
  if (priority == kNoPriority) return std::nullopt;
  u8 in_service = chip.isr;
  // In special fully nested mode the slave may interrupt itself.
  if (chip.special_fully_nested_mode && &chip == &chip_[0]) clear(in_service, kCascade);
  if (priority >= priority_of(chip, in_service)) return std::nullopt;
  return line_at(chip, priority);
}

void Pic::update_output() {
  if (wanted(chip_[1])) {
    move_line(chip_[0], kCascade, true);
    move_line(chip_[0], kCascade, false);
  }
  output_ = wanted(chip_[0]).has_value();
}

int Pic::set_line(u32 line, bool level) {
  const int taken = move_line(chip_[line >> 3], line & 7, level);
  update_output();
  return taken;
}

void Pic::acknowledge_line(PicState& chip, u32 line) {
  set(chip.isr, line);
  if ((chip.elcr & bit(line)) == 0) clear(chip.irr, line);
  if (chip.auto_eoi) {
    if (chip.rotate_on_auto_eoi) chip.priority_add = (line + 1) & 7;
    clear(chip.isr, line);
  }
}

u8 Pic::acknowledge() {
  constexpr u32 kSpurious = 7;
  u32 vector = chip_[0].irq_base + kSpurious;
  if (const auto line = wanted(chip_[0])) {
    acknowledge_line(chip_[0], *line);
    vector = chip_[0].irq_base + *line;
    if (*line == kCascade) {
      const auto slave_line = wanted(chip_[1]);
      if (slave_line) acknowledge_line(chip_[1], *slave_line);
      vector = chip_[1].irq_base + slave_line.value_or(kSpurious);
    }
  }
  update_output();
  return static_cast<u8>(vector);
}

void Pic::write_operation(PicState& chip, u8 value) {
  const u32 line = value & 7;
  const u32 served = priority_of(chip, chip.isr);
  switch (value >> 5) {
    case 0:  // rotate in automatic EOI mode: clear
    case 4:  // … set
      chip.rotate_on_auto_eoi = value >> 7;
      return;
    case 1:  // non-specific EOI
    case 5:  // … and rotate
      if (served == kNoPriority) return;
      clear(chip.isr, line_at(chip, served));
      if (value >> 5 == 5) chip.priority_add = (line_at(chip, served) + 1) & 7;
      break;
    case 3:  // specific EOI
      clear(chip.isr, line);
      break;
    case 6:  // set priority
      chip.priority_add = (line + 1) & 7;
      break;
    case 7:  // specific EOI and rotate
      chip.priority_add = (line + 1) & 7;
      clear(chip.isr, line);
      break;
    default:
      return;
  }
  update_output();
}

void Pic::write_command(PicState& chip, u8 value) {
  if ((value & 0x10) != 0) {
    initialise(chip, value);
  } else if ((value & 0x08) != 0) {  // OCW3
    if ((value & 0x04) != 0) chip.poll = 1;
    if ((value & 0x02) != 0) chip.read_reg_select = value & 1;
    if ((value & 0x40) != 0) chip.special_mask = value >> 5 & 1;
  } else {
    write_operation(chip, value);
  }
}

void Pic::write_data(PicState& chip, u8 value) {
  switch (chip.init_state) {
    case 1:
      chip.irq_base = value & 0xf8;
      chip.init_state = 2;
      break;
    case 2:  // ICW3, the cascade's wiring, is what it is on a PC
      chip.init_state = chip.init4 ? 3 : 0;
      break;
    case 3:
      chip.special_fully_nested_mode = value >> 4 & 1;
      chip.auto_eoi = value >> 1 & 1;
      chip.init_state = 0;
      break;
    default:
      chip.imr = value;
      update_output();
      break;
  }
}

u8 Pic::read_poll(PicState& chip) {
  chip.poll = 0;
  const auto line = wanted(chip);
  const bool slave = &chip == &chip_[1];
  if (!line) {
    update_output();
    return 0x07;
  }
  if (slave) {
    clear(chip_[0].isr, kCascade);
    clear(chip_[0].irr, kCascade);
  }
  clear(chip.irr, *line);
  clear(chip.isr, *line);
  if (slave || *line != kCascade) update_output();
  return static_cast<u8>(*line | 0x80);
}

u8 Pic::read_register(PicState& chip, u16 port) {
  if (chip.poll) return read_poll(chip);
  if ((port & 1) != 0) return chip.imr;
  return chip.read_reg_select ? chip.isr : chip.irr;
}

bool Pic::read_port(u16 port, u8* data, u32 size) {
  const bool registers = (port & ~0x81) == 0x20;
  if (!registers && (port & ~1) != 0x4d0) return false;
  std::memset(data, 0, size);
  if (size == 1) *data = registers ? read_register(chip_[port >> 7], port) : chip_[port & 1].elcr;
  return true;
}

bool Pic::write_port(u16 port, const u8* data, u32 size) {
  const bool registers = (port & ~0x81) == 0x20;
  if (!registers && (port & ~1) != 0x4d0) return false;
  if (size != 1) return true;
  if (!registers) {
    PicState& chip = chip_[port & 1];
    chip.elcr = *data & chip.elcr_mask;
  } else if ((port & 1) == 0) {
    write_command(chip_[port >> 7], *data);
  } else {
    write_data(chip_[port >> 7], *data);
  }
  return true;
}

}  // namespace stagetwo::vcpu
