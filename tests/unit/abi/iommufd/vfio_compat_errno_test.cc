// SPDX-License-Identifier: Apache-2.0
// VFIO's requests on an iommufd, refused: which check answers, in the kernel's order
// (drivers/iommu/iommufd/vfio_compat.c). It differs from a container's: no EINVAL for want of a
// type but ENODEV for want of an IOAS, which comes behind what is wrong with the argument itself.
#include <linux/vfio.h>

#include <cstring>

#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

struct Argument {
  u32 argsz, flags;
  u64 words[3];
};

enum class State { kWithout, kMapped, kMapped1 };
constexpr auto kWithout = State::kWithout, kMapped = State::kMapped, kMapped1 = State::kMapped1;
constexpr u64 kIova = 0x100000, kPages = 4 * kPageSize, kHere = ~u64{0} - 4096;

struct Row {
  const char* name;
  State state;
  unsigned long request;
  Argument argument;  // kHere: the memory of the test
  int error;
};

constexpr auto kMap = VFIO_IOMMU_MAP_DMA, kUnmap = VFIO_IOMMU_UNMAP_DMA;
constexpr Row kRows[] = {
    {"InfoShort", kMapped, VFIO_IOMMU_GET_INFO, {15, 0, {}}, EINVAL},
    {"InfoShortComesFirst", kWithout, VFIO_IOMMU_GET_INFO, {15, 0, {}}, EINVAL},
    {"InfoWithoutAnIoas", kWithout, VFIO_IOMMU_GET_INFO, {24, 0, {}}, ENODEV},
    {"MapShort", kWithout, kMap, {31, 3, {kHere, kIova, kPages}}, EINVAL},
    {"MapUnknownFlag", kWithout, kMap, {32, 8 | 3, {kHere, kIova, kPages}}, EINVAL},
    {"MapNewAddress", kWithout, kMap, {32, 4, {kHere, kIova, kPages}}, EINVAL},
    {"MapWithoutAnIoas", kWithout, kMap, {32, 3, {kHere, kIova, kPages}}, ENODEV},
    {"MapWithoutAnIoasBeforeTheRange", kWithout, kMap, {32, 3, {kHere, kIova, 0}}, ENODEV},
    {"MapNothing", kMapped, kMap, {32, 3, {kHere, 0x900000, 0}}, EINVAL},
    {"MapOverlap", kMapped, kMap, {32, 3, {kHere, kIova, kPageSize}}, EEXIST},
    {"MapAroundTheEnd", kMapped, kMap, {32, 3, {kHere, u64{0} - kPageSize, kPages}}, EOVERFLOW},
    {"UnmapShort", kWithout, kUnmap, {23, 0, {kIova, kPages}}, EINVAL},
    {"UnmapBitmap", kWithout, kUnmap, {24, 1, {kIova, kPages}}, EINVAL},
    {"UnmapVaddr", kWithout, kUnmap, {24, 4, {kIova, kPages}}, EINVAL},
    {"UnmapWithoutAnIoas", kWithout, kUnmap, {24, 0, {kIova, kPages}}, ENODEV},
    {"UnmapAllWithoutAnIoasBeforeTheRange", kWithout, kUnmap, {24, 2, {kIova, 1}}, ENODEV},
    {"UnmapAllOfARange", kMapped, kUnmap, {24, 2, {kIova, kPages}}, EINVAL},
    {"DirtyPages", kMapped, VFIO_IOMMU_DIRTY_PAGES, {8, 1, {}}, ENOTTY},
    {"OfAGroup", kMapped, VFIO_GROUP_GET_STATUS, {8, 0, {}}, ENOTTY},
    {"OfADevice", kMapped, VFIO_DEVICE_RESET, {8, 0, {}}, ENOTTY},
};
// Of these the kernel says how much was unmapped: nothing.
constexpr Row kUnmaps[] = {
    {"HalfAMap", kMapped, kUnmap, {24, 0, {kIova, kPages / 2}}, ENOENT},
    {"TheMiddleOfAMap", kMapped, kUnmap, {24, 0, {kIova + kPageSize, kPageSize}}, ENOENT},
    {"NoBytes", kMapped, kUnmap, {24, 0, {kIova, 0}}, EINVAL},
    {"AroundTheEnd", kMapped, kUnmap, {24, 0, {kIova, u64{0} - kPageSize}}, EOVERFLOW},
};

