// SPDX-License-Identifier: Apache-2.0
#pragma once

// How one guest's pages lie in the hypervisor's process: what SecureGuest wants of whoever owns the
// mappings. A frame is a page of the hypervisor's own, outside the guest's memory, named by its
// real address; it holds bytes on their way in or out. A page that was taken leaves a stand-in,
// which represents the secure page: absent, and nothing else. Analogue:
// migrate_vma_setup/pages/finalize (kernel file: mm/migrate_device.c).
//
// I1: between take() and put_back() or discard() every touch of the page is reported
//     (SecureGuest::touch_begin).
// I2: a frame is wiped before anybody else has it: it may hold a page in clear.
// Context of all: no lock; may sleep. A page is named by one caller at a time.

#include "addr/addr.h"

namespace stagetwo::uv {

enum class Taken : u8 {
  kFrame,      // its bytes are in a frame
  kUntouched,  // it had no bytes: zeros, and no frame
  kHole,       // nothing is mapped there, or not in one piece
  kBusy,       // it cannot be moved just now (pinned, in use by a call)
};

class NormalMemory {
 public:
  // The process has the page no more; *frame is the caller's. The `alike` pages from it on may be
  // wanted next, and be taken, too: a touch has them back as they were, and nobody is told.
  [[nodiscard]] virtual Taken take(Gpa page, u64 alike, u64* frame) = 0;
  // Each of these pages has a stand-in now, and none was ever touched. False: not all of them were
  // so, or it cannot be said; nothing has changed.
  [[nodiscard]] virtual bool take_untouched(Gpa /*first*/, u64 /*pages*/) { return false; }
  // What was taken so, and was not asked for, is back. Context: as all.
  virtual void leave_none_ahead() {}
  // A frame of zeros; 0: no memory.
  [[nodiscard]] virtual u64 new_frame() = 0;
  // The stand-in goes, the frame's bytes are there instead, and the frame is gone. False: no
  // memory, or nothing is mapped there; the frame stays the caller's and the stand-in stands.
  [[nodiscard]] virtual bool put_back(Gpa page, u64 frame) = 0;
  // Is memory mapped there that could have the pages' bytes? It may be gone the next moment.
  [[nodiscard]] virtual bool has_places(Gpa first, u64 bytes) = 0;
  // 0 is allowed.
  virtual void drop_frame(u64 frame) = 0;
  // The stand-in, if there is one, goes; what is there is zeros from now on. Cannot fail.
  virtual void discard(Gpa page) = 0;
  // What was the guest's from `from` on is the guest's from `to` on; the two may overlap. Pre: its
  // pages are held, and none has a stand-in.
  virtual void moved(Gpa from, Gpa to, u64 bytes) = 0;
  // The real address of a page that is there, made present; 0: nothing is mapped there. Valid until
  // the process changes the mapping (SecureGuest::unmapped).
  [[nodiscard]] virtual u64 address_of(Gpa page) = 0;

 protected:
  ~NormalMemory() = default;
};

}  // namespace stagetwo::uv
