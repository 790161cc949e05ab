// SPDX-License-Identifier: Apache-2.0
#include "vfio/pci_config.h"

#include <cstring>

namespace stagetwo::vfio {
namespace {

constexpr unsigned kVendor = 0x00, kDevice = 0x02, kCommand = 0x04, kStatus = 0x06;
constexpr unsigned kRevision = 0x08, kInterface = 0x09, kFirstBar = 0x10, kBarsEnd = 0x28;
constexpr unsigned kSubVendor = 0x2c, kSubDevice = 0x2e;
constexpr unsigned kFirstCapability = 0x34;
constexpr unsigned kInterruptLine = 0x3c, kInterruptPin = 0x3d;
// I/O, memory, bus master, parity, SERR#; INTx off is bit 10.
constexpr u16 kCommandBits = 0x0547;
constexpr u16 kStatusMediumSelect = 0x0200, kStatusCapabilities = 0x0010;
constexpr u8 kBarIo = 1, kBarWide = 4;

}  // namespace

void PciConfig::put(unsigned at, u32 value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) bytes_[at + i] = static_cast<u8>(value >> (8 * i));
}

void PciConfig::start(const PciIdentity& identity) {
  std::memset(bytes_, 0, sizeof(bytes_));
  put(kVendor, identity.vendor, 2);
  put(kDevice, identity.device, 2);
  put(kStatus, kStatusMediumSelect, 2);
  put(kRevision, identity.revision, 1);
  put(kInterface, identity.class_code, 3);
  bool io = false, memory = false;
  for (unsigned i = 0; i < 6; ++i) {
    const PciBar& bar = identity.bars[i];
    if (bar.size == 0) continue;
    put(kFirstBar + 4 * i, bar.io ? kBarIo : bar.wide ? kBarWide : 0, 1);
    (bar.io ? io : memory) = true;
  }
  put(kCommand, (io ? kCommandIo : 0u) | (memory ? kCommandMemory : 0u), 2);
  put(kSubVendor, identity.sub_vendor, 2);
  put(kSubDevice, identity.sub_device, 2);
  put(kInterruptPin, identity.interrupt_pin, 1);
  unsigned link = kFirstCapability;
  for (const PciCapability& capability : identity.capabilities) {
    bytes_[link] = capability.at;
    std::memcpy(bytes_ + capability.at, capability.bytes.data(), capability.bytes.size());
    link = capability.at + 1u;
    bytes_[link] = 0;
    put(kStatus, kStatusMediumSelect | kStatusCapabilities, 2);
  }
}

void PciConfig::read(u64 offset, std::span<u8> to) const {
  std::memcpy(to.data(), bytes_ + offset, to.size());
}

u8 PciConfig::writable_in_bar(const PciIdentity& identity, unsigned at) {
  const unsigned index = (at - kFirstBar) / 4;
  if (index > 0 && identity.bars[index - 1].wide) return 0xff;  // no BAR has 4 GiB
  const PciBar& bar = identity.bars[index];
  const u32 bits = bar.size == 0 ? 0 : ~(bar.size - 1);
  return static_cast<u8>(bits >> (8 * (at % 4)));
}

// Which bits of the byte at `at` a client changes.
u8 PciConfig::writable(const PciIdentity& identity, unsigned at) {
  if (at >= kFirstBar && at < kBarsEnd) return writable_in_bar(identity, at);
  for (const PciCapability& capability : identity.capabilities) {
    if (at >= capability.at && at < capability.at + capability.writable.size()) {
      return capability.writable[at - capability.at];
    }
  }
  if (at == kCommand || at == kCommand + 1) return static_cast<u8>(kCommandBits >> (8 * (at % 2)));
  return at == kInterruptLine ? u8{0xff} : u8{0};
}

void PciConfig::write(const PciIdentity& identity, u64 offset, std::span<const u8> from) {
  for (size_t i = 0; i < from.size(); ++i) {
    const auto at = static_cast<unsigned>(offset + i);
    const u8 bits = writable(identity, at);
    bytes_[at] = static_cast<u8>((bytes_[at] & ~bits) | (from[i] & bits));
  }
}

}  // namespace stagetwo::vfio