class CompatWorld : public IommufdClient {
 protected:
  void build(State state) {
    if (state == kWithout) return;
    ioas_ = ioas_alloc();
    iommu_vfio_ioas cmd{sizeof(cmd), ioas_, IOMMU_VFIO_IOAS_SET, 0};
    ASSERT_EQ(call(IOMMU_VFIO_IOAS, &cmd), 0);
    const u64 type = state == kMapped1 ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU;
    ASSERT_EQ(number(VFIO_SET_IOMMU, type), 0);
    Argument map{32, 3, {memory_.address(), kIova, kPages}};
    ASSERT_EQ(ask(fd_, VFIO_IOMMU_MAP_DMA, &map), 0);
  }
  long number(unsigned long request, u64 arg) { return host::find(fd_)->ioctl(fd_, request, arg); }
  // Is the map of build() there, whole?
  void expect_same(State state) {
    if (state == kWithout) return;
    Argument map{32, 3, {memory_.address(), kIova + 3 * kPageSize, kPageSize}};
    EXPECT_EQ(ask(fd_, VFIO_IOMMU_MAP_DMA, &map), -EEXIST);
    Argument unmap{24, 0, {kIova, kPages, 0}};
    EXPECT_EQ(ask(fd_, VFIO_IOMMU_UNMAP_DMA, &unmap), 0);
    EXPECT_EQ(unmap.words[1], kPages);
  }
  u32 ioas_ = 0;
  test::GuardedPages memory_{4};
};

class CompatErrno : public CompatWorld, public testing::WithParamInterface<Row> {};
TEST_P(CompatErrno, IsTheKernels) {
  const Row& row = GetParam();
  build(row.state);
  Argument argument = row.argument;
  for (u64& word : argument.words) {
    if (word == kHere) word = memory_.address();
  }
  const Argument given = argument;
  EXPECT_EQ(ask(fd_, row.request, &argument), -row.error);
  EXPECT_EQ(std::memcmp(&given, &argument, sizeof(given)), 0);
  expect_same(row.state);
}
INSTANTIATE_TEST_SUITE_P(Table, CompatErrno, testing::ValuesIn(kRows),
                         [](const auto& param) { return std::string(param.param.name); });

class CompatUnmapErrno : public CompatWorld, public testing::WithParamInterface<Row> {};
TEST_P(CompatUnmapErrno, IsTheKernelsAndNothingWasUnmapped) {
  build(GetParam().state);
  Argument argument = GetParam().argument;
  EXPECT_EQ(ask(fd_, GetParam().request, &argument), -GetParam().error);
  EXPECT_EQ(argument.words[1], 0u);
  expect_same(GetParam().state);
}
INSTANTIATE_TEST_SUITE_P(Table, CompatUnmapErrno, testing::ValuesIn(kUnmaps),
                         [](const auto& param) { return std::string(param.param.name); });

using CompatPlain = CompatWorld;
TEST_F(CompatPlain, TypesAndExtensionsAreNumbers) {
  for (const unsigned long type : {0ul, 2ul, 6ul, 8ul, 77ul, ~0ul}) {
    EXPECT_EQ(number(VFIO_SET_IOMMU, type), -EINVAL) << type;
  }
  EXPECT_EQ(number(VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU), -ENODEV);
  EXPECT_EQ(number(VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU), -ENODEV);
  EXPECT_EQ(number(VFIO_CHECK_EXTENSION, 77), 0);
  build(kMapped1);
  EXPECT_EQ(number(VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), 0) << "as often as one likes";
}

TEST_F(CompatPlain, PointersThatLeadNowhereAreFaults) {
  build(kMapped);
  const struct {
    unsigned long request;
    size_t reads;
  } rows[] = {{VFIO_IOMMU_GET_INFO, 16}, {VFIO_IOMMU_MAP_DMA, 32}, {VFIO_IOMMU_UNMAP_DMA, 24}};
  for (const auto& row : rows) {
    for (const u64 at :
         {u64{0}, u64{8}, u64{1} << 63, ~u64{0} - 4, memory_.address() + kPages - row.reads + 1}) {
      EXPECT_EQ(number(row.request, at), -EFAULT) << row.request << " " << at;
    }
  }
  expect_same(kMapped);
}

}  // namespace
}  // namespace stagetwo
