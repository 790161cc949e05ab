// SPDX-License-Identifier: Apache-2.0
// That they serve after a chroot, a change of user or without descriptors: tests/shim, LockedIn.
#include "host/process_files.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/sys.h"
#include "host/process.h"

namespace stagetwo::host {
namespace {

TEST(ProcessFiles, AreOpenedOnce) {
  open_process_files();
  for (const auto file : {&maps_file, &pagemap_file, &memory_file}) {
    const auto fd = file();
    ASSERT_TRUE(fd);
    EXPECT_EQ(fd->get(), file()->get());
  }
}

TEST(ProcessFiles, SayWhatIsPinnedAndLocked) {
  const auto before = status_kilobytes("VmLck:");
  ASSERT_TRUE(before);
  void* at = mmap(nullptr, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_EQ(0, mlock(at, 16384));
  EXPECT_EQ(*before + 16, *status_kilobytes("VmLck:"));
  munmap(at, 16384);
  EXPECT_EQ(0u, *status_kilobytes("VmPin:"));
  EXPECT_EQ(EINVAL, to_int(status_kilobytes("VmNothing:").error()));
}

// The kernel's word behind /proc/self is the one who opened the file.
TEST(ProcessFiles, OfAChildAreItsOwn) {
  u64 word = 1;
  open_process_files();
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    word = 2;
    u64 seen = 0;
    const auto fd = memory_file();
    const auto at = static_cast<off_t>(reinterpret_cast<u64>(&word));
    const bool read = fd && sys::pread(fd->get(), &seen, sizeof(seen), at);
    _exit(read && seen == 2 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
}

}  // namespace
}  // namespace stagetwo::host
