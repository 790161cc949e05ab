// SPDX-License-Identifier: Apache-2.0
// A child of fork takes over what its parent has mapped of files.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "base/failpoint.h"
#include "host/process.h"
#include "iommu/file_map.h"
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kStart = kApertureStart;

// Pages of a file: few, whose lists are in the page set, and many.
class TakeOverTest : public IommufdWorld, public testing::WithParamInterface<u64> {
 protected:
  void SetUp() override {
    IommufdWorld::SetUp();
    file_ = ::memfd_create("take-over", MFD_CLOEXEC);
    ASSERT_EQ(::ftruncate(file_, static_cast<off_t>(bytes())), 0);
    bytes_ =
        static_cast<u8*>(::mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0));
    for (u64 at = 0; at < bytes(); at += kPageSize)
      bytes_[at] = static_cast<u8>(7 + at / kPageSize);
    ioas_ = make_ioas();
    device_ = attach_device(ioas_);
    Locked locked(*context_);
    locked.root().process_accounting = GetParam() > 2;
    (*locked.find<Hwpt>(device_.hwpt))->domain.tracking = true;
    MapRequest request{true, kStart, bytes(), kReadWrite};
    ASSERT_EQ(error_of(map_file_range(locked, ioas(locked), file_, 0, &request)), 0);
    ASSERT_TRUE(set_dirty(locked.arena(), domain(locked), kStart));
  }
  void TearDown() override {
    EXPECT_EQ(unmap_all(ioas_), 0);
    EXPECT_EQ(destroy(device_.test_device), 0);
    EXPECT_EQ(destroy(ioas_), 0);
    ::munmap(bytes_, bytes());
    ::close(file_);
    IommufdWorld::TearDown();
  }
  static u64 bytes() { return GetParam() * kPageSize; }
  Ioas& ioas(Locked& locked) const { return **locked.find<Ioas>(ioas_); }
  Domain& domain(Locked& locked) const { return (*locked.find<Hwpt>(device_.hwpt))->domain; }
  // 0, or what went wrong in the child.
  template <typename F>
  static int in_child(F&& body) {
    const pid_t child = ::fork();
    if (child == 0) {
      host::after_fork_child();
      ::_exit(body());
    }
    int status = 0;
    EXPECT_EQ(child, ::waitpid(child, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  int take_over() {
    Locked locked(*context_);
    return error_of(take_over_files(locked));
  }
  // As a process that is no child was never given it.
  void drop_inherited() {
    Locked locked(*context_);
    const PageSet* const set = locked.areas(ioas(locked)).first(kStart, kStart)->pages;
    ::munmap(reinterpret_cast<void*>(set->start.get()), bytes());
  }
  // Does the device find this process's frames, each a page of the file's?
  int look_at_tables() {
    Locked locked(*context_);
    for (u64 at = 0; at < bytes(); at += kPageSize) {
      const auto found = translate(locked.arena(), domain(locked), kStart + at);
      u8 byte = 0;
      if (!found || !locked.reaches(found->address)) return 10;
      if (!locked.touch({.address = found->address}, 1, &byte, nullptr)) return 11;
      if (byte != 7 + at / kPageSize) return 12;
    }
    const auto written =
        next_dirty(locked.arena(), domain(locked), kStart, kStart + bytes(), false);
    return written && written->iova == kStart ? 0 : 13;
  }
  int file_ = -1;
  u8* bytes_ = nullptr;
  u32 ioas_ = 0;
  Attached device_;
};

TEST_P(TakeOverTest, OnesOwnIsItsOwn) {
  EXPECT_EQ(take_over(), 0);
  EXPECT_EQ(host::pin_use().pages, GetParam());
}

TEST_P(TakeOverTest, AChildPinsAndIsCharged) {
  const u64 process_before = host::pins_charged().process;
  EXPECT_EQ(in_child([&] {
              if (host::pin_use().pins != 0) return 1;
              if (take_over() != 0) return 2;
              if (host::pin_use().pins != GetParam()) return 3;
              if (host::pins_charged().process != process_before) return 4;
              return look_at_tables();
            }),
            0);
  {
    const Locked locked(*context_);  // whoever comes here unpins what others have let go of
  }
  EXPECT_EQ(host::pin_use().pages, 0u);
  EXPECT_EQ(host::pins_charged().process, 0u);
}

TEST_P(TakeOverTest, WhatIsNoFilesIsInvalidAndNothingMoves) {
  const test::GuardedPages memory(1);
  ASSERT_EQ(map_at(ioas_, memory.address(), kPageSize, kStart + bytes()), 0);
  EXPECT_EQ(in_child([&] { return take_over() == EINVAL && host::pin_use().pages == 0 ? 0 : 1; }),
            0);
  EXPECT_EQ(host::pin_use().pages, GetParam() + 1);
}

TEST_P(TakeOverTest, OneThatHasItNotMappedMapsIt) {
  for (const bool has_file : {true, false}) {
    EXPECT_EQ(in_child([&] {
                drop_inherited();
                if (!has_file) ::close(file_);  // its parent has
                if (const int error = take_over(); error != 0) return error;
                if (host::pin_use().pins != GetParam()) return 3;
                return look_at_tables();
              }),
              0);
    EXPECT_EQ(take_over(), 0) << "and back, from one that is gone";
    EXPECT_EQ(look_at_tables(), 0);
  }
}

TEST_P(TakeOverTest, OneThatHasItMappedNeedsNoDescriptor) {
  ::close(std::exchange(file_, -1));
  EXPECT_EQ(in_child([&] {
              drop_inherited();
              if (::mprotect(bytes_, bytes(), PROT_READ) != 0)
                return 1;  // its own rights are no matter
              if (const int error = take_over(); error != 0) return error;
              ::munmap(bytes_, bytes());
              if (host::pin_use().pins != GetParam()) return 3;
              return look_at_tables();
            }),
            0);
  EXPECT_EQ(take_over(), 0) << "and back, from one that is gone";
  EXPECT_EQ(look_at_tables(), 0);
}

TEST_P(TakeOverTest, AFileThatNobodyHasIsRefused) {
  ::close(std::exchange(file_, -1));
  EXPECT_EQ(in_child([&] {
              drop_inherited();
              ::munmap(bytes_, bytes());
              return take_over() == EOPNOTSUPP && host::pin_use().pins == 0 ? 0 : 1;
            }),
            0);
}

TEST_P(TakeOverTest, WhatIsRefusedMemoryLeavesAllAsItWas) {
  EXPECT_EQ(in_child([&] {
              for (u64 n = 1;; ++n) {
                failpoint::arm(nullptr, n);
                const int error = take_over();
                const bool fired = failpoint::failed() != 0;
                failpoint::disarm();
                if (error == 0) return fired && n == 1 ? 20 : look_at_tables();
                if (!fired || host::pin_use().pins != 0) return 21;
                Locked locked(*context_);
                const auto found = translate(locked.arena(), domain(locked), kStart);
                if (!found || locked.reaches(found->address)) return 22;
              }
            }),
            0);
}

INSTANTIATE_TEST_SUITE_P(FewAndMany, TakeOverTest, testing::Values(u64{1}, u64{5}));

}  // namespace
}  // namespace stagetwo::iommu
