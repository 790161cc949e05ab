// SPDX-License-Identifier: Apache-2.0
#include "mirror/mirror.h"

#include <algorithm>

#include "base/guard.h"
#include "base/sys.h"
#include "base/trace.h"
#include "host/access.h"
#include "host/faultin.h"
#include "host/process_map.h"

// The fault against the bell is closed by the lock (the first of the three ways of
// docs/decisions/0003-closing-the-fault-gap.md); the table is in mirror/span.h.

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
  const sync::MutexGuard guard(device->lock);
  mirror->next_ = device->mirrors_;
  device->mirrors_ = mirror.get();
  return mirror;
}

// Its pages go back while the bell is still heard of them.
Mirror::~Mirror() {
  device_->evict(true);
  HashMap<u64, Box<Span>> heard;
  {
    const sync::MutexGuard guard(device_->lock);
    Mirror** link = &device_->mirrors_;
    while (*link != nullptr && *link != this) link = &(*link)->next_;
    if (*link == this) *link = next_;
    heard = std::move(spans_);
  }
}

// ---- the bell -------------------------------------------------------------------------------

Result<Span*> Mirror::span_of(Hva at) {
  const u64 number = Span::number_of(at);
  {
    const sync::MutexGuard guard(device_->lock);
    if (Box<Span>* known = spans_.find(number)) return known->get();
  }
  // Addresses nothing is behind are not listened to.
  ST_TRY(host::mapping_at(at));
  const sync::MutexGuard guard(device_->lock);
  if (Box<Span>* known = spans_.find(number)) return known->get();
  ST_TRY(spans_.reserve(spans_.size() + 1));
  auto span = ST_TRY(make_box<Span>("mirror.span", this, number));
  if (!span->subscribe()) return refuse(EFAULT);
  return (*spans_.insert(number, std::move(span)))->get();  // reserved above
}

void Mirror::suspend_entries(HvaRange range, u64 sequence) {
  for_entries(range, [&](Hva, Entry& entry) {
    if (!entry.on_device) entry.suspended_by = sequence;
  });
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
      return Entry{here->place, writable ? Right::kWrite : Right::kRead, true, 0};
    }
  }
  if (write && !may_write) return refuse(EPERM);
  if (!host::faultin(at, write ? Access::kWrite : Access::kRead)) return refuse(EFAULT);
  return Entry{at, write ? Right::kWrite : Right::kRead, false, 0};
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
Result<bool> Mirror::store_found(const Span& span, u64 seen, Hva first, unsigned count,
                                 const Found& found) {
  const sync::MutexGuard guard(device_->lock);
  if (ST_GUARD(mirror_gate, span.read_retry(seen))) return false;
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

// Pre: of one span.
Result<void> Mirror::fault_chunk(Hva first, unsigned count, bool write) {
  const u64 end = sys::monotonic_ns() + kFaultTimeoutNs;
  Span* const span = ST_TRY(span_of(first));
  Found found;
  while (sys::monotonic_ns() < end) {
    const u64 seen = span->read_begin();
    ST_TRY(look_up(first, count, write, &found));
    if (ST_TRY(store_found(*span, seen, first, count, found))) return {};
  }
  return refuse(EBUSY);
}

unsigned Mirror::chunk_at(Hva at, u64 pages) {
  return static_cast<unsigned>(std::min({pages, Span::pages_from(at), u64{kMaxPages}}));
}

Result<void> Mirror::fault(Hva first, u64 pages, bool write) {
  trace::enter_room(trace::Room::mirror, 1, first.raw());
  for (u64 done = 0; done < pages;) {
    const Hva at = first + done * kPageSize;
    const unsigned count = chunk_at(at, pages - done);
    ST_TRY(fault_chunk(at, count, write));
    done += count;
  }
  return {};
}

// ---- transfers ------------------------------------------------------------------------------

Mirror::Entry* Mirror::usable(Hva at, Access access) {
  Entry* entry = entries_.find(number_of(at));
  if (entry == nullptr || host::IntervalNotifier::is_under_way(entry->suspended_by)) return nullptr;
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
