// SPDX-License-Identifier: Apache-2.0
// Every request of a container and of a group, refused: which check answers, in the kernel's order
// (drivers/vfio/container.c, group.c, vfio_iommu_type1.c). Where a row breaks two rules its name
// says which comes first.
#include <sys/eventfd.h>

#include "tests/unit/abi/vfio/errno_world.h"

namespace stagetwo {
namespace {

enum class On { kContainer, kGroup };
struct Row {
  const char* name;
  State state;
  On on;
  unsigned long request;
  Bytes (*make)(ErrnoWorld& world);
  int error;
};

using MapStruct = vfio_iommu_type1_dma_map;
Bytes map(ErrnoWorld& world, void (*spoil)(MapStruct& map)) {
  auto made = world.good_map();
  spoil(made);
  return bytes_of(made);
}
#define ST_MAP(change)               \
  [](ErrnoWorld& w) {                \
    return map(w, [](MapStruct& m) { \
      static_cast<void>(m);          \
      change;                        \
    });                              \
  }

struct Unmap {
  u32 argsz = 24, flags = 0;
  u64 iova = ErrnoWorld::kIova, size = 4 * kPageSize;
};
static_assert(sizeof(Unmap) == sizeof(vfio_iommu_type1_dma_unmap));
#define ST_UNMAP(change) \
  [](ErrnoWorld&) {      \
    Unmap m;             \
    change;              \
    return bytes_of(m);  \
  }
// With a bitmap behind it.
#define ST_UNMAP_BITMAP(change)                     \
  [](ErrnoWorld& w) {                               \
    Unmap m;                                        \
    m.argsz += sizeof(vfio_bitmap);                 \
    m.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP; \
    vfio_bitmap b = w.good_bitmap();                \
    change;                                         \
    return bytes_of(m) + b;                         \
  }
#define ST_DIRTY(change)                                                                    \
  [](ErrnoWorld& w) {                                                                       \
    u32 head[2] = {8 + sizeof(vfio_iommu_type1_dirty_bitmap_get),                           \
                   VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP};                                 \
    vfio_iommu_type1_dirty_bitmap_get g{ErrnoWorld::kIova, 4 * kPageSize, w.good_bitmap()}; \
    change;                                                                                 \
    return bytes_of(head) + g;                                                              \
  }
#define ST_WORDS(...)                  \
  [](ErrnoWorld&) {                    \
    const u32 words[] = {__VA_ARGS__}; \
    return bytes_of(words);            \
  }
#define ST_TEXT(text) [](ErrnoWorld&) { return bytes_of(text); }
Bytes no_argument(ErrnoWorld&) {
  return {};
}
Bytes own_name(ErrnoWorld& world) {
  return {world.name_.c_str(), world.name_.c_str() + world.name_.size() + 1};
}
Bytes only_a_place(ErrnoWorld&) {
  static const int place = open("/", O_PATH | O_CLOEXEC);
  return bytes_of(place);
}
Bytes other_file(ErrnoWorld&) {
  static const int file = eventfd(0, EFD_CLOEXEC);
  return bytes_of(file);
}

constexpr auto kC = On::kContainer, kG = On::kGroup;
constexpr auto kFresh = State::kFresh, kJoined = State::kJoined, kTyped = State::kTyped;
constexpr auto kTyped1 = State::kTyped1, kMapped = State::kMapped, kTracking = State::kTracking;

const Row kRows[] = {
    // Without a type a container has three requests; what they say of others comes behind that.
    {"InfoWithoutAGroup", kFresh, kC, VFIO_IOMMU_GET_INFO, no_argument, EINVAL},
    {"InfoWithoutAType", kJoined, kC, VFIO_IOMMU_GET_INFO, no_argument, EINVAL},
    {"MapWithoutAType", kJoined, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(), EINVAL},
    {"UnmapWithoutAType", kJoined, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(), EINVAL},
    {"DirtyWithoutAType", kJoined, kC, VFIO_IOMMU_DIRTY_PAGES, ST_WORDS(8, 1), EINVAL},
    {"UnknownWithoutAType", kJoined, kC, VFIO_DEVICE_RESET, no_argument, EINVAL},
    {"UnknownWithAType", kTyped, kC, VFIO_DEVICE_RESET, no_argument, ENOTTY},
    {"OfAGroupOnAContainer", kTyped, kC, VFIO_GROUP_GET_STATUS, no_argument, ENOTTY},
    // GET_INFO
    {"InfoShort", kTyped, kC, VFIO_IOMMU_GET_INFO, ST_WORDS(15, 0, 0, 0), EINVAL},
    // MAP
    {"MapShort", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.argsz = 31), EINVAL},
    {"MapUnknownFlag", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.flags |= 8), EINVAL},
    {"MapWithoutRights", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.flags = 0), EINVAL},
    {"MapRightsAndVaddr", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.flags |= 4), EINVAL},
    {"MapNothing", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.size = 0), EINVAL},
    {"MapPartOfAPage", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.size -= 1), EINVAL},
    {"MapCrookedIova", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.iova += 1), EINVAL},
    {"MapCrookedAddress", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.vaddr += 1), EINVAL},
    {"MapAroundTheEnd", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.iova = -kPageSize), EINVAL},
    {"MapAddressAroundTheEnd", kTyped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.vaddr = -kPageSize),
     EINVAL},
    {"MapOverlap", kMapped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.iova += 2 * kPageSize), EEXIST},
    {"MapRangeBeforeOverlap", kMapped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.size = 1), EINVAL},
    {"VaddrOfNoMap", kMapped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.flags = 4; m.iova = 0), ENOENT},
    {"VaddrThatNobodyTookAway", kMapped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.flags = 4), EINVAL},
    {"VaddrRangeFirst", kMapped, kC, VFIO_IOMMU_MAP_DMA, ST_MAP(m.flags = 4; m.iova = 1), EINVAL},
    // UNMAP
    {"UnmapShort", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.argsz = 23), EINVAL},
    {"UnmapUnknownFlag", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.flags = 8), EINVAL},
    {"UnmapNothing", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.size = 0), EINVAL},
    {"UnmapPartOfAPage", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.size = 1), EINVAL},
    {"UnmapCrooked", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.iova += 1), EINVAL},
    {"UnmapAroundTheEnd", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.size = -kPageSize), EINVAL},
    {"UnmapTheFirstHalf", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.size /= 2), EINVAL},
    {"UnmapTheSecondHalf", kMapped, kC, VFIO_IOMMU_UNMAP_DMA,
     ST_UNMAP(m.iova += 2 * kPageSize; m.size /= 2), EINVAL},
    {"UnmapTheMiddle", kMapped, kC, VFIO_IOMMU_UNMAP_DMA,
     ST_UNMAP(m.iova += kPageSize; m.size /= 2), EINVAL},
    {"UnmapAllOfARange", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.flags = 2), EINVAL},
    {"UnmapAllFromSomewhere", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.flags = 2; m.size = 0),
     EINVAL},
    {"UnmapVaddrOfAMediatedDevices", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.flags = 4),
     EBUSY},
    {"UnmapVaddrBeforeTheRange", kMapped, kC, VFIO_IOMMU_UNMAP_DMA,
     ST_UNMAP(m.flags = 4; m.iova = 1), EBUSY},
    {"UnmapVaddrAndAllWithARange", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP(m.flags = 6), EBUSY},
    {"UnmapBitmapAndAll", kTracking, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP_BITMAP(m.flags |= 2),
     EINVAL},
    {"UnmapBitmapAndVaddr", kTracking, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP_BITMAP(m.flags |= 4),
     EINVAL},
    {"UnmapBitmapWithoutRoom", kTracking, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP_BITMAP(m.argsz -= 1),
     EINVAL},
    {"UnmapBitmapTooSmall", kTracking, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP_BITMAP(b.size = 7),
     EINVAL},
    {"UnmapBitmapNotTheClients", kTracking, kC, VFIO_IOMMU_UNMAP_DMA,
     ST_UNMAP_BITMAP(b.data = reinterpret_cast<__u64*>(u64{1} << 63)), EINVAL},
    {"UnmapBitmapOtherPages", kTracking, kC, VFIO_IOMMU_UNMAP_DMA,
     ST_UNMAP_BITMAP(b.pgsize = 2 * kPageSize), EINVAL},
    {"UnmapBitmapNobodyTracks", kMapped, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP_BITMAP(), EINVAL},
    {"UnmapBitmapOfHalfAMap", kTracking, kC, VFIO_IOMMU_UNMAP_DMA, ST_UNMAP_BITMAP(m.size /= 2),
     EINVAL},
    // DIRTY_PAGES
    {"DirtyOfVersion1BeforeItsStruct", kTyped1, kC, VFIO_IOMMU_DIRTY_PAGES, ST_WORDS(0, 0), EACCES},
    {"DirtyShort", kMapped, kC, VFIO_IOMMU_DIRTY_PAGES, ST_WORDS(7, 1), EINVAL},
    {"DirtyUnknownFlag", kMapped, kC, VFIO_IOMMU_DIRTY_PAGES, ST_WORDS(8, 8), EINVAL},
    {"DirtyTwoFlags", kMapped, kC, VFIO_IOMMU_DIRTY_PAGES, ST_WORDS(8, 3), EINVAL},
    {"DirtyNoFlag", kMapped, kC, VFIO_IOMMU_DIRTY_PAGES, ST_WORDS(8, 0), EINVAL},
    {"BitmapWithoutRange", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_WORDS(8, 4), EINVAL},
    {"BitmapShort", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(head[0] -= 1), EINVAL},
    {"BitmapNobodyTracks", kMapped, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(), EINVAL},
    {"BitmapAroundTheEnd", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(g.iova = -kPageSize),
     EINVAL},
    {"BitmapNotTheClients", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES,
     ST_DIRTY(g.bitmap.data = reinterpret_cast<__u64*>(u64{1} << 63)), EINVAL},
    {"BitmapTooSmall", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(g.bitmap.size = 7), EINVAL},
    {"BitmapEmpty", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(g.bitmap.size = 0), EINVAL},
    {"BitmapTooLarge", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES,
     ST_DIRTY(g.bitmap.size = (u64{1} << 28) + 8), EINVAL},
    {"BitmapWithoutPageSize", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(g.bitmap.pgsize = 0),
     EINVAL},
    {"BitmapSmallerPages", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(g.bitmap.pgsize = 1024),
     EINVAL},
    {"BitmapLargerPages", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES,
     ST_DIRTY(g.bitmap.pgsize = 2 << 20; g.size = 2 << 20; g.iova = 0), EINVAL},
    {"BitmapCrooked", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(g.iova += 1), EINVAL},
    {"BitmapPartOfAPage", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(g.size -= 1), EINVAL},
    {"BitmapOfNothing", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(g.size = 0), EINVAL},
    {"BitmapOfHalfAMap", kTracking, kC, VFIO_IOMMU_DIRTY_PAGES, ST_DIRTY(g.size /= 2), EINVAL},
    // A group
    {"StatusShort", kFresh, kG, VFIO_GROUP_GET_STATUS, ST_WORDS(7, 0), EINVAL},
    {"UnknownOfAGroup", kTyped, kG, VFIO_IOMMU_MAP_DMA, ST_MAP(), ENOTTY},
    {"JoinNoDescriptor", kFresh, kG, VFIO_GROUP_SET_CONTAINER, ST_WORDS(9999), EBADF},
    {"JoinAPlace", kFresh, kG, VFIO_GROUP_SET_CONTAINER, only_a_place, EBADF},
    {"JoinAnotherFile", kFresh, kG, VFIO_GROUP_SET_CONTAINER, other_file, EBADFD},
    {"JoinAgainNoDescriptorFirst", kJoined, kG, VFIO_GROUP_SET_CONTAINER, ST_WORDS(9999), EBADF},
    {"JoinAgainBeforeTheFilesKind", kJoined, kG, VFIO_GROUP_SET_CONTAINER, other_file, EINVAL},
    {"LeaveNothing", kFresh, kG, VFIO_GROUP_UNSET_CONTAINER, no_argument, EINVAL},
    {"OpenWithoutAContainer", kFresh, kG, VFIO_GROUP_GET_DEVICE_FD, own_name, EINVAL},
    {"OpenWithoutAType", kJoined, kG, VFIO_GROUP_GET_DEVICE_FD, own_name, EINVAL},
    {"OpenUnknownNameFirst", kFresh, kG, VFIO_GROUP_GET_DEVICE_FD, ST_TEXT("no such"), ENODEV},
    {"OpenUnknownName", kTyped, kG, VFIO_GROUP_GET_DEVICE_FD, ST_TEXT(""), ENODEV},
};

