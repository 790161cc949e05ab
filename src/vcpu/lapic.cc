// SPDX-License-Identifier: Apache-2.0
#include "vcpu/lapic.h"

#include <bit>
#include <cstring>

namespace stagetwo::vcpu {
namespace {

// Register offsets: SDM volume 3, table "Local APIC Register Address Map".
constexpr u32 kId = 0x20, kVersion = 0x30, kTaskPriority = 0x80, kArbitration = 0x90,
              kProcessorPriority = 0xa0, kEoi = 0xb0, kLogicalDestination = 0xd0,
              kDestinationFormat = 0xe0, kSpurious = 0xf0, kIsr = 0x100, kTmr = 0x180, kIrr = 0x200,
              kErrorStatus = 0x280, kIcr = 0x300, kIcrHigh = 0x310, kLvtTimer = 0x320,
              kLvtThermal = 0x330, kLvtPerformance = 0x340, kLvtLint0 = 0x350, kLvtLint1 = 0x360,
              kLvtError = 0x370, kInitialCount = 0x380, kCurrentCount = 0x390, kDivide = 0x3e0,
              kSelfIpi = 0x3f0;

constexpr u32 kLvtMasked = 1u << 16;
constexpr u32 kLvtCount = 6;
// Version 0x14 with six LVT entries, as KVM reports without CMCI and directed EOI.
constexpr u32 kVersionValue = 0x14 | (kLvtCount - 1) << 16;
constexpr u32 kSoftwareEnable = 1u << 8;
constexpr u32 kIcrBusy = 1u << 12;
constexpr u64 kX2apicIcrReserved = (0xfffull << 20) | (1u << 17) | (1u << 16) | (1u << 13);

enum TimerMode : u32 { kTimerOneShot = 0, kTimerPeriodic = 1, kTimerTscDeadline = 2 };
// A period below this would keep the owner busy with its own timer (KVM's min_timer_period_us).
constexpr u64 kShortestPeriodNs = 500'000;

u32 lvt_mask(u32 offset) {
  constexpr u32 kVector = 0xff, kMode = 0x700, kPending = 1u << 12, kPolarity = 1u << 13,
                kRemoteIrr = 1u << 14, kLevel = 1u << 15;
  const u32 common = kVector | kPending | kLvtMasked;
  switch (offset) {
    case kLvtTimer:
      return common | 3u << 17;
    case kLvtThermal:
    case kLvtPerformance:
      return common | kMode;
    case kLvtLint0:
    case kLvtLint1:
      return common | kMode | kPolarity | kRemoteIrr | kLevel;
    default:
      return common;
  }
}

bool is_lvt(u32 offset) {
  return offset >= kLvtTimer && offset <= kLvtError;
}

u32 x2apic_logical_id(u32 id) {
  return (id >> 4) << 16 | 1u << (id & 0xf);
}

u32 load32(const u8* data) {
  u32 value = 0;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

}  // namespace

Lapic::Lapic(const Config& config) : config_(config) {
  reset(/*init_event=*/false);
}

void Lapic::wake() {
  if (config_.wake) config_.wake(config_.wake_context);
}

void Lapic::reset(bool init_event) {
  if (!init_event) {
    base_ = 0xfee00000u | kBaseEnable | (config_.boot_cpu ? kBaseBsp : 0);
    set_reg(kId, config_.id << 24);
  }
  deadline_ns_ = 0;
  tsc_deadline_ = 0;
  set_reg(kVersion, kVersionValue);
  for (u32 lvt = kLvtTimer; lvt <= kLvtError; lvt += 0x10) set_reg(lvt, kLvtMasked);
  if (config_.boot_cpu && config_.lint0_reenabled) set_reg(kLvtLint0, 7u << 8);
  set_reg(kDestinationFormat, ~u32{0});
  set_reg(kSpurious, 0xff);
  set_reg(kTaskPriority, 0);
  if (!x2apic()) set_reg(kLogicalDestination, 0);
  for (u32 offset : {kErrorStatus, kIcr, kIcrHigh, kDivide, kInitialCount}) set_reg(offset, 0);
  for (u32 i = 0; i < 8; ++i) {
    irr_[i].store(0);
    tmr_[i].store(0);
    set_reg(kIsr + 0x10 * i, 0);
  }
  update_ppr();
}

Result<void> Lapic::set_base(u64 value, u64 reserved_bits, bool host_initiated) {
  const bool enabled = (value & kBaseEnable) != 0;
  const bool extended = (value & kBaseX2apic) != 0;
  if ((value & (reserved_bits | 0x2ff)) != 0 || (extended && !enabled)) return refuse(EINVAL);
  if (!host_initiated) {
    if (x2apic() && enabled && !extended) return refuse(EINVAL);
    if (!hardware_enabled() && enabled && extended) return refuse(EINVAL);
  }
  const u64 changed = base_ ^ value;
  base_ = value;
  if ((changed & kBaseX2apic) != 0) {
    if (extended) {
      set_reg(kId, config_.id);
      set_reg(kLogicalDestination, x2apic_logical_id(config_.id));
    } else if (enabled) {
      set_reg(kId, config_.id << 24);
    }
  } else if ((changed & kBaseEnable) != 0 && enabled) {
    set_reg(kId, config_.id << 24);
  }
  return {};
}

bool Lapic::software_enabled() const {
  return (reg(kSpurious) & kSoftwareEnable) != 0;
}

bool Lapic::readable(u32 offset) const {
  switch (offset) {
    case kArbitration:
    case kDestinationFormat:
    case kIcrHigh:
      return !x2apic();
    case kId:
    case kVersion:
    case kTaskPriority:
    case kProcessorPriority:
    case kLogicalDestination:
    case kSpurious:
    case kErrorStatus:
    case kIcr:
    case kInitialCount:
    case kCurrentCount:
    case kDivide:
      return true;
    default:
      return is_lvt(offset) || (offset >= kIsr && offset < kErrorStatus);
  }
}

void Lapic::mmio_read(u32 offset, u8* data, u32 size, u64 now_ns) {
  std::memset(data, 0, size);
  const u32 within = offset & 0xf;
  const u32 aligned = offset & ~u32{0xf};
  if (within + size > 4 || aligned > kDivide || !readable(aligned)) return;
  u32 value = 0;
  if (aligned == kCurrentCount) {
    value = current_count(now_ns);
  } else if (aligned >= kIrr && aligned < kErrorStatus) {
    value = irr_[(aligned - kIrr) >> 4].load();
  } else if (aligned >= kTmr && aligned < kIrr) {
    value = tmr_[(aligned - kTmr) >> 4].load();
  } else if (aligned == kProcessorPriority) {
    update_ppr();
    value = reg(aligned);
  } else if (aligned != kArbitration) {
    value = reg(aligned);
  }
  u8 bytes[4];
  std::memcpy(bytes, &value, sizeof(bytes));
  std::memcpy(data, bytes + within, size);
}

void Lapic::mmio_write(u32 offset, const u8* data, u32 size, u64 now_ns) {
  // Registers are 32 bits wide on 128-bit boundaries; anything else is dropped.
  if (size != 4 || (offset & 0xf) != 0) return;
  static_cast<void>(write_register(offset & 0xff0, load32(data), now_ns));
}

Result<u64> Lapic::msr_read(u32 index, u64 now_ns) {
  const u32 offset = (index - 0x800) << 4;
  if (!x2apic() || index < 0x800 || offset > kSelfIpi || !readable(offset)) return refuse(EINVAL);
  if (offset == kIcr) return reg(kIcr) | u64{reg(kIcrHigh)} << 32;
  u8 bytes[4];
  mmio_read(offset, bytes, sizeof(bytes), now_ns);
  return load32(bytes);
}

Result<void> Lapic::msr_write(u32 index, u64 value, u64 now_ns) {
  const u32 offset = (index - 0x800) << 4;
  if (!x2apic() || index < 0x800 || offset > kSelfIpi) return refuse(EINVAL);
  if (offset == kIcr) {
    if ((value & kX2apicIcrReserved) != 0) return refuse(EINVAL);
    const u32 low = static_cast<u32>(value) & ~kIcrBusy;
    const u32 destination = static_cast<u32>(value >> 32);
    set_reg(kIcr, low);
    set_reg(kIcrHigh, destination);
    send(low, destination);
    return {};
  }
  if (value >> 32 != 0 || !write_register(offset, static_cast<u32>(value), now_ns)) {
    return refuse(EINVAL);
  }
  return {};
}

// Returns false for what a register does not accept: silent through the page, #GP through an MSR.
bool Lapic::write_register(u32 offset, u32 value, u64 now_ns) {
  const bool extended = x2apic();
  switch (offset) {
    case kId:
      if (extended) return false;
      set_reg(kId, value & 0xff000000);
      return true;
    case kTaskPriority:
      set_reg(kTaskPriority, value & 0xff);
      update_ppr();
      return true;
    case kEoi:
      end_of_interrupt();
      return true;
    case kLogicalDestination:
      if (extended) return false;
      set_reg(offset, value & 0xff000000);
      return true;
    case kDestinationFormat:
      if (extended) return false;
      set_reg(offset, value | 0x0fffffff);
      return true;
    case kSpurious:
      write_spurious(value);
      return true;
    case kIcr:
      set_reg(kIcr, value & ~kIcrBusy);
      send(value & ~kIcrBusy, reg(kIcrHigh) >> 24);
      return true;
    case kIcrHigh:
      if (extended) return false;
      set_reg(offset, value & 0xff000000);
      return true;
    case kInitialCount:
      if (timer_mode() == kTimerTscDeadline) return true;
      set_reg(offset, value);
      start_timer(now_ns);
      return true;
    case kDivide:
      write_divide(value, now_ns);
      return true;
    case kErrorStatus:
      return !(extended && value != 0);
    case kSelfIpi:
      if (!extended || (value & ~u32{0xff}) != 0) return false;
      send(1u << 18 | value, 0);
      return true;
    default:
      break;
  }
  if (!is_lvt(offset)) return false;
  write_lvt(offset, value);
  return true;
}

void Lapic::write_divide(u32 value, u64 now_ns) {
  const u32 left = current_count(now_ns);
  set_reg(kDivide, value & 0xb);
  // A running count goes on from where it is, at the new pace.
  if (deadline_ns_ != 0 && reg(kInitialCount) != 0)
    deadline_ns_ = now_ns + timer_period_ns() / reg(kInitialCount) * left;
}

void Lapic::write_lvt(u32 offset, u32 value) {
  const u32 old_mode = timer_mode();
  if (!software_enabled()) value |= kLvtMasked;
  set_reg(offset, value & lvt_mask(offset));
  if (offset == kLvtTimer && timer_mode() != old_mode) {
    // Changing the mode disarms what was counting (SDM, "APIC Timer").
    deadline_ns_ = 0;
    tsc_deadline_ = 0;
    set_reg(kInitialCount, 0);
  }
}

void Lapic::write_spurious(u32 value) {
  set_reg(kSpurious, value & 0x3ff);
  if (software_enabled()) return;
  for (u32 lvt = kLvtTimer; lvt <= kLvtError; lvt += 0x10) set_reg(lvt, reg(lvt) | kLvtMasked);
}

void Lapic::send(u32 icr_low, u32 destination) {
  if (!config_.bus) return;
  const ApicMessage message{
      .vector = static_cast<u8>(icr_low),
      .mode = static_cast<DeliveryMode>(icr_low >> 8 & 7),
      .logical = (icr_low & 1u << 11) != 0,
      .assert_level = (icr_low & 1u << 14) != 0,
      .level_triggered = (icr_low & 1u << 15) != 0,
      .shorthand = static_cast<Shorthand>(icr_low >> 18 & 3),
      .destination = destination,
  };
  config_.bus->deliver(message, this);
}

u8 Lapic::task_priority_class() const {
  return static_cast<u8>(reg(kTaskPriority) >> 4);
}

void Lapic::set_task_priority_class(u8 cr8) {
  set_reg(kTaskPriority, (cr8 & 0xfu) << 4);
  update_ppr();
}

int Lapic::highest_irr() {
  for (int word = 7; word >= 0; --word) {
    const u32 bits = irr_[word].load();
    if (bits != 0) return word * 32 + 31 - std::countl_zero(bits);
  }
  return -1;
}

int Lapic::highest_isr() const {
  for (int word = 7; word >= 0; --word) {
    const u32 bits = reg(kIsr + 0x10 * static_cast<u32>(word));
    if (bits != 0) return word * 32 + 31 - std::countl_zero(bits);
  }
  return -1;
}

void Lapic::update_ppr() {
  const u32 task = reg(kTaskPriority);
  const int in_service = highest_isr();
  const u32 service = in_service < 0 ? 0 : static_cast<u32>(in_service);
  set_reg(kProcessorPriority, (task & 0xf0) >= (service & 0xf0) ? task & 0xff : service & 0xf0);
}

std::optional<u8> Lapic::pending_vector() {
  if (!hardware_enabled() || !software_enabled()) return std::nullopt;
  const int vector = highest_irr();
  if (vector < 0) return std::nullopt;
  update_ppr();
  if ((static_cast<u32>(vector) & 0xf0) <= (reg(kProcessorPriority) & 0xf0)) return std::nullopt;
  return static_cast<u8>(vector);
}

u8 Lapic::acknowledge() {
  const u8 vector = static_cast<u8>(highest_irr());
  const u32 bit = 1u << (vector & 31);
  irr_[vector >> 5].fetch_and(~bit);
  const u32 offset = kIsr + 0x10 * (vector >> 5);
  set_reg(offset, reg(offset) | bit);
  update_ppr();
  return vector;
}

bool Lapic::accepts_pic() const {
  const u32 lint0 = reg(kLvtLint0);
  if (!hardware_enabled()) return true;
  return (lint0 & kLvtMasked) == 0 &&
         static_cast<DeliveryMode>(lint0 >> 8 & 7) == DeliveryMode::kExtInt;
}

void Lapic::end_of_interrupt() {
  const int vector = highest_isr();
  if (vector < 0) return;
  const u32 word = static_cast<u32>(vector) >> 5;
  const u32 bit = 1u << (vector & 31);
  set_reg(kIsr + 0x10 * word, reg(kIsr + 0x10 * word) & ~bit);
  update_ppr();
  if ((tmr_[word].load() & bit) != 0 && config_.bus && config_.bus->eoi_observer) {
    config_.bus->eoi_observer(config_.bus->eoi_context, static_cast<u8>(vector));
  }
}

bool Lapic::accept(const ApicMessage& message) {
  const u32 word = message.vector >> 5;
  const u32 bit = 1u << (message.vector & 31);
  switch (message.mode) {
    case DeliveryMode::kFixed:
    case DeliveryMode::kLowest:
      if (message.level_triggered && !message.assert_level) return false;
      if (!hardware_enabled() || !software_enabled()) return false;
      if (message.level_triggered) {
        tmr_[word].fetch_or(bit);
      } else {
        tmr_[word].fetch_and(~bit);
      }
      irr_[word].fetch_or(bit);
      break;
    case DeliveryMode::kNmi:
      nmi_.store(1);
      break;
    case DeliveryMode::kInit:
      // The de-assert message of old multiprocessor start-up says nothing.
      if (message.level_triggered && !message.assert_level) return false;
      startup_.store(0);
      init_.store(1);
      break;
    case DeliveryMode::kStartup:
      startup_.store(0x100u | message.vector);
      break;
    case DeliveryMode::kRemoteRead:
      break;
    case DeliveryMode::kSmi:
    case DeliveryMode::kExtInt:
      return false;
  }
  wake();
  return true;
}

bool Lapic::matches_logical(u32 destination) const {
  const u32 logical = reg(kLogicalDestination);
  if (x2apic()) {
    return logical >> 16 == destination >> 16 && (logical & destination & 0xffff) != 0;
  }
  const u32 own = logical >> 24;
  if (reg(kDestinationFormat) >> 28 == 0xf) return (own & destination) != 0;  // flat
  if (reg(kDestinationFormat) >> 28 != 0) return false;
  return own >> 4 == destination >> 4 && (own & destination & 0xf) != 0;  // cluster
}

bool Lapic::matches(const ApicMessage& message, const Lapic* sender) const {
  switch (message.shorthand) {
    case Shorthand::kSelf:
      return this == sender;
    case Shorthand::kAllIncludingSelf:
      return true;
    case Shorthand::kAllButSelf:
      return this != sender;
    case Shorthand::kNone:
      break;
  }
  // A message from an xAPIC speaks to everybody with 0xff, one from an x2APIC with all ones.
  const bool extended_sender = sender && sender->x2apic();
  if (message.destination == (extended_sender ? ~u32{0} : 0xffu)) return true;
  if (message.logical) return matches_logical(message.destination);
  return message.destination == (x2apic() ? reg(kId) : reg(kId) >> 24);
}

bool Lapic::take_init() {
  return init_.exchange(0) != 0;
}

std::optional<u8> Lapic::take_startup() {
  const u32 posted = startup_.exchange(0);
  if (posted == 0) return std::nullopt;
  return static_cast<u8>(posted);
}

bool Lapic::has_event() {
  return nmi_.load() != 0 || init_.load() != 0 || startup_.load() != 0 ||
         pending_vector().has_value();
}

void Lapic::local_deliver(u32 lvt_offset) {
  const u32 lvt = reg(lvt_offset);
  if (!hardware_enabled() || (lvt & kLvtMasked) != 0) return;
  accept({.vector = static_cast<u8>(lvt),
          .mode = lvt_offset == kLvtTimer ? DeliveryMode::kFixed
                                          : static_cast<DeliveryMode>(lvt >> 8 & 7)});
}

u32 Lapic::timer_mode() const {
  return reg(kLvtTimer) >> 17 & 3;
}

u64 Lapic::timer_period_ns() const {
  const u32 divide = reg(kDivide);
  const u32 shift = (((divide & 3) | (divide & 8) >> 1) + 1) & 7;
  return (u64{reg(kInitialCount)} << shift) * config_.bus_cycle_ns;
}

u32 Lapic::current_count(u64 now_ns) const {
  if (timer_mode() == kTimerTscDeadline || reg(kInitialCount) == 0 || deadline_ns_ <= now_ns) {
    return 0;
  }
  const u64 tick = timer_period_ns() / reg(kInitialCount);
  return static_cast<u32>((deadline_ns_ - now_ns) / tick);
}

void Lapic::start_timer(u64 now_ns) {
  deadline_ns_ = 0;
  u64 period = timer_period_ns();
  if (period == 0) return;
  if (timer_mode() == kTimerPeriodic && period < kShortestPeriodNs) period = kShortestPeriodNs;
  deadline_ns_ = now_ns + period;
}

std::optional<u64> Lapic::timer_deadline_ns() const {
  if (deadline_ns_ == 0 || (reg(kLvtTimer) & kLvtMasked) != 0) return std::nullopt;
  return deadline_ns_;
}

void Lapic::set_tsc_deadline(u64 guest_tsc) {
  // Outside TSC-deadline mode the MSR reads zero and ignores writes.
  if (hardware_enabled() && timer_mode() == kTimerTscDeadline) tsc_deadline_ = guest_tsc;
}

void Lapic::poll_timer(u64 now_ns, u64 guest_tsc) {
  if (tsc_deadline_ != 0 && guest_tsc >= tsc_deadline_) {
    tsc_deadline_ = 0;
    local_deliver(kLvtTimer);
  }
  if (deadline_ns_ == 0 || now_ns < deadline_ns_) return;
  if (timer_mode() == kTimerPeriodic) {
    u64 period = timer_period_ns();
    if (period < kShortestPeriodNs) period = kShortestPeriodNs;
    // Periods that went by unseen are one interrupt: IRR has one bit a vector.
    deadline_ns_ += ((now_ns - deadline_ns_) / period + 1) * period;
  } else {
    deadline_ns_ = 0;
  }
  local_deliver(kLvtTimer);
}

void Lapic::get_state(u8* registers, u64 now_ns) {
  update_ppr();
  u32 image[64];
  std::memcpy(image, regs_, sizeof(image));
  for (u32 i = 0; i < 8; ++i) {
    image[(kIrr >> 4) + i] = irr_[i].load();
    image[(kTmr >> 4) + i] = tmr_[i].load();
  }
  image[kCurrentCount >> 4] = current_count(now_ns);
  std::memset(registers, 0, kRegisterBytes);
  for (u32 i = 0; i < 64; ++i) std::memcpy(registers + 16 * i, &image[i], sizeof(u32));
}

Result<void> Lapic::set_state(const u8* registers, u64 now_ns) {
  u32 image[64];
  for (u32 i = 0; i < 64; ++i) image[i] = load32(registers + 16 * i);
  if (x2apic() && image[kId >> 4] != config_.id) {
    // The image of an older user space carries the xAPIC form of the id.
    if (image[kId >> 4] != config_.id << 24) return refuse(EINVAL);
    image[kId >> 4] = config_.id;
  }
  if (x2apic()) image[kLogicalDestination >> 4] = x2apic_logical_id(config_.id);
  image[kVersion >> 4] = kVersionValue;
  std::memcpy(regs_, image, sizeof(image));
  for (u32 i = 0; i < 8; ++i) {
    irr_[i].store(image[(kIrr >> 4) + i]);
    tmr_[i].store(image[(kTmr >> 4) + i]);
  }
  start_timer(now_ns);
  if (deadline_ns_ != 0) {
    const u64 tick = timer_period_ns() / reg(kInitialCount);
    const u64 left = image[kCurrentCount >> 4] * tick;
    if (left < deadline_ns_ - now_ns) deadline_ns_ = now_ns + left;
  }
  update_ppr();
  return {};
}

void ApicBus::attach(Lapic* lapic) {
  processors_[lapic->id()].store(lapic);
  u32 highest = highest_.load();
  while (highest <= lapic->id() && !highest_.compare_exchange(highest, lapic->id() + 1)) {
  }
}

void ApicBus::detach(Lapic* lapic) {
  processors_[lapic->id()].store(nullptr);
}

Lapic* ApicBus::choose_lowest(const ApicMessage& message, const Lapic* sender) {
  Lapic* lowest = nullptr;
  const u32 highest = highest_.load();
  for (u32 i = 0; i < highest; ++i) {
    Lapic* candidate = processors_[i].load();
    if (!candidate || !candidate->hardware_enabled() || !candidate->matches(message, sender)) {
      continue;
    }
    if (!lowest || candidate->task_priority_class() < lowest->task_priority_class()) {
      lowest = candidate;
    }
  }
  return lowest;
}

u32 ApicBus::deliver(const ApicMessage& message, const Lapic* sender) {
  if (message.mode == DeliveryMode::kLowest && message.shorthand == Shorthand::kNone) {
    Lapic* lowest = choose_lowest(message, sender);
    return lowest && lowest->accept(message) ? 1 : 0;
  }
  u32 taken = 0;
  const u32 highest = highest_.load();
  for (u32 i = 0; i < highest; ++i) {
    Lapic* target = processors_[i].load();
    if (target && target->hardware_enabled() && target->matches(message, sender) &&
        target->accept(message)) {
      ++taken;
    }
  }
  return taken;
}

}  // namespace stagetwo::vcpu
