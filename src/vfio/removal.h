// SPDX-License-Identifier: Apache-2.0
#pragma once

// A removal under way (vfio/bus.h): its holder is the remover. Dropped without finish_removal(), or
// by its process's death, it is finished by the device's last close, or, where that was a death as
// well, by whoever next looks at the bus or its tree.

#include "vfio/registry.h"

namespace stagetwo::vfio {

class Removal {
 public:
  Removal() = default;
  Removal(u32 slot, u64 born, Claim remover)
      : slot_(slot), born_(born), remover_(std::move(remover)) {}
  explicit operator bool() const { return static_cast<bool>(remover_); }

 private:
  friend void finish_removal(Removal removal);
  u32 slot_ = 0;
  u64 born_ = 0;
  Claim remover_;
};

}  // namespace stagetwo::vfio