class ContainerErrno : public ErrnoWorld, public testing::WithParamInterface<Row> {};

TEST_P(ContainerErrno, IsTheKernels) {
  const Row& row = GetParam();
  build(row.state);
  expect_refusal(row.on == On::kContainer ? container_ : group_, row.request, row.make(*this),
                 row.error);
}
INSTANTIATE_TEST_SUITE_P(Table, ContainerErrno, testing::ValuesIn(kRows), row_name<Row>);

// Values in the place of pointers.
struct Plain {
  const char* name;
  State state;
  unsigned long argument;
  int error;
};
class SetIommuErrno : public ErrnoWorld, public testing::WithParamInterface<Plain> {};
TEST_P(SetIommuErrno, IsTheKernels) {
  build(GetParam().state);
  const std::string before = seen();
  EXPECT_EQ(number(container_, VFIO_SET_IOMMU, GetParam().argument), -GetParam().error);
  EXPECT_EQ(seen(), before);
}
constexpr Plain kTypes[] = {{"WithoutAGroup", kFresh, VFIO_TYPE1v2_IOMMU, EINVAL},
                            {"WithoutAGroupBeforeTheType", kFresh, 77, EINVAL},
                            {"OfAnotherMachine", kJoined, VFIO_SPAPR_TCE_IOMMU, ENODEV},
                            {"Unknown", kJoined, 77, ENODEV},
                            {"NoIommu", kJoined, VFIO_NOIOMMU_IOMMU, ENODEV},
                            {"AnExtensionThatIsNoType", kJoined, VFIO_UNMAP_ALL, EINVAL},
                            {"AnExtensionThatIsNotThere", kJoined, VFIO_UPDATE_VADDR, ENODEV},
                            {"Again", kTyped, VFIO_TYPE1v2_IOMMU, EINVAL},
                            {"AgainBeforeTheType", kTyped, 77, EINVAL}};
