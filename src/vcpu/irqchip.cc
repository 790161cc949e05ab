// SPDX-License-Identifier: Apache-2.0
#include "vcpu/irqchip.h"

namespace stagetwo::vcpu {
namespace {

bool pin_exists(const IrqRoute& route) {
  switch (route.target) {
    case IrqTarget::kPic:
      return route.pin < Pic::kLineCount;
    case IrqTarget::kIoApic:
      return route.pin < IoApic::kPinCount;
    case IrqTarget::kMsi:
      return true;
  }
  return false;
}

// Two entries of one GSI that cannot stand beside each other. The two PICs are chips of their own.
bool clash(const IrqRoute& a, const IrqRoute& b) {
  if (a.gsi != b.gsi) return false;
  if (a.target == IrqTarget::kMsi || b.target == IrqTarget::kMsi) return true;
  if (a.target != b.target) return false;
  return a.target == IrqTarget::kIoApic || (a.pin < 8) == (b.pin < 8);
}

// Intel SDM volume 3, "Message Signalled Interrupts". Upper destination bits: x2APIC ids.
ApicMessage message_of(u64 address, u32 data) {
  return {
      .vector = static_cast<u8>(data),
      .mode = static_cast<DeliveryMode>(data >> 8 & 7),
      .logical = (address >> 2 & 1) != 0,
      .assert_level = true,
      .level_triggered = (data >> 15 & 1) != 0,
      .destination = static_cast<u32>(address >> 12 & 0xff),
  };
}

}  // namespace

Irqchip::Irqchip() {
  bus_.eoi_observer = &Irqchip::end_of_interrupt;
  bus_.eoi_context = this;
}

Result<void> Irqchip::init() {
  std::array<IrqRoute, Pic::kLineCount + IoApic::kPinCount> defaults;
  size_t count = 0;
  for (u32 gsi = 0; gsi < IoApic::kPinCount; ++gsi) {
    defaults[count++] = {.gsi = gsi, .target = IrqTarget::kIoApic, .pin = gsi};
    if (gsi < Pic::kLineCount)
      defaults[count++] = {.gsi = gsi, .target = IrqTarget::kPic, .pin = gsi};
  }
  return set_routes({defaults.data(), count});
}

void Irqchip::set_pic_observer(void (*raised)(void* context), void* context) {
  pic_raised_ = raised;
  pic_context_ = context;
}

void Irqchip::tell_pic() {
  const bool up = pic_.output();
  if (up && !pic_was_up_ && pic_raised_ != nullptr) pic_raised_(pic_context_);
  pic_was_up_ = up;
}

int Irqchip::send(const IrqRoute& route, bool level) {
  switch (route.target) {
    case IrqTarget::kPic: {
      const int taken = pic_.set_line(route.pin, level);
      tell_pic();
      return taken;
    }
    case IrqTarget::kIoApic:
      return ioapic_.set_pin(route.pin, level);
    case IrqTarget::kMsi: {
      if (!level) return -1;
      const u32 taken = bus_.deliver(message_of(route.msi_address, route.msi_data), nullptr);
      return taken == 0 ? -1 : static_cast<int>(taken);
    }
  }
  return -1;
}

int Irqchip::set_line(u32 gsi, bool level) {
  sync::MutexGuard guard(lock_);
  int sum = -1;
  for (const IrqRoute& route : routes_) {
    if (route.gsi != gsi) continue;
    const int taken = send(route, level);
    if (taken >= 0) sum = taken + (sum < 0 ? 0 : sum);
  }
  return sum;
}

int Irqchip::send_msi(u64 address, u32 data) {
  const u32 taken = bus_.deliver(message_of(address, data), nullptr);
  return taken == 0 ? -1 : static_cast<int>(taken);
}

Result<void> Irqchip::set_routes(std::span<const IrqRoute> routes) {
  if (routes.size() > kMaxRoutes) return refuse(EINVAL);
  for (size_t i = 0; i < routes.size(); ++i) {
    if (routes[i].gsi >= kMaxRoutes || !pin_exists(routes[i])) return refuse(EINVAL);
    for (size_t j = 0; j < i; ++j)
      if (clash(routes[i], routes[j])) return refuse(EINVAL);
  }
  Vec<IrqRoute> fresh("vcpu.routes");
  ST_TRY(fresh.append(routes));
  sync::MutexGuard guard(lock_);
  routes_.swap(fresh);
  return {};
}

bool Irqchip::mmio_read(u64 gpa, void* data, u32 size) {
  sync::MutexGuard guard(lock_);
  if (!ioapic_.claims(gpa)) return false;
  ioapic_.mmio_read(gpa, static_cast<u8*>(data), size);
  return true;
}

bool Irqchip::mmio_write(u64 gpa, const void* data, u32 size) {
  sync::MutexGuard guard(lock_);
  if (!ioapic_.claims(gpa)) return false;
  ioapic_.mmio_write(gpa, static_cast<const u8*>(data), size);
  return true;
}

bool Irqchip::port_read(u16 port, void* data, u32 size) {
  sync::MutexGuard guard(lock_);
  const bool ours = pic_.read_port(port, static_cast<u8*>(data), size);
  if (ours) tell_pic();
  return ours;
}

bool Irqchip::port_write(u16 port, const void* data, u32 size) {
  sync::MutexGuard guard(lock_);
  const bool ours = pic_.write_port(port, static_cast<const u8*>(data), size);
  if (ours) tell_pic();
  return ours;
}

bool Irqchip::pic_output() {
  sync::MutexGuard guard(lock_);
  return pic_.output();
}

u8 Irqchip::acknowledge_pic() {
  sync::MutexGuard guard(lock_);
  const u8 vector = pic_.acknowledge();
  pic_was_up_ = false;
  tell_pic();
  return vector;
}

PicState Irqchip::pic_state(u32 index) {
  sync::MutexGuard guard(lock_);
  return pic_.state(index);
}

void Irqchip::set_pic_state(u32 index, const PicState& state) {
  sync::MutexGuard guard(lock_);
  pic_.set_state(index, state);
  tell_pic();
}

IoApicState Irqchip::ioapic_state() {
  sync::MutexGuard guard(lock_);
  return ioapic_.state();
}

void Irqchip::set_ioapic_state(const IoApicState& state) {
  sync::MutexGuard guard(lock_);
  ioapic_.set_state(state);
}

void Irqchip::end_of_interrupt(void* context, u8 vector) {
  auto* const chip = static_cast<Irqchip*>(context);
  sync::MutexGuard guard(chip->lock_);
  chip->ioapic_.end_of_interrupt(vector);
}

}  // namespace stagetwo::vcpu
