// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loop of a running vCPU. Internal to the room; vcpu.cc calls it.

#include "vcpu/cpu.h"
#include "vcpu/vcpu.h"

namespace stagetwo::vcpu {

// Finishes what the last exit left to the client. kExit: there is another exit (c.exit); kNext: the
// guest may go on.
[[nodiscard]] Step complete_pending(Cpu& c, const Completion& completion);

// Runs the guest until there is something to report in c.exit.
// Context: inside the section on entry and on return.
void run_guest(Cpu& c);

// Exactly one instruction, with everything that belongs to it. Context: inside the section.
[[nodiscard]] Step run_one(Cpu& c);

// Delivers a fault, an NMI or an interrupt through IDT or IVT (exceptions.cc). kNext: done; kExit:
// triple fault or a host refusal.
[[nodiscard]] Step deliver_fault(Cpu& c, Fault fault);
[[nodiscard]] Step deliver_interrupt(Cpu& c, u8 vector);
// INT n, INT3, INTO, INT1: checks gate privilege. Pre: next_rip is what is pushed.
[[nodiscard]] Step software_interrupt(Cpu& c, u8 vector, bool privileged);

[[nodiscard]] bool interrupt_window_open(const Cpu& c);

}  // namespace stagetwo::vcpu
