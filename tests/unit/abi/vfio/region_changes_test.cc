// SPDX-License-Identifier: Apache-2.0
// What mprotect and mremap make of regions that are mapped.
#include "abi/vfio/region_changes.h"

#include <signal.h>

#include <vector>

#include "tests/unit/abi/vfio/mapped_region.h"

namespace stagetwo {
namespace {

class RegionChange : public MappedRegion {
 protected:
  struct Call {
    u64 start, size;
    int prot;
    friend bool operator==(const Call&, const Call&) = default;
  };
  static constexpr int kBoth = PROT_READ | PROT_WRITE;

  int protect(u8* at, u64 size, int prot) {
    const auto call = [&](u64 start, u64 bytes, int rights) {
      calls_.push_back({start, bytes, rights});
      return mprotect(reinterpret_cast<void*>(start), bytes, rights);
    };
    return abi_vfio::protect_regions(reinterpret_cast<u64>(at), size, prot, call);
  }
  std::vector<Call> calls_;
};

TEST_F(RegionChange, ATrappedPartIsNeverWritable) {
  u8* const at = map_region(0, kPageSize);
  const u64 start = reinterpret_cast<u64>(at);
  ASSERT_EQ(protect(at, kPageSize, PROT_READ), 0);
  EXPECT_EXIT(put<u8>(at, 1), testing::KilledBySignal(SIGSEGV), "");
  ASSERT_EQ(protect(at, kPageSize, kBoth), 0);
  put<u32>(at, 9);
  expect_last(0, 9, 4);
  ASSERT_EQ(protect(at, kPageSize, PROT_WRITE), 0);
  EXPECT_EQ(get<u32>(at), 9u);
  EXPECT_EQ(calls_, (std::vector<Call>{{start, kPageSize, PROT_READ},
                                       {start, kPageSize, PROT_READ},
                                       {start, kPageSize, PROT_READ}}));
}

TEST_F(RegionChange, WhatIsBesideItGetsWhatWasAsked) {
  u8* const around =
      static_cast<u8*>(mmap(nullptr, 3 * kPageSize, kBoth, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  u8* const at = map_region(0, kPageSize);
  ASSERT_EQ(mremap(at, kPageSize, kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, around + kPageSize),
            around + kPageSize);
  {
    abi_vfio::RemapOfRegions moving({reinterpret_cast<u64>(at), kPageSize, kPageSize,
                                     MREMAP_MAYMOVE | MREMAP_FIXED,
                                     reinterpret_cast<u64>(around) + kPageSize});
    ASSERT_EQ(moving.refused(), 0);
    moving.moved(Hva(reinterpret_cast<u64>(around) + kPageSize));
  }
  ASSERT_EQ(protect(around, 3 * kPageSize, kBoth), 0);
  const u64 start = reinterpret_cast<u64>(around);
  EXPECT_EQ(calls_, (std::vector<Call>{{start, kPageSize, kBoth},
                                       {start + kPageSize, kPageSize, PROT_READ},
                                       {start + 2 * kPageSize, kPageSize, kBoth}}));
  put<u32>(around + kPageSize + 8, 3);
  expect_last(8, 3, 4);
  for (u8* const gone : {around + kPageSize, at}) {
    const host::InvalidateSection change(
        {HvaRange(Hva(reinterpret_cast<u64>(gone)), kPageSize), host::EventKind::kUnmap});
    munmap(gone, kPageSize);
  }
  EXPECT_EQ(abi_vfio::debug_mappings(), 0u);
  munmap(around, 3 * kPageSize);
}

TEST_F(RegionChange, AMoveIsRefusedAsOfADevicesPages) {
  const u64 at = reinterpret_cast<u64>(map_region(0, kPageSize));
  const auto refused = [&](u64 size, u64 new_size, int flags) {
    return abi_vfio::RemapOfRegions({at, size, new_size, flags, 0}).refused();
  };
  EXPECT_EQ(refused(kPageSize, 2 * kPageSize, MREMAP_MAYMOVE), EFAULT);
  EXPECT_EQ(refused(kPageSize, 2 * kPageSize, 0), EFAULT);
  EXPECT_EQ(refused(0, kPageSize, MREMAP_MAYMOVE), EFAULT);
  EXPECT_EQ(refused(kPageSize, kPageSize, MREMAP_MAYMOVE | MREMAP_DONTUNMAP), EINVAL);
  EXPECT_EQ(refused(kPageSize, kPageSize, MREMAP_MAYMOVE), 0);
  EXPECT_EQ(refused(kPageSize, 2 * kPageSize, 64), 0) << "the kernel's to refuse";
}

}  // namespace
}  // namespace stagetwo
