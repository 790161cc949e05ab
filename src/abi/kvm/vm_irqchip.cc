// SPDX-License-Identifier: Apache-2.0
// The VM's interrupt controllers as requests see them. kernel file: arch/x86/kvm/x86.c, irq_comm.c,
// virt/kvm/irqchip.c. Which pins exist and which routes clash is vcpu::Irqchip's knowledge.
#include "abi/kvm/vm.h"

#include <cstring>

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"

namespace stagetwo::abi_kvm {

static_assert(sizeof(vcpu::PicState) == sizeof(kvm_pic_state));
static_assert(sizeof(vcpu::IoApicState) == sizeof(kvm_ioapic_state));
static_assert(vcpu::Irqchip::kMaxRoutes == kMaxIrqRoutes);

namespace {

// One entry of a routing table. Failure: EINVAL.
Result<vcpu::IrqRoute> route_of(const kvm_irq_routing_entry& entry) {
  vcpu::IrqRoute route;
  route.gsi = entry.gsi;
  if (entry.type == KVM_IRQ_ROUTING_MSI) {
    if ((entry.flags & ~KVM_MSI_VALID_DEVID) != 0) return refuse(EINVAL);
    route.target = vcpu::IrqTarget::kMsi;
    route.msi_address = entry.u.msi.address_lo | u64{entry.u.msi.address_hi} << 32;
    route.msi_data = entry.u.msi.data;
    return route;
  }
  if (entry.type != KVM_IRQ_ROUTING_IRQCHIP || entry.flags != 0) return refuse(EINVAL);
  constexpr u32 kPinsAChip = vcpu::Pic::kLineCount / 2;
  const u32 pin = entry.u.irqchip.pin;
  switch (entry.u.irqchip.irqchip) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE:
      if (pin >= kPinsAChip) return refuse(EINVAL);
      route.target = vcpu::IrqTarget::kPic;
      route.pin = pin + (entry.u.irqchip.irqchip == KVM_IRQCHIP_PIC_SLAVE ? kPinsAChip : 0);
      return route;
    case KVM_IRQCHIP_IOAPIC:
      route.target = vcpu::IrqTarget::kIoApic;
      route.pin = pin;
      return route;
    default:
      return refuse(EINVAL);
  }
}

}  // namespace

Result<long> Vm::create_irqchip() {
  sync::MutexGuard guard(lock_);
  if (irqchip()) return refuse(EEXIST);
  if (created_ != 0) return refuse(EINVAL);
  auto chip = ST_TRY(make_box<vcpu::Irqchip>("abi.irqchip"));
  ST_TRY(chip->init());
  write_once(policy_.irqchip, true);
  chip_.store(chip.release(), sync::kRelease);
  return 0;
}

Result<long> Vm::irqchip_ioctl(u32 request, u64 arg) {
  switch (request) {
    case KVM_CREATE_IRQCHIP:
      return create_irqchip();
    case KVM_GET_IRQCHIP:
      return get_irqchip(arg);
    case KVM_SET_IRQCHIP:
      return set_irqchip(arg);
    case KVM_IRQ_LINE:
      return irq_line(arg, false);
    case KVM_IRQ_LINE_STATUS:
      return irq_line(arg, true);
    case KVM_SIGNAL_MSI:
      return signal_msi(arg);
    case KVM_SET_GSI_ROUTING:
      return set_gsi_routing(arg);
    default:
      return pit_ioctl(request, arg);
  }
}

Result<long> Vm::get_irqchip(u64 arg) {
  auto state = ST_TRY(copy_in<kvm_irqchip>(arg));
  vcpu::Irqchip* const controllers = chip();
  if (controllers == nullptr) return refuse(ENXIO);
  switch (state.chip_id) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE: {
      const vcpu::PicState pic = controllers->pic_state(state.chip_id);
      std::memcpy(&state.chip, &pic, sizeof(pic));
      break;
    }
    case KVM_IRQCHIP_IOAPIC: {
      const vcpu::IoApicState ioapic = controllers->ioapic_state();
      std::memcpy(&state.chip, &ioapic, sizeof(ioapic));
      break;
    }
    default:
      return refuse(EINVAL);
  }
  ST_TRY(copy_out(arg, state));
  return 0;
}

