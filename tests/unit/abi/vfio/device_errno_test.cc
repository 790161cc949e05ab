// SPDX-License-Identifier: Apache-2.0
// Every request of a device, refused: of a mediated one, which answers as mtty.c, and of a PCI
// function, which answers as vfio-pci (vfio_pci_core.c, vfio_pci_intrs.c); opened through its group
// and by its own node.
#include <sys/mman.h>

#include <tuple>

#include "host/placed_io.h"
#include "tests/unit/abi/vfio/errno_world.h"

namespace stagetwo {
namespace {

constexpr u32 kNone = VFIO_IRQ_SET_DATA_NONE, kBool = VFIO_IRQ_SET_DATA_BOOL;
constexpr u32 kFd = VFIO_IRQ_SET_DATA_EVENTFD, kTrigger = VFIO_IRQ_SET_ACTION_TRIGGER;
constexpr u32 kMask = VFIO_IRQ_SET_ACTION_MASK, kUnmask = VFIO_IRQ_SET_ACTION_UNMASK;
constexpr u32 kIntx = VFIO_PCI_INTX_IRQ_INDEX, kMsi = VFIO_PCI_MSI_IRQ_INDEX;
constexpr u32 kMsix = VFIO_PCI_MSIX_IRQ_INDEX, kErr = VFIO_PCI_ERR_IRQ_INDEX;
constexpr u32 kReq = VFIO_PCI_REQ_IRQ_INDEX;
constexpr u32 kGet = VFIO_DEVICE_FEATURE_GET, kSet = VFIO_DEVICE_FEATURE_SET;
constexpr u32 kProbe = VFIO_DEVICE_FEATURE_PROBE;

struct Row {
  const char* name;
  unsigned long request;
  std::vector<u32> words;
  int mediated, function;  // errnos
};

int a_pipe() {
  static int ends[2] = {-1, -1};
  if (ends[0] < 0 && pipe2(ends, O_CLOEXEC) != 0) return -1;
  return ends[0];
}

const Row kRows[] = {
    {"InfoShort", VFIO_DEVICE_GET_INFO, {15, 0, 0, 0}, EINVAL, EINVAL},
    {"RegionShort", VFIO_DEVICE_GET_REGION_INFO, {31, 0, 0, 0}, EINVAL, EINVAL},
    {"RegionBehindTheLast", VFIO_DEVICE_GET_REGION_INFO, {32, 0, 9, 0}, EINVAL, EINVAL},
    {"IrqShort", VFIO_DEVICE_GET_IRQ_INFO, {15, 0, 0, 0}, EINVAL, EINVAL},
    {"IrqBehindTheLast", VFIO_DEVICE_GET_IRQ_INFO, {16, 0, 5, 0}, EINVAL, EINVAL},
    // argsz, flags, index, start, count, data
    {"SetShort", VFIO_DEVICE_SET_IRQS, {19, kNone | kTrigger, kMsi, 0, 0}, EINVAL, EINVAL},
    {"SetUnknownFlag", VFIO_DEVICE_SET_IRQS, {20, kNone | 64, kMsi, 0, 0}, EINVAL, EINVAL},
    {"SetNoData", VFIO_DEVICE_SET_IRQS, {20, kTrigger, kMsi, 0, 1}, EINVAL, EINVAL},
    {"SetTwoKindsOfData",
     VFIO_DEVICE_SET_IRQS,
     {28, kBool | kFd | kTrigger, kMsi, 0, 1},
     EINVAL,
     EINVAL},
    {"SetNoAction", VFIO_DEVICE_SET_IRQS, {20, kNone, kMsi, 0, 1}, ENOTTY, ENOTTY},
    {"SetTwoActions",
     VFIO_DEVICE_SET_IRQS,
     {20, kNone | kMask | kTrigger, kIntx, 0, 1},
     ENOTTY,
     ENOTTY},
    {"SetIndexBehindTheLast",
     VFIO_DEVICE_SET_IRQS,
     {20, kNone | kTrigger, 5, 0, 1},
     EINVAL,
     EINVAL},
    {"SetVectorBehindTheLast",
     VFIO_DEVICE_SET_IRQS,
     {20, kNone | kTrigger, kMsi, 1, 1},
     EINVAL,
     EINVAL},
    {"SetTooMany", VFIO_DEVICE_SET_IRQS, {20, kNone | kTrigger, kMsi, 0, 2}, EINVAL, EINVAL},
    {"SetAroundTheEnd",
     VFIO_DEVICE_SET_IRQS,
     {20, kNone | kTrigger, kMsi, 2, ~0u - 1},
     EINVAL,
     EINVAL},
    {"SetBoolWithoutRoom",
     VFIO_DEVICE_SET_IRQS,
     {20, kBool | kTrigger, kMsi, 0, 1},
     EINVAL,
     EINVAL},
    {"SetEventfdWithoutRoom",
     VFIO_DEVICE_SET_IRQS,
     {23, kFd | kTrigger, kMsi, 0, 1},
     EINVAL,
     EINVAL},
    {"SetIndexWithoutVectors",
     VFIO_DEVICE_SET_IRQS,
     {20, kNone | kTrigger, kMsix, 0, 0},
     ENOTTY,
     EINVAL},
    {"SetErrorIndex", VFIO_DEVICE_SET_IRQS, {20, kNone | kTrigger, kErr, 0, 1}, ENOTTY, EINVAL},
    {"SetRequestIndex", VFIO_DEVICE_SET_IRQS, {20, kNone | kTrigger, kReq, 0, 1}, ENOTTY, EINVAL},
    {"SetRequestMask", VFIO_DEVICE_SET_IRQS, {20, kNone | kMask, kReq, 0, 1}, ENOTTY, ENOTTY},
    {"TriggerBeforeItsEventfd",
     VFIO_DEVICE_SET_IRQS,
     {20, kNone | kTrigger, kMsi, 0, 1},
     EINVAL,
     EINVAL},
    {"TriggerByBoolBeforeItsEventfd",
     VFIO_DEVICE_SET_IRQS,
     {21, kBool | kTrigger, kMsi, 0, 1, 1},
     EINVAL,
     EINVAL},
    {"TriggerLineBeforeItsEventfd",
     VFIO_DEVICE_SET_IRQS,
     {20, kNone | kTrigger, kIntx, 0, 1},
     EINVAL,
     EINVAL},
    {"TriggerOffWhatIsOff",
     VFIO_DEVICE_SET_IRQS,
     {20, kNone | kTrigger, kIntx, 0, 0},
     EINVAL,
     EINVAL},
    {"MessagesNone", VFIO_DEVICE_SET_IRQS, {20, kFd | kTrigger, kMsi, 0, 0}, EINVAL, ERANGE},
    {"LineNone", VFIO_DEVICE_SET_IRQS, {20, kFd | kTrigger, kIntx, 0, 0}, EINVAL, EINVAL},
    {"NoDescriptor", VFIO_DEVICE_SET_IRQS, {24, kFd | kTrigger, kMsi, 0, 1, 9999}, EBADF, EBADF},
    {"NoEventfd",
     VFIO_DEVICE_SET_IRQS,
     {24, kFd | kTrigger, kMsi, 0, 1, 1u << 31 | 1},
     EINVAL,
     EINVAL},
    {"LineNoDescriptor",
     VFIO_DEVICE_SET_IRQS,
     {24, kFd | kTrigger, kIntx, 0, 1, 9999},
     EBADF,
     EBADF},
    {"MaskALineThatIsOff", VFIO_DEVICE_SET_IRQS, {20, kNone | kMask, kIntx, 0, 1}, EINVAL, EINVAL},
    {"UnmaskALineThatIsOff",
     VFIO_DEVICE_SET_IRQS,
     {20, kNone | kUnmask, kIntx, 0, 1},
     EINVAL,
     EINVAL},
    {"UnmaskByBeforeTheLine",
     VFIO_DEVICE_SET_IRQS,
     {24, kFd | kUnmask, kIntx, 0, 1, 9999},
     EINVAL,
     EINVAL},
    {"MaskAMessage", VFIO_DEVICE_SET_IRQS, {20, kNone | kMask, kMsi, 0, 1}, ENOTTY, ENOTTY},
    {"UnmaskAMessage", VFIO_DEVICE_SET_IRQS, {20, kNone | kUnmask, kMsi, 0, 1}, ENOTTY, ENOTTY},
    // argsz, flags
    {"FeatureShort", VFIO_DEVICE_FEATURE, {7, kGet | 1}, EINVAL, EINVAL},
    {"FeatureUnknownFlag", VFIO_DEVICE_FEATURE, {8, kGet | 1u << 20}, EINVAL, EINVAL},
    {"FeatureGetAndSet", VFIO_DEVICE_FEATURE, {8, kGet | kSet | 1}, EINVAL, EINVAL},
    {"FeatureProbeOfNone", VFIO_DEVICE_FEATURE, {8, kProbe | kGet | kSet | 99}, ENOTTY, ENOTTY},
    {"FeatureToken", VFIO_DEVICE_FEATURE, {24, kSet | 0, 0, 0, 0, 0}, ENOTTY, ENOTTY},
    {"FeatureMigration", VFIO_DEVICE_FEATURE, {16, kGet | 1, 0, 0}, ENOTTY, ENOTTY},
    {"FeatureMigrationState", VFIO_DEVICE_FEATURE, {16, kSet | 2, 1, 0}, ENOTTY, ENOTTY},
    {"FeatureDmaLogging", VFIO_DEVICE_FEATURE, {32, kSet | 6, 0, 0, 0, 0, 0, 0}, ENOTTY, ENOTTY},
    {"HotResetInfoShort", VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, {11, 0, 0}, ENOTTY, EINVAL},
    {"HotResetInfo", VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, {12, 0, 0}, ENOTTY, ENODEV},
    {"HotResetShort", VFIO_DEVICE_PCI_HOT_RESET, {11, 0, 1}, ENOTTY, EINVAL},
    {"HotResetFlag", VFIO_DEVICE_PCI_HOT_RESET, {16, 1, 1, 0}, ENOTTY, EINVAL},
    {"HotResetNoBus", VFIO_DEVICE_PCI_HOT_RESET, {16, 0, 1, 0}, ENOTTY, ENODEV},
    {"IoEventfd", VFIO_DEVICE_IOEVENTFD, {32, 0, 0, 0, 0, 0, 0, 0}, ENOTTY, ENOTTY},
    {"Plane", VFIO_DEVICE_QUERY_GFX_PLANE, {8, 0}, ENOTTY, ENOTTY},
    {"PlanesFile", VFIO_DEVICE_GET_GFX_DMABUF, {0}, ENOTTY, ENOTTY},
    {"Unknown", _IO(VFIO_TYPE, VFIO_BASE + 99), {}, ENOTTY, ENOTTY},
    {"OfAContainer", VFIO_CHECK_EXTENSION, {}, ENOTTY, ENOTTY},
    {"AttachThroughAGroup", VFIO_DEVICE_ATTACH_IOMMUFD_PT, {12, 0, 1}, ENOTTY, ENOTTY},
    {"DetachThroughAGroup", VFIO_DEVICE_DETACH_IOMMUFD_PT, {8, 0}, ENOTTY, ENOTTY},
    {"BindThroughAGroupShort", VFIO_DEVICE_BIND_IOMMUFD, {15, 0, 0, 0}, EINVAL, EINVAL},
    {"BindThroughAGroup", VFIO_DEVICE_BIND_IOMMUFD, {16, 0, 9999, 0}, EINVAL, EINVAL},
};

// Through the group, and by the node, where what depends on the group is left out.
enum class Kind { kMediated, kFunction, kNode };
class DeviceErrno : public ErrnoWorld, public testing::WithParamInterface<std::tuple<Row, Kind>> {
 public:
  void open(Kind kind) {
    build(kind == Kind::kNode ? State::kFresh : State::kTyped, kind != Kind::kMediated);
    if (kind != Kind::kNode) {
      device_ = static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, name_.c_str()));
      ASSERT_GE(device_, 0);
      return;
    }
    close_fd(std::exchange(group_, -1));
    device_ = *abi_vfio::open_node(0, O_RDWR | O_CLOEXEC);
    iommufd_ = *abi_iommufd::open_device(O_RDWR | O_CLOEXEC);
    vfio_device_bind_iommufd bind{sizeof(bind), 0, iommufd_, 0};
    ASSERT_EQ(ask(device_, VFIO_DEVICE_BIND_IOMMUFD, &bind), 0);
    // Nobody has its group open: what is seen is the device's alone.
    group_ = container_;
  }
  void TearDown() override {
    if (group_ == container_) group_ = -1;
    ErrnoWorld::TearDown();
  }
};

