// SPDX-License-Identifier: Apache-2.0
// Guards of what a vCPU leaves of private memory: without each, bytes of it stay in the process
// when a run is over, or when their pages have been given up.
#include <cstdio>
#include <cstring>
#include <string>

#include "base/guard.h"
#include "tests/abi/private_machine.h"

namespace kvm_client {
namespace {

using stagetwo::mutation::remove;
using stagetwo::mutation::restore_all;

class Remains : public PrivateMachine {
 protected:
  void SetUp() override {
    PrivateMachine::SetUp();
    ASSERT_EQ(0, make_private(kPrivateGpa, 2));
  }
  void TearDown() override {
    restore_all();
    PrivateMachine::TearDown();
  }
  void guest_stores(u64 gpa, const u8* bytes, size_t size) {
    for (size_t i = 0; i < size; i += 2) {
      const u16 word = static_cast<u16>(bytes[i] | bytes[i + 1] << 8);
      ASSERT_TRUE(guest_store(gpa + i, word));
    }
  }
  // Does it stand in the memory of decoded code and of bytes on their way?
  static bool stands_in_caches(const void* what, size_t size) {
    std::FILE* const maps = std::fopen("/proc/self/maps", "re");
    char line[512];
    bool found = false;
    while (std::fgets(line, sizeof(line), maps) != nullptr) {
      unsigned long start = 0;
      unsigned long end = 0;
      if (std::strstr(line, "stagetwo:1:vcpu") == nullptr) continue;
      if (std::sscanf(line, "%lx-%lx", &start, &end) != 2) continue;
      found = found ||
              ::memmem(reinterpret_cast<const void*>(start), end - start, what, size) != nullptr;
    }
    std::fclose(maps);
    return found;
  }
};

constexpr u8 kCanary[8] = {0xc1, 0x5e, 0xa7, 0x3d, 0x92, 0x6b, 0xf8, 0x14};

// hlt, and what is read of its page behind it; each page is decoded once.
TEST_F(Remains, OfCodeReadAheadAreInTheScratchPageUnlessTheRunIsWiped) {
  u8 code[2 + sizeof(kCanary)] = {0xf4, 0x90};
  std::memcpy(code + 2, kCanary, sizeof(kCanary));
  for (const u64 page : {kPrivateGpa, kPrivateGpa + kPage}) guest_stores(page, code, sizeof(code));
  EXPECT_EQ(0, run(kPrivateGpa, 0, 0));
  EXPECT_FALSE(stands_in_caches(kCanary, sizeof(kCanary)));
  remove("run_is_wiped");
  EXPECT_EQ(0, run(kPrivateGpa + kPage, 0, 0));
  EXPECT_TRUE(stands_in_caches(kCanary, sizeof(kCanary)));
}

// mov eax, canary; hlt: decoded, it stays as long as its page may and no longer.
TEST_F(Remains, OfCodeStayAfterItsPageWasPunchedUnlessTheyAreWiped) {
  const u8 code[] = {0x66, 0xb8, kCanary[0], kCanary[1], kCanary[2], kCanary[3], 0xf4, 0x90};
  const auto runs_and_is_punched = [&] {
    guest_stores(kPrivateGpa, code, sizeof(code));
    EXPECT_EQ(0, run(kPrivateGpa, 0, 0));
    EXPECT_TRUE(stands_in_caches(kCanary, 4));
    EXPECT_EQ(0, fallocate_fd(file_, kPunch, 0, kPage));
    EXPECT_EQ(0, guest_load(kPrivateGpa));
  };
  runs_and_is_punched();
  EXPECT_FALSE(stands_in_caches(kCanary, 4));
  remove("stale_code_is_wiped");
  runs_and_is_punched();
  EXPECT_TRUE(stands_in_caches(kCanary, 4));
}

}  // namespace
}  // namespace kvm_client
