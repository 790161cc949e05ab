// SPDX-License-Identifier: Apache-2.0
#pragma once

// How to write a device: implement Model, describe it in a Parent (vfio/mdev.h), and clients see a
// PCI function with regions, interrupts and DMA. What a model must not forget is kept in memory
// that all processes share (ModelContext::state); the Model itself is each process's own view of
// it.
//
// Analogue: struct vfio_device_ops (kernel file: include/linux/vfio.h) and what mtty.c makes of it.
// Differs: accesses are whole and inside of the region when they come; information, interrupts and
// the bounds are the room's.
// Locking: every call of a Model but the destructor is made under the device's lock, which other
// processes take, too. Lifetime: from the first open in this process to the last close.

#include <span>

#include "base/alloc.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::vfio {

class Dma;
class Interrupts;

// Regions and interrupt indexes of a PCI function, as the uapi numbers them.
inline constexpr unsigned kBars = 6, kRomRegion = 6, kConfigRegion = 7, kVgaRegion = 8;
inline constexpr unsigned kRegions = 9;
inline constexpr unsigned kIntxIndex = 0, kMsiIndex = 1, kMsixIndex = 2;
inline constexpr unsigned kIrqIndexes = 5;

struct RegionShape {
  u64 size = 0;
};
struct Shape {
  RegionShape regions[kRegions];
  u32 vectors[kIrqIndexes] = {};  // 0: there is no such index
};

// What a model is given.
struct ModelContext {
  std::span<u8> state;  // shared; zero in a new device; at least kStateBytes, aligned to 64
  Interrupts& interrupts;
  Dma& dma;
};

class Model {
 public:
  static constexpr size_t kStateBytes = 3072;

  virtual ~Model() = default;
  [[nodiscard]] virtual const Shape& shape() const = 0;
  // 1, 2 or 4 bytes, aligned, all of them in the region.
  virtual void read(unsigned region, u64 offset, std::span<u8> to) = 0;
  virtual void write(unsigned region, u64 offset, std::span<const u8> from) = 0;
  // VFIO_DEVICE_RESET, and when a process died in the middle of a change.
  virtual void reset() = 0;
};

}  // namespace stagetwo::vfio
