// SPDX-License-Identifier: Apache-2.0
#include "vfio/bus.h"

#include <algorithm>
#include <cstring>

#include "host/descriptor.h"
#include "sync/futex.h"
#include "vfio/pci_functions.h"
#include "vfio/registry.h"
#include "vfio/sysfs_tree.h"
#include "vfio/tree_files.h"

namespace stagetwo::vfio {
namespace {

constexpr u64 kLookAgainNs = 5'000'000;

// Written before its size is, always the same.
constinit sync::Atomic<const char*> wanted{nullptr};
constinit sync::Atomic<size_t> wanted_size{0};

// Every change of a slot leaves it whole (I1 of registry.h), so a lock whose holder has died is
// taken as any other.
class Held {
 public:
  explicit Held(Registry& registry) : guard_(registry.lock, sync::Rank::kContainer) {}

 private:
  sync::ProcessMutexGuard guard_;
};

SlotState state_of(const Slot& slot) {
  return slot.state.load(sync::kAcquire);
}

TypeRef type_of(const Slot& slot) {
  const Parent* const parent = find_parent(slot.parent);
  if (parent == nullptr || slot.type >= parent->types.size()) return {};
  return {parent, slot.type};
}

Listed listed(const Registry& registry, u32 index) {
  const Slot& slot = registry.slots[index];
  return {index, slot.born, slot.uuid, type_of(slot), state_of(slot) == SlotState::kRemoving};
}

// Pre: the lock. Who dies here has left a removal that others finish, until all but the number of
// those left is right; that is written again by whoever comes into the session next.
void free_slot(Registry& registry, u32 index) {
  const Listed gone = listed(registry, index);
  wipe_memory(index);
  tree_remove(gone);
  registry.slots[index].state.store(SlotState::kFree, sync::kRelease);
  tree_count(registry, gone.type);
}

// Removals whose remover has gone.
void finish_orphans(Registry& registry) {
  for (u32 i = 0; i < kSlots; ++i) {
    const Slot& slot = registry.slots[i];
    if (state_of(slot) != SlotState::kRemoving) continue;
    if (is_claimed(ClaimKind::kRemover, slot.born)) continue;
    if (!is_in_use(slot.born)) free_slot(registry, i);
  }
}

Slot* find_slot(Registry& registry, const Uuid& uuid) {
  for (Slot& slot : registry.slots) {
    if (state_of(slot) != SlotState::kFree && slot.uuid == uuid) return &slot;
  }
  return nullptr;
}

}  // namespace

void want_functions(std::string_view names) {
  wanted.store(names.data(), sync::kRelaxed);
  wanted_size.store(names.size(), sync::kRelease);
}

namespace {

// Those that are not there yet. What does not fit is left out.
void add_functions() {
  const size_t size = wanted_size.load(sync::kAcquire);
  std::string_view rest(wanted.load(sync::kRelaxed), size);
  for (unsigned number = 0; !rest.empty(); ++number) {
    const size_t comma = rest.find(',');
    const TypeRef type = find_function(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    if (type) static_cast<void>(create_device(type, function_uuid(number)));
  }
}

}  // namespace

void append_name(const Listed& device, TextWriter& out) {
  if (device.type && device.type.parent->function != nullptr) return append_address(device, out);
  device.uuid.append(out);
}

namespace {

// What the tree was last written of by this process, under the registry's lock. What others have
// changed since, or died changing, differs in it.
struct Written {
  u64 registry = 0;
  Tree::Identity tree;
  u64 slots[kSlots] = {};
};
constinit Written written;

Written what_is(const Registry& shared) {
  Written now;
  now.registry = registry_identity();
  if (const Tree tree; tree) now.tree = tree.identity();
  for (u32 i = 0; i < kSlots; ++i) {
    now.slots[i] = shared.slots[i].born * 4 + static_cast<u64>(state_of(shared.slots[i]));
  }
  return now;
}

bool is_written(const Registry& shared) {
  const Written now = what_is(shared);
  return now.tree.inode != 0 && now.registry == written.registry && now.tree == written.tree &&
         std::ranges::equal(now.slots, written.slots);
}

void write_tree(const Registry& shared) {
  if (is_written(shared) || !tree_start(shared)) return;
  for (u32 i = 0; i < kSlots; ++i) {
    const SlotState state = state_of(shared.slots[i]);
    if (state == SlotState::kActive) tree_add(shared, listed(shared, i));
    if (state == SlotState::kRemoving) tree_begin_removal(listed(shared, i));
  }
  written = what_is(shared);
}

}  // namespace

Result<void> start_bus() {
  Registry& shared = *ST_TRY(registry());
  {
    const Held held(shared);
    finish_orphans(shared);
    write_tree(shared);
  }
  add_functions();
  return {};
}

Result<void> create_device(const TypeRef& type, const Uuid& uuid) {
  Registry& shared = *ST_TRY(registry());
  const Held held(shared);
  finish_orphans(shared);
  if (find_slot(shared, uuid) != nullptr) return refuse(EEXIST);
  const Parent& parent = *type.parent;
  const bool core = parent.counting == Counting::kCore;
  const u32 wants = core ? 1 : type.get().units;
  if (units_in_use(shared, parent) + wants > parent.units) return refuse(core ? EUSERS : ENOSPC);
  u32 index = 0;
  while (index < kSlots && state_of(shared.slots[index]) != SlotState::kFree) ++index;
  if (index == kSlots) return refuse(ENOMEM);
  Slot& slot = shared.slots[index];
  slot.type = type.type;
  slot.units = wants;
  slot.uuid = uuid;
  slot.born = ++shared.last_born;
  std::memset(slot.parent, 0, sizeof(slot.parent));
  std::memcpy(slot.parent, parent.name.data(), parent.name.size());
  std::memset(slot.model, 0, sizeof(slot.model));
  slot.files = OpenFiles{};
  slot.state.store(SlotState::kActive, sync::kRelease);
  tree_add(shared, listed(shared, index));
  return {};
}

u32 available_instances(const TypeRef& type) {
  const auto shared = registry();
  if (!shared) return 0;
  const Held held(**shared);
  return instances_left(**shared, type);
}

std::optional<Listed> device_from(u32 slot) {
  const auto shared = registry();
  if (!shared) return {};
  const Held held(**shared);
  finish_orphans(**shared);
  for (; slot < kSlots; ++slot) {
    if (state_of((*shared)->slots[slot]) != SlotState::kFree) return listed(**shared, slot);
  }
  return {};
}

std::optional<Listed> find_device(const Uuid& uuid) {
  for (u32 from = 0;;) {
    const auto found = device_from(from);
    if (!found || found->uuid == uuid) return found;
    from = found->slot + 1;
  }
}

std::optional<Listed> device_at(u32 slot) {
  const auto found = device_from(slot);
  if (!found || found->slot != slot || found->removing) return {};
  return found;
}

Result<Removal> begin_removal(const Uuid& uuid) {
  Registry& shared = *ST_TRY(registry());
  const Held held(shared);
  finish_orphans(shared);
  Slot* const slot = find_slot(shared, uuid);
  if (slot == nullptr) return refuse(ENODEV);
  if (state_of(*slot) == SlotState::kRemoving) return refuse(EAGAIN);
  Removal removal(static_cast<u32>(slot - shared.slots), slot->born,
                  ST_TRY(claim(ClaimKind::kRemover, slot->born, Share::kOne)));
  slot->state.store(SlotState::kRemoving, sync::kRelease);
  tree_begin_removal(listed(shared, static_cast<u32>(slot - shared.slots)));
  return removal;
}

void finish_removal(Removal removal) {
  const auto shared = registry();
  if (!shared || !removal) return;
  while (is_in_use(removal.born_)) {
    // A copy of this process's own, of a descriptor that another process has closed last.
    host::sweep_closed();
    sync::Atomic<u32> nobody_wakes{0};
    sync::futex_wait(nobody_wakes, 0, kLookAgainNs);
  }
  const Held held(**shared);
  const Slot& slot = (*shared)->slots[removal.slot_];
  if (slot.born == removal.born_ && state_of(slot) == SlotState::kRemoving) {
    free_slot(**shared, removal.slot_);
  }
}

void finish_left() {
  const auto shared = registry();
  if (!shared) return;
  const auto is_going = [](const Slot& slot) { return state_of(slot) == SlotState::kRemoving; };
  if (std::ranges::none_of((*shared)->slots, is_going)) return;
  const Held held(**shared);
  finish_orphans(**shared);
}

void bus_after_fork_child() {
  registry_after_fork_child();
}

}  // namespace stagetwo::vfio
