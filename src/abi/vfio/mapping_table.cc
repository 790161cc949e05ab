// SPDX-License-Identifier: Apache-2.0
#include "abi/vfio/mapping_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>

#include "abi/vfio/requests.h"
#include "base/check.h"
#include "base/process_page.h"
#include "host/process_map.h"

namespace stagetwo::abi_vfio {
namespace {

bool is_same(const host::Mapping& found, host::FileId file) {
  return found.inode == file.inode && found.device == file.device;
}

// The first part of a row's range where something else stands by now, or nothing. Where the kernel
// does not say, the change that asked is believed.
HvaRange gone_part(const Mapping& row) {
  const vfio::Device& device = row.device->device();
  for (Hva at = row.range.start(); at < row.range.end();) {
    const auto found = host::shown_mapping_from(at);
    if (!found && to_int(found.error()) != EFAULT) return row.range;
    const Hva begins = found ? std::min(found->range.start(), row.range.end()) : row.range.end();
    if (begins > at) return HvaRange(at, begins - at);
    const u64 bytes = std::min(found->range.end(), row.range.end()) - at;
    const u64 offset = row.offset + (at - row.range.start());
    const u64 shown = row.hidden ? (is_same(*found, row.nothing) ? bytes : 0)
                                 : device.shown(row.region, offset, *found, at);
    if (shown == 0) return HvaRange(at, bytes);
    at = at + std::min(shown, bytes);
  }
  return {};
}

}  // namespace

// Of the table, under its lock.
class Mappings::Edit {
 public:
  explicit Edit(Mappings& table) : table_(table) { table_.editing_.store(1); }
  ~Edit() { table_.editing_.store(0); }
  Edit(const Edit&) = delete;
  Edit& operator=(const Edit&) = delete;