TEST_P(DeviceErrno, IsTheKernels) {
  const auto& [row, kind] = GetParam();
  const std::string_view name = row.name;
  open(kind);
  Bytes argument;
  for (u32 word : row.words) {
    if (word == (1u << 31 | 1)) word = static_cast<u32>(a_pipe());
    argument = argument + word;
  }
  int error = kind == Kind::kMediated ? row.mediated : row.function;
  if (kind == Kind::kNode) {
    if (name.find("ThroughAGroup") != std::string_view::npos) return;  // open_device_test.cc
    if (name == "HotResetNoBus") error = EINVAL;                       // it names groups
  }
  expect_refusal(device_, row.request, argument, error);
}
std::string device_row_name(const testing::TestParamInfo<std::tuple<Row, Kind>>& param) {
  const char* const kinds[] = {"OfAMediatedDevice", "OfAFunction", "OfANode"};
  return std::string(std::get<0>(param.param).name) +
         kinds[static_cast<int>(std::get<1>(param.param))];
}
INSTANTIATE_TEST_SUITE_P(Table, DeviceErrno,
                         testing::Combine(testing::ValuesIn(kRows),
                                          testing::Values(Kind::kMediated, Kind::kFunction,
                                                          Kind::kNode)),
                         device_row_name);

struct Pointer {
  const char* name;
  unsigned long request;
  size_t reads;
};
constexpr Pointer kPointers[] = {{"Info", VFIO_DEVICE_GET_INFO, 16},
                                 {"Region", VFIO_DEVICE_GET_REGION_INFO, 32},
                                 {"Irq", VFIO_DEVICE_GET_IRQ_INFO, 16},
                                 {"Set", VFIO_DEVICE_SET_IRQS, 20},
                                 {"Feature", VFIO_DEVICE_FEATURE, 8},
                                 {"HotResetInfo", VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, 12},
                                 {"HotReset", VFIO_DEVICE_PCI_HOT_RESET, 12},
                                 {"Bind", VFIO_DEVICE_BIND_IOMMUFD, 16}};
