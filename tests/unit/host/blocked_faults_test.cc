// SPDX-License-Identifier: Apache-2.0
// The stacks on which the kernel must be able to put a signal, of threads that have ended, too.
// Masks and whole programs: tests/shim/programs/hidden_touches.c.
#include "host/blocked_faults.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <thread>

namespace stagetwo::test {
namespace {

HvaRange stack_at(u64 number) {
  return HvaRange(Hva((u64{1} << 40) + number * 4 * kPageSize), 2 * kPageSize);
}
template <typename F>
void in_a_thread(F&& f) {
  std::thread(f).join();
}

TEST(LibraryData, OfLibcIsKnownAsSuch) {
  host::note_library_data();
  const void* const libcs = dlsym(RTLD_DEFAULT, "_IO_2_1_stdin_");
  ASSERT_NE(nullptr, libcs);
  EXPECT_TRUE(host::is_library_data(Hva(reinterpret_cast<u64>(libcs))));
  const int ours = 0;
  EXPECT_FALSE(host::is_library_data(Hva(reinterpret_cast<u64>(&ours))));
}

TEST(StacksLeft, StayStacksUntilTheyAreOtherMemory) {
  in_a_thread([] { host::note_stack(stack_at(0), true); });
  in_a_thread([] { host::note_stack(stack_at(1), true); });
  in_a_thread([] { host::note_stack(stack_at(2), false); });
  EXPECT_TRUE(host::is_stack(stack_at(0).start()));
  EXPECT_TRUE(host::is_stack(stack_at(1).start()));
  EXPECT_FALSE(host::is_stack(stack_at(2).start())) << "the program's own, of a thread that ended";
  host::forget_stacks(HvaRange(stack_at(0).start() + kPageSize, kPageSize));
  EXPECT_FALSE(host::is_stack(stack_at(0).start()));
  EXPECT_TRUE(host::is_stack(stack_at(1).start()));
  host::forget_stacks(stack_at(1));
}

TEST(StacksLeft, OfAThreadThatLivesAreNotForgotten) {
  in_a_thread([] {
    host::note_stack(stack_at(3), true);
    host::forget_stacks(stack_at(3));
    EXPECT_TRUE(host::is_stack(stack_at(3).start()));
  });
  host::forget_stacks(stack_at(3));
  EXPECT_FALSE(host::is_stack(stack_at(3).start()));
}

TEST(StacksLeft, MakeRoomForThoseInUse) {
  in_a_thread([] {
    for (u64 i = 0; i < 1030; ++i) host::note_stack(stack_at(10 + i), true);
  });
  in_a_thread([] {
    host::note_stack(stack_at(5), true);
    EXPECT_TRUE(host::is_stack(stack_at(5).start()));
  });
  host::forget_stacks(HvaRange(stack_at(0).start(), stack_at(3000).start() - stack_at(0).start()));
}

}  // namespace
}  // namespace stagetwo::test
