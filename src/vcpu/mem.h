// SPDX-License-Identifier: Apache-2.0
#pragma once

// Guest memory as an instruction sees it: segment, linear address, TLB, host access. A hit is a
// compare or two and one host instruction; everything else is in mem.cc.
// Linux analogue: linearize() and read_emulated/write_emulated of the kernel's emulator.
//
// False always means: nothing of this access happened that counts, and `c.stop` says how the
// instruction ends (kFault, kExit, kAgain).

#include <type_traits>

#include "host/access.h"
#include "vcpu/holding.h"

namespace stagetwo::vcpu {

// Who asks: explicit accesses have the privilege of CPL, implicit ones (descriptor tables, TSS,
// exception frames) that of the supervisor, whatever CPL is.
enum class Who : u8 { kExplicit, kSystem };

// --- Linear addresses ------------------------------------------------------------------------

// Everything but the hit; `size` <= 16 bytes, crossing pages allowed.
[[nodiscard]] bool load_slow(Cpu& c, u64 linear, void* data, u32 size, Who who);
[[nodiscard]] bool store_slow(Cpu& c, u64 linear, const void* data, u32 size, Who who);

// The entry in which an access hits, or null. First the one before: it is in hand before the
// address is known, so that a processor that guesses right need not wait for it, and most accesses
// are in the page of the one before. That a slot cannot be of the next page (I4 of soft_tlb.h) is
// not so there.
template <u64 TlbEntry::* kTag>
[[nodiscard, gnu::always_inline]] inline const TlbEntry* find_hit(Cpu& c, TlbEntry*& last,
                                                                  u64 linear, u64 size) {
  const u64 page = SoftTlb::tag(linear, size);
  if (page == last->*kTag && page == (linear & kPageMask)) [[likely]]
    return last;
  TlbEntry& slot = c.tlb->slot(linear);
  if (page != slot.*kTag) return nullptr;
  return last = &slot;
}

template <typename T>
[[nodiscard, gnu::always_inline]] inline bool load_hit(Cpu& c, u64 linear, T* out) {
  const TlbEntry* e = find_hit<&TlbEntry::read_tag>(c, c.last_read, linear, sizeof(T));
  return e != nullptr && host::load<T>(Hva(linear + e->addend), out, restartable(c));
}
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool store_hit(Cpu& c, u64 linear, T value) {
  const TlbEntry* e = find_hit<&TlbEntry::write_tag>(c, c.last_write, linear, sizeof(T));
  return e != nullptr && host::store<T>(Hva(linear + e->addend), value, restartable(c));
}
// old -> change(old), atomically if `locked`. *old receives what was there.
template <typename T, typename F>
[[nodiscard, gnu::always_inline]] inline bool update_hit(Cpu& c, u64 linear, bool locked, T* old,
                                                         F&& change) {
  const TlbEntry* e = find_hit<&TlbEntry::write_tag>(c, c.last_write, linear, sizeof(T));
  if (e == nullptr) return false;
  const Hva at(linear + e->addend);
  if (!host::load<T>(at, old, restartable(c))) return false;
  if (!locked) return host::store<T>(at, static_cast<T>(change(*old)), restartable(c));
  for (;;) {
    bool swapped = false;
    const T next = static_cast<T>(change(*old));
    if (!host::cmpxchg<T>(at, old, next, &swapped, restartable(c))) return false;
    if (swapped) return true;  // progress: as in host::fetch_update
  }
}
template <typename T>
[[nodiscard]] inline bool load(Cpu& c, u64 linear, T* out) {
  return load_hit(c, linear, out) || load_slow(c, linear, out, sizeof(T), Who::kExplicit);
}
template <typename T>
[[nodiscard]] inline bool store(Cpu& c, u64 linear, T value) {
  return store_hit(c, linear, value) || store_slow(c, linear, &value, sizeof(T), Who::kExplicit);
}

// Is this an access that CR0.AM and EFLAGS.AC forbid? True: #AC is raised. The functions above and
// below that take Who::kExplicit or none ask themselves; those that go page by page do not.
[[nodiscard]] bool misaligned(Cpu& c, u64 linear, u32 size);

// Any size up to a page; page by page.
[[nodiscard]] bool load_bytes(Cpu& c, u64 linear, void* data, u32 size, Who who);
[[nodiscard]] bool store_bytes(Cpu& c, u64 linear, const void* data, u32 size, Who who);

// Would a write of `size` bytes fault? Sets A and D, marks dirty. False: c.stop.
[[nodiscard]] bool probe_write(Cpu& c, u64 linear, u32 size, Who who = Who::kExplicit);
// The same for a read.
[[nodiscard]] bool probe_read(Cpu& c, u64 linear, u32 size);

// Where an access ends that wants the host address itself.
enum class Direct : u8 {
  kHost,     // *hva is good until the section is left, or no longer held
  kSplit,    // writable, but not at one address: crosses a page, or KVM makes the stores
  kMmio,     // nobody backs it
  kStopped,  // c.stop
};
// Stage 2 has an entry, and the host does not serve the access: the page goes, and the bell will be
// heard, or it went unheard, and the entry stays. So the access is made again from resolving on,
// this often; then the run ends with EFAULT. Post of give_up: c.stop. Returns false.
inline constexpr unsigned kBackstopTries = 64;
bool give_up(Cpu& c);
// For LOCK forms: the host address of `size` bytes with write (or read) permission. Context: a
// Hold, as long as *hva is used.
[[nodiscard]] Direct direct(Cpu& c, u64 linear, u32 size, Access access, Hva* hva);

// A store through `direct` may have hit cached code.
void note_store(Cpu& c, Hva at, u64 size);

// --- Segments --------------------------------------------------------------------------------

// Segment + offset to linear address with the checks of the mode. False: #GP or #SS raised.
[[nodiscard]] bool linearize_slow(Cpu& c, unsigned segment, u64 offset, u64 size, bool write,
                                  u64* linear);

constexpr bool is_canonical(u64 address, bool la57) {
  const unsigned shift = la57 ? 7 : 16;
  return static_cast<u64>(static_cast<i64>(address << shift) >> shift) == address;
}

[[nodiscard]] inline bool linearize(Cpu& c, unsigned segment, u64 offset, u64 size, bool write,
                                    u64* linear) {
  if (c.long64()) [[likely]] {
    u64 address = offset;
    if (segment >= kSegFs) address += segment == kSegFs ? c.fs_base : c.gs_base;
    *linear = address;
    // 48-bit canonical is canonical with 57 bits too.
    if (is_canonical(address, false) && is_canonical(address + size - 1, false)) [[likely]] {
      return true;
    }
  }
  return linearize_slow(c, segment, offset, size, write, linear);
}

// The offset a memory operand names, truncated to the address size.
[[nodiscard]] inline u64 effective_address(const Cpu& c, const Insn& insn) {
  u64 address = static_cast<u64>(insn.mem.disp);
  if (insn.mem.base < 16) {
    address += c.s.gpr[insn.mem.base];
  } else if (insn.mem.base == kRipBase) {
    address += c.next_rip;
  }
  if (insn.mem.index < 16) address += c.s.gpr[insn.mem.index] * insn.mem.scale;
  return insn.address_size == 8   ? address
         : insn.address_size == 4 ? static_cast<u32>(address)
                                  : static_cast<u16>(address);
}

[[nodiscard]] inline bool operand_address(Cpu& c, const Insn& insn, u64 size, bool write,
                                          u64* linear) {
  return linearize(c, static_cast<unsigned>(insn.segment), effective_address(c, insn), size, write,
                   linear);
}

}  // namespace stagetwo::vcpu
