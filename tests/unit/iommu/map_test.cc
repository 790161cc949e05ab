// SPDX-License-Identifier: Apache-2.0
// A map whose page is missing, and what others are answered meanwhile: the client's own handler of
// a userfaultfd asks the same iommufd before it fills the page.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <functional>
#include <thread>
#include <utility>

#include "host/process.h"
#include "iommu/hardware_queue.h"
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

class MapMeanwhile : public IommufdWorld {
 protected:
  static constexpr u64 kPages = 3;
  void SetUp() override {
    IommufdWorld::SetUp();
    uffd_ = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    if (uffd_ < 0) uffd_ = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1));
    if (uffd_ < 0) GTEST_SKIP() << "no userfaultfd: " << std::strerror(errno);
    uffdio_api api{};
    api.api = UFFD_API;
    ASSERT_EQ(::ioctl(uffd_, UFFDIO_API, &api), 0);
    uffdio_register watch{};
    watch.range = {memory_.address(), kPages * kPageSize};
    watch.mode = UFFDIO_REGISTER_MODE_MISSING;
    ASSERT_EQ(::ioctl(uffd_, UFFDIO_REGISTER, &watch), 0);
    ioas_ = make_ioas();
    device_ = attach_device(ioas_);
    ASSERT_EQ(device_.error, 0);
  }
  void TearDown() override {
    if (uffd_ >= 0) {
      static_cast<void>(unmap_all(ioas_));
      EXPECT_EQ(destroy(device_.test_device), 0);
      EXPECT_EQ(destroy(ioas_), 0);
      ::close(uffd_);
    }
    IommufdWorld::TearDown();
  }
  // Maps all of it; `meanwhile` is called while the first page is waited for. `fills`: then every
  // page comes, else the right to the memory goes.
  int map_with(const std::function<void()>& meanwhile, bool fills = true) {
    std::thread handler([&] {
      bool first = true;
      for (u64 left = kPages; left != 0; --left) {
        pollfd wait{uffd_, POLLIN, 0};
        uffd_msg message{};
        ASSERT_EQ(::poll(&wait, 1, 10'000), 1) << "nobody waits for the page";
        ASSERT_EQ(::read(uffd_, &message, sizeof(message)), static_cast<ssize_t>(sizeof(message)));
        if (std::exchange(first, false)) meanwhile();
        if (!fills) {
          ASSERT_EQ(::mprotect(memory_.pointer(), kPages * kPageSize, PROT_NONE), 0);
          uffdio_range range = {memory_.address(), kPages * kPageSize};
          ASSERT_EQ(::ioctl(uffd_, UFFDIO_UNREGISTER, &range), 0);  // who waits looks again
          return;
        }
        static u8 page[kPageSize] = {0x5a};
        uffdio_copy copy{};
        copy.dst = message.arg.pagefault.address & kPageMask;
        copy.src = reinterpret_cast<u64>(page);
        copy.len = kPageSize;
        static_cast<void>(::ioctl(uffd_, UFFDIO_COPY, &copy));
      }
    });
    const int error = map_at(ioas_, memory_.address(), kPages * kPageSize, kIova);
    handler.join();
    return error;
  }
  static constexpr u64 kIova = kApertureStart + 16 * kPageSize;
  // Never used again: nobody tells the engine that a test's memory goes.
  static test::GuardedPages& kept_pages() {
    static auto& all = *new std::deque<test::GuardedPages>;
    return all.emplace_back(kPages);
  }
  test::GuardedPages& memory_ = kept_pages();
  int uffd_ = -1;
  u32 ioas_ = 0;
  Attached device_;
};

TEST_F(MapMeanwhile, OthersAreAnsweredAsTheKernelAnswersThem) {
  const test::GuardedPages other(4);
  const u32 to = make_ioas();
  const int error = map_with([&] {
    const u32 fresh = make_ioas();
    EXPECT_NE(fresh, 0u);
    EXPECT_EQ(destroy(fresh), 0);
    EXPECT_EQ(map_at(to, other.address(), kPageSize, kIova), 0) << "another IOAS";
    EXPECT_EQ(map_at(ioas_, other.address(), kPageSize, kIova + kPageSize), EEXIST);
    EXPECT_EQ(map_at(ioas_, other.address(), kPageSize, kIova + kPages * kPageSize), 0);
    EXPECT_EQ(unmap(ioas_, kIova, kPages * kPageSize), EBUSY);
    EXPECT_EQ(unmap_all(ioas_), EBUSY);
    EXPECT_EQ(destroy(ioas_), EBUSY);
    Locked locked(*context_);
    Ioas& ioas = **locked.find<Ioas>(ioas_);
    MapRequest request{true, kIova + 64 * kPageSize, kPageSize, kReadWrite};
    EXPECT_EQ(error_of(locked.copy(ioas, kIova, to, &request)), ENOENT);
    EXPECT_EQ(error_of(locked.cut(ioas, kIova + kPageSize - 1)), EBUSY);
    Access* const access = *locked.make_access(&ioas, true, nullptr);
    u64 frame = 0;
    EXPECT_EQ(error_of(locked.pin(*access, kIova, kPageSize, false, &frame)), ENOENT);
    EXPECT_EQ(error_of(locked.transfer(*access, kIova, 8, &frame, nullptr)), ENOENT);
    locked.destroy_access(access);
  });
  EXPECT_EQ(error, 0);
  for (u64 i = 0; i < kPages; ++i) {
    EXPECT_EQ(walk(device_.hwpt, kIova + i * kPageSize),
              frame_address(memory_.address() + i * kPageSize));
    EXPECT_EQ(pins_at(memory_.address() + i * kPageSize), 1u);
  }
  EXPECT_EQ(*memory_.bytes_at(0), 0x5a);
  ASSERT_EQ(unmap_all(to), 0);
  ASSERT_EQ(destroy(to), 0);
}

TEST_F(MapMeanwhile, ADomainThatComesMeanwhileHasIt) {
  Attached late;
  EXPECT_EQ(map_with([&] { late = attach_device(ioas_, true, true); }), 0);
  ASSERT_EQ(late.error, 0);
  for (const u32 hwpt : {device_.hwpt, late.hwpt}) {
    EXPECT_EQ(walk(hwpt, kIova), frame_address(memory_.address()));
  }
  ASSERT_EQ(unmap_all(ioas_), 0);
  ASSERT_EQ(destroy(late.test_device), 0);
}

TEST_F(MapMeanwhile, WithoutADomainAtItsEndNothingIsPinned) {
  EXPECT_EQ(map_with([&] { ASSERT_EQ(destroy(device_.test_device), 0); }), 0);
  EXPECT_EQ(host::pin_use().pages, 0u);
  device_ = attach_device(ioas_);
  ASSERT_EQ(device_.error, 0);
  EXPECT_EQ(walk(device_.hwpt, kIova), frame_address(memory_.address()));
}

TEST_F(MapMeanwhile, OneThatFailsLeavesNothing) {
  u64 unused = 0;
  EXPECT_EQ(map_with([] {}, false), EFAULT);
  EXPECT_EQ(error_of(context_->unmap(ioas_, kIova, kIova + kPageSize - 1, &unused)), 0);
  EXPECT_EQ(unused, 0u);
}

// A process that dies while it waits: its area is nobody's.
TEST_F(MapMeanwhile, OfAProcessThatDiesIsTakenAway) {
  const pid_t child = ::fork();
  if (child == 0) {
    host::after_fork_child();
    // Watched by nobody who ever answers.
    const test::GuardedPages own(1);
    int watch = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
    if (watch < 0) watch = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | 1));
    uffdio_api api{};
    api.api = UFFD_API;
    uffdio_register range{};
    range.range = {own.address(), kPageSize};
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(watch, UFFDIO_API, &api) != 0 || ::ioctl(watch, UFFDIO_REGISTER, &range) != 0) {
      ::_exit(1);
    }
    static_cast<void>(map_at(ioas_, own.address(), kPageSize, kIova));
    ::_exit(2);
  }
  while (unmap(ioas_, kIova, kPageSize) != EBUSY) ASSERT_EQ(::waitpid(child, nullptr, WNOHANG), 0);
  EXPECT_EQ(destroy(ioas_), EBUSY);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  const test::GuardedPages other(1);
  EXPECT_EQ(map_at(ioas_, other.address(), kPageSize, kIova), 0);
}

}  // namespace
}  // namespace stagetwo::iommu
