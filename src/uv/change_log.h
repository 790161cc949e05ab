// SPDX-License-Identifier: Apache-2.0
#pragma once

// Who is told that the process will find other bytes in pages of the guest's than it would have
// found before: a VMM that saves its guest's memory by the dirty log saves what is marked, and must
// have marked what it can no longer give back. Analogue: mark_page_dirty (kernel file: kvm_main.c);
// the kernel has no dirty log of a secure guest.
//
// What such a VMM reads of a page depends on where it is:
//
//   the VMM                            | the guest
//   harvests; reads: sealed bytes      |
//                                      | takes the page in: those bytes are void, whatever it does
//                                      |   there: told
//   harvests: marked; reads: the page  |
//     is sealed anew. Not told: no     |
//     harvest has come since that read |
//     would have found anything else   |
//
// I1  told when it has happened and before the page is let go: whoever harvests afterwards, and
//     then reads, finds what was told of, or will.
// I2  what the guest stores is not told here: its translations are marked as any guest's.

#include "addr/addr.h"

namespace stagetwo::uv {

class ChangeLog {
 public:
  // Context: as NormalMemory's.
  virtual void changed(Gpa page, u64 bytes) = 0;

 protected:
  ~ChangeLog() = default;
};

}  // namespace stagetwo::uv
