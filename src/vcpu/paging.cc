// SPDX-License-Identifier: Apache-2.0
#include "vcpu/paging.h"

#include "base/trace.h"
#include "stage2/address_space.h"

namespace stagetwo::vcpu {
namespace {

using stage2::FaultOutcome;

constexpr u64 kPresent = 1, kWritable = 2, kUser = 4, kAccessed = 0x20, kDirty = 0x40,
              kLarge = 0x80;
constexpr u64 kNx = u64{1} << 63;
constexpr u64 kAddressMask = 0x000ffffffffff000;

constexpr u32 kErrP = 1, kErrW = 2, kErrU = 4, kErrRsvd = 8, kErrI = 16;

// The shape of a paging mode.
struct Shape {
  unsigned levels;
  unsigned entry_size;
  unsigned index_bits;
};

Shape shape_of(const Cpu& c) {
  if (c.s.long_mode()) return {(c.s.sys.cr4 & cr4::kLa57) != 0 ? 5U : 4U, 8, 9};
  if ((c.s.sys.cr4 & cr4::kPae) != 0) return {3, 8, 9};
  return {2, 4, 10};
}

enum class PteRead : u8 { kOk, kAbsent, kStopped };

// After whatever may have pushed into the dirty ring.
void note_push(Cpu& c) {
  if (c.ring != nullptr && c.ring->soft_full()) c.attention |= kAttendRing;
}

// One entry, without blocking where it can be had so.
PteRead read_pte(Cpu& c, Gpa at, unsigned size, u64* entry) {
  *entry = 0;
  FaultOutcome outcome = c.memory->try_read(at, entry, size);
  if (outcome == FaultOutcome::kRetry) {
    leave_section(c);
    outcome = c.memory->read(at, entry, size);
    enter_section(c);
  }
  return outcome == FaultOutcome::kFixed ? PteRead::kOk : PteRead::kAbsent;
}

// True if the bits are set now; false: the entry changed, walk again.
template <typename T>
bool set_bits_as(Cpu& c, Gpa at, u64 entry, u64 bits) {
  T expected = static_cast<T>(entry);
  const T desired = static_cast<T>(entry | bits);
  bool swapped = false;
  FaultOutcome outcome = c.memory->try_cmpxchg<T>(at, &expected, desired, &swapped, c.ring);
  if (outcome == FaultOutcome::kRetry) {
    leave_section(c);
    outcome = c.memory->cmpxchg<T>(at, &expected, desired, &swapped, c.ring);
    enter_section(c);
  }
  note_push(c);
  // A table in read-only memory keeps its bits and serves all the same, as in the kernel.
  return outcome != FaultOutcome::kFixed || swapped;
}

bool set_bits(Cpu& c, Gpa at, unsigned size, u64 entry, u64 bits) {
  return size == 8 ? set_bits_as<u64>(c, at, entry, bits) : set_bits_as<u32>(c, at, entry, bits);
}

// Reserved bits of an entry that maps (leaf) or points on. `level` counts from 1 at the bottom.
u64 reserved_bits(const Cpu& c, const Shape& shape, unsigned level, bool leaf) {
  if (shape.entry_size == 4) {
    // 4 MiB pages: bit 21; bits 20:13 are address bits 39:32 (PSE-36).
    return leaf && level == 2 ? u64{1} << 21 : 0;
  }
  u64 bits = c.reserved_gpa & kAddressMask;
  if ((c.s.sys.efer & efer::kNx) == 0) bits |= kNx;
  if (shape.levels == 3) {
    bits |= u64{0x7ff} << 52;
    if (level == 3) bits |= 0x1e6 | kNx;
  }
  if (leaf && level == 2) bits |= 0x1fe000;
  if (leaf && level == 3) bits |= 0x3fffe000;
  if (level >= 4) bits |= kLarge;
  return bits;
}

struct Rights {
  bool write = true;
  bool user = true;
  bool no_exec = false;
};

bool permitted(const Cpu& c, const WalkRequest& r, const Rights& have) {
  const bool write = r.access == Access::kWrite;
  const bool fetch = r.access == Access::kExec;
  if (fetch && have.no_exec) return false;
  if (r.user) return have.user && (!write || have.write);
  if (write && !have.write && (c.s.sys.cr0 & cr0::kWp) != 0) return false;
  if (!have.user) return true;
  if (fetch) return (c.s.sys.cr4 & cr4::kSmep) == 0;
  if ((c.s.sys.cr4 & cr4::kSmap) == 0) return true;
  return !r.implicit && (c.s.rflags & rflags::kAc) != 0;
}

// True if `entry` is refused only because the guest's CPUID tells fewer address bits than the
// processor has. Analogue: kvm_vcpu_is_legal_gpa() under allow_smaller_maxphyaddr.
bool by_guest_width(const Cpu& c, u64 entry, u64 reserved) {
  const u64 within_processor = (u64{1} << c.policy->physical_width) - 1;
  return (entry & reserved & ~(c.reserved_gpa & within_processor)) == 0;
}

bool page_fault(Cpu& c, const WalkRequest& r, u32 error) {
  if (r.quiet) return false;
  if (r.access == Access::kWrite) error |= kErrW;
  if (r.user) error |= kErrU;
  if (r.access == Access::kExec &&
      ((c.s.sys.efer & efer::kNx) != 0 || (c.s.sys.cr4 & cr4::kSmep) != 0)) {
    error |= kErrI;
  }
  c.raise(kVectorPf, error);
  c.fault.payload = r.linear;
  return false;
}

// The walk's memory of what it passed, for the bits it sets afterwards.
struct Path {
  Gpa at[5];
  u64 entry[5];
  unsigned count = 0;
};

enum class Passed : u8 { kYes, kAgain };

Passed update_bits(Cpu& c, const Shape& shape, const Path& path, bool write) {
  for (unsigned i = 0; i < path.count; ++i) {
    // PDPTEs of PAE paging have no accessed bit.
    if (shape.levels == 3 && i == 0) continue;
    u64 want = kAccessed;
    if (write && i + 1 == path.count) want |= kDirty;
    if ((path.entry[i] & want) == want) continue;
    if (!set_bits(c, path.at[i], shape.entry_size, path.entry[i], want)) return Passed::kAgain;
  }
  return Passed::kYes;
}

Gpa leaf_address(const Shape& shape, unsigned level, u64 entry, u64 linear) {
  const unsigned page_bits = kPageShift + (level - 1) * shape.index_bits;
  const u64 offset = (u64{1} << page_bits) - 1;
  u64 base = entry & kAddressMask & ~offset;
  if (shape.entry_size == 4 && level == 2) base |= (entry >> 13 & 0xff) << 32;
  return Gpa(base | (linear & offset));
}

enum class Attempt : u8 { kDone, kFailed, kAgain };

Attempt attempt_walk(Cpu& c, const WalkRequest& r, Translation* out) {
  const Shape shape = shape_of(c);
  Path path;
  Rights rights;
  u64 table = c.s.sys.cr3 & kAddressMask;
  if (shape.levels == 3) table = c.s.sys.cr3 & 0xffffffe0;
  if (shape.levels == 2) table = c.s.sys.cr3 & 0xfffff000;
  for (unsigned level = shape.levels;; --level) {
    const unsigned shift = kPageShift + (level - 1) * shape.index_bits;
    const u64 index_mask = shape.levels == 3 && level == 3 ? 3 : (u64{1} << shape.index_bits) - 1;
    const Gpa at(table + (r.linear >> shift & index_mask) * shape.entry_size);
    u64 entry = 0;
    if (read_pte(c, at, shape.entry_size, &entry) != PteRead::kOk || (entry & kPresent) == 0) {
      page_fault(c, r, 0);
      return Attempt::kFailed;
    }
    const bool may_be_large = level >= 2 && level <= 3 && shape.levels != 3;
    const bool pse = shape.entry_size == 8 || (c.s.sys.cr4 & cr4::kPse) != 0;
    const bool leaf = level == 1 || ((entry & kLarge) != 0 && pse &&
                                     (may_be_large || (shape.levels == 3 && level == 2)));
    if (const u64 reserved = reserved_bits(c, shape, level, leaf); (entry & reserved) != 0) {
      page_fault(c, r, kErrP | kErrRsvd);
      if (!r.quiet) c.fault.by_guest_width = by_guest_width(c, entry, reserved);
      return Attempt::kFailed;
    }
    path.at[path.count] = at;
    path.entry[path.count++] = entry;
    if (!(shape.levels == 3 && level == 3)) {
      rights.write = rights.write && (entry & kWritable) != 0;
      rights.user = rights.user && (entry & kUser) != 0;
      rights.no_exec = rights.no_exec || (shape.entry_size == 8 && (entry & kNx) != 0);
    }
    if (!leaf) {
      table = entry & kAddressMask;
      continue;
    }
    if (!permitted(c, r, rights)) {
      page_fault(c, r, kErrP);
      return Attempt::kFailed;
    }
    const bool write = r.access == Access::kWrite;
    if (!r.quiet && update_bits(c, shape, path, write) == Passed::kAgain) return Attempt::kAgain;
    out->gpa = leaf_address(shape, level, entry, r.linear);
    out->large = level > 1;
    out->write_ready = write;
    return Attempt::kDone;
  }
}

}  // namespace

bool walk(Cpu& c, const WalkRequest& request, Translation* out) {
  if ((c.s.sys.cr0 & cr0::kPg) == 0) {
    out->gpa = Gpa(request.linear & 0xffffffff);
    out->write_ready = request.access == Access::kWrite;
    return true;
  }
  for (;;) {
    switch (attempt_walk(c, request, out)) {
      case Attempt::kDone:
        return true;
      case Attempt::kFailed:
        return false;
      case Attempt::kAgain:
        // Progress: another writer changed the entry. A guest that never stops is left by request.
        if (c.exit_requested.load(std::memory_order_relaxed) != 0 && !request.quiet) {
          c.stop = Step::kAgain;
          return false;
        }
    }
  }
}

namespace {

// A bare errno with exit_reason 0: what the kernel does for shared memory.
void refuse_access(Cpu& c, FaultOutcome outcome) {
  c.exit.kind = ExitKind::kUnknown;
  c.exit.error = outcome == FaultOutcome::kPoison     ? EHWPOISON
                 : outcome == FaultOutcome::kNoMemory ? ENOMEM
                                                      : EFAULT;
  c.stop = Step::kExit;
}

}  // namespace

Second second_level(Cpu& c, Gpa gpa, Access access, Hva* hva) {
  for (;;) {
    stage2::Fault fault;
    fault.gpa = Gpa(gpa.raw() & kPageMask);
    fault.access = access;
    fault.ring = c.ring;
    trace::enter_room(trace::Room::vcpu, 3, gpa.raw());
    leave_section(c);
    const FaultOutcome outcome = c.memory->handle_fault(fault);
    enter_section(c);
    trace::emit(trace::Event::kvm_page_fault, trace::Room::vcpu, c.id, c.s.rip, gpa.raw(),
                access == Access::kWrite  ? kErrW
                : access == Access::kExec ? kErrI
                                          : 0);
    switch (outcome) {
      case FaultOutcome::kFixed:
      case FaultOutcome::kSpurious:
        if (!c.memory->install(fault)) break;
        if (access == Access::kWrite) note_push(c);
        *hva = fault.page + page_offset(gpa);
        return Second::kHost;
      case FaultOutcome::kRetry:
        break;
      case FaultOutcome::kEmulate:
        return Second::kTracked;
      case FaultOutcome::kMmio:
        return Second::kMmio;
      case FaultOutcome::kToUser:
      case FaultOutcome::kPoison:
      case FaultOutcome::kNoMemory:
        refuse_access(c, outcome);
        return Second::kStopped;
    }
    // Progress: the change that came between ends; a client that wants out is heard meanwhile.
    if (c.exit_requested.load(std::memory_order_relaxed) != 0) {
      c.stop = Step::kAgain;
      return Second::kStopped;
    }
  }
}

bool store_tracked(Cpu& c, Gpa gpa, const void* data, u32 size) {
  leave_section(c);
  const FaultOutcome outcome = c.memory->emulated_write(gpa, data, size);
  enter_section(c);
  c.attention |= kAttendCode;  // where it went in the host is not known here
  if (outcome == FaultOutcome::kFixed) return true;
  if (outcome == FaultOutcome::kMmio) {  // the slot went meanwhile: the instruction asks again
    c.stop = Step::kAgain;
    return false;
  }
  refuse_access(c, outcome);
  return false;
}

}  // namespace stagetwo::vcpu
