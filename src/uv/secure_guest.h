// SPDX-License-Identifier: Apache-2.0
#pragma once

// The hypervisor's half of one guest that may become secure: which of its pages are where, as far
// as the hypervisor is told, and what it does when the ultravisor asks (H_SVM_*), when its process
// touches a stand-in, which represents the secure page, or gives an address up, and when memory is
// plugged, unplugged or reset. Analogue: struct kvmppc_uvmem_slot, kvmppc_h_svm_* and
// kvmppc_uvmem_* (kernel file: book3s_hv_uvmem.c). Differs: no mutex is held while the ultravisor
// works, a page has a busy bit; none of the defects that docs/checks-secure-guests.md numbers W1 to
// W15 is kept.
//
// I1  a page that is busy is one thread's: nobody else changes its word or its place in memory.
// I2  a refused call changed nothing, but INIT_DONE, which leaves moved what it has moved, and the
//     slot that could not be plugged into a secure guest, or be moved to a place that overlaps its
//     own, whose pages are zeros.
// I3  a page of the process that the ultravisor may use is named to it once more, as gone, before
//     the process gives it up: whoever names it looks at the gate afterwards (secure_guest.cc).
// I4  the guest's life (START, DONE, ABORT, SVM_OFF, slots) is one thread's at a time; messages
//     that meet it, or one who waits for it, are answered BUSY, never kept waiting.
// Locking: lock_ (rank uv), over words and flags, never across a message or a call of NormalMemory.
// Lifetime: its Hypervisor, memory and ultravisor outlive it; it ends after svm_off().

#include "base/result.h"
#include "base/vec.h"
#include "sync/invalidation_gate.h"
#include "sync/mutex.h"
#include "uv/change_log.h"
#include "uv/guest_use.h"
#include "uv/normal_memory.h"
#include "uv/page_states.h"
#include "uv/run_length.h"
#include "uv/turnstile.h"

namespace stagetwo::uv {

class SecureGuest {
 public:
  SecureGuest(u32 lpid, u64 page_bytes, NormalMemory* memory, Port* ultravisor)
      : lpid_(lpid), page_bytes_(page_bytes), memory_(*memory), ultravisor_(ultravisor) {}
  SecureGuest(const SecureGuest&) = delete;
  SecureGuest& operator=(const SecureGuest&) = delete;
  ~SecureGuest();

  // KVM_CAP_PPC_SECURE_GUEST.
  void enable() TA_EXCL(lock_);
  void set_log(ChangeLog* log) { log_ = log; }  // pre: it has no slot yet

  // Memory slots, as the VMM makes them. A secure guest's new slot is its own at once: zeros.
  // Failure: EINVAL (misaligned, overlaps, kMostSlots are there, the ultravisor refuses it, its
  // memory cannot be taken), ENOMEM.
  [[nodiscard]] Result<void> add_slot(u32 id, Gpa base, u64 bytes) TA_EXCL(lock_);
  // The same memory elsewhere; what was secure or shared is zeros there. `spare`: an id no slot
  // has. Answers the id the slot has from now on. A page that cannot be taken is no reason to
  // refuse: it is the guest's without a stand-in. Failure: EINVAL (misaligned, overlaps, no such
  // slot, the ultravisor refuses it).
  [[nodiscard]] Result<u32> move_slot(u32 id, u32 spare, Gpa to) TA_EXCL(lock_);
  // What was secure is zeros. A slot that is not there is left alone.
  void remove_slot(u32 id) TA_EXCL(lock_);

  // KVM_PPC_SVM_OFF: the guest is normal, and what was secure or shared is zeros. A guest that
  // never began is left alone. Failure: EBUSY (a vCPU runs), EINVAL (the ultravisor refuses).
  [[nodiscard]] Result<void> svm_off() TA_EXCL(lock_);
  // Around a vCPU's run. False: the guest is on its way out; come back later.
  [[nodiscard]] bool run_begin() TA_EXCL(lock_);
  void run_end() TA_EXCL(lock_);

