// SPDX-License-Identifier: Apache-2.0
// Goal: a slot may be the registers of a device that the client has mapped. A guest's load is one
// of memory; its store, by whatever instruction, reaches the device once, with its size and value,
// and the client sees nothing of it.
#include "host/device_registers.h"

#include <atomic>
#include <thread>

#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

constexpr u64 kRegisters = 0x200000, kRegistersSize = 2 * kPageSize;

struct RegisterStore {
  u64 offset;
  u64 value;
  size_t bytes;
  friend bool operator==(const RegisterStore&, const RegisterStore&) = default;
};
using Stores = std::vector<RegisterStore>;

// The device: what is stored, and the memory that loads see.
struct Device {
  u8* shown = nullptr;   // the client's mapping, with no right to write
  u8* memory = nullptr;  // the same, the device's own
  bool is_there = true;
  Stores told;
} device;

u64 registers_at(Hva at) {
  const u64 start = reinterpret_cast<u64>(device.shown);
  const bool inside = at.raw() >= start && at.raw() < start + kRegistersSize;
  return device.is_there && inside ? start + kRegistersSize - at.raw() : 0;
}
size_t put_to_registers(Hva at, std::span<const u8> bytes) {
  if (registers_at(at) < bytes.size()) return 0;
  const u64 offset = at.raw() - reinterpret_cast<u64>(device.shown);
  u64 value = 0;
  std::memcpy(&value, bytes.data(), std::min<size_t>(bytes.size(), 8));
  std::memcpy(device.memory + offset, bytes.data(), bytes.size());
  device.told.push_back({offset, value, bytes.size()});
  return bytes.size();
}
constexpr host::DeviceRegisters kOwner{registers_at, put_to_registers};

class DeviceRegistersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const int fd = memfd_create("registers", MFD_CLOEXEC);
    ASSERT_EQ(ftruncate(fd, kRegistersSize), 0);
    const auto map = [&](int prot) {
      return static_cast<u8*>(mmap(nullptr, kRegistersSize, prot, MAP_SHARED, fd, 0));
    };
    device = Device{map(PROT_READ), map(PROT_READ | PROT_WRITE), true, {}};
    close(fd);
    host::set_device_registers(kOwner);
    guest_.long_mode();
    guest_.add_slot(1, kRegisters, kRegistersSize, device.shown);
    guest_.reg(kRdi) = kRegisters + 0x90;
  }
  void TearDown() override {
    guest_.memory().check_world();
    device.is_there = false;
    munmap(device.shown, kRegistersSize);
    munmap(device.memory, kRegistersSize);
  }
  void run(const Bytes& code) {
    guest_.code(code);
    guest_.state().rip = kCode;
    guest_.run_to_hlt();
  }
  template <typename T>
  static T shown(u64 offset) {
    T value;
    std::memcpy(&value, device.memory + offset, sizeof(T));
    return value;
  }
  Guest guest_{0x200000};
};

constexpr u8 kHalt = 0xf4;

TEST_F(DeviceRegistersTest, AStoreOfEverySizeReachesTheDeviceOnce) {
  guest_.reg(kRax) = 0x1122334455667788;
  run({0x48, 0x8b, 0x1f,                 // mov rbx, [rdi]: the page is there to be read
       0x88, 0x47, 0x01,                 // mov [rdi + 1], al
       0x66, 0x89, 0x47, 0x02,           // mov [rdi + 2], ax
       0x89, 0x47, 0x04,                 // mov [rdi + 4], eax
       0x48, 0x89, 0x47, 0x08,           // mov [rdi + 8], rax
       0x48, 0x8b, 0x5f, 0x08, kHalt});  // mov rbx, [rdi + 8]
  EXPECT_EQ(device.told, (Stores{{0x91, 0x88, 1},
                                 {0x92, 0x7788, 2},
                                 {0x94, 0x55667788, 4},
                                 {0x98, 0x1122334455667788, 8}}));
  EXPECT_EQ(guest_.reg(kRbx), 0x1122334455667788u);
}

TEST_F(DeviceRegistersTest, AChangeIsALoadAndAStore) {
  std::memset(device.memory + 0x90, 0, 8);
  device.memory[0x90] = 40;
  guest_.reg(kRax) = 2;
  run({0xf0, 0x0f, 0xc1, 0x07, kHalt});  // lock xadd [rdi], eax
  EXPECT_EQ(guest_.reg(kRax), 40u);
  guest_.reg(kRbx) = 7;
  guest_.reg(kRax) = 42;
  run({0xf0, 0x0f, 0xb1, 0x1f, kHalt});  // lock cmpxchg [rdi], ebx
  EXPECT_EQ(guest_.reg(kRax), 42u);
  run({0x48, 0x87, 0x07, kHalt});  // xchg [rdi], rax
  EXPECT_EQ(guest_.reg(kRax), 7u);
  EXPECT_EQ(device.told, (Stores{{0x90, 42, 4}, {0x90, 7, 4}, {0x90, 42, 8}}));
}

