// SPDX-License-Identifier: Apache-2.0
// Goal: a VMM that saves what the log has marked has all of its guest's memory: whatever it would
// read differently has been told (uv/change_log.h). Method: random steps of a guest in a pool that
// is too small and of its VMM; after each few, every page is read and compared with what was read
// last.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/support/random_source.h"
#include "tests/support/secure_machine.h"

namespace stagetwo::uv {
namespace {

using test::Bytes;
using test::RandomSource;
using test::SecureMachine;

class MarkedPages final : public ChangeLog {
 public:
  explicit MarkedPages(u64 page_bytes) : page_bytes_(page_bytes) {}
  void changed(Gpa page, u64 bytes) override {
    EXPECT_EQ(page.raw() % page_bytes_, 0u);
    EXPECT_EQ(bytes % page_bytes_, 0u);
    for (u64 i = 0; i < bytes / page_bytes_; ++i) marked.insert(page.raw() / page_bytes_ + i);
  }
  std::set<u64> marked;

 private:
  const u64 page_bytes_;
};

class SecureGuestLog : public testing::TestWithParam<u64> {
 protected:
  static constexpr u64 kPages = 10;
  static constexpr u32 kPool = 6;

  void SetUp() override {
    m_.guest.set_log(&log_);
    m_.plug(0, 0, kPages);
    m_.vmm_fill(0, kPages - 1);
    harvest();
  }
  // What a VMM does that copies its guest: takes the marks, then reads.
  void harvest() {
    log_.marked.clear();
    for (u64 page = 0; page < kPages; ++page) saved_[page] = m_.vmm_read(page);
  }
  // Pages that read otherwise than they were saved, and are not marked.
  std::set<u64> missed() {
    const std::set<u64> marked = log_.marked;
    std::set<u64> differ;
    for (u64 page = 0; page < kPages; ++page) {
      Bytes now = m_.vmm_read(page);
      if (now != saved_[page] && marked.count(page) == 0) differ.insert(page);
      saved_[page] = std::move(now);
    }
    log_.marked.clear();
    return differ;
  }
  static std::set<u64> all() {
    std::set<u64> pages;
    for (u64 page = 0; page < kPages; ++page) pages.insert(page);
    return pages;
  }

