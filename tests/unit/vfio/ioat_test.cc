// SPDX-License-Identifier: Apache-2.0
// The I/OAT function through an open device, as a client has it: registers, chains, errors.
#include "vfio/ioat.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "host/backstop.h"
#include "tests/support/pages.h"
#include "tests/unit/vfio/bus_world.h"
#include "vfio/container.h"
#include "vfio/pci_config.h"
#include "vfio/pci_functions.h"

namespace stagetwo::vfio {
namespace {

using namespace ioat;

// A function, a container of its own and sixteen pages that it maps at kIova. The first page has
// the descriptors, the second the completion, the others bytes.
struct Client {
  static constexpr u64 kIova = 0x100000, kCompletion = kIova + kPageSize;
  static constexpr u64 kSource = kIova + 2 * kPageSize, kTarget = kIova + 8 * kPageSize;

  explicit Client(u32 slot) : which(*device_at(slot)), backing(*Container::make_file("test")) {
    container = *Container::attach(backing.fd());
    EXPECT_TRUE(container->add_group(which));
    EXPECT_TRUE(container->set_type(static_cast<u64>(IommuType::kType1v2)));
    EXPECT_TRUE(container->map(
        {kIova, 16 * kPageSize, memory.address(), iommu::kMayRead | iommu::kMayWrite}));
    device = *Device::open(which);
    EXPECT_TRUE(device->connect(container.clone()));
    config<u16>(4, PciConfig::kCommandMemory | PciConfig::kCommandMaster);
    for (u64 i = 0; i < 6 * kPageSize; ++i) *at(kSource + i) = static_cast<u8>(i * 7 + i / 256);
  }
  ~Client() {
    device.reset();
    container->remove_group(which);
    container->closed();
  }

  u8* at(u64 iova) { return memory.bytes_at(iova - kIova); }
  template <typename T>
  T read(u64 offset, unsigned region = 0) {
    T value{};
    for (size_t done = 0; done < sizeof(T); done += 4) {
      u8* const to = reinterpret_cast<u8*>(&value) + done;
      device->read(region, offset + done, {to, std::min<size_t>(4, sizeof(T))});
    }
    return value;
  }
  template <typename T>
  void write(u64 offset, T value, unsigned region = 0) {
    for (size_t done = 0; done < sizeof(T); done += 4) {
      const u8* const from = reinterpret_cast<const u8*>(&value) + done;
      device->write(region, offset + done, {from, std::min<size_t>(4, sizeof(T))});
    }
  }
  template <typename T>
  void config(u64 offset, T value) {
    write<T>(offset, value, kConfigRegion);
  }

  // The nth of a ring of 64.
  static u64 place(unsigned n) { return kIova + (n % 64) * sizeof(Descriptor); }
  void put(unsigned n, Descriptor descriptor) {
    descriptor.next = place(n + 1);
    std::memcpy(at(place(n)), &descriptor, sizeof(descriptor));
  }
  void put_copy(unsigned n, u64 from, u64 to, u32 bytes, u32 control = kWritesCompletion) {
    put(n, {bytes, kCopy << kOpShift | control, from, to, 0, {}});
  }
  void begin(u64 chain = kIova) {
    write<u8>(kChanCmd, kCmdReset);
    write<u64>(kChanCmp, kCompletion);
    write<u64>(kChainAddr, chain);
  }
  // And waits until it is done, or cannot be.
  void ask(u16 count) {
    write<u16>(kDmaCount, count);
    wait();
  }
  void wait() {
    for (unsigned i = 0; status() == kActive && i < 100000; ++i) usleep(20);
  }
  u64 status() { return read<u64>(kChanSts) & 7; }
  u64 last() { return read<u64>(kChanSts) & ~u64{63}; }
  u64 completion() {
    u64 value = 0;
    std::memcpy(&value, at(kCompletion), sizeof(value));
    return value;
  }
  bool same(u64 one, u64 other, u64 bytes) { return std::memcmp(at(one), at(other), bytes) == 0; }

