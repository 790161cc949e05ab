// SPDX-License-Identifier: Apache-2.0
// Memory requests of a VM: translation between the uapi structs and stage2's slots, which decide.
#include "abi/kvm/vm.h"

#include <cstddef>

#include "abi/kvm/capabilities.h"
#include "abi/kvm/client.h"
#include "abi/kvm/parameters.h"

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
constexpr u64 kDefaultMmuPages = 0;  // no shadow pages are in use
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
  region.memfd = static_cast<int>(asked.guest_memfd);
  region.first_version = first_version;
  memory_->set_eager_split(parameters::eager_page_split());
  ST_TRY(memory_->slots().set_region(region));
  return 0;
}

Result<long> Vm::get_dirty_log(u64 arg) {
  const auto log = ST_TRY(copy_in<kvm_dirty_log>(arg));
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
