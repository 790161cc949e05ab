// SPDX-License-Identifier: Apache-2.0
#include "abi/vfio/vector_store.h"

#include <cpuid.h>

#include <algorithm>
#include <cstring>

#include "sync/atomic.h"

namespace stagetwo::abi_vfio {
namespace {

using vcpu::Insn;
using vcpu::Op;

constexpr unsigned kXmmBytes = 16, kYmmBytes = 32;

// ---- registers

// Components of the XSAVE area.
enum class Part : unsigned { kSse = 1, kYmmHigh = 2, kMasks = 5, kZmmHigh = 6, kZmmUpper = 7 };

// Where one stands, and how large it is: the processor's own, asked once, for that is dear in a
// guest.
struct Place {
  u32 start, size;
};
Place place_of(Part part) {
  static constinit sync::Atomic<u64> known[8] = {};
  sync::Atomic<u64>& place = known[static_cast<unsigned>(part)];
  if (place.load(sync::kRelaxed) == 0) {
    u32 size = 0, start = 0, rest[2] = {};
    __cpuid_count(0xd, static_cast<unsigned>(part), size, start, rest[0], rest[1]);
    place.store(u64{start} << 32 | size, sync::kRelaxed);
  }
  const u64 found = place.load(sync::kRelaxed);
  return {static_cast<u32>(found >> 32), static_cast<u32>(found)};
}

class Frame {
 public:
  explicit Frame(const ucontext_t& context)
      : area_(reinterpret_cast<const u8*>(context.uc_mcontext.fpregs)) {}

  bool read_vector(unsigned number, u8* to) const {
    if (number >= 16) return read(Part::kZmmUpper, (number - 16) * VectorStore::kMost, to, 64);
    return read(Part::kSse, number * kXmmBytes, to, kXmmBytes) &&
           read(Part::kYmmHigh, number * kXmmBytes, to + kXmmBytes, kXmmBytes) &&
           read(Part::kZmmHigh, number * kYmmBytes, to + kYmmBytes, kYmmBytes);
  }
  bool read_mask(unsigned number, u64* to) const {
    return read(Part::kMasks, number * sizeof(*to), reinterpret_cast<u8*>(to), sizeof(*to));
  }

 private:
  // Struct _fpx_sw_bytes in the part of the legacy area that is software's, and the header.
  static constexpr unsigned kSoftware = 464, kHeader = 512, kXmm = 160;
  static constexpr u32 kMagic = 0x46505853;
  template <typename T>
  [[nodiscard]] T at(unsigned offset) const {
    T value;
    std::memcpy(&value, area_ + offset, sizeof(value));
    return value;
  }
  // What the processor has not, or has not used, reads as zeros. False: there is no such frame.
  bool read(Part part, unsigned offset, u8* to, unsigned bytes) const {
    std::memset(to, 0, bytes);
    if (area_ == nullptr) return false;
    const auto number = static_cast<unsigned>(part);
    const bool extended = at<u32>(kSoftware) == kMagic;
    if (!extended) return part == Part::kSse && copy(kXmm + offset, to, bytes);
    const u64 used = at<u64>(kHeader) & at<u64>(kSoftware + 8);
    if ((used >> number & 1) == 0) return true;
    if (part == Part::kSse) return copy(kXmm + offset, to, bytes);
    const Place place = place_of(part);
    if (offset + bytes > place.size || place.start + place.size > at<u32>(kSoftware + 16)) {
      return false;
    }
    return copy(place.start + offset, to, bytes);
  }
  bool copy(unsigned offset, u8* to, unsigned bytes) const {
    std::memcpy(to, area_ + offset, bytes);
    return true;
  }

