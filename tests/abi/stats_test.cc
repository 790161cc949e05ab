// SPDX-License-Identifier: Apache-2.0
// Binary statistics: layout, life of the files, values.
#include <map>
#include <string>
#include <vector>

#include "tests/abi/kvm_client.h"

namespace kvm_client {
namespace {

class Stats : public Machine {
 protected:
  struct Read {
    kvm_stats_header header{};
    std::string id;
    std::map<std::string, u64> value;
    std::vector<kvm_stats_desc*> rows;
  };
  Read read(int fd) {
    Read out;
    EXPECT_EQ(::pread(fd, &out.header, sizeof(out.header), 0), 24);
    std::vector<char> id(out.header.name_size);
    EXPECT_EQ(::pread(fd, id.data(), id.size(), out.header.id_offset),
              static_cast<ssize_t>(id.size()));
    out.id = id.data();
    const size_t row = sizeof(kvm_stats_desc) + out.header.name_size;
    std::vector<char> rows(row * out.header.num_desc);
    EXPECT_EQ(::pread(fd, rows.data(), rows.size(), out.header.desc_offset),
              static_cast<ssize_t>(rows.size()));
    for (u32 i = 0; i < out.header.num_desc; ++i) {
      kvm_stats_desc desc;
      std::memcpy(&desc, rows.data() + i * row, sizeof(desc));
      u64 value = 0;
      EXPECT_EQ(::pread(fd, &value, 8, out.header.data_offset + desc.offset), 8);
      out.value[rows.data() + i * row + sizeof(desc)] = value;
    }
    return out;
  }
};

TEST_F(Stats, VmFileHasTheKernelsLayout) {
  const Fd fd(call(vm_, KVM_GET_STATS_FD));
  ASSERT_GE(fd, 0);
  const Read stats = read(fd);
  EXPECT_EQ(stats.header.name_size, 48U);
  EXPECT_EQ(stats.header.id_offset, 24U);
  EXPECT_EQ(stats.header.desc_offset, 72U);
  EXPECT_EQ(stats.header.data_offset, 72U + 64U * stats.header.num_desc);
  EXPECT_EQ(stats.id, "kvm-" + std::to_string(getpid()));
  for (const char* name : {"pages_4k", "pages_2m", "pages_1g", "nx_lpage_splits"})
    EXPECT_TRUE(stats.value.contains(name)) << name;
}
TEST_F(Stats, WhatALimitDidToGuestMemoryIsThereBehindTheKernels) {
  if (on_oracle()) GTEST_SKIP() << "oracle: these are not the kernel's";
  const Fd fd(call(vm_, KVM_GET_STATS_FD));
  ASSERT_GE(fd, 0);
  const Read stats = read(fd);
  for (const char* name : {"guest_resident_bytes",      "guest_limit_bytes",
                           "reclaim_limit_bytes",       "reclaim_resident_bytes",
                           "reclaim_compressed_bytes",  "reclaim_on_disk_bytes",
                           "reclaim_working_set_bytes", "reclaim_absent_pages",
                           "reclaim_refaults",          "reclaim_read_ahead_pages",
                           "reclaim_lost_pages",        "reclaim_private_absent_pages",
                           "reclaim_private_refaults",  "reclaim_hugetlb_bytes",
                           "reclaim_locked_bytes",      "reclaim_pages_of_other_owners",
                           "reclaim_refused_pinned",    "reclaim_refused_watched",
                           "reclaim_pages_age_0",       "reclaim_pages_age_1",
                           "reclaim_pages_age_2_to_7",  "reclaim_pages_older"}) {
    ASSERT_TRUE(stats.value.contains(name)) << name;
    EXPECT_EQ(0U, stats.value.at(name)) << name << ": nothing is limited here";
  }
}
TEST_F(Stats, VcpuFileHasTheKernelsLayout) {
  add_vcpu(7);
  const Fd fd(call(vcpu_, KVM_GET_STATS_FD));
  ASSERT_GE(fd, 0);
  const Read stats = read(fd);
  EXPECT_EQ(stats.id, "kvm-" + std::to_string(getpid()) + "/vcpu-7");
  EXPECT_EQ(stats.header.data_offset, 2952U);
  EXPECT_TRUE(stats.value.contains("halt_wait_hist"));
}
TEST_F(Stats, FileIsReadOnlyAndEnds) {
  const Fd fd(call(vm_, KVM_GET_STATS_FD));
  char byte = 0;
  EXPECT_EQ(::write(fd, &byte, 1), -1);
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(::pread(fd, &byte, 1, 1 << 20), 0);
  EXPECT_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
}
TEST_F(Stats, FileOutlivesTheVm) {
  const Fd fd(call(vm_, KVM_GET_STATS_FD));
  const Fd second(call(vm_, KVM_GET_STATS_FD));
  vm_.close();
  device_.close();
  EXPECT_EQ(read(fd).id, read(second).id);
}
TEST_F(Stats, ExitsAreCounted) {
  add_memory();
  add_vcpu();
  load_code({0xe4, 0x60, 0xf4});
  const Fd fd(call(vcpu_, KVM_GET_STATS_FD));
  const u64 before = read(fd).value["exits"];
  ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
  EXPECT_EQ(read(fd).value["exits"] > before, true);
  if (!on_oracle()) {
    EXPECT_EQ(read(fd).value["io_exits"], 1U);
  }
}
TEST_F(Stats, CopyOfTheDescriptorGoesOnCountingWhenOneIsClosed) {
  add_memory();
  add_vcpu();
  load_code({0xe4, 0x60, 0xf4});
  const Fd fd(call(vcpu_, KVM_GET_STATS_FD));
  Fd copy(::dup(fd));
  copy.close();
  const u64 before = read(fd).value["exits"];
  ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
  EXPECT_GT(read(fd).value["exits"], before);
}

}  // namespace
}  // namespace kvm_client
