// SPDX-License-Identifier: Apache-2.0
// What a DMA window costs: map and unmap of 1 GiB in three forms, per 4 KiB page, with a domain
// attached; what a device pays for a page it knows; reading what was written in 1 TiB; a thousand
// PASIDs; and a translation beside the linear search over regions that device emulators make.
// After a map every page is read back by its IOVA and the pins are counted.

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "abi/iommufd/calls.h"
#include "bench/report.h"
#include "bench/timing.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/pin.h"
#include "iommu/dma_engine.h"
#include "iommu/iommufd.h"
#include "iommu/locked.h"

namespace stagetwo::iommu {
namespace {

using bench::Clock;
using bench::since_ns;

constexpr u64 kGiB = u64{1} << 30, kLarge = u64{2} << 20;
constexpr u64 kStart = u64{1} << 32;
constexpr u32 kBoth = u32{kMayRead} | kMayWrite;

// An iommufd with one device in VT-d's tables, attached by PASID 1, and touched memory.
class World {
 public:
  explicit World(u64 bytes, bool dirty = false) : bytes_(bytes) {
    if (!host::backstop::install()) return;
    void* const reserve = mmap(nullptr, bytes + kLarge, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    memory_ = (reinterpret_cast<u64>(reserve) + kLarge - 1) & ~(kLarge - 1);
    std::memset(reinterpret_cast<void*>(memory_), 1, bytes);
    backing_.emplace(*Context::make_file("bench-iommufd"));
    context_ = *Context::attach(backing_->fd());
    Locked locked(*context_);
    Device* const device =
        *locked.make_vtd_device({.source = SourceId{1}, .max_pasid_lg2 = 20, .levels = 4});
    Ioas* const ioas = *locked.make_ioas();
    Hwpt* const hwpt = *locked.make_hwpt(*ioas, *device, {.dirty = dirty, .pasid = true});
    device_ = device->object.id;
    ioas_ = ioas->object.id;
    hwpt_ = hwpt->object.id;
    u32 pt = hwpt_;
    static_cast<void>(locked.attach(*device, &pt, 1));
  }
  ~World() {
    u64 unmapped = 0;
    static_cast<void>(context_->unmap(ioas_, 0, ~u64{0}, &unmapped));
    // Announced as a client's is: the next world's memory is not taken for known.
    host::change(memory_, bytes_, host::EventKind::kUnmap,
                 [&] { return munmap(reinterpret_cast<void*>(memory_), bytes_); });
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  [[nodiscard]] Context& context() const { return *context_; }
  [[nodiscard]] u32 device() const { return device_; }
  [[nodiscard]] u32 hwpt() const { return hwpt_; }
  [[nodiscard]] u32 ioas() const { return ioas_; }
  [[nodiscard]] u64 memory() const { return memory_; }

  [[nodiscard]] sync::Ref<Iommufd> iommufd() const {
    return *sync::Ref<Iommufd>::make("bench.iommufd", *Context::attach(backing_->fd()));
  }

  bool map(u64 at, u64 bytes) {
    MapRequest request{true, kStart + at, bytes, kBoth};
    return context_->map(ioas_, memory_ + at, &request).has_value();
  }
  bool unmap(u64 at, u64 bytes) {
    u64 unmapped = 0;
    return context_->unmap(ioas_, kStart + at, kStart + at + bytes - 1, &unmapped).has_value();
  }
  // Does each page lead to its own frame, pinned once, in entries of 2 MiB where so much was mapped
  // at once?
  [[nodiscard]] bool is_right(u64 piece) {
    Locked locked(*context_);
    const Hwpt& hwpt = **locked.find<Hwpt>(hwpt_);
    for (u64 at = 0; at < bytes_; at += kPageSize) {
      const auto found = translate(locked.arena(), hwpt.domain, kStart + at);
      const auto frame = locked.frame_at(Hva(memory_ + at));
      if (!found || !frame || found->address != *frame * kPageSize) return false;
      if (found->page_bytes < std::min(piece, kLarge)) return false;
      if (host::pins_of(*host::frame_at(Hva(memory_ + at))) != 1) return false;
    }
    return true;
  }

 private:
  u64 bytes_, memory_ = 0;
  std::optional<host::Backing> backing_;
  Box<Context> context_;
  u32 device_ = 0, ioas_ = 0, hwpt_ = 0;
};

// Beside it what the kernel takes for making sure of pages that are present, in the same pieces
// and rounds: MADV_POPULATE_WRITE and nothing else. And the first round alone: there the kernel is
// asked what is present, which is then known. A page mapped by a call of its own pays for all a
// call does, two locks above all.
void map_and_unmap(benchmark::State& state, u64 piece, bool mapping) {
  World world(kGiB);
  constexpr double kPages = static_cast<double>(kGiB / kPageSize);
  constexpr int kPopulateWrite = 23;
  std::vector<double> maps, unmaps, populated;
  bool right = true;
  for (auto _ : state) {
    for (unsigned round = 0; round < 3; ++round) {
      const auto floor = Clock::now();
      for (u64 at = 0; at < kGiB; at += piece) {
        madvise(reinterpret_cast<void*>(world.memory() + at), piece, kPopulateWrite);
      }
      populated.push_back(since_ns(floor) / kPages);
      const auto start = Clock::now();
      for (u64 at = 0; at < kGiB; at += piece) right = world.map(at, piece) && right;
      maps.push_back(since_ns(start) / kPages);
      right = right && world.is_right(piece);
      const auto again = Clock::now();
      for (u64 at = 0; at < kGiB; at += piece) right = world.unmap(at, piece) && right;
      unmaps.push_back(since_ns(again) / kPages);
    }
  }
  right = right && host::pin_use().pages == 0;
  const char* const unit = piece == kPageSize ? "ns a page and call" : "ns a 4 KiB page";
  bench::report(state, {.unit = right ? unit : "WRONG: a page or a pin is not right",
                        .value = bench::median(mapping ? maps : unmaps),
                        .at_most = mapping ? 60.0 : 30.0});
  if (!mapping) return;
  state.counters["populate_of_present_pages"] = bench::median(populated);
  state.counters["first_time"] = maps.front();
}

void Map1GiBIn4KiB(benchmark::State& state) {
  map_and_unmap(state, kPageSize, true);
}
void Map1GiBIn2MiB(benchmark::State& state) {
  map_and_unmap(state, kLarge, true);
}
void Map1GiBInOneCall(benchmark::State& state) {
  map_and_unmap(state, kGiB, true);
}
void Unmap1GiBIn4KiB(benchmark::State& state) {
  map_and_unmap(state, kPageSize, false);
}
void Unmap1GiBIn2MiB(benchmark::State& state) {
  map_and_unmap(state, kLarge, false);
}
void Unmap1GiBInOneCall(benchmark::State& state) {
  map_and_unmap(state, kGiB, false);
}
BENCHMARK(Map1GiBIn4KiB)->Iterations(1);
BENCHMARK(Map1GiBIn2MiB)->Iterations(1);
BENCHMARK(Map1GiBInOneCall)->Iterations(1);
BENCHMARK(Unmap1GiBIn4KiB)->Iterations(1);
BENCHMARK(Unmap1GiBIn2MiB)->Iterations(1);
BENCHMARK(Unmap1GiBInOneCall)->Iterations(1);

// Eight bytes of a page the device's TLB knows; of one only the unit's IOTLB knows; of neither.
void device_access(benchmark::State& state, u64 pages) {
  World world(kLarge);
  static_cast<void>(world.map(0, kLarge));
  const auto engine = *DmaEngine::make(world.context(), world.device());
  u64 value = 0, at = 0;
  for (auto _ : state) {
    static_cast<void>(engine->access(1, kStart + at % pages * kPageSize, 8, &value, nullptr));
    ++at;
  }
}
void IotlbHit(benchmark::State& state) {
  device_access(state, 16);
}
void DeviceTlbMiss(benchmark::State& state) {
  device_access(state, 512);
}
BENCHMARK(IotlbHit);
BENCHMARK(DeviceTlbMiss);

// IOMMU_HWPT_GET_DIRTY_BITMAP of 1 TiB of IOVA over 1 GiB of memory, in pages of 2 MiB: not aligned
// as a larger one would have to be. One of a hundred is written; the client's bitmap, with a bit
// for each 2^n bytes, then says those and no others.
void DirtyBitmapOf1TiB(benchmark::State& state) {
  World world(kGiB, true);
  constexpr u64 kCopies = 1024, kFirst = kStart + kLarge, kStep = 100 * kLarge;
  const u64 page_bytes = u64{1} << state.range(0);
  {
    Locked locked(world.context());
    Ioas& ioas = **locked.find<Ioas>(world.ioas());
    Locked::MapRequest request{true, kFirst, kGiB, kBoth};
    static_cast<void>(locked.map(ioas, world.memory(), &request));
    for (u64 i = 1; i < kCopies; ++i) {
      request.iova = kFirst + i * kGiB;
      static_cast<void>(locked.copy(ioas, kFirst, world.ioas(), &request));
    }
    static_cast<void>(locked.set_dirty_tracking(**locked.find<Hwpt>(world.hwpt()), true));
  }
  const auto iommufd = world.iommufd();
  std::vector<u64> bitmap(kCopies * kGiB / page_bytes / 64), expected(bitmap.size());
  for (u64 at = 0; at < kCopies * kGiB; at += page_bytes) {
    const u64 bit = at / page_bytes;
    if (at % kStep < kLarge) expected[bit / 64] |= u64{1} << bit % 64;
  }
  bool right = true;
  std::vector<double> took;
  for (auto _ : state) {
    {
      Locked locked(world.context());
      Hwpt& hwpt = **locked.find<Hwpt>(world.hwpt());
      for (u64 at = 0; at < kCopies * kGiB; at += kStep) {
        right = set_dirty(locked.arena(), hwpt.domain, kFirst + at) && right;
      }
    }
    std::fill(bitmap.begin(), bitmap.end(), 0);
    abi_iommufd::Call call{*iommufd, 0, 0};
    iommu_hwpt_get_dirty_bitmap cmd{};
    cmd.hwpt_id = world.hwpt();
    cmd.iova = kFirst;
    cmd.length = kCopies * kGiB;
    cmd.page_size = page_bytes;
    cmd.data = reinterpret_cast<u64>(bitmap.data());
    const auto start = Clock::now();
    right = abi_iommufd::get_dirty_bitmap(call, cmd).has_value() && right;
    took.push_back(since_ns(start) / 1e6);
    right = right && bitmap == expected;
  }
  bench::report(
      state, {.unit = right ? "ms" : "WRONG: not what was written", .value = bench::median(took)});
}
BENCHMARK(DirtyBitmapOf1TiB)->Arg(21)->Arg(12)->Iterations(3);

void ThousandPasids(benchmark::State& state) {
  World world(kLarge);
  constexpr u32 kPasids = 1000;
  Locked locked(world.context());
  Device& device = **locked.find<Device>(world.device());
  for (auto _ : state) {
    for (u32 pasid = 2; pasid < 2 + kPasids; ++pasid) {
      u32 pt = world.hwpt();
      static_cast<void>(locked.attach(device, &pt, pasid));
    }
    for (u32 pasid = 2; pasid < 2 + kPasids; ++pasid) locked.detach(device, pasid);
  }
}
BENCHMARK(ThousandPasids)->Unit(benchmark::kMicrosecond);

// A translation among so many mappings, beside the search from the first region on.
void TranslateAmongRegions(benchmark::State& state) {
  const u64 regions = static_cast<u64>(state.range(0));
  World world(kLarge);
  struct Region {
    u64 start, size, memory;
  };
  std::vector<Region> list;
  Locked locked(world.context());
  Ioas& ioas = **locked.find<Ioas>(world.ioas());
  for (u64 i = 0; i < regions; ++i) {
    Locked::MapRequest request{true, kStart + 2 * i * kPageSize, kPageSize, kBoth};
    static_cast<void>(locked.map(ioas, world.memory() + i % 512 * kPageSize, &request));
    list.push_back({request.iova, kPageSize, world.memory()});
  }
  const Hwpt& hwpt = **locked.find<Hwpt>(world.hwpt());
  const auto iova_of = [&](u64 i) { return kStart + i * 7919 % regions * 2 * kPageSize; };
  constexpr u64 kLookups = 20'000;
  u64 sum = 0;
  const auto start = Clock::now();
  for (u64 i = 0; i < kLookups; ++i) {
    for (const Region& region : list) {
      if (iova_of(i) - region.start >= region.size) continue;
      sum += region.memory;
      break;
    }
  }
  const double linear = since_ns(start) / kLookups;
  double own = 0;
  for (auto _ : state) {
    const auto again = Clock::now();
    for (u64 i = 0; i < kLookups; ++i)
      sum += translate(locked.arena(), hwpt.domain, iova_of(i))->address;
    own = since_ns(again) / kLookups;
  }
  benchmark::DoNotOptimize(sum);
  bench::report(
      state, {.unit = "ns", .value = own, .yardstick = "linear search", .yardstick_value = linear});
}
BENCHMARK(TranslateAmongRegions)->Arg(1)->Arg(100)->Arg(10'000)->Iterations(1);

}  // namespace
}  // namespace stagetwo::iommu