  // The process touched a stand-in. kFrame: *frame has what the process is to see; once it is
  // there, or cannot be, the caller says touch_end(). Never waits for another thread's work on the
  // page: whoever is to put it back may be waiting for this touch.
  enum class Touch : u8 {
    kFrame,
    kAgain,      // somebody works on the page
    kNoStandIn,  // the page is there (by now): look again
    kRefused,    // a bus error
  };
  [[nodiscard]] Touch touch_begin(Gpa page, u64* frame) TA_EXCL(lock_);
  // `put`: its bytes are in place, and it is gone. Else nothing is mapped there: it comes back.
  void touch_end(Gpa page, u64 frame, bool put) TA_EXCL(lock_);

  // Is the page paged out? Then it is the caller's until he lets it go. Waits for who has it.
  [[nodiscard]] bool hold_sealed(Gpa page) TA_EXCL(lock_);
  void let_sealed_go(Gpa page) TA_EXCL(lock_) { release(page, PageState::kPagedOut, nullptr); }
  // The process is about to give up addresses, and has. Between the two no frame of the range is
  // named to the ultravisor, and it uses none any more. Pre: page borders.
  void unmap_begin(Gpa start, u64 bytes) TA_EXCL(lock_);
  void unmap_more(Gpa start, u64 bytes) TA_EXCL(lock_);  // of the same change: one end for all
  // The same without waiting. False: one would have had to. Of the first, nothing was begun.
  [[nodiscard]] bool try_unmap_begin(Gpa start, u64 bytes) TA_EXCL(lock_);
  [[nodiscard]] bool try_unmap_more(Gpa start, u64 bytes) TA_EXCL(lock_);
  void unmap_end();

  // A message of the ultravisor, or of a guest that pretends to be it.
  [[nodiscard]] Status service(const Message& message, Caller caller) TA_EXCL(lock_);

  [[nodiscard]] GuestState state() TA_EXCL(lock_);
  [[nodiscard]] PageState page(Gpa page) TA_EXCL(lock_);
  [[nodiscard]] GuestUse use() TA_EXCL(lock_);
  [[nodiscard]] GuestLife debug_life() TA_EXCL(lock_);
  [[nodiscard]] bool debug_busy(Gpa page) TA_EXCL(lock_);
  [[nodiscard]] u32 lpid() const { return lpid_; }
  [[nodiscard]] u64 page_bytes() const { return page_bytes_; }

 private:
  struct Word {
    PageState state = PageState::kNormal;
    bool busy = false;
  };
  struct Slot {
    u32 id = 0;
    u64 first = 0;  // page number
    Vec<Word> words;
  };
  class Life;

  Status serve(const Message& message, Caller caller) TA_EXCL(lock_);
  Status init_start() TA_EXCL(lock_);
  Status init_done() TA_EXCL(lock_);
  Status init_abort() TA_EXCL(lock_);
  Status abort_of_guest() TA_EXCL(lock_);
  Status page_in(u64 gpa, u64 flags, u64 order) TA_EXCL(lock_);
  Status page_out(u64 gpa, u64 flags, u64 order) TA_EXCL(lock_);
  Status reflected(u64 gpa) TA_EXCL(lock_);
  Status places(u64 gpa, u64 count) TA_EXCL(lock_);
  Status page_in_untouched(u64 gpa, u64 count) TA_EXCL(lock_);

  // The works of the table, on a page that is the caller's; what they answer is the status to give.
  Status work_on(Gpa page, PageState was, PageWork work) TA_EXCL(lock_);
  Status move_in(Gpa page, PageState was) TA_EXCL(lock_);
  Status move_out(Gpa page) TA_EXCL(lock_);
  Status share_fresh(Gpa page) TA_EXCL(lock_);
  Status name_frame(Gpa page, bool* named) TA_EXCL(lock_);
  void restore(Gpa page, PageState was) TA_EXCL(lock_);
  void note_change(Gpa page, u64 count = 1) {
    if (log_ != nullptr) log_->changed(page, count * page_bytes_);
  }

