// SPDX-License-Identifier: Apache-2.0
#include "host/process.h"

#include "host/backstop.h"
#include "host/client_limits.h"
#include "host/footing.h"
#include "host/hugetlb_standin.h"
#include "host/kept_fd.h"
#include "host/kernel_io.h"
#include "host/memory_budget.h"
#include "host/mmu_notifier.h"
#include "host/page_idle.h"
#include "host/page_owner.h"
#include "host/pin.h"
#include "host/pin_account.h"
#include "host/session.h"
#include "host/worker.h"

namespace stagetwo::host {

void after_fork_child() {
  notifiers_after_fork_child();
  session_after_fork_child();
  worker_after_fork_child();
  budget::after_fork_child();
  owners_after_fork_child();
  footings_after_fork_child();
  pins_after_fork_child();
  pin_account_after_fork_child();
  kept_fds_after_fork_child();
  requests_after_fork_child();
  client_limits_after_fork_child();
  page_idle::after_fork_child();
  hugetlb::after_fork_child();
  backstop::after_fork_child();
}

}  // namespace stagetwo::host
