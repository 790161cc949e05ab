// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the calling task may do in the kernel's eyes, for requests that want a capability.
//
// Analogue: capable() (kernel file: kernel/capability.c), which asks in the initial user namespace:
// who is root in a namespace of its own (unshare -Ur, a container without root) has no capability
// here, whatever capget() says. On a machine that is itself such a container nobody has one, and
// none can be had: as with the kernel's own devices, a user there has what RLIMIT_MEMLOCK allows.
//
// Context: any thread. One system call, and a second where the namespace is not known yet;
// allocates nothing.

namespace stagetwo::host {

// `capability`: CAP_IPC_LOCK and the like (linux/capability.h).
[[nodiscard]] bool capable(unsigned capability);
// The same in whichever user namespace the task is (the kernel's ns_capable of one's own).
[[nodiscard]] bool capable_here(unsigned capability);

// Where /proc cannot be reached any more (another root) the namespace last seen counts. So one look
// while the engine wakes; nobody's namespace is the initial one before.
void note_user_namespace();
// This process may be in another one now. Differs: who goes there by its own instruction, past
// libc, says nothing, and keeps what it could before.
void forget_user_namespace();

}  // namespace stagetwo::host
