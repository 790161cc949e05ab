// SPDX-License-Identifier: Apache-2.0
//
// The way of an access that is not a TLB hit:
//
//   resolve     TLB of the privilege, else walk (guest tables) and second_level (stage 2), fill
//   piece       part of an access inside one page: host access, or a fragment for the client
//   slow        one or two pieces; of two both pages are found before the first byte moves
//
// A host access that faults although stage 2 had answered means that the page was changed without
// the bell (the backstop): the translation is dropped and stage 2 asked again, which ends in the
// kernel's EFAULT if the page is really gone.
#include "vcpu/mem.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/trace.h"
#include "vcpu/block_cache.h"
#include "vcpu/paging.h"

namespace stagetwo::vcpu {
namespace {

constexpr u64 kTraceUnsatisfied = 0, kTraceWrite = 2;  // the kernel's mmio types

SoftTlb& view_for(Cpu& c, Who who) {
  return who == Who::kExplicit ? *c.tlb : c.views[kViewSupervisor];
}

u64& tag_for(TlbEntry& e, Access access) {
  return access == Access::kRead ? e.read_tag : access == Access::kWrite ? e.write_tag : e.exec_tag;
}

// Filled, then asked (O2): a fill comes before the next poll in the order of this thread's program,
// and a poll that acknowledges empties the TLB; what was filled from an entry that is gone by then
// goes with it.
void fill(Cpu& c, SoftTlb& view, u64 linear, Access access, Hva at, bool large) {
  const u64 page = linear & kPageMask;
  const u64 addend = page_floor(at).raw() - page;
  // I3 of soft_tlb.h.
  if (access != Access::kExec && &view == &c.views[kViewUserAligned]) return;
  TlbEntry& e = view.slot_to_fill(linear, access == Access::kWrite);
  if (e.addend != addend || (e.read_tag != page && e.write_tag != page && e.exec_tag != page)) {
    e = TlbEntry{};
    e.addend = addend;
  }
  c.large_pages = c.large_pages || large;
  switch (access) {
    case Access::kRead:
      e.read_tag = page;
      break;
    case Access::kWrite:
      e.read_tag = page;
      if (!holds_code(c, page_floor(at))) e.write_tag = page;
      break;
    case Access::kExec:
      e.exec_tag = page;
      note_code_page(c, page_floor(at));
      break;
  }
}

struct Resolved {
  Hva hva;
  Gpa gpa;  // but of a hit
};

Second resolve(Cpu& c, u64 linear, Access access, Who who, Resolved* out) {
  ST_DCHECK(c.holds != 0);
  SoftTlb& view = view_for(c, who);
  TlbEntry& e = view.slot(linear);
  if (tag_for(e, access) == (linear & kPageMask)) {
    out->hva = Hva(linear + e.addend);
    return Second::kHost;
  }
  Translation t;
  const WalkRequest request{.linear = linear,
                            .access = access,
                            .user = who == Who::kExplicit && c.cpl() == 3,
                            .implicit = who == Who::kSystem};
  if (!walk(c, request, &t)) return Second::kStopped;
  out->gpa = t.gpa;
  bool is_private = false;
  const Second second = second_level(c, t.gpa, access, &out->hva, &is_private);
  if (second == Second::kHost) {
    fill(c, view, linear, access, out->hva, t.large);
    if (is_private && access == Access::kExec) c.blocks->note_private(gpa_to_gfn(t.gpa));
  }
  return second;
}

// --- Memory nobody backs ---------------------------------------------------------------------

bool mmio_read(Cpu& c, Gpa gpa, void* data, u32 size) {
  auto* to = static_cast<u8*>(data);
  for (u32 done = 0; done < size;) {
    const u32 len = std::min<u32>(size - done, 8);
    if (c.mmio.position == c.mmio.answered) {
      if (c.mmio.answered == Mmio::kMax) {
        c.stop = c.emulation_failure();
        return false;
      }
      c.exit.kind = ExitKind::kMmio;
      c.exit.error = 0;
      c.exit.mmio = MmioExit{.gpa = gpa + done, .data = {}, .len = len, .write = false};
      c.mmio.waiting_len = len;
      c.io.kind = Pending::kMmioRead;
      trace::emit(trace::Event::kvm_mmio, trace::Room::vcpu, kTraceUnsatisfied, len,
                  (gpa + done).raw(), 0);
      c.stop = Step::kExit;
      return false;
    }
    std::memcpy(to + done, &c.mmio.reads[c.mmio.position++], len);
    done += len;
  }
  return true;
}

bool mmio_write(Cpu& c, Gpa gpa, const void* data, u32 size) {
  const auto* from = static_cast<const u8*>(data);
  for (u32 done = 0; done < size;) {
    const u32 len = std::min<u32>(size - done, 8);
    const Gpa at = gpa + done;
    u64 value = 0;
    std::memcpy(&value, from + done, len);
    trace::emit(trace::Event::kvm_mmio, trace::Room::vcpu, kTraceWrite, len, at.raw(), value);
    const bool swallowed = c.policy->coalesce_mmio != nullptr &&
                           c.policy->coalesce_mmio(c.policy->context, c.id, at, from + done, len);
    if (!swallowed) {
      if (c.mmio.queued == Mmio::kMax) {
        c.stop = c.emulation_failure();
        return false;
      }
      Mmio::Fragment& f = c.mmio.writes[c.mmio.queued++];
      f = {.gpa = at, .len = len, .data = value};
      c.attention |= kAttendMmio;
    }
    done += len;
  }
  return true;
}

// --- Pieces: within one page -----------------------------------------------------------------

// A naturally sized access stays one host instruction.
bool host_load(Hva at, void* data, u32 size) {
  switch (size) {
    case 1:
      return host::load<u8>(at, static_cast<u8*>(data));
    case 2: {
      u16 v = 0;
      if (!host::load(at, &v)) return false;
      std::memcpy(data, &v, 2);
      return true;
    }
    case 4: {
      u32 v = 0;
      if (!host::load(at, &v)) return false;
      std::memcpy(data, &v, 4);
      return true;
    }
    case 8: {
      u64 v = 0;
      if (!host::load(at, &v)) return false;
      std::memcpy(data, &v, 8);
      return true;
    }
    default:
      return host::copy_from(data, at, size) == size;
  }
}
bool host_store(Hva at, const void* data, u32 size) {
  switch (size) {
    case 1:
      return host::store<u8>(at, *static_cast<const u8*>(data));
    case 2: {
      u16 v;
      std::memcpy(&v, data, 2);
      return host::store(at, v);
    }
    case 4: {
      u32 v;
      std::memcpy(&v, data, 4);
      return host::store(at, v);
    }
    case 8: {
      u64 v;
      std::memcpy(&v, data, 8);
      return host::store(at, v);
    }
    default:
      return host::copy_to(at, data, size) == size;
  }
}

bool load_piece(Cpu& c, u64 linear, void* data, u32 size, Who who) {
  for (unsigned tries = 0; tries < kBackstopTries; ++tries) {
    Resolved r;
    switch (resolve(c, linear, Access::kRead, who, &r)) {
      case Second::kStopped:
        return false;
      case Second::kMmio:
        return mmio_read(c, r.gpa, data, size);
      case Second::kTracked:  // never of a load
      case Second::kHost:
        if (host_load(r.hva, data, size)) return true;
        c.flush_tlb_page(linear);
    }
  }
  return give_up(c);
}

bool store_piece(Cpu& c, u64 linear, const void* data, u32 size, Who who) {
  for (unsigned tries = 0; tries < kBackstopTries; ++tries) {
    Resolved r;
    switch (resolve(c, linear, Access::kWrite, who, &r)) {
      case Second::kStopped:
        return false;
      case Second::kMmio:
        return mmio_write(c, r.gpa, data, size);
      case Second::kTracked:
        return store_tracked(c, r.gpa, data, size);
      case Second::kHost:
        note_store(c, r.hva, size);
        if (host_store(r.hva, data, size)) return true;
        c.flush_tlb_page(linear);
    }
  }
  return give_up(c);
}

u64 wrap(const Cpu& c, u64 linear) {
  return c.long64() ? linear : linear & 0xffffffff;
}

// Calls piece(offset, bytes) for each page that [linear, linear + size) touches.
template <typename F>
bool by_page(u64 linear, u32 size, F&& piece) {
  for (u32 done = 0; done < size;) {
    const u64 room = kPageSize - ((linear + done) & ~kPageMask);
    const u32 bytes = static_cast<u32>(std::min<u64>(size - done, room));
    if (!piece(done, bytes)) return false;
    done += bytes;
  }
  return true;
}

bool crosses(u64 linear, u32 size) {
  return ((linear ^ (linear + size - 1)) & kPageMask) != 0 && size <= kPageSize;
}

// Both pages of an access that crosses, as they are at one moment: who converts them both, or takes
// them, finds all of the access before or behind. kHost: both are the host's; kTracked: of one or
// both, as kind[] says, KVM makes the stores; kStopped; else they are the pieces' to find.
Second resolve_both(Cpu& c, u64 linear, Access access, Who who, Resolved (&out)[2],
                    Second (&kind)[2]) {
  const u64 next = wrap(c, (linear & kPageMask) + kPageSize);
  for (unsigned tries = 0; tries < kBackstopTries; ++tries) {
    const Second first = resolve(c, linear, access, who, &out[0]);
    if (first == Second::kStopped) return first;
    const u64 section = c.section;
    const Second second = resolve(c, next, access, who, &out[1]);
    if (second == Second::kStopped) return second;
    if (c.section != section && first == Second::kHost) continue;  // it may be another by now
    kind[0] = first;
    kind[1] = second;
    if (first == Second::kMmio || second == Second::kMmio) return Second::kMmio;
    return first == Second::kHost ? second : first;
  }
  return Second::kMmio;
}

// Memory first: it may have to be looked for again, and what a device was told is said once.
// False, and not *stopped: nothing that counts was done.
bool store_both(Cpu& c, const Resolved (&at)[2], const Second (&kind)[2], const void* data,
                u32 room, u32 size, bool* stopped) {
  const u8* const from[2] = {static_cast<const u8*>(data), static_cast<const u8*>(data) + room};
  const u32 bytes[2] = {room, size - room};
  for (unsigned i = 0; i < 2; ++i) {
    if (kind[i] != Second::kHost) continue;
    note_store(c, at[i].hva, bytes[i]);
    if (!host_store(at[i].hva, from[i], bytes[i])) return false;
  }
  for (unsigned i = 0; i < 2; ++i) {
    if (kind[i] != Second::kTracked) continue;
    if (!store_tracked(c, at[i].gpa, from[i], bytes[i])) {
      *stopped = true;
      return false;
    }
  }
  return true;
}

bool probe(Cpu& c, u64 linear, u32 size, Access access, Who who) {
  return by_page(linear, size, [&](u32 offset, u32) {
    Resolved r;
    return resolve(c, wrap(c, linear + offset), access, who, &r) != Second::kStopped;
  });
}

}  // namespace

bool give_up(Cpu& c) {
  c.exit.kind = ExitKind::kUnknown;
  c.exit.error = EFAULT;
  c.stop = Step::kExit;
  return false;
}

bool misaligned(Cpu& c, u64 linear, u32 size) {
  if (c.tlb != &c.views[kViewUserAligned]) [[likely]]
    return false;
  const u64 border = std::min<u64>(std::bit_floor(size), 16);
  if ((linear & (border - 1)) == 0) return false;
  c.raise(kVectorAc, 0);
  return true;
}

bool load_bytes(Cpu& c, u64 linear, void* data, u32 size, Who who) {
  const Hold hold(c);
  if (crosses(linear, size)) [[unlikely]] {
    const u32 room = static_cast<u32>(kPageSize - (linear & ~kPageMask));
    Resolved at[2];
    Second kind[2];
    const Second both = resolve_both(c, linear, Access::kRead, who, at, kind);
    if (both == Second::kStopped) return false;
    if (both == Second::kHost && host_load(at[0].hva, data, room) &&
        host_load(at[1].hva, static_cast<u8*>(data) + room, size - room)) {
      return true;
    }
  }
  return by_page(linear, size, [&](u32 offset, u32 bytes) {
    return load_piece(c, wrap(c, linear + offset), static_cast<u8*>(data) + offset, bytes, who);
  });
}

bool store_bytes(Cpu& c, u64 linear, const void* data, u32 size, Who who) {
  const Hold hold(c);
  if (crosses(linear, size)) [[unlikely]] {
    const u32 room = static_cast<u32>(kPageSize - (linear & ~kPageMask));
    Resolved at[2];
    Second kind[2];
    const Second both = resolve_both(c, linear, Access::kWrite, who, at, kind);
    if (both == Second::kStopped) return false;
    if (both != Second::kMmio) {
      bool stopped = false;
      if (store_both(c, at, kind, data, room, size, &stopped)) return true;
      if (stopped) return false;
    }
  }
  return by_page(linear, size, [&](u32 offset, u32 bytes) {
    return store_piece(c, wrap(c, linear + offset), static_cast<const u8*>(data) + offset, bytes,
                       who);
  });
}

bool load_slow(Cpu& c, u64 linear, void* data, u32 size, Who who) {
  if (who == Who::kExplicit && misaligned(c, linear, size)) return false;
  return load_bytes(c, linear, data, size, who);
}
bool store_slow(Cpu& c, u64 linear, const void* data, u32 size, Who who) {
  if (who == Who::kExplicit && misaligned(c, linear, size)) return false;
  return store_bytes(c, linear, data, size, who);
}

bool probe_write(Cpu& c, u64 linear, u32 size, Who who) {
  if (who == Who::kExplicit && misaligned(c, linear, size)) return false;
  const Hold hold(c);
  return probe(c, linear, size, Access::kWrite, who);
}
bool probe_read(Cpu& c, u64 linear, u32 size) {
  const Hold hold(c);
  return probe(c, linear, size, Access::kRead, Who::kExplicit);
}

Direct direct(Cpu& c, u64 linear, u32 size, Access access, Hva* hva) {
  ST_DCHECK(c.holds != 0);
  if (misaligned(c, linear, size)) return Direct::kStopped;
  if (((linear ^ (linear + size - 1)) & kPageMask) != 0) {
    return probe(c, linear, size, access, Who::kExplicit) ? Direct::kSplit : Direct::kStopped;
  }
  Resolved r;
  switch (resolve(c, linear, access, Who::kExplicit, &r)) {
    case Second::kStopped:
      return Direct::kStopped;
    case Second::kMmio:
      return Direct::kMmio;
    case Second::kTracked:
      return Direct::kSplit;
    case Second::kHost:
      break;
  }
  *hva = r.hva;
  return Direct::kHost;
}

void note_store(Cpu& c, Hva at, u64 size) {
  if (at.raw() + size > c.code_start && at.raw() < c.code_start + c.code_size) {
    c.attention |= kAttendCode;
  }
}

bool fetch_page(Cpu& c, u64 linear, Hva* at, bool* backed) {
  ST_DCHECK(c.holds != 0);
  Resolved r;
  const Second second = resolve(c, linear, Access::kExec, Who::kExplicit, &r);
  if (second == Second::kStopped) return false;
  *backed = second == Second::kHost;
  *at = r.hva;
  return true;
}

}  // namespace stagetwo::vcpu
