// SPDX-License-Identifier: Apache-2.0
//
// String instructions. Each element is a step of its own: registers are right after every one, so a
// fault, an exit or a flush request in the middle leaves the instruction restartable. A REP form
// works at most kChunk elements before it lets the loop poll. MOVS and STOS move page-sized runs at
// once where both ends are ordinary memory and go upward.
#include <algorithm>

#include "vcpu/alu.h"
#include "vcpu/block_cache.h"
#include "vcpu/operand.h"

namespace stagetwo::vcpu::ops {
namespace {

constexpr u64 kChunk = 1024;

// The registers of a string instruction under its address size.
class Pointers {
 public:
  Pointers(Cpu& c, const Insn& insn) : c_(c), size_(insn.address_size) {}

  [[nodiscard]] u64 get(unsigned reg) const { return truncate(c_.s.gpr[reg]); }
  void set(unsigned reg, u64 value) {
    switch (size_) {
      case 2:
        set_gpr<u16>(c_, reg, static_cast<u16>(value));
        break;
      case 4:
        set_gpr<u32>(c_, reg, static_cast<u32>(value));
        break;
      default:
        c_.s.gpr[reg] = value;
        break;
    }
  }
  void advance(unsigned reg, u64 bytes) {
    const bool down = (c_.s.rflags & rflags::kDf) != 0;
    set(reg, down ? get(reg) - bytes : get(reg) + bytes);
  }
  [[nodiscard]] u64 truncate(u64 v) const {
    return size_ == 8 ? v : size_ == 4 ? static_cast<u32>(v) : static_cast<u16>(v);
  }

 private:
  Cpu& c_;
  unsigned size_;
};

template <typename T>
bool source_address(Cpu& c, const Insn& insn, const Pointers& p, u64* linear) {
  return linearize(c, static_cast<unsigned>(insn.segment), p.get(kRsi), sizeof(T), false, linear);
}
template <typename T>
bool dest_address(Cpu& c, const Pointers& p, bool write, u64* linear) {
  return linearize(c, kSegEs, p.get(kRdi), sizeof(T), write, linear);
}

// Repeats element() under REP, or does it once. `stop_on` ends REPE/REPNE early.
template <typename Element, typename Stop>
Step repeat(Cpu& c, const Insn& insn, Pointers& p, Element&& element, Stop&& stop_on) {
  if (!insn.rep && !insn.repne) return element() ? Step::kNext : c.stop;
  for (u64 done = 0; done < kChunk; ++done) {
    const u64 count = p.get(kRcx);
    if (count == 0) return Step::kNext;
    if (!element()) return c.stop;
    p.set(kRcx, count - 1);
    c.mmio.answered = c.mmio.position = 0;
    if (count == 1 || stop_on()) return Step::kNext;
    // A single step is one element.
    if ((c.attention & kAttendTrap) != 0) {
      c.element_done = true;
      return Step::kAgain;
    }
    // A write for the client, code of this page changed, a full ring: be seen in between.
    if ((c.attention & kAttendNow) != 0) return Step::kAgain;
  }
  return Step::kAgain;
}

// Elements that fit before the page of `linear` ends, going upward.
u64 room(u64 linear, u64 size) {
  return (kPageSize - (linear & ~kPageMask)) / size;
}

bool may_run(const Cpu& c, const Insn& insn) {
  return insn.rep && c.long64() && insn.address_size == 8 && (c.s.rflags & rflags::kDf) == 0 &&
         (c.attention & kAttendTrap) == 0;
}

// Copies `bytes`. False where the destination begins inside the source: there a pattern spreads,
// and only going element by element makes it.
bool copy_run(Cpu& c, Hva to, Hva from, u64 bytes) {
  u8* const buffer = c.blocks->scratch();
  if (to.raw() - from.raw() < bytes) return false;
  return host::copy_from(buffer, from, bytes) == bytes && host::copy_to(to, buffer, bytes) == bytes;
}

// A run of REP MOVS inside one source and one destination page. 0: go element by element.
template <typename T>
u64 movs_run(Cpu& c, const Insn& insn, Pointers& p) {
  if (!may_run(c, insn)) return 0;
  u64 from = 0, to = 0;
  if (!source_address<T>(c, insn, p, &from) || !dest_address<T>(c, p, true, &to)) return 0;
  const Hold hold(c);
  const TlbEntry& read = c.tlb->slot(from);
  const TlbEntry& write = c.tlb->slot(to);
  if (read.read_tag != (from & kPageMask) || write.write_tag != (to & kPageMask)) return 0;
  u64 count = std::min(p.get(kRcx), std::min(room(from, sizeof(T)), room(to, sizeof(T))));
  const u64 bytes = count * sizeof(T);
  if (bytes < 64 || !copy_run(c, Hva(to + write.addend), Hva(from + read.addend), bytes)) {
    return 0;
  }
  p.advance(kRsi, bytes);
  p.advance(kRdi, bytes);
  p.set(kRcx, p.get(kRcx) - count);
  return count;
}

template <typename T>
u64 stos_run(Cpu& c, const Insn& insn, Pointers& p) {
  if (!may_run(c, insn)) return 0;
  u64 to = 0;
  if (!dest_address<T>(c, p, true, &to)) return 0;
  const Hold hold(c);
  const TlbEntry& write = c.tlb->slot(to);
  if (write.write_tag != (to & kPageMask)) return 0;
  const u64 count = std::min(p.get(kRcx), room(to, sizeof(T)));
  const u64 bytes = count * sizeof(T);
  if (bytes < 64) return 0;
  u8* const buffer = c.blocks->scratch();
  const T value = get_gpr<T>(c, kRax);
  for (u64 i = 0; i < bytes; i += sizeof(T)) __builtin_memcpy(buffer + i, &value, sizeof(T));
  if (host::copy_to(Hva(to + write.addend), buffer, bytes) != bytes) return 0;
  p.advance(kRdi, bytes);
  p.set(kRcx, p.get(kRcx) - count);
  return count;
}

constexpr auto kNever = [] { return false; };

// CMPS and SCAS: the flags of one comparison an element, until REPE or REPNE has its answer.
// fetch(p, &left, &right) reads both sides; false where one cannot be read.
template <typename Fetch>
Step compare(Cpu& c, const Insn& insn, Fetch&& fetch) {
  return by_size(insn.operand_size, [&]<typename T>() {
    Pointers p(c, insn);
    const auto element = [&] {
      T left = 0, right = 0;
      if (!fetch(p, &left, &right)) return false;
      alu::sub<T>(c.flags, left, right);
      p.advance(kRdi, sizeof(T));
      return true;
    };
    return repeat(c, insn, p, element, [&] { return c.flags.zf() == insn.repne; });
  });
}

}  // namespace

Step movs(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    Pointers p(c, insn);
    if (movs_run<T>(c, insn, p) != 0) return p.get(kRcx) == 0 ? Step::kNext : Step::kAgain;
    return repeat(
        c, insn, p,
        [&] {
          u64 from = 0, to = 0;
          T value = 0;
          if (!source_address<T>(c, insn, p, &from) || !dest_address<T>(c, p, true, &to) ||
              !load(c, from, &value) || !store(c, to, value)) {
            return false;
          }
          p.advance(kRsi, sizeof(T));
          p.advance(kRdi, sizeof(T));
          return true;
        },
        kNever);
  });
}

