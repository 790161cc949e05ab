// SPDX-License-Identifier: Apache-2.0
#include "mirror/device.h"

#include <sys/mman.h>

#include "base/process_page.h"
#include "base/sys.h"
#include "mirror/mirror.h"
#include "sync/atomic.h"

// A page on its way back, against the device that reads it:
//
//   toucher (bring_back)                     | device (read, write)
//   lock; settled = false; erase the entries;| lock; entry: copies from the place; unlock
//   unlock                                   | lock; no entry: asks for the page, waits
//   the page moves back                      |
//   lock; forget the page; free the place    | gets it from the process
//
// The device copies under the lock, so no copy is under way once the entries are gone.

namespace stagetwo::mirror {
namespace {

constexpr size_t kGrowPages = 4096;

constinit sync::Atomic<Device*> devices[kDevices];

u64 number_of(Hva at) {
  return at.raw() >> kPageShift;
}

// Pre: a place of an arena.
void make_present(Hva place) {
  auto* byte = reinterpret_cast<volatile u8*>(place.raw());
  *byte = *byte;
}

}  // namespace

Result<Device*> Device::get(unsigned unit) {
  Device* seen = devices[unit].load(sync::kAcquire);
  if (seen != nullptr && seen->process_ == process_stamp()) return seen;
  Device* fresh = ST_TRY(make<Device>("mirror.device", process_stamp(), unit));
  if (devices[unit].compare_exchange(seen, fresh)) return fresh;
  destroy(fresh);  // another thread was faster
  return seen;
}

Device* Device::peek(unsigned unit) {
  Device* seen = devices[unit].load();
  return seen != nullptr && seen->process_ == process_stamp() ? seen : nullptr;
}

DevicePage* Device::find(Hva at) {
  DevicePage* page = pages_.find(number_of(at));
  return page != nullptr && page->settled ? page : nullptr;
}

Result<void> Device::grow() {
  ST_TRY(free_.reserve(places_ + kGrowPages));
  void* pages = ST_TRY(map_pages(kGrowPages * kPageSize, "mirror.device_memory"));
  const Hva first(reinterpret_cast<u64>(pages));
  host::prepare_places(HvaRange(first, kGrowPages * kPageSize));
  places_ += kGrowPages;
  for (size_t i = kGrowPages; i > 0; --i) {
    static_cast<void>(free_.push_back(first + (i - 1) * kPageSize));  // reserved above
  }
  return {};
}

Result<Hva> Device::reserve_place(u64 page, const DevicePage& fresh, bool will_reside) {
  const sync::MutexGuard guard(lock);
  if (free_.size() == 0) ST_TRY(grow());
  if (will_reside) {
    if (residents_.size() >= kCoherentPages) return refuse(ENOMEM);
    ST_TRY(pages_.reserve(pages_.size() + 1));
    ST_TRY(residents_.put(page, Resident::kComing));
  }
  DevicePage* entry = ST_TRY(pages_.insert(page, fresh));
  entry->place = free_[free_.size() - 1];
  free_.pop_back();
  return entry->place;
}

void Device::settle(u64 page) {
  const sync::MutexGuard guard(lock);
  pages_.find(page)->settled = true;
}

// Entries of the process's page go: whoever followed one under the lock would wait for a touch that
// waits for the lock.
void Device::arrive(Hva at) {
  const sync::MutexGuard guard(lock);
  pages_.find(number_of(at))->settled = true;
  forget_entries(at);
}

void Device::forget_entries(Hva at) {
  for (Mirror* mirror = mirrors_; mirror != nullptr; mirror = mirror->next_) {
    mirror->forget(at);
  }
}

void Device::release(u64 page) {
  Hva place;
  {
    const sync::MutexGuard guard(lock);
    place = pages_.find(page)->place;
  }
  // A place must be empty before a page can move there. Nobody knows this one any more.
  static_cast<void>(sys::madvise(reinterpret_cast<void*>(place.raw()), kPageSize, MADV_DONTNEED));
  const sync::MutexGuard guard(lock);
  pages_.erase(page);
  static_cast<void>(free_.push_back(place));  // reserved by grow()
}

bool Device::is_a_devices(const host::Mapping& mapping) {
  for (unsigned unit = 0; unit < kDevices; ++unit) {
    Device* device = peek(unit);
    if (device == nullptr) continue;
    const sync::MutexGuard guard(device->lock);
    for (const Mirror* mirror = device->mirrors_; mirror != nullptr; mirror = mirror->next_) {
      const bool same =
          mirror->file_device_ == mapping.device && mirror->file_inode_ == mapping.inode;
      if (same && mapping.inode != 0) return true;
    }
  }
  return false;
}

void Device::evict(bool with_exclusive) {
  constexpr unsigned kBatch = 256;
  Hva pages[kBatch];
  for (;;) {
    unsigned count = 0;
    {
      const sync::MutexGuard guard(lock);
      pages_.for_each([&](u64 page, const DevicePage& here) {
        if (count < kBatch && (with_exclusive || !here.exclusive)) {
          pages[count++] = Hva(page << kPageShift);
        }
      });
    }
    if (count == 0) break;
    for (unsigned i = 0; i < count; ++i) static_cast<void>(host::bring_back(pages[i]));
  }
  evict_residents();
}

bool Device::Taker::will_reside() const {
  return purpose_ == Purpose::kMigrate && device_->coherent();
}

bool Device::Taker::take(const host::AbsentPage& page, host::PageExit& exit) {
  const u64 number = number_of(page.at);
  if (!device_->may_take(page.at, purpose_)) return false;
  DevicePage fresh;
  fresh.writable = page.writable;
  fresh.exclusive = purpose_ == Purpose::kExclusive;
  const auto place = device_->reserve_place(number, fresh, will_reside());
  if (!place) return false;
  if (exit.to(*place)) {
    if (purpose_ == Purpose::kSendHome) device_->forget_resident(number);
    device_->arrive(page.at);
    return true;
  }
  if (will_reside()) device_->forget_resident(number);
  device_->release(number);
  return false;
}

host::BringBack Device::Taker::bring_back(const host::AbsentPage& page, host::PageEntry& entry) {
  const u64 number = number_of(page.at);
  Hva place;
  {
    const sync::MutexGuard guard(device_->lock);
    DevicePage* here = device_->pages_.find(number);
    here->settled = false;
    place = here->place;
    device_->forget_entries(page.at);
  }
  // A page of zeros is none of the device's: it gets one.
  if (will_reside()) make_present(place);
  if (!entry.from(place)) {
    device_->settle(number);
    return host::BringBack::kRetry;
  }
  if (will_reside()) device_->make_resident(number);
  device_->release(number);
  return host::BringBack::kBack;
}

void Device::Taker::discard(const host::AbsentPage& page) {
  {
    const sync::MutexGuard guard(device_->lock);
    device_->pages_.find(number_of(page.at))->settled = false;
    device_->forget_entries(page.at);
  }
  if (will_reside()) device_->forget_resident(number_of(page.at));
  device_->release(number_of(page.at));
}

}  // namespace stagetwo::mirror
