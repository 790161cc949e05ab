// SPDX-License-Identifier: Apache-2.0
// Requests on IOASes and options: what is checked first.
#include <atomic>
#include <thread>

#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

class IoasCalls : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    ioas_ = ioas_alloc();
  }
  u32 ioas_ = 0;
  test::GuardedPages memory_{4};
};

TEST_F(IoasCalls, FlagsAndReservedFieldsFirst) {
  iommu_ioas_alloc alloc{.size = sizeof(alloc), .flags = 1, .out_ioas_id = 0};
  EXPECT_EQ(call(IOMMU_IOAS_ALLOC, &alloc), -EOPNOTSUPP);
  EXPECT_EQ(map(9999, 0, 4096, 0, kMapFlags | 8), -EOPNOTSUPP);
  EXPECT_EQ(map(9999, 0, 4096, ~u64{0}), -EOVERFLOW);
  EXPECT_EQ(map(9999, 0, ~u64{0}, 0), -EOVERFLOW);
  EXPECT_EQ(map(9999, 0, 4096, 0, IOMMU_IOAS_MAP_FIXED_IOVA), -EINVAL) << "no rights";
  EXPECT_EQ(map(9999, 0, 4096, 0), -ENOENT);
  EXPECT_EQ(map(ioas_, 0, 0, 0), -EINVAL);
}

TEST_F(IoasCalls, AnswersThatCannotBeGivenLeaveNoIoas) {
  const test::GuardedPages page(1, PROT_READ);
  // Readable, not writable: a struct of zeros has no size.
  EXPECT_EQ(ask(fd_, IOMMU_IOAS_ALLOC, page.pointer()), -EINVAL);
  EXPECT_EQ(destroy(ioas_ + 1), -ENOENT);
}

// Its number is somebody else's at once: what one thread was never told of no other destroys.
TEST_F(IoasCalls, NobodyFindsAnIoasBeforeItsClientWasTold) {
  test::GuardedPages page(1);
  static_cast<iommu_ioas_alloc*>(page.pointer())->size = sizeof(iommu_ioas_alloc);
  ASSERT_EQ(mprotect(page.pointer(), page.bytes(), PROT_READ), 0);
  std::atomic<bool> over{false};
  u64 untold = 0;
  std::thread asks([&] {
    for (; untold < 3000; ++untold) {
      if (ask(fd_, IOMMU_IOAS_ALLOC, page.pointer()) != -EFAULT) break;
    }
    over.store(true);
  });
  u64 tries = 0, found = 0;
  for (; !over.load() || tries < 1000; ++tries) found += destroy(ioas_ + 1) == 0;
  asks.join();
  EXPECT_EQ(untold, 3000u);
  EXPECT_EQ(found, 0u) << "of " << tries << " tries";
  EXPECT_EQ(ioas_alloc(), ioas_ + 1) << "nothing is left of them";
}

TEST_F(IoasCalls, UnmapKnowsEverythingAndNothing) {
  EXPECT_EQ(unmap(9999, 0, 4096), -ENOENT);
  EXPECT_EQ(unmap(ioas_, 0, 4096), -ENOENT);
  EXPECT_EQ(unmap(ioas_, 0, 0), -EINVAL);
  EXPECT_EQ(unmap(ioas_, ~u64{0}, 1), -EOVERFLOW);
  EXPECT_EQ(unmap(ioas_, 4096, ~u64{0} - 1), -EOVERFLOW);
  EXPECT_EQ(unmap(ioas_, 0, ~u64{0}), 0);
  ASSERT_EQ(map(ioas_, memory_.address(), 4096, 4096), 0);
  EXPECT_EQ(unmap(ioas_, 0, ~u64{0}), 4096);
}

TEST_F(IoasCalls, RangesAreCountedBeyondTheRoom) {
  auto reserved = test_cmd(IOMMU_TEST_OP_ADD_RESERVED, ioas_);
  reserved.add_reserved = {4096, 4096};
  ASSERT_EQ(call(IOMMU_TEST_CMD, &reserved), 0);
  iommu_iova_range ranges[3] = {{1, 1}, {2, 2}, {3, 3}};
  iommu_ioas_iova_ranges cmd{.size = sizeof(cmd),
                             .ioas_id = ioas_,
                             .num_iovas = 1,
                             .__reserved = 0,
                             .allowed_iovas = reinterpret_cast<u64>(ranges),
                             .out_iova_alignment = 0};
  EXPECT_EQ(call(IOMMU_IOAS_IOVA_RANGES, &cmd), -EMSGSIZE);
  EXPECT_EQ(cmd.num_iovas, 2u);
  EXPECT_EQ(ranges[0].last, 4095u);
  EXPECT_EQ(ranges[1].start, 2u);
  cmd.num_iovas = 3;
  EXPECT_EQ(call(IOMMU_IOAS_IOVA_RANGES, &cmd), 0);
  EXPECT_EQ(ranges[1].start, 8192u);
  EXPECT_EQ(ranges[1].last, ~u64{0});
  EXPECT_EQ(cmd.out_iova_alignment, 1u);
}

TEST_F(IoasCalls, AllowedRangesAreJudgedInTheirOrder) {
  iommu_iova_range ranges[2] = {{8192, 4096}, {0, 4096}};
  iommu_ioas_allow_iovas cmd{.size = sizeof(cmd),
                             .ioas_id = ioas_,
                             .num_iovas = 2,
                             .__reserved = 0,
                             .allowed_iovas = reinterpret_cast<u64>(ranges)};
  EXPECT_EQ(call(IOMMU_IOAS_ALLOW_IOVAS, &cmd), -EINVAL);
  ranges[0] = {4096, 8191};
  EXPECT_EQ(call(IOMMU_IOAS_ALLOW_IOVAS, &cmd), -EINVAL) << "they share a byte";
  ranges[1] = {0, 4095};
  EXPECT_EQ(call(IOMMU_IOAS_ALLOW_IOVAS, &cmd), 0);
  cmd.allowed_iovas = memory_.address() + memory_.bytes() - 16;
  EXPECT_EQ(call(IOMMU_IOAS_ALLOW_IOVAS, &cmd), -EINVAL) << "what can be read comes first";
  memory_.bytes_at(memory_.bytes() - 8)[0] = 1;
  EXPECT_EQ(call(IOMMU_IOAS_ALLOW_IOVAS, &cmd), -EFAULT);
}

TEST_F(IoasCalls, OptionsOfTheIommufdAndOfAnIoas) {
  iommu_option cmd{.size = sizeof(cmd),
                   .option_id = IOMMU_OPTION_HUGE_PAGES,
                   .op = IOMMU_OPTION_OP_GET,
                   .__reserved = 0,
                   .object_id = ioas_,
                   .val64 = 9};
  EXPECT_EQ(call(IOMMU_OPTION, &cmd), 0);
  EXPECT_EQ(cmd.val64, 1u);
  cmd.op = 7;
  EXPECT_EQ(call(IOMMU_OPTION, &cmd), -EOPNOTSUPP);
  cmd.option_id = IOMMU_OPTION_RLIMIT_MODE;
  EXPECT_EQ(call(IOMMU_OPTION, &cmd), -EOPNOTSUPP) << "not an object's";
  cmd.object_id = 0;
  cmd.op = IOMMU_OPTION_OP_GET;
  EXPECT_EQ(call(IOMMU_OPTION, &cmd), 0);
  EXPECT_EQ(cmd.val64, 0u);
  cmd.option_id = 9;
  EXPECT_EQ(call(IOMMU_OPTION, &cmd), -EOPNOTSUPP);
}

}  // namespace
}  // namespace stagetwo
