// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where the ultravisor's messages arrive: finds the guest by its lpid and lets it serve them.
// Analogue: the H_SVM_* cases of kvmppc_pseries_do_hcall() (kernel file: book3s_hv.c).
//
// Locking: lock_ (rank leaf), over the list. Lifetime: a guest is removed after its svm_off() and
// when no vCPU of it runs, so no message about it is under way.

#include "base/result.h"
#include "base/vec.h"
#include "sync/mutex.h"
#include "uv/secure_guest.h"

namespace stagetwo::uv {

class Hypervisor final : public Port {
 public:
  // Failure: ENOMEM, EEXIST (the lpid is taken).
  [[nodiscard]] Result<void> add(SecureGuest* guest) TA_EXCL(lock_);
  void remove(SecureGuest* guest) TA_EXCL(lock_);
  // Of a guest nobody knows: H_UNSUPPORTED.
  Status call(const Message& message, Caller caller) override TA_EXCL(lock_);

 private:
  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<SecureGuest*> guests_ TA_GUARDED(lock_){"uv.guests"};
};

}  // namespace stagetwo::uv
