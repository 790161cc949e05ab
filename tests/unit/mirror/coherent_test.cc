// SPDX-License-Identifier: Apache-2.0
// Device memory that the processor reaches: a page there is mapped, used in place, and moves home
// only when it is told to.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/failpoint.h"
#include "host/page_owner.h"
#include "host/userfault.h"
#include "tests/unit/mirror/mirror_fixture.h"

namespace stagetwo {
namespace {

using Where = mirror::PageView::Where;

// With the kernel's help and where it is denied: the promises are the same.
class Coherent : public test::MirrorTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    host::userfault::debug_deny(GetParam());
    MirrorTest::SetUp();
    near_ = std::move(*mirror::Mirror::open(2));
    far_ = std::move(*mirror::Mirror::open(3));
  }
  void TearDown() override {
    near_.reset();
    far_.reset();
    MirrorTest::TearDown();
    host::userfault::debug_deny(false);
  }
  Where where(mirror::Mirror& device, size_t i) { return view(device, i).where; }
  mirror::PageView view(mirror::Mirror& device, size_t i) {
    mirror::PageView out;
    EXPECT_TRUE(device.snapshot(at(i), 1, &out));
    return out;
  }
  u64 mapped_pages(mirror::Mirror& device, size_t pages = kPages) {
    mirror::Transfer done;
    std::vector<u8> bytes(pages * kPageSize);
    static_cast<void>(device.read_mapped(at(0), pages, bytes.data(), &done));
    for (size_t i = 0; i < done.pages; ++i) EXPECT_EQ(i + 1, bytes[i * kPageSize + 1]);
    return done.pages;
  }

  Box<mirror::Mirror> near_, far_;
};
std::string hiding_name(const testing::TestParamInfo<bool>& denied) {
  return denied.param ? "Protection" : "Userfault";
}
INSTANTIATE_TEST_SUITE_P(Hiding, Coherent, testing::Bool(), hiding_name);

TEST_P(Coherent, AResidentPageIsMappedAndEverybodyKnowsWhose) {
  ASSERT_TRUE(near_->migrate_to_device(range()));
  EXPECT_EQ(kPages, mapped_pages(*near_));
  EXPECT_FALSE(host::is_absent(at(7)));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 7));
  EXPECT_EQ(Where::kResidentElsewhere, where(*far_, 7));
  EXPECT_EQ(Where::kResidentElsewhere, where(*one_, 7));
  EXPECT_TRUE(view(*near_, 7).writable);
}

TEST_P(Coherent, ATouchLeavesItWhereItIs) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 4)));
  EXPECT_EQ(1, page(0)[5]);
  fill(0, 99);
  u64 faults = 0;
  EXPECT_EQ(99, read_page(*near_, 0, &faults));
  EXPECT_EQ(0u, faults);
  EXPECT_EQ(0, write_page(*near_, 1, 77));
  EXPECT_EQ(77, page(1)[4095]);
  EXPECT_EQ(Where::kResidentHere, where(*near_, 0));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 1));
}

TEST_P(Coherent, APageNeverTouchedBecomesAWritableOneOfTheDevice) {
  discard(3, 1);
  ASSERT_TRUE(near_->migrate_to_device(range(3, 1)));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 3));
  EXPECT_TRUE(view(*near_, 3).writable);
  EXPECT_FALSE(view(*near_, 3).zero);
  EXPECT_EQ(0, page(3)[0]);
}

TEST_P(Coherent, BackToTheSystemCountsThePagesThatMoved) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 10)));
  auto moved = far_->migrate_to_system(range());
  ASSERT_TRUE(moved);
  EXPECT_EQ(0u, *moved) << "they are not this unit's";
  moved = near_->migrate_to_system(range());
  ASSERT_TRUE(moved);
  EXPECT_EQ(10u, *moved);
  EXPECT_EQ(Where::kSystem, where(*near_, 0));
  EXPECT_EQ(0u, mapped_pages(*near_)) << "the mirror forgot where they were";
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(i + 1, page(i)[0]);
}

