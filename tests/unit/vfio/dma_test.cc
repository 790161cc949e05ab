// SPDX-License-Identifier: Apache-2.0
// What models reach: their own container's memory, by PASID or in the external domain.
#include "vfio/dma.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "base/trace.h"
#include "tests/unit/vfio/container_world.h"

namespace stagetwo::vfio {
namespace {

using iommu::FaultReason;

class DmaTest : public ContainerWorld {
 protected:
  static constexpr u32 kExternal = 0, kIsolated = 4;
  void connect(u32 slot, Dma& dma) {
    if (container_->type() == IommuType::kNone) start(slot);
    ASSERT_TRUE(dma.connect(container_.clone(), group(slot)));
  }
  static iommu::DmaAnswer put(Dma& dma, u64 iova, u8 value, u64 bytes = 1) {
    u8 from[2 * kPageSize];
    std::memset(from, value, sizeof(from));
    return dma.write(iova, from, bytes);
  }
  u8 byte(u64 at) { return *memory_.bytes_at(at); }
};

TEST_F(DmaTest, NotConnectedNothingIsReached) {
  Dma dma;
  EXPECT_NE(put(dma, kIova, 1).reason, FaultReason::kNone);
  EXPECT_EQ(error_of(dma.hold(kIova, 1, true)), ENOTCONN);
  EXPECT_EQ(error_of(dma.connect(container_.clone(), group(kExternal))), EINVAL) << "no such group";
  ASSERT_EQ(add(kExternal), 0);
  EXPECT_EQ(error_of(dma.connect(container_.clone(), group(kExternal))), EINVAL) << "no type";
}

TEST_F(DmaTest, BothKindsReadAndWriteWhatIsMapped) {
  for (const u32 slot : {kExternal, kIsolated}) {
    Dma dma;
    connect(slot, dma);
    ASSERT_EQ(map(kIova, 2), 0);
    EXPECT_EQ(dma.pasid().has_value(), slot == kIsolated);
    EXPECT_EQ(put(dma, kIova + kPageSize - 4, 0x30, 8).done, 8u);
    EXPECT_EQ(byte(kPageSize - 4), 0x30);
    EXPECT_EQ(byte(kPageSize + 3), 0x30);
    u8 seen[8] = {};
    EXPECT_EQ(dma.read(kIova + kPageSize - 4, seen, 8).reason, FaultReason::kNone);
    EXPECT_EQ(seen[7], 0x30);
    ASSERT_EQ(unmap_all(), 2 * s64{kPageSize});
    if (slot == kExternal) {
      ASSERT_EQ(add(kIsolated), 0);
    }
  }
}

TEST_F(DmaTest, AFaultSaysWhereAndHowFar) {
  for (const u32 slot : {kExternal, kIsolated}) {
    Dma dma;
    connect(slot, dma);
    ASSERT_EQ(map(kIova), 0);
    const auto answer = put(dma, kIova + kPageSize - 3, 1, 8);
    EXPECT_EQ(answer.done, 3u);
    EXPECT_EQ(answer.iova, kIova + kPageSize);
    EXPECT_EQ(answer.reason, FaultReason::kSecondDenied);
    ASSERT_EQ(unmap_all(), s64{kPageSize});
    ASSERT_EQ(map(kIova, 1, 0, iommu::kMayRead), 0);
    EXPECT_EQ(put(dma, kIova, 9).reason, FaultReason::kSecondDenied) << "may be read";
    EXPECT_NE(byte(0), 9);
    ASSERT_EQ(unmap_all(), s64{kPageSize});
    if (slot == kExternal) {
      ASSERT_EQ(add(kIsolated), 0);
    }
  }
}

TEST_F(DmaTest, WhatADeviceIsRefusedIsTold) {
  for (const u32 slot : {0u, 4u}) {
    start(slot);
    Dma dma;
    ASSERT_TRUE(dma.connect(container_.clone(), group(slot)));
    ASSERT_TRUE(trace::start());
    u8 byte = 0;
    EXPECT_EQ(dma.read(kIova + 5, &byte, 1).done, 0u);
    trace::stop();
    unsigned told = 0;
    trace::for_each([&](const trace::Record& r) {
      if (r.event != trace::Event::io_page_fault) return;
      ++told;
      EXPECT_EQ(r.arg[2], kIova + 5);
      EXPECT_NE(r.arg[3], 0u);
    });
    EXPECT_EQ(told, 1u) << slot;
    dma.disconnect();
    container_->remove_group(group(slot));
  }
}

TEST_F(DmaTest, NothingIsReachedAfterAnUnmap) {
  Dma dma;
  connect(kIsolated, dma);
  for (unsigned round = 0; round < 100; ++round) {
    ASSERT_EQ(map(kIova, 1, round % 2), 0);
    EXPECT_EQ(put(dma, kIova, static_cast<u8>(round)).reason, FaultReason::kNone);
    EXPECT_EQ(byte(round % 2 * kPageSize), static_cast<u8>(round));
    ASSERT_EQ(unmap(kIova, 1), s64{kPageSize});
    EXPECT_NE(put(dma, kIova, 0xff).reason, FaultReason::kNone);
  }
}

// I1 and I2 of the isolation matrix: two clients, each with a container, one parent.
TEST_F(DmaTest, TwoContainersAreApart) {
  auto backing = *Container::make_file("test-container");
  auto other = *Container::attach(backing.fd());
  ASSERT_TRUE(other->add_group(group(5)));
  ASSERT_TRUE(other->set_type(3));
  Dma a, b;
  connect(kIsolated, a);
  ASSERT_TRUE(b.connect(other.clone(), group(5)));
  ASSERT_EQ(map(kIova), 0);
  ASSERT_TRUE(other->map({kIova, kPageSize, memory_.address() + 3 * kPageSize, kBoth}));
  ASSERT_TRUE(other->map({2 * kIova, kPageSize, memory_.address() + 4 * kPageSize, kBoth}));
  EXPECT_EQ(put(a, kIova, 0xaa, kPageSize).done, kPageSize);
  EXPECT_EQ(byte(17), 0xaa);
  EXPECT_EQ(byte(3 * kPageSize + 17), 0);
  const auto answer = put(a, 2 * kIova, 0xbb);
  EXPECT_EQ(answer.done, 0u);
  EXPECT_EQ(answer.iova, 2 * kIova);
  EXPECT_NE(answer.reason, FaultReason::kNone);
  EXPECT_EQ(byte(4 * kPageSize), 0);
  other->remove_group(group(5));
  EXPECT_NE(put(b, kIova, 0xcc).reason, FaultReason::kNone) << "its container has no domain now";
  other->closed();
}

TEST_F(DmaTest, S4_04_WhatIsHeldIsPinnedAndItsListenerIsToldBeforeItGoes) {
  struct Told final : Dma::Listener {
    void unmapped(u64 iova, u64 last) override {
      ++calls;
      range = {iova, last};
    }
    int calls = 0;
    std::pair<u64, u64> range;
  } told;
  Dma dma;
  dma.set_listener(&told);
  connect(kExternal, dma);
  ASSERT_EQ(map(kIova, 4), 0);
  EXPECT_EQ(host::pin_use().pages, 0u);
  ASSERT_EQ(error_of(dma.hold(kIova + kPageSize + 5, kPageSize, true)), 0);
  EXPECT_EQ(host::pin_use().pages, 2u) << "exactly what was asked for";
  EXPECT_EQ(error_of(dma.hold(kIova + 3 * kPageSize, 2 * kPageSize, true)), ENOENT);
  dma.let_go(kIova + kPageSize, kPageSize);
  EXPECT_EQ(host::pin_use().pages, 0u);
  ASSERT_EQ(error_of(dma.hold(kIova, kPageSize, false)), 0);
  EXPECT_EQ(unmap(kIova, 4), 4 * s64{kPageSize});
  EXPECT_EQ(told.calls, 1);
  EXPECT_LE(told.range.first, kIova);
  EXPECT_GE(told.range.second, kIova + kPageSize - 1);
  EXPECT_EQ(host::pin_use().pages, 0u);
}

TEST_F(DmaTest, WhatItWritesInTheExternalDomainIsDirty) {
  Dma dma;
  connect(kExternal, dma);
  ASSERT_EQ(map(kIova, 4), 0);
  ASSERT_TRUE(container_->set_tracking(true));
  put(dma, kIova + 2 * kPageSize + 7, 1);
  u8 seen = 0;
  dma.read(kIova, &seen, 1);
  u64 first = 0;
  ASSERT_TRUE(container_->read_dirty(
      kIova, kIova + 4 * kPageSize - 1,
      [](void* to, u64 at, u64, bool dirty) -> Result<void> {
        if (dirty) *static_cast<u64*>(to) += at;
        return {};
      },
      &first));
  EXPECT_EQ(first, kIova + 2 * kPageSize) << "that page and no other";
}

// What the parent has pinned a child does not reach (docs/shared-iommufd.md); nor does it use, or
// break, the parent's caches.
TEST_F(DmaTest, AChildHasCachesOfItsOwn) {
  Dma dma;
  connect(kIsolated, dma);
  ASSERT_EQ(map(kIova), 0);
  ASSERT_EQ(put(dma, kIova, 1).reason, FaultReason::kNone);
  const pid_t child = fork();
  if (child == 0) _exit(put(dma, kIova, 2).reason == FaultReason::kSecondUnreadable ? 0 : 1);
  int status = 1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(put(dma, kIova, 3).reason, FaultReason::kNone);
  EXPECT_EQ(byte(0), 3);
}

}  // namespace
}  // namespace stagetwo::vfio