class DeviceFaults : public ErrnoWorld, public testing::WithParamInterface<Pointer> {};
TEST_P(DeviceFaults, PointersThatLeadNowhere) {
  const Pointer& row = GetParam();
  build(State::kTyped, true);
  device_ = static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, name_.c_str()));
  const std::string before = seen();
  for (const u64 at : {u64{0}, u64{8}, u64{1} << 63, ~u64{0} - 4,
                       memory_.address() + 4 * kPageSize - row.reads + 1}) {
    EXPECT_EQ(number(device_, row.request, at), -EFAULT) << at;
  }
  EXPECT_EQ(seen(), before);
}
INSTANTIATE_TEST_SUITE_P(Table, DeviceFaults, testing::ValuesIn(kPointers), row_name<Pointer>);

class DeviceAnswers : public ErrnoWorld {
 protected:
  void open(bool function) {
    build(State::kTyped, function);
    device_ = static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, name_.c_str()));
    ASSERT_GE(device_, 0);
  }
  long io(bool write, u64 at, u64 size, off_t place) {
    const auto ref = host::find(device_);
    auto* const placed = dynamic_cast<host::PlacedIo*>(ref.get());
    const auto done = write ? placed->write_at(at, size, place) : placed->read_at(at, size, place);
    return done ? *done : -to_int(done.error());
  }
};

