// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/processor.h"

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"
#include "abi/kvm/msr_list.h"
#include "abi/kvm/vm.h"
#include "base/sys.h"
#include "base/text.h"

#include <sys/mman.h>

namespace stagetwo::abi_kvm {
namespace {

class ProcessorFile final : public host::Description {
 public:
  explicit ProcessorFile(Processor& processor) : processor_(&processor), vm_(&processor.vm()) {
    vm_->get();
  }
  ~ProcessorFile() override { release(); }
  long ioctl(int, unsigned long request, unsigned long arg) override {
    return answer(processor_->ioctl(static_cast<u32>(request), arg));
  }
  Result<void> check_mmap(const host::MapRequest& request) override {
    // Any part of the run area, shared or private, as the kernel's fault handler would serve it.
    const u64 end = Processor::kRingOffset + processor_->ring_size();
    const auto in_ring = [end](u64 at) { return at >= Processor::kRingOffset && at < end; };
    const u64 first = static_cast<u64>(request.offset);
    const u64 pages = (request.size + kPageSize - 1) & kPageMask;
    if (pages == 0 || (!in_ring(first) && !in_ring(first + pages - kPageSize))) return {};
    // As 6.12 has it; later kernels mount anonymous inodes noexec, and say EPERM before KVM is
    // asked.
    if ((request.prot & PROT_EXEC) != 0) return refuse(EINVAL);
    const int kind = request.flags & MAP_TYPE;
    if (kind != MAP_SHARED && kind != MAP_SHARED_VALIDATE) return refuse(EINVAL);
    return {};
  }
  void last_close() override { release(); }

