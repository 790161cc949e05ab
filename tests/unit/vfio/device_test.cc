// SPDX-License-Identifier: Apache-2.0
#include "vfio/device.h"

#include <signal.h>
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
  }
  [[nodiscard]] const Shape& shape() const override { return shape_; }
  void read(unsigned, u64, std::span<u8> to) override { to[0] = static_cast<u8>(state_.writes); }
  void write(unsigned, u64, std::span<const u8> from) override {
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
  static void SetUpTestSuite() { ASSERT_TRUE(register_parent(kCounter)); }
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

}  // namespace
}  // namespace stagetwo::vfio
