// SPDX-License-Identifier: Apache-2.0
#pragma once

// The guest's own page tables: linear address to guest-physical address. 4- and 5-level long mode,
// PAE and 32-bit legacy paging are one walk over the formats of pt/fmt/x86_first_level.h and
// x86_legacy.h, which know the bits.
// Linux analogue: the processor's walk under two-dimensional paging; FNAME(walk_addr_generic)
// (kernel file: paging_tmpl.h) for KVM_TRANSLATE. A table that lies in no slot reads as not
// present, as there; one whose memory stage 2 refuses ends the run, as an access to it would.
//
// I1  Accessed and dirty bits are set by compare-and-exchange on the guest's memory, after the
//     permission check; a lost race walks again.
// I2  The error code of #PF is exact: P, W, U, RSVD, I; RSVD by MAXPHYADDR of the guest's CPUID.
// Locking: none. Context: the read section; may leave and re-enter it (Cpu::section tells).
// Spec: Intel SDM vol. 3, chapter 4.

#include "vcpu/cpu.h"

namespace stagetwo::vcpu {

struct Translation {
  Gpa gpa;             // of the byte
  bool large = false;  // by a page of more than 4 KiB
  // Would the same privilege be allowed to write, with D already set?
  bool write_ready = false;
};

struct WalkRequest {
  u64 linear;
  Access access;
  bool user;           // privilege of the access, not of the CPU
  bool implicit;       // SMAP's AC override does not apply
  bool quiet = false;  // KVM_TRANSLATE: no A/D update, no fault raised
};

// False: c.stop (a page fault is raised, or the instruction is to be started again). With `quiet`:
// not mapped.
[[nodiscard]] bool walk(Cpu& c, const WalkRequest& request, Translation* out);

// What stands behind a guest-physical page.
enum class Second : u8 {
  kHost,
  kTracked,  // memory, but stores are KVM's to make: store_tracked()
  kMmio,
  kStopped,
};

// Resolves a guest-physical address in stage 2, leaving the section while the host is asked.
// Post on kHost: *hva is the host address of the byte, good until the section is left, and
// *is_private whether its page is the guest's alone.
[[nodiscard]] Second second_level(Cpu& c, Gpa gpa, Access access, Hva* hva, bool* is_private);

// A store to a page that is write-tracked, within the page. Leaves and re-enters the section.
// False: c.stop.
[[nodiscard]] bool store_tracked(Cpu& c, Gpa gpa, const void* data, u32 size);

// The read section around everything that uses host addresses.
void enter_section(Cpu& c);
void leave_section(Cpu& c);
// What enter() or poll() of the line asked for: every translation is forgotten.
void after_flush_request(Cpu& c);

}  // namespace stagetwo::vcpu
