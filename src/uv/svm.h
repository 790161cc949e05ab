// SPDX-License-Identifier: Apache-2.0
#pragma once

// One secure guest as the ultravisor knows it: its life, its slots, and a record for each page.
// Not for other rooms: see ultravisor.h.
//
// I1  records lie in memory for secrets: nobody else can make an old page look new.
// I2  a page somebody asked about or works on is in a slot that stays.
// Locking: `lock` (rank leaf) protects everything here but the store.

#include "addr/addr.h"
#include "base/vec.h"
#include "mem/sealed_store.h"
#include "mem/secure_memory.h"
#include "mem/secure_pool.h"
#include "sync/mutex.h"
#include "uv/guest_table.h"
#include "uv/page_states.h"
#include "uv/turnstile.h"

namespace stagetwo::uv {

// As the ultravisor sees a guest.
enum class SvmState : u8 {
  kNone,       // no such guest
  kTransient,  // between START and DONE; it does not run
  kSecure,
  kAborting,  // contents go back in clear
  kStopped,   // a page was tampered with: nothing of it is touched any more
  kEnding,    // being forgotten
};

// What the ultravisor has asked the hypervisor about a page. kFollow: to take a page for secure
// that was unshared by force.
enum class Asked : u8 { kNothing, kIn, kOut, kShare, kUnshare, kFollow };

struct PageRecord {
  // Of a sealed page its record; of a shared one the frame's address stands in `version`, 0 if the
  // process gave it up.
  mem::SealedRecord sealed;
  u32 pool = mem::SecurePool::kNone;  // a secure page without one is zeros
  PageState state = PageState::kNormal;
  Asked asked = Asked::kNothing;
  bool busy = false;
  bool keeps = false;  // of a range that is being shared: its state was "shared" before

  [[nodiscard]] u64 frame() const { return sealed.version; }
  void set_frame(u64 address) { sealed.version = address; }
  [[nodiscard]] bool idle() const { return !busy && asked == Asked::kNothing; }
};
static_assert(sizeof(PageRecord) == 32, "0.78 % of memory at 4 KiB");

// A call of the guest's about many pages, between two of its turns: made again, it goes on.
struct CallRest {
  Call call{};
  u64 gfn = 0, count = 0;
  u64 next = 0;
  Status so_far = Status::kSuccess;
  [[nodiscard]] bool is_of(Call asked, u64 first, u64 pages) const {
    return call == asked && gfn == first && count == pages;
  }
};

// So far.
struct SvmUse {
  u64 page_ins = 0;   // opened or copied into secure memory
  u64 page_outs = 0;  // sealed
  u64 evictions = 0;  // of them, to make room
  u64 tampered = 0;   // pages refused: 0 or 1
  u64 tampered_gpa = 0;
  u64 version = 0;     // of the latest sealing
  u64 pool_pages = 0;  // that it holds now
  u64 slow = 0;        // waits for a page that took longer than kSlowNs
};

struct Svm {
  struct Slot {
    u64 id = 0;
    u64 first = 0;  // page number
    u64 pages = 0;
    bool closing = false;  // goes as soon as nobody is at its pages
    mem::SecureMemory memory;

    [[nodiscard]] PageRecord* records() const {
      return reinterpret_cast<PageRecord*>(memory.data());
    }
  };

  u32 lpid = 0;  // immutable once found
  mem::SealedStore store;

  sync::Mutex lock{sync::Rank::kLeaf};
  Turnstile turnstile;
  SvmState state TA_GUARDED(lock) = SvmState::kNone;
  bool was_secure TA_GUARDED(lock) = false;  // in this life: no way leads back to an abort
  u64 incarnation TA_GUARDED(lock) = 0;
  bool esm_rests TA_GUARDED(lock) = false;       // nobody is in UV_ESM; it is to go on
  u64 esm_next TA_GUARDED(lock) = 0;             // from this page on
  u64 esm_behind TA_GUARDED(lock) = kAllPages;   // slots came meanwhile, from this page on
  bool esm_loaded TA_GUARDED(lock) = false;      // a slot that comes now is zeros
  CallRest rest TA_GUARDED(lock);                // the latest one
  GuestTable* table TA_GUARDED(lock) = nullptr;  // null: its vCPUs have no translations
  u32 runs TA_GUARDED(lock) = 0;                 // operations under way, those of its life aside
  Vec<Slot> slots TA_GUARDED(lock){"uv.svm_slots"};
  SvmUse use TA_GUARDED(lock);
  // The search for pages of the pool that could leave, among its own and among others': where it
  // has come to (under the pool's lock: two vCPUs that search never look at one page), and how many
  // in a row could not.
  static constexpr u32 kNobody = ~u32{0};  // there were none to ask
  u32 hands[2] = {};
  u32 refused[2] TA_GUARDED(lock) = {};

  // Of a page somebody is at.
  [[nodiscard]] PageRecord* find(u64 page) TA_REQ(lock) {
    for (Slot& slot : slots) {
      if (page - slot.first < slot.pages) return slot.records() + (page - slot.first);
    }
    return nullptr;
  }
  // Pages of the first slot that has any from `from` on: for who goes through all pages and holds
  // no lock meanwhile. Slots come and go; what is behind does not move what is in front. False:
  // none.
  [[nodiscard]] bool pages_from(u64 from, u64* first, u64* end) const TA_REQ(lock) {
    bool found = false;
    for (const Slot& slot : slots) {
      if (slot.closing || slot.first + slot.pages <= from) continue;
      if (found && slot.first >= *first) continue;
      *first = slot.first < from ? from : slot.first;
      *end = slot.first + slot.pages;
      found = true;
    }
    return found;
  }
  // For who wants to be.
  [[nodiscard]] PageRecord* find_open(u64 page) TA_REQ(lock) {
    for (Slot& slot : slots) {
      if (page - slot.first < slot.pages) {
        return slot.closing ? nullptr : slot.records() + (page - slot.first);
      }
    }
    return nullptr;
  }
};

}  // namespace stagetwo::uv