TEST_P(Coherent, NoOtherUnitTakesIt) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 1)));
  ASSERT_TRUE(far_->migrate_to_device(range(0, 1)));
  ASSERT_TRUE(one_->migrate_to_device(range(0, 1)));
  EXPECT_EQ(0u, mapped_pages(*far_, 1));
  EXPECT_EQ(0u, mapped_pages(*one_, 1));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 0));
  EXPECT_FALSE(host::is_absent(at(0)));
}

TEST_P(Coherent, OtherMirrorsForgetAndFaultOnce) {
  EXPECT_EQ(3, read_page(*far_, 2));
  ASSERT_TRUE(near_->migrate_to_device(range()));
  u64 faults = 0;
  EXPECT_EQ(3, read_page(*far_, 2, &faults));
  EXPECT_EQ(1u, faults);
  EXPECT_EQ(Where::kResidentHere, where(*near_, 2)) << "it was only read";
}

TEST_P(Coherent, WhatIsDiscardedIsTheDevicesNoMore) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 4)));
  discard(1, 1);
  EXPECT_EQ(0, page(1)[0]);
  fill(1, 50);
  EXPECT_EQ(Where::kSystem, where(*near_, 1));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 2));
}

// A change that may not wait takes what is behind its addresses like any other.
TEST_P(Coherent, WhatGoesInAChangeThatMayNotWaitIsTheDevicesNoMore) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 2)));
  {
    const host::InvalidateSection section({range(0, 1), host::EventKind::kClear, nullptr, false});
    ASSERT_TRUE(section.begun()) << "nobody is busy";
    ASSERT_EQ(0, ::madvise(page(0), kPageSize, MADV_DONTNEED));
  }
  fill(0, 50);
  EXPECT_EQ(Where::kSystem, where(*near_, 0));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 1));
}

TEST_P(Coherent, AnUnmapThatNobodyAnnouncedIsFoundByTheNextLook) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 1)));
  ASSERT_EQ(0, ::madvise(page(0), kPageSize, MADV_DONTNEED));
  EXPECT_EQ(Where::kNothing, where(*near_, 0));
  fill(0, 1);
  EXPECT_EQ(Where::kSystem, where(*near_, 0));
}

TEST_P(Coherent, RightsThatAreLostLeaveItResident) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 1)));
  protect(PROT_READ, 0, 1);
  EXPECT_EQ(Where::kResidentHere, where(*near_, 0));
  EXPECT_FALSE(view(*near_, 0).writable);
  EXPECT_EQ(EPERM, write_page(*near_, 0, 9));
  protect(PROT_READ | PROT_WRITE, 0, 1);
}

TEST_P(Coherent, ExclusiveAccessEndsWithThePageStillThere) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 1)));
  ASSERT_TRUE(far_->make_exclusive(range(0, 1)));
  EXPECT_EQ(Where::kNothing, where(*near_, 0));
  EXPECT_EQ(1, page(0)[0]);
  EXPECT_FALSE(far_->has_exclusive(range(0, 1)));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 0));
}

TEST_P(Coherent, ALongTermReferenceFindsItInOrdinaryMemory) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 2)));
  EXPECT_EQ(1u, mirror::leave_device_memory(range(0, 1)));
  EXPECT_EQ(Where::kSystem, where(*near_, 0));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 1));
  EXPECT_EQ(1, page(0)[0]);
}

TEST_P(Coherent, ReleaseAndCloseEvictTheDevice) {
  ASSERT_TRUE(near_->migrate_to_device(range()));
  near_->release_device();
  EXPECT_EQ(Where::kSystem, where(*near_, 0));
  ASSERT_TRUE(near_->migrate_to_device(range()));
  near_.reset();
  EXPECT_EQ(Where::kSystem, where(*far_, 0));
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(i + 1, page(i)[5]);
}

TEST_P(Coherent, WhatCannotMoveIsGivenUpByAReleaseAllTheSame) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 2)));
  protect(PROT_NONE, 0, 1);
  near_->release_device();
  protect(PROT_READ | PROT_WRITE, 0, 1);
  EXPECT_EQ(Where::kSystem, where(*near_, 0));
  EXPECT_EQ(Where::kSystem, where(*near_, 1));
  EXPECT_EQ(1, page(0)[0]);
}

