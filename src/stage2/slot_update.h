// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a change of memory slots is asked with, what it needs of the world around the slots, and
// what decides it. The change itself is memslots.h's.

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "mem/guest_memfd.h"
#include "stage2/slot.h"

namespace stagetwo::stage2 {

inline constexpr u32 kUserSlots = 32764;  // ids 0..32763
inline constexpr u32 kSlotsPerSpace = 32767;
inline constexpr u64 kMaxSlotPages = (u64{1} << 31) - 1;
inline constexpr u32 kMaxAddressSpaces = 2;

// A cached "no slot" carries this many bits of the number of the set it was found in.
inline constexpr unsigned kMmioGenerationBits = 19;
inline constexpr u64 kMmioGenerationMask = (u64{1} << kMmioGenerationBits) - 1;
// In a generation: an update is under way. Such a number matches nothing.
inline constexpr u64 kUpdateInProgress = u64{1} << 63;

// What a KVM_SET_USER_MEMORY_REGION(2) asks.
struct Region {
  u32 slot = 0;  // address space in bits 16-31, id in bits 0-15
  u32 flags = 0;
  u64 gpa = 0;
  u64 size = 0;
  u64 hva = 0;
  u64 memfd_offset = 0;
  // The guest_memfd it names, found and held by the caller; null: file_error says why (EBADF,
  // EINVAL), and nobody asks unless everything else is right.
  mem::GuestMemfd* file = nullptr;
  int file_error = EBADF;
  bool file_only = false;      // every fault is served from it, shared ones too
  bool first_version = false;  // the ioctl without the 2
};

// Ties a slot to its guest_memfd. A VM without one refuses the flag.
class MemfdBinder {
 public:
  // Post: slot->file is set. Failure: EINVAL as in line 21, ENOMEM.
  virtual Result<void> bind(Slot* slot, const Region& region) = 0;
  // Pre: nobody uses the slot.
  virtual void unbind(Slot* slot) = 0;

 protected:
  ~MemfdBinder() = default;
};

// What the VM's type and the chosen ABI decide.
struct SlotPolicy {
  u32 address_spaces = 1;
  bool readonly_slots = true;
  u64 max_gfn = (u64{1} << (52 - kPageShift)) - 1;
  bool guest_memfd = false;       // slots may have one
  MemfdBinder* binder = nullptr;  // set by whoever owns the slots, if so
  bool private_memory = false;    // frames have attributes
  bool write_tracked = false;     // an external write-tracker is attached: MOVE is refused
};

// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
struct DirtyProtect {
  bool manual = false;
  bool initially_set = false;
};

// The world around the slots, as far as an update changes it.
class SlotUpdateHost {
 public:
  // Translations of the range may not be installed from here on...
  virtual void close_range(HvaRange range) = 0;
  // ...those of a slot that moves, or goes, are taken out of the tables: it is INVALID by now...
  virtual void zap_slot(const Slot& slot, bool goes) = 0;
  // ...and none made before is in use after this...
  virtual void flush_and_wait() = 0;
  // ...until here.
  virtual void open_range(HvaRange range) = 0;
  // The update is over but for the number: what was taken out is given back.
  virtual void slots_changed() = 0;
  // Write tracking of some frames begins: their entries go, as zap_slot()'s.
  virtual void zap_frames(u32 address_space, GfnRange frames) = 0;
  // Pages were taken out of the log: bit n of masks[i] is page first_page + 64 i + n of the slot.
  // Stores to them must be marked again, after the flush that follows. `split`: large entries were
  // left writable when logging began. Pre: the pages are in the slot, which lives.
  virtual void protect_pages(const Slot& slot, u64 first_page, const u64* masks, u64 count,
                             bool split) = 0;
  // `fresh` has taken the place of `old`, which differs in kLogDirtyPages; both live until this
  // returns. Between close_range() and flush_and_wait(). `all_marked`: every page is in the log
  // already, so nothing needs protection before it is taken out.
  virtual void logging_changed(const Slot& old, const Slot& fresh, bool all_marked) = 0;
  // The next number's low kMmioGenerationBits are those of the first: cached "no slot" answers of
  // old numbers would count again. Nothing counts until this returns.
  virtual void generation_wraps() = 0;

 protected:
  ~SlotUpdateHost() = default;
};

// Which line of the check order decided; 0: none, the call proceeds.
struct Verdict {
  u8 line = 0;
  int error = 0;
};

enum class ChangeKind : u8 { kNone, kCreate, kDelete, kMove, kFlags };

}  // namespace stagetwo::stage2
