// SPDX-License-Identifier: Apache-2.0
#include "vfio/dma.h"

#include <algorithm>

#include "base/trace.h"
#include "iommu/sva.h"
#include "vfio/container_state.h"

namespace stagetwo::vfio {

namespace {

// Bound to an iommufd, a device is a requester of its own; in a container it is its parent's.
constexpr u16 kFirstSource = 0x8000;

// By the client's attach? What a process is bound by it neither replaces nor detaches.
bool is_given(const iommu::Attachment& attachment) {
  return attachment.hwpt->object.type != iommu::ObjectType::kProcess;
}

}  // namespace

// ---- a channel

// What a device is refused is told.
iommu::DmaAnswer DmaChannel::told(iommu::DmaAnswer answer, DmaHow how) const {
  if (answer.reason == iommu::FaultReason::kNone || !trace::enabled()) return answer;
  const auto pasid = dma_.pasid_of(how);
  trace::emit(trace::Event::io_page_fault, trace::Room::vfio, dma_.device_,
              pasid ? static_cast<u64>(*pasid) : ~u64{0}, answer.iova,
              static_cast<u64>(answer.reason));
  return answer;
}

DmaChannel::~DmaChannel() {
  if (engine_ && !made_in_.is_creator()) static_cast<void>(engine_.release());  // the parent's
}

void DmaChannel::forget() {
  if (engine_ && !made_in_.is_creator()) static_cast<void>(engine_.release());
  engine_.reset();
}

Result<void> DmaChannel::prepare() {
  auto fresh = ST_TRY(iommu::DmaEngine::make(*dma_.context(), dma_.device_));
  forget();
  engine_ = std::move(fresh);
  engine_->set_cancel(cancel_);
  made_in_ = host::ProcessOwner();
  return {};
}

// In a child of fork the parent's is not to be touched. nullptr: none can be made.
iommu::DmaEngine* DmaChannel::engine() {
  if (engine_ && made_in_.is_creator()) [[likely]]
    return engine_.get();
  return prepare() ? engine_.get() : nullptr;
}

iommu::DmaAnswer DmaChannel::access(u64 iova, u64 bytes, void* to, const void* from, DmaHow how) {
  const iommu::DmaAnswer nowhere{0, iommu::FaultReason::kContextNotPresent, iova};
  if (!dma_.is_connected()) return nowhere;
  if (!dma_.is_isolated()) return told(dma_.access_external(iova, bytes, to, from), how);
  const auto pasid = dma_.pasid_of(how);
  if (!pasid) return told({0, iommu::FaultReason::kPasidNotPresent, iova}, how);
  iommu::DmaEngine* const own = engine();
  return told(own == nullptr ? nowhere : own->access(*pasid, iova, bytes, to, from, how.asks), how);
}

iommu::DmaAnswer DmaChannel::post(const iommu::DmaEngine::Record& record, DmaHow how) {
  const auto pasid = dma_.pasid_of(how);
  iommu::DmaEngine* const own = pasid && dma_.is_isolated() ? engine() : nullptr;
  if (own != nullptr) return told(own->post(*pasid, record, how.asks), how);
  constexpr u64 kRest = iommu::DmaEngine::kRecordBytes - sizeof(u64);
  const auto rest = write(record.iova + sizeof(u64), record.words + 1, kRest, how);
  if (rest.reason != iommu::FaultReason::kNone) return rest;
  return write(record.iova, record.words, sizeof(u64), how);
}

iommu::DmaEngine::Moved DmaChannel::move_known(std::span<const iommu::DmaEngine::Move> moves,
                                               DmaHow how) {
  const auto pasid = dma_.pasid_of(how);
  iommu::DmaEngine* const own = pasid && dma_.is_isolated() ? engine() : nullptr;
  return own == nullptr ? iommu::DmaEngine::Moved{} : own->move_known(*pasid, moves);
}

iommu::DmaEngine::CopyAnswer DmaChannel::copy(u64 to, u64 from, u64 bytes, DmaHow how,
                                              const iommu::DmaEngine::Record* record) {
  const auto pasid = dma_.pasid_of(how);
  iommu::DmaEngine* const own = pasid && dma_.is_isolated() ? engine() : nullptr;
  if (own != nullptr) {
    auto done = own->copy(*pasid, to, from, bytes, how.asks, record);
    done.answer = told(done.answer, how);
    return done;
  }
  for (u64 done = 0; done < bytes;) {
    u8 buffer[kPageSize];
    const auto out = read(from + done, buffer, std::min(bytes - done, sizeof(buffer)), how);
    if (out.reason != iommu::FaultReason::kNone && out.done == 0) {
      return {{done, out.reason, out.iova}, false};
    }
    const auto in = write(to + done, buffer, out.done, how);
    done += in.done;
    if (in.done != out.done) return {{done, in.reason, in.iova}, true};
  }
  return {{bytes, iommu::FaultReason::kNone, to + bytes}, false};
}

// ---- what it is connected to

iommu::Context* Dma::context() const {
  if (container_) return &container_->context();
  return iommufd_ ? &iommufd_->context() : nullptr;
}

std::optional<s64> Dma::pasid_of(DmaHow how) const {
  if (!how.pasid) return pasid_ ? s64{*pasid_} : iommu::kNoPasid;
  const bool own = how.pasid == pasid_ || how.pasid == process_pasid_;
  if (!iommufd_ && !own) return std::nullopt;
  return s64{*how.pasid};
}

Dma::~Dma() {
  disconnect();
}

Result<void> Dma::connect(sync::Ref<Container> container, const Listed& device) {
  ST_DCHECK(!is_connected());
  if (!container->has_group(device)) return refuse(EINVAL);
  if (const auto tag = container->tag_of(device)) {
    device_ = tag->device;
    pasid_ = tag->pasid;
    container_ = std::move(container);
    const auto prepared = own_.prepare();
    if (!prepared) disconnect();
    return prepared;
  }
  iommu::Locked locked(container->context());
  const auto* const state = ST_TRY(Container::state(locked, false));
  if (state == nullptr || state->type == IommuType::kNone) return refuse(EINVAL);
  auto* const ioas = ST_TRY(locked.find<iommu::Ioas>(state->ioas));
  access_ = ST_TRY(locked.make_access(ioas, true, this))->object.id;
  container_ = std::move(container);
  return {};
}

Result<u32> Dma::bind(sync::Ref<iommu::Iommufd> iommufd, const Listed& device) {
  ST_DCHECK(!is_connected());
  const u8 pasid_bits = device.type.parent->pasid_bits;
  {
    iommu::Locked locked(iommufd->context());
    if (!locked.ok()) return refuse(EIO);
    if (pasid_bits == 0) {
      access_ = ST_TRY(locked.make_access(nullptr, true, this))->object.id;
    } else {
      const auto source = static_cast<u16>(kFirstSource + device.slot);
      auto* const made = ST_TRY(locked.make_vtd_device(
          {.source = SourceId{source}, .max_pasid_lg2 = pasid_bits, .ends_with_process = true}));
      made->object.users = 1;  // this: the client does not destroy it
      device_ = made->object.id;
    }
  }
  iommufd_ = std::move(iommufd);
  if (access_ != 0) return access_;
  if (const auto prepared = own_.prepare(); !prepared) {
    disconnect();
    return refuse(prepared.error());
  }
  return device_;
}

void Dma::disconnect() {
  if (!is_connected()) return;
  own_.forget();
  const bool is_owner = owner_.is_creator();
  if (is_owner) unbind_process();
  if (is_owner && access_ != 0) context()->destroy_access(access_);
  if (is_owner && iommufd_ && device_ != 0) {
    iommu::Locked locked(iommufd_->context());
    const auto device = locked.ok() ? locked.find<iommu::Device>(device_) : refuse(EIO);
    if (device) {
      locked.detach_all(**device);
      (*device)->object.users = 0;
      locked.destroy_device(*device);
    }
  }
  access_ = device_ = 0;
  pasid_.reset();
  container_.reset();
  iommufd_.reset();
}

Result<void> Dma::attach(u32* pt_id, u32 pasid) {
  if (!iommufd_) return refuse(EINVAL);
  if (device_ == 0) {
    if (pasid != 0) return refuse(EOPNOTSUPP);
    return iommufd_->context().set_ioas(access_, *pt_id);
  }
  iommu::Locked locked(iommufd_->context());
  if (!locked.ok()) return refuse(EIO);
  iommu::Device& device = *ST_TRY(locked.find<iommu::Device>(device_));
  const iommu::Attachment* const now = iommu::Locked::find_attachment(device, pasid);
  return now != nullptr && is_given(*now) ? locked.replace(device, pt_id, pasid)
                                          : locked.attach(device, pt_id, pasid);
}

void Dma::detach(u32 pasid) {
  if (!iommufd_) return;
  if (device_ == 0) {
    static_cast<void>(iommufd_->context().set_ioas(access_, 0));
    return;
  }
  iommu::Locked locked(iommufd_->context());
  if (!locked.ok()) return;
  const auto device = locked.find<iommu::Device>(device_);
  if (!device) return;
  const iommu::Attachment* const now = iommu::Locked::find_attachment(**device, pasid);
  if (now != nullptr && is_given(*now)) locked.detach(**device, pasid);
}

Result<u32> Dma::bind_process() {
  if (!is_connected()) return refuse(ENOTCONN);
  if (device_ == 0) return refuse(ENODEV);
  if (process_pasid_) return *process_pasid_;
  process_pasid_ = ST_TRY(iommu::bind_process(*context(), device_));
  return *process_pasid_;
}

void Dma::unbind_process() {
  if (!process_pasid_) return;
  iommu::unbind_process(*context(), device_);
  process_pasid_.reset();
}

// ---- the external domain

iommu::DmaAnswer Dma::access_external(u64 iova, u64 bytes, void* to, const void* from) {
  iommu::DmaAnswer answer{0, iommu::FaultReason::kNone, iova};
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

// Within a page.
iommu::FaultReason Dma::access_page(u64 iova, u64 bytes, void* to, const void* from) {
  iommu::Locked locked(*context());
  if (!locked.ok()) return iommu::FaultReason::kSecondUnreadable;
  const auto access = locked.find<iommu::Access>(access_);
  if (!access) return iommu::FaultReason::kSecondUnreadable;
  // Noted first: a page that cannot be noted is not written.
  if (container_ && from != nullptr && (*access)->ioas.get() != nullptr) {
    const auto state = Container::state(locked, false);
    if (!state || *state == nullptr) return iommu::FaultReason::kSecondUnreadable;
    const bool mapped = locked.areas(*(*access)->ioas, iova, iova).first(iova, iova) != nullptr;
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
  if (!is_connected()) return refuse(ENOTCONN);
  if (is_isolated()) return {};
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
    iommu::Locked locked(*context());
    if (!locked.ok()) return refuse(EIO);
    auto* const access = ST_TRY(locked.find<iommu::Access>(access_));
    ST_TRY(locked.pin(*access, held.iova, held.bytes, write, frames.data()));
  }
  const sync::MutexGuard guard(lock_);
  return held_.push_back(held);
}

void Dma::unpin(const Held& held) {
  iommu::Locked locked(*context());
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
