// SPDX-License-Identifier: Apache-2.0
// What a client has mapped of virtual IOMMUs.
#include "iommu/viommu_pages.h"

#include <sys/mman.h>

#include "tests/unit/iommu/viommu_world.h"

namespace stagetwo::iommu {
namespace {

class ViommuPagesTest : public ViommuWorld {};

TEST_F(ViommuPagesTest, AreMappedWhileTheyAreWhereTheyWereMapped) {
  u64 offset = 0;
  {
    Locked locked(*context_);
    ASSERT_EQ(error_of(add_page(locked, viommu(locked), 5)), 0);
    offset = viommu(locked).page;
  }
  ViommuPages pages;
  EXPECT_FALSE(pages.is_mapped(offset));
  void* const at = ::mmap(nullptr, kViommuPageBytes, PROT_READ, MAP_SHARED, backing_->fd(),
                          static_cast<off_t>(offset));
  ASSERT_NE(at, MAP_FAILED);
  pages.note(Hva(reinterpret_cast<u64>(at)));
  EXPECT_TRUE(pages.is_mapped(offset));
  EXPECT_FALSE(pages.is_mapped(offset + kPageSize)) << "another's";
  void* const other =
      ::mmap(at, kViommuPageBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  ASSERT_EQ(other, at);
  EXPECT_FALSE(pages.is_mapped(offset)) << "something else is there";
  ::munmap(at, kViommuPageBytes);
}

TEST_F(ViommuPagesTest, OnesThatWereEverMappedAreNobodyElses) {
  Locked locked(*context_);
  ASSERT_EQ(error_of(add_page(locked, viommu(locked), 5)), 0);
  const host::MapRequest request{kViommuPageBytes, PROT_READ, MAP_SHARED,
                                 static_cast<off_t>(viommu(locked).page)};
  const s64 before = locked.arena().blocks_in_use();
  Viommu* const second = *make_viommu(locked, device(locked), parent(locked));
  ASSERT_EQ(error_of(add_page(locked, *second, 6)), 0);
  destroy_viommu(locked, second);
  EXPECT_EQ(locked.arena().blocks_in_use(), before) << "one that was not";
  EXPECT_EQ(error_of(ViommuPages::check(locked, request)), 0);
  EXPECT_TRUE(viommu(locked).mapped);
  viommu(locked).mapped = false;  // the world looks for what is left
}

}  // namespace
}  // namespace stagetwo::iommu
