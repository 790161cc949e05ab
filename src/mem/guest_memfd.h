// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory of a guest that its VMM cannot map: the pages behind a guest_memfd and who borrows them.
// Analogue: struct kvm_gmem and its inode (kernel file: virt/kvm/guest_memfd.c).
//
// The pages are those of a memfd of the engine's, page n of the object at offset n pages; the
// file's size is the object's. What hangs off the VM's process stands here: who is bound to which
// pages, and the engine's own mappings of them.
//
// Invariants: I1  a page is bound at most once.
//             I2  bindings do not change between going() and gone() (object_observer.h).
//             I3  after release() every binding is closed: no page is found through it any more.
//             I4  a page never had is zero, and is so again after it was punched.
// Locking: lock_ (rank: memory objects). bind(), unbind() and release() of one object exclude each
// other by the caller (stage2: slots_lock). Lifetime: a binding may outlive the object.
// Differs: the kernel's own files are not swapped; these pages are, as any of shared memory, and by
// the engine itself under a limit (mem/private_swap.h).

#include "addr/addr.h"
#include "base/interval_map.h"
#include "base/result.h"
#include "base/types.h"
#include "mem/object_observer.h"
#include "mem/private_swap.h"
#include "sync/atomic.h"
#include "sync/kept_number.h"
#include "sync/mutex.h"

namespace stagetwo::mem {

class GuestMemfd;
class SealedPages;

// The tie between a range of pages and who borrows them. Part of its owner.
class Binding {
 public:
  Binding() = default;
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;

  [[nodiscard]] PageRange pages() const { return pages_; }
  // Is the object still there? Once no, always no. A fault asks; what it found before the answer
  // changed is stale by then (going() of everything comes after).
  [[nodiscard]] bool is_open() const { return open_.load(sync::kAcquire); }
  // The engine's own mapping of the pages, not dumped and not inherited. Good until unbind();
  // without pages once the object was released.
  [[nodiscard]] Hva at() const { return at_; }

 private:
  friend class GuestMemfd;
  friend struct PrivateTable;
  friend struct PrivateAccess;
  PageRange pages_;
  ObjectObserver* observer_ = nullptr;
  GuestMemfd* object_ = nullptr;  // null: unbound, or the object was released
  Hva at_{};
  sync::Atomic<bool> open_{false};
};

class GuestMemfd {
 public:
  // KVM_CREATE_GUEST_MEMFD's rule. Failure: EINVAL.
  [[nodiscard]] static Result<void> check_size(u64 size);

  // Pre: check_size(). The memfd of that size is the caller's, and so is its number, which may
  // change at any time but within a system call.
  GuestMemfd(u64 size, const sync::KeptNumber& file) : size_(size), file_(file) {}
  GuestMemfd(const GuestMemfd&) = delete;
  GuestMemfd& operator=(const GuestMemfd&) = delete;
  // Pre: released.
  ~GuestMemfd();

  [[nodiscard]] u64 size() const { return size_; }

  // fallocate(2) as a guest_memfd answers it: only KEEP_SIZE, alone or with PUNCH_HOLE.
  // Failure: EOPNOTSUPP, EINVAL, ENOMEM, EINTR. Post of a punch: the observers of the range have
  // let go, and its next page is a fresh one.
  [[nodiscard]] Result<void> fallocate(int mode, u64 offset, u64 size) TA_EXCL(lock_);
  // Would an allocation be refused before it has any memory? For who makes it in pieces.
  [[nodiscard]] Result<void> check_allocation(u64 offset, u64 size) const;
  // The same for who has the memfd and not the object: a child, a receiver. Nobody is told;
  // the pages go from every mapping all the same (docs/decisions/0017-guest-memfd.md). -1: the
  // pages went with the VM's process, so that nothing is left to be done.
  [[nodiscard]] static Result<void> fallocate_unbound(int fd, u64 file_size, int mode, u64 offset,
                                                      u64 size);

  // Maps the pages and enters them. Failure: EINVAL (unaligned, beyond the end, bound already in
  // part), ENOMEM. Pre: `binding` is fresh.
  enum class Pages : u8 { kMayLeave, kStay };  // kStay: the client may map them, too
  [[nodiscard]] Result<void> bind(u64 offset, u64 size, ObjectObserver& observer, Binding* binding,
                                  Pages under_limit = Pages::kMayLeave) TA_EXCL(lock_);
  // Tells nobody. Pre: no translation of the pages is in use. Context: the VM may outlive the
  // object, so this also ends what release() has left.
  static void unbind(Binding* binding);

  // The last descriptor is gone: closes every binding, tells every observer, gives the memory back.
  void release() TA_EXCL(lock_);

  [[nodiscard]] u64 binding_count() TA_EXCL(lock_);

  // Of bound pages; see private_pages::take(). Context: under the lock of private pages.
  [[nodiscard]] private_pages::Taken take(PageRange pages, PrivateSwap::Bench* bench)
      TA_EXCL(lock_);

 private:
  friend struct PrivateTable;
  friend struct PrivateAccess;
  [[nodiscard]] Result<void> map(PageRange pages, ObjectObserver& observer, Binding* binding)
      TA_EXCL(lock_);
  [[nodiscard]] Result<void> punch_pages(PageRange pages) TA_EXCL(lock_);
  template <typename F>
  void for_each_binding(PageRange pages, F&& fn) TA_REQ(lock_);
  void remove(const Binding& binding) TA_EXCL(lock_);

  const u64 size_;
  const sync::KeptNumber& file_;
  sync::Mutex lock_{sync::Rank::kMemObject};
  IntervalMap<u64, Binding*> bindings_ TA_GUARDED(lock_){"mem.bindings"};
  // Under the lock of private pages. Null: none of its pages was ever bound under a limit.
  SealedPages* sealed_ = nullptr;
  GuestMemfd* next_sealed_ = nullptr;
};

}  // namespace stagetwo::mem
