// SPDX-License-Identifier: Apache-2.0
// Goal: where the VMM has no place for a page any more, what the guest has stays the guest's, and
// whoever needs that place is told, and told at once.
#include <gtest/gtest.h>

#include "base/failpoint.h"
#include "tests/unit/uv/secure_guest_check.h"

namespace stagetwo::uv {
namespace {

// S0-16, foreseen: nothing of the range is thrown away.
TEST_P(SecureGuestCheck, SharingARangeWithAHoleChangesNothing) {
  constexpr u64 kPages = 8;
  for (u64 hole = 0; hole < kPages; ++hole) {
    const auto m = secure(kPages);
    // 5 is shared already, 6 paged out.
    ASSERT_EQ(m->guest_call(Call::kUvSharePage, 5, 1), Status::kSuccess);
    ASSERT_TRUE(m->vmm_write(5, m->text(5, 1)));
    ASSERT_EQ(m->ultravisor.ask_page_out(m->kLpid, m->gpa(6)), Status::kSuccess);
    m->normal.unmap(&m->guest, m->gpa(hole), true);
    const u64 shares = m->guest.use().shares;
    // A shared page that was unmapped is shared, and asks for no place.
    const Status expected = hole == 5 ? Status::kSuccess : Status::kParameter;
    EXPECT_EQ(m->guest_call(Call::kUvSharePage, 0, kPages), expected) << hole;
    if (expected == Status::kSuccess) continue;
    EXPECT_EQ(m->guest.use().shares, shares) << hole;
    for (u64 page = 0; page < kPages; ++page) {
      if (page == 6 && page == hole) continue;  // the VMM has unmapped what it had of it
      EXPECT_EQ(m->uv_page(page), page == 5   ? PageState::kShared
                                  : page == 6 ? PageState::kPagedOut
                                              : PageState::kSecure);
      EXPECT_EQ(m->guest_bytes(page), m->text(page, page == 5 ? 1 : 0)) << hole << " " << page;
    }
  }
}

// A guest that is told that nothing is shared may store anything anywhere.
TEST_P(SecureGuestCheck, UnshareAllSaysThatAPageStaysSharedAndUnsharesTheOthers) {
  const auto m = secure(5);
  ASSERT_EQ(m->guest_call(Call::kUvSharePage, 0, 4), Status::kSuccess);
  m->normal.unmap(&m->guest, m->gpa(1), true);
  EXPECT_EQ(m->guest_call(Call::kUvUnsharePage, 1, 1), Status::kParameter);
  for (int again = 0; again < 2; ++again) {
    EXPECT_EQ(m->guest_call(Call::kUvUnshareAllPages), Status::kParameter);
    for (u64 page = 0; page < 5; ++page) {
      EXPECT_EQ(m->uv_page(page), page == 1 ? PageState::kShared : PageState::kSecure) << page;
    }
  }
  m->normal.set_hole(m->gpa(1), false);
  EXPECT_EQ(m->guest_call(Call::kUvUnshareAllPages), Status::kSuccess);
  EXPECT_EQ(m->uv_page(1), PageState::kSecure);
}

// Of a caller that is not the ultravisor, of no guest and of pages in no slot.
TEST_P(SecureGuestCheck, AskingForPlacesDoesNothingAndIsTheUltravisorsAlone) {
  const auto m = secure(3);
  const auto places = [&](u64 first, u64 count, Caller who = Caller::kUltravisor) {
    return m->h_svm(Call::kPlacesFor, first * GetParam(), count, 0, who);
  };
  EXPECT_EQ(places(0, 3, Caller::kSecureGuest), Status::kUnsupported);
  EXPECT_EQ(places(0, 3), Status::kSuccess);
  EXPECT_EQ(places(0, 0), Status::kSuccess);
  EXPECT_EQ(places(0, 4), Status::kParameter);
  EXPECT_EQ(places(3, 1), Status::kParameter);
  EXPECT_EQ(m->h_svm(Call::kPlacesFor, 1, 1), Status::kParameter);
  for (u64 page = 0; page < 3; ++page) EXPECT_EQ(m->hv_page(page), PageState::kSecure);
  ASSERT_TRUE(m->guest.svm_off().has_value());
  EXPECT_EQ(places(0, 3), Status::kUnsupported);
}

// ---- a pool whose pages have nowhere to go -----------------------------------------------------

class FullPool : public SecureGuestCheck {
 protected:
  static constexpr u64 kPages = 12;
  static constexpr u32 kPool = 8;

