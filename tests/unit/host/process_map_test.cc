// SPDX-License-Identifier: Apache-2.0
// What the process's own mappings are, as the kernel shows them.
#include "host/process_map.h"

#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

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

// Pages of a mapping, each as `letters` says: w stored to, r only read, - not touched.
u8* touched(const char* letters, int flags, int fd = -1) {
  const size_t pages = std::strlen(letters);
  auto* at = static_cast<u8*>(
      mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, flags | MAP_PRIVATE, fd, 0));
  for (size_t i = 0; i < pages; ++i) {
    volatile u8* const byte = at + i * kPageSize;
    if (letters[i] == 'w') *byte = 1;
    if (letters[i] == 'r') static_cast<void>(*byte);
  }
  return at;
}
u64 present(u8* at, u64 first, u64 pages, bool own) {
  return host::present_pages(HvaRange(hva(at) + first * kPageSize, pages * kPageSize), own);
}

TEST(ProcessMap, PresentPagesAreThoseUpToTheFirstThatIsNot) {
  u8* const at = touched("ww-wrw", MAP_ANONYMOUS);
  if (present(at, 0, 1, false) == 0) GTEST_SKIP() << "the kernel does not say";
  EXPECT_EQ(present(at, 0, 2, true), 2u);
  EXPECT_EQ(present(at, 0, 6, true), 2u);
  EXPECT_EQ(present(at, 2, 4, true), 0u);
  EXPECT_EQ(present(at, 3, 3, true), 1u) << "the page of zeros is nobody's";
  EXPECT_EQ(present(at, 5, 1, false), 1u);
  munmap(at, 6 * kPageSize);
}
TEST(ProcessMap, APageOfAFileIsPresentButNotTheProcesssOwn) {
  const int fd = memfd_create("present", 0);
  ASSERT_EQ(ftruncate(fd, 3 * kPageSize), 0);
  ASSERT_EQ(pwrite(fd, "abc", 3, 0), 3);
  u8* const at = touched("rww", 0, fd);
  if (present(at, 0, 1, false) == 0) GTEST_SKIP() << "the kernel does not say";
  EXPECT_EQ(present(at, 0, 3, false), 3u);
  EXPECT_EQ(present(at, 0, 3, true), 0u);
  EXPECT_EQ(present(at, 1, 2, true), 2u);
  munmap(at, 3 * kPageSize);
  close(fd);
}

TEST(ProcessMap, ARingOfTheKernelsIsKnownByItsName) {
  EXPECT_EQ(host::KernelRing::kNone, host::ring_at(Hva(::getauxval(AT_SYSINFO_EHDR))));
  EXPECT_EQ(host::KernelRing::kNone, host::ring_at(Hva(0))) << "nothing is there";
  unsigned long context = 0;
  if (::syscall(SYS_io_setup, 4, &context) == 0) {
    EXPECT_EQ(host::KernelRing::kIoContext, host::ring_at(Hva(context)));
    ::syscall(SYS_io_destroy, context);
  }
  io_uring_params params{};
  const int ring = static_cast<int>(::syscall(SYS_io_uring_setup, 4, &params));
  if (ring < 0) GTEST_SKIP() << "io_uring is not to be had here (kernel.io_uring_disabled?)";
  void* const at = ::mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED, ring, IORING_OFF_SQ_RING);
  EXPECT_EQ(host::KernelRing::kIoUring, host::ring_at(Hva(reinterpret_cast<u64>(at))));
  ::munmap(at, kPageSize);
  ::close(ring);
}

// The kernel puts its own among what is mapped for the client, who may have memory right below.
TEST(ProcessMap, WhatTheKernelMappedForItselfIsSpecialAndNothingBesideIt) {
  const Hva vdso(::getauxval(AT_SYSINFO_EHDR));
  ASSERT_NE(Hva(), vdso);
  EXPECT_TRUE(host::is_special(vdso));
  EXPECT_TRUE(host::is_special(vdso - kPageSize)) << "its data";
  unsigned beside = 0;
  for (u64 pages = 2; pages <= 64; ++pages) {
    const Hva at = vdso - pages * kPageSize;
    void* const wanted = reinterpret_cast<void*>(at.raw());
    void* const made = ::mmap(wanted, kPageSize, PROT_READ,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (made != wanted) continue;
    EXPECT_FALSE(host::is_special(at)) << pages;
    ++beside;
    ::munmap(made, kPageSize);
  }
  std::printf("%u pages beside it looked at\n", beside);
  EXPECT_FALSE(host::is_special(Hva(0)));
}

}  // namespace
}  // namespace stagetwo
