// SPDX-License-Identifier: Apache-2.0
// A group, and its device, of which several processes have a descriptor: what one makes of it is so
// for all. kernel file: drivers/vfio/group.c, whose state is the open file's.
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "abi/iommufd/iommufd.h"
#include "abi/vfio/uapi.h"
#include "host/placed_io.h"
#include "host/process.h"
#include "tests/support/fd_message.h"
#include "tests/unit/abi/vfio/register_device.h"
#include "tests/unit/abi/vfio/vfio_client.h"

namespace stagetwo {
namespace {

class SharedGroup : public VfioClient {
 protected:
  void SetUp() override {
    host::set_attacher(abi_vfio::attach);
    VfioClient::SetUp();
  }
  static bool has_container(int group) {
    vfio_group_status status{.argsz = sizeof(status), .flags = 0};
    EXPECT_EQ(ask(group, VFIO_GROUP_GET_STATUS, &status), 0);
    return (status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET) != 0;
  }
  // What `fn` answers in a child of fork, or a signal's number.
  template <typename F>
  static int in_child(F&& fn) {
    const pid_t child = fork();
    if (child == 0) {
      host::after_fork_child();  // as the shim does
      abi_vfio::after_fork_child();
      _exit(fn());
    }
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  static int set(int group, int container) {
    return static_cast<int>(-ask(group, VFIO_GROUP_SET_CONTAINER, &container));
  }
  static int unset(int group) { return static_cast<int>(-ask(group, VFIO_GROUP_UNSET_CONTAINER)); }
};

TEST_F(SharedGroup, AChildsContainerIsTheParents) {
  EXPECT_EQ(in_child([&] {
              join();
              return 0;
            }),
            0);
  EXPECT_TRUE(has_container(group_));
  EXPECT_EQ(set(group_, container_), EINVAL);
  device_ = static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, kName));
  EXPECT_GE(device_, 0);
  EXPECT_EQ(map(kIova, 1), 0);
  EXPECT_EQ(in_child([&] { return unset(group_); }), EBUSY);
  close_fd(std::exchange(device_, -1));
  EXPECT_EQ(in_child([&] { return unset(group_); }), 0);
  EXPECT_FALSE(has_container(group_));
  EXPECT_EQ(unset(group_), EINVAL);
  EXPECT_EQ(map(kIova, 1), -EINVAL) << "the type went with its last group";
  EXPECT_EQ(set(group_, container_), 0);
}

TEST_F(SharedGroup, AContainerThatTheChildAloneHasIsFoundThere) {
  int talk[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, talk), 0);
  const pid_t child = fork();
  char go = 0;
  close(talk[child == 0 ? 0 : 1]);  // so that one's death is the other's end of talk
  if (child == 0) {
    host::after_fork_child();
    abi_vfio::after_fork_child();
    container_ = *abi_vfio::open_container(O_RDWR | O_CLOEXEC);
    join();
    _exit(write(talk[1], "x", 1) == 1 && read(talk[1], &go, 1) == 1 ? 0 : 1);
  }
  EXPECT_EQ(read(talk[0], &go, 1), 1);
  device_ = static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, kName));
  EXPECT_GE(device_, 0);
  EXPECT_EQ(send(talk[0], "x", 1, MSG_NOSIGNAL), 1);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  close(talk[0]);
}

TEST_F(SharedGroup, AnIommufdStandsInAsAContainerDoes) {
  const int iommufd = *abi_iommufd::open_device(O_RDWR | O_CLOEXEC);
  EXPECT_EQ(in_child([&] { return set(group_, iommufd); }), 0);
  EXPECT_TRUE(has_container(group_));
  EXPECT_EQ(set(group_, iommufd), EINVAL);
  device_ = static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, kName));
  EXPECT_GE(device_, 0);
  close_fd(std::exchange(device_, -1));
  EXPECT_EQ(in_child([&] { return unset(group_); }), 0);
  EXPECT_FALSE(has_container(group_));
  close_fd(iommufd);
}

