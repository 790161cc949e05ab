// SPDX-License-Identifier: Apache-2.0
// A snapshot tells what the page table of the process says, and changes nothing.
#include <gtest/gtest.h>

#include "tests/unit/mirror/mirror_fixture.h"

namespace stagetwo {
namespace {

using Where = mirror::PageView::Where;

class Snapshot : public test::MirrorTest {
 protected:
  mirror::PageView view(mirror::Mirror& device, size_t i) {
    mirror::PageView out;
    EXPECT_TRUE(device.snapshot(at(i), 1, &out));
    return out;
  }
};

TEST_F(Snapshot, APageOfTheProcess) {
  EXPECT_EQ(Where::kSystem, view(*one_, 0).where);
  EXPECT_TRUE(view(*one_, 0).writable);
  EXPECT_EQ(1u, view(*one_, 0).level);
}

TEST_F(Snapshot, ReadOnlyAndUnreadable) {
  protect(PROT_READ, 0, 1);
  protect(PROT_NONE, 1, 1);
  EXPECT_EQ(Where::kSystem, view(*one_, 0).where);
  EXPECT_FALSE(view(*one_, 0).writable);
  EXPECT_EQ(Where::kError, view(*one_, 1).where);
  EXPECT_EQ(Where::kError, view(*one_, kPages).where) << "a hole";
}

TEST_F(Snapshot, NothingIsFaultedIn) {
  discard(5, 1);
  EXPECT_EQ(Where::kNothing, view(*one_, 5).where);
  EXPECT_EQ(Where::kNothing, view(*one_, 5).where);
}

TEST_F(Snapshot, ThePageOfZeros) {
  discard(5, 1);
  [[maybe_unused]] volatile u8 read = page(5)[0];
  EXPECT_EQ(Where::kSystem, view(*one_, 5).where);
  EXPECT_TRUE(view(*one_, 5).zero);
  EXPECT_FALSE(view(*one_, 5).writable);
}

TEST_F(Snapshot, PagesOnThisDeviceAndOnTheOther) {
  ASSERT_TRUE(one_->migrate_to_device(range(0, 1)));
  EXPECT_EQ(Where::kThisDevice, view(*one_, 0).where);
  EXPECT_TRUE(view(*one_, 0).writable);
  EXPECT_EQ(Where::kNothing, view(*two_, 0).where);
  ASSERT_TRUE(one_->make_exclusive(range(1, 1)));
  EXPECT_EQ(Where::kNothing, view(*one_, 1).where)
      << "an exclusive entry is none the device may use";
}

TEST_F(Snapshot, APageSharedWithAChildIsNotWritableAsItIs) {
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  host::owners_before_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = 0;
    static_cast<void>(!::read(ends[0], &byte, 1));
    ::_exit(0);
  }
  host::owners_after_fork_parent();
  EXPECT_FALSE(view(*one_, 0).writable);
  page(0)[0] = 1;
  EXPECT_TRUE(view(*one_, 0).writable) << "copied now";
  ASSERT_EQ(1, ::write(ends[1], "x", 1));
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace stagetwo
