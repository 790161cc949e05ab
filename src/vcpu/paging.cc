// SPDX-License-Identifier: Apache-2.0
#include "vcpu/paging.h"

#include "base/trace.h"
#include "host/access.h"
#include "pt/fmt/x86_first_level.h"
#include "pt/fmt/x86_legacy.h"
#include "stage2/address_space.h"
#include "vcpu/mem.h"

namespace stagetwo::vcpu {
namespace {

using stage2::FaultOutcome;

using pt::X86FirstLevel;
using pt::X86Legacy;
using pt::X86Pae;

constexpr u32 kErrP = 1, kErrW = 2, kErrU = 4, kErrRsvd = 8, kErrI = 16;

constexpr unsigned kWalkStep = 2;  // of docs/journeys/guest_fault.md

// kUnserved: stage 2 has the entry, and the host does not serve it; walk() tries again.
enum class PteRead : u8 { kOk, kAbsent, kUnserved, kStopped };

// A page that its keeper has not just now: the instruction begins again, and before it whoever
// wants the vCPU out is heard, also by a signal that has no handler, which is looked for from time
// to time only.
void comes_again(Cpu& c) {
  c.poll_countdown = 1;
  c.stop = Step::kAgain;
}

// After whatever may have pushed into the dirty ring.
void note_push(Cpu& c) {
  if (c.ring != nullptr && c.ring->soft_full()) c.attention |= kAttendRing;
}

stage2::Fault ask(const Cpu& c, Gpa gpa, Access access) {
  stage2::Fault fault;
  fault.gpa = gpa;
  fault.access = access;
  fault.ring = c.ring;
  return fault;
}

// Outside the section: makes the entry that the last translate() missed.
FaultOutcome resolve_outside(Cpu& c, stage2::Fault& fault) {
  leave_section(c);
  const FaultOutcome outcome = c.memory->handle_fault(*c.mmu, fault);
  enter_section(c);
  if (fault.access == Access::kWrite) note_push(c);
  return outcome;
}

// What the guest asks of private memory is the VMM's to arrange: KVM_EXIT_MEMORY_FAULT beside the
// errno.
void refuse_private(Cpu& c, const stage2::Fault& fault) {
  constexpr u64 kPrivateFlag = 8;
  c.exit.kind = ExitKind::kMemoryFault;
  c.exit.error = fault.error;
  c.exit.memory_fault = MemoryFaultExit{.flags = fault.is_private ? kPrivateFlag : 0,
                                        .gpa = Gpa(fault.gpa.raw() & kPageMask),
                                        .size = kPageSize};
  c.stop = Step::kExit;
}

// A bare errno with exit_reason 0: what the kernel does for shared memory.
void refuse_access(Cpu& c, FaultOutcome outcome) {
  c.exit.kind = ExitKind::kUnknown;
  c.exit.error = outcome == FaultOutcome::kPoison     ? EHWPOISON
                 : outcome == FaultOutcome::kNoMemory ? ENOMEM
                                                      : EFAULT;
  c.stop = Step::kExit;
}

// An entry that KVM itself reads, for KVM_TRANSLATE: at the client's address, whatever the frame's
// attribute says.
template <typename Word>
PteRead read_own_pte(Cpu& c, Gpa at, Word* entry) {
  leave_section(c);
  const FaultOutcome outcome = c.memory->read(at, entry, sizeof(Word));
  enter_section(c);
  return outcome == FaultOutcome::kFixed ? PteRead::kOk : PteRead::kAbsent;
}

// One entry. The walk is the processor's, which reads tables as it reads anything of the guest: by
// the VM's table, whose entry is marked accessed. So a table in a private frame is read from the
// slot's file, and what stage 2 refuses ends the run as for any access. What has no slot is MMIO:
// KVM's emulator walks again, finds no memory, and the guest gets its page fault.
// What has no entry is given one, and read by an access of ours, so that a walk ends whatever comes
// between. That access asks the host as for the first time, where an entry may still stand for
// memory that went unheard: what it says of the host is the answer, as for an access to data.
template <typename Word>
PteRead read_pte(Cpu& c, Gpa at, Word* entry) {
  stage2::Fault fault = ask(c, at, Access::kRead);
  if (c.memory->translate(*c.mmu, fault, kWalkStep) == stage2::Walk::Kind::kHit &&
      host::load<Word>(fault.page + page_offset(at), entry)) {
    return PteRead::kOk;
  }
  leave_section(c);
  FaultOutcome outcome = c.memory->handle_fault(*c.mmu, fault);
  bool changed = false;
  if (outcome == FaultOutcome::kFixed || outcome == FaultOutcome::kSpurious ||
      outcome == FaultOutcome::kRetry) {
    outcome = c.memory->read_as_guest(at, entry, sizeof(Word));
    changed = outcome == FaultOutcome::kMemoryFault;
  }
  enter_section(c);
  if (outcome == FaultOutcome::kFixed) return PteRead::kOk;
  if (outcome == FaultOutcome::kMmio) return PteRead::kAbsent;
  if (outcome == FaultOutcome::kSpurious) {
    comes_again(c);
    return PteRead::kStopped;
  }
  // Its attribute changed after the fault, which the next one meets, or a page of a file is not
  // what stage 2 thinks.
  if (changed) return PteRead::kUnserved;
  if (outcome == FaultOutcome::kMemoryFault) {
    refuse_private(c, fault);
  } else {
    refuse_access(c, outcome);
  }
  return PteRead::kStopped;
}

// What became of the bits: they are set, the entry changed (walk again), as PteRead, the run ends.
enum class BitsSet : u8 { kYes, kAgain, kUnserved, kStopped };

// The page of an entry went since it was read, or a page of a file cannot be written: a fault tells
// the two apart.
BitsSet refused_bits(Cpu& c, stage2::Fault& fault) {
  const FaultOutcome outcome = resolve_outside(c, fault);
  if (outcome == FaultOutcome::kRetry) return BitsSet::kAgain;
  if (outcome != FaultOutcome::kMemoryFault) return BitsSet::kUnserved;
  refuse_private(c, fault);
  return BitsSet::kStopped;
}

template <typename Word>
BitsSet set_bits(Cpu& c, Gpa at, Word entry, Word bits) {
  Word expected = entry;
  const Word desired = entry | bits;
  bool swapped = false;
  stage2::Fault fault = ask(c, at, Access::kWrite);
  // A translation that permits stores is in the dirty log already.
  if (c.memory->translate(*c.mmu, fault, kWalkStep) == stage2::Walk::Kind::kHit &&
      host::cmpxchg(fault.page + page_offset(at), &expected, desired, &swapped)) {
    return swapped ? BitsSet::kYes : BitsSet::kAgain;
  }
  FaultOutcome outcome = c.memory->try_cmpxchg<Word>(at, &expected, desired, &swapped, c.ring);
  if (outcome == FaultOutcome::kRetry) {
    leave_section(c);
    outcome = c.memory->cmpxchg<Word>(at, &expected, desired, &swapped, c.ring);
    enter_section(c);
  }
  note_push(c);
  switch (outcome) {
    case FaultOutcome::kFixed:
      return swapped ? BitsSet::kYes : BitsSet::kAgain;
    case FaultOutcome::kSpurious:
      comes_again(c);
      return BitsSet::kStopped;
    case FaultOutcome::kRetry:
    case FaultOutcome::kEmulate:
    case FaultOutcome::kMmio:
      // A table in a read-only slot keeps its bits and serves all the same, as in the kernel.
      return BitsSet::kYes;
    case FaultOutcome::kMemoryFault:
      return refused_bits(c, fault);
    case FaultOutcome::kToUser:
    case FaultOutcome::kPoison:
    case FaultOutcome::kNoMemory:
      refuse_access(c, outcome);
      return BitsSet::kStopped;
  }
  return BitsSet::kStopped;
}

// Reserved bits of an entry that maps (leaf) or points on: the format's, and what this processor
// adds. 32-bit entries have no bit above MAXPHYADDR.
template <pt::Format F>
u64 reserved_bits(const Cpu& c, unsigned level, bool leaf) {
  u64 bits = F::always_reserved(leaf, level);
  if constexpr (F::kNoExecute != 0) {
    bits |= c.reserved_gpa & F::kAddressMask;
    if ((c.s.sys.efer & efer::kNx) == 0) bits |= F::kNoExecute;
  }
  return bits;
}

// CR4.PSE is a matter of 32-bit entries alone.
template <pt::Format F>
bool knows_large_pages(const Cpu& c) {
  return sizeof(typename F::Word) == 8 || (c.s.sys.cr4 & cr4::kPse) != 0;
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

// The walk's memory of what it passed, for the bits it sets afterwards: [n - 1] is of level n.
template <pt::Format F>
struct Path {
  Gpa at[F::kMaxLevel];
  typename F::Word entry[F::kMaxLevel];
};

// From the root down to the leaf.
template <pt::Format F>
BitsSet update_bits(Cpu& c, const Path<F>& path, unsigned root_level, unsigned leaf_level,
                    bool write) {
  for (unsigned level = root_level; level >= leaf_level; --level) {
    if (!F::has_rights(level)) continue;
    typename F::Word want = F::kAccessed;
    if (write && level == leaf_level) want |= F::kDirty;
    const auto entry = path.entry[level - 1];
    if ((entry & want) == want) continue;
    const BitsSet done = set_bits(c, path.at[level - 1], entry, want);
    if (done != BitsSet::kYes) return done;
  }
  return BitsSet::kYes;
}

enum class Attempt : u8 { kDone, kFailed, kAgain, kUnserved };

Attempt attempt_after(BitsSet bits) {
  switch (bits) {
    case BitsSet::kYes:
      return Attempt::kDone;
    case BitsSet::kAgain:
      return Attempt::kAgain;
    case BitsSet::kUnserved:
      return Attempt::kUnserved;
    case BitsSet::kStopped:
      return Attempt::kFailed;
  }
  return Attempt::kFailed;
}

template <pt::Format F>
Attempt walk_tables(Cpu& c, const WalkRequest& r, u64 table, unsigned root_level,
                    Translation* out) {
  Path<F> path;
  Rights rights;
  for (unsigned level = root_level;; --level) {
    const u64 index = pt::index_of<F>(r.linear >> F::kGranuleLg2, level);
    const Gpa at(table + index * sizeof(typename F::Word));
    typename F::Word entry = 0;
    const PteRead read = r.quiet ? read_own_pte(c, at, &entry) : read_pte(c, at, &entry);
    if (read == PteRead::kStopped) return Attempt::kFailed;
    if (read == PteRead::kUnserved) return Attempt::kUnserved;
    if (read == PteRead::kAbsent || !F::is_present(entry)) {
      page_fault(c, r, 0);
      return Attempt::kFailed;
    }
    const bool leaf = F::is_leaf(entry, level) && (level == 1 || knows_large_pages<F>(c));
    if (const u64 reserved = reserved_bits<F>(c, level, leaf); (entry & reserved) != 0) {
      page_fault(c, r, kErrP | kErrRsvd);
      if (!r.quiet) c.fault.by_guest_width = by_guest_width(c, entry, reserved);
      return Attempt::kFailed;
    }
    path.at[level - 1] = at;
    path.entry[level - 1] = entry;
    if (F::has_rights(level)) {
      rights.write = rights.write && (entry & F::kWritable) != 0;
      rights.user = rights.user && (entry & F::kUser) != 0;
      rights.no_exec = rights.no_exec || (entry & F::kNoExecute) != 0;
    }
    if (!leaf) {
      table = F::table_address(entry);
      continue;
    }
    if (!permitted(c, r, rights)) {
      page_fault(c, r, kErrP);
      return Attempt::kFailed;
    }
    const bool write = r.access == Access::kWrite;
    const BitsSet bits =
        r.quiet ? BitsSet::kYes : update_bits<F>(c, path, root_level, level, write);
    if (bits != BitsSet::kYes) return attempt_after(bits);
    const u64 offset = r.linear & ((u64{1} << pt::bytes_lg2<F>(level)) - 1);
    out->gpa = Gpa(F::leaf_address(entry, level) | offset);
    out->large = level > 1;
    out->write_ready = write;
    return Attempt::kDone;
  }
}

Attempt attempt_walk(Cpu& c, const WalkRequest& r, Translation* out) {
  const u64 root = c.s.sys.cr3;
  if (c.s.long_mode()) {
    const unsigned levels = (c.s.sys.cr4 & cr4::kLa57) != 0 ? 5 : 4;
    return walk_tables<X86FirstLevel>(c, r, X86FirstLevel::table_address(root), levels, out);
  }
  if ((c.s.sys.cr4 & cr4::kPae) != 0) {
    return walk_tables<X86Pae>(c, r, X86Pae::root_address(root), 3, out);
  }
  return walk_tables<X86Legacy>(c, r, root & X86Legacy::kAddressMask, 2, out);
}

}  // namespace

bool walk(Cpu& c, const WalkRequest& request, Translation* out) {
  if ((c.s.sys.cr0 & cr0::kPg) == 0) {
    out->gpa = Gpa(request.linear & 0xffffffff);
    out->write_ready = request.access == Access::kWrite;
    return true;
  }
  for (unsigned unserved = 0;;) {
    switch (attempt_walk(c, request, out)) {
      case Attempt::kDone:
        return true;
      case Attempt::kFailed:
        return false;
      case Attempt::kUnserved:
        if (++unserved == kBackstopTries) return give_up(c);
        break;
      case Attempt::kAgain:
        break;
    }
    // Progress: another writer changed the entry. A guest that never stops is left by request.
    if (c.exit_requested.load(std::memory_order_relaxed) != 0 && !request.quiet) {
      c.stop = Step::kAgain;
      return false;
    }
  }
}

Second second_level(Cpu& c, Gpa gpa, Access access, Hva* hva, bool* is_private) {
  trace::enter_room(trace::Room::vcpu, 3, gpa.raw());
  constexpr unsigned kPatience = 2;  // of a fault that somebody else has to end
  stage2::Fault fault = ask(c, Gpa(gpa.raw() & kPageMask), access);
  for (unsigned turn = 0;; ++turn) {
    switch (c.memory->translate(*c.mmu, fault)) {
      case stage2::Walk::Kind::kHit:
        *hva = fault.page + page_offset(gpa);
        *is_private = fault.is_private;
        return Second::kHost;
      case stage2::Walk::Kind::kMmio:
        trace::emit(trace::Event::handle_mmio_page_fault, trace::Room::vcpu, gpa.raw(),
                    fault.gfn.raw());
        return Second::kMmio;
      case stage2::Walk::Kind::kMiss:
        break;
    }
    trace::emit(trace::Event::kvm_page_fault, trace::Room::vcpu, c.id, c.s.rip, gpa.raw(),
                access == Access::kWrite  ? kErrW
                : access == Access::kExec ? kErrI
                                          : 0);
    switch (const FaultOutcome outcome = resolve_outside(c, fault)) {
      case FaultOutcome::kFixed:
      case FaultOutcome::kSpurious:
      case FaultOutcome::kRetry:
        break;  // as a processor does after a fault: it translates again
      case FaultOutcome::kEmulate:
        return Second::kTracked;
      case FaultOutcome::kMmio:
        return Second::kMmio;
      case FaultOutcome::kToUser:
      case FaultOutcome::kPoison:
      case FaultOutcome::kNoMemory:
        refuse_access(c, outcome);
        return Second::kStopped;
      case FaultOutcome::kMemoryFault:
        refuse_private(c, fault);
        return Second::kStopped;
    }
    // Progress: the change that came between ends; a client that wants out is heard meanwhile.
    if (c.exit_requested.load(std::memory_order_relaxed) != 0) {
      c.stop = Step::kAgain;
      return Second::kStopped;
    }
    if (turn == kPatience) {
      comes_again(c);
      return Second::kStopped;
    }
  }
}

bool store_tracked(Cpu& c, Gpa gpa, const void* data, u32 size) {
  leave_section(c);
  const FaultOutcome outcome = c.memory->emulated_write(gpa, data, size, c.ring);
  enter_section(c);
  note_push(c);
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