// What the two drivers say of the same question.
TEST_F(DeviceAnswers, OfAFunctionAreVfioPcis) {
  open(true);
  vfio_irq_info irq{sizeof(irq), 0, kMsix, 0};
  EXPECT_EQ(ask(device_, VFIO_DEVICE_GET_IRQ_INFO, &irq), 0);
  EXPECT_EQ(irq.count, 1u);
  vfio_region_info region{};
  region.argsz = sizeof(region);
  region.index = VFIO_PCI_VGA_REGION_INDEX;
  EXPECT_EQ(ask(device_, VFIO_DEVICE_GET_REGION_INFO, &region), -EINVAL);
  region.index = VFIO_PCI_ROM_REGION_INDEX;
  EXPECT_EQ(ask(device_, VFIO_DEVICE_GET_REGION_INFO, &region), 0);
  EXPECT_EQ(region.size, 0u);
}

TEST_F(DeviceAnswers, OfAMediatedDeviceAreMttys) {
  open(false);
  for (const u32 index : {kMsix, kErr, kReq}) {
    vfio_irq_info irq{sizeof(irq), 0, index, 0};
    EXPECT_EQ(ask(device_, VFIO_DEVICE_GET_IRQ_INFO, &irq), -EINVAL) << index;
  }
  vfio_region_info region{};
  region.argsz = sizeof(region);
  region.index = VFIO_PCI_VGA_REGION_INDEX;
  EXPECT_EQ(ask(device_, VFIO_DEVICE_GET_REGION_INFO, &region), 0);
}

