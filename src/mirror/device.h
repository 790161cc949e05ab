// SPDX-License-Identifier: Apache-2.0
#pragma once

// One device with memory of its own: which pages of the process are on it, and where. Linux
// analogue: struct dmirror_device with its dev_pagemap (kernel file: lib/test_hmm.c).
//
//   units 0, 1  device-private: the processor cannot reach it. A page here is an absent page of
//               `host`, so whoever touches it brings it back. The memory is an arena of this
//               process that a child of fork does not have.
//   units 2, 3  device-coherent: the processor reaches it. A page moves into the arena as above and
//               is mapped from there at once: it is `resident`, the process uses it in place, and
//               nobody's touch brings it home (docs/decisions/0016-device-coherent-memory.md).
//
// Invariants: I1  a page is on at most one device, either migrated or exclusive; a resident page
//                 may be exclusive as well, and stays resident.
//             I2  a mirror entry that leads to the arena exists only while its page is here and
//                 settled; it is erased before the page leaves.
//             I3  a page is resident only while nothing that changes what is behind its address is
//                 under way: a span of the mirror that moved it covers it, and such a change leaves
//                 its number there (Span::loses), then makes the page forgotten.
// Locking: `lock` (rank: secondary) is the device's and all its mirrors'. It is held for lookups
// and for copies of up to a few pages, never while a page moves and never while the process is
// asked for one.
// Lifetime: made at the first open in a process, never destroyed; a child makes its own.

#include "base/hash_map.h"
#include "base/vec.h"
#include "host/page_owner.h"
#include "host/process_map.h"
#include "sync/mutex.h"

namespace stagetwo::mirror {

class Mirror;

inline constexpr unsigned kDevices = 4;
inline constexpr unsigned kFirstCoherent = 2;
// What a coherent unit has, as the kernel's driver asks for it. A private one grows.
inline constexpr u64 kCoherentPages = (u64{256} << 20) / kPageSize;

constexpr bool is_coherent(unsigned unit) {
  return unit >= kFirstCoherent;
}

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
  // Null: nobody in this process has opened it.
  static Device* peek(unsigned unit);

  [[nodiscard]] bool coherent() const { return is_coherent(unit_); }
  // The page at `at` if it is in the arena and settled.
  DevicePage* find(Hva at) TA_REQ(lock);
  // Is it a mapping of some open device's file?
  static bool is_a_devices(const host::Mapping& mapping);
  // Brings back what is here; exclusive pages only `with_exclusive`.
  void evict(bool with_exclusive);

  // ---- resident pages (coherent.cc) ----
  [[nodiscard]] bool is_resident(Hva at);
  // On which unit the page is resident, or will be; null: none.
  struct Residence {
    Device* device = nullptr;
    bool coming = false;
  };
  static Residence residence_of(Hva at);
  // Maps what was taken of `range` where it belongs. Pre: taken by `migrated` or `sent_home`.
  void put_back(HvaRange range);
  // Back to ordinary memory; answers how many. What cannot move stays.
  u64 send_home(HvaRange range);
  // May the change take what is behind its addresses? Takes no lock.
  [[nodiscard]] bool takes_residents(const host::InvalidateEvent& event) const;
  // It does: no page of the range is resident.
  void lose_residents(HvaRange range) TA_REQ(lock);
  void forget_residents();

  // Who takes pages for the device, one for each purpose, so that take-away says which it is.
  enum class Purpose : u8 { kMigrate, kExclusive, kSendHome };
  class Taker final : public host::PageOwner {
   public:
    Taker(Device* device, Purpose purpose) : device_(device), purpose_(purpose) {}
    bool take(const host::AbsentPage& page, host::PageExit& exit) override;
    host::BringBack bring_back(const host::AbsentPage& page, host::PageEntry& entry) override;
    void discard(const host::AbsentPage& page) override;

   private:
    [[nodiscard]] bool will_reside() const;

    Device* device_;
    Purpose purpose_;
  };

  sync::Mutex lock{sync::Rank::kSecondary};
  Taker migrated{this, Purpose::kMigrate};
  Taker exclusive{this, Purpose::kExclusive};
  Taker sent_home{this, Purpose::kSendHome};

 private:
  friend class Mirror;
  Device(u32 process, unsigned unit) : process_(process), unit_(unit) {}
  template <typename T, typename... Args>
  friend Result<T*> stagetwo::make(const char* site, Args&&... args);
  template <typename T>
  friend void stagetwo::destroy(T* object);

  // kComing: the page is on its way, and not resident yet.
  enum class Resident : u8 { kComing, kYes };

  [[nodiscard]] bool is_coming(Hva at);
  [[nodiscard]] bool is_losing(Hva at) TA_REQ(lock);
  [[nodiscard]] bool may_take(Hva at, Purpose purpose);
  Result<Hva> reserve_place(u64 page, const DevicePage& fresh, bool will_reside);
  void make_resident(u64 page);
  void evict_residents();
  void forget_resident(u64 page);
  Result<void> grow() TA_REQ(lock);
  void settle(u64 page);
  void arrive(Hva at);
  void forget_entries(Hva at) TA_REQ(lock);
  void release(u64 page);

  u32 process_;
  unsigned unit_;
  HashMap<u64, DevicePage> pages_ TA_GUARDED(lock){"mirror.device_pages"};
  Vec<Hva> free_ TA_GUARDED(lock){"mirror.free_places"};  // room for every place there is
  size_t places_ TA_GUARDED(lock) = 0;
  Mirror* mirrors_ TA_GUARDED(lock) = nullptr;
  HashMap<u64, Resident> residents_ TA_GUARDED(lock){"mirror.residents"};
};

// A page that something else will hold for long (a long-term pin) leaves the devices' memory, which
// is not to be held. Answers how many moved.
u64 leave_device_memory(HvaRange range);
// Around a fork: nothing is resident during it, so that no page is shared that one of the two takes
// for the device's.
void before_fork();
void after_fork_parent();
// The calling thread is in no fork: a handler of the client's may have jumped out of one.
void left_fork();
void after_fork_child();

}  // namespace stagetwo::mirror
