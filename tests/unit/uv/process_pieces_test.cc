// SPDX-License-Identifier: Apache-2.0
// Goal: a guest's pages of 64 KiB in this process's own memory, sixteen of its pages each: they
// leave and come together, and whichever is touched has all of them.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "host/backstop.h"
#include "host/change.h"
#include "host/userfault.h"
#include "uv/hypervisor.h"
#include "uv/process_pages.h"
#include "uv/ultravisor.h"

namespace stagetwo::uv {
namespace {

constexpr u64 kBytes = 16 * kPageSize;
constexpr u64 kPages = 6;
constexpr u32 kLpid = 3;
using Bytes = std::vector<u8>;

class ProcessPieces : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install().has_value());
    if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
    memory = static_cast<u8*>(::mmap(nullptr, kPages * kBytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory, MAP_FAILED);
    // The last one is never touched.
    for (u64 page = 0; page + 1 < kPages; ++page) {
      std::memcpy(at(page), text(page).data(), kBytes);
    }
    UltravisorOptions options;
    options.page_bytes = kBytes;
    options.pool_pages = kPages + 2;
    options.cipher_runs = 4;
    options.memory = mem::SecureMemory::Want::kWhatThereIs;
    ASSERT_TRUE(ultravisor.open(options, &hypervisor, &real).has_value());
    guest = std::make_unique<SecureGuest>(kLpid, kBytes, &pages, &ultravisor);
    pages.set_guest(guest.get());
    guest->enable();
    ASSERT_TRUE(hypervisor.add(guest.get()).has_value());
    const HvaRange range(Hva(reinterpret_cast<std::uintptr_t>(memory)), kPages * kBytes);
    ASSERT_TRUE(pages.map(Gpa(0), range).has_value());
    ASSERT_TRUE(guest->add_slot(0, Gpa(0), kPages * kBytes).has_value());
  }
  void TearDown() override {
    if (guest == nullptr) return;
    EXPECT_TRUE(guest->svm_off().has_value());
    EXPECT_EQ(pages.frames_in_use(), 0u);
    pages.forget(Gpa(0));
    hypervisor.remove(guest.get());
    ::munmap(memory, kPages * kBytes);
  }
  void become_secure() { ASSERT_EQ(guest_call(Call::kUvEsm, 1, 1, false), Status::kSuccess); }
  Status guest_call(Call call, u64 a, u64 b, bool secure = true) {
    return ultravisor.call({call, kLpid, {a, b}}, secure ? Caller::kSecureGuest : Caller::kGuest);
  }
  u8* at(u64 page, u64 piece = 0) const { return memory + page * kBytes + piece * kPageSize; }
  static Bytes text(u64 page) {
    Bytes bytes(kBytes);
    for (u64 i = 0; i < kBytes; ++i) {
      bytes[i] = static_cast<u8>("what only the guest may know "[(i / 7 + page) % 29]);
    }
    return bytes;
  }
  u8 touch(u64 page, u64 piece) const { return *const_cast<volatile u8*>(at(page, piece)); }
  Bytes seen(u64 page) const { return Bytes(at(page), at(page) + kBytes); }
  bool is_present(u64 page, u64 piece) const {
    unsigned char there = 0;
    return ::mincore(at(page, piece), kPageSize, &there) == 0 && (there & 1) != 0;
  }
  unsigned present(u64 page) const {
    unsigned count = 0;
    for (u64 piece = 0; piece < 16; ++piece) count += is_present(page, piece);
    return count;
  }
  Bytes guest_bytes(u64 page) {
    Bytes bytes(kBytes);
    GuestAccess done = GuestAccess::kRetry;
    for (int i = 0; i < 1000 && done == GuestAccess::kRetry; ++i) {
      done = ultravisor.access(kLpid, Gpa(page * kBytes), bytes.data(), kBytes, false);
    }
    return done == GuestAccess::kDone ? bytes : Bytes();
  }
  static u64 equal_bytes(const Bytes& a, const Bytes& b) {
    u64 equal = 0;
    for (u64 i = 0; i < a.size(); ++i) equal += a[i] == b[i];
    return equal;
  }

  u8* memory = nullptr;
  ProcessMemory real;
  std::unique_ptr<SecureGuest> guest;  // outlives the pages, which hear the bell
  ProcessPages pages{kBytes};
  Hypervisor hypervisor;
  Ultravisor ultravisor;
};

TEST_F(ProcessPieces, OneTouchSealsTheWholePageAndHasAllOfIt) {
  become_secure();
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(present(page), 0u) << page;
  const u8 byte = touch(2, 9);
  EXPECT_EQ(present(2), 16u);
  EXPECT_EQ(guest->page(Gpa(2 * kBytes)), PageState::kPagedOut);
  EXPECT_EQ(ultravisor.use(kLpid).page_outs, 1u);
  const Bytes sealed = seen(2);
  EXPECT_EQ(sealed[9 * kPageSize], byte);
  EXPECT_LT(equal_bytes(sealed, text(2)), kBytes / 50);
  EXPECT_EQ(guest_bytes(2), text(2));
  EXPECT_EQ(present(2), 0u);
  EXPECT_LT(equal_bytes(seen(2), sealed), kBytes / 50) << "another nonce";
  EXPECT_EQ(guest_bytes(kPages - 1), Bytes(kBytes)) << "never touched: zeros";
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
}

