// SPDX-License-Identifier: Apache-2.0
// Goal: where a vCPU of a secure guest finds a page, in every state of the guest and of the page;
// and its translations are gone before a page is another's.
#include <gtest/gtest.h>

#include "tests/support/secure_machine.h"
#include "tests/support/toy_guest_table.h"

namespace stagetwo::uv {
namespace {

using test::Bytes;
using test::SecureMachine;

class Translations : public testing::Test {
 protected:
  static constexpr u64 kPages = 4;
  void SetUp() override {
    m.plug(0, 0, kPages);
    m.vmm_fill(0, kPages - 1);
    table.listen(&m.ultravisor, m.kLpid);
  }
  void TearDown() override { table.leave(); }
  Where where(u64 page) {
    u8* at = nullptr;
    const Where found = m.ultravisor.translate(m.kLpid, m.gpa(page), &at);
    EXPECT_EQ(at != nullptr, found == Where::kSecure);
    return found;
  }
  u64 word_of(u64 page) {
    u64 word = 0;
    const Bytes text = m.text(page);
    std::memcpy(&word, text.data(), sizeof(word));
    return word;
  }
  Where read(u64 page, u64* word) {
    *word = ~u64{0};
    return table.access(m.gpa(page), word, false);
  }
  SecureMachine m{4096, 8};
  test::ToyGuestTable table;
};

TEST_F(Translations, OfANormalGuestAreTheProcesss) {
  EXPECT_EQ(where(0), Where::kProcess);
  EXPECT_EQ(where(100), Where::kProcess) << "the ultravisor knows no slot yet";
  EXPECT_EQ(m.ultravisor.bring(m.kLpid, m.gpa(0)), GuestAccess::kDone);
  EXPECT_EQ(m.ultravisor.translate(99, m.gpa(0), nullptr), Where::kProcess) << "nobody's lpid";
}

TEST_F(Translations, AreNoneWhileAGuestChanges) {
  const u64 rings = table.rings;
  ASSERT_EQ(m.ultravisor.esm_begin(m.kLpid), Status::kSuccess);
  EXPECT_GT(table.rings, rings) << "those of the normal guest go";
  EXPECT_EQ(where(0), Where::kLater);
  EXPECT_EQ(m.ultravisor.bring(m.kLpid, m.gpa(0)), GuestAccess::kRetry);
  EXPECT_EQ(m.ultravisor.esm_abort(m.kLpid), Status::kParameter);
  EXPECT_EQ(where(0), Where::kProcess);
}

TEST_F(Translations, OfASecureGuestLeadToSecureMemory) {
  ASSERT_EQ(m.esm(), Status::kSuccess);
  EXPECT_EQ(where(0), Where::kSecure);
  u64 word = 0;
  EXPECT_EQ(read(0, &word), Where::kSecure);
  EXPECT_EQ(word, word_of(0));
  EXPECT_EQ(where(kPages), Where::kMmio);
  EXPECT_EQ(m.ultravisor.bring(m.kLpid, m.gpa(kPages)), GuestAccess::kMmio);
  ASSERT_TRUE(m.guest.add_slot(1, m.gpa(kPages), 4096).has_value());
  EXPECT_EQ(where(kPages), Where::kLater) << "it has no memory yet";
  EXPECT_EQ(read(kPages, &word), Where::kSecure);
  EXPECT_EQ(word, 0u);
}

TEST_F(Translations, AreGoneBeforeThePageIsSealedAndComeBackWithIt) {
  ASSERT_EQ(m.esm(), Status::kSuccess);
  u64 word = 42;
  ASSERT_EQ(table.access(m.gpa(0), &word, true), Where::kSecure);
  ASSERT_EQ(table.size(), 1u);
  EXPECT_FALSE(m.vmm_read(0).empty());
  EXPECT_EQ(table.size(), 0u);
  EXPECT_EQ(where(0), Where::kLater);
  EXPECT_EQ(read(0, &word), Where::kSecure);
  EXPECT_EQ(word, 42u);
}

TEST_F(Translations, OfASharedPageAreTheProcesssAndAfterItZeros) {
  ASSERT_EQ(m.esm(), Status::kSuccess);
  u64 word = 0;
  ASSERT_EQ(read(0, &word), Where::kSecure);
  ASSERT_EQ(m.guest_call(Call::kUvSharePage, 0, 1), Status::kSuccess);
  EXPECT_EQ(table.size(), 0u);
  EXPECT_EQ(read(0, &word), Where::kProcess);
  EXPECT_EQ(m.ultravisor.bring(m.kLpid, m.gpa(0)), GuestAccess::kDone);
  const u64 rings = table.rings;
  ASSERT_EQ(m.guest_call(Call::kUvUnsharePage, 0, 1), Status::kSuccess);
  EXPECT_GT(table.rings, rings) << "an answer of before is no good any more";
  EXPECT_EQ(read(0, &word), Where::kSecure);
  EXPECT_EQ(word, 0u);
}

TEST_F(Translations, AllGoWhenAPageWasTamperedWith) {
  ASSERT_EQ(m.esm(), Status::kSuccess);
  u64 word = 0;
  ASSERT_EQ(read(1, &word), Where::kSecure);
  ASSERT_TRUE(m.vmm_write(0, Bytes(4096, 1)));
  EXPECT_EQ(read(0, &word), Where::kStopped);
  EXPECT_EQ(word, ~u64{0}) << "not one byte of it";
  EXPECT_EQ(table.size(), 0u);
  EXPECT_EQ(where(1), Where::kStopped) << "its vCPUs reach nothing any more";
  EXPECT_EQ(m.ultravisor.bring(m.kLpid, m.gpa(1)), GuestAccess::kStopped);
}

TEST_F(Translations, GoWithTheirSlotAndWithTheGuest) {
  ASSERT_EQ(m.esm(), Status::kSuccess);
  ASSERT_TRUE(m.guest.add_slot(1, m.gpa(8), 4096).has_value());
  u64 word = 0;
  ASSERT_EQ(read(8, &word), Where::kSecure);
  ASSERT_EQ(read(0, &word), Where::kSecure);
  m.guest.remove_slot(1);
  EXPECT_EQ(table.size(), 1u);
  EXPECT_EQ(where(8), Where::kMmio);
  ASSERT_TRUE(m.guest.svm_off().has_value());
  EXPECT_EQ(table.size(), 0u);
  EXPECT_EQ(where(0), Where::kProcess);
}

// More pages than the pool has: each comes for its vCPU, and whoever has to go for it is told.
TEST_F(Translations, OfPagesThatAreEvictedGoInTime) {
  SecureMachine small(4096, 2);
  small.plug(0, 0, kPages);
  small.vmm_fill(0, kPages);
  test::ToyGuestTable pages;
  pages.listen(&small.ultravisor, small.kLpid);
  ASSERT_EQ(small.esm(), Status::kSuccess);
  for (u64 round = 0; round < 3; ++round) {
    for (u64 page = 0; page < kPages; ++page) {
      u64 word = 0;
      ASSERT_EQ(pages.access(small.gpa(page), &word, false), Where::kSecure);
      EXPECT_EQ(word, round == 0 ? word_of(page) : round * 100 + page);
      word = (round + 1) * 100 + page;
      ASSERT_EQ(pages.access(small.gpa(page), &word, true), Where::kSecure);
      EXPECT_LE(pages.size(), 2u);
    }
  }
  pages.leave();
}

}  // namespace
}  // namespace stagetwo::uv
