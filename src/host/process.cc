// SPDX-License-Identifier: Apache-2.0
#include "host/process.h"

#include "host/backstop.h"
#include "host/mmu_notifier.h"

namespace stagetwo::host {

void after_fork_child() {
  notifiers_after_fork_child();
  backstop::after_fork_child();
}

}  // namespace stagetwo::host
