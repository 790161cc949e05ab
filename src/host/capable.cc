// SPDX-License-Identifier: Apache-2.0
#include "host/capable.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/sys.h"
#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::host {
namespace {

// PROC_USER_INIT_INO (kernel file: include/linux/proc_ns.h)
constexpr u64 kInitialUserNamespace = 0xEFFFFFFD;

constinit sync::Atomic<bool> is_initial{false};

bool in_initial_user_namespace() {
  struct ::stat seen{};
  if (sys::call(SYS_newfstatat, AT_FDCWD, sys::arg("/proc/thread-self/ns/user"), sys::arg(&seen),
                0) == 0) {
    is_initial.store(seen.st_ino == kInitialUserNamespace, sync::kRelaxed);
  }
  return is_initial.load(sync::kRelaxed);
}

}  // namespace

bool capable_here(unsigned capability) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
  if (sys::call(SYS_capget, sys::arg(&header), sys::arg(data)) != 0) return false;
  return (data[capability / 32].effective >> (capability % 32) & 1) != 0;
}

bool capable(unsigned capability) {
  return capable_here(capability) && in_initial_user_namespace();
}

void note_user_namespace() {
  static_cast<void>(in_initial_user_namespace());
}

}  // namespace stagetwo::host