TEST_F(DeviceAnswers, AccessesOutsideOfRegionsAreRefused) {
  open(false);
  const u64 at = memory_.address();
  for (const bool write : {false, true}) {
    EXPECT_EQ(io(write, at, 1, 8), -EINVAL) << "behind the registers";
    EXPECT_EQ(io(write, at, 1, off_t{9} << 40), -EINVAL) << "behind the regions";
    EXPECT_EQ(io(write, at, 1, off_t{3} << 40), -EINVAL) << "a region that is not there";
    EXPECT_EQ(io(write, at, 1, -1), -EINVAL);
    EXPECT_EQ(io(write, 0, 1, 0), -EFAULT);
    EXPECT_EQ(io(write, at + 4 * kPageSize, 1, 0), -EFAULT);
    EXPECT_EQ(io(write, u64{1} << 63, 1, 0), -EFAULT);
    EXPECT_EQ(io(write, at, 100, 6), 2) << "as far as the region goes";
  }
}

// An access of a function's configuration is taken whole or not at all.
TEST_F(DeviceAnswers, AFunctionsConfigurationEndsInAFault) {
  open(true);
  constexpr off_t kConfig = off_t{VFIO_PCI_CONFIG_REGION_INDEX} << 40;
  const u64 at = memory_.address();
  for (const bool write : {false, true}) {
    std::memset(memory_.bytes_at(0), 0x5a, 16);
    EXPECT_EQ(io(write, at, 4, kConfig + 4096), -EFAULT);
    EXPECT_EQ(io(write, at, 16, kConfig + 4090), -EFAULT);
    EXPECT_EQ(*memory_.bytes_at(0), 0x5a) << "nothing was read";
    EXPECT_EQ(io(write, at, 0, kConfig + 4096), 0);
    EXPECT_EQ(io(write, at, 4, kConfig + 4092), 4);
    EXPECT_EQ(io(write, at, 16, 0x3ff8), 8) << "as far as the BAR goes";
  }
}

