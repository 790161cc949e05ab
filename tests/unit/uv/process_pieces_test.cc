// SPDX-License-Identifier: Apache-2.0
// Goal: a guest's pages of 64 KiB in this process's own memory, sixteen of its pages each: they
// leave and come together, and whichever is touched has all of them.
#include <unistd.h>

#include <array>
#include <thread>

#include "host/change.h"
#include "tests/support/process_guest.h"

namespace stagetwo::uv {
namespace {

class ProcessPieces : public GuestInProcess<16 * kPageSize, 6> {
 protected:
  u8* piece_at(u64 page, u64 piece) const { return at(page) + piece * kPageSize; }
  u8 touch(u64 page, u64 piece) const { return *const_cast<volatile u8*>(piece_at(page, piece)); }
  bool is_present(u64 page, u64 piece) const {
    unsigned char there = 0;
    return ::mincore(piece_at(page, piece), kPageSize, &there) == 0 && (there & 1) != 0;
  }
  unsigned present(u64 page) const {
    unsigned count = 0;
    for (u64 piece = 0; piece < 16; ++piece) count += is_present(page, piece);
    return count;
  }
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
  ASSERT_EQ(::write(ends[1], piece_at(1, 6) + 100, got.size()), size);
  ASSERT_EQ(::read(ends[0], got.data(), got.size()), size);
  ::close(ends[0]);
  ::close(ends[1]);
  EXPECT_EQ(std::memcmp(got.data(), piece_at(1, 6) + 100, got.size()), 0);
  EXPECT_LT(equal_bytes(got, Bytes(at(0), at(0) + got.size())), got.size() / 20);
  EXPECT_EQ(guest_bytes(1), text(1));
}

TEST_F(ProcessPieces, AnAlteredPieceEndsTheGuest) {
  become_secure();
  piece_at(3, 15)[kPageSize - 1] ^= 1;
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

TEST_F(ProcessPieces, AResetLeavesHolesWhereStandInsWere) {
  become_secure();
  touch(2, 3);
  ASSERT_TRUE(guest->svm_off().has_value());
  for (u64 page = 0; page < kPages; ++page) {
    for (u64 piece = 0; piece < kBytes / kPageSize; ++piece) {
      EXPECT_EQ(is_present(page, piece), page == 2) << page << " " << piece;
    }
    EXPECT_EQ(seen(page), Bytes(kBytes)) << page;
  }
}

TEST_F(ProcessPieces, WhoseAddressIsGivenUpInPartIsNotTheGuestsAnyMore) {
  become_secure();
  touch(2, 3);
  host::change(Hva(reinterpret_cast<std::uintptr_t>(piece_at(2, 5))).raw(), kPageSize,
               host::EventKind::kClear,
               [&] { ::madvise(piece_at(2, 5), kPageSize, MADV_DONTNEED); });
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
