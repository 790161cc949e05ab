// SPDX-License-Identifier: Apache-2.0
// Capabilities as the kernel asks for them. Each case in a process of its own.
#include "host/capable.h"

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace stagetwo {
namespace {

template <typename F>
int answer_of_process(F&& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// All users are themselves in the initial namespace.
bool maps_everybody_to_themselves() {
  std::ifstream map("/proc/self/uid_map");
  std::string line;
  std::getline(map, line);
  return line == "         0          0 4294967295";
}

TEST(Capable, WhoHasNoneIsNot) {
  EXPECT_EQ(answer_of_process([] {
              __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
              __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
              if (::syscall(SYS_capset, &header, none) != 0) return 2;
              return host::capable(CAP_IPC_LOCK) || host::capable_here(CAP_IPC_LOCK) ? 1 : 0;
            }),
            0);
}
TEST(Capable, RootOfTheMachineIs) {
  if (::geteuid() != 0 || !maps_everybody_to_themselves()) GTEST_SKIP() << "needs root";
  EXPECT_TRUE(host::capable(CAP_IPC_LOCK));
}
TEST(Capable, RootOfANamespaceOfItsOwnIsThereAlone) {
  constexpr int kNotToBeHad = 7;
  const int answer = answer_of_process([] {
    static_cast<void>(host::capable(CAP_IPC_LOCK));  // what is known of before does not count
    if (::unshare(CLONE_NEWUSER) != 0) return kNotToBeHad;
    host::forget_user_namespace();  // as who sees the call says
    return (host::capable(CAP_IPC_LOCK) ? 1 : 0) + (host::capable_here(CAP_IPC_LOCK) ? 0 : 2);
  });
  if (answer == kNotToBeHad) GTEST_SKIP() << "no user namespaces here";
  EXPECT_EQ(answer, 0);
}

}  // namespace
}  // namespace stagetwo
