// SPDX-License-Identifier: Apache-2.0
#pragma once

// The ultravisor: the pool of secure pages, the keys, and what each page of each secure guest
// really is. It never trusts the hypervisor for contents, only for space: what comes back for a
// page is opened and compared with a record in memory for secrets, and a page that is not what left
// ends the guest. Analogue: open-power's ultravisor; Documentation/arch/powerpc/ultravisor.rst.
//
// I1  a page's clear bytes are in the pool, in a shared frame, or nowhere. A pool page is wiped
//     before it is free.
// I2  a call in the wrong state answers its code and changes nothing.
// I3  no lock is held while the hypervisor is asked; the page is marked instead: `asked` keeps the
//     guest and other requests off it, `busy` everybody.
// I4  one failed check of one page ends the guest: a forger gets one try.
// Locking: Svm::lock (rank leaf), over records and state; never held across a message, a cipher run
// or an access of normal memory. Lifetime: the hypervisor and the real memory outlive it.
//
// Where the kernel's document and the released ultravisor differ, docs/checks-secure-guests.md says
// which is followed.

#include "base/result.h"
#include "base/vec.h"
#include "mem/secure_pool.h"
#include "sync/mutex.h"
#include "uv/calls.h"
#include "uv/page_states.h"
#include "uv/real_memory.h"
#include "uv/svm.h"

namespace stagetwo::uv {

struct UltravisorOptions {
  u64 page_bytes = 4096;
  u32 pool_pages = 0;
  mem::SecureMemory::Want memory = mem::SecureMemory::Want::kSecretOrLocked;
  bool evicts = true;  // pages out to make room
  // Pages a guest has for itself: others take none from who has no more. Of a pool that is too
  // small for all guests, an even share of it.
  u32 reserve_pages = 16;
  u32 cipher_runs = 8;  // at once
  // A guest's call changes so many, answers BUSY, and goes on where it is made again.
  u64 esm_pages = ~u64{0};
};

// What became of a guest's access.
enum class GuestAccess : u8 {
  kDone,
  kMmio,     // in no slot
  kRetry,    // not now: no room, or the hypervisor is busy
  kFault,    // the hypervisor has no memory there
  kStopped,  // the guest has ended, or is not running as a secure one
};

class Ultravisor final : public Port {
 public:
  static constexpr unsigned kMostGuests = mem::SecurePool::kMostGuests;

  Ultravisor() = default;
  Ultravisor(const Ultravisor&) = delete;
  Ultravisor& operator=(const Ultravisor&) = delete;
  ~Ultravisor();

  // Pre: not opened before. Failure: as SecurePool::open().
  [[nodiscard]] Result<void> open(const UltravisorOptions& options, Port* hypervisor,
                                  RealMemory* memory);

  // A message of the hypervisor or of a guest.
  Status call(const Message& message, Caller caller) override;

  // The guest reads or writes its memory; a piece within one page, or several.
  [[nodiscard]] GuestAccess access(u32 lpid, Gpa at, void* bytes, u64 size, bool write);

  // Whose translations are to be emptied; null: nobody's. Pre: no vCPU of the guest runs, no
  // message about it is under way. Failure: ENOMEM, ENOSPC.
  [[nodiscard]] Result<void> set_table(u32 lpid, GuestTable* table);
  // Where a vCPU finds a page now; kSecure: *at, whole and writable until the table is told that it
  // goes. Waits for nobody.
  [[nodiscard]] Where translate(u32 lpid, Gpa page, u8** at);
  // One turn towards an answer other than kLater. kDone: ask again. Context: no lock, the vCPU has
  // left the guest; may wait a while.
  [[nodiscard]] GuestAccess bring(u32 lpid, Gpa page);

  // The steps of UV_ESM, and what the ultravisor asks by itself. kBusy: may succeed later.
  Status esm_begin(u32 lpid);
  Status esm_load(u32 lpid);  // pages in all that has contents
  // INIT_DONE; failed, the guest is as before INIT_DONE. kBusy: a slot has come, load again.
  Status esm_finish(u32 lpid);
  Status esm_abort(u32 lpid);  // answers what the guest is to be told
  Status ask_page_in(u32 lpid, Gpa page);
  Status ask_page_out(u32 lpid, Gpa page);
  Status ask_share(u32 lpid, Gpa page);  // a normal page is shared as it is

  // Of tests and reports: no contents.
  [[nodiscard]] SvmState state(u32 lpid);
  [[nodiscard]] PageState page(u32 lpid, Gpa page);
  [[nodiscard]] SvmUse use(u32 lpid);
  [[nodiscard]] u32 pool_free() { return pool_.free_count(); }
  [[nodiscard]] mem::SecurePool& debug_pool() { return pool_; }
  [[nodiscard]] mem::SealedStore* debug_store(u32 lpid);
  // What is asked about a page; *busy: somebody works on it; *runs: operations on the guest.
  [[nodiscard]] Asked debug_asked(u32 lpid, Gpa page, bool* busy, u32* runs);

