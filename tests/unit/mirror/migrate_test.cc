// SPDX-License-Identifier: Apache-2.0
// Pages that go to a device and come back.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "host/page_owner.h"
#include "host/userfault.h"
#include "tests/support/counting_clients.h"
#include "tests/unit/mirror/mirror_fixture.h"

namespace stagetwo {
namespace {

// With the kernel's help and where it is denied: the promises are the same.
class Migration : public test::MirrorTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    host::userfault::debug_deny(GetParam());
    MirrorTest::SetUp();
  }
  void TearDown() override {
    MirrorTest::TearDown();
    host::userfault::debug_deny(false);
  }
  u64 read_back(mirror::Mirror& device, size_t pages = kPages) {
    mirror::Transfer done;
    std::vector<u8> bytes(pages * kPageSize);
    static_cast<void>(device.read_mapped(at(0), pages, bytes.data(), &done));
    for (size_t i = 0; i < done.pages; ++i) EXPECT_EQ(i + 1, bytes[i * kPageSize + 1]);
    return done.pages;
  }
};
std::string hiding_name(const testing::TestParamInfo<bool>& denied) {
  return denied.param ? "Protection" : "Userfault";
}
INSTANTIATE_TEST_SUITE_P(Hiding, Migration, testing::Bool(), hiding_name);

TEST_P(Migration, TheDeviceHasThePagesAndTheProcessNot) {
  ASSERT_TRUE(one_->migrate_to_device(range()));
  EXPECT_TRUE(host::is_absent(at(42)));
  EXPECT_EQ(kPages, read_back(*one_));
}

TEST_P(Migration, ATouchBringsBackWhatTheDeviceWrote) {
  ASSERT_TRUE(one_->migrate_to_device(range()));
  u64 faults = 0;
  EXPECT_EQ(0, write_page(*one_, 5, 222, &faults));
  EXPECT_EQ(0u, faults) << "it is the device's own memory";
  EXPECT_EQ(222, page(5)[0]);
  EXPECT_FALSE(host::is_absent(at(5)));
  EXPECT_EQ(222, read_page(*one_, 5, &faults));
  EXPECT_EQ(1u, faults);
}

TEST_P(Migration, APageOnTheDeviceStaysThereWhenItIsMigratedAgain) {
  ASSERT_TRUE(one_->migrate_to_device(range()));
  for (size_t i = 0; i < kPages / 2; ++i) ASSERT_EQ(i + 1, page(i)[3]);
  ASSERT_TRUE(one_->migrate_to_device(range()));
  EXPECT_EQ(kPages, read_back(*one_));
}

TEST_P(Migration, TheOtherDeviceFaultsItBackOnce) {
  EXPECT_EQ(3, read_page(*two_, 2));
  ASSERT_TRUE(one_->migrate_to_device(range()));
  u64 faults = 0;
  EXPECT_EQ(3, read_page(*two_, 2, &faults));
  EXPECT_EQ(1u, faults);
  EXPECT_FALSE(host::is_absent(at(2)));
}

TEST_P(Migration, APageOnOneDeviceDoesNotGoToTheOther) {
  ASSERT_TRUE(one_->migrate_to_device(range(0, 1)));
  ASSERT_TRUE(two_->migrate_to_device(range(0, 1)));
  EXPECT_EQ(0u, read_back(*two_, 1));
  // The attempt made the first device forget where its page is, and nothing else.
  EXPECT_TRUE(host::is_absent(at(0)));
  EXPECT_EQ(1, read_page(*one_, 0));
  EXPECT_TRUE(host::is_absent(at(0)));
}

TEST_P(Migration, BackToTheSystemCountsThePagesThatMoved) {
  ASSERT_TRUE(one_->migrate_to_device(range(0, 10)));
  EXPECT_EQ(1, page(0)[0]);
  const auto moved = one_->migrate_to_system(range());
  ASSERT_TRUE(moved);
  EXPECT_EQ(9u, *moved);
  EXPECT_FALSE(host::is_absent(at(9)));
}

TEST_P(Migration, ReleaseAndCloseEvictTheDevice) {
  ASSERT_TRUE(one_->migrate_to_device(range()));
  one_->release_device();
  EXPECT_FALSE(host::is_absent(at(0)));
  ASSERT_TRUE(one_->migrate_to_device(range()));
  one_.reset();
  EXPECT_FALSE(host::is_absent(at(0)));
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(i + 1, page(i)[5]);
}

TEST_P(Migration, UnmappedPagesAreTheDevicesNoMore) {
  ASSERT_TRUE(one_->migrate_to_device(range()));
  discard();
  EXPECT_EQ(0u, read_back(*one_));
  EXPECT_EQ(0, page(0)[0]);
}

TEST_P(Migration, WhatTheKernelRefusesIsRefused) {
  protect(PROT_NONE, 3, 1);
  const auto moved = one_->migrate_to_device(range(0, 5));
  ASSERT_FALSE(moved);
  EXPECT_EQ(EINVAL, to_int(moved.error()));
  EXPECT_TRUE(host::is_absent(at(0))) << "what came before the refusal has moved";
  protect(PROT_READ | PROT_WRITE, 3, 1);
}