INSTANTIATE_TEST_SUITE_P(Table, SetIommuErrno, testing::ValuesIn(kTypes), row_name<Plain>);

// Pointers to nowhere: the struct's head, or its end.
struct Pointer {
  const char* name;
  On on;
  unsigned long request;
  size_t reads;  // bytes
};
class ContainerPointers : public ErrnoWorld, public testing::WithParamInterface<Pointer> {};
TEST_P(ContainerPointers, ThatLeadNowhereAreFaults) {
  const Pointer& row = GetParam();
  build(kTracking);
  const int fd = row.on == On::kContainer ? container_ : group_;
  const std::string before = seen();
  for (const u64 at : {u64{0}, u64{8}, u64{1} << 63, ~u64{0} - 4,
                       memory_.address() + 4 * kPageSize - row.reads + 1}) {
    EXPECT_EQ(number(fd, row.request, at), -EFAULT) << at;
  }
  EXPECT_EQ(seen(), before);
}
constexpr Pointer kPointers[] = {
    {"Info", kC, VFIO_IOMMU_GET_INFO, 16},    {"Map", kC, VFIO_IOMMU_MAP_DMA, 32},
    {"Unmap", kC, VFIO_IOMMU_UNMAP_DMA, 24},  {"Dirty", kC, VFIO_IOMMU_DIRTY_PAGES, 8},
    {"Status", kG, VFIO_GROUP_GET_STATUS, 8}, {"Join", kG, VFIO_GROUP_SET_CONTAINER, 4},
    {"Open", kG, VFIO_GROUP_GET_DEVICE_FD, 1}};
