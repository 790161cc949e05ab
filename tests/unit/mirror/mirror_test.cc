// SPDX-License-Identifier: Apache-2.0
// The mirror's table: faults, rights, and what the bell makes it forget.
#include "mirror/mirror.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/support/mirror_access.h"
#include "tests/support/notifier_contract.h"
#include "tests/unit/mirror/mirror_fixture.h"

namespace stagetwo {
namespace {

class MirrorFault : public test::MirrorTest {};

TEST_F(MirrorFault, ReadsTheWholeRangeWithOneFault) {
  std::vector<u8> bytes(kPages * kPageSize);
  mirror::Transfer done;
  ASSERT_TRUE(one_->read(at(0), kPages, bytes.data(), &done));
  EXPECT_EQ(kPages, done.pages);
  EXPECT_EQ(1u, done.faults);
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(i + 1, bytes[i * kPageSize + 17]);
}

TEST_F(MirrorFault, SeesWhatTheProcessWritesWithoutAnotherFault) {
  u64 faults = 0;
  EXPECT_EQ(1, read_page(*one_, 0));
  fill(0, 55);
  EXPECT_EQ(55, read_page(*one_, 0, &faults));
  EXPECT_EQ(0u, faults);
}

TEST_F(MirrorFault, WritesReachTheProcess) {
  u64 faults = 0;
  EXPECT_EQ(0, write_page(*one_, 3, 200, &faults));
  EXPECT_EQ(1u, faults);
  EXPECT_EQ(200, page(3)[4095]);
  // A page the process may store to as it is needs no second fault.
  EXPECT_EQ(5, read_page(*one_, 4));
  EXPECT_EQ(0, write_page(*one_, 4, 201, &faults));
  EXPECT_EQ(0u, faults);
}

TEST_F(MirrorFault, RightsAreTheMappings) {
  int error = 0;
  protect(PROT_NONE, 0, 1);
  read_page(*one_, 0, nullptr, &error);
  EXPECT_EQ(EFAULT, error);
  protect(PROT_READ, 0, 1);
  EXPECT_EQ(1, read_page(*one_, 0));
  EXPECT_EQ(EPERM, write_page(*one_, 0, 9));
  EXPECT_EQ(1, page(0)[0]);
  read_page(*one_, kPages, nullptr, &error);  // a hole
  EXPECT_EQ(EFAULT, error);
}

TEST_F(MirrorFault, LosingRightsReachesAnEntryThatIsThere) {
  EXPECT_EQ(0, write_page(*one_, 0, 9));
  protect(PROT_READ);
  EXPECT_EQ(EPERM, write_page(*one_, 0, 10));
  EXPECT_EQ(9, page(0)[0]);
}

TEST_F(MirrorFault, DiscardedPagesAreFaultedAgain) {
  u64 faults = 0;
  EXPECT_EQ(8, read_page(*one_, 7));
  discard(7, 1);
  EXPECT_EQ(0, read_page(*one_, 7, &faults));
  EXPECT_EQ(1u, faults);
  EXPECT_EQ(9, read_page(*one_, 8));
}

TEST_F(MirrorFault, AnAddressThatIsMappedAnewIsNotTheOldPage) {
  void* mine =
      ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int round = 1; round < 20; ++round) {
    std::memset(mine, round, kPageSize);
    std::vector<u8> bytes(kPageSize);
    mirror::Transfer done;
    ASSERT_TRUE(one_->read(Hva(reinterpret_cast<u64>(mine)), 1, bytes.data(), &done));
    EXPECT_EQ(round, bytes[9]);
    EXPECT_EQ(1u, done.faults);
    host::change(reinterpret_cast<u64>(mine), kPageSize, host::EventKind::kUnmap,
                 [&] { return ::munmap(mine, kPageSize); });
    mine = ::mmap(mine, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                  -1, 0);
  }
  ::munmap(mine, kPageSize);
}

TEST_F(MirrorFault, AnUnmapThatNobodyAnnouncedIsEfaultAndNotASignal) {
  EXPECT_EQ(1, read_page(*one_, 0));
  ASSERT_EQ(0, ::mprotect(page(0), kPageSize, PROT_NONE));
  int error = 0;
  read_page(*one_, 0, nullptr, &error);
  EXPECT_EQ(EFAULT, error);
  ASSERT_EQ(0, ::mprotect(page(0), kPageSize, PROT_READ | PROT_WRITE));
}

// A page that is unmapped under a reading device: old bytes or EFAULT, never anything else.
TEST_F(MirrorFault, ReadingWhileTheRangeIsDiscardedGivesOldBytesOrZeros) {
  std::atomic<bool> stop{false};
  std::thread discarder([&] {
    while (!stop) {
      discard(20, 40);
      for (size_t i = 20; i < 60; ++i) fill(i, i + 1);
    }
  });
  std::vector<u8> bytes(kPages * kPageSize);
  for (int round = 0; round < 300; ++round) {
    mirror::Transfer done;
    ASSERT_TRUE(one_->read(at(0), kPages, bytes.data(), &done));
    for (size_t i = 0; i < kPages; ++i) {
      const u8 byte = bytes[i * kPageSize + 100];
      ASSERT_TRUE(byte == i + 1 || (i >= 20 && i < 60 && byte == 0)) << i << ": " << int(byte);
    }
  }
  stop = true;
  discarder.join();
}

}  // namespace

namespace test {

// Of one unit; of a coherent one with its page in the device's memory.
template <unsigned kUnit>
struct MirrorSubscriber {
  MirrorSubscriber() {
    EXPECT_TRUE(host::backstop::install());
    if (mirror::is_coherent(kUnit)) {
      EXPECT_TRUE(mirror_->migrate_to_device(mine()));
    }
    EXPECT_TRUE(may_use(mine().start()));  // it listens where it has looked
  }
  HvaRange mine() { return HvaRange(Hva(memory_.address()), kPageSize); }
  // No mirror looks there.
  HvaRange foreign() {
    return HvaRange(Hva(memory_.address() + 4 * mirror::Span::kBytes), kPageSize);
  }
  bool may_use(Hva page) {
    u8 bytes[kPageSize];
    mirror::Transfer done;
    return mirror_->read(page, 1, bytes, &done).has_value();
  }
  template <typename F>
  bool use_with(Hva page, F&& between) {
    return mirror::MirrorTestAccess::fault_once(*mirror_, page, between);
  }
  bool may_use_now(Hva page) {
    return still_holds(page) || users_.can([this, page] { return use_with(page, [] {}); });
  }
  bool still_holds(Hva page) {
    u8 bytes[kPageSize];
    mirror::Transfer done;
    return mirror_->read_mapped(page, 1, bytes, &done).has_value();
  }
  template <typename F>
  void hold(Hva, F&& during) {
    mirror::MirrorTestAccess::hold(*mirror_, during);
  }
  const void* cookie() { return mirror::MirrorTestAccess::cookie(*mirror_); }
  GuardedPages memory_{2};
  Box<mirror::Mirror> mirror_ = std::move(*mirror::Mirror::open(kUnit));
  PatientUsers users_;
};
using Units = testing::Types<MirrorSubscriber<0>, MirrorSubscriber<1>, MirrorSubscriber<2>,
                             MirrorSubscriber<3>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Mirror, NotifierContract, Units);
INSTANTIATE_TYPED_TEST_SUITE_P(Mirror, NotifierContractOfTakers, Units);

}  // namespace test
}  // namespace stagetwo
