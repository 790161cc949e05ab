// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pages that nobody takes while this lives: the buffers of a system call, where the kernel would
// not wait for an absent page but answer EFAULT (host/page_owner.h), and whatever else cannot stop
// in the middle of its work. Analogue: get_user_pages() for the length of a call, without its
// refcount of the page: a client's own change of the range is not held up.
//
//   HeldPages held(hull);              // from now on no owner takes a page of it
//   held.fetch(part);                  // and what is absent of it comes back
//   result = system_call();            // as long as it likes
//
// Invariants: I1  what fetch() has answered for stays present until the release, or until the
//                 client itself discards or unmaps it. Lost pages stay lost: the kernel's EFAULT.
//             I2  a hold whose frame was left by siglongjmp, or whose thread has ended, is dropped
//                 at the thread's next hold further up the stack or in the same place, or when a
//                 taker or a thread that ends meets it and the thread is gone. The record is the
//                 table's and not this object, so that nothing of it dangles.
// Context: making, fetch() and release() in an EngineSection (they take the table lock); what lies
// between them may run handlers of the client. Nobody absent: one relaxed load.
// Failure: without memory for its record, or before the first page was ever taken, nothing is held:
// who needs to know asks `holds()`, and calls again what then answered EFAULT.

#include "addr/addr.h"
#include "base/types.h"
#include "host/page_owner.h"
#include "host/process_map.h"

namespace stagetwo::host {

// Has a page of shared memory ever been taken? Then reads and writes of files have to be held, too.
[[nodiscard]] bool shared_pages_taken();
// Has a page ever left by a copy: of shared memory, or of private memory where the kernel cannot
// move it? Then a buffer that a call pins for the kernel to write (a read from a file opened with
// O_DIRECT, process_vm_writev) is held for as long, too: the copy would miss what is written after
// it, however the kernel's touches are met. A call that was under way when the first limit was set
// is not known of (expect_takes()).
[[nodiscard]] bool pages_copied_away();

// Of a shared object: the first page from `first` on of which an owner has the bytes (`kept`), or
// of which none has; `end`: none is before it. The file has a hole where a page is kept.
[[nodiscard]] u64 next_page_of(u64 object, u64 first, u64 end, bool kept);
// How many are kept. Racy.
[[nodiscard]] u64 kept_pages_of(u64 object);

// A mapping of shared memory that has no rights yet, and is to have `wanted`, shows what is absent
// by its touches from now on. False: that has to come back (owners_see_mapping()). Pre: nobody has
// its address. Context: as a change.
[[nodiscard]] bool owners_join_mapping(HvaRange made, Prot wanted);

// Pages are going to be taken, copied ones among them: from now on buffers are held. A call that is
// under way now is not known of, and what it has pinned could be copied before it is written; so it
// is said when a limit is set, not with the first page. Failure: without memory for the table the
// first take says it. Context: as take_away().
void expect_takes();

class HeldPages {
 public:
  HeldPages() = default;
  explicit HeldPages(HvaRange range) { hold(range); }
  ~HeldPages() { release(); }
  HeldPages(const HeldPages&) = delete;
  HeldPages& operator=(const HeldPages&) = delete;

  // Holds `range` in place of what was held.
  void hold(HvaRange range) {
    reach_ = {kPrivateMemory, range};
    if (owners_active()) [[unlikely]]
      enter();
  }
  // Brings back what is absent of `part`, and waits for what is in transit; answers how many came.
  // Pre: part is within what is held.
  u64 fetch(HvaRange part);
  u64 fetch() { return fetch(reach_.range); }
  // The same for bytes of a file of shared memory that a read or write is about to go through: a
  // page that is not in it reads as zeros. False: some are lost, the call is to answer EIO.
  void hold_file(int fd, u64 offset, u64 size);
  void hold_object(u64 object, u64 offset, u64 size);
  [[nodiscard]] bool fetch_file();
  // The same for a part of a file that is about to be mapped: the kernel may fill what the file has
  // holes for before anybody knows of the mapping (MAP_POPULATE, MAP_LOCKED, mlockall(MCL_FUTURE),
  // remap_file_pages, locked memory that grows), with zeros. Held until owners_see_mapping() has
  // seen it. Of the file behind `fd`, or of the one that `like` shows. False: no memory for the
  // record, or some of it stays absent; the map is refused (ENOMEM).
  [[nodiscard]] bool hold_for_view(int fd, u64 offset, u64 size);
  [[nodiscard]] bool hold_for_view(const Mapping& like, u64 offset, u64 size);
  void release() {
    if (id_ != 0) [[unlikely]]
      leave();
  }
  [[nodiscard]] bool holds() const { return id_ != 0; }

 private:
  bool hold_for_view_of(u64 object, u64 offset, u64 size);
  void enter();
  void leave();

  Reach reach_;
  u64 id_ = 0;  // of the table's record
};

// Nobody takes a page of `ranges` until the calling thread is gone, which is about to end: then the
// kernel touches some and waits for no absent one. Brings nothing back. Where the thread does not
// end after all, its next call of this takes their place. Context: as making one.
void hold_until_thread_ends(const HvaRange* ranges, unsigned count);

}  // namespace stagetwo::host
