// SPDX-License-Identifier: Apache-2.0
// Pages between the process and the device. The page itself is moved by host::take_away; what is
// here is which pages, and what the mirror's table says afterwards. kernel file: lib/test_hmm.c.

#include <algorithm>

#include "base/guard.h"
#include "base/own_memory.h"
#include "base/sys.h"
#include "base/trace.h"
#include "host/faultin.h"
#include "host/process_map.h"
#include "mirror/mirror.h"

namespace stagetwo::mirror {
namespace {

// As long as a fault tries (mirror.cc).
constexpr u64 kMapTimeoutNs = 1'000'000'000;

u64 number_of(Hva at) {
  return at.raw() >> kPageShift;
}

}  // namespace

// Enters what is on the device, as a fault would: the mapping may have lost its rights since the
// pages were taken. A page that a touch has brought back meanwhile has no entry.
Result<void> Mirror::map_taken(HvaRange range, bool exclusive, u64* mapped) {
  for (Hva at = range.start(); at < range.end();) {
    const unsigned count = chunk_at(at, (range.end() - at) / kPageSize);
    *mapped += ST_TRY(map_taken_chunk(at, count, exclusive));
    at += u64{count} * kPageSize;
  }
  return {};
}

Result<unsigned> Mirror::map_taken_chunk(Hva first, unsigned count, bool exclusive) {
  const u64 end = sys::monotonic_ns() + kMapTimeoutNs;
  const auto span = span_of(first);
  if (!span && to_int(span.error()) == EFAULT) return 0u;  // unmapped meanwhile
  if (!span) return refuse(span.error());
  while (sys::monotonic_ns() < end) {
    const u64 seen = (*span)->read_begin();
    Prot rights[kMaxPages];
    host::Mapping mapping;
    for (unsigned i = 0; i < count; ++i) {
      const Hva at = first + u64{i} * kPageSize;
      if (!mapping.range.contains(at)) mapping = host::mapping_at(at).value_or(host::Mapping{});
      rights[i] = mapping.range.contains(at) ? mapping.prot : Prot{};
    }
    const sync::MutexGuard guard(device_->lock);
    if (ST_GUARD(mirror_gate, (*span)->read_retry(seen))) continue;
    return enter_taken(first, count, exclusive, rights);
  }
  return 0u;  // they are on the device all the same: the next fault enters them
}

Result<unsigned> Mirror::enter_taken(Hva first, unsigned count, bool exclusive,
                                     const Prot* rights) {
  unsigned mapped = 0;
  for (unsigned i = 0; i < count; ++i) {
    const Hva at = first + u64{i} * kPageSize;
    const DevicePage* here = device_->find(at);
    if (here == nullptr || here->exclusive != exclusive || !rights[i].read) continue;
    Entry entry;
    entry.at = here->place;
    entry.on_device = true;
    const bool writable = here->writable && rights[i].write;
    entry.right = exclusive ? Right::kExclusive : writable ? Right::kWrite : Right::kRead;
    ST_TRY(entries_.put(number_of(at), entry));
    ++mapped;
  }
  return mapped;
}

// Listens to every address of the range: what becomes of a page that moves is noticed from now on.
Result<void> Mirror::watch(HvaRange range) {
  for (Hva at = range.start(); at < range.end();) {
    Span* const span = ST_TRY(span_of(at));
    static_cast<void>(span->read_begin());  // and no change is under way that may have missed it
    at += Span::pages_from(at) * kPageSize;
  }
  return {};
}

// Enters what is resident of the range, as a fault would, but asks for nothing else. A page that
// changes meanwhile has no entry.
Result<void> Mirror::map_resident(HvaRange range) {
  for (Hva at = range.start(); at < range.end();) {
    const unsigned most = chunk_at(at, (range.end() - at) / kPageSize);
    unsigned count = 0;
    while (count < most && device_->is_resident(at + u64{count} * kPageSize)) ++count;
    if (count != 0) {
      const auto mapped = fault_chunk(at, count, false);
      if (!mapped && to_int(mapped.error()) == ENOMEM) return mapped;
    }
    at += u64{std::max(count, 1u)} * kPageSize;
  }
  return {};
}

void Mirror::set_file(u64 device, u64 inode) {
  const sync::MutexGuard guard(device_->lock);
  file_device_ = device;
  file_inode_ = inode;
}

namespace {

// Analogue: the checks of the driver and of migrate_vma_setup(). Failure: EINVAL.
Result<host::Mapping> migratable_at(Hva at) {
  const auto mapping = host::mapping_at(at);
  if (!mapping || !mapping->prot.read || mapping->page_size != kPageSize) return refuse(EINVAL);
  if (own_memory_in(at.raw(), at.raw() + kPageSize).end != 0) return refuse(EINVAL);
  const bool is_the_kernels = !mapping->prot.write && host::is_special(at);
  if (mapping->file_backed ? Device::is_a_devices(*mapping) : is_the_kernels) {
    return refuse(EINVAL);
  }
  return *mapping;
}

// Calls fn(piece) for each mapping of the range, up to the first that does not migrate.
template <typename F>
Result<void> for_mappings(HvaRange range, F&& fn) {
  for (Hva at = range.start(); at < range.end();) {
    const host::Mapping mapping = ST_TRY(migratable_at(at));
    const Hva end = std::min(range.end(), mapping.range.end());
    ST_TRY(fn(HvaRange(at, end - at)));
    at = end;
  }
  return {};
}

}  // namespace

Result<void> Mirror::migrate_to_device(HvaRange range) {
  trace::enter_room(trace::Room::mirror, 2, range.start().raw());
  left_fork();
  return for_mappings(range, [&](HvaRange piece) -> Result<void> {
    if (device_->coherent()) ST_TRY(watch(piece));
    const auto taken = host::take_away(piece, &device_->migrated, device_, host::Which::kAnonymous);
    u64 mapped = 0;
    if (device_->coherent()) {
      device_->put_back(piece);
      ST_TRY(map_resident(piece));
    } else {
      ST_TRY(map_taken(piece, false, &mapped));
    }
    if (!taken) return refuse(taken.error());
    return {};
  });
}

Result<u64> Mirror::migrate_to_system(HvaRange range) {
  u64 moved = 0;
  ST_TRY(for_mappings(range, [&](HvaRange piece) -> Result<void> {
    moved += send_home(piece);
    return {};
  }));
  return moved;
}

u64 Mirror::send_home(HvaRange piece) {
  if (device_->coherent()) return device_->send_home(piece);
  u64 moved = 0;
  for (Hva at = piece.start(); at < piece.end(); at += kPageSize) {
    bool here = false;
    {
      const sync::MutexGuard guard(device_->lock);
      const DevicePage* page = device_->find(at);
      here = page != nullptr && !page->exclusive;
    }
    if (here && host::bring_back(at) == host::BringBack::kBack) ++moved;
  }
  return moved;
}

Result<void> Mirror::make_exclusive(HvaRange range) {
  for (Hva at = range.start(); at < range.end();) {
    const u64 left = (range.end() - at) / kPageSize;
    const HvaRange chunk(at, std::min<u64>(left, kMaxPages) * kPageSize);
    for (Hva page = at; page < chunk.end(); page += kPageSize) {
      if (!host::faultin(page, Access::kWrite)) return refuse(EBUSY);
    }
    u64 mapped = 0;
    if (host::take_away(chunk, &device_->exclusive, device_, host::Which::kPresent)) {
      ST_TRY(map_taken(chunk, true, &mapped));
    }
    // All or nothing of a chunk, as the kernel's driver maps them.
    if (mapped != chunk.size() / kPageSize) {
      host::bring_back_range(chunk);
      return refuse(EBUSY);
    }
    at = chunk.end();
  }
  return {};
}

bool Mirror::has_exclusive(HvaRange range) {
  const sync::MutexGuard guard(device_->lock);
  bool found = false;
  for_entries(range,
              [&](Hva, const Entry& entry) { found = found || entry.right == Right::kExclusive; });
  return found;
}

}  // namespace stagetwo::mirror
