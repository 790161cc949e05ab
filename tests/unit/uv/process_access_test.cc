// SPDX-License-Identifier: Apache-2.0
// Goal: pages are read and wiped whatever rights the process has there, and what is not mapped, or
// is a file's that nobody here may write to, is told.
#include "uv/process_access.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "addr/addr.h"

namespace stagetwo::uv {
namespace {

Hva place(const void* at) {
  return Hva(reinterpret_cast<std::uintptr_t>(at));
}

TEST(ProcessAccess, ReadsAndWipesWithoutRights) {
  const int fd = ::memfd_create("access", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(fd, kPageSize), 0);
  for (const int kind : {MAP_PRIVATE | MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED}) {
    for (const int rights : {PROT_READ, PROT_NONE}) {
      const int file = (kind & MAP_ANONYMOUS) != 0 ? -1 : fd;
      void* const at = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, kind, file, 0);
      ASSERT_NE(at, MAP_FAILED);
      std::memset(at, 0x5a, kPageSize);
      ASSERT_EQ(::mprotect(at, kPageSize, rights), 0);
      u8 got[kPageSize] = {};
      EXPECT_TRUE(read_anyhow(place(at), got, kPageSize));
      EXPECT_EQ(got[0], 0x5a);
      EXPECT_TRUE(wipe_anyhow(place(at))) << kind << " " << rights;
      ASSERT_EQ(::mprotect(at, kPageSize, PROT_READ), 0);
      for (u64 i = 0; i < kPageSize; ++i) ASSERT_EQ(static_cast<const u8*>(at)[i], 0) << i;
      ::munmap(at, kPageSize);
    }
  }
  ::close(fd);
}

TEST(ProcessAccess, WhatIsNotMappedOrNotToBeWrittenIsTold) {
  u8 got[kPageSize];
  void* const hole = ::mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ::munmap(hole, kPageSize);
  EXPECT_FALSE(read_anyhow(place(hole), got, kPageSize));
  EXPECT_FALSE(wipe_anyhow(place(hole)));
  const int fd = ::open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  void* const file = ::mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(file, MAP_FAILED);
  EXPECT_TRUE(read_anyhow(place(file), got, kPageSize));
  EXPECT_FALSE(wipe_anyhow(place(file)));
  ::munmap(file, kPageSize);
  ::close(fd);
}

}  // namespace
}  // namespace stagetwo::uv