 private:
  void release() {
    Vm* const vm = std::exchange(vm_, nullptr);
    if (vm != nullptr) vm->put();
  }
  Processor* processor_;
  Vm* vm_;  // one reference
};

}  // namespace

Result<void> Processor::map_areas(const host::Backing& backing, u32 ring_size) {
  run_area_ = ST_TRY(backing.map(0, kRunAreaSize, PROT_READ | PROT_WRITE));
  run_ = static_cast<kvm_run*>(run_area_);
  if (ring_size == 0) return {};
  ring_area_ = ST_TRY(backing.map(kRingOffset, ring_size, PROT_READ | PROT_WRITE));
  ring_size_ = ring_size;
  dirty_ring_ = ST_TRY(make_box<stage2::DirtyRing>("abi.dirty_ring", id_, ring_area_, ring_size));
  vm_.memory().slots().add_ring(*dirty_ring_);
  return {};
}

Result<Box<Processor>> Processor::create(Vm& vm, u32 id, bool boot_cpu,
                                         const host::Backing& backing, u32 ring_size) {
  auto made = ST_TRY(make_box<Processor>("abi.vcpu", vm, id));
  ST_TRY(made->map_areas(backing, ring_size));
  vcpu::VcpuConfig config;
  config.id = id;
  config.boot_cpu = boot_cpu;
  config.memory = &vm.memory();
  config.policy = &vm.policy();
  config.ring = made->dirty_ring_.get();
  config.pio_page = made->pio_page();
  made->cpu_ = ST_TRY(vcpu::Vcpu::create(config));
  // KVM_X86_QUIRK_STUFF_FEATURE_MSRS: what the processor could have, until the client says
  // otherwise.
  if ((vm.policy().disabled_quirks & KVM_X86_QUIRK_STUFF_FEATURE_MSRS) == 0) {
    vcpu::Msrs& msr = made->cpu_->state().msr;
    msr.arch_capabilities = feature_msr(kMsrArchCapabilities).value_or(0);
    msr.platform_info = u64{1} << 31;  // CPUID can be made to fault
  }
  made->stats_.block().set_source(&Processor::copy_fault_counts, made.get());
  ST_TRY(made->create_unit(boot_cpu));
  return made;
}

Processor::Processor(Vm& vm, u32 id) : vm_(vm), id_(id), tsc_khz_(vm.policy().tsc_khz) {
  interrupted_.kind = vcpu::ExitKind::kInterrupted;
  interrupted_.error = EINTR;
}

Processor::~Processor() {
  unit_.reset();  // leaves the bus before the processor goes
  if (cpu_ != nullptr) vcpu::Vcpu::destroy(cpu_);
  if (dirty_ring_) vm_.memory().slots().remove_ring(*dirty_ring_);
  if (ring_area_ != nullptr) host::Backing::unmap(ring_area_, ring_size_);
  if (run_area_ != nullptr) host::Backing::unmap(run_area_, kRunAreaSize);
}

Result<long> Processor::publish(host::Backing backing) {
  auto file = ST_TRY(make_box<ProcessorFile>("abi.vcpu_file", *this));
  return ST_TRY(host::publish(std::move(file), std::move(backing), {}));
}

kvm_coalesced_mmio_ring* Processor::ring() const {
  return reinterpret_cast<kvm_coalesced_mmio_ring*>(static_cast<char*>(run_area_) +
                                                    KVM_COALESCED_MMIO_PAGE_OFFSET * kPageSize);
}

u8* Processor::pio_page() const {
  return static_cast<u8*>(run_area_) + KVM_PIO_PAGE_OFFSET * kPageSize;
}

Result<long> Processor::ioctl(u32 request, u64 arg) {
  if (_IOC_TYPE(request) != KVMIO) return refuse(EINVAL);
  // Makes a descriptor, whose table stands above this lock; the counters need none.
  if (request == KVM_GET_STATS_FD) return stats_fd();
  sync::MutexGuard guard(lock_);
  return dispatch(request, arg);
}

Result<long> Processor::dispatch(u32 request, u64 arg) {
  switch (request) {
    case KVM_RUN:
      return run(arg);
    case KVM_PRE_FAULT_MEMORY:
      return pre_fault_memory(arg);
    case KVM_GET_REGS:
      return get_regs(arg);
    case KVM_SET_REGS:
      return set_regs(arg);
    case KVM_GET_SREGS:
      return get_sregs(arg);
    case KVM_SET_SREGS:
      return set_sregs(arg);
    case KVM_GET_SREGS2:
      return get_sregs2(arg);
    case KVM_SET_SREGS2:
      return set_sregs2(arg);
    case KVM_GET_FPU:
      return get_fpu(arg);
    case KVM_SET_FPU:
      return set_fpu(arg);
    case KVM_GET_XSAVE:
    case KVM_GET_XSAVE2:
      return get_xsave(arg);
    case KVM_SET_XSAVE:
      return set_xsave(arg);
    case KVM_GET_XCRS:
      return get_xcrs(arg);
    case KVM_SET_XCRS:
      return set_xcrs(arg);
    case KVM_GET_MSRS:
      return get_msrs(arg);
    case KVM_SET_MSRS:
      return set_msrs(arg);
    case KVM_SET_CPUID:
      return set_cpuid(arg);
    case KVM_SET_CPUID2:
      return set_cpuid2(arg);
    case KVM_GET_CPUID2:
      return get_cpuid2(arg);
    default:
      return dispatch_events(request, arg);
  }
}

Result<long> Processor::dispatch_events(u32 request, u64 arg) {
  switch (request) {
    case KVM_GET_MP_STATE:
      return get_mp_state(arg);
    case KVM_SET_MP_STATE:
      return set_mp_state(arg);
    case KVM_GET_VCPU_EVENTS:
      return get_events(arg);
    case KVM_SET_VCPU_EVENTS:
      return set_events(arg);
    case KVM_GET_DEBUGREGS:
      return get_debugregs(arg);
    case KVM_SET_DEBUGREGS:
      return set_debugregs(arg);
    case KVM_SET_GUEST_DEBUG:
      return set_guest_debug(arg);
    case KVM_SET_SIGNAL_MASK:
      return set_signal_mask(arg);
    case KVM_GET_LAPIC:
      return get_lapic(arg);
    case KVM_SET_LAPIC:
      return set_lapic(arg);
    case KVM_INTERRUPT:
      return interrupt(arg);
    case KVM_NMI:
      cpu_->nmi();
      return 0;
    case KVM_SMI:
      return refuse(ENOTTY);  // a kernel without system management mode
    case KVM_TRANSLATE:
      return translate(arg);
    case KVM_X86_SETUP_MCE:
      return setup_mce(arg);
    case KVM_X86_SET_MCE:
      return set_mce(arg);
    case KVM_SET_TSC_KHZ:
      return set_tsc_khz(arg);
    case KVM_GET_TSC_KHZ:
      return tsc_khz_;
    case KVM_ENABLE_CAP:
      return enable_cap(arg);
    case KVM_HAS_DEVICE_ATTR:
    case KVM_GET_DEVICE_ATTR:
    case KVM_SET_DEVICE_ATTR:
      return device_attr(request, arg);
    default:
      return refuse(EINVAL);
  }
}

Result<long> Processor::set_signal_mask(u64 arg) {
  if (arg == 0) {
    has_signal_mask_ = false;
    return 0;
  }
  const auto length = ST_TRY(copy_in<u32>(arg));
  if (length != sizeof(signal_mask_)) return refuse(EINVAL);
  host::KernelSigset mask = 0;
  ST_TRY(copy_in_bytes(&mask, arg + sizeof(kvm_signal_mask), sizeof(mask)));
  signal_mask_ = mask;
  has_signal_mask_ = true;
  return 0;
}

Result<long> Processor::stats_fd() {
  char id[48];
  TextWriter(id, sizeof(id))
      .append("kvm-")
      .append_int(sys::getpid())
      .append("/vcpu-")
      .append_int(id_);
  return ST_TRY(stats_.block().open(vm_, id));
}

}  // namespace stagetwo::abi_kvm
