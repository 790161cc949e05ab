// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/vm.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "abi/kvm/processor.h"
#include "abi/kvm/stats.h"
#include "base/failpoint.h"
#include "tests/abi/kvm_client.h"

namespace stagetwo::abi_kvm {
namespace {

using kvm_client::call;
using kvm_client::Fd;

TEST(VmLife, DescriptorsGoInAnyOrderAndNothingStays) {
  {
    const Fd warm(kvm_client::open_kvm());
  }
  {
    const Fd device(kvm_client::open_kvm());
    const Fd vm(call(device, KVM_CREATE_VM));
  }
  const AllocUse before = alloc_use();
  for (int order = 0; order < 4; ++order) {
    Fd device(kvm_client::open_kvm());
    Fd vm(call(device, KVM_CREATE_VM));
    Fd vcpu(call(vm, KVM_CREATE_VCPU, 0));
    Fd stats(call(vcpu, KVM_GET_STATS_FD));
    ASSERT_GE(stats, 0);
    if ((order & 1) != 0) vm.close();
    if ((order & 2) != 0) vcpu.close();
    stats.close();
  }
  EXPECT_EQ(host::descriptor_counts().live, 0U);
  EXPECT_LE(alloc_use().bytes - before.bytes, 1024);
}

TEST(VmLife, EachRefusedAllocationIsEnomemAndLeavesNothing) {
  const Fd device(kvm_client::open_kvm());
  {
    const Fd vm(call(device, KVM_CREATE_VM));
  }
  const u64 live = host::descriptor_counts().live;
  u64 refused = 0;
  const auto make_machine = [&] {
    Fd vm(call(device, KVM_CREATE_VM));
    if (vm < 0) {
      ++refused;
      return;
    }
    const Fd vcpu(call(vm, KVM_CREATE_VCPU, 0));
    if (vcpu < 0) ++refused;
  };
  failpoint::sweep(make_machine);
  EXPECT_GT(refused, 5U);
  EXPECT_EQ(host::descriptor_counts().live, live);
}

TEST(VmLife, ManyThreadsMakeVcpusAndEveryIdIsThereOnce) {
  const Fd device(kvm_client::open_kvm());
  const Fd vm(call(device, KVM_CREATE_VM));
  std::atomic<int> made{0};
  std::vector<std::thread> threads;
  std::vector<Fd> fds(256);
  for (u64 t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (u64 id = 0; id < 256; ++id) {
        Fd fd(call(vm, KVM_CREATE_VCPU, id));
        if (fd < 0) continue;
        ++made;
        fds[id] = std::move(fd);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(made.load(), 256);
}

TEST(Statistics, TablesAndEnumerationsAgree) {
  EXPECT_EQ(vm_stat_descriptors().size(),
            15U + 2U + std::size(reclaim::kFigures) + reclaim::kAgeBuckets)
      << "the kernel's, and ours";
  EXPECT_EQ(vcpu_stat_descriptors().size(), 45U);
  u32 next = 0;
  for (const StatDescriptor& row : vm_stat_descriptors()) {
    EXPECT_EQ(row.offset, next) << row.name;
    next += row.size;
  }
  EXPECT_EQ(next, static_cast<u32>(VmStat::kCount));
  const u32 first = static_cast<u32>(VmStat::kReclaim);
  EXPECT_STREQ(vm_stat_descriptors()[first].name, "reclaim_limit_bytes");
  EXPECT_EQ(vm_stat_descriptors()[first].offset, first);
  EXPECT_STREQ(vm_stat_descriptors().back().name, "reclaim_pages_older");
  next = 0;
  for (const StatDescriptor& row : vcpu_stat_descriptors()) {
    EXPECT_EQ(row.offset, next) << row.name;
    next += row.size;
  }
  EXPECT_EQ(next, static_cast<u32>(VcpuStat::kCount));
  EXPECT_STREQ(vcpu_stat_descriptors()[20].name, "exits");
  EXPECT_EQ(vcpu_stat_descriptors()[20].offset, static_cast<u32>(VcpuStat::kExits));
}

TEST(RunArea, IsWhatTheDeviceSays) {
  const Fd device(kvm_client::open_kvm());
  EXPECT_EQ(call(device, KVM_GET_VCPU_MMAP_SIZE), static_cast<long>(Processor::kRunAreaSize));
}

}  // namespace
}  // namespace stagetwo::abi_kvm
