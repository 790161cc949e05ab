// SPDX-License-Identifier: Apache-2.0
#pragma once

// Who has those frames of a guest that are the guest's alone and lie in no memory of the client's.
// Declared here, implemented above: the table of a secure guest is this VM's, its pages are the
// ultravisor's. Analogue: the partition-scoped table of a secure guest, which is the ultravisor's
// on POWER.
//
// I1: what find() answered holds until the keeper says that the frame is going
//     (PrivateMemory::frames_going); a fault that has an answer from before makes no entry of it.
// Lifetime: set before the first vCPU, outlives the last.

#include "stage2/fault.h"

namespace stagetwo::stage2 {

class FrameKeeper {
 public:
  enum class Where : u8 {
    kProcess,  // at the client's address, as without a keeper
    kKept,     // at *page, the guest's alone
    kLater,    // nowhere just now: bring() it, and ask again
    kMmio,     // no memory of the guest's
    kStopped,  // the guest has ended
  };
  // Context: a read section of the slots; waits for nobody.
  [[nodiscard]] virtual Where find(Gfn gfn, Hva* page) = 0;
  // One turn towards another answer than kLater. kRetry: ask again. Context: no lock, no section,
  // the thread's line does not run; may wait a while.
  [[nodiscard]] virtual FaultOutcome bring(Gfn gfn) = 0;
  // Is any frame kept now? Context: any lock.
  [[nodiscard]] virtual bool keeps() = 0;

 protected:
  ~FrameKeeper() = default;
};

}  // namespace stagetwo::stage2
