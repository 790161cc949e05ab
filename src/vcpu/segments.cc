// SPDX-License-Identifier: Apache-2.0
#include "vcpu/segments.h"

#include "vcpu/mem.h"

namespace stagetwo::vcpu {
namespace {

constexpr u32 error_of(u16 selector) {
  return selector & ~3U;
}

// The table a selector names. False: it names none, or lies outside.
bool table_of(const Cpu& c, u16 selector, u64* base, u32* limit) {
  if ((selector & 4) == 0) {
    *base = c.s.sys.gdt.base;
    *limit = c.s.sys.gdt.limit;
    return true;
  }
  if (c.s.sys.ldt.unusable != 0 || c.s.sys.ldt.present == 0) return false;
  *base = c.s.sys.ldt.base;
  *limit = c.s.sys.ldt.limit;
  return true;
}

bool read_raw(Cpu& c, u16 selector, Vector vector, u32 size, Descriptor* out) {
  u64 base = 0;
  u32 limit = 0;
  const u32 offset = selector & ~7U;
  if (!table_of(c, selector, &base, &limit) || offset + size - 1 > limit) {
    c.raise(vector, error_of(selector));
    return false;
  }
  u64 raw[2] = {0, 0};
  if (!load_bytes(c, base + offset, raw, size, Who::kSystem)) return false;
  out->low = raw[0];
  out->high = size == 16 ? raw[1] : 0;
  return true;
}

void load_real(Cpu& c, unsigned segment, u16 selector) {
  Segment& s = c.s.sys.seg[segment];
  s.selector = selector;
  s.base = u64{selector} << 4;
  if (c.v86()) {
    s.limit = 0xffff;
    s.type = 3;
    s.present = 1;
    s.dpl = 3;
    s.db = s.g = s.l = 0;
    s.s = 1;
    s.unusable = 0;
  }
}

}  // namespace

Segment Descriptor::segment(u16 selector) const {
  Segment r;
  r.base = base();
  r.limit = limit();
  r.selector = selector;
  r.type = type();
  r.present = present() ? 1 : 0;
  r.dpl = dpl();
  r.db = db() ? 1 : 0;
  r.s = s() ? 1 : 0;
  r.l = l() ? 1 : 0;
  r.g = low >> 55 & 1;
  r.avl = low >> 52 & 1;
  return r;
}

bool read_descriptor(Cpu& c, u16 selector, Vector vector, Descriptor* out) {
  return read_raw(c, selector, vector, 8, out);
}
bool read_system_descriptor(Cpu& c, u16 selector, Vector vector, Descriptor* out) {
  return read_raw(c, selector, vector, c.s.long_mode() ? 16 : 8, out);
}

bool mark_accessed(Cpu& c, u16 selector, Descriptor* d) {
  if (!d->s() || (d->type() & 1) != 0) return true;
  d->low |= u64{1} << 40;
  u64 base = 0;
  u32 limit = 0;
  if (!table_of(c, selector, &base, &limit)) return true;
  const u8 access = static_cast<u8>(d->low >> 40);
  return store_bytes(c, base + (selector & ~7U) + 5, &access, 1, Who::kSystem);
}

Segment null_stack_segment(u8 cpl) {
  Segment s = unusable_segment(cpl);
  s.dpl = cpl;
  return s;
}

Segment unusable_segment(u16 selector) {
  Segment s;
  s.selector = selector;
  s.limit = 0xffffffff;
  s.type = 3;
  s.present = 1;
  s.g = 1;
  s.db = 1;
  s.unusable = 1;
  s.dpl = selector & 3;
  return s;
}

bool load_stack_segment(Cpu& c, u16 selector, u8 cpl, Vector vector, Segment* out) {
  const u32 error = error_of(selector);
  Descriptor d;
  if ((selector & ~3U) == 0) {
    c.raise(vector, error);
    return false;
  }
  if (!read_descriptor(c, selector, vector, &d)) return false;
  if ((selector & 3) != cpl || d.dpl() != cpl || !d.writable()) {
    c.raise(vector, error);
    return false;
  }
  if (!d.present()) {
    c.raise(kVectorSs, error);
    return false;
  }
  if (!mark_accessed(c, selector, &d)) return false;
  *out = d.segment(selector);
  return true;
}

bool load_segment(Cpu& c, unsigned segment, u16 selector) {
  if (c.real_mode() || c.v86()) {
    load_real(c, segment, selector);
    c.update_view();
    return true;
  }
  Segment loaded;
  const u8 rpl = selector & 3;
  const u32 error = error_of(selector);
  if ((selector & ~3U) == 0) {
    // A null SS is allowed in 64-bit mode below CPL 3 only.
    if (segment == kSegSs && !(c.long64() && c.cpl() != 3 && rpl == c.cpl())) {
      c.gp0();
      return false;
    }
    loaded = unusable_segment(selector);
    loaded.dpl = segment == kSegSs ? c.cpl() : rpl;
  } else if (segment == kSegSs) {
    if (!load_stack_segment(c, selector, c.cpl(), kVectorGp, &loaded)) return false;
  } else {
    Descriptor d;
    if (!read_descriptor(c, selector, kVectorGp, &d)) return false;
    const bool outer = !(d.is_code() && d.conforming()) && (rpl > d.dpl() || c.cpl() > d.dpl());
    if (!d.s() || !d.readable() || outer) {
      c.raise(kVectorGp, error);
      return false;
    }
    if (!d.present()) {
      c.raise(kVectorNp, error);
      return false;
    }
    if (!mark_accessed(c, selector, &d)) return false;
    loaded = d.segment(selector);
  }
  c.s.sys.seg[segment] = loaded;
  c.update_view();
  return true;
}

void drop_inner_segments(Cpu& c) {
  for (unsigned i : {kSegEs, kSegDs, kSegFs, kSegGs}) {
    Segment& s = c.s.sys.seg[i];
    const bool conforming_code = (s.type & 0xc) == 0xc;
    if (s.unusable == 0 && s.dpl < c.cpl() && !conforming_code) s = unusable_segment(0);
  }
}

// --- Linear addresses off the fast path (mem.h) ------------------------------------------------

bool linearize_slow(Cpu& c, unsigned segment, u64 offset, u64 size, bool write, u64* linear) {
  const Vector vector = segment == kSegSs ? kVectorSs : kVectorGp;
  if (c.long64()) {
    u64 address = offset;
    if (segment >= kSegFs) address += segment == kSegFs ? c.fs_base : c.gs_base;
    *linear = address;
    const bool la57 = (c.s.sys.cr4 & cr4::kLa57) != 0;
    if (is_canonical(address, la57) && is_canonical(address + size - 1, la57)) return true;
    c.raise(vector, 0);
    return false;
  }
  const Segment& s = c.s.sys.seg[segment];
  bool ok = true;
  if (!c.real_mode() && !c.v86()) {
    const bool code = (s.type & 8) != 0;
    if (s.unusable != 0 || s.present == 0) ok = false;
    if (write && (code || (s.type & 2) == 0)) ok = false;
    if (!write && code && (s.type & 2) == 0) ok = false;
  }
  const u64 last = offset + size - 1;
  const bool expand_down = (s.type & 0xc) == 4;
  if (expand_down && !c.real_mode()) {
    const u64 top = s.db != 0 ? 0xffffffff : 0xffff;
    if (offset <= s.limit || last > top) ok = false;
  } else if (last > s.limit) {
    ok = false;
  }
  *linear = (s.base + offset) & 0xffffffff;
  if (!ok) c.raise(vector, 0);
  return ok;
}

}  // namespace stagetwo::vcpu