  static void holes(SecureMachine* m, bool open) {
    for (u64 page = 0; page < kPages; ++page) m->normal.set_hole(m->gpa(page), open);
  }
  // The guest has all of the pool.
  static std::unique_ptr<SecureMachine> full() {
    auto m = secure(kPages, kPool);
    for (u64 page = 0; page < kPool; ++page) EXPECT_EQ(m->guest_bytes(page), m->text(page));
    EXPECT_EQ(m->ultravisor.pool_free(), 0u);
    return m;
  }
  // What a vCPU's access comes to, in so many turns.
  static GuestAccess access(SecureMachine* m, u64 page, unsigned* turns) {
    u8* at = nullptr;
    for (*turns = 0; *turns < 1000; ++*turns) {
      if (m->ultravisor.translate(m->kLpid, m->gpa(page), &at) == Where::kSecure) {
        return GuestAccess::kDone;
      }
      const GuestAccess done = m->ultravisor.bring(m->kLpid, m->gpa(page));
      if (done != GuestAccess::kRetry && done != GuestAccess::kDone) return done;
    }
    return GuestAccess::kRetry;
  }
};

TEST_P(FullPool, WhenNoPageOfItCanLeaveTheAccessIsAFaultAndNothingIsLost) {
  const auto m = full();
  u64 out = 0;
  while (m->uv_page(out) != PageState::kPagedOut) ++out;
  for (u64 page = 0; page < kPages; ++page) {
    if (page != out) m->normal.set_hole(m->gpa(page), true);
  }
  unsigned turns = 0;
  EXPECT_EQ(access(m.get(), out, &turns), GuestAccess::kFault);
  EXPECT_LE(turns, 8u);
  EXPECT_EQ(m->ultravisor.state(m->kLpid), SvmState::kSecure);
  EXPECT_EQ(m->hv_page(out), PageState::kPagedOut);
  // One place is enough.
  u64 in = 0;
  while (m->uv_page(in) != PageState::kSecure) ++in;
  m->normal.set_hole(m->gpa(in), false);
  EXPECT_EQ(access(m.get(), out, &turns), GuestAccess::kDone);
  EXPECT_EQ(m->guest_bytes(out), m->text(out));
  EXPECT_EQ(m->uv_page(in), PageState::kPagedOut);
  holes(m.get(), false);
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(m->guest_bytes(page), m->text(page));
}

// Each time one page alone can leave, whichever it is: it is found.
TEST_P(FullPool, TheOnePageThatCanLeaveIsFound) {
  const auto m = full();
  unsigned turns = 0;
  for (u64 round = 0; round < 3 * kPool; ++round) {
    u64 can = (round * 5) % kPages, out = 0;
    while (m->uv_page(can) != PageState::kSecure) can = (can + 1) % kPages;
    while (m->uv_page(out) != PageState::kPagedOut) ++out;
    for (u64 page = 0; page < kPages; ++page) {
      m->normal.set_hole(m->gpa(page), page != can && page != out);
    }
    ASSERT_EQ(access(m.get(), out, &turns), GuestAccess::kDone) << round;
    EXPECT_EQ(m->uv_page(can), PageState::kPagedOut) << round;
    holes(m.get(), false);
  }
}

// Another guest's pages, which nobody can have: it was ended for a page that was altered.
TEST_P(FullPool, OfAGuestThatWasStoppedItIsAFaultToTheOthersUntilThatIsReset) {
  const auto m = full();
  test::PlainNormalMemory memory(&m->memory);
  SecureGuest other(9, GetParam(), &memory, &m->to_uv);
  ASSERT_TRUE(m->hypervisor.add(&other).has_value());
  other.enable();
  ASSERT_TRUE(other.add_slot(0, Gpa(0), 2 * GetParam()).has_value());
  ASSERT_EQ(m->ultravisor.call({Call::kUvEsm, 9, {1, 1}}, Caller::kGuest), Status::kSuccess);
  // The first guest has the pool again, and ends.
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(m->guest_bytes(page), m->text(page));
  u64 altered = 0;
  while (m->uv_page(altered) != PageState::kPagedOut) ++altered;
  ASSERT_TRUE(m->vmm_write(altered, m->text(0)));
  Bytes got;
  EXPECT_EQ(m->guest_read(altered, &got), GuestAccess::kStopped);
  // What that has freed is the other's first page, and stays there.
  u64 word = 7;
  ASSERT_EQ(m->ultravisor.pool_free(), 1u);
  ASSERT_EQ(m->ultravisor.access(9, Gpa(0), &word, 8, true), GuestAccess::kDone);
  memory.set_hole(Gpa(0), true);
  GuestAccess done = GuestAccess::kRetry;
  for (int turn = 0; turn < 20 && done == GuestAccess::kRetry; ++turn) {
    done = m->ultravisor.bring(9, Gpa(GetParam()));
  }
  EXPECT_EQ(done, GuestAccess::kFault);
  ASSERT_TRUE(m->guest.svm_off().has_value());
  EXPECT_EQ(m->ultravisor.bring(9, Gpa(GetParam())), GuestAccess::kDone);
  ASSERT_TRUE(other.svm_off().has_value());
  m->hypervisor.remove(&other);
}

// A fork has all pages of the pool back at once, between a look that finds it full (here made to)
// and the search for one that could leave. That is room, and no fault.
TEST_P(FullPool, ThatEverybodyHasLeftWhileRoomIsSoughtIsRoom) {
  const auto m = full();
  for (u64 page = 0; page < kPages; ++page) ASSERT_FALSE(m->vmm_read(page).empty());
  ASSERT_EQ(m->ultravisor.pool_free(), kPool);
  failpoint::arm("mem.secure_pool", 1);
  EXPECT_EQ(m->ultravisor.bring(m->kLpid, m->gpa(1)), GuestAccess::kRetry);
  failpoint::disarm();
  EXPECT_EQ(m->guest_bytes(1), m->text(1));
}

INSTANTIATE_TEST_SUITE_P(PageSizes, FullPool, testing::Values(4096, 65536));

}  // namespace
}  // namespace stagetwo::uv
