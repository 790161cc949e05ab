// SPDX-License-Identifier: Apache-2.0
#pragma once

// One processor's local APIC, and the bus that carries interrupts between them: xAPIC through its
// page of registers, x2APIC through MSRs 0x800..0x83f.
//
// Linux analogue: arch/x86/kvm/lapic.c. Source: Intel SDM volume 3, chapter "APIC"; register reset
// values and the rules of refused writes as KVM has them. Differs: no hardware assistance, and a
// timer is a deadline that its owner polls, not a callback.
//
// Invariants: I1  IRR and TMR bits are set by any thread; ISR, PPR and every other register are
//                 written by the owner, or while the owner is outside run().
//             I2  a vector is moved from IRR to ISR only by acknowledge().
// Locking: none; shared words are atomics, see I1. Lifetime: a Lapic outlives its entry on the bus.

#include <optional>

#include "base/result.h"
#include "sync/atomic.h"
#include "vcpu/state.h"

namespace stagetwo::vcpu {

enum class DeliveryMode : u32 {
  kFixed = 0,
  kLowest = 1,
  kSmi = 2,
  kRemoteRead = 3,
  kNmi = 4,
  kInit = 5,
  kStartup = 6,
  kExtInt = 7,
};

enum class Shorthand : u32 { kNone = 0, kSelf = 1, kAllIncludingSelf = 2, kAllButSelf = 3 };

// What an ICR write, an MSI or an I/O APIC pin sends over the bus.
struct ApicMessage {
  u8 vector = 0;
  DeliveryMode mode = DeliveryMode::kFixed;
  bool logical = false;  // destination is a logical id
  bool assert_level = true;
  bool level_triggered = false;
  Shorthand shorthand = Shorthand::kNone;
  u32 destination = 0;
};

class ApicBus;

class Lapic {
 public:
  static constexpr u32 kRegisterBytes = 1024;  // what KVM_GET_LAPIC shows
  static constexpr u64 kBaseEnable = 1u << 11;
  static constexpr u64 kBaseX2apic = 1u << 10;
  static constexpr u64 kBaseBsp = 1u << 8;

  struct Config {
    u32 id = 0;
    bool boot_cpu = false;
    bool lint0_reenabled = true;  // KVM_X86_QUIRK_LINT0_REENABLED
    u64 bus_cycle_ns = 1;         // KVM_CAP_X86_APIC_BUS_CYCLES_NS
    ApicBus* bus = nullptr;
    void* wake_context = nullptr;
    // Called after an event was posted; any thread.
    void (*wake)(void* context) = nullptr;
  };

  explicit Lapic(const Config& config);
  Lapic(const Lapic&) = delete;
  Lapic& operator=(const Lapic&) = delete;

  // INIT keeps IA32_APIC_BASE and the ID; RESET does not.
  void reset(bool init_event);

  [[nodiscard]] u32 id() const { return config_.id; }
  [[nodiscard]] u64 base() const { return base_; }
  [[nodiscard]] bool hardware_enabled() const { return (base_ & kBaseEnable) != 0; }
  [[nodiscard]] bool x2apic() const {
    return (base_ & (kBaseEnable | kBaseX2apic)) == (kBaseEnable | kBaseX2apic);
  }
  // True if the page of registers answers at this guest-physical address.
  [[nodiscard]] bool claims(u64 gpa) const {
    return hardware_enabled() && !x2apic() && (gpa & ~u64{0xfff}) == (base_ & ~u64{0xfff});
  }

  // IA32_APIC_BASE. Failure: EINVAL (the guest gets #GP) for reserved bits and forbidden mode
  // changes; nothing changed.
  [[nodiscard]] Result<void> set_base(u64 value, u64 reserved_bits, bool host_initiated);

  // The page of registers. Accesses the SDM does not allow read zero and write nothing.
  void mmio_read(u32 offset, u8* data, u32 size, u64 now_ns);
  void mmio_write(u32 offset, const u8* data, u32 size, u64 now_ns);

  // x2APIC MSRs. Failure: EINVAL, the guest gets #GP.
  [[nodiscard]] Result<u64> msr_read(u32 index, u64 now_ns);
  [[nodiscard]] Result<void> msr_write(u32 index, u64 value, u64 now_ns);

  [[nodiscard]] u8 task_priority_class() const;  // CR8
  void set_task_priority_class(u8 cr8);