Result<long> Vm::set_irqchip(u64 arg) {
  const auto state = ST_TRY(copy_in<kvm_irqchip>(arg));
  vcpu::Irqchip* const controllers = chip();
  if (controllers == nullptr) return refuse(ENXIO);
  switch (state.chip_id) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE: {
      vcpu::PicState pic;
      std::memcpy(static_cast<void*>(&pic), &state.chip, sizeof(pic));
      controllers->set_pic_state(state.chip_id, pic);
      return 0;
    }
    case KVM_IRQCHIP_IOAPIC: {
      vcpu::IoApicState ioapic;
      std::memcpy(static_cast<void*>(&ioapic), &state.chip, sizeof(ioapic));
      controllers->set_ioapic_state(ioapic);
      return 0;
    }
    default:
      return refuse(EINVAL);
  }
}

Result<long> Vm::irq_line(u64 arg, bool with_status) {
  auto line = ST_TRY(copy_in<kvm_irq_level>(arg));
  vcpu::Irqchip* const controllers = chip();
  if (controllers == nullptr) return refuse(ENXIO);
  line.status = controllers->set_line(line.irq, line.level != 0);
  if (with_status) ST_TRY(copy_out(arg, line));
  return 0;
}

// The number of processors that took it; nobody is EPERM, which is what the kernel's -1 reads as.
Result<long> Vm::signal_msi(u64 arg) {
  const auto msi = ST_TRY(copy_in<kvm_msi>(arg));
  vcpu::Irqchip* const controllers = chip();
  if (controllers == nullptr || (msi.flags & ~KVM_MSI_VALID_DEVID) != 0) return refuse(EINVAL);
  const int taken = controllers->send_msi(msi.address_lo | u64{msi.address_hi} << 32, msi.data);
  if (taken < 0) return refuse(EPERM);
  return taken;
}

Result<long> Vm::set_gsi_routing(u64 arg) {
  const auto header = ST_TRY(copy_in<CountedHeader>(arg));  // the second word is `flags`
  vcpu::Irqchip* const controllers = chip();
  if (controllers == nullptr || header.count > kMaxIrqRoutes || header.pad != 0)
    return refuse(EINVAL);
  Vec<vcpu::IrqRoute> routes("abi.routes");
  ST_TRY(routes.reserve(header.count));
  for (u32 i = 0; i < header.count; ++i) {
    const u64 at = arg + sizeof(header) + u64{i} * sizeof(kvm_irq_routing_entry);
    ST_TRY(routes.push_back(ST_TRY(route_of(ST_TRY(copy_in<kvm_irq_routing_entry>(at))))));
  }
  ST_TRY(controllers->set_routes(routes.span()));
  return 0;
}

// No timer is built; a request for one is refused as the kernel refuses it without the device.
Result<long> Vm::pit_ioctl(u32 request, u64 arg) {
  switch (request) {
    case KVM_CREATE_PIT2:
      ST_TRY(copy_in<kvm_pit_config>(arg));
      [[fallthrough]];
    case KVM_CREATE_PIT:
      return refuse(ENOENT);
    case KVM_GET_PIT:
    case KVM_SET_PIT:
      ST_TRY(copy_in<kvm_pit_state>(arg));
      return refuse(ENXIO);
    case KVM_SET_PIT2:
      ST_TRY(copy_in<kvm_pit_state2>(arg));
      [[fallthrough]];
    case KVM_GET_PIT2:
      return refuse(ENXIO);
    case KVM_REINJECT_CONTROL:
      ST_TRY(copy_in<kvm_reinject_control>(arg));
      return refuse(ENXIO);
    default:
      return refuse(ENOTTY);
  }
}

}  // namespace stagetwo::abi_kvm
