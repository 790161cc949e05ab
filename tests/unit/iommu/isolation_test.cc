// SPDX-License-Identifier: Apache-2.0
// Isolation matrix: domain x PASID x device. Through each (device, PASID) every page of every
// domain is asked for at every IOVA; what is reached is what its own domain has there, and nothing
// else.
#include <algorithm>
#include <cstring>

#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

constexpr unsigned kDomains = 4, kPages = 4;
constexpr u64 kBase = kApertureStart;
constexpr s64 kPasids[] = {kNoPasid, 1, 2, 77};

// Three kinds of devices: with the IOMMU's own tables, with a processor's, and a test device.
enum Kind { kSecond, kFirst, kMock };
constexpr Kind kKinds[] = {kSecond, kFirst, kMock, kSecond};
constexpr unsigned kDevices = std::size(kKinds);

class Isolation : public DeviceWorld {
 protected:
  void SetUp() override {
    DeviceWorld::SetUp();
    for (unsigned d = 0; d < kDevices; ++d) devices_[d] = make_device(d);
    for (unsigned m = 0; m < kDomains; ++m) {
      ioases_[m] = make_ioas();
      for (const Kind kind : {kSecond, kFirst, kMock}) {
        const auto d = std::find(std::begin(kKinds), std::end(kKinds), kind) - kKinds;
        tables_[m][kind] =
            make_hwpt(ioases_[m], devices_[d], {.pasid = true, .first_level = kind == kFirst});
        ASSERT_NE(tables_[m][kind], 0u);
      }
      // Each domain has one page only it has, and one all have, at places of its own.
      for (unsigned p = 0; p < kPages; ++p) fill(m, p);
      ASSERT_EQ(map_at(ioases_[m], page(m, 0), kPageSize, kBase + m * kPageSize), 0);
      ASSERT_EQ(map_at(ioases_[m], page(m, 1), kPageSize, kBase + kDomains * kPageSize), 0);
    }
  }
  void TearDown() override {
    for (const u32 device : devices_) {
      Locked locked(*context_);
      locked.detach_all(**locked.find<Device>(device));
    }
    for (unsigned m = 0; m < kDomains; ++m) {
      EXPECT_EQ(unmap_all(ioases_[m]), 0);
      for (const u32 table : tables_[m]) EXPECT_EQ(destroy(table), 0);
      EXPECT_EQ(destroy(ioases_[m]), 0);
    }
    for (const u32 device : devices_) EXPECT_EQ(destroy(device), 0);
    DeviceWorld::TearDown();
  }
  u32 make_device(unsigned d) {
    if (kKinds[d] != kMock) return make_vtd(static_cast<u16>(0x100 + d));
    Locked locked(*context_);
    return (*locked.make_device(false, false, kPasidBits))->object.id;
  }
  [[nodiscard]] u64 page(unsigned domain, unsigned p) const {
    return memory_.address() + (domain * kPages + p) * kPageSize;
  }
  static u8 mark(unsigned domain, unsigned p) { return static_cast<u8>(0x10 * (domain + 1) + p); }
  void fill(unsigned domain, unsigned p) {
    std::memset(reinterpret_cast<void*>(page(domain, p)), mark(domain, p), kPageSize);
  }
  int attach_to(unsigned d, s64 pasid, unsigned domain) {
    return attach(devices_[d], tables_[domain][kKinds[d]], pasid < 0 ? 0 : static_cast<u32>(pasid));
  }
  // Everything `d` reaches by `pasid` is `domain`'s; -1: nothing at all.
  void expect_reaches(unsigned d, s64 pasid, int domain) {
    for (unsigned i = 0; i <= kDomains; ++i) {
      u8 found = 0;
      const u64 iova = kBase + i * kPageSize + 0x123;
      const DmaAnswer answer = read(devices_[d], pasid, iova, &found, 1);
      const int m = domain;
      const bool has = m >= 0 && (i == static_cast<unsigned>(m) || i == kDomains);
      EXPECT_EQ(answer.done, has ? 1u : 0u) << "device " << d << " PASID " << pasid << " at " << i;
      if (has) {
        EXPECT_EQ(found, mark(static_cast<unsigned>(m), i == kDomains ? 1 : 0));
      }
    }
  }
  // What a write by one reaches is in one page, and all the others are as they were.
  void expect_writes_stay(unsigned d, s64 pasid, unsigned domain) {
    for (unsigned i = 0; i <= kDomains; ++i) {
      u8 junk[64];
      std::memset(junk, 0xee, sizeof(junk));
      write(devices_[d], pasid, kBase + i * kPageSize, junk, sizeof(junk));
    }
    for (unsigned m = 0; m < kDomains; ++m) {
      for (unsigned p = 0; p < kPages; ++p) {
        const bool own = m == domain && p < 2;
        const auto* const bytes = reinterpret_cast<const u8*>(page(m, p));
        ASSERT_EQ(bytes[0], own ? 0xee : mark(m, p)) << "domain " << m << " page " << p;
        fill(m, p);
      }
    }
  }