// A child that has closed its copies before the parent, and does not get to run when the parent
// closes the last: what it has not let go of yet is nobody's.
class ClosedEverywhere : public SharedGroup {
 protected:
  void SetUp() override {
    test::register_devices();
    type_ = "registers-a";
    SharedGroup::SetUp();
  }
  // The child closes `fds` and looks again some time after it is told to.
  void closes_in_child(std::initializer_list<int> fds) {
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, talk_), 0);
    child_ = fork();
    close(talk_[child_ == 0 ? 0 : 1]);
    char go = 0;
    if (child_ == 0) {
      host::after_fork_child();
      abi_vfio::after_fork_child();
      for (const int fd : fds) close_fd(fd);
      if (write(talk_[1], "x", 1) != 1 || read(talk_[1], &go, 1) != 1) _exit(1);
      usleep(30'000);
      host::sweep_closed();
      _exit(read(talk_[1], &go, 1) == 0 ? 0 : 2);
    }
    ASSERT_EQ(read(talk_[0], &go, 1), 1);
  }
  void looks_again() { EXPECT_EQ(send(talk_[0], "x", 1, MSG_NOSIGNAL), 1); }
  void ends() {
    close(talk_[0]);
    int status = -1;
    EXPECT_EQ(waitpid(child_, &status, 0), child_);
    EXPECT_EQ(status, 0);
  }
  static long bind(int node, int iommufd) {
    vfio_device_bind_iommufd cmd{sizeof(cmd), 0, iommufd, 0};
    return ask(node, VFIO_DEVICE_BIND_IOMMUFD, &cmd);
  }

 private:
  int talk_[2] = {-1, -1};
  pid_t child_ = -1;
};

TEST_F(ClosedEverywhere, AGroupIsFree) {
  open_device();
  // More than are known at a time; what is closed makes room.
  for (unsigned i = 0; i < vfio::kMostFiles + 2; ++i) {
    close_fd(static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, kName)));
  }
  closes_in_child({device_, group_, container_});
  const auto taken = abi_vfio::open_group(0, O_RDWR);
  EXPECT_EQ(taken ? 0 : to_int(taken.error()), EBUSY) << "one has it open";
  close_fd(std::exchange(group_, -1));
  const auto still = abi_vfio::open_group(0, O_RDWR);
  EXPECT_EQ(still ? 0 : to_int(still.error()), EBUSY) << "its device is open";
  close_fd(std::exchange(device_, -1));
  looks_again();
  const auto free = abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  EXPECT_EQ(free ? 0 : to_int(free.error()), 0);
  group_ = free.value_or(-1);
  ends();
}

TEST_F(ClosedEverywhere, AGroupLeavesItsContainer) {
  open_device();
  closes_in_child({device_});
  EXPECT_EQ(unset(group_), EBUSY) << "its device is open";
  close_fd(std::exchange(device_, -1));
  looks_again();
  EXPECT_EQ(unset(group_), 0);
  ends();
}

TEST_F(ClosedEverywhere, ADeviceIsOpenedAsTheFirst) {
  join();
  const auto get = [&] { return static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, kName)); };
  device_ = get();
  closes_in_child({device_});
  close_fd(get());
  EXPECT_EQ(test::RegisterDevice::state->first_opens, 1u);
  close_fd(std::exchange(device_, -1));
  looks_again();
  device_ = get();
  EXPECT_EQ(test::RegisterDevice::state->first_opens, 2u);
  ends();
}

TEST_F(ClosedEverywhere, AnOwnNodeIsBoundAgainAndItsGroupIsFree) {
  close_fd(std::exchange(group_, -1));
  const int iommufd = *abi_iommufd::open_device(O_RDWR | O_CLOEXEC);
  for (const bool by_group : {false, true}) {
    const int node = *abi_vfio::open_node(0, O_RDWR | O_CLOEXEC);
    ASSERT_EQ(bind(node, iommufd), 0);
    closes_in_child({node});
    const int second = *abi_vfio::open_node(0, O_RDWR | O_CLOEXEC);
    EXPECT_EQ(bind(second, iommufd), -EINVAL) << "it is bound";
    close_fd(node);
    looks_again();
    const auto group = by_group ? abi_vfio::open_group(0, O_RDWR | O_CLOEXEC) : Result<int>(-1);
    EXPECT_EQ(group ? 0 : to_int(group.error()), 0);
    group_ = group.value_or(-1);
    EXPECT_EQ(bind(second, iommufd), by_group ? -EBUSY : 0);
    close_fd(second);
    ends();
  }
  close_fd(iommufd);
}