 private:
  class Run;
  class Going;
  class Bounce;

  [[nodiscard]] Svm* find(u64 lpid) TA_EXCL(lock_);
  [[nodiscard]] Result<Svm*> find_or_make(u32 lpid) TA_EXCL(lock_);
  [[nodiscard]] u64 number_of(Gpa page) const { return page.raw() / options_.page_bytes; }
  [[nodiscard]] u64 address_of(u64 page) const { return page * options_.page_bytes; }

  // Life (ultravisor.cc).
  Status answer(const Message& message, Caller caller);
  Status from_hypervisor(const Message& message);
  Status from_guest(const Message& message, Caller caller);
  Status esm(u32 lpid, u64 kernel, u64 tree);
  [[nodiscard]] bool esm_goes_on(u32 lpid, u64* next);
  void esm_rests(u32 lpid, u64 next);
  Status load_from(u32 lpid, u64* next, u64 most);
  Status load_page(Svm* svm, u64 page);
  Status register_slot(const Message& m);
  Status unregister_slot(const Message& m);
  Status terminate(u64 lpid);

  // What the hypervisor asks about a page (ultravisor_pages.cc).
  Status page_in(const Message& m);
  Status page_out(const Message& m);
  Status page_inval(const Message& m);
  Status move_in(Svm* svm, u64 page, PageRecord* record, u64 frame);
  Status move_out(Svm* svm, u64 page, PageRecord* record, u64 frame);
  Status give_clear(Svm* svm, u64 page, PageRecord* record, u64 frame);
  Status share_into(Svm* svm, PageRecord* record, u64 frame, bool cleared);
  Status tampered(Svm* svm, u64 page, PageRecord* record);
  [[nodiscard]] Result<void> open_sealed(Svm* svm, u64 page, PageRecord* record, u64 frame,
                                         u8* copy, void* to);
  [[nodiscard]] bool write_zeros(u64 frame);
  void drop(u32 pool_page);

  // What it asks the hypervisor, and what the guest wants (ultravisor_guest.cc).
  Status ask(u32 lpid, Call call, u64 page, u64 flags);
  Status page_in_of(Svm* svm, u64 page);
  Status page_in_untouched(Svm* svm, u64 first, u64 count);
  Status share(u32 lpid, u64 gfn, u64 count);
  [[nodiscard]] bool has_places(u32 lpid, u64 gfn, u64 count);
  [[nodiscard]] static CallRest begin_or_go_on(Svm* svm, Call call, u64 gfn, u64 count);
  static Status rest(Svm* svm, const CallRest& at);
  Status share_check(Svm* svm, u64 first, u64 count);
  Status share_claim(Svm* svm, const CallRest& turn, u64 stop, u64* claimed);
  Status share_turn(Svm* svm, const CallRest& turn, u64 stop);
  void share_undo(Svm* svm, u64 first, u64 end);
  Status share_one(Svm* svm, u64 page);
  Status unshare_one(Svm* svm, u64 page, bool by_force);
  Status unshare(u32 lpid, u64 gfn, u64 count);
  Status unshare_all(u32 lpid);
  [[nodiscard]] GuestAccess access_page(Svm* svm, Gpa at, void* bytes, u64 size, bool write);
  [[nodiscard]] static bool grab(Svm* svm, u64 page, PageRecord** record, PageRecord* is,
                                 u32* turn);
  [[nodiscard]] bool use_page(Svm* svm, PageRecord* record, const PageRecord& is, u64 offset,
                              void* bytes, u64 size, bool write);
  [[nodiscard]] static GuestAccess refused(Svm* svm, u64 page);
  [[nodiscard]] Status use_shared(Svm* svm, u64 page);
  [[nodiscard]] Status come(Svm* svm, u64 page, const PageRecord& is);

  // Room in the pool (ultravisor_room.cc). kBusy: none just now; kParameter: nor by asking again.
  enum class Leaves : u8 { kYes, kNotNow, kNever };
  [[nodiscard]] Status room(Svm* svm, u64 page, u32* found);
  [[nodiscard]] u32 quota() const;
  [[nodiscard]] bool has_no_way_out(Svm* svm);
  [[nodiscard]] bool evict(Svm* svm, bool of_others);
  [[nodiscard]] Leaves evict_one(const mem::SecurePool::Holder& victim);
  [[nodiscard]] Status give_room(Svm* svm, u64 page);

  UltravisorOptions options_;
  Port* hypervisor_ = nullptr;
  RealMemory* memory_ = nullptr;
  mem::SecurePool pool_;
  mem::SecurePool bounces_;
  u32 zeros_ = mem::SecurePool::kNone;  // of them, one that stays zeros: immutable after open()
  sync::Atomic<u32> living_{0};         // guests that are transient or secure, or were
  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<Box<Svm>> svms_ TA_GUARDED(lock_){"uv.svms"};  // never freed before the end: found by lpid
};

}  // namespace stagetwo::uv
