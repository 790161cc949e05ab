// SPDX-License-Identifier: Apache-2.0
#pragma once

// One device with memory of its own that the processor cannot reach: which pages of the process are
// on it, and where. Linux analogue: struct dmirror_device with its dev_pagemap (kernel file:
// lib/test_hmm.c). Differs: a page on the device is an absent page of `host`, so whoever touches it
// brings it back; the memory behind it is an arena of this process that a child of fork does not
// have.
//
// Invariants: I1  a page is on at most one device, either migrated (private) or exclusive.
//             I2  a mirror entry that leads to device memory exists only while its page is here and
//                 settled; it is erased before the page leaves.
// Locking: `lock` (rank: secondary) is the device's and all its mirrors'. It is held for lookups
// and for copies of up to a few pages, never while a page moves and never while the process is
// asked for one.
// Lifetime: made at the first open in a process, never destroyed; a child makes its own.

#include "base/hash_map.h"
#include "base/vec.h"
#include "host/page_owner.h"
#include "sync/mutex.h"

namespace stagetwo::mirror {

class Mirror;

inline constexpr unsigned kDevices = 2;

// A page of the process that is with the device.
struct DevicePage {
  Hva place;
  bool writable = false;
  bool exclusive = false;
  bool settled = false;  // false: on its way here or back
};

class Device {
 public:
  // Failure: ENOMEM.
  static Result<Device*> get(unsigned unit);

  // The page at `at` if it is here and settled. Under lock.
  DevicePage* find(Hva at) TA_REQ(lock);
  // Brings back what is here; exclusive pages only `with_exclusive`.
  void evict(bool with_exclusive);

  // Who takes pages for the device, one for each kind, so that take-away says which it is.
  class Taker final : public host::PageOwner {
   public:
    Taker(Device* device, bool exclusive) : device_(device), exclusive_(exclusive) {}
    bool take(const host::AbsentPage& page, host::PageExit& exit) override;
    host::BringBack bring_back(const host::AbsentPage& page, host::PageEntry& entry) override;
    void discard(const host::AbsentPage& page) override;

   private:
    Device* device_;
    bool exclusive_;
  };

  sync::Mutex lock{sync::Rank::kSecondary};
  Taker migrated{this, false};
  Taker exclusive{this, true};

 private:
  friend class Mirror;
  explicit Device(u32 process) : process_(process) {}
  template <typename T, typename... Args>
  friend Result<T*> stagetwo::make(const char* site, Args&&... args);
  template <typename T>
  friend void stagetwo::destroy(T* object);

  Result<Hva> reserve_place(u64 page, const DevicePage& fresh);
  Result<void> grow() TA_REQ(lock);
  void settle(u64 page);
  void forget_entries(Hva at) TA_REQ(lock);
  void release(u64 page);
  void free_place(Hva place);

  u32 process_;
  HashMap<u64, DevicePage> pages_ TA_GUARDED(lock){"mirror.device_pages"};
  Vec<Hva> free_ TA_GUARDED(lock){"mirror.free_places"};  // room for every place there is
  size_t places_ TA_GUARDED(lock) = 0;
  Mirror* mirrors_ TA_GUARDED(lock) = nullptr;
};

}  // namespace stagetwo::mirror