TEST_F(ProcessPieces, S0_08_ASystemCallSeesSealedBytesAcrossPieces) {
  become_secure();
  if (!host::userfault::serves_kernel()) GTEST_SKIP() << "userfaultfd serves user mode";
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  Bytes got(3 * kPageSize);
  const auto size = static_cast<ssize_t>(got.size());
  ASSERT_EQ(::write(ends[1], at(1, 6) + 100, got.size()), size);
  ASSERT_EQ(::read(ends[0], got.data(), got.size()), size);
  ::close(ends[0]);
  ::close(ends[1]);
  EXPECT_EQ(std::memcmp(got.data(), at(1, 6) + 100, got.size()), 0);
  EXPECT_LT(equal_bytes(got, Bytes(at(0), at(0) + got.size())), got.size() / 20);
  EXPECT_EQ(guest_bytes(1), text(1));
}

TEST_F(ProcessPieces, AnAlteredPieceEndsTheGuest) {
  become_secure();
  at(3, 15)[kPageSize - 1] ^= 1;
  EXPECT_EQ(guest_bytes(3), Bytes());
  EXPECT_EQ(ultravisor.use(kLpid).tampered_gpa, 3 * kBytes);
}

TEST_F(ProcessPieces, SharedIsOneFrameForBothAndUnsharedZeros) {
  become_secure();
  ASSERT_EQ(guest_call(Call::kUvSharePage, 1, 2), Status::kSuccess);
  EXPECT_EQ(seen(1), Bytes(kBytes));
  std::memcpy(at(1), text(9).data(), kBytes);
  EXPECT_EQ(guest_bytes(1), text(9));
  ASSERT_EQ(guest_call(Call::kUvUnsharePage, 1, 1), Status::kSuccess);
  EXPECT_EQ(guest_bytes(1), Bytes(kBytes));
  EXPECT_LT(equal_bytes(seen(1), text(9)), kBytes / 50);
}

TEST_F(ProcessPieces, PageOutThatIsAskedForPutsAllPieces) {
  become_secure();
  ASSERT_EQ(ultravisor.ask_page_out(kLpid, Gpa(4 * kBytes)), Status::kSuccess);
  EXPECT_EQ(present(4), 16u);
  EXPECT_EQ(guest->use().touches, 0u);
  EXPECT_EQ(guest_bytes(4), text(4));
}

TEST_F(ProcessPieces, AbortGivesTheBytesBackAndAResetZeros) {
  ASSERT_EQ(ultravisor.esm_begin(kLpid), Status::kSuccess);
  ASSERT_EQ(ultravisor.esm_load(kLpid), Status::kSuccess);
  touch(2, 3);
  EXPECT_EQ(ultravisor.esm_abort(kLpid), Status::kParameter);
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(seen(page), text(page)) << page;
  become_secure();
  touch(2, 3);
  ASSERT_TRUE(guest->svm_off().has_value());
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(seen(page), Bytes(kBytes)) << page;
}

TEST_F(ProcessPieces, WhoseAddressIsGivenUpInPartIsNotTheGuestsAnyMore) {
  become_secure();
  touch(2, 3);
  host::change(Hva(reinterpret_cast<std::uintptr_t>(at(2, 5))).raw(), kPageSize,
               host::EventKind::kClear, [&] { ::madvise(at(2, 5), kPageSize, MADV_DONTNEED); });
  ASSERT_FALSE(is_present(2, 5));
  EXPECT_EQ(guest_bytes(2), Bytes()) << "not what was sealed";
  EXPECT_EQ(ultravisor.use(kLpid).tampered, 1u);
}

TEST_F(ProcessPieces, TouchesFromManyThreadsMeetTheGuestsOwn) {
  become_secure();
  std::vector<std::thread> threads;
  for (u64 me = 0; me < 3; ++me) {
    threads.emplace_back([this, me] {
      for (u64 i = 0; i < 300; ++i) touch((i + me) % 2, (i * 5 + me) % 16);
    });
  }
  for (int i = 0; i < 150; ++i) {
    const u64 page = static_cast<u64>(i) % 2;
    const Bytes bytes = guest_bytes(page);
    EXPECT_TRUE(bytes.empty() || bytes == text(page)) << i;
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ultravisor.use(kLpid).tampered, 0u);
  EXPECT_EQ(guest_bytes(0), text(0));
  EXPECT_EQ(guest_bytes(1), text(1));
}

}  // namespace
}  // namespace stagetwo::uv