  const u8* const area_;
};

// ---- prefixes

struct Prefix {
  enum Mandatory : u8 { kNone, k66, kF3, kF2 };
  u8 mandatory = kNone;
  bool wide = false;  // W
  bool evex = false;
  unsigned vector = kXmmBytes;  // the length
  unsigned high = 0;            // of the number in ModRM's reg
  unsigned mask = 0;            // 0: none
};

bool read_prefix(std::span<const u8> code, const Insn& insn, Prefix* prefix) {
  if (insn.op == Op::kSseLater) {  // PEXTR
    prefix->mandatory = Prefix::k66;
    prefix->wide = insn.rex_w;
    for (const u8 byte : code) {
      if (byte == 0x0f) break;
      if ((byte & 0xf0) == 0x40) prefix->high = (byte & 4) != 0 ? 8 : 0;
    }
    return true;
  }
  size_t i = 0;
  while (i < code.size() && code[i] != 0xc4 && code[i] != 0xc5 && code[i] != 0x62) ++i;
  if (i + 4 > code.size()) return false;
  const u8 kind = code[i], first = code[i + 1];
  const u8 second = kind == 0xc5 ? first : code[i + 2];
  prefix->high = (first & 0x80) == 0 ? 8 : 0;
  prefix->mandatory = second & 3;
  prefix->wide = kind != 0xc5 && (second & 0x80) != 0;
  if (kind != 0x62) {
    prefix->vector = (second & 4) != 0 ? kYmmBytes : kXmmBytes;
    return true;
  }
  const u8 third = code[i + 3];
  prefix->evex = true;
  prefix->high += (first & 0x10) == 0 ? 16 : 0;
  prefix->vector = kXmmBytes << (third >> 5 & 3);
  prefix->mask = third & 7;
  return prefix->vector <= VectorStore::kMost;
}

// ---- instructions

// Which bytes of the register go; an element is what a bit of the mask stands for, 0: no mask.
struct Form {
  unsigned bytes = 0, from = 0, element = 0;
};

Form whole(const Prefix& p, unsigned element) {
  return {p.vector, 0, element};
}

Form form_0f(const Prefix& p, const Insn& insn) {
  const bool packed = p.mandatory == Prefix::kNone || p.mandatory == Prefix::k66;
  const unsigned number = p.wide ? 8 : 4;
  switch (insn.opcode) {
    case 0x11:
      if (!packed) return {p.mandatory == Prefix::kF3 ? 4u : 8u, 0, VectorStore::kMost};
      [[fallthrough]];
    case 0x29:
      return packed ? whole(p, p.mandatory == Prefix::k66 ? 8 : 4) : Form{};
    case 0x13:
      return packed ? Form{8, 0, 0} : Form{};
    case 0x17:
      return packed ? Form{8, 8, 0} : Form{};
    case 0x2b:
      return packed ? whole(p, 0) : Form{};
    case 0xe7:
      return p.mandatory == Prefix::k66 ? whole(p, 0) : Form{};
    case 0x7e:
      return p.mandatory == Prefix::k66 ? Form{number, 0, 0} : Form{};
    case 0xd6:
      return p.mandatory == Prefix::k66 ? Form{8, 0, 0} : Form{};
    case 0x7f:
      if (p.mandatory == Prefix::kNone) return {};
      if (p.mandatory == Prefix::kF2) return p.evex ? whole(p, p.wide ? 2 : 1) : Form{};
      return whole(p, number);
    default:
      return {};
  }
}

Form form_0f3a(const Prefix& p, const Insn& insn) {
  if (p.mandatory != Prefix::k66) return {};
  const auto lane = static_cast<unsigned>(insn.imm);
  const unsigned number = p.wide ? 8 : 4;
  switch (insn.opcode) {
    case 0x14:
      return {1, lane & 15, 0};
    case 0x15:
      return {2, (lane & 7) * 2, 0};
    case 0x16:
      return {number, lane * number & 15, 0};
    case 0x17:
      return {4, (lane & 3) * 4, 0};
    case 0x19:
    case 0x39:
      return {kXmmBytes, lane * kXmmBytes & (p.vector - 1), number};
    case 0x1b:
    case 0x3b:
      return p.evex ? Form{kYmmBytes, lane * kYmmBytes & (p.vector - 1), number} : Form{};
    default:
      return {};
  }
}

}  // namespace

bool read_vector_store(std::span<const u8> code, const ucontext_t& context, Insn* insn,
                       VectorStore* store) {
  Prefix prefix;
  if (!insn->has_mem || !read_prefix(code, *insn, &prefix)) return false;
  const Form form = insn->map == 1   ? form_0f(prefix, *insn)
                    : insn->map == 3 ? form_0f3a(prefix, *insn)
                                     : Form{};
  if (form.bytes == 0 || (prefix.mask != 0 && form.element == 0)) return false;
  const Frame frame(context);
  u8 whole_register[VectorStore::kMost];
  const unsigned number = prefix.high + (insn->modrm >> 3 & 7);
  if (!frame.read_vector(number, whole_register)) return false;
  std::copy_n(whole_register + form.from, form.bytes, store->value);
  store->bytes = form.bytes;
  if (prefix.mask != 0) {
    u64 mask = 0;
    if (!frame.read_mask(prefix.mask, &mask)) return false;
    store->kept = 0;
    for (unsigned i = 0; i < form.bytes; ++i) {
      store->kept |= (mask >> i / form.element & 1) << i;
    }
  }
  // A displacement of one byte counts operands.
  if (prefix.evex && insn->modrm >> 6 == 1) insn->mem.disp *= form.bytes;
  return true;
}

}  // namespace stagetwo::abi_vfio
