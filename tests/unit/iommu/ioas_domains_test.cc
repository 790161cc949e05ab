// SPDX-License-Identifier: Apache-2.0
// Areas in the tables of domains: exact frames, exact pins, all or nothing.
#include <sys/mman.h>

#include "base/failpoint.h"
#include "host/change.h"
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

class IoasDomainsTest : public IommufdWorld {
 protected:
  void SetUp() override {
    IommufdWorld::SetUp();
    ioas_ = make_ioas();
  }
  void TearDown() override {
    EXPECT_EQ(unmap_all(ioas_), 0);
    EXPECT_EQ(destroy(ioas_), 0);
    IommufdWorld::TearDown();
  }
  void expect_mapped(u32 hwpt, u64 iova, u64 address, u64 bytes) {
    for (u64 at = 0; at < bytes; at += 2048) {
      ASSERT_NE(walk(hwpt, iova + at), kNowhere) << at;
      ASSERT_EQ(walk(hwpt, iova + at), frame_address(address + at)) << at;
    }
  }
  void expect_nothing(u32 hwpt, u64 iova, u64 bytes) {
    for (u64 at = 0; at < bytes; at += 2048) ASSERT_EQ(walk(hwpt, iova + at), kNowhere) << at;
  }

  u32 ioas_ = 0;
  test::GuardedPages memory_{8};
};

TEST_F(IoasDomainsTest, AMapFillsEveryDomainAndPinsOnce) {
  const Attached a = attach_device(ioas_);
  const Attached b = attach_device(ioas_, false, true);
  EXPECT_EQ(a.hwpt, b.hwpt) << "an automatic page table takes any device";
  u32 manual = 0;
  {
    Locked locked(*context_);
    manual = (*locked.make_hwpt(**locked.find<Ioas>(ioas_), **locked.find<Device>(b.device), {}))
                 ->object.id;
  }
  ASSERT_EQ(map_at(ioas_, memory_.address(), memory_.bytes(), kApertureStart), 0);
  expect_mapped(a.hwpt, kApertureStart, memory_.address(), memory_.bytes());
  expect_mapped(manual, kApertureStart, memory_.address(), memory_.bytes());
  EXPECT_EQ(pins_at(memory_.address()), 1u);
  // A second area over the same memory pins for itself.
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kApertureStart + 0x100000), 0);
  EXPECT_EQ(pins_at(memory_.address()), 2u);
  EXPECT_EQ(unmap(ioas_, kApertureStart, memory_.bytes()), 0);
  EXPECT_EQ(pins_at(memory_.address()), 1u);
  expect_nothing(a.hwpt, kApertureStart, memory_.bytes());
  EXPECT_EQ(unmap_all(ioas_), 0);
  EXPECT_EQ(destroy(manual), 0);
  EXPECT_EQ(destroy(a.test_device), 0);
  EXPECT_EQ(destroy(b.test_device), 0);
}

TEST_F(IoasDomainsTest, HalfPagesAreExact) {
  const Attached a = attach_device(ioas_);
  ASSERT_EQ(map_at(ioas_, memory_.address() + 2048, 3 * 2048, kApertureStart + 2048), 0);
  expect_nothing(a.hwpt, kApertureStart, 2048);
  expect_mapped(a.hwpt, kApertureStart + 2048, memory_.address() + 2048, 3 * 2048);
  expect_nothing(a.hwpt, kApertureStart + 4 * 2048, 2048);
  EXPECT_EQ(map_at(ioas_, memory_.address() + 1024, 2048, kApertureStart + 0x10000), EINVAL);
  EXPECT_EQ(map_at(ioas_, memory_.address(), 1024, kApertureStart + 0x10000), EINVAL);
  EXPECT_EQ(map_at(ioas_, memory_.address(), 2048, kApertureStart + 0x10400), EINVAL);
  EXPECT_EQ(map_at(ioas_, memory_.address(), 2048, 4096), EINVAL) << "outside of the aperture";
  EXPECT_EQ(unmap_all(ioas_), 0);
  EXPECT_EQ(destroy(a.test_device), 0);
}

TEST_F(IoasDomainsTest, AFaultHalfWayLeavesNothing) {
  const Attached a = attach_device(ioas_);
  ASSERT_EQ(0, ::munmap(memory_.bytes_at(4 * 4096), 4096));
  EXPECT_EQ(map_at(ioas_, memory_.address(), memory_.bytes(), kApertureStart), EFAULT);
  expect_nothing(a.hwpt, kApertureStart, memory_.bytes());
  EXPECT_EQ(pins_at(memory_.address()), 0u);
  EXPECT_EQ(map_at(ioas_, 4096, 4096, kApertureStart), EFAULT);
  EXPECT_EQ(destroy(a.test_device), 0);
}

TEST_F(IoasDomainsTest, TheFirstDomainIsFilledWithWhatIsThere) {
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4 * 4096, kApertureStart), 0);
  EXPECT_EQ(pins_at(memory_.address()), 0u) << "nobody needs the pages yet";
  const Attached a = attach_device(ioas_);
  expect_mapped(a.hwpt, kApertureStart, memory_.address(), 4 * 4096);
  EXPECT_EQ(destroy(a.test_device), 0);
  EXPECT_EQ(pins_at(memory_.address()), 0u);
}