  const Listed which;
  test::GuardedPages memory{16};
  host::Backing backing;
  sync::Ref<Container> container;
  sync::Ref<Device> device;
};

class IoatTest : public BusWorld {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    want_functions("ioat,ioat");
    BusWorld::SetUp();
    client_.emplace(0);
  }
  void TearDown() override {
    client_.reset();
    want_functions({});
    BusWorld::TearDown();
  }
  Client& client() { return *client_; }
  std::optional<Client> client_;
};

TEST_F(IoatTest, SaysWhatItIs) {
  EXPECT_EQ(client().read<u32>(0, kConfigRegion), 0x20218086u);
  EXPECT_EQ(client().read<u32>(8, kConfigRegion) >> 8, 0x088000u);
  client().config<u32>(0x10, ~0u);
  client().config<u32>(0x14, ~0u);
  EXPECT_EQ(client().read<u32>(0x10, kConfigRegion), 0xffffc004u) << "16 KiB, of 64 bits";
  EXPECT_EQ(client().read<u32>(0x14, kConfigRegion), ~0u);
  std::vector<u8> found;
  for (u8 next = client().read<u8>(0x34, kConfigRegion); next != 0 && found.size() < 8;
       next = client().read<u8>(next + 1u, kConfigRegion)) {
    found.push_back(client().read<u8>(next, kConfigRegion));
  }
  EXPECT_EQ(found, (std::vector<u8>{0x05, 0x11, 0x10})) << "MSI, MSI-X, PCI Express";
  EXPECT_EQ(client().read<u8>(kChanCnt), 1);
  EXPECT_EQ(client().read<u8>(kXferCap), kXferCapLog2);
  EXPECT_EQ(client().read<u8>(kCbVer), 0x33);
  EXPECT_EQ(client().read<u64>(kChanSts), kHalted);
  EXPECT_EQ(client().read<u32>(kMsixTable), 0u);
}

TEST_F(IoatTest, OnlyItsRegistersAreWritten) {
  for (u64 offset = 0; offset < kBarBytes; offset += 4) {
    if (offset != kChanCtrl + 4) client().write<u32>(offset, 0x00000000);
  }
  for (const u64 offset : {kChanCnt, kDmaCap, u64{0x40}, kChanSts, u64{0x200}, kMsixTable}) {
    const u32 before = client().read<u32>(offset & ~u64{3});
    client().write<u32>(offset & ~u64{3}, ~0u & ~0xff000000u);
    EXPECT_EQ(client().read<u32>(offset & ~u64{3}), before) << offset;
  }
  client().config<u32>(kChanErrInt, ~0u);
  EXPECT_EQ(client().read<u32>(kChanErrInt, kConfigRegion), 0u);
  EXPECT_EQ(client().read<u32>(0x100, kConfigRegion), 0u) << "no extended capability";
}

TEST_F(IoatTest, CopiesAChain) {
  client().put_copy(0, Client::kSource, Client::kTarget, 1000, 0);
  client().put_copy(1, Client::kSource + 1000, Client::kTarget + 1000, 2 * kPageSize + 3, 0);
  client().put_copy(2, Client::kSource + 9, Client::kTarget + 5 * kPageSize, 1);
  client().begin();
  EXPECT_EQ(client().status(), kArmed);
  client().ask(3);
  EXPECT_TRUE(client().same(Client::kSource, Client::kTarget, 2 * kPageSize + 1003));
  EXPECT_NE(*client().at(Client::kTarget + 2 * kPageSize + 1003),
            *client().at(Client::kSource + 2 * kPageSize + 1003));
  EXPECT_EQ(*client().at(Client::kTarget + 5 * kPageSize), *client().at(Client::kSource + 9));
  EXPECT_EQ(client().read<u64>(kChanSts), Client::place(2) | kIdle);
  EXPECT_EQ(client().completion(), Client::place(2) | kIdle);
  EXPECT_EQ(client().read<u32>(kChanErr), 0u);
}

TEST_F(IoatTest, FillsWithItsPattern) {
  client().put(0, {kPageSize + 5, kFill << kOpShift, 0x8877665544332211, Client::kTarget, 0, {}});
  client().begin();
  client().ask(1);
  for (u64 i = 0; i < kPageSize + 5; ++i) {
    ASSERT_EQ(*client().at(Client::kTarget + i), (i % 8 + 1) * 0x11) << i;
  }
  EXPECT_EQ(*client().at(Client::kTarget + kPageSize + 5), 0);
  EXPECT_EQ(client().completion(), 0u) << "it was not asked to say so";
}

TEST_F(IoatTest, AGreaterCountGoesOnAroundTheRingAndOverTheEndOfTheCount) {
  for (unsigned i = 0; i < 64; ++i) {
    client().put_copy(i, Client::kSource + 8 * i, Client::kTarget + 8 * i, 8);
  }
  client().begin();
  u16 count = 0;
  for (unsigned n = 0; n < 0x10000 / 4096 + 2; ++n) {
    count = static_cast<u16>(count + 4096 + 1);
    client().ask(count);
    ASSERT_EQ(client().completion(), Client::place(count - 1u) | kIdle);
  }
  client().ask(count);  // nothing new
  EXPECT_EQ(client().last(), Client::place(count - 1u));
}

TEST_F(IoatTest, NullDoesNothing) {
  client().put_copy(0, 0, 0, 0, kNull | kWritesCompletion);
  client().begin();
  client().ask(1);
  EXPECT_EQ(client().completion(), Client::place(0) | kIdle);
}

// A whole count of the largest: the doorbell does not wait for it, nor does a reset.
TEST_F(IoatTest, ADoorbellWaitsForNothing) {
  const u64 from = Client::kIova, to = u64{1} << 32;
  test::GuardedPages large(16);
  ASSERT_TRUE(client().container->map({to, 16 * kPageSize, large.address(), 3}));
  Descriptor whole{1u << kXferCapLog2, kCopy << kOpShift, from, to, Client::place(0), {}};
  std::memcpy(client().at(Client::place(0)), &whole, sizeof(whole));
  client().begin();
  client().write<u16>(kDmaCount, 0xffff);
  EXPECT_EQ(client().status(), kActive) << "four gigabytes are not moved yet";
  while (client().last() == 0) usleep(10);
  client().write<u16>(kDmaCount, 0xfffe);
  EXPECT_EQ(client().status(), kActive);
  client().write<u8>(kChanCmd, kCmdReset);
  EXPECT_EQ(client().read<u64>(kChanSts), kHalted);
  // Nothing is under way.
  std::memset(large.bytes_at(0), 0x5a, large.bytes());
  usleep(2000);
  EXPECT_EQ(*large.bytes_at(0), 0x5a);
  EXPECT_EQ(std::memcmp(large.bytes_at(0), large.bytes_at(1), large.bytes() - 1), 0);
  client().put_copy(0, Client::kSource, Client::kTarget, 8);
  client().begin();
  client().ask(1);
  EXPECT_TRUE(client().same(Client::kSource, Client::kTarget, 8));
}

// Two processes that have it open: the one that asks works, after the other's.
TEST_F(IoatTest, AChildOfForkThatAsksHasItsWorkDone) {
  client().put_copy(0, Client::kSource, Client::kTarget, 8);
  client().begin();
  client().ask(1);
  EXPECT_EQ(client().read<u64>(kChanSts), Client::place(0) | kIdle);
  const pid_t child = fork();
  if (child == 0) {
    client().ask(2);  // of memory that its parent has pinned it reaches nothing
    _exit(client().status() == kHalted ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  client().write<u32>(kChanErr, ~0u);
  client().begin();
  client().ask(1);
  EXPECT_EQ(client().read<u64>(kChanSts), Client::place(0) | kIdle);
}

struct Fault {
  const char* what;
  u32 error;
  Descriptor descriptor;
};

TEST_F(IoatTest, ADescriptorThatCannotBeDoneHalts) {
  constexpr u64 kNowhere = 0x7000000;
  const Fault faults[] = {
      {"source", kBadSource, {64, 0, kNowhere, Client::kTarget, 0, {}}},
      {"destination", kBadDestination, {64, 0, Client::kSource, kNowhere, 0, {}}},
      {"filled", kBadDestination, {64, kFill << kOpShift, 1, kNowhere, 0, {}}},
      {"no length", kBadLength, {0, 0, Client::kSource, Client::kTarget, 0, {}}},
      {"length",
       kBadLength,
       {(1u << kXferCapLog2) + 1, 0, Client::kSource, Client::kTarget, 0, {}}},
      {"operation", kBadControl, {64, 0x87u << kOpShift, Client::kSource, Client::kTarget, 0, {}}},
  };
  for (const Fault& fault : faults) {
    SCOPED_TRACE(fault.what);
    std::memset(client().at(Client::kTarget), 0, 3 * kPageSize);
    client().put_copy(0, Client::kSource, Client::kTarget, 8);
    client().put(1, fault.descriptor);
    client().put_copy(2, Client::kSource, Client::kTarget + kPageSize, 8);
    client().begin();
    client().write<u16>(kChanCtrl, kErrorCompletion);
    client().ask(3);
    EXPECT_EQ(client().read<u64>(kChanSts), Client::place(0) | kHalted);
    EXPECT_EQ(client().completion(), Client::place(0) | kHalted);
    EXPECT_EQ(client().read<u32>(kChanErr), fault.error);
    EXPECT_TRUE(client().same(Client::kSource, Client::kTarget, 8)) << "what was in front is done";
    EXPECT_EQ(*client().at(Client::kTarget + kPageSize), 0) << "what is behind is not";
    client().ask(4);
    EXPECT_EQ(client().status(), kHalted);
    client().write<u64>(kChainAddr, Client::kIova);
    EXPECT_EQ(client().status(), kHalted) << "the error was not cleared";
    // As a driver recovers: behind the one that failed.
    client().write<u32>(kChanErr, client().read<u32>(kChanErr));
    client().begin(Client::place(2));
    EXPECT_EQ(client().read<u64>(kChanSts), kArmed);
    client().ask(1);
    EXPECT_TRUE(client().same(Client::kSource, Client::kTarget + kPageSize, 8));
  }
}

TEST_F(IoatTest, AddressesThatAreWrongHalt) {
  client().put_copy(0, Client::kSource, Client::kTarget, 8);
  client().begin(Client::kIova + 8);
  client().ask(1);
  EXPECT_EQ(client().read<u32>(kChanErr), kBadChain);
  client().write<u32>(kChanErr, ~0u);
  client().begin(0x7000000);
  client().ask(1);
  EXPECT_EQ(client().read<u32>(kChanErr), kReadError);
  EXPECT_EQ(client().read<u64>(kChanSts), kHalted) << "none was done";
  client().write<u32>(kChanErr, ~0u);
  Descriptor crooked{8, 0, Client::kSource, Client::kTarget, Client::kIova + 4, {}};
  std::memcpy(client().at(Client::place(0)), &crooked, sizeof(crooked));
  client().begin();
  client().ask(2);
  EXPECT_EQ(client().read<u32>(kChanErr), kBadNext);
  EXPECT_EQ(client().last(), Client::place(0));
  client().write<u32>(kChanErr, ~0u);
  client().put_copy(0, Client::kSource, Client::kTarget, 8);
  client().begin();
  client().write<u64>(kChanCmp, 0x7000000);
  client().ask(1);
  EXPECT_EQ(client().read<u32>(kChanErr), kBadCompletion);
  EXPECT_EQ(client().status(), kHalted);
}

TEST_F(IoatTest, SuspendsAndResumes) {
  client().put_copy(0, Client::kSource, Client::kTarget, 8);
  client().put_copy(1, Client::kSource, Client::kTarget + 64, 8);
  client().begin();
  client().write<u8>(kChanCmd, kCmdSuspend);
  EXPECT_EQ(client().status(), kArmed) << "nothing was begun";
  client().ask(1);
  client().write<u8>(kChanCmd, kCmdSuspend);
  EXPECT_EQ(client().read<u64>(kChanSts), Client::place(0) | kSuspended);
  client().ask(2);
  EXPECT_EQ(*client().at(Client::kTarget + 64), 0);
  client().write<u8>(kChanCmd, kCmdResume);
  client().wait();
  EXPECT_TRUE(client().same(Client::kSource, Client::kTarget + 64, 8));
  EXPECT_EQ(client().read<u64>(kChanSts), Client::place(1) | kIdle);
  EXPECT_EQ(client().read<u8>(kChanCmd), 0) << "commands are taken at once";
  client().write<u8>(kChanCmd, kCmdSuspend);
  client().write<u64>(kChainAddr, Client::kIova);
  EXPECT_EQ(client().read<u64>(kChanSts), kArmed) << "a new chain";
}

// As vfio-pci resets a function that nobody has open; a second file of it changes nothing.
TEST_F(IoatTest, ASecondClientFindsNothingOfTheFirst) {
  client().begin();
  client().config<u32>(0x10, 0xabcd0000);
  const pid_t child = fork();
  if (child == 0) {
    client_->device.reset();
    const auto again = Device::open(*device_at(0));
    u64 completion = 0;
    for (u64 at = 0; at < 8; at += 4) {
      (*again)->read(0, kChanCmp + at, {reinterpret_cast<u8*>(&completion) + at, 4});
    }
    _exit(completion == Client::kCompletion ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << "its parent has it open";
  client_.reset();
  const auto device = *Device::open(*device_at(0));
  const auto word = [&](unsigned region, u64 offset) {
    u32 value = 0;
    device->read(region, offset, {reinterpret_cast<u8*>(&value), 4});
    return value;
  };
  EXPECT_EQ(word(0, kChanCmp), 0u);
  EXPECT_EQ(word(0, kChanSts), kHalted);
  EXPECT_EQ(word(kConfigRegion, 0x10), 4u);
  EXPECT_EQ(word(kConfigRegion, 4) & 0xffff, PciConfig::kCommandMemory) << "no master of the bus";
}

TEST_F(IoatTest, SysfsShowsTheConfigurationAsItIs) {
  const int file =
      ::open((directory_ + "/sys/bus/pci/devices/fffe:00:04.0/config").c_str(), O_RDONLY);
  ASSERT_GE(file, 0);
  const auto word = [&](off_t at) {
    u32 value = ~0u;
    EXPECT_EQ(pread(file, &value, sizeof(value), at), 4) << at;
    return value;
  };
  EXPECT_EQ(word(4) & 0xffff, PciConfig::kCommandMemory | PciConfig::kCommandMaster);
  client().config<u16>(4, PciConfig::kCommandMemory);
  EXPECT_EQ(word(4) & 0xffff, PciConfig::kCommandMemory);
  EXPECT_EQ(lseek(file, 0, SEEK_END), 4096);
  client_.reset();
  client_.emplace(0);
  EXPECT_EQ(word(0), 0x20218086u);
  close(file);
}

TEST_F(IoatTest, AResetLeavesTheConfiguration) {
  client().put_copy(0, Client::kSource, Client::kTarget, 8);
  client().begin();
  client().ask(1);
  client().device->reset();
  EXPECT_EQ(client().read<u64>(kChanSts), kHalted);
  EXPECT_EQ(client().read<u64>(kChanCmp), 0u);
  EXPECT_EQ(client().read<u8>(kCbVer), 0x33);
  EXPECT_EQ(client().read<u16>(4, kConfigRegion),
            PciConfig::kCommandMemory | PciConfig::kCommandMaster);
}

TEST_F(IoatTest, MovesNothingUnlessItIsAMaster) {
  client().put_copy(0, Client::kSource, Client::kTarget, 8);
  client().begin();
  client().config<u16>(4, PciConfig::kCommandMemory);
  client().ask(1);
  EXPECT_EQ(client().read<u32>(kChanErr), kReadError);
  EXPECT_EQ(client().completion(), 0u);
}

TEST_F(IoatTest, RingsOnceUntilItIsArmedAgain) {
  const int bell = eventfd(0, EFD_NONBLOCK);
  const auto* const data = reinterpret_cast<const u8*>(&bell);
  ASSERT_TRUE(client().device->set_irqs(
      {IrqSet::kEventfds | IrqSet::kTrigger, kMsixIndex, 0, 1, {data, sizeof(bell)}}));
  const auto rings = [bell] {
    u64 count = 0;
    return ::read(bell, &count, sizeof(count)) == sizeof(count) ? count : 0;
  };
  for (unsigned i = 0; i < 4; ++i) {
    client().put_copy(i, Client::kSource, Client::kTarget, 8, kInterrupts);
  }
  client().begin();
  client().ask(1);
  EXPECT_EQ(rings(), 0u) << "not enabled";
  client().write<u16>(kChanCtrl, kRearm);
  client().write<u8>(kIntrCtrl, kMasterEnable | kMsixEnable);
  client().ask(3);
  EXPECT_EQ(rings(), 1u);
  EXPECT_EQ(client().read<u8>(kIntrCtrl) & kInterrupting, kInterrupting);
  EXPECT_EQ(client().read<u32>(kAttnStatus), 1u);
  client().write<u16>(kChanCtrl, kRearm);
  EXPECT_EQ(client().read<u32>(kAttnStatus), 0u);
  client().ask(4);
  EXPECT_EQ(rings(), 1u);
  close(bell);
}

// I1, I2 and I6 of the isolation matrix, of functions: their own containers and nothing else.
TEST_F(IoatTest, TwoFunctionsAreApart) {
  Client other(1);
  for (Client* one : {&client(), &other}) {
    std::memset(one->at(Client::kSource), one == &other ? 0xbb : 0xaa, kPageSize);
    one->put_copy(0, Client::kSource, Client::kTarget, kPageSize);
    one->begin();
    one->ask(1);
    EXPECT_EQ(one->status(), kIdle);
  }
  EXPECT_EQ(*client().at(Client::kTarget + 17), 0xaa);
  EXPECT_EQ(*other.at(Client::kTarget + 17), 0xbb);
  ASSERT_TRUE(other.container->map({0x900000, kPageSize, other.memory.address(), iommu::kMayRead}));
  client().put_copy(0, 0x900000, Client::kTarget, 8);
  client().begin();
  client().ask(1);
  EXPECT_EQ(client().read<u32>(kChanErr), kBadSource) << "only the other has mapped it";
  ASSERT_TRUE(other.container->unmap({Client::kIova, 16 * kPageSize, false}));
  other.begin();
  other.ask(1);
  EXPECT_EQ(other.read<u32>(kChanErr), kReadError) << "what was unmapped is not reached";
}

TEST_F(IoatTest, StandsOnAPciBusOfItsOwn) {
  const std::string folder = directory_ + "/sys/bus/pci/devices/fffe:00:04.1/";
  const auto text = [&folder](const char* name) {
    char line[256] = {};
    FILE* const file = fopen((folder + name).c_str(), "re");
    if (file == nullptr) return std::string();
    static_cast<void>(fgets(line, sizeof(line), file));
    fclose(file);
    return std::string(line);
  };
  EXPECT_EQ(text("vendor"), "0x8086\n");
  EXPECT_EQ(text("device"), "0x2021\n");
  EXPECT_EQ(text("class"), "0x088000\n");
  EXPECT_EQ(text("modalias"), "pci:v00008086d00002021sv00008086sd00000000bc08sc80i00\n");
  EXPECT_EQ(text("resource"), "0x0000fffe00100000 0x0000fffe00103fff 0x0000000000140204\n");
  EXPECT_EQ(text("config").substr(0, 4), "\x86\x80\x21\x20");
  EXPECT_EQ(std::filesystem::read_symlink(folder + "driver").filename(), "vfio-pci");
  EXPECT_EQ(std::filesystem::read_symlink(folder + "iommu_group").filename(), "1");
  EXPECT_TRUE(std::filesystem::exists(folder + "iommu_group/devices/fffe:00:04.1/vendor"));
  EXPECT_TRUE(std::filesystem::exists(folder + "driver/fffe:00:04.0/vendor"));
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/sys/class/mdev_bus/ioat"));
  EXPECT_FALSE(find_type("ioat-cbdma")) << "nobody makes one by UUID";
  FixedString<16> name;
  append_name(*device_at(1), name);
  EXPECT_EQ(name.view(), "fffe:00:04.1");
  // The machine's own are seen beside them.
  const std::filesystem::path machines("/sys/bus/pci/devices");
  if (!std::filesystem::exists(machines)) return;
  for (const auto& entry : std::filesystem::directory_iterator(machines)) {
    EXPECT_TRUE(std::filesystem::exists(directory_ + entry.path().string() + "/vendor"));
  }
}

}  // namespace
}  // namespace stagetwo::vfio
