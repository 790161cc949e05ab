// SPDX-License-Identifier: Apache-2.0
#include "abi/vfio/mappings.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <tuple>

#include "abi/vfio/requests.h"
#include "abi/vfio/trapped_store.h"
#include "abi/vfio/vfio.h"
#include "base/process_page.h"
#include "base/vec.h"
#include "host/backstop.h"
#include "host/mmu_notifier.h"
#include "host/worker.h"

namespace stagetwo::abi_vfio {
namespace {

struct Mapping {
  HvaRange range;
  sync::Ref<OpenDevice> device;
  unsigned region = 0;
  u64 offset = 0;  // of the range's start in the region
  int prot = 0;
  // A change of its pages is under way: they may be another's by now.
  bool going = false;
  // Is the region's memory off, and do the pages say so?
  bool off = false, hidden = false;
};

class Mappings final : public host::MmuNotifier, host::WorkItem {
 public:
  Result<void> add(Mapping mapping, int prot);
  void follow(vfio::Device& device);
  // Another process that has the device open may put its memory off.
  void turn() override;
  u64 period_ns() override { return used() ? kPeriodNs : sync::kNoTimeout; }
  bool store(Hva at, ucontext_t* context);
  size_t put(Hva at, std::span<const u8> bytes);
  [[nodiscard]] u64 trapped_at(Hva at);
  [[nodiscard]] bool used() const { return used_.load(sync::kAcquire) != 0; }
  [[nodiscard]] size_t count();

  bool invalidate_range_start(const host::InvalidateEvent& event) override;
  host::TryStart try_invalidate_range_start(const host::InvalidateEvent& event) override {
    return event.kind != host::EventKind::kUnmap ? host::TryStart::kNotMine
           : invalidate_range_start(event)       ? host::TryStart::kEngaged
                                                 : host::TryStart::kNotMine;
  }
  void invalidate_range_end(const host::InvalidateEvent& event) override { forget(event.range); }

  // In a child: nobody subscribes, and the lock may have been another thread's.
  void after_fork_child() {
    std::construct_at(&lock_, sync::Rank::kLeaf);
    std::construct_at(&changing_, sync::Rank::kVm);
  }

 private:
  static constexpr u64 kPeriodNs = 20'000'000;
  void forget(HvaRange range);
  void watch() TA_REQ(changing_);
  sync::Ref<OpenDevice> function_after(const vfio::Device* last);
  bool is_put_off(Hva at, vfio::Device& device);
  void follow_locked(vfio::Device& device) TA_REQ(changing_);
  void settle(Mapping& row) TA_REQ(lock_);
  // The lower and the upper end of what stays; false: nothing, or not one piece.
  static bool trim(const Mapping& mapping, HvaRange gone, HvaRange* left);
  // What is trapped around `at`, as far as area and mapping go. False: nothing is.
  struct Trap {
    Mapping mapping;
    HvaRange range;
  };
  bool find_trap(Hva at, Trap* trap);
  sync::Ref<OpenDevice> take_gone(HvaRange range);