  MarkedPages log_{GetParam()};  // outlives the guest
  SecureMachine m_{GetParam(), kPool};
  Bytes saved_[kPages];
};

TEST_P(SecureGuestLog, HasEachWayAPageBecomesAnother) {
  ASSERT_EQ(m_.esm(), Status::kSuccess);
  EXPECT_EQ(log_.marked, all()) << "those never touched, too: they will be sealed zeros";
  harvest();
  EXPECT_EQ(log_.marked, std::set<u64>()) << "what the VMM looks at is no change";
  // Loaded and no more: what was saved of it would end the guest.
  EXPECT_EQ(m_.guest_bytes(3), m_.text(3));
  EXPECT_EQ(log_.marked, std::set<u64>({3}));
  harvest();
  ASSERT_EQ(m_.guest_call(Call::kUvSharePage, 3, 2), Status::kSuccess);
  EXPECT_EQ(log_.marked, std::set<u64>({3, 4}));
  harvest();
  ASSERT_EQ(m_.guest_call(Call::kUvSharePage, 3, 1), Status::kSuccess);
  EXPECT_EQ(log_.marked, std::set<u64>()) << "it was shared";
  ASSERT_EQ(m_.guest_call(Call::kUvUnsharePage, 3, 1), Status::kSuccess);
  EXPECT_EQ(log_.marked, std::set<u64>({3}));
  harvest();
  // Something else is mapped where a secure page was, and the page is put over it.
  EXPECT_EQ(m_.guest_bytes(5), m_.text(5));
  m_.normal.unmap(&m_.guest, m_.gpa(5), false);
  harvest();
  ASSERT_EQ(m_.ultravisor.ask_page_out(m_.kLpid, m_.gpa(5)), Status::kSuccess);
  EXPECT_EQ(log_.marked, std::set<u64>({5}));
  harvest();
  ASSERT_TRUE(m_.guest.svm_off().has_value());
  EXPECT_EQ(log_.marked, all());
  EXPECT_EQ(missed(), std::set<u64>());
}

TEST_P(SecureGuestLog, HasWhatAnAbortGivesBack) {
  ASSERT_EQ(m_.ultravisor.esm_begin(m_.kLpid), Status::kSuccess);
  // 0: secure, 1: paged out, 2: shared as it was, the rest normal.
  for (const u64 page : {0UL, 1UL}) {
    ASSERT_EQ(m_.ultravisor.ask_page_in(m_.kLpid, m_.gpa(page)), Status::kSuccess);
  }
  ASSERT_EQ(m_.ultravisor.ask_page_out(m_.kLpid, m_.gpa(1)), Status::kSuccess);
  ASSERT_EQ(m_.ultravisor.ask_share(m_.kLpid, m_.gpa(2)), Status::kSuccess);
  harvest();
  ASSERT_EQ(m_.ultravisor.ask_page_in(m_.kLpid, m_.gpa(0)), Status::kSuccess);
  log_.marked.clear();
  EXPECT_EQ(m_.ultravisor.esm_abort(m_.kLpid), Status::kParameter);
  EXPECT_EQ(log_.marked, std::set<u64>({0, 1}));
  EXPECT_EQ(missed(), std::set<u64>());
}

// Between two turns of UV_ESM. Whoever keeps the log has the slot at its new place when its pages
// become zeros, also if the ultravisor refuses that one and it is to come back.
TEST_P(SecureGuestLog, HasWhatASlotThatMovesThrowsAwayWhereTheSlotIsThen) {
  for (const bool refused : {false, true}) {
    ASSERT_EQ(m_.ultravisor.esm_begin(m_.kLpid), Status::kSuccess);
    for (const u64 page : {0UL, 1UL}) {
      ASSERT_EQ(m_.ultravisor.ask_page_in(m_.kLpid, m_.gpa(page)), Status::kSuccess);
    }
    ASSERT_EQ(m_.ultravisor.ask_page_out(m_.kLpid, m_.gpa(1)), Status::kSuccess);
    ASSERT_EQ(m_.ultravisor.ask_share(m_.kLpid, m_.gpa(3)), Status::kSuccess);
    log_.marked.clear();
    if (refused) m_.to_uv.refuse(Call::kUvRegisterMemSlot, 1, Status::kParameter);
    EXPECT_EQ(m_.guest.move_slot(0, 1, m_.gpa(5)).has_value(), !refused);
    EXPECT_EQ(log_.marked, std::set<u64>({5, 6, 8})) << refused;
    if (!refused) {
      EXPECT_EQ(m_.vmm_read(5), Bytes(GetParam()));
      EXPECT_EQ(m_.vmm_read(7), m_.text(2)) << "it was normal, and is";
      EXPECT_EQ(m_.ultravisor.esm_abort(m_.kLpid), Status::kParameter);
      ASSERT_TRUE(m_.guest.move_slot(0, 1, m_.gpa(0)).has_value());
      m_.vmm_fill(0, kPages - 1);
    }
  }
  // Of a secure guest: thrown away, and sealed zeros from then on.
  ASSERT_EQ(m_.ultravisor.esm_abort(m_.kLpid), Status::kParameter);
  ASSERT_EQ(m_.esm(), Status::kSuccess);
  m_.to_uv.refuse(Call::kUvRegisterMemSlot, 1, Status::kParameter);
  log_.marked.clear();
  EXPECT_FALSE(m_.guest.move_slot(0, 1, m_.gpa(5)).has_value());
  std::set<u64> there;
  for (const u64 page : all()) there.insert(page + 5);
  EXPECT_EQ(log_.marked, there);
}

TEST_P(SecureGuestLog, NothingThatReadsOtherwiseIsMissed) {
  const u64 rounds = GetParam() == 4096 ? 400 : 80;
  RandomSource random(0x109);
  u64 differed = 0, marks = 0;
  ASSERT_EQ(m_.esm(), Status::kSuccess);
  for (u64 round = 0; round < rounds; ++round) {
    std::set<u64> stored;
    const unsigned steps = 1 + random.small(6);
    for (unsigned i = 0; i < steps; ++i) {
      const u64 page = random.below(kPages);
      switch (random.small(8)) {
        case 0:
          static_cast<void>(m_.guest_call(Call::kUvSharePage, page, 1));
          break;
        case 1:
          static_cast<void>(m_.guest_call(Call::kUvUnsharePage, page, 1));
          break;
        case 2:
          if (m_.guest_write(page, m_.text(page, random.small(9))) == GuestAccess::kDone) {
            stored.insert(page);
          }
          break;
        case 3:
          static_cast<void>(m_.vmm_read(page));
          break;
        case 4:
          if (!random.one_in(10)) break;
          ASSERT_TRUE(m_.guest.svm_off().has_value());
          ASSERT_EQ(m_.esm(), Status::kSuccess);
          break;
        default:
          EXPECT_EQ(m_.guest_bytes(page).size(), GetParam());
          break;
      }
    }
    // The stores' marks are the translations' to make.
    const Bytes before[] = {saved_[0], saved_[kPages - 1]};
    marks += log_.marked.size();
    log_.marked.insert(stored.begin(), stored.end());
    EXPECT_EQ(missed(), std::set<u64>()) << round;
    if (before[0] != saved_[0]) ++differed;
    if (before[1] != saved_[kPages - 1]) ++differed;
  }
  EXPECT_GT(differed, rounds / 4);
  EXPECT_LT(marks, rounds * kPages * 2 / 3) << "not everything, always";
}

INSTANTIATE_TEST_SUITE_P(PageSizes, SecureGuestLog, testing::Values(4096, 65536));

}  // namespace
}  // namespace stagetwo::uv
