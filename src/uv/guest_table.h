// SPDX-License-Identifier: Apache-2.0
#pragma once

// The translations of a secure guest's vCPUs, as the ultravisor has them emptied. On POWER the
// partition-scoped table of a secure guest is the ultravisor's own; here it is the VM's stage-2
// table, and whoever has that implements this. Analogue: UV_WRITE_PATE and the tables behind it.
//
//   vCPU                               | ultravisor, about a page
//   translate(): an address            |
//                                      | the page is somebody's: translate() says kLater
//                                      | going(): no translation is left, and none is made of an
//                                      |   answer given before gone()
//                                      | seals, wipes, opens, shares
//   makes no translation: it is stale  | gone()
//   asks again: kLater; bring()        |
//
// I1  a secure page is sealed, given up or shared when no vCPU can use it any more.
// I2  between two answers of translate() with going() and gone() between them nothing carries over.

#include "base/types.h"

namespace stagetwo::uv {

class GuestTable {
 public:
  // The pages first .. first + count - 1 are about to be others, by number. Nested, and by several
  // threads at once. Context: no lock; may wait for vCPUs to leave the guest, none of which waits
  // for the ultravisor meanwhile without having left.
  virtual void going(u64 first, u64 count) = 0;
  // Each has one end.
  virtual void gone() = 0;

 protected:
  ~GuestTable() = default;
};

// Where a vCPU finds a page.
enum class Where : u8 {
  kProcess,  // where the hypervisor's process has it: the guest is normal, or the page is shared
  kSecure,   // in secure memory: at *at
  kLater,    // nowhere just now: bring() it, and ask again
  kMmio,     // in no slot of a secure guest
  kStopped,  // the guest has ended
};

inline constexpr u64 kAllPages = ~u64{0};

}  // namespace stagetwo::uv