  test::GuardedPages memory_{kDomains * kPages};
  u32 ioases_[kDomains] = {}, tables_[kDomains][3] = {}, devices_[kDevices] = {};
};

TEST_F(Isolation, EachPairReachesItsOwnDomainAndNoOther) {
  // Every device has another domain behind the same PASID.
  for (unsigned d = 0; d < kDevices; ++d) {
    for (unsigned p = 0; p < std::size(kPasids); ++p) {
      ASSERT_EQ(attach_to(d, kPasids[p], (d + p) % kDomains), 0);
    }
  }
  for (unsigned d = 0; d < kDevices; ++d) {
    for (unsigned p = 0; p < std::size(kPasids); ++p) {
      expect_reaches(d, kPasids[p], static_cast<int>((d + p) % kDomains));
      expect_writes_stay(d, kPasids[p], (d + p) % kDomains);
    }
    expect_reaches(d, 3, -1);
  }
  // One goes: it reaches nothing, and all the others what they did.
  for (unsigned gone = 0; gone < kDevices; ++gone) {
    detach(devices_[gone], 2);
    for (unsigned d = 0; d < kDevices; ++d) {
      for (unsigned p = 0; p < std::size(kPasids); ++p) {
        const bool is_gone = kPasids[p] == 2 && d <= gone;
        expect_reaches(d, kPasids[p], is_gone ? -1 : static_cast<int>((d + p) % kDomains));
      }
    }
  }
}

TEST_F(Isolation, I9AReplacedPasidReachesTheNewDomainOnly) {
  for (unsigned d = 0; d < kDevices; ++d) {
    ASSERT_EQ(attach_to(d, 1, 0), 0);
    ASSERT_EQ(attach_to(d, 2, 1), 0);
    expect_reaches(d, 1, 0);
    ASSERT_EQ(replace(devices_[d], tables_[2][kKinds[d]], 1), 0);
    expect_reaches(d, 1, 2);
    expect_reaches(d, 2, 1);
    detach(devices_[d], 1);
    ASSERT_EQ(attach_to(d, 1, 3), 0) << "the number is used again at once";
    expect_reaches(d, 1, 3);
  }
}

// One domain is a device's own on one and a PASID's on another: one map is seen by both, one unmap
// ends both.
TEST_F(Isolation, I12ADomainInBothRolesIsOneDomain) {
  ASSERT_EQ(attach_to(0, kNoPasid, 2), 0);
  ASSERT_EQ(attach_to(3, 77, 2), 0);
  ASSERT_EQ(attach_to(2, 1, 2), 0);
  const u64 iova = kBase + 9 * kPageSize;
  ASSERT_EQ(map_at(ioases_[2], page(2, 3), kPageSize, iova), 0);
  u8 found = 0;
  EXPECT_EQ(read(devices_[0], kNoPasid, iova, &found, 1).done, 1u);
  EXPECT_EQ(read(devices_[3], 77, iova, &found, 1).done, 1u);
  EXPECT_EQ(read(devices_[2], 1, iova, &found, 1).done, 1u);
  EXPECT_EQ(found, mark(2, 3));
  ASSERT_EQ(unmap(ioases_[2], iova, kPageSize), 0);
  EXPECT_EQ(read(devices_[0], kNoPasid, iova, &found, 1).reason, FaultReason::kSecondDenied);
  EXPECT_EQ(read(devices_[3], 77, iova, &found, 1).reason, FaultReason::kSecondDenied);
  EXPECT_EQ(read(devices_[2], 1, iova, &found, 1).reason, FaultReason::kSecondDenied);
}

}  // namespace
}  // namespace stagetwo::iommu
