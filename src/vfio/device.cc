// SPDX-License-Identifier: Apache-2.0
#include "vfio/device.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>

#include "base/process_page.h"
#include "vfio/bus.h"
#include "vfio/pci_functions.h"
#include "vfio/registry.h"
#include "vfio/trapped_rights.h"

namespace stagetwo::vfio {
namespace {

// Those of this process, by slot. A row is its Device's from open() to its destruction, which takes
// it out under the lock; one that is dying is passed over.
constinit sync::Mutex opening{sync::Rank::kContainer};
constinit Device* open_devices[kSlots] = {};

}  // namespace

// The lock of the model. Who died under it may have left half a change: the model starts afresh.
class Device::Locked {
 public:
  explicit Locked(Device& device) : guard_(device.slot_->lock, sync::Rank::kDevice) {
    if (guard_.died()) device.model_->reset();
  }

 private:
  sync::ProcessMutexGuard guard_;
};

Result<sync::Ref<Device>> Device::open(const Listed& device, Opening how) {
  if (!device.type) return refuse(ENODEV);
  Registry& shared = *ST_TRY(registry());
  const sync::MutexGuard guard(opening);
  Device* const known = open_devices[device.slot];
  if (known != nullptr && known->which_.born == device.born && known->try_ref()) {
    return sync::Ref<Device>::adopt(known);
  }
  // Of two processes that open it at the same time the second finds the first one's claim.
  sync::Ref<Device> made;
  {
    const sync::ProcessMutexGuard lock(shared.slots[device.slot].lock, sync::Rank::kDevice);
    const bool first = how != Opening::kReceived && !is_claimed(ClaimKind::kDevice, device.born);
    auto held = ST_TRY(claim(ClaimKind::kDevice, device.born, Share::kMany));
    made = ST_TRY(sync::Ref<Device>::make("vfio.device", device, std::move(held)));
    ST_TRY(made->start(shared, how != Opening::kByName));
    if (lock.died()) made->model_->reset();
    if (first) made->model_->first_open();
    made->changed(kConfigRegion);
  }
  open_devices[device.slot] = made.get();
  return made;
}

bool Device::is_open_here(u32 slot, u64 born) {
  const sync::MutexGuard guard(opening);
  return open_devices[slot] != nullptr && open_devices[slot]->which_.born == born;
}

// Pre: the slot's lock. Only after the claim: from here on nobody takes the slot away (I1).
// `may_be_going`: a removal waits for somebody's claim already.
Result<void> Device::start(Registry& shared, bool may_be_going) {
  slot_ = &shared.slots[which_.slot];
  const SlotState state = slot_->state.load(sync::kAcquire);
  const bool there = state == SlotState::kActive || (may_be_going && state == SlotState::kRemoving);
  if (!there || slot_->born != which_.born) return refuse(ENODEV);
  memory_ = ST_TRY(map_memory(which_.slot));
  model_ = ST_TRY(which_.type.parent->make(
      which_.type.get(),
      ModelContext{slot_->model, {memory_, Model::kMemoryBytes}, interrupts_, dma_}));
  return {};
}

Device::~Device() {
  const bool started = static_cast<bool>(model_);
  if (started) {  // else it never started, and open() has the lock
    const sync::MutexGuard guard(opening);
    if (open_devices[which_.slot] == this) open_devices[which_.slot] = nullptr;
  }
  if (watching_.load() == process_stamp()) host::remove_work(&watch_);
  model_.reset();  // what runs by itself in it stops
  if (memory_ != nullptr) unmap_pages(memory_, Model::kMemoryBytes);
  claim_.reset();
  if (started) finish_left();
}

bool Device::is_connected() {
  const Locked locked(*this);
  return connected_;
}

Result<void> Device::connect(sync::Ref<Container> container) {
  const Locked locked(*this);
  if (connected_) return {};
  ST_TRY(dma_.connect(std::move(container), which_));
  connected_ = true;
  return {};
}

Result<u32> Device::bind(sync::Ref<iommu::Iommufd> iommufd) {
  const Locked locked(*this);
  if (connected_) return bound_;
  bound_ = ST_TRY(dma_.bind(std::move(iommufd), which_));
  connected_ = true;
  return bound_;
}

Result<void> Device::set_irqs(const IrqSet& request) {
  ST_TRY(interrupts_.set(shape(), request));
  const bool wants = request.index == kRequestIndex && request.count != 0;
  if (wants && watching_.exchange(process_stamp()) != process_stamp()) host::add_work(&watch_);
  return {};
}

void Device::Watch::turn() {
  const Slot& slot = *device_.slot_;
  const bool going = slot.state.load(sync::kAcquire) == SlotState::kRemoving;
  if (!going || slot.born != device_.which_.born) return;
  if (turns_++ % kTurnsBetween == 0) device_.interrupts_.ask_for_release();
}

void Device::read(unsigned region, u64 offset, std::span<u8> to) {
  const Locked locked(*this);
  model_->read(region, offset, to);
}

void Device::write(unsigned region, u64 offset, std::span<const u8> from) {
  const Locked locked(*this);
  model_->write(region, offset, from);
  changed(region);
}

// What sysfs shows of it.
void Device::changed(unsigned region) {
  const bool shown = which_.type.parent->function != nullptr && region == kConfigRegion;
  if (shown) show_config(which_, *model_);
}

Result<void> Device::show(unsigned region, u64 offset, u64 size, int prot, Hva at) {
  for (const MappedArea& area : shape().regions[region].mapped) {
    const u64 first = std::max(offset, area.offset);
    const u64 end = std::min(offset + size, area.offset + area.size);
    if (first >= end) continue;
    const int rights = area.trapped ? rights_of_trapped(prot) : prot;
    ST_TRY(show_memory(which_.slot, area.memory + (first - area.offset), end - first, rights,
                       at + (first - offset)));
  }
  return {};
}

u64 Device::shown(unsigned region, u64 offset, const host::Mapping& found, Hva at) const {
  const u64 in_file = found.offset + (at - found.range.start());
  for (const MappedArea& area : shape().regions[region].mapped) {
    if (offset < area.offset || offset - area.offset >= area.size) continue;
    const u64 memory = memory_of(which_.slot) + area.memory + (offset - area.offset);
    if (in_file != memory || !is_registry(found)) return 0;
    return std::min(area.size - (offset - area.offset), found.range.end() - at);
  }
  return 0;
}

void Device::reset() {
  const Locked locked(*this);
  model_->reset();
  changed(kConfigRegion);
}

void devices_after_fork_child() {
  std::construct_at(&opening, sync::Rank::kContainer);
  for (Device* const device : open_devices) {
    if (device == nullptr) continue;
    device->interrupts_.after_fork_child();
    device->model_->after_fork();
  }
}

}  // namespace stagetwo::vfio
