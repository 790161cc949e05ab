// SPDX-License-Identifier: Apache-2.0
#pragma once

// The interrupt controllers of one VM and the wires between them: a pair of PICs, an I/O APIC, the
// bus to the local APICs, and the table that says which controller a GSI reaches.
//
// Linux analogue: virt/kvm/irqchip.c with arch/x86/kvm/irq_comm.c. Differs: one interrupt source,
// and the table is searched under the lock instead of in a grace period. Invariants: I1  an entry
// of the table names a pin that exists.
//             I2  a GSI has at most one entry a chip, and an MSI entry is alone.
// Locking: lock_ (rank: kInterrupts) over controllers and table; messages to local APICs are sent
// under it, their wake callbacks may take no lock of this rank or above it.

#include <array>
#include <span>

#include "base/result.h"
#include "base/vec.h"
#include "sync/mutex.h"
#include "vcpu/ioapic.h"
#include "vcpu/lapic.h"
#include "vcpu/pic.h"

namespace stagetwo::vcpu {

enum class IrqTarget : u8 { kPic, kIoApic, kMsi };

struct IrqRoute {
  u32 gsi = 0;
  IrqTarget target = IrqTarget::kIoApic;
  u32 pin = 0;  // kPic: 0..15, kIoApic: 0..23
  u64 msi_address = 0;
  u32 msi_data = 0;
  friend constexpr bool operator==(const IrqRoute&, const IrqRoute&) = default;
};

class Irqchip {
 public:
  static constexpr u32 kMaxRoutes = 4096;

  Irqchip();
  Irqchip(const Irqchip&) = delete;
  Irqchip& operator=(const Irqchip&) = delete;

  // GSI 0..15 to the PIC and the I/O APIC, 16..23 to the I/O APIC. Failure: ENOMEM.
  [[nodiscard]] Result<void> init();

  [[nodiscard]] ApicBus& bus() { return bus_; }
  // Called, under the lock, when the PIC's output has gone up.
  void set_pic_observer(void (*raised)(void* context), void* context);

  // A device moves a line. > 0: delivered to so many, 0: coalesced, < 0: nobody or masked.
  int set_line(u32 gsi, bool level);
  // A message-signalled interrupt. As set_line.
  int send_msi(u64 address, u32 data);

  // The whole table at once. Failure: EINVAL (I1, I2, a GSI >= kMaxRoutes), ENOMEM; it stays as it
  // was.
  [[nodiscard]] Result<void> set_routes(std::span<const IrqRoute> routes);

  // Accesses of a guest; false: not ours.
  bool mmio_read(u64 gpa, void* data, u32 size);
  bool mmio_write(u64 gpa, const void* data, u32 size);
  bool port_read(u16 port, void* data, u32 size);
  bool port_write(u16 port, const void* data, u32 size);

  [[nodiscard]] bool pic_output();
  u8 acknowledge_pic();

  [[nodiscard]] PicState pic_state(u32 index);
  void set_pic_state(u32 index, const PicState& state);
  [[nodiscard]] IoApicState ioapic_state();
  void set_ioapic_state(const IoApicState& state);

 private:
  static void end_of_interrupt(void* context, u8 vector);
  int send(const IrqRoute& route, bool level) TA_REQ(lock_);
  void tell_pic() TA_REQ(lock_);

  ApicBus bus_;
  sync::Mutex lock_{sync::Rank::kInterrupts};
  Pic pic_ TA_GUARDED(lock_);
  IoApic ioapic_ TA_GUARDED(lock_){&bus_};
  Vec<IrqRoute> routes_ TA_GUARDED(lock_){"vcpu.routes"};
  bool pic_was_up_ TA_GUARDED(lock_) = false;
  void (*pic_raised_)(void* context) = nullptr;
  void* pic_context_ = nullptr;
};

}  // namespace stagetwo::vcpu
