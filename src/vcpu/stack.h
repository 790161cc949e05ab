// SPDX-License-Identifier: Apache-2.0
#pragma once

// The stack as instructions use it: values of `size` bytes at SS:SP, with SP as wide as SS says.
// Nothing moves SP but commit(): an instruction pushes or pops as often as it must and commits when
// it can no longer fail.

#include "vcpu/mem.h"

namespace stagetwo::vcpu {

class Stack {
 public:
  explicit Stack(Cpu& c) : c_(c), sp_(c.s.gpr[kRsp]), mask_(mask_of(c)) { sp_ &= mask_; }
  Stack(Cpu& c, u64 sp) : c_(c), sp_(sp), mask_(mask_of(c)) { sp_ &= mask_; }

  template <typename T>
  [[nodiscard]] bool push(T value) {
    const u64 sp = (sp_ - sizeof(T)) & mask_;
    u64 linear = 0;
    if (!linearize(c_, kSegSs, sp, sizeof(T), true, &linear) || !store(c_, linear, value)) {
      return false;
    }
    sp_ = sp;
    return true;
  }
  template <typename T>
  [[nodiscard]] bool pop(T* value) {
    u64 linear = 0;
    if (!linearize(c_, kSegSs, sp_, sizeof(T), false, &linear) || !load(c_, linear, value)) {
      return false;
    }
    sp_ = (sp_ + sizeof(T)) & mask_;
    return true;
  }
  [[nodiscard]] bool push(unsigned size, u64 value) {
    return size == 2   ? push(static_cast<u16>(value))
           : size == 4 ? push(static_cast<u32>(value))
                       : push(value);
  }
  [[nodiscard]] bool pop(unsigned size, u64* value) {
    if (size == 8) return pop(value);
    if (size == 4) {
      u32 v = 0;
      const bool ok = pop(&v);
      *value = v;
      return ok;
    }
    u16 v = 0;
    const bool ok = pop(&v);
    *value = v;
    return ok;
  }
  void skip(u64 bytes) { sp_ = (sp_ + bytes) & mask_; }
  [[nodiscard]] u64 sp() const { return sp_; }
  [[nodiscard]] u64 mask() const { return mask_; }
  void commit() { c_.s.gpr[kRsp] = (c_.s.gpr[kRsp] & ~mask_) | sp_; }

 private:
  static u64 mask_of(const Cpu& c) {
    if (c.long64()) return ~u64{0};
    return c.s.sys.seg[kSegSs].db != 0 ? 0xffffffff : 0xffff;
  }

  Cpu& c_;
  u64 sp_;
  u64 mask_;
};

}  // namespace stagetwo::vcpu
