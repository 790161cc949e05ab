// SPDX-License-Identifier: Apache-2.0
// From here on this process, and what it execs, may lock so many bytes and no more.
#pragma once

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int give_up_lock(unsigned long bytes) {
  const struct rlimit limit = {bytes, bytes};
  struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct rights[2];
  if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || syscall(SYS_capget, &head, rights) != 0) return -1;
  const unsigned lock = 1u << CAP_IPC_LOCK;
  // exec would give it back to root.
  if ((rights[0].effective & lock) != 0 && prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) != 0) {
    return -1;
  }
  rights[0].effective &= ~lock;
  rights[0].permitted &= ~lock;
  rights[0].inheritable &= ~lock;
  return (int)syscall(SYS_capset, &head, rights);
}
