// SPDX-License-Identifier: Apache-2.0
#include "vcpu/ioapic.h"

#include <algorithm>
#include <cstring>

namespace stagetwo::vcpu {
namespace {

// Redirection entry (82093AA, "I/O Redirection Table Registers").
//   63..56 destination | 16 mask | 15 level | 14 remote IRR | 13 polarity | 12 delivery status
//   11 logical | 10..8 delivery mode | 7..0 vector
constexpr u64 kMasked = 1u << 16, kLevel = 1u << 15, kRemoteIrr = 1u << 14, kStatus = 1u << 12,
              kLogical = 1u << 11;
constexpr u64 kReadOnly = kRemoteIrr | kStatus;

constexpr u32 kRegisterId = 0, kRegisterVersion = 1, kRegisterArbitration = 2,
              kRegisterRedirection = 0x10;
constexpr u64 kSelect = 0x00, kWindow = 0x10;
constexpr u32 kVersion = (IoApic::kPinCount - 1) << 16 | 0x11;

}  // namespace

IoApic::IoApic(ApicBus* bus) : bus_(bus) {
  std::fill(std::begin(state_.redirection), std::end(state_.redirection), kMasked);
}

u32 IoApic::read_window() const {
  if (state_.ioregsel == kRegisterVersion) return kVersion;
  if (state_.ioregsel == kRegisterId || state_.ioregsel == kRegisterArbitration) {
    return (state_.id & 0xf) << 24;
  }
  const u32 pin = (state_.ioregsel - kRegisterRedirection) >> 1;
  const u64 entry = pin < kPinCount ? state_.redirection[pin] : ~u64{0};
  return static_cast<u32>((state_.ioregsel & 1) != 0 ? entry >> 32 : entry);
}

void IoApic::write_window(u32 value) {
  if (state_.ioregsel == kRegisterId) state_.id = value >> 24 & 0xf;
  const u32 pin = (state_.ioregsel - kRegisterRedirection) >> 1;
  if (state_.ioregsel < kRegisterRedirection || pin >= kPinCount) return;

  u64& entry = state_.redirection[pin];
  if ((state_.ioregsel & 1) != 0) {
    entry = (entry & 0xffffffff) | u64{value} << 32;
  } else {
    const u64 kept = entry & (~u64{0xffffffff} | kReadOnly);
    entry = kept | (value & ~kReadOnly);
  }
  // Guests without an EOI register clear Remote IRR by turning the pin to edge and back.
  if ((entry & kLevel) == 0) entry &= ~kRemoteIrr;
  if ((entry & kLevel) != 0 && (state_.irr & 1u << pin) != 0) service(pin);
}

void IoApic::mmio_read(u64 gpa, u8* data, u32 size) const {
  const u64 offset = gpa & 0xff;
  const u64 value = offset == kSelect ? state_.ioregsel : offset == kWindow ? read_window() : 0;
  std::memcpy(data, &value, std::min<u32>(size, sizeof(value)));
}

void IoApic::mmio_write(u64 gpa, const u8* data, u32 size) {
  u32 value = 0;
  std::memcpy(&value, data, std::min<u32>(size, sizeof(value)));
  const u64 offset = gpa & 0xff;
  if (offset == kSelect) {
    state_.ioregsel = value & 0xff;
  } else if (offset == kWindow) {
    write_window(value);
  }
}

int IoApic::service(u32 pin) {
  u64& entry = state_.redirection[pin];
  const bool level = (entry & kLevel) != 0;
  if ((entry & kMasked) != 0 || (level && (entry & kRemoteIrr) != 0)) return -1;
  const u32 taken = bus_->deliver(
      {
          .vector = static_cast<u8>(entry),
          .mode = static_cast<DeliveryMode>(entry >> 8 & 7),
          .logical = (entry & kLogical) != 0,
          .assert_level = true,
          .level_triggered = level,
          .destination = static_cast<u32>(entry >> 56),
      },
      nullptr);
  if (taken == 0) return -1;
  if (level) entry |= kRemoteIrr;
  return static_cast<int>(taken);
}

int IoApic::set_pin(u32 pin, bool level) {
  const u32 mask = 1u << pin;
  if (!level) {
    state_.irr &= ~mask;
    return 1;
  }
  const bool was_up = (state_.irr & mask) != 0;
  state_.irr |= mask;
  if ((state_.redirection[pin] & kLevel) == 0 && was_up) return 0;
  return service(pin);
}

void IoApic::end_of_interrupt(u8 vector) {
  for (u32 pin = 0; pin < kPinCount; ++pin) {
    u64& entry = state_.redirection[pin];
    if (static_cast<u8>(entry) != vector || (entry & kLevel) == 0) continue;
    entry &= ~kRemoteIrr;
    if ((state_.irr & 1u << pin) != 0) service(pin);
  }
}

void IoApic::set_state(const IoApicState& state) {
  const u32 irr = state.irr;
  state_ = state;
  state_.pad = 0;
  state_.irr = 0;
  for (u32 pin = 0; pin < kPinCount; ++pin) {
    if ((irr & 1u << pin) != 0) set_pin(pin, true);
  }
}

}  // namespace stagetwo::vcpu