TEST_F(IoasDomainsTest, ADomainThatDoesNotFitIsRefused) {
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, 0x1000), 0);
  EXPECT_EQ(attach_device(ioas_).error, EADDRINUSE) << "an area below the aperture";
  ASSERT_EQ(unmap_all(ioas_), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 77, kApertureStart), 0);
  EXPECT_EQ(attach_device(ioas_).error, EADDRINUSE) << "an area that is no whole I/O page";
  ASSERT_EQ(unmap_all(ioas_), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kApertureStart), 0);
  ASSERT_EQ(map_at(ioas_, 4096, 4096, kApertureStart + 4096), 0);
  EXPECT_EQ(attach_device(ioas_).error, EFAULT) << "an area without memory";
  EXPECT_EQ(pins_at(memory_.address()), 0u);
  Locked locked(*context_);
  const Ioas& ioas = **locked.find<Ioas>(ioas_);
  EXPECT_EQ(ioas.alignment, 1u);
  EXPECT_TRUE(ioas.reserved.empty());
}

TEST_F(IoasDomainsTest, WithoutLargePagesAreasCanBeCut) {
  const Attached a = attach_device(ioas_, false, true);
  const auto large = [&](bool on) {
    Locked locked(*context_);
    return error_of(locked.set_large_pages(**locked.find<Ioas>(ioas_), on));
  };
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kApertureStart), 0);
  EXPECT_EQ(large(false), EINVAL) << "something is mapped";
  ASSERT_EQ(unmap_all(ioas_), 0);
  ASSERT_EQ(large(false), 0);
  EXPECT_EQ(map_at(ioas_, memory_.address(), 2048, kApertureStart), EINVAL);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4 * 4096, kApertureStart), 0);
  {
    Locked locked(*context_);
    EXPECT_EQ(error_of(locked.cut(**locked.find<Ioas>(ioas_), kApertureStart + 4095)), 0);
  }
  EXPECT_EQ(unmap(ioas_, kApertureStart, 4096), 0);
  expect_nothing(a.hwpt, kApertureStart, 4096);
  expect_mapped(a.hwpt, kApertureStart + 4096, memory_.address() + 4096, 3 * 4096);
  ASSERT_EQ(unmap_all(ioas_), 0);
  EXPECT_EQ(large(true), 0);
  EXPECT_EQ(destroy(a.test_device), 0);
}

// Whether all areas may be where they are to be is asked before memory is looked at.
TEST_F(IoasDomainsTest, ARefusedCopyPinsNothing) {
  const u32 source = make_ioas();
  const Attached a = attach_device(ioas_);
  ASSERT_EQ(map_at(source, memory_.address(), 4096, 0x10000), 0);
  ASSERT_EQ(map_at(source, memory_.address() + 4096, 4096, 0x11000), 0);
  ASSERT_EQ(map_at(source, memory_.address() + 8192, 4096, 0x12000, kMayRead), 0);
  ASSERT_EQ(map_at(source, memory_.address() + 12288 + 1024, 2048, 0x13000), 0);
  const auto copy = [&](u64 from, u64 length) {
    Locked locked(*context_);
    Locked::MapRequest request{true, kApertureStart, length, kReadWrite};
    return error_of(locked.copy(**locked.find<Ioas>(source), from, ioas_, &request));
  };
  failpoint::count_only();
  EXPECT_EQ(copy(0x11000, 0x2000), EPERM) << "the second is read only";
  EXPECT_EQ(copy(0x13000, 0x800), EINVAL) << "not aligned as the domain's pages are";
  const auto take_rights = [&] { return mprotect(memory_.pointer(), 4096, PROT_NONE); };
  ASSERT_EQ(host::change(memory_.address(), 4096, host::EventKind::kProtection, take_rights), 0);
  EXPECT_EQ(copy(0x10000, 0x3000), EPERM) << "nobody has looked at the first";
  EXPECT_EQ(failpoint::asked("host.pin"), 0u);
  EXPECT_EQ(copy(0x10000, 0x2000), EFAULT);
  failpoint::disarm();
  // The other way round: what was filled is emptied again.
  ASSERT_EQ(unmap(source, 0x10000, 0x4000), 0);
  ASSERT_EQ(map_at(source, memory_.address() + 4096, 4096, 0x10000), 0);
  ASSERT_EQ(map_at(source, memory_.address(), 4096, 0x11000), 0);
  EXPECT_EQ(copy(0x10000, 0x2000), EFAULT);
  EXPECT_EQ(pins_at(memory_.address() + 4096), 0u);
  expect_nothing(a.hwpt, kApertureStart, 0x4000);
  {
    Locked locked(*context_);
    EXPECT_TRUE(locked.areas(**locked.find<Ioas>(ioas_)).empty());
  }
  EXPECT_EQ(unmap_all(source), 0);
  EXPECT_EQ(destroy(source), 0);
  EXPECT_EQ(destroy(a.test_device), 0);
}

// Whatever cannot be had in the middle of a map or of an attachment: all is as before.
TEST_F(IoasDomainsTest, EveryRefusedAllocationIsUndone) {
  const Attached a = attach_device(ioas_);
  const u64 runs = failpoint::sweep([&] {
    if (map_at(ioas_, memory_.address(), memory_.bytes(), kApertureStart) == 0) {
      ASSERT_EQ(unmap_all(ioas_), 0);
    }
    ASSERT_EQ(pins_at(memory_.address()), 0u);
    expect_nothing(a.hwpt, kApertureStart, memory_.bytes());
  });
  EXPECT_GE(runs, 5u);
  EXPECT_EQ(destroy(a.test_device), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), memory_.bytes(), kApertureStart), 0);
  failpoint::sweep([&] {
    const Attached b = attach_device(ioas_);
    if (b.error == 0) {
      ASSERT_EQ(destroy(b.test_device), 0);
    }
    ASSERT_EQ(pins_at(memory_.address()), 0u);
  });
}

}  // namespace
}  // namespace stagetwo::iommu