  sync::Mutex changing_{sync::Rank::kVm};
  // The process that did, and that looks what others do with a function.
  u32 subscribed_ TA_GUARDED(changing_) = 0, watched_ TA_GUARDED(changing_) = 0;
  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<Mapping> rows_ TA_GUARDED(lock_){"abi_vfio.mappings"};
  sync::Atomic<u32> used_{0};  // rows; changes of a process without any look no further
};

// Never destroyed: handlers ask it until the process is gone.
alignas(Mappings) constinit u8 storage[sizeof(Mappings)] = {};
constinit sync::Atomic<Mappings*> made{nullptr};
constinit sync::Mutex making{sync::Rank::kStats};

Mappings& mappings() {
  if (Mappings* const known = made.load(sync::kAcquire)) return *known;
  const sync::MutexGuard guard(making);
  if (made.load(sync::kRelaxed) == nullptr) {
    made.store(std::construct_at(reinterpret_cast<Mappings*>(storage)), sync::kRelease);
  }
  return *made.load(sync::kRelaxed);
}

bool on_store(Hva at, void* context) {
  Mappings* const known = made.load(sync::kAcquire);
  return known != nullptr && known->store(at, static_cast<ucontext_t*>(context));
}

Result<void> Mappings::add(Mapping mapping, int prot) {
  const sync::MutexGuard changing(changing_);
  if (subscribed_ != process_stamp()) {
    if (const auto done = host::register_notifier(this); !done) return refuse(ENOMEM);
    subscribed_ = process_stamp();
    host::backstop::set_store_trap(on_store);
  }
  const sync::Ref<OpenDevice> opened = mapping.device.clone();
  const auto [range, region, offset] = std::tuple(mapping.range, mapping.region, mapping.offset);
  {
    const sync::MutexGuard guard(lock_);
    ST_TRY(rows_.push_back(std::move(mapping)));
    used_.store(static_cast<u32>(rows_.size()), sync::kRelease);
  }
  vfio::Device& device = opened->device();
  if (const auto shown = device.show(region, offset, range.size(), prot, range.start()); !shown) {
    forget(range);
    return shown;
  }
  follow_locked(device);
  if (device.shape().function) watch();
  return {};
}

// ---- memory that is off: a touch is SIGBUS

void Mappings::settle(Mapping& row) {
  if (row.going || row.off == row.hidden) return;
  vfio::Device& device = row.device->device();
  const Hva at = row.range.start();
  const auto done = row.off ? device.hide(row.range.size(), row.prot, at)
                            : device.show(row.region, row.offset, row.range.size(), row.prot, at);
  if (done) row.hidden = row.off;
}

void Mappings::follow_locked(vfio::Device& device) {
  if (!device.shape().function) return;
  const bool off = memory_is_off(device);
  const sync::MutexGuard guard(lock_);
  for (Mapping& row : rows_) {
    if (&row.device->device() != &device || row.region >= vfio::kBars) continue;
    row.off = off;
    settle(row);
  }
}

void Mappings::follow(vfio::Device& device) {
  const sync::MutexGuard changing(changing_);
  follow_locked(device);
}

void Mappings::watch() {
  if (watched_ == process_stamp()) return host::kick_worker();
  watched_ = process_stamp();
  host::add_work(this);
}

// One function that is mapped; with the one before, the next.
sync::Ref<OpenDevice> Mappings::function_after(const vfio::Device* last) {
  const sync::MutexGuard guard(lock_);
  const auto address = [](const vfio::Device* device) { return reinterpret_cast<u64>(device); };
  const vfio::Device* found = nullptr;
  const Mapping* row_of = nullptr;
  for (const Mapping& row : rows_) {
    const vfio::Device* const device = &row.device->device();
    if (!device->shape().function || address(device) <= address(last)) continue;
    if (found != nullptr && address(device) >= address(found)) continue;
    found = device;
    row_of = &row;
  }
  return row_of != nullptr ? row_of->device.clone() : sync::Ref<OpenDevice>{};
}

void Mappings::turn() {
  const vfio::Device* last = nullptr;
  while (const sync::Ref<OpenDevice> opened = function_after(last)) {
    last = &opened->device();
    follow(opened->device());
  }
}

// A store that comes while its pages still say that the memory is on: they go, and it is made
// again.
bool Mappings::is_put_off(Hva at, vfio::Device& device) {
  if (!device.shape().function || !memory_is_off(device)) return false;
  const sync::MutexGuard guard(lock_);
  for (Mapping& row : rows_) {
    if (!row.range.contains(at) || row.region >= vfio::kBars) continue;
    row.off = true;
    settle(row);
    return row.hidden;
  }
  return false;
}

size_t Mappings::count() {
  const sync::MutexGuard guard(lock_);
  return rows_.size();
}

bool Mappings::invalidate_range_start(const host::InvalidateEvent& event) {
  if (event.kind != host::EventKind::kUnmap || used_.load(sync::kAcquire) == 0) return false;
  const sync::MutexGuard guard(lock_);
  bool any = false;
  for (Mapping& row : rows_) {
    if (!row.range.overlaps(event.range)) continue;
    row.going = any = true;
  }
  return any;
}

bool Mappings::trim(const Mapping& mapping, HvaRange gone, HvaRange* left) {
  const u64 start = mapping.range.start().raw(), end = start + mapping.range.size();
  const u64 from = gone.start().raw(), to = from + gone.size();
  const bool below = from > start, above = to < end;
  if (below == above) return false;
  *left = below ? HvaRange(Hva(start), from - start) : HvaRange(Hva(to), end - to);
  return true;
}

// One of the rows that the range takes; what it takes a part of becomes smaller. Empty: no more.
sync::Ref<OpenDevice> Mappings::take_gone(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  for (size_t i = 0; i < rows_.size(); ++i) {
    Mapping& row = rows_[i];
    if (!row.range.overlaps(range)) continue;
    HvaRange left;
    if (trim(row, range, &left)) {
      row.offset += left.start() - row.range.start();
      row.range = left;
      row.going = false;
      settle(row);
      continue;
    }
    sync::Ref<OpenDevice> device = std::move(row.device);
    rows_.swap_erase(i);
    used_.store(static_cast<u32>(rows_.size()), sync::kRelease);
    return device;
  }
  return {};
}

void Mappings::forget(HvaRange range) {
  while (take_gone(range)) {
  }
}

struct Told {
  vfio::Device& device;
  const Mapping& row;
};

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

bool Mappings::find_trap(Hva at, Trap* trap) {
  Mapping& found = trap->mapping;
  {
    const sync::MutexGuard guard(lock_);
    for (const Mapping& row : rows_) {
      if (row.range.contains(at)) {
        found = {.range = row.range,
                 .device = row.device.clone(),
                 .region = row.region,
                 .offset = row.offset,
                 .prot = row.prot};
      }
    }
  }
  if (!found.device) return false;
  const u64 offset = found.offset + (at - found.range.start());
  const vfio::Shape& shape = found.device->device().shape();
  for (const vfio::MappedArea& area : shape.regions[found.region].mapped) {
    if (!area.trapped || offset < area.offset || offset - area.offset >= area.size) continue;
    const u64 first = std::max(area.offset, found.offset);
    const u64 end = std::min(area.offset + area.size, found.offset + found.range.size());
    trap->range = HvaRange(found.range.start() + (first - found.offset), end - first);
    return true;
  }
  return false;
}

bool Mappings::store(Hva at, ucontext_t* context) {
  Trap trap;
  if (!find_trap(at, &trap)) return false;
  if (is_put_off(at, trap.mapping.device->device())) return true;
  Told told{trap.mapping.device->device(), trap.mapping};
  return emulate_store(context, trap.range, tell_model, &told);
}

u64 Mappings::trapped_at(Hva at) {
  Trap trap;
  const bool stored = find_trap(at, &trap) && (trap.mapping.prot & PROT_WRITE) != 0;
  return stored ? trap.range.size() - (at - trap.range.start()) : 0;
}

size_t Mappings::put(Hva at, std::span<const u8> bytes) {
  Trap trap;
  if (!find_trap(at, &trap) || (trap.mapping.prot & PROT_WRITE) == 0) return 0;
  vfio::Device& device = trap.mapping.device->device();
  if (device.shape().function && memory_is_off(device)) return 0;
  const u64 room = trap.range.size() - (at - trap.range.start());
  Told told{device, trap.mapping};
  tell_model(&told, at, bytes.first(std::min(bytes.size(), room)));
  return std::min(bytes.size(), room);
}

}  // namespace

Result<void> note_mapping(const sync::Ref<OpenDevice>& device, Hva at, u64 size, int prot,
                          unsigned region, u64 offset) {
  return mappings().add({.range = HvaRange(at, size),
                         .device = device.clone(),
                         .region = region,
                         .offset = offset,
                         .prot = prot},
                        prot);
}

void follow_memory(vfio::Device& device) {
  if (Mappings* const known = made.load(sync::kAcquire)) known->follow(device);
}

u64 trapped_bytes_at(Hva at) {
  Mappings* const known = made.load(sync::kAcquire);
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
