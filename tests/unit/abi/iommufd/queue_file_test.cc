// SPDX-License-Identifier: Apache-2.0
#include "abi/iommufd/queue_file.h"

#include <gtest/gtest.h>

namespace stagetwo::abi_iommufd {
namespace {

TEST(QueueName, IsAsItWasWritten) {
  QueueName name;
  ASSERT_TRUE(parse_queue_name("iommufd-pgfault:7:1:123456:99", "iommufd-pgfault", &name));
  EXPECT_EQ(name.id, 7u);
  EXPECT_EQ(name.device, 1u);
  EXPECT_EQ(name.inode, 123456u);
  EXPECT_EQ(name.maker, 99u);
}

TEST(QueueName, IsNothingElse) {
  QueueName name;
  for (const char* kind :
       {"iommufd", "iommufd-pgfault", "iommufd-pgfault:7",
        "iommufd-pgfault:7:1:2:", "iommufd-pgfault:7:1:2:3:4", "iommufd-pgfault:7:1:2:3x"}) {
    EXPECT_FALSE(parse_queue_name(kind, "iommufd-pgfault", &name)) << kind;
  }
  EXPECT_FALSE(find_iommufd_of({.id = 1, .device = 1, .inode = 1, .maker = 0x7fffffff}));
}

}  // namespace
}  // namespace stagetwo::abi_iommufd
