// SPDX-License-Identifier: Apache-2.0
// Goal: the level the kernel really maps. Method: memory of each kind this machine can give, and
// the answer of smaps beside ours.
#include "host/mapping_level.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <string>

#include "host/hugetlb_standin.h"
#include "host/process.h"

namespace stagetwo::host {
namespace {

constexpr u64 k2M = u64{1} << 21;

// Room of two huge pages, aligned to one; unmapped with the object.
class Aligned {
 public:
  explicit Aligned(u64 bytes = 2 * k2M) : bytes_(bytes) {
    raw_ = mmap(nullptr, bytes + k2M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    at_ = (reinterpret_cast<u64>(raw_) + k2M - 1) & ~(k2M - 1);
  }
  ~Aligned() { munmap(raw_, bytes_ + k2M); }
  [[nodiscard]] char* at() const { return reinterpret_cast<char*>(at_); }
  [[nodiscard]] Hva hva(u64 offset = 0) const { return Hva(at_ + offset); }

 private:
  u64 bytes_;
  void* raw_;
  u64 at_;
};

bool has_transparent() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string text;
  std::getline(file, text);
  return !text.empty() && text.find("[never]") == std::string::npos;
}

// Does smaps see a transparent huge page in [at, at + 2 MiB)?
bool smaps_sees_huge(const char* at) {
  std::ifstream file("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(file, line)) {
    u64 start = 0;
    u64 end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2) {
      inside = start <= reinterpret_cast<u64>(at) && reinterpret_cast<u64>(at) < end;
    }
    if (inside && line.starts_with("AnonHugePages:")) return std::stoul(line.substr(14)) > 0;
  }
  return false;
}

TEST(MappingLevel, OfSmallPagesIsOne) {
  Aligned memory;
  ASSERT_EQ(0, madvise(memory.at(), 2 * k2M, MADV_NOHUGEPAGE));
  EXPECT_EQ(1U, mapping_level(memory.hva())) << "nothing there";
  std::memset(memory.at(), 1, 2 * k2M);
  EXPECT_EQ(1U, mapping_level(memory.hva()));
  EXPECT_EQ(1U, mapping_level(memory.hva(k2M)));
}

TEST(MappingLevel, OfATransparentHugePageIsTwo) {
  if (!has_transparent()) GTEST_SKIP() << "transparent huge pages are off";
  Aligned memory;
  ASSERT_EQ(0, madvise(memory.at(), 2 * k2M, MADV_HUGEPAGE));
  memory.at()[0] = 1;
  if (!smaps_sees_huge(memory.at())) GTEST_SKIP() << "the kernel had no huge page to give";
  EXPECT_EQ(2U, mapping_level(memory.hva()));
  EXPECT_EQ(2U, mapping_level(memory.hva(k2M - kPageSize))) << "anywhere in it";
  EXPECT_EQ(1U, mapping_level(memory.hva(k2M))) << "its neighbour is not touched yet";
}

TEST(MappingLevel, OfASplitHugePageIsOne) {
  if (!has_transparent()) GTEST_SKIP() << "transparent huge pages are off";
  Aligned memory;
  ASSERT_EQ(0, madvise(memory.at(), 2 * k2M, MADV_HUGEPAGE));
  memory.at()[0] = 1;
  ASSERT_EQ(0, madvise(memory.at() + 7 * kPageSize, kPageSize, MADV_DONTNEED));
  EXPECT_EQ(1U, mapping_level(memory.hva()));
}

TEST(MappingLevel, IsUnknownToKernelsBeforePagemapScan) {
  Aligned memory;
  ASSERT_EQ(0, madvise(memory.at(), 2 * k2M, MADV_HUGEPAGE));
  memory.at()[0] = 1;
  debug_without_pagemap_scan(true);
  EXPECT_EQ(1U, mapping_level(memory.hva()));
  debug_without_pagemap_scan(false);
}

// A pool for the length of a test.
class RealPool {
 public:
  explicit RealPool(const char* size)
      : path_(std::string("/sys/kernel/mm/hugepages/hugepages-") + size + "/nr_hugepages") {
    std::ifstream(path_) >> before_;
    std::ofstream(path_) << before_ + 1;
    std::ifstream(path_) >> now_;
  }
  ~RealPool() { std::ofstream(path_) << before_; }
  [[nodiscard]] bool has_one() const { return now_ > before_; }

 private:
  std::string path_;
  long before_ = 0;
  long now_ = 0;
};

void expect_hugetlb(const char* size, int shift, unsigned level) {
  if (geteuid() != 0) GTEST_SKIP() << "skipped: needs root (a hugetlb pool)";
  const RealPool pool(size);
  const u64 bytes = u64{1} << shift;
  void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | shift << 26, -1, 0);
  if (!pool.has_one() || at == MAP_FAILED) GTEST_SKIP() << "no huge page of that size";
  static_cast<char*>(at)[0] = 1;
  EXPECT_EQ(level, mapping_level(Hva(reinterpret_cast<u64>(at))));
  EXPECT_EQ(level, mapping_level(Hva(reinterpret_cast<u64>(at) + bytes - kPageSize)));
  debug_without_pagemap_scan(true);
  EXPECT_EQ(level, mapping_level(Hva(reinterpret_cast<u64>(at) + kPageSize))) << "by smaps";
  debug_without_pagemap_scan(false);
  debug_without_procmap_query(true);
  EXPECT_LE(2U, mapping_level(Hva(reinterpret_cast<u64>(at)))) << "never less than is known";
  debug_without_procmap_query(false);
  munmap(at, bytes);
}

TEST(MappingLevel, OfAHugetlbPageIsTwo) {
  expect_hugetlb("2048kB", 21, 2);
}
TEST(MappingLevel, OfAGigabytePageIsThree) {
  expect_hugetlb("1048576kB", 30, 3);
}

TEST(MappingLevel, OfTheStandInIsWhatItRecordedAndAllOfItIsThere) {
  hugetlb::enable();
  const hugetlb::MapCall call{
      nullptr, k2M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0};
  const auto at = hugetlb::map(call, 2);
  ASSERT_TRUE(at);
  const Hva hva(reinterpret_cast<u64>(*at));
  EXPECT_EQ(1U, mapping_level(hva)) << "nothing is there yet, and asking brings nothing";
  static_cast<char*>(*at)[5 * kPageSize] = 1;
  EXPECT_EQ(2U, mapping_level(hva + 5 * kPageSize));
  unsigned char resident[512];
  ASSERT_EQ(0, mincore(*at, k2M, resident));
  for (const unsigned char page : resident) EXPECT_EQ(1, page & 1);
  munmap(*at, k2M);
  hugetlb::debug_reset();
}

TEST(MappingLevel, InAChildIsTheChilds) {
  if (!has_transparent()) GTEST_SKIP() << "transparent huge pages are off";
  Aligned memory;
  ASSERT_EQ(0, madvise(memory.at(), 2 * k2M, MADV_HUGEPAGE));
  memory.at()[0] = 1;
  if (mapping_level(memory.hva()) != 2) GTEST_SKIP() << "no huge page to give";
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    madvise(memory.at(), 2 * k2M, MADV_DONTNEED);
    _exit(static_cast<int>(mapping_level(memory.hva())));
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(1, WEXITSTATUS(status));
  EXPECT_EQ(2U, mapping_level(memory.hva()));
}

}  // namespace
}  // namespace stagetwo::host