  // Accepts a message that was routed here. True: it was taken.
  // Context: any thread.
  bool accept(const ApicMessage& message);
  [[nodiscard]] bool matches(const ApicMessage& message, const Lapic* sender) const;

  // The vector that would be delivered now; none if masked by PPR, disabled or idle.
  [[nodiscard]] std::optional<u8> pending_vector();
  // Moves that vector into service. Pre: pending_vector() has one.
  u8 acknowledge();
  // LVT0 in ExtINT mode lets the PIC through.
  [[nodiscard]] bool accepts_pic() const;

  // Events other than interrupts, taken by the owner; each is cleared by being taken.
  [[nodiscard]] bool take_nmi() { return nmi_.exchange(0) != 0; }
  [[nodiscard]] bool take_init();
  [[nodiscard]] std::optional<u8> take_startup();
  [[nodiscard]] bool has_event();

  // When the timer has to be looked at next; none if it is not running. Absolute nanoseconds, or
  // guest TSC ticks in TSC-deadline mode (see tsc_deadline()).
  [[nodiscard]] std::optional<u64> timer_deadline_ns() const;
  [[nodiscard]] u64 tsc_deadline() const { return tsc_deadline_; }
  void set_tsc_deadline(u64 guest_tsc);
  // Posts the timer's interrupt if it is due; cheap if not.
  void poll_timer(u64 now_ns, u64 guest_tsc);

  // KVM_GET_LAPIC, KVM_SET_LAPIC: 1,024 bytes. Pre: the owner is outside run().
  // Failure: EINVAL if the id of an x2APIC image is not this processor's.
  void get_state(u8* registers, u64 now_ns);
  [[nodiscard]] Result<void> set_state(const u8* registers, u64 now_ns);

 private:
  [[nodiscard]] u32 reg(u32 offset) const { return regs_[offset >> 4]; }
  void set_reg(u32 offset, u32 value) { regs_[offset >> 4] = value; }
  [[nodiscard]] bool software_enabled() const;
  [[nodiscard]] bool readable(u32 offset) const;
  [[nodiscard]] bool write_register(u32 offset, u32 value, u64 now_ns);
  void write_spurious(u32 value);
  void write_divide(u32 value, u64 now_ns);
  void write_lvt(u32 offset, u32 value);
  void send(u32 icr_low, u32 destination);
  void end_of_interrupt();
  void update_ppr();
  [[nodiscard]] int highest_irr();
  [[nodiscard]] int highest_isr() const;
  [[nodiscard]] u32 timer_mode() const;
  [[nodiscard]] u64 timer_period_ns() const;
  [[nodiscard]] u32 current_count(u64 now_ns) const;
  void start_timer(u64 now_ns);
  void local_deliver(u32 lvt_offset);
  void wake();
  [[nodiscard]] bool matches_logical(u32 destination) const;

  Config config_;
  u64 base_ = 0;
  u32 regs_[64] = {};           // registers other than IRR and TMR
  sync::Atomic<u32> irr_[8]{};  // written by any sender, cleared by the owner
  sync::Atomic<u32> tmr_[8]{};  // written by any sender
  sync::Atomic<u32> nmi_{0};
  sync::Atomic<u32> init_{0};
  sync::Atomic<u32> startup_{0};  // 0x100 | vector
  u64 deadline_ns_ = 0;           // 0: not running
  u64 tsc_deadline_ = 0;
};

// Routes messages. Analogue: kvm_irq_delivery_to_apic.
class ApicBus {
 public:
  static constexpr u32 kMaxProcessors = 4096;

  // Pre: lapic->id() < kMaxProcessors and not on the bus.
  void attach(Lapic* lapic);
  void detach(Lapic* lapic);
  // Returns how many processors took it. Context: any thread.
  u32 deliver(const ApicMessage& message, const Lapic* sender);
  // Called for each end of a level-triggered interrupt (the I/O APIC listens).
  void (*eoi_observer)(void* context, u8 vector) = nullptr;
  void* eoi_context = nullptr;

 private:
  Lapic* choose_lowest(const ApicMessage& message, const Lapic* sender);

  sync::Atomic<u32> highest_{0};  // one past the highest attached id
  sync::Atomic<Lapic*> processors_[kMaxProcessors]{};
};

}  // namespace stagetwo::vcpu
