// SPDX-License-Identifier: Apache-2.0
// The files of fault injection. The kernel's own sweep over them: `make conformance SUITE=iommufd`.
#include <string>
#include <vector>

#include "base/failpoint.h"
#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

std::vector<std::string> swept;

class FailNth : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    swept.clear();
    abi_iommufd::set_site_report([](std::span<const char* const> sites) {
      swept.assign(sites.begin(), sites.end());
      swept.emplace_back("over");
    });
    nth_ = *abi_iommufd::open_fail_nth(O_RDWR);
  }
  void TearDown() override {
    abi_iommufd::set_site_report(nullptr);
    close_fd(nth_);
    IommufdClient::TearDown();
  }
  long write(std::string_view text) {
    const auto done =
        host::find(nth_)->write_bytes(reinterpret_cast<u64>(text.data()), text.size());
    return done ? *done : -static_cast<long>(to_int(done.error()));
  }
  std::string read() {
    char text[32];
    const auto done = host::find(nth_)->read_bytes(reinterpret_cast<u64>(text), sizeof(text));
    return done ? std::string(text, static_cast<size_t>(*done)) : "";
  }
  long alloc() {
    iommu_ioas_alloc cmd{};
    return call(IOMMU_IOAS_ALLOC, &cmd);
  }
  int nth_ = -1;
};

TEST_F(FailNth, IsZeroUntilOneIsArmed) {
  EXPECT_EQ(read(), "0\n");
  EXPECT_EQ(write("7"), 1);
  EXPECT_EQ(read(), "7\n");
  EXPECT_EQ(write("0"), 1);
  EXPECT_EQ(read(), "0\n");
}

TEST_F(FailNth, TakesNumbersAsTheKernelDoes) {
  EXPECT_EQ(write("x"), -EINVAL);
  EXPECT_EQ(write(""), -EINVAL);
  EXPECT_EQ(write("4294967296"), -ERANGE);
  EXPECT_EQ(write("0x10\n"), 5);
  EXPECT_EQ(read(), "16\n");
  EXPECT_EQ(write("0"), 1);
}

TEST_F(FailNth, TheNthPointFailsAndNoOther) {
  EXPECT_EQ(write("3"), 1);  // after two copies of what was asked
  EXPECT_EQ(alloc(), -ENOMEM);
  EXPECT_EQ(read(), "0\n") << "it has";
  EXPECT_EQ(alloc(), 0);
  EXPECT_EQ(write("0"), 1);
}

TEST_F(FailNth, ASweepEndsWithTheSitesThatFailed) {
  u64 n = 1;
  for (; n < 100; ++n) {
    EXPECT_GT(write(std::to_string(n)), 0);
    const long done = alloc();
    const bool fired = read() == "0\n";
    EXPECT_EQ(done == 0, !fired);
    EXPECT_TRUE(done == 0 || done == -ENOMEM || done == -EFAULT) << done;
    EXPECT_EQ(write("0"), 1);
    if (!fired) break;
    EXPECT_TRUE(swept.empty());
  }
  ASSERT_LT(n, 100u);
  EXPECT_EQ(swept,
            (std::vector<std::string>{"abi_iommufd.size", "abi_iommufd.copy_in", "iommu.ioas",
                                      "iommu.object_table", "abi_iommufd.answer", "over"}));
}

TEST_F(FailNth, AKnobIsTakenAndNothingElse) {
  const int knob = *abi_iommufd::open_fail_knob(O_WRONLY);
  const char off = 'N';
  EXPECT_EQ(host::find(knob)->write_bytes(reinterpret_cast<u64>(&off), 1).value(), 1);
  EXPECT_EQ(ask(knob, 1, nullptr), -ENOTTY);
  close_fd(knob);
}

}  // namespace
}  // namespace stagetwo