TEST_F(DeviceAnswers, AFunctionWhoseMemoryIsOffHasNoRegisters) {
  open(true);
  constexpr off_t kCommand = (off_t{VFIO_PCI_CONFIG_REGION_INDEX} << 40) + 4;
  const u64 at = memory_.address();
  const auto set_command = [&](u16 value) {
    std::memcpy(memory_.bytes_at(0), &value, sizeof(value));
    ASSERT_EQ(io(true, at, 2, kCommand), 2);
  };
  set_command(0);
  EXPECT_EQ(io(false, at, 4, 0), -EIO);
  EXPECT_EQ(io(true, at, 4, 0x80), -EIO);
  EXPECT_EQ(io(false, at, 4, 0x4000), -EINVAL) << "behind the BAR comes first";
  EXPECT_EQ(io(false, at, 2, kCommand), 2);
  set_command(2);
  EXPECT_EQ(io(false, at, 4, 0), 4);
}

TEST_F(DeviceAnswers, AFunctionsInfoIsWrittenAsFarAsItsClientHasRoom) {
  open(true);
  for (const u32 size : {16u, 20u, 24u, 40u}) {
    u32 words[10];
    std::memset(words, 0xff, sizeof(words));
    words[0] = size;
    ASSERT_EQ(ask(device_, VFIO_DEVICE_GET_INFO, words), 0);
    for (u32 i = 4; i < 10; ++i) {
      EXPECT_EQ(words[i], i < 6 && 4 * i < size ? 0 : ~0u) << size << " word " << i;
    }
  }
}

TEST_F(DeviceAnswers, TheTableOfMessagesMayBeMapped) {
  open(true);
  struct {
    vfio_region_info info;
    vfio_info_cap_header cap;
  } told{};
  told.info.argsz = sizeof(told.info);
  ASSERT_EQ(ask(device_, VFIO_DEVICE_GET_REGION_INFO, &told), 0);
  EXPECT_EQ(told.info.flags, u32{VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE |
                                 VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS});
  EXPECT_EQ(told.info.argsz, sizeof(told));
  EXPECT_EQ(told.info.cap_offset, 0u);
  ASSERT_EQ(ask(device_, VFIO_DEVICE_GET_REGION_INFO, &told), 0);
  EXPECT_EQ(told.info.cap_offset, sizeof(told.info));
  EXPECT_EQ(told.cap.id, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE);
  EXPECT_EQ(told.cap.next, 0u);
}

TEST_F(DeviceAnswers, MappingsOutsideOfMappedAreasAreRefused) {
  open(true);
  const auto ref = host::find(device_);
  const auto refusal = [&](u64 size, int flags, u64 offset) {
    const auto done =
        ref->check_mmap({size, PROT_READ | PROT_WRITE, flags, static_cast<off_t>(offset)});
    return done ? 0 : to_int(done.error());
  };
  EXPECT_EQ(refusal(0x4000, MAP_SHARED, 0), 0);
  EXPECT_EQ(refusal(0x5000, MAP_SHARED, 0), EINVAL);
  EXPECT_EQ(refusal(0x1000, MAP_SHARED, 0x4000), EINVAL);
  EXPECT_EQ(refusal(0x1000, MAP_PRIVATE, 0), EINVAL);
  EXPECT_EQ(refusal(0x1000, MAP_SHARED, u64{7} << 40), EINVAL) << "the configuration";
  EXPECT_EQ(refusal(0x1000, MAP_SHARED, u64{9} << 40), EINVAL);
  EXPECT_EQ(refusal(0x1000, MAP_SHARED, u64{1} << 40), EINVAL) << "no such BAR";
}

}  // namespace
}  // namespace stagetwo
