// SPDX-License-Identifier: Apache-2.0
// Memory of a device that the processor reaches: pages that are resident on it. kernel file:
// lib/test_hmm.c with MEMORY_DEVICE_COHERENT, mm/migrate_device.c.
//
// A page that becomes resident, against an munmap of it:
//
//   migrator or toucher (bring_back)        | munmap
//   record: filling                         |
//   the page is mapped from the arena       | bell: lock; the span's number; forget; unlock
//   lock; that change is under way: not     |
//   resident; unlock                        | waits while the record is filling
//   record: gone                            | the system call; end
//
// The change waits for the record before it does anything, so whoever finishes the record after its
// start finds it under way; who finished before it is forgotten by it. The migrator listens to the
// address before the page begins to move.

#include <algorithm>

#include "base/guard.h"
#include "host/fork_marks.h"
#include "host/page_owner.h"
#include "mirror/mirror.h"

namespace stagetwo::mirror {
namespace {

constexpr unsigned kBatch = 256;

// Forks under way. Marked before the devices are looked through, read after a device exists: both
// sequentially consistent, so that a device made meanwhile sees it.
constinit host::ForkMarks forks;

u64 number_of(Hva at) {
  return at.raw() >> kPageShift;
}

}  // namespace

bool Device::is_resident(Hva at) {
  if (!coherent()) return false;
  const sync::MutexGuard guard(lock);
  const Resident* resident = residents_.find(number_of(at));
  return resident != nullptr && *resident == Resident::kYes;
}

bool Device::is_coming(Hva at) {
  const sync::MutexGuard guard(lock);
  const Resident* resident = residents_.find(number_of(at));
  return resident != nullptr && *resident == Resident::kComing;
}

Device::Residence Device::residence_of(Hva at) {
  for (unsigned unit = kFirstCoherent; unit < kDevices; ++unit) {
    Device* device = peek(unit);
    if (device == nullptr) continue;
    if (device->is_resident(at)) return {device, false};
    if (device->is_coming(at)) return {device, true};
  }
  return {};
}

// Pages of another device's memory are none that migrate; those of this one are there already.
bool Device::may_take(Hva at, Purpose purpose) {
  switch (purpose) {
    case Purpose::kMigrate:
      return residence_of(at).device == nullptr;
    case Purpose::kExclusive:
      return true;
    case Purpose::kSendHome:
      return is_resident(at);
  }
  __builtin_unreachable();
}

void Device::make_resident(u64 page) {
  const sync::MutexGuard guard(lock);
  Resident* resident = residents_.find(page);
  if (resident == nullptr) return;
  if (ST_GUARD(mirror_residents, is_losing(Hva(page << kPageShift)) || forks.any())) {
    residents_.erase(page);
  } else {
    *resident = Resident::kYes;
  }
}

bool Device::is_losing(Hva at) {
  for (Mirror* mirror = mirrors_; mirror != nullptr; mirror = mirror->next_) {
    if (mirror->is_losing(at)) return true;
  }
  return false;
}

void Device::forget_resident(u64 page) {
  const sync::MutexGuard guard(lock);
  residents_.erase(page);
}

void Device::put_back(HvaRange range) {
  for (Hva at = range.start(); at < range.end(); at += kPageSize) {
    bool taken = false;
    {
      const sync::MutexGuard guard(lock);
      const DevicePage* here = find(at);
      taken = here != nullptr && !here->exclusive;
    }
    // No memory: the page stays in the arena, and the first touch asks again.
    if (taken) static_cast<void>(host::bring_back(at));
  }
}

u64 Device::send_home(HvaRange range) {
  const auto taken = host::take_away(range, &sent_home, this, host::Which::kAnonymous);
  put_back(range);
  return taken ? *taken : 0;
}

bool Device::takes_residents(const host::InvalidateEvent& event) const {
  if (!coherent()) return false;
  switch (event.kind) {
    case host::EventKind::kUnmap:
    case host::EventKind::kClear:
    case host::EventKind::kRelease:
      return true;
    case host::EventKind::kProtection:
    case host::EventKind::kProtectPage:
    case host::EventKind::kSoftDirty:
      return false;
    // Those of a device leave resident pages alone, or say themselves what becomes of them.
    case host::EventKind::kMigrate:
    case host::EventKind::kExclusive:
      for (unsigned unit = 0; unit < kDevices; ++unit) {
        if (event.owner == peek(unit) && event.owner != nullptr) return false;
      }
      return true;
  }
  __builtin_unreachable();
}

// What is on its way stays: make_resident() sees that the change is under way.
void Device::lose_residents(HvaRange range) {
  for (Hva at = range.start(); residents_.size() != 0 && at < range.end(); at += kPageSize) {
    const Resident* resident = residents_.find(number_of(at));
    if (resident != nullptr && *resident == Resident::kYes) residents_.erase(number_of(at));
  }
}

// Whoever cannot be moved becomes an ordinary page where it is: the memory is given back.
void Device::evict_residents() {
  u64 pages[kBatch];
  for (;;) {
    unsigned count = 0;
    {
      const sync::MutexGuard guard(lock);
      residents_.for_each([&](u64 page, const Resident& resident) {
        if (resident == Resident::kYes && count < kBatch) pages[count++] = page;
      });
    }
    if (count == 0) return;
    std::sort(pages, pages + count);
    for (unsigned first = 0, next = 0; first < count; first = next) {
      for (next = first + 1; next < count && pages[next] == pages[next - 1] + 1;) ++next;
      send_home(HvaRange(Hva(pages[first] << kPageShift), u64{next - first} * kPageSize));
    }
    for (unsigned i = 0; i < count; ++i) forget_resident(pages[i]);
  }
}

void Device::forget_residents() {
  const sync::MutexGuard guard(lock);
  residents_.clear();
}

// ---- the façade -----------------------------------------------------------------------------

namespace {

template <typename F>
void for_coherent(F&& fn) {
  for (unsigned unit = kFirstCoherent; unit < kDevices; ++unit) {
    if (Device* device = Device::peek(unit)) fn(*device);
  }
}

}  // namespace

u64 leave_device_memory(HvaRange range) {
  u64 moved = 0;
  for_coherent([&](Device& device) {
    for (Hva at = range.start(); at < range.end(); at += kPageSize) {
      if (device.is_resident(at)) moved += device.send_home(HvaRange(at, kPageSize));
    }
  });
  return moved;
}

// They become ordinary pages where they are: the two processes share them from now on, and neither
// can tell later whether what it has is the old page or a copy.
void before_fork() {
  forks.enter();
  for_coherent([](Device& device) { device.forget_residents(); });
}

void after_fork_parent() {
  forks.leave();
}

void left_fork() {
  forks.leave();
}

void after_fork_child() {
  forks.clear();
}

}  // namespace stagetwo::mirror
