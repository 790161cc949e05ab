// SPDX-License-Identifier: Apache-2.0
#pragma once

// The configuration space of a function whose model is software: what it says of itself, and which
// bits of it a client may change. Analogue: vfio_pci_config.c, of a type 0 header with
// capabilities.
//
// I1  Writing ones to a base address register reads back its size.
// Specification: PCI Local Bus 3.0, 6.1 (layout) and 6.2.5.1 (base address registers).
// Locking: the device's.

#include <span>

#include "base/types.h"

namespace stagetwo::vfio {

struct PciBar {
  u32 size = 0;  // a power of two, 0: there is none
  bool io = false;
  bool wide = false;  // of 64 bits: the next one is its upper half
};
// A capability: its place, what it says (the second byte, which names the next one, is the room's)
// and which bits of that a client may change (none where it is shorter).
struct PciCapability {
  u8 at;
  std::span<const u8> bytes;
  std::span<const u8> writable;
};
struct PciIdentity {
  u16 vendor, device, sub_vendor, sub_device;
  u32 class_code;  // base class, sub class, interface
  u8 revision;
  u8 interrupt_pin;  // 1: INTA#
  PciBar bars[6];
  std::span<const PciCapability> capabilities{};  // ascending
};

class PciConfig {
 public:
  static constexpr unsigned kBytes = 256;
  static constexpr u16 kCommandIo = 1, kCommandMemory = 2, kCommandMaster = 4;
  static constexpr u16 kCommandNoIntx = 1 << 10;

  void start(const PciIdentity& identity);
  void read(u64 offset, std::span<u8> to) const;
  void write(const PciIdentity& identity, u64 offset, std::span<const u8> from);
  [[nodiscard]] u16 command() const { return static_cast<u16>(bytes_[4] | bytes_[5] << 8); }

 private:
  void put(unsigned at, u32 value, unsigned bytes);
  static u8 writable_in_bar(const PciIdentity& identity, unsigned at);
  static u8 writable(const PciIdentity& identity, unsigned at);

  u8 bytes_[kBytes];
};
static_assert(sizeof(PciConfig) == PciConfig::kBytes, "it stands in shared memory");

}  // namespace stagetwo::vfio