  Status tell(Call call, u64 a = 0, u64 b = 0, u64 c = 0, u64 d = 0);
  Status tell_page_in(Gpa page, u64 frame);
  Status tell_page_out(Gpa page, u64 frame);
  Status tell_gone(Gpa page, u64 flags = 0) TA_EXCL(lock_);
  bool tell_gone_between(Gpa start, u64 bytes, u64 flags) TA_EXCL(lock_);
  void note_wait(Gpa page, bool is_over) TA_REQ(lock_);
  void open_or_widen(bool first, Gpa start, u64 bytes);

  struct Claim {
    Status status;
    PageState was;
    PageWork work;  // kNothing: the page is not the caller's, `status` is the answer
    PageState next;
  };
  [[nodiscard]] Claim claim(u64 gpa, PageEvent event) TA_EXCL(lock_);
  [[nodiscard]] u64 alike_from(Gpa page, PageState state) TA_EXCL(lock_);
  void release(Gpa page, PageState now, u64 GuestUse::* counter) TA_EXCL(lock_);
  [[nodiscard]] bool life_comes_first() const TA_REQ(lock_) { return living_ || wanted_ != 0; }
  [[nodiscard]] Word* find(Gpa page) TA_REQ(lock_);
  [[nodiscard]] Word* find_all(Gpa first, u64 count) TA_REQ(lock_);
  [[nodiscard]] Slot* find_slot(u32 id) TA_REQ(lock_);
  [[nodiscard]] Result<void> check_slot(u32 id, Gpa base, u64 bytes) TA_REQ(lock_);
  [[nodiscard]] Result<void> check_place(Gpa base, u64 bytes, const Slot* but) TA_REQ(lock_);

  // Life. The pages of a slot, or of all, held: a touch is asked to come again.
  void hold_pages(const Slot* only) TA_EXCL(lock_);
  void let_pages_go(const Slot* only) TA_EXCL(lock_);
  // f(page, state) → the state the page has now; stops where it answers kNone. Lets each one go.
  static constexpr unsigned kAllStates = (1U << kPageStates) - 1;
  template <typename F>
  bool for_each_held_page(const Slot* only, unsigned states, F f) TA_EXCL(lock_);
  Status register_slots() TA_EXCL(lock_);
  void unregister_slots(size_t count) TA_EXCL(lock_);
  enum class Untakable : u8 { kEnds, kStays };  // what becomes of a page that cannot be taken
  // `away`: whoever keeps the log has a page so far away from where it is here.
  [[nodiscard]] bool take_all(const Slot* only, Untakable untakable, u64 away) TA_EXCL(lock_);
  void give_up(const Slot* only, u64 away) TA_EXCL(lock_);
  [[nodiscard]] u64 hold_normal(Slot& slot, u64 word, u64 most) TA_REQ(lock_);
  [[nodiscard]] bool take_away(Gpa page, Untakable untakable);
  enum class Moved : u8 { kYes, kNo, kBack };  // kBack: it is where it was, with zeros
  [[nodiscard]] Moved register_moved(u32* id, u32 spare, Gpa from, Gpa to, u64 bytes);

  const u32 lpid_;
  const u64 page_bytes_;
  NormalMemory& memory_;
  Port* const ultravisor_;       // nullptr: this machine has no secure memory
  ChangeLog* log_ = nullptr;     // set once; null: nobody is told
  sync::InvalidationGate gate_;  // addresses the process gives up, by page number
  Turnstile turnstile_;

  sync::Mutex lock_{sync::Rank::kUv};
  Vec<Slot> slots_ TA_GUARDED(lock_){"uv.slots"};
  GuestState state_ TA_GUARDED(lock_) = GuestState::kNormal;
  bool enabled_ TA_GUARDED(lock_) = false;
  bool living_ TA_GUARDED(lock_) = false;    // its life is changing
  u32 wanted_ TA_GUARDED(lock_) = 0;         // who waits to change it
  bool aborting_ TA_GUARDED(lock_) = false;  // contents go back in clear
  u32 running_ TA_GUARDED(lock_) = 0;        // vCPUs
  u32 messages_ TA_GUARDED(lock_) = 0;       // calls about single pages under way
  GuestUse use_ TA_GUARDED(lock_);
  PageWait waits_[8] TA_GUARDED(lock_);  // touches told to come again, of the latest few pages
};

}  // namespace stagetwo::uv
