// SPDX-License-Identifier: Apache-2.0
// What the process's own mappings are, as the kernel shows them.
#include "host/process_map.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace stagetwo {
namespace {

Hva hva(const void* at) {
  return Hva(reinterpret_cast<u64>(at));
}

TEST(ProcessMap, AFilesMappingNamesTheFileAndWhereInIt) {
  const int fd = memfd_create("map", 0);
  ASSERT_EQ(ftruncate(fd, 4 * kPageSize), 0);
  struct stat file{};
  ASSERT_EQ(fstat(fd, &file), 0);
  void* at = mmap(nullptr, 2 * kPageSize, PROT_READ, MAP_SHARED, fd, 2 * kPageSize);
  const auto mapping = host::mapping_at(hva(at) + kPageSize);
  ASSERT_TRUE(mapping);
  EXPECT_TRUE(mapping->shared);
  EXPECT_TRUE(mapping->file_backed);
  EXPECT_EQ(mapping->device, file.st_dev);
  EXPECT_EQ(mapping->inode, file.st_ino);
  EXPECT_EQ(mapping->offset + (hva(at) - mapping->range.start()), 2 * kPageSize);
  munmap(at, 2 * kPageSize);
  close(fd);
}
TEST(ProcessMap, PrivateMemoryIsNoFiles) {
  void* at = mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const auto mapping = host::mapping_at(hva(at));
  ASSERT_TRUE(mapping);
  EXPECT_FALSE(mapping->file_backed);
  EXPECT_EQ(mapping->inode, 0u);
  munmap(at, kPageSize);
  EXPECT_FALSE(host::mapping_at(hva(at)));
}

}  // namespace
}  // namespace stagetwo
