// SPDX-License-Identifier: Apache-2.0
// Memory requests of a VM: translation between the uapi structs and stage2's slots, which decide.
#include "abi/kvm/vm.h"

#include <cstddef>

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"
#include "abi/kvm/guest_memfd.h"
#include "abi/kvm/level.h"
#include "abi/kvm/parameters.h"
#include "abi/kvm/secure_vm.h"
#include "host/memory_budget.h"

namespace stagetwo::abi_kvm {

static_assert(stage2::kLogDirtyPages == KVM_MEM_LOG_DIRTY_PAGES);
static_assert(stage2::kReadonly == KVM_MEM_READONLY);
static_assert(stage2::kGuestMemfd == KVM_MEM_GUEST_MEMFD);
static_assert(sizeof(stage2::DirtyGfn) == sizeof(kvm_dirty_gfn));
static_assert(offsetof(stage2::DirtyGfn, flags) == offsetof(kvm_dirty_gfn, flags));
static_assert(offsetof(stage2::DirtyGfn, slot) == offsetof(kvm_dirty_gfn, slot));
static_assert(offsetof(stage2::DirtyGfn, offset) == offsetof(kvm_dirty_gfn, offset));
static_assert(stage2::kGfnDirtied == KVM_DIRTY_GFN_F_DIRTY);
static_assert(stage2::kGfnReset == KVM_DIRTY_GFN_F_RESET);
static_assert(stage2::DirtyRing::kMaxEntries * sizeof(kvm_dirty_gfn) == kMaxDirtyRing);

namespace {
constexpr u64 kMinMmuPages = 64;
constexpr u64 kDefaultMmuPages = 0;      // no shadow pages are in use
constexpr u32 kPrivatePages = 1U << 31;  // of a slot, as a name for what a guest uses
}  // namespace

Result<long> Vm::set_region(u64 arg, bool first_version) {
  kvm_userspace_memory_region2 asked{};
  const size_t size = first_version ? sizeof(kvm_userspace_memory_region) : sizeof(asked);
  ST_TRY(copy_in_bytes(&asked, arg, size));
  stage2::Region region;
  region.slot = asked.slot;
  region.flags = asked.flags;
  region.gpa = asked.guest_phys_addr;
  region.size = asked.memory_size;
  region.hva = asked.userspace_addr;
  region.memfd_offset = asked.guest_memfd_offset;
  // Held until the slot has taken what it needs of it: its end may want slots_lock.
  host::DescriptionRef file;
  if ((region.flags & stage2::kGuestMemfd) != 0) {
    file = GuestMemfdFile::find(*this, static_cast<int>(asked.guest_memfd), &region.file_error);
  }
  if (file) {
    auto& memfd = static_cast<GuestMemfdFile&>(*file.get());
    region.file = &memfd.object();
    region.file_only = memfd.is_mappable();
  }
  region.first_version = first_version;
  memory_->set_eager_split(parameters::eager_page_split());
  ST_TRY(change_slot(region));
  // What has no memory to be known is not reclaimed.
  memory_->slots().with_slot(region.slot, [&](const stage2::Slot* now) {
    const HvaRange shared = now == nullptr ? HvaRange() : now->hvas();
    static_cast<void>(usage_.use(region.slot, shared));
    static_cast<void>(
        usage_.use(region.slot | kPrivatePages, stage2::PrivateMemory::pages_under_limit(now)));
  });
  if (region.size != 0) reclaim::wait_for_turn();
  return 0;
}

Result<void> Vm::change_slot(const stage2::Region& region) {
  if (secure_) return secure_->set_region(region);
  return memory_->slots().set_region(region);
}

// Checks in the kernel's order (kernel file: kvm_main.c, kvm_vm_ioctl_set_mem_attributes).
Result<long> Vm::set_attributes(u64 arg) {
  const auto asked = ST_TRY(copy_in<kvm_memory_attributes>(arg));
  const u64 supported = has_private_memory() ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
  if (asked.flags != 0 || (asked.attributes & ~supported) != 0) return refuse(EINVAL);
  if (asked.size == 0 || asked.address + asked.size < asked.address) return refuse(EINVAL);
  if (((asked.address | asked.size) & ~kPageMask) != 0) return refuse(EINVAL);
  if (!has_private_memory()) return 0;  // everything is shared, and stays so
  const GfnRange frames(gpa_to_gfn(Gpa(asked.address)), asked.size >> kPageShift);
  ST_TRY(memory_->private_memory().set_attributes(frames, asked.attributes != 0));
  return 0;
}

Result<long> Vm::create_guest_memfd(u64 arg) {
  const auto asked = ST_TRY(copy_in<kvm_create_guest_memfd>(arg));
  const u64 legal = has_private_memory() ? level().private_memfd_flags : level().memfd_flags;
  if ((asked.flags & ~legal) != 0) return refuse(EINVAL);
  ST_TRY(mem::GuestMemfd::check_size(asked.size));
  return GuestMemfdFile::open(*this, asked.size, asked.flags);
}

Result<long> Vm::get_dirty_log(u64 arg) {
  const auto log = ST_TRY(copy_in<kvm_dirty_log>(arg));
  host::budget::let_stores_land();
  ST_TRY(memory_->slots().get_dirty_log(log.slot, Hva(log.padding2)));
  return 0;
}

Result<long> Vm::clear_dirty_log(u64 arg) {
  const auto log = ST_TRY(copy_in<kvm_clear_dirty_log>(arg));
  memory_->set_eager_split(parameters::eager_page_split());
  ST_TRY(
      memory_->slots().clear_dirty_log(log.slot, log.first_page, log.num_pages, Hva(log.padding2)));
  return 0;
}

Result<long> Vm::reset_dirty_rings() {
  if (dirty_ring_size_.load(sync::kRelaxed) == 0) return refuse(EINVAL);
  return memory_->slots().reset_dirty_rings();
}

Result<long> Vm::set_nr_mmu_pages(u64 count) {
  if (count < kMinMmuPages) return refuse(EINVAL);
  sync::MutexGuard guard(lock_);
  mmu_pages_ = count;
  return static_cast<long>(kDefaultMmuPages);
}

}  // namespace stagetwo::abi_kvm
