// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where private pages go in a test: a store in memory and a file without a name.

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <vector>

#include "mem/private_swap.h"
#include "mem/swap_file.h"

namespace stagetwo::test {

class TestSwap final : public mem::PrivateSwap {
 public:
  explicit TestSwap(mem::PageStore& store) : PrivateSwap(store) {
    bench_->store = store_bench_.get();
  }
  ~TestSwap() {
    if (fd >= 0) ::close(fd);
  }
  void use_file() {
    fd = *mem::SwapFile::create(::testing::TempDir().c_str());
    number.exchange(fd);
  }
  mem::private_pages::Taken take(HvaRange range) {
    return mem::private_pages::take(range, bench_.get());
  }
  // Changes a byte of the file.
  void damage(off_t at) const {
    u8 byte = 0;
    EXPECT_EQ(1, ::pread(fd, &byte, 1, at));
    byte ^= 0x5a;
    EXPECT_EQ(1, ::pwrite(fd, &byte, 1, at));
  }
  [[nodiscard]] const u8* clear() const { return bench_->clear; }

  [[nodiscard]] sync::KeptNumber::Use file() const override { return number.use(); }
  u64 private_came_back(Hva) override {
    ++back;
    return ahead;
  }
  void private_came_along(HvaRange pages) override { along += pages.size() >> kPageShift; }
  void private_lost(Hva, int error) override { lost.push_back(error); }
  void private_discarded(u64 pages) override { discarded += pages; }

  int fd = -1;
  sync::KeptNumber number{sync::KeptNumber::kNone};
  std::atomic<u64> back{0};
  u64 ahead = 0;  // that are to come along
  u64 along = 0;  // that did
  u64 discarded = 0;
  std::vector<int> lost;

 private:
  std::unique_ptr<mem::PageStore::Bench> store_bench_ = std::make_unique<mem::PageStore::Bench>();
  std::unique_ptr<Bench> bench_ = std::make_unique<Bench>();
};

}  // namespace stagetwo::test
