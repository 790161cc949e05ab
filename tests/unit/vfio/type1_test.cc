// SPDX-License-Identifier: Apache-2.0
// What type 1 takes and refuses, in the kernel's order.
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "host/process.h"

#include "tests/unit/vfio/container_world.h"
#include "vfio/container_state.h"
#include "vfio/serial.h"

namespace stagetwo::vfio {
namespace {

class Type1 : public ContainerWorld {
 protected:
  using Ranges = std::vector<std::pair<u64, u64>>;
  // Minus the errno as a range, where it is refused.
  Ranges dirty(u64 iova, u64 pages) {
    Ranges found;
    const auto done = container_->read_dirty(
        iova, iova + pages * kPageSize - 1,
        [](void* to, u64 first, u64 last, bool is_dirty) -> Result<void> {
          if (is_dirty) static_cast<Ranges*>(to)->push_back({first, last});
          return {};
        },
        &found);
    if (!done) return {{0, static_cast<u64>(to_int(done.error()))}};
    return found;
  }
  // As a driver's access in the external domain notes it.
  void write_pages(const Ranges& bytes) {
    iommu::Locked locked(container_->context());
    auto& state = *reinterpret_cast<ContainerState*>(locked.root().above.get());
    for (const auto& [first, last] : bytes) {
      ASSERT_TRUE(note_dirty(locked, state, first, last));
    }
  }
  static Ranges refused(int error) { return {{0, static_cast<u64>(error)}}; }
};

TEST_F(Type1, BadRangesAreNotMapped) {
  start(0);
  const u64 at = memory_.address();
  const auto map_bytes = [&](u64 iova, u64 size, u64 address) {
    return error_of(container_->map({iova, size, address, kBoth}));
  };
  EXPECT_EQ(map_bytes(kIova, 0, at), EINVAL);
  EXPECT_EQ(map_bytes(kIova + 1, kPageSize, at), EINVAL);
  EXPECT_EQ(map_bytes(kIova, kPageSize / 2, at), EINVAL);
  EXPECT_EQ(map_bytes(kIova, kPageSize, at + 8), EINVAL);
  EXPECT_EQ(map_bytes(0 - kPageSize, 2 * kPageSize, at), EINVAL);
  EXPECT_EQ(map_bytes(kIova, 2 * kPageSize, 0 - kPageSize), EINVAL);
  EXPECT_EQ(map_bytes(0 - kPageSize, kPageSize, at), 0) << "the last page";
  EXPECT_EQ(unmap_all(), s64{kPageSize});
}

TEST_F(Type1, AnOverlapIsRefusedBeforeWhatIsOutside) {
  start(4);
  ASSERT_EQ(map(kIova, 2), 0);
  EXPECT_EQ(map(kIova + kPageSize), EEXIST);
  EXPECT_EQ(map(kIova - kPageSize, 4), EEXIST);
  EXPECT_EQ(map(0xfee00000), EINVAL);
  EXPECT_EQ(map(u64{1} << 48), EINVAL);
}

TEST_F(Type1, MemoryThatIsNotThereIsNotPinned) {
  start(4);
  EXPECT_EQ(error_of(container_->map({kIova, kPageSize, 0x1000, kBoth})), EFAULT);
  EXPECT_EQ(map(kIova), 0);
}

TEST_F(Type1, S4_16_Version2TakesWholeMapsOnly) {
  start(0);
  ASSERT_EQ(map(kIova, 4), 0);
  ASSERT_EQ(map(kIova + 4 * kPageSize, 2, 4), 0);
  EXPECT_EQ(unmap(kIova, 2), -EINVAL);
  EXPECT_EQ(unmap(kIova + 2 * kPageSize, 4), -EINVAL);
  EXPECT_EQ(unmap(kIova + 64 * kPageSize, 4), 0) << "nothing there";
  EXPECT_EQ(unmap(kIova - kPageSize, 7), 6 * s64{kPageSize});
}

TEST_F(Type1, Version1TakesWhatBeginsInTheRangeWhole) {
  start(0, IommuType::kType1);
  ASSERT_EQ(map(kIova, 4), 0);
  ASSERT_EQ(map(kIova + 4 * kPageSize, 2, 4), 0);
  EXPECT_EQ(unmap(kIova + kPageSize, 8), 0) << "behind the beginning of the first";
  EXPECT_EQ(unmap(kIova, 1), 4 * s64{kPageSize});
  EXPECT_EQ(unmap(kIova + 4 * kPageSize, 1), 2 * s64{kPageSize});
}

TEST_F(Type1, BadRangesAreNotUnmapped) {
  start(0);
  const auto unmap_bytes = [&](u64 iova, u64 size, bool all) {
    return error_of(container_->unmap({iova, size, all}));
  };
  EXPECT_EQ(unmap_bytes(kIova + 1, kPageSize, false), EINVAL);
  EXPECT_EQ(unmap_bytes(kIova, 0, false), EINVAL);
  EXPECT_EQ(unmap_bytes(kIova, 8, false), EINVAL);
  EXPECT_EQ(unmap_bytes(0 - kPageSize, 2 * kPageSize, false), EINVAL);
  EXPECT_EQ(unmap_bytes(0, kPageSize, true), EINVAL);
  EXPECT_EQ(unmap_bytes(kPageSize, 0, true), EINVAL);
  EXPECT_EQ(unmap_bytes(0, 0, true), 0);
}

TEST_F(Type1, AllOfThemGoAtOnce) {
  start(4);
  for (u64 i = 0; i < 4; ++i) ASSERT_EQ(map(kIova + 8 * i * kPageSize, 1, i), 0);
  EXPECT_EQ(container_->info()->maps_left, Container::kMostMaps - 4);
  EXPECT_EQ(unmap_all(), 4 * s64{kPageSize});
  EXPECT_EQ(container_->info()->maps_left, Container::kMostMaps);
  EXPECT_EQ(host::pin_use().pages, 0u);
}

TEST_F(Type1, NoAccessLandsAfterAnUnmap) {
  start(4);
  ASSERT_EQ(map(kIova), 0);
  ASSERT_EQ(write(4, kIova, 1), iommu::FaultReason::kNone);
  ASSERT_EQ(unmap(kIova, 1), s64{kPageSize});
  EXPECT_NE(write(4, kIova, 2), iommu::FaultReason::kNone);
  EXPECT_EQ(*memory_.bytes_at(0), 1);
}

TEST_F(Type1, S4_16_I22_MapsHaveALimit) {
  start(0);
  for (u64 i = 0; i < Container::kMostMaps; ++i) ASSERT_EQ(map(kIova + 2 * i * kPageSize), 0);
  EXPECT_EQ(map(0), ENOSPC);
  EXPECT_EQ(map(kIova), EEXIST) << "said first";
  ASSERT_EQ(unmap(kIova, 1), s64{kPageSize});
  EXPECT_EQ(map(0), 0);
  EXPECT_EQ(unmap_all(), s64{Container::kMostMaps} * s64{kPageSize});
}

TEST_F(Type1, WithADomainEveryMapIsDirty) {
  start(4);
  ASSERT_EQ(map(kIova, 2), 0);
  EXPECT_EQ(dirty(kIova, 2), refused(EINVAL)) << "nobody tracks";
  ASSERT_TRUE(container_->set_tracking(true));
  EXPECT_EQ(dirty(kIova, 1), refused(EINVAL)) << "cuts a map";
  const Ranges all = {{kIova, kIova + 2 * kPageSize - 1}};
  EXPECT_EQ(dirty(kIova, 2), all);
  EXPECT_EQ(dirty(kIova, 2), all);
}

// The count of two processes that share a container is one.
TEST_F(Type1, WhatTwoProcessesUnmapIsCountedOnce) {
  start(0);
  constexpr u64 kMaps = 2000;
  for (u64 i = 0; i < kMaps; ++i) ASSERT_EQ(map(kIova + 2 * i * kPageSize), 0);
  const pid_t child = fork();
  if (child == 0) {
    host::after_fork_child();  // as the shim does
    for (u64 i = 0; i < kMaps; ++i) static_cast<void>(unmap(kIova + 2 * i * kPageSize, 1));
    _exit(0);
  }
  for (u64 i = 0; i < kMaps; ++i) static_cast<void>(unmap(kIova + 2 * i * kPageSize, 1));
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  EXPECT_EQ(container_->info()->maps_left, Container::kMostMaps);
}

// What a driver writes when the bitmap was read already comes with the unmap.
TEST_F(Type1, WhatIsWrittenBeforeTheMapHasGoneIsToldWithIt) {
  start(0);
  ASSERT_EQ(map(kIova, 4), 0);
  ASSERT_TRUE(container_->set_tracking(true));
  EXPECT_EQ(dirty(kIova, 4), Ranges{});
  write_pages({{kIova + 2 * kPageSize, kIova + 2 * kPageSize}});
  Ranges late;
  const auto done = container_->unmap(
      {kIova, 4 * kPageSize, false},
      [](void* to, u64 first, u64 last) { static_cast<Ranges*>(to)->push_back({first, last}); },
      &late);
  ASSERT_TRUE(done);
  EXPECT_EQ(late, (Ranges{{kIova + 2 * kPageSize, kIova + 3 * kPageSize - 1}}));
}

// Told as a whole or not at all.
TEST_F(Type1, WhatCouldNotBeToldStaysDirty) {
  start(0);
  ASSERT_EQ(map(kIova, 4), 0);
  ASSERT_TRUE(container_->set_tracking(true));
  write_pages({{kIova, kIova}, {kIova + 2 * kPageSize, kIova + 2 * kPageSize}});
  u32 calls = 0;
  const auto done = container_->read_dirty(
      kIova, kIova + 4 * kPageSize - 1,
      [](void* told, u64, u64, bool) -> Result<void> {
        if (++*static_cast<u32*>(told) == 3) return refuse(ENOMEM);
        return {};
      },
      &calls);
  EXPECT_EQ(error_of(done), ENOMEM);
  EXPECT_EQ(dirty(kIova, 4), (Ranges{{kIova, kIova + kPageSize - 1},
                                     {kIova + 2 * kPageSize, kIova + 3 * kPageSize - 1}}));
}

// What its devices wrote is known by no bit: all of it, and once.
TEST_F(Type1, WhenTheDomainGoesEverythingIsDirty) {
  start(0);
  ASSERT_EQ(add(4), 0);
  ASSERT_EQ(map(kIova, 4), 0);
  ASSERT_TRUE(container_->set_tracking(true));
  container_->remove_group(group(4));
  EXPECT_EQ(dirty(kIova, 4), (Ranges{{kIova, kIova + 4 * kPageSize - 1}}));
  EXPECT_EQ(dirty(kIova, 4), Ranges{});
}

TEST_F(Type1, WithoutOneThatIsDirtyWhichADriverWrote) {
  start(0);
  ASSERT_EQ(map(kIova, 4), 0);
  ASSERT_TRUE(container_->set_tracking(true));
  EXPECT_EQ(dirty(kIova, 4), Ranges{});
  write_pages(
      {{kIova + kPageSize + 5, kIova + kPageSize + 9}, {kIova + kPageSize, kIova + kPageSize}});
  EXPECT_EQ(dirty(kIova, 4), (Ranges{{kIova + kPageSize, kIova + 2 * kPageSize - 1}}));
  EXPECT_EQ(dirty(kIova, 4), Ranges{});
}

}  // namespace
}  // namespace stagetwo::vfio
