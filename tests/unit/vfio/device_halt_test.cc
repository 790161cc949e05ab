// SPDX-License-Identifier: Apache-2.0
// Who changes a device holds off its threads in every process, and is held up by no dead one.
#include "vfio/device_halt.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/process.h"
#include "tests/support/on_shared_page.h"
#include "vfio/device_thread.h"

namespace stagetwo::vfio {
namespace {

// What processes share.
struct Shared {
  DeviceHalt halt;
  sync::Atomic<u32> inside, done, dies;
};

class Counter final : public DeviceThread::Work {
 public:
  explicit Counter(Shared& shared) : shared_(shared), thread(*this, &shared.halt) {}
  bool work() override {
    shared_.inside.store(1);
    if (shared_.dies.load() != 0) _exit(0);  // in the middle of it
    for (unsigned i = 0; i < 200 && !thread.cancelled(); ++i) sync::spin_hint();
    shared_.done.fetch_add(1);
    shared_.inside.store(0);
    return true;
  }

 private:
  Shared& shared_;

 public:
  DeviceThread thread;
};

class DeviceHaltTest : public testing::Test {
 protected:
  void SetUp() override {
    child_ = fork();
    if (child_ != 0) return;
    host::after_fork_child();  // as the shim does
    Counter counter(*shared_);
    if (!counter.thread.start()) _exit(1);
    for (;;) pause();
  }
  void TearDown() override {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  void await_work() const {
    for (const u32 before = shared_->done.load(); shared_->done.load() < before + 2;) usleep(10);
  }
  test::OnSharedPage<Shared> shared_;
  pid_t child_ = -1;
};

TEST_F(DeviceHaltTest, AnotherProcessesThreadTouchesNothingMeanwhile) {
  Counter none(*shared_);  // this process has no thread
  for (unsigned round = 0; round < 200; ++round) {
    await_work();
    none.thread.pause();
    ASSERT_EQ(shared_->inside.load(), 0u) << round;
    const u32 done = shared_->done.load();
    if (round % 20 == 0) usleep(300);
    ASSERT_EQ(shared_->done.load(), done) << round;
    none.thread.resume();
  }
}

TEST_F(DeviceHaltTest, WhoDiesAtWorkHoldsNobodyUp) {
  await_work();
  shared_->dies.store(1);
  ASSERT_EQ(waitpid(child_, nullptr, 0), child_);
  EXPECT_EQ(shared_->inside.load(), 1u);
  shared_->halt.hold();
  EXPECT_FALSE(shared_->halt.others_inside(nullptr));
  shared_->halt.release();
}

TEST_F(DeviceHaltTest, WhoDiesWhileHeHoldsItHoldsNobodyOff) {
  await_work();
  const pid_t holder = fork();
  if (holder == 0) {
    host::after_fork_child();
    shared_->halt.hold();
    _exit(0);
  }
  ASSERT_EQ(waitpid(holder, nullptr, 0), holder);
  await_work();
}

}  // namespace
}  // namespace stagetwo::vfio
