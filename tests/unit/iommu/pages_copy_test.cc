// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

class PagesCopyTest : public IommufdWorld {};

TEST_F(PagesCopyTest, PinnedAndNotPinnedAreTheSameBytes) {
  const test::GuardedPages memory(3);
  for (size_t i = 0; i < memory.bytes(); ++i) *memory.bytes_at(i) = static_cast<u8>(i * 13);
  Locked locked(*context_);
  PageSet* const set = *locked.make_page_set(memory.address(), 3 * 4096, true);
  ASSERT_TRUE(locked.hold_pages(*set, 1, 1));
  u8 bytes[4096 + 200];
  ASSERT_TRUE(locked.copy_pages(*set, 4096 - 100, sizeof(bytes), bytes, nullptr));
  EXPECT_EQ(memcmp(bytes, memory.bytes_at(4096 - 100), sizeof(bytes)), 0);
  memset(bytes, 0x5a, sizeof(bytes));
  ASSERT_TRUE(locked.copy_pages(*set, 4096 - 100, sizeof(bytes), nullptr, bytes));
  EXPECT_EQ(memcmp(bytes, memory.bytes_at(4096 - 100), sizeof(bytes)), 0);
  locked.release_pages(*set, 1, 1);
  locked.put_page_set(set);
}

TEST_F(PagesCopyTest, MemoryThatIsNotThereIsAFault) {
  const test::GuardedPages memory(1);
  Locked locked(*context_);
  for (const u64 address : {memory.address() + 4096, u64{1} << 62}) {
    PageSet* const set = *locked.make_page_set(address, 4096, true);
    u8 byte = 0;
    EXPECT_EQ(error_of(locked.copy_pages(*set, 0, 1, &byte, nullptr)), EFAULT);
    EXPECT_EQ(error_of(locked.copy_pages(*set, 0, 1, nullptr, &byte)), EFAULT);
    locked.put_page_set(set);
  }
}

}  // namespace
}  // namespace stagetwo::iommu
