// SPDX-License-Identifier: Apache-2.0
#include "vfio/device.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/vfio/bus_world.h"

namespace stagetwo::vfio {
namespace {

// A parent that a program brings along: its device counts what it was written.
struct CounterState {
  u32 writes;
};
class Counter final : public Model {
 public:
  explicit Counter(const ModelContext& context)
      : state_(*reinterpret_cast<CounterState*>(context.state.data())) {
    shape_.regions[0].size = 4;
    shape_.regions[2].size = 4 * kPageSize;
    shape_.regions[2].mapped = kAreas;
    memory_ = context.memory;
  }
  static constexpr MappedArea kAreas[] = {{0, kPageSize, kPageSize, true},
                                          {2 * kPageSize, kPageSize, 0, false}};
  std::span<u8> memory_;
  [[nodiscard]] const Shape& shape() const override { return shape_; }
  void read(unsigned, u64, std::span<u8> to) override { to[0] = static_cast<u8>(state_.writes); }
  void write(unsigned region, u64, std::span<const u8> from) override {
    if (region == 2) {
      memory_[0] = from[0];
      memory_[kPageSize] = static_cast<u8>(from[0] + 1);
      return;
    }
    if (from[0] == 0xee) raise(SIGKILL);
    ++state_.writes;
  }
  void reset() override { state_.writes = 0; }

 private:
  Shape shape_;
  CounterState& state_;
};
constexpr Type kCounterTypes[] = {{"a", "Counter", 5}};
constinit const Parent kCounter{
    .name = "counter",
    .description = "counts",
    .units = 2,
    .counting = Counting::kCore,
    .types = kCounterTypes,
    .make = [](const Type&, const ModelContext& context) -> Result<Box<Model>> {
      return make_box<Counter>("test.counter", context);
    }};

class OpenDevice : public BusWorld {
 protected:
  static void SetUpTestSuite() {
    if (find_parent("counter") != nullptr) return;
    ASSERT_TRUE(register_parent(kCounter));
  }
  void SetUp() override {
    BusWorld::SetUp();
    ASSERT_EQ(create("counter-a", 0), 0);
  }
  static u8 count(Device& device) {
    u8 value = 0;
    device.read(0, 0, {&value, 1});
    return value;
  }
  static void hit(Device& device, u8 value = 1) { device.write(0, 0, {&value, 1}); }
};

TEST_F(OpenDevice, AParentIsRegisteredOnce) {
  EXPECT_EQ(error_of(register_parent(kCounter)), EEXIST);
  Parent without_types = kCounter;
  without_types.types = {};
  EXPECT_EQ(error_of(register_parent(without_types)), EINVAL);
}

TEST_F(OpenDevice, TheCoreCountsInstancesAndNotUnits) {
  EXPECT_EQ(available_instances(find_type("counter-a")), 1u);
  ASSERT_EQ(create("counter-a", 1), 0);
  EXPECT_EQ(create("counter-a", 2), EUSERS);
}

TEST_F(OpenDevice, IsOneInAProcess) {
  auto first = open(0);
  auto second = open(0);
  EXPECT_EQ(first.get(), second.get());
}

TEST_F(OpenDevice, KeepsItsStateWhileNobodyHasItOpen) {
  hit(*open(0));
  hit(*open(0));
  EXPECT_EQ(count(*open(0)), 2);
  ASSERT_EQ(remove(0), 0);
  ASSERT_EQ(create("counter-a", 0), 0);
  EXPECT_EQ(count(*open(0)), 0);
}

TEST_F(OpenDevice, IsTheSameInAnotherProcess) {
  auto device = open(0);
  const pid_t child = fork();
  if (child == 0) {
    hit(*device);
    hit(*open(0));
    _exit(0);
  }
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_EQ(count(*device), 2);
}

TEST_F(OpenDevice, StartsAfreshWhenAProcessDiedInIt) {
  auto device = open(0);
  hit(*device);
  const pid_t child = fork();
  if (child == 0) {
    hit(*device, 0xee);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(count(*device), 0);
}

// ---- memory that clients map

class ShownMemory : public OpenDevice {
 protected:
  // What a client's mmap of region 2 leads to.
  u8* show(Device& device) {
    void* const at = mmap(nullptr, 4 * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_TRUE(device.show(2, 0, 4 * kPageSize, PROT_READ | PROT_WRITE,
                            Hva(reinterpret_cast<std::uintptr_t>(at))));
    return static_cast<u8*>(at);
  }
};

TEST_F(ShownMemory, IsTheModelsAtThePlacesItsAreasName) {
  auto device = open(0);
  u8* const at = show(*device);
  const u8 value = 7;
  device->write(2, 0, {&value, 1});
  EXPECT_EQ(at[2 * kPageSize], 7);
  EXPECT_EQ(at[0], 8);
  munmap(at, 4 * kPageSize);
}

TEST_F(ShownMemory, IsWrittenByTheClientWhereNoStoreIsTrapped) {
  auto device = open(0);
  u8* const at = show(*device);
  at[2 * kPageSize] = 9;
  u8* const other = show(*device);
  EXPECT_EQ(other[2 * kPageSize], 9);
  // A sanitizer would tell of the store and end the process its own way.
  EXPECT_EXIT((signal(SIGSEGV, SIG_DFL), at[0] = 1), testing::KilledBySignal(SIGSEGV), "");
  munmap(at, 4 * kPageSize);
  munmap(other, 4 * kPageSize);
}

TEST_F(ShownMemory, IsTheSameInAnotherProcessAndZeroInTheNextDevice) {
  auto device = open(0);
  u8* at = show(*device);
  const pid_t child = fork();
  if (child == 0) {
    at[2 * kPageSize] = 5;
    _exit(0);
  }
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_EQ(at[2 * kPageSize], 5);
  munmap(at, 4 * kPageSize);
  device.reset();
  ASSERT_EQ(remove(0), 0);
  ASSERT_EQ(create("counter-a", 0), 0);
  device = open(0);
  at = show(*device);
  EXPECT_EQ(at[2 * kPageSize], 0);
  munmap(at, 4 * kPageSize);
}

}  // namespace
}  // namespace stagetwo::vfio
