// SPDX-License-Identifier: Apache-2.0
#pragma once

// Normal memory by the addresses that messages name ("real addresses"): an address of this process
// here, since both halves run in it. The ultravisor reaches a page of the hypervisor's by nothing
// else. Analogue: the real address of an ultracall.
//
// I1: an access of memory that is not there answers false and is no fault.

#include "base/types.h"

namespace stagetwo::uv {

class RealMemory {
 public:
  [[nodiscard]] virtual bool read(u64 address, void* to, u64 bytes) = 0;
  [[nodiscard]] virtual bool write(u64 address, const void* from, u64 bytes) = 0;

 protected:
  ~RealMemory() = default;
};

// The process's own memory, by guarded accesses (host/access.h).
class ProcessMemory final : public RealMemory {
 public:
  bool read(u64 address, void* to, u64 bytes) override;
  bool write(u64 address, const void* from, u64 bytes) override;
};

}  // namespace stagetwo::uv