TEST_P(Migration, ExclusivePagesAreRevokedByTheFirstTouch) {
  ASSERT_TRUE(one_->make_exclusive(range()));
  EXPECT_TRUE(one_->has_exclusive(range()));
  EXPECT_EQ(kPages, read_back(*one_));
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(i + 1, page(i)[0]++);
  EXPECT_FALSE(one_->has_exclusive(range()));
  EXPECT_EQ(2, page(0)[0]);
}

TEST_P(Migration, AWriteOfTheDeviceTurnsAnExclusivePageIntoASharedOne) {
  ASSERT_TRUE(one_->make_exclusive(range(0, 2)));
  u64 faults = 0;
  EXPECT_EQ(0, write_page(*one_, 0, 44, &faults));
  EXPECT_EQ(1u, faults);
  EXPECT_EQ(44, page(0)[0]);
  EXPECT_TRUE(one_->has_exclusive(range(0, 2))) << "the other one still is";
}

// An entry that leads to the process's page goes with the page: a device that followed it under its
// lock would wait for a touch that waits for the lock.
TEST_P(Migration, AnEntryOfThePageThatMovedIsGoneBeforeTheMigrationEnds) {
  EXPECT_EQ(1, read_page(*one_, 0));
  test::AtTheEnd reader(*one_, [this] { read_back(*one_, 1); });
  ASSERT_TRUE(one_->migrate_to_device(range(0, 2)));
  EXPECT_EQ(1u, reader.ends);
  EXPECT_TRUE(host::is_absent(at(0)));
  EXPECT_EQ(1, page(0)[0]);
}

TEST_P(Migration, RightsLostBeforeTheDeviceMapsItsPagesAreNotTheDevices) {
  test::AtTheEnd protector(*one_, [this] {
    std::thread([this] {
      protect(PROT_NONE, 0, 1);
      protect(PROT_READ, 1, 1);
    }).join();
  });
  ASSERT_TRUE(one_->migrate_to_device(range(0, 2)));
  int error = 0;
  read_page(*one_, 0, nullptr, &error);
  EXPECT_EQ(EFAULT, error);
  EXPECT_EQ(2, read_page(*one_, 1));
  EXPECT_NE(0, write_page(*one_, 1, 9));
  protect(PROT_READ | PROT_WRITE, 0, 2);
  EXPECT_EQ(1, page(0)[0]);
  EXPECT_EQ(2, page(1)[0]);
}

// A huge page of the process is split, as the kernel does for a device that takes small ones.
TEST_P(Migration, AHugePageIsSplitAndItsOtherPagesStay) {
  constexpr u64 kHuge = u64{2} << 20;
  void* reserve =
      ::mmap(nullptr, 2 * kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(MAP_FAILED, reserve);
  const u64 start = (reinterpret_cast<u64>(reserve) + kHuge - 1) & ~(kHuge - 1);
  auto* bytes = reinterpret_cast<u8*>(start);
  ::madvise(bytes, kHuge, MADV_HUGEPAGE);
  for (u64 i = 0; i < kHuge; i += kPageSize) bytes[i] = static_cast<u8>(i / kPageSize);
  const auto view = [&](u64 page) {
    mirror::PageView out;
    EXPECT_TRUE(one_->snapshot(Hva(start + page * kPageSize), 1, &out));
    return out;
  };
  if (view(100).level != 2) {
    ::munmap(reserve, 2 * kHuge);
    GTEST_SKIP() << "the machine gives no huge page now";
  }
  ASSERT_TRUE(one_->migrate_to_device(HvaRange(Hva(start + 100 * kPageSize), kPageSize)));
  EXPECT_EQ(mirror::PageView::Where::kThisDevice, view(100).where);
  EXPECT_EQ(mirror::PageView::Where::kSystem, view(101).where);
  EXPECT_EQ(1u, view(101).level);
  ASSERT_TRUE(one_->migrate_to_device(HvaRange(Hva(start), kHuge)));
  for (const u64 page : {u64{0}, u64{99}, u64{101}, u64{511}}) {
    EXPECT_EQ(mirror::PageView::Where::kThisDevice, view(page).where) << page;
  }
  for (u64 i = 0; i < kHuge; i += kPageSize) {
    ASSERT_EQ(static_cast<u8>(i / kPageSize), bytes[i]) << i / kPageSize;
  }
  host::change(reinterpret_cast<u64>(reserve), 2 * kHuge, host::EventKind::kUnmap,
               [&] { return ::munmap(reserve, 2 * kHuge); });
}

TEST_P(Migration, NothingIsLostBetweenTwoDevicesAndTheProcess) {
  constexpr size_t kShared = 4;
  std::atomic<bool> stop{false};
  test::CountingClients writer({reinterpret_cast<u64*>(page(0))});
  std::thread other([&] {
    while (!stop) {
      ASSERT_TRUE(two_->migrate_to_device(range(0, kShared)));
      static_cast<void>(two_->make_exclusive(range(0, kShared)));
    }
  });
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  while (std::chrono::steady_clock::now() < end) {
    ASSERT_TRUE(one_->migrate_to_device(range(0, kShared)));
    EXPECT_EQ(4, read_page(*one_, 3));
    std::this_thread::yield();
  }
  stop = true;
  other.join();
  writer.stop();
  EXPECT_EQ(0u, writer.wrong());
  EXPECT_GT(writer.added(), 0u);
}

}  // namespace
}  // namespace stagetwo
