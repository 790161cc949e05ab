// SPDX-License-Identifier: Apache-2.0
#include "vfio/registry.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/vfio/bus_world.h"

namespace stagetwo::vfio {
namespace {

using Registered = BusWorld;

TEST_F(Registered, AClaimGoesWithItsProcess) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto held = claim(ClaimKind::kGroup, 1, Share::kOne);
    if (held && write(ready[1], "x", 1) == 1) pause();
    _exit(1);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_TRUE(is_claimed(ClaimKind::kGroup, 1));
  EXPECT_EQ(error_of(claim(ClaimKind::kGroup, 1, Share::kOne)), EBUSY);
  EXPECT_EQ(error_of(claim(ClaimKind::kGroup, 2, Share::kOne)), 0);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_FALSE(is_claimed(ClaimKind::kGroup, 1));
  close(ready[0]);
  close(ready[1]);
}

TEST_F(Registered, ManyMayShareAClaimAndThenNobodyHasItAlone) {
  auto first = claim(ClaimKind::kDevice, 3, Share::kMany);
  auto second = claim(ClaimKind::kDevice, 3, Share::kMany);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(error_of(claim(ClaimKind::kDevice, 3, Share::kOne)), EBUSY);
  EXPECT_EQ(error_of(claim(ClaimKind::kBound, 3, Share::kOne)), 0) << "another kind, another byte";
  *first = Claim();
  EXPECT_TRUE(is_claimed(ClaimKind::kDevice, 3));
  *second = Claim();
  EXPECT_FALSE(is_claimed(ClaimKind::kDevice, 3));
}

TEST_F(Registered, AnotherVersionIsNotTouched) {
  (*registry())->version = Registry::kVersion + 1;
  debug_leave_registry();
  EXPECT_EQ(error_of(registry()), EIO);
}

TEST_F(Registered, WithoutASessionItIsTheProcesssOwn) {
  debug_leave_registry();
  host::debug_leave_session();
  ASSERT_TRUE(host::join_session({}));
  ASSERT_TRUE(start_bus());
  EXPECT_EQ(create("serial-1", 0), 0);
  EXPECT_EQ(remove(0), 0);
}

}  // namespace
}  // namespace stagetwo::vfio