// Who dies with the group open closes nothing: the next opener finds it as the kernel leaves it.
TEST_F(SharedGroup, WhoDiesLeavesNothingInTheContainer) {
  close_fd(std::exchange(group_, -1));
  EXPECT_EQ(in_child([&] {
              group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
              join();
              return 0;
            }),
            0);
  group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  EXPECT_FALSE(has_container(group_));
  EXPECT_EQ(map(kIova, 1), -EINVAL) << "its last group is out";
  join();
}

// Of its configuration space; 0: it cannot be read.
u32 read_id(int device) {
  const auto file = host::find(device);
  auto* const io = dynamic_cast<host::PlacedIo*>(file.get());
  u32 id = 0;
  constexpr off_t kConfig = off_t{VFIO_PCI_CONFIG_REGION_INDEX} << 40;
  return io != nullptr && io->read_at(reinterpret_cast<u64>(&id), 4, kConfig) ? id : 0;
}

TEST_F(SharedGroup, SentToAnotherProcessItIsTheSame) {
  int talk[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, talk), 0);
  for (const int fd : {group_, container_}) close_fd(fd);
  group_ = container_ = -1;
  const pid_t child = fork();
  if (child == 0) {
    host::after_fork_child();
    abi_vfio::after_fork_child();
    int fds[3];
    if (!test::FdMessage<3>().receive(talk[1], fds)) _exit(1);
    const auto [container, group, device] = fds;
    vfio_device_info info{};
    info.argsz = offsetof(vfio_device_info, cap_offset);
    if (!has_container(group)) _exit(2);
    if (ask(device, VFIO_DEVICE_GET_INFO, &info) != 0 || info.num_irqs != 5) _exit(3);
    if (read_id(device) == 0) _exit(4);
    if (unset(group) != EBUSY) _exit(5);
    char go = 0;
    if (write(talk[1], "x", 1) != 1 || read(talk[1], &go, 1) != 1) _exit(6);
    // The other has closed all it had.
    if (ask(device, VFIO_DEVICE_RESET) != 0 || !has_container(group)) _exit(7);
    close_fd(device);
    // Who has closed his before looks by himself in a program of the shim's; here he is asked to.
    if (write(talk[1], "x", 1) != 1 || read(talk[1], &go, 1) != 1) _exit(6);
    if (unset(group) != 0 || set(group, container) != 0) _exit(8);
    close_fd(group);
    _exit(ask(container, VFIO_GET_API_VERSION) == VFIO_API_VERSION ? 0 : 9);
  }
  container_ = *abi_vfio::open_container(O_RDWR | O_CLOEXEC);
  group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  open_device();
  EXPECT_TRUE(test::FdMessage<3>({container_, group_, device_}).send(talk[0]));
  char go = 0;
  EXPECT_EQ(read(talk[0], &go, 1), 1);
  for (const int fd : {device_, group_, container_}) close_fd(fd);
  device_ = group_ = container_ = -1;
  const auto taken = abi_vfio::open_group(0, O_RDWR);
  EXPECT_EQ(taken ? 0 : to_int(taken.error()), EBUSY) << "the other has it";
  EXPECT_EQ(write(talk[0], "x", 1), 1);
  EXPECT_EQ(read(talk[0], &go, 1), 1);
  host::sweep_closed();
  EXPECT_EQ(write(talk[0], "x", 1), 1);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status, 0);
  const auto free = abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  ASSERT_TRUE(free);
  group_ = *free;
  close(talk[0]);
  close(talk[1]);
}

