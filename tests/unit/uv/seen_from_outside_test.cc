// SPDX-License-Identifier: Apache-2.0
// Goal: S0-8 of the acceptance checks (docs/checks-secure-guests.md): 256 secure pages in this
// process's own memory, as a system call and another process see them.
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "tests/support/process_guest.h"

namespace stagetwo::uv {
namespace {

class SeenFromOutside : public GuestInProcess<kPageSize, 257> {
 protected:
  static constexpr u64 kSeen = kPages - 1;

  // What was read of all of them is noise; each was sealed by that, and is the guest's still.
  void expect_noise(const Bytes& read) {
    ASSERT_EQ(read.size(), kSeen * kPageSize);
    u64 equal = 0;
    std::array<double, 256> seen{};
    for (u64 page = 0; page < kSeen; ++page) {
      const Bytes secret = text(page);
      for (u64 i = 0; i < kPageSize; ++i) {
        const u8 byte = read[page * kPageSize + i];
        equal += byte == secret[i];
        ++seen[byte];
      }
      EXPECT_EQ(guest->page(Gpa(page * kPageSize)), PageState::kPagedOut) << page;
    }
    const double want = static_cast<double>(read.size()) / 256;
    EXPECT_LT(static_cast<double>(equal), 0.02 * static_cast<double>(read.size()));
    double chi = 0;
    for (const double count : seen) chi += (count - want) * (count - want) / want;
    EXPECT_LT(chi, 400);
    EXPECT_EQ(guest->use().touches, kSeen);
    const u64 before = ultravisor.use(kLpid).page_ins;
    for (u64 page = 0; page < kSeen; ++page) ASSERT_EQ(guest_bytes(page), text(page)) << page;
    EXPECT_EQ(ultravisor.use(kLpid).page_ins - before, kSeen);
  }
};

TEST_F(SeenFromOutside, S0_08_ASystemCallSeesSealedBytesToo) {
  become_secure();
  if (!host::userfault::serves_kernel()) GTEST_SKIP() << "userfaultfd serves user mode only here";
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  Bytes got(kSeen * kPageSize);
  for (u64 page = 0; page < kSeen; ++page) {
    ASSERT_EQ(::write(ends[1], at(page), kPageSize), static_cast<ssize_t>(kPageSize)) << errno;
    ASSERT_EQ(::read(ends[0], got.data() + page * kPageSize, kPageSize),
              static_cast<ssize_t>(kPageSize));
  }
  for (const int end : ends) ::close(end);
  expect_noise(got);
}

TEST_F(SeenFromOutside, S0_08_AnotherProcessSeesSealedBytesToo) {
  if (!host::userfault::serves_kernel()) GTEST_SKIP() << "userfaultfd serves user mode only here";
  ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  std::array<int, 2> go{};
  ASSERT_EQ(::pipe(go.data()), 0);
  const u64 bytes = kSeen * kPageSize;
  void* const shared =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  const pid_t parent = ::getpid();
  // Before the guest is secure: a fork brings everything back.
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    u8 byte = 0;
    if (::read(go[0], &byte, 1) != 1) ::_exit(2);
    const iovec to{shared, bytes}, from{at(0), bytes};
    errno = 0;
    const ssize_t read = ::process_vm_readv(parent, &to, 1, &from, 1, 0);
    const bool is_denied = read < 0 && (errno == EPERM || errno == ENOSYS);
    ::_exit(read == static_cast<ssize_t>(bytes) ? 0 : is_denied ? 1 : 3);
  }
  become_secure();
  EXPECT_EQ(::write(go[1], "x", 1), 1);
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  for (const int end : go) ::close(end);
  const auto* const got = static_cast<const u8*>(shared);
  const Bytes read(got, got + bytes);
  ::munmap(shared, bytes);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 1)
    GTEST_SKIP() << "this machine lets no process read another's memory";
  ASSERT_EQ(WEXITSTATUS(status), 0) << "an error, or not all of it";
  expect_noise(read);
}

}  // namespace
}  // namespace stagetwo::uv
