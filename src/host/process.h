// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whose address space does an object hang off? VMs, vCPUs and everything else that borrows the
// creator's addresses answer EIO in a child of fork. Analogue: kvm->mm != current->mm (kernel file:
// kvm_main.c). Differs: told by a page that fork wipes (base/process_page.h), without a system
// call.

#include "base/process_page.h"
#include "base/types.h"

namespace stagetwo::host {

class ProcessOwner {
 public:
  ProcessOwner() : stamp_(process_stamp()) {}
  // Is this the process the object was made in? A relaxed load in the usual case.
  [[nodiscard]] bool is_creator() const { return stamp_ == process_stamp(); }

 private:
  u32 stamp_;  // immutable after construction
};

// What this room does in a child right after fork, before any thread but one exists.
void after_fork_child();

}  // namespace stagetwo::host
