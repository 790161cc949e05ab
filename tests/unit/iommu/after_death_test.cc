// SPDX-License-Identifier: Apache-2.0
// What processes that end without a word were users of. Of one that dies in the middle of a change:
// arena_notes_test.cc.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "host/descriptor_file.h"
#include "host/process.h"
#include "tests/unit/iommu/access_world.h"
#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

class DeadAccess : public AccessWorld {
 protected:
  void SetUp() override {
    AccessWorld::SetUp();
    void* const at =
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(at, MAP_FAILED);
    shared_ = reinterpret_cast<u64>(at);
    ASSERT_EQ(map_at(ioas_, shared_, 4096, kApertureStart), 0);
  }
  void TearDown() override {
    AccessWorld::TearDown();
    ::munmap(reinterpret_cast<void*>(shared_), 4096);
  }
  // A child makes an access, does `more` and ends; answers the errno of the first refusal.
  template <typename F>
  int of_a_child(u64 inode, F&& more) {
    const pid_t child = ::fork();
    if (child == 0) {
      host::after_fork_child();
      {
        Locked locked(*context_);
        holder_.id =
            (*locked.make_access(*locked.find<Ioas>(ioas_), true, &holder_, inode))->object.id;
      }
      ::_exit(more());
    }
    int status = 0;
    EXPECT_EQ(child, ::waitpid(child, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  u64 shared_ = 0;
};

TEST_F(DeadAccess, GoesWithItsPinsAtAnUnmap) {
  const Attached device = attach_device(ioas_);
  EXPECT_EQ(of_a_child(0, [&] { return pin(kApertureStart, 4096) + pin(kApertureStart, 4096); }),
            0);
  EXPECT_EQ(destroy(device.test_device), 0);
  EXPECT_EQ(pins_at(shared_), 1u) << "they are the dead one's";
  EXPECT_EQ(unmap(ioas_, kApertureStart, 4096), 0);
  EXPECT_EQ(pins_at(shared_), 0u);
}

TEST_F(DeadAccess, GoesWhenItsIoasIsDestroyed) {
  const u32 other = make_ioas();
  // It is in both, and in the middle of going from one to the other.
  EXPECT_EQ(of_a_child(0,
                       [&] {
                         holder_.meanwhile = [] { ::_exit(0); };
                         if (pin(kApertureStart, 4096) != 0) return 1;
                         static_cast<void>(context_->change_ioas(holder_.id, other));
                         return 2;
                       }),
            0);
  EXPECT_EQ(destroy(other), 0);
  EXPECT_EQ(unmap_all(ioas_), 0);
}

TEST_F(DeadAccess, IsKeptByWhoeverHasItsDescriptor) {
  const int file = ::memfd_create("stagetwo:1:toy", MFD_CLOEXEC);
  struct ::stat behind{};
  ASSERT_EQ(0, ::fstat(file, &behind));
  const auto held = host::open_for_client(file, O_RDWR | O_CLOEXEC, false);
  ASSERT_TRUE(held);
  const u32 other = make_ioas();
  const u32 before = std::exchange(ioas_, other);
  EXPECT_EQ(of_a_child(behind.st_ino, [] { return 0; }), 0);
  EXPECT_EQ(destroy(other), EBUSY);
  ::close(*held);
  EXPECT_EQ(destroy(other), 0);
  ::close(file);
  ioas_ = before;
}

TEST_F(DeadAccess, LeavesItsPlaceToNobodyBefore) {
  // Processes that come and go take places; the dead one's is still named.
  EXPECT_EQ(of_a_child(0, [] { return 0; }), 0);
  u32 whose = 0;
  {
    Locked locked(*context_);
    for (u32 id = 1; id < locked.root().table_size; ++id) {
      if (const auto access = locked.find<Access>(id)) whose = (*access)->process;
    }
    EXPECT_NE(locked.root().processes[whose].uses, 0u);
  }
  EXPECT_EQ(unmap_all(ioas_), 0);
  EXPECT_EQ(destroy(ioas_), 0);
  Locked locked(*context_);
  EXPECT_EQ(locked.root().processes[whose].uses, 0u);
  ioas_ = (*locked.make_ioas())->object.id;
}

// As where the kernel closes the descriptor it was bound by.
class DeadDevice : public DeviceWorld {};

TEST_F(DeadDevice, GoesWithItsProcess) {
  const VtdHow how{
      .source = SourceId{0x31}, .max_pasid_lg2 = kPasidBits, .ends_with_process = true};
  const u32 ioas = make_ioas(), table = make_hwpt(ioas, make_vtd(0x30));
  const auto bind = [&] {
    Locked locked(*context_);
    const auto made = locked.make_vtd_device(how);
    if (!made) return u32{0};
    (*made)->object.users = 1;
    return (*made)->object.id.get();
  };
  const auto of_a_child = [&] {
    const pid_t child = ::fork();
    if (child == 0) {
      host::after_fork_child();
      const u32 device = bind();
      ::_exit(device != 0 && attach(device, table, 3) == 0 && attach(device, table) == 0 ? 0 : 1);
    }
    int status = -1;
    EXPECT_EQ(child, ::waitpid(child, &status, 0));
    return status;
  };
  EXPECT_EQ(of_a_child(), 0);
  const u32 again = bind();
  EXPECT_NE(again, 0u) << "nobody has the source";
  EXPECT_EQ(bind(), 0u) << "one that lives has";
  {
    Locked locked(*context_);
    Device* const device = *locked.find<Device>(again);
    device->object.users = 0;
    locked.destroy_device(device);
  }
  EXPECT_EQ(of_a_child(), 0);
  EXPECT_EQ(destroy(table), 0);
  EXPECT_EQ(destroy(ioas), 0);
  Locked locked(*context_);
  for (u32 id = 1; id < locked.root().table_size; ++id) {
    if (const auto device = locked.find<Device>(id)) locked.destroy_device(*device);
  }
}

}  // namespace
}  // namespace stagetwo::iommu
