// SPDX-License-Identifier: Apache-2.0
#include "vfio/dma.h"

#include <algorithm>

#include "base/sys.h"
#include "vfio/container_state.h"

namespace stagetwo::vfio {

Dma::~Dma() {
  if (engine_ && process_ != sys::getpid()) static_cast<void>(engine_.release());  // the parent's
  if (access_ != 0) container_->context().destroy_access(access_);
}

Result<void> Dma::connect(sync::Ref<Container> container, const Listed& device) {
  ST_DCHECK(!container_);
  iommu::Context& context = container->context();
  if (!container->has_group(device)) return refuse(EINVAL);
  if (const auto tag = container->tag_of(device)) {
    engine_ = ST_TRY(iommu::DmaEngine::make(context, tag->device));
    process_ = sys::getpid();
    device_ = tag->device;
    pasid_ = tag->pasid;
  } else {
    iommu::Locked locked(context);
    const auto* const state = ST_TRY(Container::state(locked, false));
    if (state == nullptr || state->type == IommuType::kNone) return refuse(EINVAL);
    auto* const ioas = ST_TRY(locked.find<iommu::Ioas>(state->ioas));
    access_ = ST_TRY(locked.make_access(*ioas, true, this))->object.id;
  }
  container_ = std::move(container);
  return {};
}

// In a child of fork the parent's is not to be touched. nullptr: none can be made.
iommu::DmaEngine* Dma::engine() {
  if (process_ == sys::getpid()) [[likely]]
    return engine_.get();
  auto fresh = iommu::DmaEngine::make(container_->context(), device_);
  if (!fresh) return nullptr;
  static_cast<void>(engine_.release());
  engine_ = std::move(*fresh);
  process_ = sys::getpid();
  return engine_.get();
}

iommu::DmaAnswer Dma::access(u64 iova, u64 bytes, void* to, const void* from) {
  iommu::DmaAnswer answer{0, iommu::FaultReason::kContextNotPresent, iova};
  if (!container_) return answer;
  if (pasid_) {
    iommu::DmaEngine* const own = engine();
    return own == nullptr ? answer : own->access(*pasid_, iova, bytes, to, from);
  }
  answer.reason = iommu::FaultReason::kNone;
  while (answer.done < bytes) {
    answer.iova = iova + answer.done;
    const u64 some = std::min(bytes - answer.done, kPageSize - answer.iova % kPageSize);
    u8* const into = to == nullptr ? nullptr : static_cast<u8*>(to) + answer.done;
    const u8* const out = from == nullptr ? nullptr : static_cast<const u8*>(from) + answer.done;
    answer.reason = access_page(answer.iova, some, into, out);
    if (answer.reason != iommu::FaultReason::kNone) return answer;
    answer.done += some;
  }
  return answer;
}

// Of the external domain; within a page.
iommu::FaultReason Dma::access_page(u64 iova, u64 bytes, void* to, const void* from) {
  iommu::Locked locked(container_->context());
  const auto state = Container::state(locked, false);
  if (!state || *state == nullptr) return iommu::FaultReason::kSecondUnreadable;
  const auto access = locked.find<iommu::Access>(access_);
  if (!access) return iommu::FaultReason::kSecondUnreadable;
  // Noted first: a page that cannot be noted is not written.
  if (from != nullptr && (*access)->ioas.get() != nullptr) {
    const bool mapped = (*access)->ioas->areas.first(iova, iova) != nullptr;
    if (mapped && !note_dirty(locked, **state, iova, iova + bytes - 1)) {
      return iommu::FaultReason::kSecondUnreadable;
    }
  }
  const auto done = locked.transfer(**access, iova, bytes, to, from);
  if (done) return iommu::FaultReason::kNone;
  return to_int(done.error()) == EFAULT ? iommu::FaultReason::kSecondUnreadable
                                        : iommu::FaultReason::kSecondDenied;
}

Result<void> Dma::hold(u64 iova, u64 bytes, bool write) {
  if (!container_) return refuse(ENOTCONN);
  if (pasid_) return {};
  if (bytes == 0 || iova + (bytes - 1) < iova) return refuse(EINVAL);
  const u64 first = iova & kPageMask;
  const Held held{first, ((iova + bytes - 1) | (kPageSize - 1)) - first + 1};
  Vec<u64> frames{"vfio.frames"};
  ST_TRY(frames.resize(held.bytes / kPageSize));
  {
    const sync::MutexGuard guard(lock_);
    ST_TRY(held_.reserve(held_.size() + 1));
  }
  {
    iommu::Locked locked(container_->context());
    if (!locked.ok()) return refuse(EIO);
    auto* const access = ST_TRY(locked.find<iommu::Access>(access_));
    ST_TRY(locked.pin(*access, held.iova, held.bytes, write, frames.data()));
  }
  const sync::MutexGuard guard(lock_);
  return held_.push_back(held);
}

void Dma::unpin(const Held& held) {
  iommu::Locked locked(container_->context());
  if (!locked.ok()) return;
  if (const auto access = locked.find<iommu::Access>(access_)) {
    locked.unpin(**access, held.iova, held.bytes);
  }
}

void Dma::let_go(u64 iova, u64 bytes) {
  const u64 first = iova & kPageMask;
  Held found{};
  {
    const sync::MutexGuard guard(lock_);
    for (size_t i = 0; i < held_.size() && found.bytes == 0; ++i) {
      if (held_[i].iova != first || held_[i].bytes < bytes) continue;
      found = held_[i];
      held_.erase(i);
    }
  }
  if (found.bytes != 0) unpin(found);
}

void Dma::unmap(u64 iova, u64 last) {
  if (listener_ != nullptr) listener_->unmapped(iova, last);
  for (;;) {
    Held found{};
    {
      const sync::MutexGuard guard(lock_);
      for (size_t i = 0; i < held_.size() && found.bytes == 0; ++i) {
        if (held_[i].iova > last || held_[i].iova + (held_[i].bytes - 1) < iova) continue;
        found = held_[i];
        held_.erase(i);
      }
    }
    if (found.bytes == 0) return;
    unpin(found);
  }
}

}  // namespace stagetwo::vfio
