// SPDX-License-Identifier: Apache-2.0
#include "abi/vfio/mappings.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>

#include "abi/vfio/mapping_table.h"
#include "abi/vfio/requests.h"
#include "abi/vfio/trapped_store.h"
#include "abi/vfio/vfio.h"
#include "host/backstop.h"
#include "host/device_registers.h"

namespace stagetwo::abi_vfio {
namespace {

alignas(Mappings) constinit u8 storage[sizeof(Mappings)] = {};
constinit sync::Atomic<Mappings*> made{nullptr};
constinit sync::Mutex making{sync::Rank::kStats};

bool on_store(Hva at, void* context) {
  Mappings* const known = known_mappings();
  return known != nullptr && known->store(at, static_cast<ucontext_t*>(context));
}

struct Told {
  vfio::Device& device;
  const Mapping& row;
};

// What KVM's processors, and KVM, store to (host/device_registers.h).
constexpr host::DeviceRegisters kForProcessors{trapped_bytes_at, put_to_device};

// The model sees registers: pieces of at most eight bytes, aligned.
void tell_model(void* who, Hva at, std::span<const u8> bytes) {
  const Told& told = *static_cast<Told*>(who);
  u64 offset = told.row.offset + (at - told.row.range.start());
  while (!bytes.empty()) {
    size_t width = 8;
    while (width > bytes.size() || offset % width != 0) width /= 2;
    told.device.write(told.row.region, offset, bytes.first(width));
    bytes = bytes.subspan(width);
    offset += width;
  }
}

}  // namespace

Mappings& mappings() {
  if (Mappings* const known = known_mappings()) return *known;
  const sync::MutexGuard guard(making);
  if (made.load(sync::kRelaxed) == nullptr) {
    made.store(std::construct_at(reinterpret_cast<Mappings*>(storage)), sync::kRelease);
  }
  return *made.load(sync::kRelaxed);
}

Mappings* known_mappings() {
  return made.load(sync::kAcquire);
}

// What is trapped around `at` in that row, as far as area and mapping go; empty: nothing is.
HvaRange Mappings::trap_of(const Mapping& row, Hva at) {
  const u64 offset = row.offset + (at - row.range.start());
  const vfio::Shape& shape = row.device->device().shape();
  for (const vfio::MappedArea& area : shape.regions[row.region].mapped) {
    if (!area.trapped || offset < area.offset || offset - area.offset >= area.size) continue;
    const u64 first = std::max(area.offset, row.offset);
    const u64 end = std::min(area.offset + area.size, row.offset + row.range.size());
    return HvaRange(row.range.start() + (first - row.offset), end - first);
  }
  return {};
}

bool Mappings::find_trap(Hva at, Trap* trap) {
  const sync::MutexGuard guard(lock_);
  return find_trap_locked(at, trap);
}

// Where one is mapped over another, the one that came last.
const Mapping* Mappings::last_at(Hva at) {
  const Mapping* found = nullptr;
  for (const Mapping& row : rows_) {
    if (row.range.contains(at)) found = &row;
  }
  return found;
}

bool Mappings::find_trap_locked(Hva at, Trap* trap) {
  const Mapping* const row = last_at(at);
  if (row == nullptr) return false;
  trap->range = trap_of(*row, at);
  if (trap->range.empty()) return false;
  trap->mapping = row->copy();
  return true;
}

// Without the right to it the store is the client's fault, as elsewhere.
bool Mappings::store(Hva at, ucontext_t* context) {
  Trap trap;
  if (!find_trap(at, &trap) || (trap.mapping.prot & PROT_WRITE) == 0) return false;
  if (is_put_off(at, trap.mapping.device->device())) return true;
  Told told{trap.mapping.device->device(), trap.mapping};
  return emulate_store(context, trap.range, tell_model, &told);
}

// Nobody's device ends here: who asks may be in the middle of anything.
u64 Mappings::trapped_at(Hva at) {
  const sync::MutexGuard guard(lock_);
  const Mapping* const row = last_at(at);
  if (row == nullptr || (row->prot & PROT_WRITE) == 0) return 0;
  const HvaRange trapped = trap_of(*row, at);
  return trapped.empty() ? 0 : trapped.end() - at;
}

size_t Mappings::put(Hva at, std::span<const u8> bytes) {
  Trap trap;
  {
    const sync::MutexGuard guard(lock_);
    // For what may have to be left behind.
    if (!left_.reserve(left_.size() + putting_ + 1)) return 0;
    if (!find_trap_locked(at, &trap)) return 0;
    ++putting_;
  }
  vfio::Device& device = trap.mapping.device->device();
  const bool off = device.shape().function && memory_is_off(device);
  const bool stored = !off && (trap.mapping.prot & PROT_WRITE) != 0;
  const u64 room = stored ? trap.range.end() - at : 0;
  const size_t some = std::min(bytes.size(), room);
  Told told{device, trap.mapping};
  tell_model(&told, at, bytes.first(some));
  let_go(std::move(trap.mapping.device));
  return some;
}

Result<void> note_mapping(const sync::Ref<OpenDevice>& device, Hva at, u64 size, int prot,
                          unsigned region, u64 offset) {
  host::backstop::set_store_trap(on_store);
  host::set_device_registers(kForProcessors);
  return mappings().add({.range = HvaRange(at, size),
                         .device = device.clone(),
                         .region = region,
                         .offset = offset,
                         .prot = prot});
}

void follow_memory(vfio::Device& device) {
  if (Mappings* const known = known_mappings()) known->follow(device);
}

u64 trapped_bytes_at(Hva at) {
  Mappings* const known = known_mappings();
  return known != nullptr && known->used() ? known->trapped_at(at) : 0;
}

size_t put_to_device(Hva at, std::span<const u8> bytes) {
  return mappings().put(at, bytes);
}

size_t debug_mappings() {
  return mappings().count();
}

void mappings_after_fork_child() {
  std::construct_at(&making, sync::Rank::kStats);
  if (Mappings* const known = made.load(sync::kRelaxed)) known->after_fork_child();
}

}  // namespace stagetwo::abi_vfio
