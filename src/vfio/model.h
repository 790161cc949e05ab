// SPDX-License-Identifier: Apache-2.0
#pragma once

// How to write a device: implement Model, describe it in a Parent (vfio/mdev.h), and clients see a
// PCI function with regions, interrupts and DMA. What a model must not forget is kept in memory
// that all processes share (ModelContext::state); the Model itself is each process's own view of
// it, or in the device's memory, which clients may map.
//
// Analogue: struct vfio_device_ops (kernel file: include/linux/vfio.h) and what mtty.c makes of it.
// Differs: accesses are whole and inside of the region when they come; information, interrupts and
// the bounds are the room's.
// Locking: every call of a Model but the destructor is made under the device's lock, which other
// processes take, too. Lifetime: from the first open in this process to the last close. A store to
// a trapped area comes on the thread that stores, out of a signal handler: no lock of libc's.

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
inline constexpr unsigned kErrorIndex = 3, kRequestIndex = 4;  // of the function, not its model's
inline constexpr unsigned kIrqIndexes = 5;

// A part of a region that a client may map: whole pages, which are the device's memory from
// `memory` on. Plain: clients and the model read and write it as memory of their own. Trapped:
// loads read it, and a store becomes the model's write(), which puts there what loads are to see.
struct MappedArea {
  u64 offset = 0, size = 0, memory = 0;
  bool trapped = false;
};
struct RegionShape {
  u64 size = 0;
  std::span<const MappedArea> mapped{};  // ascending; none: the region is not mapped
};
struct Shape {
  RegionShape regions[kRegions];
  u32 vectors[kIrqIndexes] = {};  // 0: there is no such index
  // Requests are answered as vfio-pci answers for a PCI function; else as mtty.c does.
  bool function = false;
  unsigned msix_region = kRegions;  // of a function: where the table of its messages is
};

// What a model is given.
struct ModelContext {
  std::span<u8> state;   // shared; zero in a new device; at least kStateBytes, aligned to 64
  std::span<u8> memory;  // shared; zero in a new device; kMemoryBytes, of whole pages
  Interrupts& interrupts;
  Dma& dma;
};

class Model {
 public:
  static constexpr size_t kStateBytes = 3072;
  static constexpr size_t kMemoryBytes = size_t{1} << 20;

  virtual ~Model() = default;
  [[nodiscard]] virtual const Shape& shape() const = 0;
  // 1, 2 or 4 bytes, aligned, all of them in the region; a write of a trapped area may be of 8.
  virtual void read(unsigned region, u64 offset, std::span<u8> to) = 0;
  virtual void write(unsigned region, u64 offset, std::span<const u8> from) = 0;
  // VFIO_DEVICE_RESET, and when a process died in the middle of a change.
  virtual void reset() = 0;
  // Nobody has it open, and somebody opens it: a PCI function is then as at its start.
  virtual void first_open() {}
  // In a child of fork, which has the device open as its parent has, before anything else there.
  // Context: not under the device's lock.
  virtual void after_fork() {}
};

}  // namespace stagetwo::vfio
