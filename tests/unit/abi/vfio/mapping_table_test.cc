// SPDX-License-Identifier: Apache-2.0
// A child's mappings of regions, and changes that did not come about.
#include <sys/wait.h>

#include "host/process.h"
#include "tests/unit/abi/vfio/mapped_region.h"
#include "vfio/registry.h"

namespace stagetwo {
namespace {

class MappingOfAChild : public MappedRegion {
 protected:
  // What fn() answers in a child of fork.
  template <typename F>
  static int child_says(F&& fn) {
    const pid_t child = fork();
    if (child == 0) {
      host::after_fork_child();
      abi_vfio::after_fork_child();
      _exit(fn());
    }
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
};

TEST_F(MappingOfAChild, GoesWithItsMunmap) {
  u8* const at = map_region(0, kPageSize);
  EXPECT_EQ(child_says([&] {
              if (abi_vfio::debug_mappings() != 1) return 2;
              put<u32>(at, 5);
              unmap(at);
              return static_cast<int>(abi_vfio::debug_mappings());
            }),
            0);
  expect_last(0, 5, 4);
  EXPECT_EQ(abi_vfio::debug_mappings(), 1u);
}

TEST_F(MappingOfAChild, IsNoneWhereItsParentKeepsIt) {
  u8* const at = map_region(0, kPageSize);
  map_region(2 * kPageSize, kPageSize);
  ASSERT_EQ(madvise(at, kPageSize, MADV_DONTFORK), 0);
  EXPECT_EQ(child_says([] { return static_cast<int>(abi_vfio::debug_mappings()); }), 1);
}

TEST_F(MappingOfAChild, ItsChildHasItToo) {
  u8* const at = map_region(0, kPageSize);
  EXPECT_EQ(child_says([&] {
              return child_says([&] {
                unmap(at);
                return static_cast<int>(abi_vfio::debug_mappings());
              });
            }),
            0);
}

TEST_F(MappingOfAChild, AChangeThatFailsTakesNothing) {
  u8* const at = map_region(0, kPageSize);
  {
    const host::InvalidateSection change(
        {HvaRange(Hva(reinterpret_cast<u64>(at)), kPageSize), host::EventKind::kUnmap});
  }
  EXPECT_EQ(abi_vfio::debug_mappings(), 1u);
  put<u32>(at, 6);
  expect_last(0, 6, 4);
}

}  // namespace
}  // namespace stagetwo
