// SPDX-License-Identifier: Apache-2.0
#include "mirror/mirror.h"

#include <algorithm>

#include "base/guard.h"
#include "base/sys.h"
#include "base/trace.h"
#include "host/access.h"
#include "host/faultin.h"
#include "host/process_map.h"
#include "sync/futex.h"
#include "sync/try_mutex.h"

// The fault against the bell, closed by the lock (the first of the three ways of
// docs/decisions/0003-closing-the-fault-gap.md):
//
//   device (fault)                        | thread that changes the address space
//   s = gate.snapshot                     |
//   asks the process for the page         | start: gate.begin
//                                         |        lock; erase the range; unlock
//   lock; begun in my range, or sequence  | the system call
//   is not s: again                       | end: gate.end
//   store; unlock                         |
//
// A store before the erasing is erased; one after it sees the gate.

namespace stagetwo::mirror {
namespace {

// As long as the kernel's driver tries.
constexpr u64 kFaultTimeoutNs = 1'000'000'000;
// Copied in one hold of the lock, so that the bell does not wait for a whole transfer.
constexpr u64 kPagesPerHold = 16;

u64 number_of(Hva at) {
  return at.raw() >> kPageShift;
}

}  // namespace

Result<Box<Mirror>> Mirror::open(unsigned unit) {
  Device* device = ST_TRY(Device::get(unit));
  Mirror* const made = ST_TRY(make<Mirror>("mirror.mirror", device));
  auto mirror = Box<Mirror>::adopt(made);
  ST_TRY(host::register_notifier(mirror.get()));
  const sync::MutexGuard guard(device->lock);
  mirror->next_ = device->mirrors_;
  device->mirrors_ = mirror.get();
  return mirror;
}

Mirror::~Mirror() {
  host::unregister_notifier(this);
  {
    const sync::MutexGuard guard(device_->lock);
    Mirror** link = &device_->mirrors_;
    while (*link != nullptr && *link != this) link = &(*link)->next_;
    if (*link == this) *link = next_;
  }
  device_->evict(true);
}

// ---- the bell -------------------------------------------------------------------------------

bool Mirror::invalidate_range_start(const host::InvalidateEvent& event) {
  trace::enter_room(trace::Room::mirror, 5, event.range.start().raw());
  gate_.begin(number_of(event.range.start()), number_of(event.range.end() - 1));
  device_->begin_loss(event);
  const sync::MutexGuard guard(device_->lock);
  forget_range(event);
  return true;
}

// The lock is held while a page is copied, which may wait for the kernel to bring it in.
host::TryStart Mirror::try_invalidate_range_start(const host::InvalidateEvent& event)
    TA_NO_ANALYSIS {
  const sync::TryMutexGuard guard(device_->lock);
  if (!guard.locked()) return host::TryStart::kWouldWait;
  gate_.begin(number_of(event.range.start()), number_of(event.range.end() - 1));
  forget_range(event);
  return host::TryStart::kEngaged;
}

void Mirror::release() {
  const sync::MutexGuard guard(device_->lock);
  erase_entries(host::kWholeAddressSpace);
}

void Mirror::forget_range(const host::InvalidateEvent& event) {
  if (event.owner != this) return erase_entries(event.range);
  for_entries(event.range, [](Hva, Entry& entry) { entry.suspended = !entry.on_device; });
}

void Mirror::invalidate_range_end(const host::InvalidateEvent& event) {
  if (event.owner == this) {
    const sync::MutexGuard guard(device_->lock);
    for_entries(event.range, [](Hva, Entry& entry) { entry.suspended = false; });
  }
  device_->end_loss(event);
  gate_.end();
}

// Erasing moves other cells, so what is to go is collected first.
void Mirror::erase_entries(HvaRange range) {
  constexpr unsigned kBatch = 256;
  u64 pages[kBatch];
  unsigned count = kBatch;
  while (count == kBatch) {
    count = 0;
    for_entries(range, [&](Hva at, const Entry&) {
      if (count < kBatch) pages[count++] = number_of(at);
    });
    for (unsigned i = 0; i < count; ++i) entries_.erase(pages[i]);
  }
}

// ---- the fault ------------------------------------------------------------------------------

bool Mirror::changed(sync::InvalidationGate::Snapshot seen, Hva first, unsigned count) const {
  for (unsigned i = 0; i < count; ++i) {
    if (gate_.must_retry(seen, number_of(first) + i)) return true;
  }
  return false;
}

// Pre: its mapping may be read.
Result<Mirror::Entry> Mirror::look_up_page(Hva at, bool write, bool may_write) {
  if (!device_->coherent()) {
    const sync::MutexGuard guard(device_->lock);
    const DevicePage* here = device_->find(at);
    if (here != nullptr && !here->exclusive) {
      // The kernel hands out its own device's page without looking at what was asked for, and the
      // driver then refuses.
      const bool writable = here->writable && may_write;
      if (write && !writable) return refuse(EFAULT);
      return Entry{here->place, writable ? Right::kWrite : Right::kRead, true, false};
    }
  }
  if (write && !may_write) return refuse(EPERM);
  if (!host::faultin(at, write ? Access::kWrite : Access::kRead)) return refuse(EFAULT);
  return Entry{at, write ? Right::kWrite : Right::kRead, false, false};
}

Result<void> Mirror::look_up(Hva first, unsigned count, bool write, Found* out) {
  host::Mapping mapping;
  for (unsigned i = 0; i < count; ++i) {
    const Hva at = first + u64{i} * kPageSize;
    if (!mapping.range.contains(at)) mapping = ST_TRY(host::mapping_at(at));
    if (!mapping.prot.read) return refuse(EFAULT);
    out->entries[i] = ST_TRY(look_up_page(at, write, mapping.prot.write));
  }
  if (write) return {};
  // A page that could be written as it is need not be asked for again.
  host::PageState states[kMaxPages];
  ST_TRY(host::page_states(first, count, states));
  for (unsigned i = 0; i < count; ++i) {
    const Hva at = first + u64{i} * kPageSize;
    if (out->entries[i].on_device) continue;
    if (!mapping.range.contains(at)) mapping = ST_TRY(host::mapping_at(at));
    if (states[i].writable(mapping)) out->entries[i].right = Right::kWrite;
  }
  return {};
}

// False: it has changed meanwhile.
Result<bool> Mirror::store_found(sync::InvalidationGate::Snapshot seen, Hva first, unsigned count,
                                 const Found& found) {
  const sync::MutexGuard guard(device_->lock);
  if (ST_GUARD(mirror_gate, changed(seen, first, count))) return false;
  for (unsigned i = 0; i < count; ++i) {
    if (!found.entries[i].on_device) continue;
    const DevicePage* here = device_->find(first + u64{i} * kPageSize);
    if (here == nullptr || here->place != found.entries[i].at) return false;
  }
  ST_TRY(entries_.reserve(entries_.size() + count));
  for (unsigned i = 0; i < count; ++i) {
    ST_TRY(entries_.put(number_of(first) + i, found.entries[i]));
  }
  return true;
}

Result<void> Mirror::fault_chunk(Hva first, unsigned count, bool write) {
  const u64 end = sys::monotonic_ns() + kFaultTimeoutNs;
  Found found;
  while (sys::monotonic_ns() < end) {
    const auto seen = gate_.snapshot();
    if (changed(seen, first, count)) {
      sync::yield_thread();
      continue;
    }
    ST_TRY(look_up(first, count, write, &found));
    if (ST_TRY(store_found(seen, first, count, found))) return {};
  }
  return refuse(EBUSY);
}

Result<void> Mirror::fault(Hva first, u64 pages, bool write) {
  trace::enter_room(trace::Room::mirror, 1, first.raw());
  for (u64 done = 0; done < pages; done += kMaxPages) {
    const auto count = static_cast<unsigned>(std::min<u64>(pages - done, kMaxPages));
    ST_TRY(fault_chunk(first + done * kPageSize, count, write));
  }
  return {};
}

// ---- transfers ------------------------------------------------------------------------------

Mirror::Entry* Mirror::usable(Hva at, Access access) {
  Entry* entry = entries_.find(number_of(at));
  if (entry == nullptr || entry->suspended) return nullptr;
  return access == Access::kRead || entry->right == Right::kWrite ? entry : nullptr;
}

// Copies until the end or the first page without a usable entry: ENOENT.
template <typename Copy>
Result<void> Mirror::transfer(Hva first, u64 pages, Access access, Transfer* done, Copy&& copy) {
  while (done->pages < pages) {
    const sync::MutexGuard guard(device_->lock);
    const u64 hold_end = std::min(pages, done->pages + kPagesPerHold);
    for (; done->pages < hold_end; ++done->pages) {
      const Hva at = first + done->pages * kPageSize;
      const Entry* entry = usable(at, access);
      if (entry == nullptr) return refuse(ENOENT);
      if (copy(entry->at, done->pages * kPageSize)) continue;
      // Gone without a word (libc's own munmap): the next fault says what it is now.
      entries_.erase(number_of(at));
      return refuse(ENOENT);
    }
  }
  return {};
}

Result<void> Mirror::read_mapped(Hva first, u64 pages, u8* bounce, Transfer* done) {
  return transfer(first, pages, Access::kRead, done, [&](Hva from, u64 offset) {
    return host::copy_from(bounce + offset, from, kPageSize) == kPageSize;
  });
}

Result<void> Mirror::read(Hva first, u64 pages, u8* bounce, Transfer* done) {
  for (;;) {
    const auto copied = read_mapped(first, pages, bounce, done);
    if (copied || to_int(copied.error()) != ENOENT) return copied;
    ST_TRY(fault(first + done->pages * kPageSize, pages - done->pages, false));
    ++done->faults;
  }
}

Result<void> Mirror::write(Hva first, u64 pages, const u8* bounce, Transfer* done) {
  for (;;) {
    const auto copied = transfer(first, pages, Access::kWrite, done, [&](Hva to, u64 offset) {
      return host::copy_to(to, bounce + offset, kPageSize) == kPageSize;
    });
    if (copied || to_int(copied.error()) != ENOENT) return copied;
    ST_TRY(fault(first + done->pages * kPageSize, pages - done->pages, true));
    ++done->faults;
  }
}

}  // namespace stagetwo::mirror
