// SPDX-License-Identifier: Apache-2.0
#pragma once

// What pinned memory costs its user: RLIMIT_MEMLOCK. As in the kernel, pinning itself charges
// nothing; who holds pins for a client (iommufd, VFIO) charges for them.
// Analogue: user_struct::locked_vm (iommufd, io_uring), account_locked_vm() and mm::locked_vm (VFIO
// type 1), mm::pinned_vm (kernel files: drivers/iommu/iommufd/pages.c, mm/util.c).
//
//   mode       charged to                        limit
//   kNone      nobody: the task has CAP_IPC_LOCK  none
//   kUser      the session's user, all its        RLIMIT_MEMLOCK of the task that charges; what
//              processes together                 mlock has locked does not count
//   kProcess   this process, with what mlock      the same
//              has locked in it
//
// What a process has charged goes with it, however it ends, and with its program where exec begins
// another one: so do its pins (host/pin.h). How much is pinned in every mode says pin_use().
// /proc/self/status goes on showing the kernel's own VmPin and VmLck: ours are in neither.
// Differs: what the kernel itself has charged to the user (io_uring, perf, BPF) is not known here.
// A limit of a TiB or more is none. Of more than 64 processes at once that have charged to a
// session's user, and in a process whose /proc cannot be read, what one has charged and not
// given back when it ends stays with the session; so it does, until the process ends, behind an
// exec of a program without the engine. Context: any thread; kProcess reads a file, and kUser some
// where the limit is near. Uncharging cannot fail.

#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host {

enum class PinCharge : u8 { kNone, kUser, kProcess };

// For a holder of so many pages: kNone where the calling task may lock what it likes, else
// `wanted`. Decided once for each holder: rights that are given up later change nothing. Who was
// found to have them is believed for the next 255 pages, until forget_rights(): to ask costs more
// than to pin one. Differs: where a task gives them up by its own instruction, without libc, so
// many are charged to nobody.
[[nodiscard]] PinCharge pin_charge(PinCharge wanted, u64 pages);
// A thread of this process has other rights now, or another user.
void forget_rights();
// Failure: ENOMEM, the limit; nothing is charged.
[[nodiscard]] Result<void> charge_pins(PinCharge mode, u64 pages);
// Pre: charged in this mode.
void uncharge_pins(PinCharge mode, u64 pages);
// What was charged to the process and to the user, in pages. Of the user's that of a process that
// has ended is a part until somebody else needs the room.
struct PinCharged {
  u64 process;
  u64 user;
};
[[nodiscard]] PinCharged pins_charged();

// This program begins: what another one that this process ran had charged is nobody's.
void begin_pin_account();
void pin_account_after_fork_child();

}  // namespace stagetwo::host