 private:
  Mappings& table_;
};

Result<void> Mappings::subscribe() {
  if (subscribed_ == process_stamp()) return {};
  if (const auto done = host::register_notifier(this); !done) return refuse(ENOMEM);
  subscribed_ = process_stamp();
  return {};
}

Result<void> Mappings::add(Mapping mapping) {
  const sync::MutexGuard changing(changing_);
  ST_TRY(subscribe());
  const Mapping added = mapping.copy();
  {
    const sync::MutexGuard guard(lock_);
    const Edit edit(*this);
    // The shim tells twice of what a function of libc maps, of the call in it and of the function.
    const auto told = std::find_if(rows_.begin(), rows_.end(), [&](const Mapping& row) {
      return row.is_of(added) && row.range == added.range;
    });
    if (told != rows_.end()) {
      *told = std::move(mapping);
    } else {
      ST_TRY(rows_.push_back(std::move(mapping)));
    }
    used_.store(static_cast<u32>(rows_.size()), sync::kRelease);
  }
  vfio::Device& device = added.device->device();
  if (const auto shown = device.show(added.region, added.offset, added.range.size(), added.prot,
                                     added.range.start());
      !shown) {
    drop(added, added.range);
    return shown;
  }
  follow_locked(device);
  if (device.shape().function) watch();
  return {};
}

// ---- memory that is off: a touch is SIGBUS

void Mappings::settle(Mapping& row) {
  if (row.going != 0 || row.off == row.hidden) return;
  vfio::Device& device = row.device->device();
  const Hva at = row.range.start();
  if (!row.off) {
    row.hidden = !device.show(row.region, row.offset, row.range.size(), row.prot, at);
  } else if (const auto hidden = device.hide(row.range.size(), row.prot, at)) {
    row.hidden = true;
    row.nothing = *hidden;
  }
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

// ---- pages that go

bool Mappings::invalidate_range_start(const host::InvalidateEvent& event) {
  if (event.kind != host::EventKind::kUnmap || !used()) return false;
  const sync::MutexGuard guard(lock_);
  bool any = false;
  for (Mapping& row : rows_) {
    if (!row.range.overlaps(event.range)) continue;
    ++row.going;
    any = true;
  }
  return any;
}

// Whether it was done is not said: a call that failed took nothing.
void Mappings::invalidate_range_end(const host::InvalidateEvent& event) {
  {
    const sync::MutexGuard guard(lock_);
    for (Mapping& row : rows_) {
      if (!row.range.overlaps(event.range)) continue;
      if (row.going != 0) --row.going;
      row.unsure = true;
    }
  }
  look_again();
  const sync::MutexGuard guard(lock_);
  for (Mapping& row : rows_) {
    if (row.range.overlaps(event.range)) settle(row);
  }
}

bool Mappings::take_unsure(Mapping* row) {
  const sync::MutexGuard guard(lock_);
  for (Mapping& one : rows_) {
    if (!one.unsure) continue;
    one.unsure = false;
    *row = one.copy();
    return true;
  }
  return false;
}

void Mappings::look_again() {
  for (;;) {
    Mapping row;
    if (!take_unsure(&row)) return;
    if (const HvaRange gone = gone_part(row); !gone.empty()) drop(row, gone);
  }
}

// Of rows as this one only: another may have come to the same addresses meanwhile. The device ends
// without the lock.
void Mappings::drop(const Mapping& row, HvaRange gone) {
  for (;;) {
    sync::Ref<OpenDevice> device;
    const sync::MutexGuard guard(lock_);
    size_t at = 0;
    while (at < rows_.size() && !(rows_[at].is_of(row) && rows_[at].range.overlaps(gone))) ++at;
    if (at == rows_.size()) return;
    device = cut(at, gone);
  }
}

// What had the device by nothing else is answered.
sync::Ref<OpenDevice> Mappings::cut(size_t at, HvaRange gone) {
  const Edit edit(*this);
  const HvaRange whole = rows_[at].range;
  const Hva low = std::max(whole.start(), gone.start()), high = std::min(whole.end(), gone.end());
  const bool below = low > whole.start(), above = high < whole.end();
  if (!below && !above) {
    sync::Ref<OpenDevice> device = std::move(rows_[at].device);
    rows_.swap_erase(at);
    used_.store(static_cast<u32>(rows_.size()), sync::kRelease);
    return device;
  }
  rows_[at].unsure = true;
  // Where there is no memory for it, what is above a hole has no device from now on.
  if (below && above) {
    static_cast<void>(rows_.push_back(rows_[at].part(HvaRange(high, whole.end() - high))));
    used_.store(static_cast<u32>(rows_.size()), sync::kRelease);
  }
  const Hva start = below ? whole.start() : high;
  rows_[at] = rows_[at].part(HvaRange(start, (below ? low : whole.end()) - start));
  return {};
}

// ---- devices that put() was the last to have

// A device that meanwhile nobody else has ends elsewhere: a processor that stores to it for its
// guest has locks that closing comes before.
void Mappings::let_go(sync::Ref<OpenDevice> device) {
  {
    const sync::MutexGuard guard(lock_);
    --putting_;
    for (const Mapping& row : rows_) {
      if (row.device.get() != device.get()) continue;
      device.reset();
      return;
    }
    const Edit edit(*this);
    ST_CHECK(left_.push_back(std::move(device)));  // put() has made room for it
  }
  leaver_.call();
}

void Mappings::drop_left() {
  Vec<sync::Ref<OpenDevice>> left{"abi_vfio.mappings"};
  const sync::MutexGuard guard(lock_);
  const Edit edit(*this);
  left.swap(left_);
}

void Mappings::Leaver::call() {
  called_.store(1);
  const u32 now = process_stamp();
  if (added_.exchange(now) != now) return host::add_work(this);
  host::kick_worker();
}

void Mappings::Leaver::turn() {
  called_.store(0);
  mappings().drop_left();
}

// ---- rights and places

Result<void> Mappings::divide_at(Hva at) {
  for (size_t i = 0; i < rows_.size(); ++i) {
    const HvaRange whole = rows_[i].range;
    if (!whole.contains(at) || whole.start() == at) continue;
    ST_TRY(rows_.push_back(rows_[i].part(HvaRange(at, whole.end() - at))));
    rows_[i].range = HvaRange(whole.start(), at - whole.start());
  }
  used_.store(static_cast<u32>(rows_.size()), sync::kRelease);
  return {};
}

Result<void> Mappings::divide(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  const Edit edit(*this);
  ST_TRY(divide_at(range.start()));
  return divide_at(range.end());
}

void Mappings::allow(HvaRange range, int prot) {
  const sync::MutexGuard guard(lock_);
  for (Mapping& row : rows_) {
    if (row.range.overlaps(range)) row.prot = prot;
  }
}

// Where a function's memory is off nothing is trapped: every touch is SIGBUS.
HvaRange Mappings::first_trapped(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  Hva first = range.end(), end = range.end();
  for (const Mapping& row : rows_) {
    if (row.hidden || !row.range.overlaps(range)) continue;
    for (const vfio::MappedArea& area : row.device->device().shape().regions[row.region].mapped) {
      const u64 from = std::max(area.offset, row.offset);
      const u64 to = std::min(area.offset + area.size, row.offset + row.range.size());
      if (!area.trapped || from >= to) continue;
      const Hva begins = std::max(row.range.start() + (from - row.offset), range.start());
      const Hva ends = std::min(row.range.start() + (to - row.offset), range.end());
      if (begins >= ends || begins >= first) continue;
      first = begins;
      end = ends;
    }
  }
  return HvaRange(first, end - first);
}

bool Mappings::has(Hva at) {
  const sync::MutexGuard guard(lock_);
  return std::ranges::any_of(rows_, [&](const Mapping& row) { return row.range.contains(at); });
}

Result<void> Mappings::copy_of(HvaRange range, Vec<Mapping>* rows) {
  const sync::MutexGuard guard(lock_);
  for (const Mapping& row : rows_) {
    if (!row.range.overlaps(range)) continue;
    const Hva start = std::max(row.range.start(), range.start());
    const Hva end = std::min(row.range.end(), range.end());
    ST_TRY(rows->push_back(row.part(HvaRange(start, end - start))));
  }
  const Edit edit(*this);
  return rows_.reserve(rows_.size() + rows->size());
}

void Mappings::put_back(Mapping row) {
  const sync::MutexGuard guard(lock_);
  const Edit edit(*this);
  row.going = 0;
  row.unsure = false;
  // A function of libc and the call in it are both told of.
  const auto is_it = [&](const Mapping& known) {
    return known.is_of(row) && known.range == row.range;
  };
  if (std::ranges::any_of(rows_, is_it)) return;
  static_cast<void>(rows_.push_back(std::move(row)));
  used_.store(static_cast<u32>(rows_.size()), sync::kRelease);
}

// ---- fork

// The child has what the parent had, but what was kept from it (madvise) and what other threads
// were in the middle of: it holds a device for as long as it has mapped it itself. Context: after
// all that lower rooms do in a child.
void Mappings::after_fork_child() {
  std::construct_at(&lock_, sync::Rank::kLeaf);
  std::construct_at(&changing_, sync::Rank::kVm);
  if (editing_.load() != 0) {
    // Half of a table: what it says is nobody's, until this process ends.
    std::construct_at(&rows_, "abi_vfio.mappings");
    std::construct_at(&left_, "abi_vfio.mappings");
    used_.store(0);
    editing_.store(0);
  }
  {
    const sync::MutexGuard guard(lock_);
    putting_ = 0;
  }
  drop_left();
  if (!used()) return;
  {
    const sync::MutexGuard guard(lock_);
    for (Mapping& row : rows_) {
      row.going = 0;
      row.unsure = true;
    }
  }
  look_again();
  const sync::MutexGuard changing(changing_);
  // Where there is no memory the devices stay open until the child ends.
  if (used()) static_cast<void>(subscribe());
}

}  // namespace stagetwo::abi_vfio
