// SPDX-License-Identifier: Apache-2.0
// Goal: threads of the engine's are in the count only for as long as they are made and end. That
// the process then ends is tests/shim/process_test.cc's.
#include "host/thread_count.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "host/worker.h"

namespace stagetwo::host {
namespace {

TEST(ThreadCount, IsLeftByWhoIsMadeAndRejoinedByWhoEnds) {
  static u32 count = 2;  // a client's thread, and one that libc has just counted
  static std::atomic<bool> may_end, ended;
  set_thread_count(&count);
  ASSERT_TRUE(start_own_thread(
      [](void*) {
        while (!may_end) std::this_thread::yield();
        ended = true;
      },
      nullptr));
  std::atomic_ref<u32> shown(count);
  EXPECT_EQ(shown.load(), 1u);
  may_end = true;
  while (shown.load() != 2) std::this_thread::yield();  // libc takes it from here
  EXPECT_TRUE(ended);
  set_thread_count(nullptr);
}

}  // namespace
}  // namespace stagetwo::host