INSTANTIATE_TEST_SUITE_P(Table, ContainerPointers, testing::ValuesIn(kPointers), row_name<Pointer>);

using ContainerOrder = ErrnoWorld;

TEST_F(ContainerOrder, S4_16_AnOverlapComesBeforeTheLimitAndThatBeforeTheWindow) {
  build(kMapped);
  auto map = good_map();
  map.size = kPageSize;
  for (u64 i = 0; i + 1 < vfio::Container::kMostMaps; ++i) {
    map.iova = kIova + (16 + i) * kPageSize;
    ASSERT_EQ(ask(container_, VFIO_IOMMU_MAP_DMA, &map), 0) << i;
  }
  expect_refusal(container_, VFIO_IOMMU_MAP_DMA, bytes_of(map), EEXIST);
  map.iova = 0;
  expect_refusal(container_, VFIO_IOMMU_MAP_DMA, bytes_of(map), ENOSPC);
  Unmap all;
  all.flags = VFIO_DMA_UNMAP_FLAG_ALL;
  all.iova = all.size = 0;
  ASSERT_EQ(ask(container_, VFIO_IOMMU_UNMAP_DMA, &all), 0);
  EXPECT_EQ(ask(container_, VFIO_IOMMU_MAP_DMA, &map), 0);
}

