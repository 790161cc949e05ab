// SPDX-License-Identifier: Apache-2.0
#pragma once

// Segment descriptors: reading them out of GDT and LDT, checking them, loading them into segment
// registers. Internal to the room.
// Linux analogue: __load_segment_descriptor (kernel file: emulate.c).
// Spec: Intel SDM vol. 3, chapters 3.4 and 5.

#include "vcpu/cpu.h"

namespace stagetwo::vcpu {

// The raw eight (or, for system descriptors in long mode, sixteen) bytes.
struct Descriptor {
  u64 low = 0;
  u64 high = 0;

  [[nodiscard]] u8 type() const { return low >> 40 & 0xf; }
  [[nodiscard]] bool s() const { return (low >> 44 & 1) != 0; }
  [[nodiscard]] u8 dpl() const { return low >> 45 & 3; }
  [[nodiscard]] bool present() const { return (low >> 47 & 1) != 0; }
  [[nodiscard]] bool l() const { return (low >> 53 & 1) != 0; }
  [[nodiscard]] bool db() const { return (low >> 54 & 1) != 0; }
  [[nodiscard]] bool is_code() const { return s() && (type() & 8) != 0; }
  [[nodiscard]] bool is_data() const { return s() && (type() & 8) == 0; }
  [[nodiscard]] bool conforming() const { return (type() & 4) != 0; }
  [[nodiscard]] bool writable() const { return is_data() && (type() & 2) != 0; }
  [[nodiscard]] bool readable() const { return is_data() || (type() & 2) != 0; }
  [[nodiscard]] u64 base() const {
    return (low >> 16 & 0xffffff) | (low >> 32 & 0xff000000) | high << 32;
  }
  [[nodiscard]] u32 limit() const {
    const u32 raw = static_cast<u32>((low & 0xffff) | (low >> 32 & 0xf0000));
    return (low >> 55 & 1) != 0 ? raw << 12 | 0xfff : raw;
  }
  // As a loaded segment register.
  [[nodiscard]] Segment segment(u16 selector) const;
};

// False: #GP (or `vector`) with the selector is raised, or the access stopped.
[[nodiscard]] bool read_descriptor(Cpu& c, u16 selector, Vector vector, Descriptor* out);
// System descriptors have 16 bytes in long mode.
[[nodiscard]] bool read_system_descriptor(Cpu& c, u16 selector, Vector vector, Descriptor* out);
// Sets the accessed bit of a code or data descriptor that has been loaded.
[[nodiscard]] bool mark_accessed(Cpu& c, u16 selector, Descriptor* d);

// MOV/POP/LxS to DS, ES, FS, GS, SS: all checks of the mode, then the register. False: c.stop.
[[nodiscard]] bool load_segment(Cpu& c, unsigned segment, u16 selector);
// A stack segment for privilege level `cpl` without loading it; faults are `vector`.
[[nodiscard]] bool load_stack_segment(Cpu& c, u16 selector, u8 cpl, Vector vector, Segment* out);

// What 64-bit mode puts into SS when an interrupt changes the privilege level.
[[nodiscard]] Segment null_stack_segment(u8 cpl);
// A segment register after a null selector or an outward return took it away.
[[nodiscard]] Segment unusable_segment(u16 selector);
// Outward returns: data segments the new privilege level may not have become null.
void drop_inner_segments(Cpu& c);

}  // namespace stagetwo::vcpu
