// SPDX-License-Identifier: Apache-2.0
// The assembly keeps to the C calling convention and hands all seven words through.

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/sys.h"

namespace stagetwo {
namespace {

TEST(Syscall, ReturnsTheKernelsAnswer) {
  EXPECT_EQ(sys::call(SYS_getpid), getpid());
  EXPECT_EQ(sys::call(SYS_close, -1), -EBADF);
  EXPECT_EQ(sys::call(100'000), -ENOSYS);
}

TEST(Syscall, KeepsTheRegistersItsCallersRelyOn) {
  // The compiler keeps these in callee-saved registers across the loop; a clobber changes the sum.
  u64 a = 1, b = 2, c = 3, d = 4, e = 5;
  for (int i = 0; i < 100; ++i) {
    asm volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e));
    static_cast<void>(sys::call(SYS_getppid, 1, 2, 3, 4, 5, 6));
    a += b + c + d + e;
  }
  EXPECT_EQ(a, 1401u);
}

}  // namespace
}  // namespace stagetwo