// vfio_pci_core_match(): options behind a blank.
TEST_F(ContainerOrder, AFunctionsNameMayHaveOptions) {
  build(kTyped, true);
  const auto open = [&](const char* behind) {
    const long done = ask(group_, VFIO_GROUP_GET_DEVICE_FD, (name_ + behind).c_str());
    if (done >= 0) close_fd(static_cast<int>(done));
    return done >= 0 ? 0 : -done;
  };
  EXPECT_EQ(open(""), 0);
  EXPECT_EQ(open(" "), 0);
  EXPECT_EQ(open("  vf_token=83b8f4f2-509f-382f-3c1e-e6bfe0fa1001 "), 0);
  EXPECT_EQ(open(" vf_token=83b8f4f2"), EINVAL);
  EXPECT_EQ(open(" vf_token=83b8f4f2-509f-382f-3c1e-e6bfe0fa10xx"), EINVAL);
  EXPECT_EQ(open(" x"), EINVAL);
  EXPECT_EQ(open("x"), ENODEV);
  EXPECT_EQ(open("\t"), ENODEV);
}

TEST_F(ContainerOrder, AMediatedDevicesNameHasNone) {
  build(kTyped);
  expect_refusal(group_, VFIO_GROUP_GET_DEVICE_FD,
                 bytes_of("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001 "), ENODEV);
}

TEST_F(ContainerOrder, ADomainDoesNotNest) {
  build(kJoined, true);
  EXPECT_EQ(number(container_, VFIO_SET_IOMMU, VFIO_TYPE1_NESTING_IOMMU), -EINVAL);
  EXPECT_EQ(number(container_, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), 0);
  vfio_iommu_type1_info info{};
  info.argsz = sizeof(info);
  ASSERT_EQ(ask(container_, VFIO_IOMMU_GET_INFO, &info), 0);
  EXPECT_EQ(info.iova_pgsizes, 0x40201000u);
}

TEST_F(ContainerOrder, ADeviceThatIsOpenKeepsItsGroupInItsContainer) {
  build(kTyped);
  device_ = static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, name_.c_str()));
  ASSERT_GE(device_, 0);
  expect_refusal(group_, VFIO_GROUP_UNSET_CONTAINER, {}, EBUSY);
  expect_refusal(group_, VFIO_GROUP_SET_CONTAINER, bytes_of(container_), EINVAL);
}

TEST_F(ContainerOrder, MemoryThatIsNotThereIsAFaultOfADomainOnly) {
  build(kTyped, true);
  auto map = good_map();
  map.vaddr = kPageSize;
  expect_refusal(container_, VFIO_IOMMU_MAP_DMA, bytes_of(map), EFAULT);
  map.iova = 0xfee00000;  // where messages go
  expect_refusal(container_, VFIO_IOMMU_MAP_DMA, bytes_of(map), EINVAL);
}

TEST_F(ContainerOrder, ABitmapThatCannotBeReadIsAFaultBehindItsRoom) {
  build(kTracking);
  Unmap unmap;
  unmap.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
  auto* const end = memory_.bytes_at(4 * kPageSize - sizeof(unmap));
  std::memcpy(end, &unmap, sizeof(unmap));
  EXPECT_EQ(ask(container_, VFIO_IOMMU_UNMAP_DMA, end), -EINVAL);
  unmap.argsz += sizeof(vfio_bitmap);
  std::memcpy(end, &unmap, sizeof(unmap));
  EXPECT_EQ(ask(container_, VFIO_IOMMU_UNMAP_DMA, end), -EFAULT);
}

}  // namespace
}  // namespace stagetwo
