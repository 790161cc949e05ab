// SPDX-License-Identifier: Apache-2.0
// Goal: what a secure guest has stays the guest's whatever the VMM maps, unmaps and moves beside it
// and over it, as long as the VMM has not asked for the page itself; at 4 and at 64 KiB.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <string>

#include "host/change.h"
#include "host/piecewise.h"
#include "tests/support/process_guest.h"

namespace stagetwo::uv {
namespace {

// How the VMM gives pages up.
enum class Way : u8 { kUnmap, kAnonymous, kPrivateFile, kShared, kClear, kMovedAway, kMovedOver };
constexpr std::array kWays = {Way::kUnmap, Way::kAnonymous, Way::kPrivateFile, Way::kShared,
                              Way::kClear, Way::kMovedAway, Way::kMovedOver};

template <typename Guest>
class KeptPages : public Guest {
 protected:
  using Guest::at;
  using Guest::guest_bytes;
  using Guest::kPages;
  using Guest::text;
  static constexpr u64 kBytes = Guest::kBytes;

  void SetUp() override {
    Guest::SetUp();
    if (this->IsSkipped()) return;
    file_ = ::memfd_create("kept", MFD_CLOEXEC);
    ASSERT_GE(file_, 0);
    ASSERT_EQ(::ftruncate(file_, kPages * kBytes), 0);
  }
  void TearDown() override {
    Guest::TearDown();
    if (file_ >= 0) ::close(file_);
  }
  void map_over(u64 page, u64 count, int flags, int fd) {
    const u64 bytes = count * kBytes;
    void* const made = host::replace(this->hva(page).raw(), bytes, [&] {
      return ::mmap(at(page), bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
    });
    ASSERT_EQ(made, at(page));
  }
  void protect(u64 page, int rights) {
    host::change(this->hva(page).raw(), kBytes, host::EventKind::kProtection,
                 [&] { return ::mprotect(at(page), kBytes, rights); });
  }
  void move(void* from, void* to, u64 bytes) {
    const host::Remap call{reinterpret_cast<u64>(from), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                           reinterpret_cast<u64>(to)};
    const auto made = [](void* there, u64) { return there; };
    void* const there = host::remap(
        call,
        [](const host::Remap& one) {
          return ::mremap(reinterpret_cast<void*>(one.from), one.size, one.new_size, one.flags,
                          reinterpret_cast<void*>(one.to));
        },
        made);
    ASSERT_EQ(there, to);
  }
  u8* elsewhere(u64 bytes) {
    return static_cast<u8*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  void give_up(Way way, u64 page, u64 count) {
    const u64 bytes = count * kBytes;
    switch (way) {
      case Way::kUnmap:
        host::change(this->hva(page).raw(), bytes, host::EventKind::kUnmap,
                     [&] { return ::munmap(at(page), bytes); });
        break;
      case Way::kAnonymous:
        map_over(page, count, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
        break;
      case Way::kPrivateFile:
        map_over(page, count, MAP_PRIVATE, file_);
        break;
      case Way::kShared:
        map_over(page, count, MAP_SHARED, file_);
        break;
      case Way::kClear:
        EXPECT_EQ(host::discard(this->hva(page).raw(), bytes, MADV_DONTNEED,
                                [](u64 start, u64 size) {
                                  return ::madvise(reinterpret_cast<void*>(start), size,
                                                   MADV_DONTNEED);
                                }),
                  0);
        break;
      case Way::kMovedAway: {
        u8* const there = elsewhere(bytes);
        move(at(page), there, bytes);
        ::munmap(there, bytes);
        break;
      }
      case Way::kMovedOver:
        move(elsewhere(bytes), at(page), bytes);
        break;
    }
  }
  void expect_all_of_the_guest(const std::string& what) {
    for (u64 page = 0; page + 1 < kPages; ++page) {
      ASSERT_EQ(guest_bytes(page), text(page)) << what << ", page " << page;
    }
    ASSERT_EQ(this->ultravisor.state(Guest::kLpid), SvmState::kSecure) << what;
  }

  // As it was before the guest became secure.
  void begin_again() {
    ASSERT_TRUE(this->guest->svm_off().has_value());
    map_over(0, kPages, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    for (u64 page = 0; page + 1 < kPages; ++page) std::memcpy(at(page), text(page).data(), kBytes);
  }

  int file_ = -1;
};

using Sizes = testing::Types<GuestInProcess<kPageSize, 12>, GuestInProcess<16 * kPageSize, 6>>;
TYPED_TEST_SUITE(KeptPages, Sizes);

TYPED_TEST(KeptPages, NeighboursGivenUpOneAfterTheOtherInWhateverWayAreTheGuestsStill) {
  unsigned turn = 0;
  for (const Way first : kWays) {
    for (const Way second : kWays) {
      // All lengths and sides of two that are alike; the others in turn.
      if (first != second && TestFixture::kBytes != kPageSize) continue;
      for (unsigned form = first == second ? 0 : ++turn % 4; form < 4;
           form += first == second ? 1 : 4) {
        const u64 length = 1 + form % 2;
        const bool below = form / 2 != 0;
        this->become_secure();
        constexpr u64 kAt = TestFixture::kPages / 2 - 1;
        this->give_up(first, kAt, length);
        this->give_up(second, below ? kAt - length : kAt + length, length);
        const std::string what = "ways " + std::to_string(static_cast<int>(first)) + " and " +
                                 std::to_string(static_cast<int>(second)) + ", " +
                                 std::to_string(length) + (below ? " below" : " above");
        this->expect_all_of_the_guest(what);
        if (this->HasFatalFailure()) return;
        this->begin_again();
        EXPECT_EQ(this->pages.frames_in_use(), 0u) << what;
      }
    }
  }
}

// A fork has all of them back, and the VMM has asked for none.
TYPED_TEST(KeptPages, WhatAForkHasBroughtBackAndTheVmmGivesUpIsTheGuestsStill) {
  for (const Way way : kWays) {
    this->become_secure();
    host::owners_before_fork();
    host::owners_after_fork_parent();
    ASSERT_EQ(this->guest->page(Gpa(0)), PageState::kPagedOut);
    this->give_up(way, 0, TestFixture::kPages);
    this->expect_all_of_the_guest("way " + std::to_string(static_cast<int>(way)));
    if (this->HasFatalFailure()) return;
    this->begin_again();
  }
}

// Kept in one page, and sealed anew since: what was kept is of no use any more.
TYPED_TEST(KeptPages, WhatWasKeptIsNotWhatTheGuestHasWrittenSince) {
  this->become_secure();
  this->give_up(Way::kAnonymous, 1, 1);
  this->give_up(Way::kAnonymous, 2, 1);
  EXPECT_EQ(this->guest_bytes(2), this->text(2));
  typename TestFixture::Bytes fresh = this->text(9);
  ASSERT_EQ(this->ultravisor.access(TestFixture::kLpid, Gpa(2 * TestFixture::kBytes), fresh.data(),
                                    fresh.size(), true),
            GuestAccess::kDone);
  ASSERT_EQ(this->ultravisor.ask_page_out(TestFixture::kLpid, Gpa(2 * TestFixture::kBytes)),
            Status::kSuccess);
  ASSERT_EQ(this->guest->page(Gpa(2 * TestFixture::kBytes)), PageState::kPagedOut);
  EXPECT_LT(this->equal_bytes(this->seen(2), fresh), TestFixture::kBytes / 50);
  EXPECT_EQ(this->guest_bytes(2), fresh);
  // Shared, it is a page of both, and nothing of before comes back.
  this->give_up(Way::kAnonymous, 3, 1);
  this->give_up(Way::kAnonymous, 4, 1);
  ASSERT_EQ(this->guest_call(Call::kUvSharePage, 4, 1), Status::kSuccess);
  EXPECT_EQ(this->guest_bytes(4), typename TestFixture::Bytes(TestFixture::kBytes));
  ASSERT_EQ(this->guest_call(Call::kUvUnsharePage, 4, 1), Status::kSuccess);
  EXPECT_EQ(this->guest_bytes(4), typename TestFixture::Bytes(TestFixture::kBytes));
}

// What the VMM has read it has as its own: replaced, it is not what left. What it maps there that
// nothing can be moved from is told, and at once.
TYPED_TEST(KeptPages, APageTheVmmHasReadGoesWithWhatItMapsOver) {
  this->become_secure();
  EXPECT_LT(this->equal_bytes(this->seen(2), this->text(2)), TestFixture::kBytes / 50);
  for (const Way way : {Way::kPrivateFile, Way::kShared}) {
    this->give_up(way, 2, 1);
    EXPECT_EQ(this->ultravisor.ask_page_in(TestFixture::kLpid, Gpa(2 * TestFixture::kBytes)),
              Status::kParameter);
    EXPECT_EQ(this->ultravisor.state(TestFixture::kLpid), SvmState::kSecure);
  }
  this->give_up(Way::kAnonymous, 2, 1);
  EXPECT_EQ(this->guest_bytes(2), typename TestFixture::Bytes());
  EXPECT_EQ(this->ultravisor.state(TestFixture::kLpid), SvmState::kStopped);
}

// The next life takes in what it finds: nothing of the last one, sealed or not.
TYPED_TEST(KeptPages, AResetWipesWhatTheVmmMayNotWriteToOrNotEvenRead) {
  constexpr u64 kSealed = 0, kShared = 2, kInAFile = 3;
  for (const int rights : {PROT_READ, PROT_NONE}) {
    this->become_secure();
    EXPECT_NE(this->seen(kSealed), this->text(kSealed));
    ASSERT_EQ(this->guest_call(Call::kUvSharePage, kShared, 1), Status::kSuccess);
    auto shown = this->text(kShared);
    ASSERT_EQ(this->ultravisor.access(TestFixture::kLpid, Gpa(kShared * TestFixture::kBytes),
                                      shown.data(), shown.size(), true),
              GuestAccess::kDone);
    this->give_up(Way::kShared, kInAFile, 1);
    ASSERT_EQ(
        this->ultravisor.ask_page_out(TestFixture::kLpid, Gpa(kInAFile * TestFixture::kBytes)),
        Status::kSuccess);
    EXPECT_NE(this->seen(kInAFile), typename TestFixture::Bytes(TestFixture::kBytes));
    this->give_up(Way::kUnmap, TestFixture::kPages - 1, 1);
    for (u64 page = 0; page + 1 < TestFixture::kPages; ++page) this->protect(page, rights);
    ASSERT_TRUE(this->guest->svm_off().has_value());
    for (u64 page = 0; page + 1 < TestFixture::kPages; ++page) {
      this->protect(page, PROT_READ | PROT_WRITE);
      EXPECT_EQ(this->seen(page), typename TestFixture::Bytes(TestFixture::kBytes))
          << "page " << page << ", " << rights;
    }
    this->begin_again();
  }
}

}  // namespace
}  // namespace stagetwo::uv