Step stos(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    Pointers p(c, insn);
    if (stos_run<T>(c, insn, p) != 0) return p.get(kRcx) == 0 ? Step::kNext : Step::kAgain;
    return repeat(
        c, insn, p,
        [&] {
          u64 to = 0;
          if (!dest_address<T>(c, p, true, &to) || !store(c, to, get_gpr<T>(c, kRax))) return false;
          p.advance(kRdi, sizeof(T));
          return true;
        },
        kNever);
  });
}

Step lods(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    Pointers p(c, insn);
    return repeat(
        c, insn, p,
        [&] {
          u64 from = 0;
          T value = 0;
          if (!source_address<T>(c, insn, p, &from) || !load(c, from, &value)) return false;
          set_gpr<T>(c, kRax, value);
          p.advance(kRsi, sizeof(T));
          return true;
        },
        kNever);
  });
}

Step cmps(Cpu& c, const Insn& insn) {
  return compare(c, insn, [&]<typename T>(Pointers& p, T* left, T* right) {
    u64 from = 0, to = 0;
    if (!source_address<T>(c, insn, p, &from) || !dest_address<T>(c, p, false, &to)) return false;
    // As processors do: where both operands fault, one by itself tells of its destination, a
    // repeated one of its source.
    const bool source_first = insn.rep || insn.repne;
    if (source_first && !load(c, from, left)) return false;
    if (!load(c, to, right) || (!source_first && !load(c, from, left))) return false;
    p.advance(kRsi, sizeof(T));
    return true;
  });
}

Step scas(Cpu& c, const Insn& insn) {
  return compare(c, insn, [&]<typename T>(Pointers& p, T* left, T* right) {
    u64 to = 0;
    *left = get_gpr<T>(c, kRax);
    return dest_address<T>(c, p, false, &to) && load(c, to, right);
  });
}

}  // namespace stagetwo::vcpu::ops
