// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a page is made unreachable and reachable again. Not for other rooms: see host/page_owner.h.
//
//   hiding        leaves                                   comes back
//   kUserfault    moved, or write-protected, copied and    moved, or filled by a copy; the touch
//                 dropped; the touch waits                 is woken
//   kProtection   PROT_NONE, then copied; the old bytes    the bytes are put in behind the
//                 stay behind it, unseen                   protection, then the rights
//
// Every step is one that no thread of the process can see half of: a touch before it gets the old
// page, a touch after it waits. kProtection is for where userfaultfd is denied, the client holds
// it, or the memory is none it takes (private file mappings); system calls on such a page answer
// EFAULT.

#include "host/page_owner.h"
#include "host/process_map.h"

namespace stagetwo::host {

enum class Hiding : u8 { kUserfault, kProtection };

// May the pages of `piece`, one mapping's, be hidden, and how? Post: touches of them are reported.
// Failure: there is no way.
[[nodiscard]] Result<Hiding> watch_pages(HvaRange piece, const Mapping& mapping);

// Told around the reading of a page that is still in place: a touch that finds it missing then has
// been discarded behind our back.
class TransitWatcher {
 public:
  virtual void reading(PageKey key, bool on) = 0;

 protected:
  ~TransitWatcher() = default;
};

class PageTransit final : public PageExit, public PageEntry {
 public:
  PageTransit(PageKey key, Hva at, Hiding hiding, Prot prot, TransitWatcher* watcher)
      : key_(key), at_(at), hiding_(hiding), prot_(prot), watcher_(watcher) {}

  bool to(Hva place) override;
  bool from(Hva place) override;
  bool from_bytes(const void* page) override;

  // Has the page left? What to() said.
  [[nodiscard]] bool left() const { return left_; }
  // It stays after all, its bytes never having left.
  void undo();
  // Every later touch is a bus error.
  void make_lost();

 private:
  bool copy_and_drop(Hva place);
  bool copy_protected(Hva place);
  bool put_behind_protection(const void* page);
  bool still_hidden() const;

  PageKey key_;
  Hva at_;
  Hiding hiding_;
  Prot prot_;
  TransitWatcher* watcher_;
  bool left_ = false;
};

}  // namespace stagetwo::host
