// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: a device's mirror of the process's address space. Linux analogue: struct
// dmirror with hmm_range_fault(), migrate_vma_*() and make_device_exclusive_range() (kernel files:
// lib/test_hmm.c, mm/hmm.c, mm/migrate_device.c).
//
// An entry of the mirror's table leads to a page of the process (a borrow: its address, used by
// guarded accesses under the device's lock) or to a page of device memory. The fault is the
// kernel's: read the span's number, ask for the pages without a lock, take the lock, compare,
// store.
//
// Invariants: I1  an entry is used only under the device's lock, and the bell's start takes that
//                 lock: when start returns nobody uses an entry of the range.
//             I2  no entry of a range is stored between start and end (the span's number, compared
//                 under the lock). Every entry lies in a span of the mirror.
//             I3  a take-away of the device's own suspends its entries instead of erasing them;
//             what
//                 stayed where it was is an entry again at the end.
// Locking: Device::lock, see there. Errors are the kernel driver's, in its order.
// Lifetime: one an open file; it hears the bell where it has looked (mirror/span.h).

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/hash_map.h"
#include "mirror/device.h"
#include "mirror/span.h"

namespace stagetwo::mirror {

// How much of a transfer was done, and how often the device had to fault.
struct Transfer {
  u64 pages = 0;
  u64 faults = 0;
};

// What the page table of the process shows of a page.
struct PageView {
  enum class Where : u8 {
    kError,
    kNothing,
    kSystem,
    kThisDevice,    // in memory the processor cannot reach
    kResidentHere,  // in this device's memory, and mapped
    kResidentElsewhere,
  } where = Where::kError;
  bool writable = false;
  bool zero = false;
  unsigned level = 1;  // of the entry: 1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB
};

class Mirror final {
 public:
  // Failure: ENOMEM.
  static Result<Box<Mirror>> open(unsigned unit);
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;
  // Evicts the device's pages, as the kernel's driver does on every close.
  ~Mirror();

  // The file a client maps of the device: its mappings are the driver's own pages (a mixed map),
  // which do not migrate.
  void set_file(u64 device, u64 inode);

  // The device reads or writes pages of the process; the bytes are in `bounce`. Failure: EFAULT (no
  // mapping, no right to read), EPERM (no right to write), EBUSY (a second of lost races), ENOMEM.
  Result<void> read(Hva first, u64 pages, u8* bounce, Transfer* done);
  Result<void> write(Hva first, u64 pages, const u8* bounce, Transfer* done);
  // The same without faulting. Failure: ENOENT.
  Result<void> read_mapped(Hva first, u64 pages, u8* bounce, Transfer* done);

  // Failure: EINVAL (a part is not mapped, not readable, of huge pages, or special: a driver's or
  // the kernel's own pages); what moved before stays moved. Pages that cannot migrate stay.
  Result<void> migrate_to_device(HvaRange range);
  Result<u64> migrate_to_system(HvaRange range);
  // Pages that only the device can reach, until the process touches them. Failure: EBUSY.
  Result<void> make_exclusive(HvaRange range);
  [[nodiscard]] bool has_exclusive(HvaRange range);
  // Every migrated page of the device goes back.
  void release_device() { device_->evict(false); }

  // Without faulting anything in. Pre: count <= kMaxPages. Failure: EBUSY, ENOMEM.
  static constexpr unsigned kMaxPages = 64;
  Result<void> snapshot(Hva first, unsigned count, PageView* out);

 private:
  friend class Device;
  friend class Span;
  friend struct MirrorTestAccess;
  enum class Right : u8 { kRead, kWrite, kExclusive };
  struct Entry {
    Hva at;  // of the process, or of the device's memory
    Right right = Right::kRead;
    bool on_device = false;
    u64 suspended_by = 0;  // not to be used while that change is under way
  };
  // What a fault found, before it is stored.
  struct Found {
    Entry entries[kMaxPages];
  };
  explicit Mirror(Device* device) : device_(device) {}
  template <typename T, typename... Args>
  friend Result<T*> stagetwo::make(const char* site, Args&&... args);

  // The device's lock is ours: it calls under it.
  void forget(Hva at) TA_NO_ANALYSIS { entries_.erase(at.raw() >> kPageShift); }
  // Is a change under way that may take what is behind the address?
  [[nodiscard]] bool is_losing(Hva at) TA_NO_ANALYSIS {
    const Box<Span>* span = spans_.find(Span::number_of(at));
    return span != nullptr && (*span)->loses();
  }
  // The span of an address. Failure: EFAULT (nothing is mapped there, or the process ends), ENOMEM.
  Result<Span*> span_of(Hva at);
  Entry* usable(Hva at, Access access) TA_REQ(device_ -> lock);
  Result<void> fault(Hva first, u64 pages, bool write);
  Result<void> fault_chunk(Hva first, unsigned count, bool write);
  // Of `pages` from `at`, how many one step of a fault takes: no more than their span has.
  static unsigned chunk_at(Hva at, u64 pages);
  Result<void> look_up(Hva first, unsigned count, bool write, Found* out);
  Result<Entry> look_up_page(Hva at, bool write, bool may_write);
  Result<bool> store_found(const Span& span, u64 seen, Hva first, unsigned count,
                           const Found& found);
  template <typename Copy>
  Result<void> transfer(Hva first, u64 pages, Access access, Transfer* done, Copy&& copy);
  Result<void> map_taken(HvaRange range, bool exclusive, u64* mapped);
  Result<unsigned> map_taken_chunk(Hva first, unsigned count, bool exclusive);
  Result<unsigned> enter_taken(Hva first, unsigned count, bool exclusive, const Prot* rights)
      TA_REQ(device_ -> lock);
  Result<void> watch(HvaRange range);
  Result<void> map_resident(HvaRange range);
  u64 send_home(HvaRange piece);
  Result<void> view_chunk(Hva first, unsigned count, PageView* out);
  template <typename F>
  void for_entries(HvaRange range, F&& fn) TA_REQ(device_ -> lock);
  void erase_entries(HvaRange range) TA_REQ(device_ -> lock);
  void suspend_entries(HvaRange range, u64 sequence) TA_REQ(device_ -> lock);

  Device* device_;
  Mirror* next_ = nullptr;  // of the device's mirrors; under its lock
  u64 file_device_ = 0;     // under the device's lock
  u64 file_inode_ = 0;
  HashMap<u64, Box<Span>> spans_ TA_GUARDED(device_->lock){"mirror.spans"};
  HashMap<u64, Entry> entries_ TA_GUARDED(device_->lock){"mirror.entries"};
};

// Calls fn(address, entry) for what the table has in the range. fn may not erase.
template <typename F>
void Mirror::for_entries(HvaRange range, F&& fn) {
  if (range.size() / kPageSize <= entries_.size()) {
    for (Hva at = range.start(); at < range.end(); at += kPageSize) {
      if (Entry* entry = entries_.find(at.raw() >> kPageShift)) fn(at, *entry);
    }
    return;
  }
  entries_.for_each([&](u64 page, Entry& entry) {
    const Hva at(page << kPageShift);
    if (range.contains(at)) fn(at, entry);
  });
}

}  // namespace stagetwo::mirror
