// SPDX-License-Identifier: Apache-2.0
// What a device may reach, by somebody who has only the installed package: memory by a PASID, the
// auxiliary domains of the seed, and nothing any more when it was taken back.
#include <sys/mman.h>

#include <cerrno>
#include <cstdio>

#include "iommu/auxiliary.h"

namespace {

using stagetwo::u32;
using stagetwo::u64;
using stagetwo::u8;
using namespace stagetwo::iommu;

constexpr u64 kIova = u64{1} << 32;
constexpr u32 kReadWrite = u32{kMayRead} | kMayWrite;

int fail(const char* what) {
  std::printf("devices: %s\n", what);
  return 1;
}

}  // namespace

int main() {
  void* const memory = mmap(nullptr, 2 * stagetwo::kPageSize, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto file = Context::make_file("consumer");
  if (memory == MAP_FAILED || !file) return fail("no memory");
  const auto context = Context::attach(file->fd());
  if (!context) return fail("no iommufd");

  // One page table that is primary on one device and auxiliary on another.
  u32 devices[2], ioas = 0, table = 0, pasid = 0;
  {
    Locked locked(**context);
    Device* made[2];
    for (int i = 0; i < 2; ++i) {
      const auto device = locked.make_vtd_device(
          {.source = stagetwo::SourceId{static_cast<stagetwo::u16>(i + 1)}, .max_pasid_lg2 = 8});
      if (!device) return fail("no device");
      made[i] = *device;
      devices[i] = made[i]->object.id;
    }
    const auto space = locked.make_ioas();
    if (!space) return fail("no address space");
    const auto hwpt = locked.make_hwpt(**space, *made[0], {.pasid = true});
    if (!hwpt) return fail("no page table");
    ioas = (*space)->object.id;
    table = (*hwpt)->object.id;
    u32 attached = table;
    if (!locked.attach(*made[0], &attached)) return fail("primary");
    if (!enable_auxiliary(*made[1]) || !attach_auxiliary(locked, *made[1], **hwpt)) {
      return fail("auxiliary");
    }
    const auto number = auxiliary_pasid(*made[1], **hwpt);
    if (!number) return fail("its number");
    pasid = *number;
  }

  MapRequest request{true, kIova, 2 * stagetwo::kPageSize, kReadWrite};
  if (!(*context)->map(ioas, reinterpret_cast<u64>(memory), &request)) return fail("map");
  const auto over = (*context)->map(ioas, reinterpret_cast<u64>(memory), &request);
  if (over || stagetwo::to_int(over.error()) != EEXIST) return fail("an overlap is EEXIST");
  u8 byte = 17;
  const auto writes = [&](u32 device, stagetwo::s64 by, u64 iova) {
    return (*context)->dma(device, by, iova, 1, nullptr, &byte).reason == FaultReason::kNone;
  };
  if (!writes(devices[0], kNoPasid, kIova)) return fail("the primary one's write");
  if (!writes(devices[1], pasid, kIova + stagetwo::kPageSize)) return fail("the auxiliary one's");
  const u8* const seen = static_cast<const u8*>(memory);
  if (seen[0] != 17 || seen[stagetwo::kPageSize] != 17) return fail("written elsewhere");
  if (writes(devices[1], kNoPasid, kIova)) return fail("without a PASID nothing is reached");
  if (writes(devices[1], pasid + 1, kIova)) return fail("nor by another");

  u64 unmapped = 0;
  if (!(*context)->unmap(ioas, 0, ~u64{0}, &unmapped) || unmapped != request.length) {
    return fail("unmap");
  }
  if (writes(devices[0], kNoPasid, kIova)) return fail("what was unmapped is reached");
  std::puts("devices: one page table, two devices; what was taken back is reached no more");
  return 0;
}