TEST_P(Coherent, AForkLeavesNothingResident) {
  ASSERT_TRUE(near_->migrate_to_device(range(0, 4)));
  mirror::before_fork();
  std::thread([&] { EXPECT_TRUE(near_->migrate_to_device(range(8, 1))); }).join();
  EXPECT_EQ(Where::kSystem, where(*near_, 8)) << "none becomes resident from now on";
  host::owners_before_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    page(0)[0] = 200;
    ::_exit(page(1)[0] == 2 ? 0 : 1);
  }
  host::owners_after_fork_parent();
  mirror::after_fork_parent();
  int status = 0;
  ASSERT_EQ(child, ::waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  EXPECT_EQ(Where::kSystem, where(*near_, 1));
  EXPECT_EQ(1, page(0)[0]);
  ASSERT_TRUE(near_->migrate_to_device(range(0, 4)));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 1));
}

TEST_P(Coherent, AForkThatAHandlerJumpedOutOfIsOver) {
  mirror::before_fork();  // and a handler of the client's left it
  ASSERT_TRUE(near_->migrate_to_device(range(0, 4)));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 1)) << "by the thread itself";
  std::thread([] { mirror::before_fork(); }).join();
  ASSERT_TRUE(near_->migrate_to_device(range(4, 4)));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 5)) << "by a thread that ended in the middle of it";
}

TEST_P(Coherent, WhatTheKernelRefusesIsRefused) {
  protect(PROT_NONE, 3, 1);
  const auto moved = near_->migrate_to_device(range(0, 5));
  ASSERT_FALSE(moved);
  EXPECT_EQ(EINVAL, to_int(moved.error()));
  EXPECT_EQ(Where::kResidentHere, where(*near_, 0)) << "what came before the refusal has moved";
  const auto back = near_->migrate_to_system(range(0, 5));
  ASSERT_FALSE(back);
  EXPECT_EQ(EINVAL, to_int(back.error()));
  EXPECT_EQ(Where::kSystem, where(*near_, 0));
  protect(PROT_READ | PROT_WRITE, 3, 1);
}

TEST_P(Coherent, EveryAllocationMayFailOnce) {
  for (u64 nth = 1; nth < 40; ++nth) {
    failpoint::arm(nullptr, nth);
    static_cast<void>(near_->migrate_to_device(range(0, 8)));
    static_cast<void>(near_->migrate_to_system(range(0, 4)));
    failpoint::disarm();
    for (size_t i = 0; i < 8; ++i) ASSERT_EQ(i + 1, page(i)[7]) << "allocation " << nth;
  }
}

// A page that becomes resident in the course of a change is the change's.
TEST_P(Coherent, NothingIsResidentThatWasDiscardedOnItsWay) {
  std::atomic<bool> stop{false};
  std::thread discarder([&] {
    while (!stop) {
      discard(0, 8);
      std::this_thread::yield();
    }
  });
  for (int round = 0; round < 300; ++round) {
    ASSERT_TRUE(near_->migrate_to_device(range(0, 8)));
    static_cast<void>(near_->migrate_to_system(range(0, 4)));
  }
  stop = true;
  discarder.join();
  discard(0, 8);
  mirror::PageView views[8];
  ASSERT_TRUE(near_->snapshot(at(0), 8, views));
  for (const auto& view : views) EXPECT_EQ(Where::kNothing, view.where);
  for (size_t i = 0; i < 8; ++i) fill(i, 1);
  ASSERT_TRUE(near_->snapshot(at(0), 8, views));
  for (const auto& view : views) EXPECT_EQ(Where::kSystem, view.where);
}

TEST_P(Coherent, NoStoreIsLostWhileAPageMoves) {
  auto* counter = reinterpret_cast<std::atomic<u64>*>(page(0));
  *counter = 0;
  std::atomic<bool> stop{false};
  u64 sum = 0;
  std::thread writer([&] {
    while (!stop) {
      counter->fetch_add(1, std::memory_order_relaxed);  // docs/checks.md: the thread sanitizer
      ++sum;
    }
  });
  for (int round = 0; round < 200; ++round) {
    ASSERT_TRUE(near_->migrate_to_device(range(0, 2)));
    ASSERT_TRUE(near_->migrate_to_system(range(0, 2)));
  }
  stop = true;
  writer.join();
  EXPECT_EQ(sum, counter->load());
}

}  // namespace
}  // namespace stagetwo
