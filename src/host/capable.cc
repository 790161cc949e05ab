// SPDX-License-Identifier: Apache-2.0
#include "host/capable.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/process_stamp.h"
#include "base/sys.h"
#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::host {
namespace {

// PROC_USER_INIT_INO (kernel file: include/linux/proc_ns.h)
constexpr u64 kInitialUserNamespace = 0xEFFFFFFD;

// A process has one thread when it goes to another user namespace: what was found holds for all of
// it until a call says otherwise, and is asked anew in a child of fork (clone, too, makes one
// there). A look is dearer than to pin some hundred pages.
constinit sync::Atomic<bool> is_initial{false};  // relaxed; behind asked_in
constinit sync::Atomic<u32> asked_in{0};         // the stamp of the process; 0: ask

bool in_initial_user_namespace() {
  const u32 stamp = stamp_of_process();
  if (asked_in.load(sync::kAcquire) == stamp) return is_initial.load(sync::kRelaxed);
  struct ::stat seen{};
  if (sys::call(SYS_newfstatat, AT_FDCWD, sys::arg("/proc/thread-self/ns/user"), sys::arg(&seen),
                0) == 0) {
    is_initial.store(seen.st_ino == kInitialUserNamespace, sync::kRelaxed);
    asked_in.store(stamp, sync::kRelease);
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

void forget_user_namespace() {
  asked_in.store(0, sync::kRelaxed);
}

void note_user_namespace() {
  static_cast<void>(in_initial_user_namespace());
}

}  // namespace stagetwo::host
