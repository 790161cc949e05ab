// SPDX-License-Identifier: Apache-2.0
#pragma once

// The bell of memory objects: pages of an object are about to go. It rings when memory is given up
// (a hole is punched, the object is truncated, its last release) and at no other time: a memory
// slot that is deleted unbinds and says nothing, because somebody may believe what he hears here
// and give a page of a protected guest away. It rings otherwise for pages that only leave memory.
// Analogue: kvm_gmem_invalidate_begin and its end
// (kernel file: guest_memfd.c).
//
// I1: between going() and gone() of a range the set of observers does not change, so each hears
//     both or neither, in this order.
// Context: the object's lock is held; no observer may bind, unbind or punch from inside.

#include "base/types.h"

namespace stagetwo::mem {

// Pages of an object, by number.
struct PageRange {
  u64 first = 0;
  u64 end = 0;

  [[nodiscard]] u64 count() const { return end - first; }
  [[nodiscard]] bool empty() const { return first >= end; }
  friend bool operator==(const PageRange&, const PageRange&) = default;
};

class ObjectObserver {
 public:
  // Post: nobody uses what was translated of these pages before, and nobody who translated them
  // before gone() will. Cannot fail.
  virtual void going(PageRange pages) = 0;
  virtual void gone(PageRange pages) = 0;
  // The same of pages that leave memory and keep their contents (mem/private_swap.h): who wants one
  // after left() has it fetched. Nothing was given up.
  virtual void leaving(PageRange pages) { going(pages); }
  virtual void left(PageRange pages) { gone(pages); }

 protected:
  ~ObjectObserver() = default;
};

}  // namespace stagetwo::mem