// As who may open the node hands it to a machine monitor that may not.
TEST_F(SharedGroup, ADevicesOwnNodeIsBoundByWhomItWasSentTo) {
  int talk[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, talk), 0);
  for (const int fd : {group_, container_}) close_fd(fd);
  group_ = container_ = -1;
  const pid_t child = fork();
  char go = 0;
  close(talk[child == 0 ? 0 : 1]);  // so that one's death is the other's end of talk
  if (child == 0) {
    host::after_fork_child();
    abi_vfio::after_fork_child();
    int fds[3];
    if (!test::FdMessage<3>().receive(talk[1], fds)) _exit(1);
    vfio_device_info info{};
    info.argsz = offsetof(vfio_device_info, cap_offset);
    const auto bind = [](int fd, int iommufd) {
      vfio_device_bind_iommufd cmd{sizeof(cmd), 0, iommufd, 0};
      return ask(fd, VFIO_DEVICE_BIND_IOMMUFD, &cmd);
    };
    if (ask(fds[0], VFIO_DEVICE_GET_INFO, &info) != -EINVAL) _exit(2);
    const int iommufd = *abi_iommufd::open_device(O_RDWR | O_CLOEXEC);
    if (bind(fds[0], iommufd) != 0) _exit(3);
    if (ask(fds[0], VFIO_DEVICE_GET_INFO, &info) != 0 || info.num_irqs != 5) _exit(4);
    if (read_id(fds[0]) == 0) _exit(5);
    const auto read_error = [](int fd) {
      u32 id = 0;
      const auto file = host::find(fd);
      const auto done = dynamic_cast<host::PlacedIo*>(file.get())
                            ->read_at(reinterpret_cast<u64>(&id), sizeof(id), 0);
      return done ? 0 : to_int(done.error());
    };
    const auto map_error = [](int fd) {
      const auto done =
          host::find(fd)->check_mmap({kPageSize, PROT_READ, MAP_SHARED, off_t{4} << 40});
      return done ? 0 : to_int(done.error());
    };
    if (ask(fds[2], VFIO_DEVICE_GET_INFO, &info) != -EIO) _exit(6);
    if (read_error(fds[2]) != EIO || map_error(fds[2]) != EIO) _exit(9);
    // The other closes all it had.
    if (write(talk[1], "x", 1) != 1 || read(talk[1], &go, 1) != 1) _exit(7);
    if (read_id(fds[0]) == 0) _exit(8);
    for (const int fd : fds) close_fd(fd);
    close_fd(iommufd);
    _exit(0);
  }
  // The third: of another device, which is bound here.
  ASSERT_TRUE(vfio::create_device(vfio::find_type(type_), {{7}}));
  const int node = *abi_vfio::open_node(0, O_RDWR | O_CLOEXEC);
  const int other = *abi_vfio::open_node(1, O_RDWR | O_CLOEXEC);
  const int iommufd = *abi_iommufd::open_device(O_RDWR | O_CLOEXEC);
  vfio_device_bind_iommufd cmd{sizeof(cmd), 0, iommufd, 0};
  ASSERT_EQ(ask(other, VFIO_DEVICE_BIND_IOMMUFD, &cmd), 0);
  EXPECT_TRUE(test::FdMessage<3>({node, iommufd, other}).send(talk[0]));
  EXPECT_EQ(read(talk[0], &go, 1), 1);
  EXPECT_EQ(ask(node, VFIO_DEVICE_BIND_IOMMUFD, &cmd), -EINVAL) << "the other has bound it";
  for (const int fd : {node, other, iommufd}) close_fd(fd);
  const auto taken = abi_vfio::open_group(0, O_RDWR);
  EXPECT_EQ(taken ? 0 : to_int(taken.error()), EBUSY) << "it is in use by its own node";
  EXPECT_EQ(send(talk[0], "x", 1, MSG_NOSIGNAL), 1);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status, 0);
  auto removal = vfio::begin_removal({{7}});
  ASSERT_TRUE(removal);
  vfio::finish_removal(std::move(*removal));
  const auto free = abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  ASSERT_TRUE(free);
  group_ = *free;
  close(talk[0]);
}

}  // namespace
}  // namespace stagetwo
