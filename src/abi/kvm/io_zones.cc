// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/io_zones.h"

#include <algorithm>
#include <cstring>

#include "abi/kvm/client.h"
#include "addr/addr.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u32 kRingEntries =
    (kPageSize - sizeof(kvm_coalesced_mmio_ring)) / sizeof(kvm_coalesced_mmio);

bool contains(const kvm_coalesced_mmio_zone& zone, u64 address, u32 size) {
  const u64 end = address + size;
  return end >= address && address >= zone.addr && end <= zone.addr + zone.size;
}

bool is_bus(u32 pio) {
  return pio <= 1;
}

}  // namespace

Result<void> IoZones::add(const kvm_coalesced_mmio_zone& zone) {
  if (!is_bus(zone.pio)) return refuse(EINVAL);
  sync::MutexGuard guard(lock_);
  const auto same_bus = [&](const kvm_coalesced_mmio_zone& z) { return z.pio == zone.pio; };
  if (std::ranges::count_if(zones_, same_bus) >= static_cast<std::ptrdiff_t>(kMaxDevices))
    return refuse(ENOSPC);
  ST_TRY(zones_.push_back(zone));
  count_.fetch_add(1);
  return {};
}

Result<void> IoZones::remove(const kvm_coalesced_mmio_zone& zone) {
  if (!is_bus(zone.pio)) return refuse(EINVAL);
  sync::MutexGuard guard(lock_);
  for (size_t i = zones_.size(); i-- > 0;) {
    if (zones_[i].pio != zone.pio || !contains(zones_[i], zone.addr, zone.size)) continue;
    zones_.erase(i);
    count_.fetch_sub(1);
  }
  return {};
}

bool IoZones::write(kvm_coalesced_mmio_ring* ring, bool pio, u64 address, const void* data,
                    u32 size) {
  if (count_.load(sync::kRelaxed) == 0 || ring == nullptr) return false;
  if (size > sizeof(ring->coalesced_mmio[0].data)) return false;
  sync::MutexGuard guard(lock_);
  const bool wanted = std::ranges::any_of(zones_, [&](const kvm_coalesced_mmio_zone& zone) {
    return zone.pio == (pio ? 1U : 0U) && contains(zone, address, size);
  });
  if (!wanted) return false;
  const u32 insert = read_once(ring->last);
  if (insert >= kRingEntries) return false;
  const u32 next = (insert + 1) % kRingEntries;
  if (next == read_once(ring->first)) return false;

  kvm_coalesced_mmio entry{};
  entry.phys_addr = address;
  entry.len = size;
  entry.pio = pio ? 1 : 0;
  std::memcpy(entry.data, data, size);
  std::memcpy(&ring->coalesced_mmio[insert], &entry, sizeof(entry));
  // Pairs with the client's acquire of `last`.
  reinterpret_cast<sync::Atomic<u32>*>(&ring->last)->store(next, sync::kRelease);
  return true;
}

}  // namespace stagetwo::abi_kvm
