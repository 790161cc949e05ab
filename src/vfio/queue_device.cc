// SPDX-License-Identifier: Apache-2.0
#include "vfio/queue_device.h"

#include <algorithm>
#include <cstring>

namespace stagetwo::vfio {
namespace {

constexpr unsigned kRegisterRegion = 0, kPortalRegion = 2, kRingRegion = 4;
constexpr MappedArea kPortal[] = {{0, kPageSize, 0, true}};
constexpr MappedArea kRing[] = {{0, kRingBytes, QueueDevice::kRingMemory}};
static_assert(QueueDevice::kRingMemory + kRingBytes <= Model::kMemoryBytes);

}  // namespace

QueueDevice::QueueDevice(const PciIdentity& identity, u32 vectors, Addresses addresses,
                         const ModelContext& context)
    : interrupts_(context.interrupts),
      channel_(context.dma),
      addresses_(addresses),
      shared_(*reinterpret_cast<Shared*>(context.state.data())),
      identity_(identity),
      queue_(context.memory.data() + kRingMemory, shared_.queue),
      dma_(context.dma) {
  shape_.regions[kRegisterRegion] = {kPageSize};
  shape_.regions[kPortalRegion] = {kPageSize, kPortal};
  shape_.regions[kRingRegion] = {kRingBytes, kRing};
  shape_.regions[kConfigRegion] = {PciConfig::kBytes};
  shape_.vectors[kMsixIndex] = vectors;
  shape_.vectors[kRequestIndex] = 1;  // who has it open hears that it is to go
  channel_.set_cancel(thread_.cancel());
}

// ---- the client's calls

void QueueDevice::read(unsigned region, u64 offset, std::span<u8> to) {
  if (region == kConfigRegion) return shared_.config.read(offset, to);
  if (region == kRingRegion) return queue_.read_ring(offset, to);
  const u64 at = offset & ~u64{7};
  const u64 word = region != kRegisterRegion ? 0 : at == kPasid ? pasid() : word_at(at);
  const u64 value = word >> 8 * (offset & 7);
  std::memcpy(to.data(), &value, to.size());
}

void QueueDevice::write(unsigned region, u64 offset, std::span<const u8> from) {
  if (region == kConfigRegion) return shared_.config.write(identity_, offset, from);
  if (region == kRingRegion) return queue_.write_ring(offset, from);
  if (region == kRegisterRegion) {
    u32 value = 0;
    std::memcpy(&value, from.data(), std::min(from.size(), sizeof(value)));
    return write_own(offset, value);
  }
  const void* const whole = queue_.write_portal(offset, from);
  if (whole == nullptr) return;
  if (!thread_.start() || !queue_.put(whole)) return is_full(whole);
  thread_.wake();
}

void QueueDevice::write_own(u64 offset, u32 value) {
  if (offset == kDoorbell) {
    queue_.rung();
    return static_cast<void>(look());
  }
  if (offset != kPasid) return write_register(offset, value);
  if (addresses_ == Addresses::kMapped) shared_.pasid.store(value & 0xfffff, sync::kRelease);
}

void QueueDevice::reset() {
  thread_.pause();
  shared_.config.start(identity_);
  queue_.reset();
  clear_registers();
  if (addresses_ == Addresses::kMapped) {
    shared_.pasid.store(dma_.pasid().value_or(0), sync::kRelease);
  }
  thread_.resume();
}

void QueueDevice::discard() {
  thread_.pause();
  queue_.discard();
  thread_.resume();
}

bool QueueDevice::look() {
  if (!thread_.start()) return false;
  thread_.wake();
  return true;
}

// ---- the thread

void QueueDevice::begins() {
  if (addresses_ == Addresses::kOwn) {
    bind_own();
  } else if (dma_.pasid()) {
    shared_.pasid.store(*dma_.pasid(), sync::kRelease);
  }
}

// Asked again with every work: what it was refused for may have gone.
void QueueDevice::bind_own() {
  const auto bound = dma_.bind_process();
  refusal_ = bound ? 0 : to_int(bound.error());
  shared_.pasid.store(bound.value_or(0), sync::kRelease);
}

bool QueueDevice::work() {
  alignas(WorkQueue::kDescriptorBytes) u8 taken[WorkQueue::kTaken * WorkQueue::kDescriptorBytes];
  bool overrun = false;
  const u32 some = queue_.take(taken, &overrun);
  if (some != 0 && refusal_ != 0) bind_own();
  if (some != 0 && refusal_ == 0) serve(taken, some);
  if (some != 0 && refusal_ != 0) unbound(taken, some, refusal_);
  if (overrun) overran();
  if (some != 0 || overrun) return true;
  // Where another process's thread works, it finishes what is waited for.
  return !thread_.others_work() && drained();
}

}  // namespace stagetwo::vfio
