// SPDX-License-Identifier: Apache-2.0
// Page sets: counts, accounts, and sets that several processes share.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/process.h"
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

class PagesTest : public IommufdWorld {
 protected:
  void SetUp() override {
    IommufdWorld::SetUp();
    shared_ = static_cast<u8*>(
        ::mmap(nullptr, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ioas_ = make_ioas();
  }
  void TearDown() override {
    EXPECT_EQ(unmap_all(ioas_), 0);
    EXPECT_EQ(destroy(ioas_), 0);
    ::munmap(shared_, 4 * 4096);
    IommufdWorld::TearDown();
  }
  u64 shared() const { return reinterpret_cast<u64>(shared_); }
  // In a child: 0, or what went wrong there.
  template <typename F>
  pid_t in_child(F&& body) {
    const pid_t child = ::fork();
    if (child == 0) {
      host::after_fork_child();
      ::_exit(body());
    }
    return child;
  }
  static int join(pid_t child) {
    int status = 0;
    EXPECT_EQ(child, ::waitpid(child, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  int read_through(u64 iova, u8* byte) {
    Locked locked(*context_);
    const Area* const area = locked.areas(**locked.find<Ioas>(ioas_)).first(iova, iova);
    return error_of(locked.copy_pages(*area->pages, area->byte_at(iova), 1, byte, nullptr));
  }

  u8* shared_ = nullptr;
  u32 ioas_ = 0;
};

TEST_F(PagesTest, HoldsAreCounted) {
  const test::GuardedPages memory(4);
  Locked locked(*context_);
  PageSet* const set = *locked.make_page_set(memory.address() + 5, 3 * 4096, true);
  EXPECT_EQ(set->pages, 4u);
  ASSERT_TRUE(locked.hold_pages(*set, 0, 2));
  ASSERT_TRUE(locked.hold_pages(*set, 1, 3));
  EXPECT_EQ(host::pin_use().pages, 4u);
  EXPECT_EQ(host::pin_use().pins, 4u);
  locked.release_pages(*set, 0, 2);
  EXPECT_EQ(host::pin_use().pages, 3u);
  locked.release_pages(*set, 1, 3);
  EXPECT_EQ(host::pin_use().pages, 0u);
  locked.put_page_set(set);
}

TEST_F(PagesTest, AHoldThatFailsHoldsNothing) {
  const test::GuardedPages memory(4);
  ASSERT_EQ(0, ::munmap(memory.bytes_at(2 * 4096), 4096));
  Locked locked(*context_);
  PageSet* const set = *locked.make_page_set(memory.address(), 4 * 4096, true);
  ASSERT_TRUE(locked.hold_pages(*set, 0, 1));
  EXPECT_EQ(error_of(locked.hold_pages(*set, 0, 4)), EFAULT);
  EXPECT_EQ(host::pin_use().pages, 1u);
  locked.release_pages(*set, 0, 1);
  locked.put_page_set(set);
  EXPECT_EQ(error_of(locked.make_page_set(0, 0, true)), EINVAL);
}

TEST_F(PagesTest, ReadOnlyMemoryIsPinnedForReadingOnly) {
  const test::GuardedPages memory(1, PROT_READ);
  Locked locked(*context_);
  for (const bool writable : {false, true}) {
    PageSet* const set = *locked.make_page_set(memory.address(), 4096, writable);
    EXPECT_EQ(error_of(locked.hold_pages(*set, 0, 1)), writable ? EFAULT : 0);
    if (!writable) locked.release_pages(*set, 0, 1);
    locked.put_page_set(set);
  }
}

// Who has no CAP_IPC_LOCK pays for every pinned page, once, in the mode of the iommufd.
int pay_within_limit(Context& context, bool is_shared) {
  if (::syscall(SYS_setresuid, 65534, 65534, 65534) != 0) return 100;
  const rlimit limit{3 * 4096, 3 * 4096};
  if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 101;
  const test::GuardedPages memory(4);
  for (const bool process : {false, true}) {
    const auto before = host::pins_charged();
    const auto is_paid_back = [&] {
      const auto now = host::pins_charged();
      return now.user == before.user && now.process == before.process;
    };
    {
      Locked locked(context);
      locked.root().process_accounting = process;
      PageSet* const set = *locked.make_page_set(memory.address(), 4 * 4096, true);
      if (error_of(locked.hold_pages(*set, 0, 4)) != ENOMEM) return 1;
      if (host::pin_use().pages != 0) return 2;
      if (!locked.hold_pages(*set, 0, 3) || !locked.hold_pages(*set, 0, 3)) return 3;
      const auto now = host::pins_charged();
      const u64 charged = process ? now.process - before.process : now.user - before.user;
      if (charged != 3) return 4;
      if (error_of(locked.hold_pages(*set, 3, 1)) != ENOMEM) return 5;
      locked.release_pages(*set, 0, 3);
      locked.release_pages(*set, 0, 3);
      if (is_paid_back() == is_shared) return 6;
      locked.put_page_set(set);
    }
    if (!is_paid_back()) return 7;
  }
  return 0;
}
TEST_F(PagesTest, PinsAreChargedWithinTheLimit) {
  const pid_t child = in_child([&] {
    const auto own = Context::make_file("test-iommufd");
    const auto context = Context::attach(own->fd());
    return pay_within_limit(**context, false);
  });
  EXPECT_EQ(join(child), 0);
}
// Who dies in a section has let go of nothing, so it is paid back behind its end (uncharged.h),
// which is before the request returns. The kernel, too, first unpins and then charges less
// (drivers/iommu/iommufd/pages.c, update_unpinned()).
TEST_F(PagesTest, PinsOfASharedIommufdAreChargedWithinTheLimit) {
  EXPECT_EQ(join(in_child([&] { return pay_within_limit(*context_, true); })), 0);
}

TEST_F(PagesTest, AChildMapsItsOwnMemoryThroughTheSameIommufd) {
  const Attached a = attach_device(ioas_);
  shared_[5] = 77;
  EXPECT_EQ(join(in_child([&] { return map_at(ioas_, shared(), 4096, kApertureStart); })), 0);
  // It is gone; its pins are not, and the memory is this process's, too.
  EXPECT_NE(walk(a.hwpt, kApertureStart), kNowhere);
  u8 byte = 0;
  EXPECT_EQ(read_through(kApertureStart + 5, &byte), 0);
  EXPECT_EQ(byte, 77);
  const Attached b = attach_device(ioas_, false, true);
  EXPECT_EQ(b.error, 0) << "filled from what is pinned";
  ASSERT_EQ(unmap_all(ioas_), 0);
  EXPECT_EQ(destroy(a.test_device), 0);
  EXPECT_EQ(destroy(b.test_device), 0);
}

TEST_F(PagesTest, MemoryOfAChildThatIsGoneCannotBePinned) {
  EXPECT_EQ(join(in_child([&] { return map_at(ioas_, shared(), 4096, kApertureStart); })), 0);
  EXPECT_EQ(attach_device(ioas_).error, EFAULT);
}

TEST_F(PagesTest, MemoryOfALivingProcessIsPinnedWhereItIsShared) {
  const test::GuardedPages own(1);
  int ready[2], go[2];
  ASSERT_EQ(0, ::pipe(ready));
  ASSERT_EQ(0, ::pipe(go));
  const pid_t child = in_child([&] {
    ::close(go[1]);
    const int error = map_at(ioas_, shared(), 4096, kApertureStart);
    char c = 0;
    if (error != 0 || ::write(ready[1], &c, 1) != 1) return 1;
    if (::read(go[0], &c, 1) != 1) return 2;
    if (map_at(ioas_, own.address(), 4096, kApertureStart + 4096) != 0) return 3;
    if (::write(ready[1], &c, 1) != 1) return 4;
    return ::read(go[0], &c, 1) == 0 ? 0 : 5;
  });
  char c = 0;
  ASSERT_EQ(1, ::read(ready[0], &c, 1));
  const Attached a = attach_device(ioas_);
  EXPECT_EQ(a.error, 0);
  EXPECT_EQ(walk(a.hwpt, kApertureStart), frame_address(shared()));
  shared_[9] = 11;
  u8 byte = 0;
  EXPECT_EQ(read_through(kApertureStart + 9, &byte), 0);
  EXPECT_EQ(byte, 11);
  EXPECT_EQ(destroy(a.test_device), 0);
  ASSERT_EQ(1, ::write(go[1], &c, 1));
  ASSERT_EQ(1, ::read(ready[0], &c, 1));
  EXPECT_EQ(attach_device(ioas_).error, EFAULT) << "memory of its own";
  for (const int fd : {go[0], go[1]}) ::close(fd);
  EXPECT_EQ(join(child), 0);
  for (const int fd : {ready[0], ready[1]}) ::close(fd);
}

// The same number and the same start, but no memory of what had pinned: nothing waits for it.
TEST_F(PagesTest, AProcessThatHasBecomeAnotherProgramIsGone) {
  const Attached a = attach_device(ioas_);
  int ready[2], go[2];
  ASSERT_EQ(0, ::pipe2(ready, O_CLOEXEC));
  ASSERT_EQ(0, ::pipe2(go, O_CLOEXEC));
  const pid_t child = in_child([&] {
    if (map_at(ioas_, shared(), 4096, kApertureStart) != 0) return 1;
    ::dup2(go[0], STDIN_FILENO);
    ::dup2(ready[1], STDOUT_FILENO);
    ::execlp("cat", "cat", nullptr);
    return 2;
  });
  ::close(ready[1]);
  char c = 0;
  ASSERT_EQ(1, ::write(go[1], &c, 1));
  ASSERT_EQ(1, ::read(ready[0], &c, 1)) << "it is another program";
  EXPECT_EQ(unmap_all(ioas_), 0);
  {
    const Locked locked(*context_);
    EXPECT_EQ(locked.root().orphans, 0u);
    EXPECT_EQ(locked.root().page_sets.get(), nullptr);
  }
  EXPECT_EQ(destroy(a.test_device), 0);
  for (const int fd : {ready[0], go[0], go[1]}) ::close(fd);
  EXPECT_EQ(join(child), 0);
}

// What another process lets go of, its pinner unpins when it comes here again.
TEST_F(PagesTest, AnUnmapByAnotherProcessIsSettledByThePinner) {
  const Attached a = attach_device(ioas_);
  ASSERT_EQ(map_at(ioas_, shared(), 2 * 4096, kApertureStart), 0);
  EXPECT_EQ(join(in_child([&] { return unmap_all(ioas_); })), 0);
  EXPECT_EQ(walk(a.hwpt, kApertureStart), kNowhere);  // this comes here
  EXPECT_EQ(host::pin_use().pages, 0u);
  EXPECT_EQ(destroy(a.test_device), 0);
}

// Nor is one of another PID namespace taken for dead because its number is somebody else's here, or
// nobody's: what it has pinned is its own to unpin.
TEST_F(PagesTest, AProcessOfAnotherPidNamespaceLives) {
  const Attached a = attach_device(ioas_);
  int ready[2], go[2];
  ASSERT_EQ(0, ::pipe(ready));
  ASSERT_EQ(0, ::pipe(go));
  const pid_t between = ::fork();
  if (between == 0) {
    if (::unshare(CLONE_NEWPID) != 0) ::_exit(77);
    ::close(go[1]);
    ::_exit(join(in_child([&] {
      char c = 0;
      if (map_at(ioas_, shared(), 2 * 4096, kApertureStart) != 0) return 1;
      if (host::pin_use().pins != 2 || ::write(ready[1], &c, 1) != 1) return 2;
      if (::read(go[0], &c, 1) != 1) return 3;
      const Locked here(*context_);
      return host::pin_use().pins == 0 ? 0 : 4;
    })));
  }
  ::close(ready[1]);
  char c = 0;
  const bool there = ::read(ready[0], &c, 1) == 1;
  if (there) {
    EXPECT_EQ(unmap_all(ioas_), 0);
    EXPECT_EQ(Locked(*context_).root().orphans, 2u) << "it was taken for dead";
  }
  EXPECT_EQ(::write(go[1], &c, 1), 1);
  const int answer = join(between);
  for (const int fd : {ready[0], go[0], go[1]}) ::close(fd);
  EXPECT_EQ(destroy(a.test_device), 0);
  if (answer == 77) GTEST_SKIP() << "no PID namespace may be made here";
  EXPECT_EQ(answer, 0);
}

TEST_F(PagesTest, TheLastCloseGivesBackWhatIsPinned) {
  const test::GuardedPages memory(2);
  const Attached a = attach_device(ioas_);
  ASSERT_EQ(map_at(ioas_, memory.address(), 2 * 4096, kApertureStart), 0);
  EXPECT_EQ(host::pin_use().pages, 2u);
  context_->release_all();
  EXPECT_EQ(host::pin_use().pages, 0u);
  EXPECT_EQ(host::pin_use().pins, 0u);
  // The arena would be gone by now; here it is used again.
  {
    Locked locked(*context_);
    Area* const area = locked.areas(**locked.find<Ioas>(ioas_)).first();
    ASSERT_TRUE(locked.hold_pages(*area->pages, 0, 2));
  }
  EXPECT_EQ(destroy(a.test_device), 0);
}

}  // namespace
}  // namespace stagetwo::iommu
