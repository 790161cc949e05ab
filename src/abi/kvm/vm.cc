// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/vm.h"

#include <algorithm>

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"
#include "abi/kvm/host_cpu.h"
#include "abi/kvm/level.h"
#include "abi/kvm/parameters.h"
#include "abi/kvm/processor.h"
#include "abi/kvm/secure_vm.h"
#include "base/sys.h"
#include "base/text.h"

#include <sys/mman.h>

namespace stagetwo::abi_kvm {
namespace {

class VmFile final : public host::Description {
 public:
  explicit VmFile(Vm& vm) : vm_(&vm) {}
  // Without a last close (the descriptor could not be made) the VM goes here.
  ~VmFile() override { release(); }
  long ioctl(int, unsigned long request, unsigned long arg) override {
    return answer(vm_->ioctl(static_cast<u32>(request), arg));
  }
  void last_close() override { release(); }

 private:
  void release() {
    Vm* const vm = std::exchange(vm_, nullptr);
    if (vm != nullptr) vm->put();
  }
  Vm* vm_;  // one reference
};

constexpr u64 kTableBytes = kMaxVcpuIds * sizeof(sync::Atomic<Processor*>);

}  // namespace

Result<long> Vm::open(u64 type) {
  if (type != KVM_X86_DEFAULT_VM && type != KVM_X86_SW_PROTECTED_VM) return refuse(EINVAL);
  stage2::SlotPolicy slots;
  slots.private_memory = type == KVM_X86_SW_PROTECTED_VM;
  slots.guest_memfd = slots.private_memory || level().memfd_for_all;
  slots.max_gfn = (u64{1} << (host_physical_bits() - kPageShift)) - 1;
  constexpr stage2::NxPolicy kNx = {&parameters::nx_huge_pages, &parameters::nx_recovery_ratio,
                                    &parameters::nx_recovery_period_ms};
  auto memory = ST_TRY(stage2::GuestMemory::create(slots, kNx));
  void* table = ST_TRY(map_pages(kTableBytes, "abi.vcpu_table"));
  auto made = make<Vm>("abi.vm", type, std::move(memory));
  if (!made) {
    unmap_pages(table, kTableBytes);
    return refuse(made.error());
  }
  Vm* const vm = *made;
  vm->by_id_ = static_cast<sync::Atomic<Processor*>*>(table);
  if (SecureVm::offered() && !slots.private_memory) vm->secure_ = SecureVm::create(vm->memory());
  vm->policy_.secure_calls = vm->secure() != nullptr;
  auto file = make_box<VmFile>("abi.vm_file", *vm);
  if (!file) {
    vm->put();
    return refuse(file.error());
  }
  auto backing = ST_TRY(host::Backing::create("kvm-vm", 0));
  return ST_TRY(host::publish(std::move(*file), std::move(backing), {}));
}

Vm::Vm(u64 type, Box<stage2::GuestMemory> memory) : memory_(std::move(memory)), type_(type) {
  choose_slot_zap();
  policy_.physical_width = host_physical_bits();
  policy_.tsc_khz = host_tsc_khz();
  policy_.tsc_origin = host_tsc();
  policy_.context = this;
  stats_.block().set_source(&Vm::walk_pages, this);
  policy_.msr_allowed = &Vm::msr_allowed;
  policy_.coalesce_mmio = &Vm::coalesce_mmio;
  policy_.coalesce_pio = &Vm::coalesce_pio;
  policy_.signal_pending = &Vm::signal_pending;
  policy_.read_msr = &Vm::read_msr;
  policy_.write_msr = &Vm::write_msr;
}

// No limit is 0 here.
void Vm::show_reclaim() {
  const reclaim::Statistics now = reclaim::statistics();
  const auto limit_of = [](u64 limit) { return limit == reclaim::kNoLimit ? 0 : limit; };
  stats_.set(VmStat::kGuestResident, usage_.resident_bytes());
  stats_.set(VmStat::kGuestLimit, limit_of(usage_.limit()));
  const auto set = [&](VmStat first, u32 i, u64 value) {
    stats_.set(static_cast<VmStat>(static_cast<u32>(first) + i), value);
  };
  u32 n = 0;
  for (const reclaim::Figure& figure : reclaim::kFigures) {
    set(VmStat::kReclaim, n++, limit_of(now.*figure.value));
  }
  for (u32 i = 0; i < reclaim::kAgeBuckets; ++i) set(VmStat::kReclaimAge, i, now.ages[i]);
}

// pages_* and nx_lpage_splits are counted nowhere: whoever reads them pays for a walk.
void Vm::walk_pages(void* context) {
  Vm& vm = *static_cast<Vm*>(context);
  const stage2::PageCounts pages = vm.memory_->count_pages();
  vm.stats_.set(VmStat::kPages4k, pages.pages_4k);
  vm.stats_.set(VmStat::kPages2m, pages.pages_2m);
  vm.stats_.set(VmStat::kPages1g, pages.pages_1g);
  vm.stats_.set(VmStat::kNxLpageSplits, pages.nx_lpage_splits);
  vm.show_reclaim();
}

Vm::~Vm() {
  for (Processor* processor : vcpus_) destroy(processor);
  secure_.reset();
  destroy(chip_.load());
  unmap_pages(by_id_, kTableBytes);
}

void Vm::get() {
  refs_.fetch_add(1, sync::kRelaxed);
}

void Vm::put() {
  if (refs_.fetch_sub(1, sync::kAcqRel) == 1) destroy(this);
}

Processor* Vm::processor(u32 id) const {
  return id < kMaxVcpuIds ? by_id_[id].load(sync::kAcquire) : nullptr;
}

Result<long> Vm::ioctl(u32 request, u64 arg) {
  switch (request) {
    case KVM_CREATE_VCPU:
      return create_vcpu(arg);
    case KVM_CHECK_EXTENSION:
      return check_vm_extension(arg, has_private_memory(), secure() != nullptr);
    case KVM_ENABLE_CAP:
      return enable_cap(arg);
    case KVM_SET_USER_MEMORY_REGION:
      return set_region(arg, true);
    case KVM_SET_USER_MEMORY_REGION2:
      return set_region(arg, false);
    case KVM_SET_MEMORY_ATTRIBUTES:
      return set_attributes(arg);
    case KVM_CREATE_GUEST_MEMFD:
      return create_guest_memfd(arg);
    case KVM_GET_DIRTY_LOG:
      return get_dirty_log(arg);
    case KVM_CLEAR_DIRTY_LOG:
      return clear_dirty_log(arg);
    case KVM_REGISTER_COALESCED_MMIO:
      ST_TRY(zones_.add(ST_TRY(copy_in<kvm_coalesced_mmio_zone>(arg))));
      return 0;
    case KVM_UNREGISTER_COALESCED_MMIO:
      ST_TRY(zones_.remove(ST_TRY(copy_in<kvm_coalesced_mmio_zone>(arg))));
      return 0;
    case KVM_CREATE_DEVICE:
      // No device type is built; the test flag makes no difference to that.
      ST_TRY(copy_in<kvm_create_device>(arg));
      return refuse(ENODEV);
    case KVM_RESET_DIRTY_RINGS:
      return reset_dirty_rings();
    case KVM_GET_STATS_FD:
      return stats_fd();
    default:
      return arch_ioctl(request, arg);
  }
}

// Checks and counts; the id itself is claimed when the processor is there, as in the kernel.
Result<long> Vm::admit_vcpu(u64 id) {
  sync::MutexGuard guard(lock_);
  if (created_ >= kMaxVcpus) return refuse(EINVAL);
  if (max_vcpu_ids_ == 0) max_vcpu_ids_ = kMaxVcpuIds;
  if (id >= max_vcpu_ids_) return refuse(EINVAL);
  ++created_;
  return id == boot_cpu_id_ ? 1 : 0;
}

void Vm::forget_vcpu(Processor* processor) {
  sync::MutexGuard guard(lock_);
  --created_;
  for (size_t i = 0; processor != nullptr && i < vcpus_.size(); ++i) {
    if (vcpus_[i] != processor) continue;
    by_id_[processor->id()].store(nullptr, sync::kRelease);
    if (ring_.load(sync::kRelaxed) == processor->ring()) ring_.store(nullptr, sync::kRelease);
    vcpus_.erase(i);
    return;
  }
}

Result<long> Vm::create_vcpu(u64 id) {
  if (id >= kMaxVcpuIds) return refuse(EINVAL);
  const bool boot_cpu = ST_TRY(admit_vcpu(id)) != 0;
  auto build = [&]() -> Result<long> {
    const u32 ring_size = dirty_ring_size_.load(sync::kRelaxed);  // fixed since admission
    const u64 file_size =
        ring_size == 0 ? Processor::kRunAreaSize : Processor::kRingOffset + ring_size;
    FixedString<32> kind;
    kind.append("kvm-vcpu:").append_int(id);
    auto backing = ST_TRY(host::Backing::create(kind.c_str(), file_size));
    auto made = Processor::create(*this, static_cast<u32>(id), boot_cpu, backing, ring_size);
    if (!made) return refuse(made.error());
    {
      sync::MutexGuard guard(lock_);
      if (by_id_[id].load(sync::kRelaxed) != nullptr) return refuse(EEXIST);
      ST_TRY(vcpus_.push_back(made->get()));
      by_id_[id].store(made->get(), sync::kRelease);
      // The ring is one a VM: the page of its first vCPU.
      if (ring_.load(sync::kRelaxed) == nullptr) ring_.store((*made)->ring(), sync::kRelease);
    }
    auto fd = (*made)->publish(std::move(backing));
    if (!fd) {
      Processor* const unseen = made->get();
      forget_vcpu(unseen);
      sync::MutexGuard guard(lock_);
      ++created_;  // the caller's clean-up takes it back
      return refuse(fd.error());
    }
    static_cast<void>(made->release());  // the list owns it now
    return fd;
  };
  auto result = build();
  if (!result) forget_vcpu(nullptr);
  return result;
}

Result<long> Vm::stats_fd() {
  char id[48];
  TextWriter(id, sizeof(id)).append("kvm-").append_int(sys::getpid());
  return ST_TRY(stats_.block().open(*this, id));
}

bool Vm::msr_allowed(void* context, u32 index, bool write) {
  return static_cast<Vm*>(context)->msr_filter_.allows(index, write);
}

bool Vm::coalesce_mmio(void* context, u32 id, Gpa gpa, const void* data, u32 len) {
  auto* const vm = static_cast<Vm*>(context);
  if (vm->irqchip() && vm->processor(id)->device_write(false, gpa.raw(), data, len)) return true;
  return vm->zones_.write(vm->ring_.load(sync::kAcquire), false, gpa.raw(), data, len);
}

bool Vm::coalesce_pio(void* context, u32 id, u16 port, const void* data, u32 len) {
  auto* const vm = static_cast<Vm*>(context);
  if (vm->irqchip() && vm->processor(id)->device_write(true, port, data, len)) return true;
  return vm->zones_.write(vm->ring_.load(sync::kAcquire), true, port, data, len);
}

bool Vm::signal_pending(void* context, u32 id) {
  Processor* const processor = static_cast<Vm*>(context)->processor(id);
  return processor != nullptr && processor->poll_signal();
}

vcpu::MsrOutcome Vm::read_msr(void* context, u32 id, u32 index, u64* value) {
  Processor* const processor = static_cast<Vm*>(context)->processor(id);
  return processor != nullptr ? processor->read_msr(index, value) : vcpu::MsrOutcome::kUnknown;
}

vcpu::MsrOutcome Vm::write_msr(void* context, u32 id, u32 index, u64 value) {
  Processor* const processor = static_cast<Vm*>(context)->processor(id);
  return processor != nullptr ? processor->write_msr(index, value) : vcpu::MsrOutcome::kUnknown;
}

}  // namespace stagetwo::abi_kvm