TEST_F(DeviceRegistersTest, AStringIsToldElementByElement) {
  guest_.write<u64>(kData, 5);
  guest_.write<u64>(kData + 8, 6);
  guest_.reg(kRsi) = kData;
  guest_.reg(kRcx) = 2;
  run({0xf3, 0x48, 0xa5, kHalt});  // rep movsq
  guest_.reg(kRax) = 9;
  guest_.reg(kRcx) = 2;
  run({0xf3, 0xab, kHalt});  // rep stosd
  EXPECT_EQ(device.told, (Stores{{0x90, 5, 8}, {0x98, 6, 8}, {0xa0, 9, 4}, {0xa4, 9, 4}}));
  EXPECT_EQ(guest_.reg(kRcx), 0u);
}

TEST_F(DeviceRegistersTest, AStoreAcrossPagesIsOneForEach) {
  guest_.reg(kRax) = 0x1111111122222222;
  guest_.reg(kRdi) = kRegisters + kPageSize - 4;
  run({0x48, 0x89, 0x07, kHalt});  // mov [rdi], rax
  EXPECT_EQ(device.told, (Stores{{0xffc, 0x22222222, 4}, {0x1000, 0x11111111, 4}}));
  device.told.clear();
  guest_.reg(kRdi) = kRegisters - 4;  // from memory into it
  run({0x48, 0x89, 0x07, kHalt});
  EXPECT_EQ(device.told, (Stores{{0, 0x11111111, 4}}));
  EXPECT_EQ(guest_.read<u32>(kRegisters - 4), 0x22222222u);
}

// As of any page that is gone: EFAULT, and RIP stays.
TEST_F(DeviceRegistersTest, AStoreToADeviceThatHasGoneIsEfault) {
  run({0x48, 0x89, 0x07, kHalt});
  ASSERT_EQ(device.told.size(), 1u);
  device.is_there = false;
  guest_.state().rip = kCode;
  const Exit& exit = guest_.cpu().run({});
  EXPECT_EQ(exit.kind, ExitKind::kUnknown);
  EXPECT_EQ(exit.error, EFAULT);
  EXPECT_EQ(guest_.state().rip, kCode);
  EXPECT_EQ(device.told.size(), 1u);
}

// KVM's own store, and both are in the dirty log.
// The mapping stands all the while: the store finds the slot, or is the VMM's.
TEST_F(DeviceRegistersTest, AStoreWhileItsSlotIsMadeAnewIsNoFault) {
  std::atomic<bool> is_over{false};
  std::thread flipper([&] {
    for (int i = 0; i < 3000; ++i) {
      guest_.add_slot(1, kRegisters, 0, nullptr);
      guest_.add_slot(1, kRegisters, kRegistersSize, device.shown);
    }
    is_over = true;
  });
  unsigned refused = 0;
  for (u64 i = 0; !is_over; ++i) {
    const auto outcome = guest_.memory().write(Gpa(kRegisters + 0x98), &i, sizeof(i));
    refused += outcome == stage2::FaultOutcome::kToUser ? 1U : 0U;
  }
  flipper.join();
  EXPECT_EQ(0U, refused);
}

TEST_F(DeviceRegistersTest, StoresAreLoggedAndKvmsOwnAreTheDevicesToo) {
  guest_.add_slot(1, kRegisters, kRegistersSize, device.shown, stage2::kLogDirtyPages);
  run({0x48, 0x89, 0x07, kHalt});
  const u32 value = 3;
  size_t done = 0;
  EXPECT_EQ(guest_.memory().write(Gpa(kRegisters + kPageSize), &value, sizeof(value), &done),
            stage2::FaultOutcome::kFixed);
  EXPECT_EQ(done, sizeof(value));
  EXPECT_EQ(device.told.back(), (RegisterStore{kPageSize, 3, 4}));
  u64 bitmap = 0;
  ASSERT_TRUE(guest_.memory().slots().get_dirty_log(1, Hva(reinterpret_cast<u64>(&bitmap))));
  EXPECT_EQ(bitmap, 3u);
}

}  // namespace
}  // namespace stagetwo::vcpu::testing
