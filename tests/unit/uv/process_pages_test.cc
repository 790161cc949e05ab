// SPDX-License-Identifier: Apache-2.0
// Goal: a secure guest in this process's own memory: a load, a system call and another process see
// sealed bytes, the guest sees its own, and what is shared is one page for both.
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "host/change.h"
#include "host/pin.h"
#include "sync/futex.h"
#include "tests/support/process_guest.h"

namespace stagetwo::uv {
namespace {

TEST_F(ProcessGuest, ALoadSeesSealedBytesAndTheGuestItsOwn) {
  become_secure();
  for (u64 page = 0; page + 1 < kPages; ++page) {
    EXPECT_TRUE(host::is_absent(Hva(reinterpret_cast<std::uintptr_t>(at(page)))));
    EXPECT_LT(equal_bytes(seen(page), text(page)), kPageSize / 50);
    EXPECT_EQ(guest->page(Gpa(page * kPageSize)), PageState::kPagedOut);
  }
  EXPECT_EQ(guest->use().touches, kPages - 1);
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
  EXPECT_EQ(guest_bytes(kPages - 1), Bytes(kPageSize)) << "never touched";
}

TEST_F(ProcessGuest, AStoreIntoASealedPageEndsTheGuest) {
  become_secure();
  at(1)[100] ^= 1;
  EXPECT_EQ(guest_bytes(1), Bytes());
  EXPECT_EQ(ultravisor.state(kLpid), SvmState::kStopped);
  EXPECT_EQ(ultravisor.use(kLpid).tampered_gpa, kPageSize);
}

TEST_F(ProcessGuest, ASharedPageIsOnePageForBoth) {
  become_secure();
  ASSERT_EQ(guest_call(Call::kUvSharePage, 5, 1), Status::kSuccess);
  EXPECT_EQ(seen(5), Bytes(kPageSize));
  std::memcpy(at(5), text(9).data(), kPageSize);
  EXPECT_EQ(guest_bytes(5), text(9));
  ASSERT_EQ(guest_call(Call::kUvUnsharePage, 5, 1), Status::kSuccess);
  EXPECT_EQ(guest_bytes(5), Bytes(kPageSize));
  EXPECT_NE(seen(5), text(9));
}

TEST_F(ProcessGuest, AnAbortGivesTheProcessItsMemoryBack) {
  ASSERT_EQ(ultravisor.esm_begin(kLpid), Status::kSuccess);
  ASSERT_EQ(ultravisor.esm_load(kLpid), Status::kSuccess);
  EXPECT_LT(equal_bytes(seen(0), text(0)), kPageSize / 50);
  EXPECT_EQ(ultravisor.esm_abort(kLpid), Status::kParameter);
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(seen(page), text(page)) << page;
}

// As VMMs do that want no page of theirs on the swap device: the engine's own places are locked,
// too, and have pages.
TEST_F(ProcessGuest, MemoryThatIsLockedAllOfItBecomesSecureAndLosesNothing) {
  if (::mlockall(MCL_CURRENT | MCL_FUTURE) != 0) GTEST_SKIP() << "needs a higher limit (mlock)";
  become_secure();
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
  for (u64 page = 0; page + 1 < kPages; ++page) {
    EXPECT_LT(equal_bytes(seen(page), text(page)), kPageSize / 50);
  }
  ASSERT_EQ(::mlockall(MCL_CURRENT), 0);
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
  EXPECT_EQ(ultravisor.use(kLpid).tampered, 0u);
  ASSERT_TRUE(guest->svm_off().has_value());
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(seen(page), Bytes(kPageSize)) << page;
  ::munlockall();
}

TEST_F(ProcessGuest, AResetLeavesZeros) {
  become_secure();
  EXPECT_NE(seen(3), text(3));
  ASSERT_EQ(guest_call(Call::kUvSharePage, 5, 1), Status::kSuccess);
  ASSERT_TRUE(guest->svm_off().has_value());
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(seen(page), Bytes(kPageSize)) << page;
}

bool is_present(const u8* at) {
  unsigned char there = 0;
  EXPECT_EQ(::mincore(const_cast<u8*>(at), kPageSize, &there), 0);
  return (there & 1) != 0;
}

// What the process has not asked for takes no memory of its own, as though never touched.
TEST_F(ProcessGuest, AResetLeavesHolesWhereStandInsWere) {
  become_secure();
  EXPECT_NE(seen(3), text(3));  // a touch that no compiler leaves out
  ASSERT_TRUE(guest->svm_off().has_value());
  for (u64 page = 0; page < kPages; ++page) {
    EXPECT_FALSE(host::is_absent(hva(page))) << page;
    EXPECT_EQ(is_present(at(page)), page == 3) << page;
  }
  for (u64 page = 0; page < kPages; ++page) {
    EXPECT_EQ(seen(page), Bytes(kPageSize)) << page;
    std::memcpy(at(page), text(page).data(), kPageSize);
  }
  become_secure();
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
  guest->remove_slot(0);
  for (u64 page = 0; page < kPages; ++page) EXPECT_FALSE(is_present(at(page))) << page;
  EXPECT_EQ(seen(2), Bytes(kPageSize));
}

// A guest that was on its way to be secure: what left with its neighbours, and was not asked for
// yet, is where it was.
TEST_F(ProcessGuest, AResetOnTheWayLeavesNoneAhead) {
  ASSERT_EQ(ultravisor.esm_begin(kLpid), Status::kSuccess);
  constexpr u64 kAsked = 4;
  for (u64 page = 0; page < kAsked; ++page) {
    ASSERT_EQ(ultravisor.ask_page_in(kLpid, Gpa(page * kPageSize)), Status::kSuccess) << page;
  }
  ASSERT_GT(pages.frames_in_use(), 0U) << "ahead";
  ASSERT_TRUE(guest->svm_off().has_value());
  EXPECT_EQ(pages.frames_in_use(), 0U);
  for (u64 page = 0; page + 1 < kPages; ++page) {
    EXPECT_FALSE(host::is_absent(hva(page))) << page;
    EXPECT_EQ(seen(page), page < kAsked ? Bytes(kPageSize) : text(page)) << page;
  }
}

TEST_F(ProcessGuest, AChildOfForkHasSealedBytesAndTheGuestGoesOn) {
  become_secure();
  host::owners_before_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    host::owners_after_fork_child();
    bool clear = false;
    for (u64 page = 0; page + 1 < kPages; ++page) {
      clear = clear || equal_bytes(seen(page), text(page)) >= kPageSize / 50;
    }
    ::_exit(clear ? 1 : 0);
  }
  host::owners_after_fork_parent();
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
}

// A device has the page: it can be neither moved nor copied under it.
// ---- a core dump --------------------------------------------------------------------------------

// The words of a secret. They are in no variable: whoever looks for them must not find his own.
u64 secret_word(u64 index) {
  static const volatile u64 key = 0x1d5a0c3b9e8f2764;
  return (index + 1) * 0x9e3779b97f4a7c15 ^ key;
}
bool has_secret(const void* page) {
  const auto* const words = static_cast<const volatile u64*>(page);
  for (u64 i = 0; i + 4 <= kPageSize / 8; ++i) {
    if (words[i] == secret_word(0) && words[i + 1] == secret_word(1) &&
        words[i + 2] == secret_word(2) && words[i + 3] == secret_word(3)) {
      return true;
    }
  }
  return false;
}
// Pages with the secret that a core dump of this process would have. What the kernel does not even
// read for the process itself (memory for secrets) is in none.
u64 secrets_in_a_dump() {
  std::ifstream smaps("/proc/self/smaps");
  const int self = ::open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  const int pagemap = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  unsigned long long start = 0, end = 0, resident = 0;
  u64 found = 0;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long long from = 0, to = 0;
    char rights[8] = {};
    if (std::sscanf(line.c_str(), "%llx-%llx %7s", &from, &to, rights) == 3) {
      start = from;
      end = rights[0] == 'r' ? to : from;
    }
    static_cast<void>(std::sscanf(line.c_str(), "Rss: %llu kB", &resident));
    if (!line.starts_with("VmFlags:") || line.find(" dd") != std::string::npos) continue;
    // Of reserves only what is there.
    u64 left = resident / 4;
    for (u64 at = start; left != 0 && at < end; at += kPageSize) {
      u64 entry = 0;
      const auto of_page = static_cast<off_t>(at / kPageSize * 8);
      if (::pread(pagemap, &entry, 8, of_page) != 8 || entry >> 63 == 0) continue;
      --left;
      alignas(8) u8 page[kPageSize];
      const ssize_t got = ::pread(self, page, kPageSize, static_cast<off_t>(at));
      if (got == static_cast<ssize_t>(kPageSize) && has_secret(page)) ++found;
    }
  }
  ::close(self);
  ::close(pagemap);
  return found;
}

TEST_F(ProcessGuest, NothingInClearIsWhereACoreDumpHasIt) {
  become_secure();
  {
    Bytes secret(kPageSize);
    for (u64 i = 0; i < kPageSize / 8; ++i) {
      const u64 word = secret_word(i);
      std::memcpy(secret.data() + 8 * i, &word, 8);
    }
    EXPECT_EQ(secrets_in_a_dump(), 1u) << "the test finds what is there";
    for (u64 page = 0; page < 6; ++page) {
      ASSERT_EQ(ultravisor.access(kLpid, Gpa(page * kPageSize), secret.data(), kPageSize, true),
                GuestAccess::kDone);
    }
    explicit_bzero(secret.data(), secret.size());
  }
  EXPECT_EQ(secrets_in_a_dump(), 0u) << "secure";
  for (u64 page = 0; page < 4; ++page) static_cast<void>(seen(page));
  EXPECT_EQ(secrets_in_a_dump(), 0u) << "sealed";
  u64 word = 0;
  for (u64 page = 0; page < 2; ++page) {
    ASSERT_EQ(ultravisor.access(kLpid, Gpa(page * kPageSize), &word, 8, false), GuestAccess::kDone);
    ASSERT_EQ(word, secret_word(0));
  }
  ASSERT_EQ(guest_call(Call::kUvSharePage, 1, 1), Status::kSuccess);
  ASSERT_EQ(guest_call(Call::kUvUnsharePage, 1, 1), Status::kSuccess);
  EXPECT_EQ(secrets_in_a_dump(), 0u) << "taken back, shared, hidden";
  ASSERT_TRUE(guest->svm_off().has_value());
  EXPECT_EQ(secrets_in_a_dump(), 0u) << "reset";
}

TEST_F(ProcessGuest, APinnedPageKeepsTheGuestFromBecomingSecure) {
  host::FrameRun run;
  const HvaRange page(Hva(reinterpret_cast<std::uintptr_t>(at(3))), kPageSize);
  ASSERT_TRUE(host::pin_pages(page, {.write = true}, &run, 1).has_value());
  EXPECT_EQ(guest_call(Call::kUvEsm, 1, 1, Caller::kGuest), Status::kParameter);
  EXPECT_EQ(guest->state(), GuestState::kNormal);
  for (u64 i = 0; i + 1 < kPages; ++i) EXPECT_EQ(seen(i), text(i)) << i;
  host::unpin_pages(run);
  become_secure();
  EXPECT_EQ(guest_bytes(3), text(3));
}

// munmap and a new mapping there, with the bell that the engine rings around them.
template <typename Between>
void replace(u8* page, Between between) {
  const host::InvalidateSection bell(host::InvalidateEvent{
      HvaRange(Hva(reinterpret_cast<std::uintptr_t>(page)), kPageSize), host::EventKind::kUnmap});
  between();
  ASSERT_EQ(::mmap(page, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                   -1, 0),
            page);
}

TEST_F(ProcessGuest, AnAddressThatGoesIsToldBeforeItGoes) {
  become_secure();
  ASSERT_EQ(guest_call(Call::kUvSharePage, 5, 1), Status::kSuccess);
  std::memcpy(at(5), text(9).data(), kPageSize);
  const u64 told = guest->use().forgotten;
  replace(at(5), [&] {
    EXPECT_EQ(guest->use().forgotten, told + 1) << "UV_PAGE_INVAL, before the call returns";
    Bytes got(kPageSize);
    EXPECT_EQ(ultravisor.access(kLpid, Gpa(5 * kPageSize), got.data(), kPageSize, false),
              GuestAccess::kRetry)
        << "and the frame is used by nobody meanwhile";
  });
  EXPECT_EQ(guest_bytes(5), Bytes(kPageSize)) << "the frame that is there now";
  std::memcpy(at(5), text(8).data(), kPageSize);
  EXPECT_EQ(guest_bytes(5), text(8));
  // Nobody uses a frame of a secure page, nor one outside the guest's memory.
  const u64 then = guest->use().forgotten;
  {
    const host::InvalidateSection bell(
        {{Hva(reinterpret_cast<std::uintptr_t>(at(6))), kPageSize}, host::EventKind::kProtection});
  }
  {
    const host::InvalidateSection bell(
        {{Hva(reinterpret_cast<std::uintptr_t>(&told)), kPageSize}, host::EventKind::kUnmap});
  }
  EXPECT_EQ(guest->use().forgotten, then);
  EXPECT_EQ(guest_bytes(6), text(6));
}

// What was sealed for an address that is nobody's any more goes back to where it was.
TEST_F(ProcessGuest, APageWhoseAddressIsGoneIsNotLostOnItsWayOut) {
  become_secure();
  u64 frame = 0;
  ASSERT_EQ(guest->touch_begin(Gpa(3 * kPageSize), &frame), SecureGuest::Touch::kFrame);
  guest->touch_end(Gpa(3 * kPageSize), frame, false);
  EXPECT_EQ(guest->page(Gpa(3 * kPageSize)), PageState::kSecure);
  EXPECT_EQ(guest_bytes(3), text(3));
  host::change(hva(4).raw(), kPageSize, host::EventKind::kUnmap,
               [&] { return ::munmap(at(4), kPageSize); });
  EXPECT_EQ(ultravisor.ask_page_out(kLpid, Gpa(4 * kPageSize)), Status::kParameter);
  EXPECT_EQ(guest->page(Gpa(4 * kPageSize)), PageState::kSecure);
  EXPECT_EQ(guest_bytes(4), text(4));
  ASSERT_EQ(::mmap(at(4), kPageSize, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
            at(4));
}

TEST_F(ProcessGuest, ANormalPageThatGoesIsToldFromStartOn) {
  {
    const host::InvalidateSection bell(
        {{Hva(reinterpret_cast<std::uintptr_t>(at(0))), kPageSize}, host::EventKind::kUnmap});
  }
  EXPECT_EQ(guest->use().forgotten, 0u) << "of a guest that is normal nobody is told";
  ASSERT_EQ(ultravisor.esm_begin(kLpid), Status::kSuccess);
  const HvaRange all(Hva(reinterpret_cast<std::uintptr_t>(memory)), kPages * kPageSize);
  {
    const host::InvalidateSection bell({all, host::EventKind::kClear});
  }
  EXPECT_EQ(guest->use().forgotten, kPages);
  EXPECT_EQ(ultravisor.esm_abort(kLpid), Status::kParameter);
}

TEST_F(ProcessGuest, AgeingSaysNotYoungAndTouchesNothing) {
  become_secure();
  EXPECT_EQ(guest_bytes(2), text(2)) << "used a moment ago";
  const HvaRange all(Hva(reinterpret_cast<std::uintptr_t>(memory)), kPages * kPageSize);
  EXPECT_FALSE(host::clear_flush_young(all));
  EXPECT_FALSE(host::clear_young(all));
  EXPECT_FALSE(host::test_young(all));
  u64 bits = 0;
  host::collect_young(all, &bits);
  EXPECT_EQ(bits, 0u);
  EXPECT_EQ(guest->use().touches, 0u);
  EXPECT_EQ(guest->page(Gpa(2 * kPageSize)), PageState::kSecure);
}

TEST_F(ProcessGuest, TouchesFromManyThreadsMeetTheGuestsOwn) {
  become_secure();
  std::atomic<bool> stop{false};
  std::atomic<u64> clear{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!stop.load()) {
        u8 bytes[16];
        for (u64 i = 0; i < sizeof(bytes); ++i) bytes[i] = const_cast<const volatile u8*>(at(1))[i];
        if (std::memcmp(bytes, text(1).data(), sizeof(bytes)) == 0) ++clear;
        sync::yield_thread();
      }
    });
  }
  for (int i = 0; i < 500; ++i) ASSERT_EQ(guest_bytes(1), text(1)) << i;
  EXPECT_EQ(clear.load(), 0u) << "the process saw it in clear";
  for (int i = 0; i < 20; ++i) {
    Status done = Status::kRetry;
    while (is_transient(done)) done = guest_call(Call::kUvSharePage, 1, 1);
    ASSERT_EQ(done, Status::kSuccess);
    do done = guest_call(Call::kUvUnsharePage, 1, 1);
    while (is_transient(done));
    ASSERT_EQ(done, Status::kSuccess);
    ASSERT_EQ(guest_bytes(1), Bytes(kPageSize));
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ultravisor.state(kLpid), SvmState::kSecure);
}

// ---- addresses that are given up, or are another mapping's -------------------------------------

TEST_F(ProcessGuest, ASecurePageWhoseAddressWasUnmappedIsNotSharedAndKeepsItsContents) {
  become_secure();
  host::change(hva(5).raw(), kPageSize, host::EventKind::kUnmap,
               [&] { return ::munmap(at(5), kPageSize); });
  EXPECT_EQ(guest_call(Call::kUvSharePage, 5, 1), Status::kParameter);
  EXPECT_EQ(guest_bytes(5), text(5));
  EXPECT_EQ(ultravisor.page(kLpid, Gpa(5 * kPageSize)), PageState::kSecure);
  // All of a range or nothing: the pages before it and behind are as they were.
  EXPECT_EQ(guest_call(Call::kUvSharePage, 4, 3), Status::kParameter);
  EXPECT_EQ(ultravisor.page(kLpid, Gpa(4 * kPageSize)), PageState::kSecure);
  EXPECT_EQ(guest_bytes(4), text(4));
  EXPECT_EQ(guest_bytes(5), text(5));
  EXPECT_EQ(guest_bytes(6), text(6));
  // One that cannot be written to is none that can be shared.
  const u64 at8 = hva(8).raw();
  host::change(at8, kPageSize, host::EventKind::kProtection,
               [&] { return ::mprotect(at(8), kPageSize, PROT_READ); });
  EXPECT_EQ(guest_call(Call::kUvSharePage, 8, 1), Status::kParameter);
  EXPECT_EQ(guest_bytes(8), text(8));
  ASSERT_EQ(::mmap(at(5), kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
            at(5));
  EXPECT_EQ(guest_call(Call::kUvSharePage, 5, 1), Status::kSuccess);
  EXPECT_EQ(guest_bytes(5), Bytes(kPageSize));
}

// The slot is the guest's memory at these addresses, whatever is mapped there (and was touched or
// not): a page that leaves goes there.
TEST_F(ProcessGuest, APageGoesOutToAMappingThatTookItsPlacesAddress) {
  become_secure();
  const auto map_anew = [&](u64 page) {
    host::change(hva(page).raw(), kPageSize, host::EventKind::kUnmap, [&] {
      return ::mmap(at(page), kPageSize, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    });
  };
  for (u64 page = 2; page < 4; ++page) map_anew(page);
  std::memset(at(3), 0x5a, kPageSize);
  for (u64 page = 2; page < 4; ++page) {
    const Gpa gpa(page * kPageSize);
    EXPECT_EQ(ultravisor.ask_page_out(kLpid, gpa), Status::kSuccess) << page;
    EXPECT_EQ(ultravisor.page(kLpid, gpa), PageState::kPagedOut) << page;
    EXPECT_LT(equal_bytes(seen(page), text(page)), kPageSize / 50) << page;
    EXPECT_LT(equal_bytes(seen(page), Bytes(kPageSize, 0x5a)), kPageSize / 50) << page;
    EXPECT_LT(equal_bytes(seen(page), Bytes(kPageSize)), kPageSize / 50) << page;
    EXPECT_EQ(guest_bytes(page), text(page)) << page;
    EXPECT_EQ(guest->page(gpa), PageState::kSecure) << page;
  }
  // Where nothing is mapped it stays.
  host::change(hva(6).raw(), kPageSize, host::EventKind::kUnmap,
               [&] { return ::munmap(at(6), kPageSize); });
  EXPECT_EQ(ultravisor.ask_page_out(kLpid, Gpa(6 * kPageSize)), Status::kParameter);
  EXPECT_EQ(guest_bytes(6), text(6));
}

// ---- pages in order -----------------------------------------------------------------------------

TEST_F(ProcessGuest, PagesWantedInOrderLeaveTogetherAndATouchHasThemBackAsTheyWere) {
  become_secure();
  std::vector<Bytes> sealed;
  for (u64 page = 0; page < kPages; ++page) sealed.push_back(seen(page));
  const u64 outs = ultravisor.use(kLpid).page_outs, ins = ultravisor.use(kLpid).page_ins;
  for (u64 page = 0; page < 4; ++page) EXPECT_EQ(guest_bytes(page), text(page));
  EXPECT_FALSE(is_present(at(6))) << "it left with those before it";
  EXPECT_EQ(guest->page(Gpa(6 * kPageSize)), PageState::kPagedOut);
  EXPECT_EQ(ultravisor.page(kLpid, Gpa(6 * kPageSize)), PageState::kPagedOut);
  EXPECT_EQ(seen(6), sealed[6]);
  EXPECT_EQ(ultravisor.use(kLpid).page_outs, outs);
  EXPECT_EQ(ultravisor.use(kLpid).page_ins, ins + 4);
  at(7)[100] = static_cast<u8>(at(7)[100] ^ 1);
  at(7)[100] = static_cast<u8>(at(7)[100] ^ 1);
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
}

TEST_F(ProcessGuest, ThreadsThatWantNeighboursEachGetTheirOwnPages) {
  become_secure();
  for (int turn = 0; turn < 100; ++turn) {
    for (u64 page = 0; page < kPages; ++page) static_cast<void>(seen(page));
    std::vector<std::thread> threads;
    for (u64 first = 0; first < 3; ++first) {
      threads.emplace_back([this, first] {
        for (u64 page = first; page + 1 < kPages; page += 3) {
          Status done = Status::kBusy;
          while (is_transient(done)) done = ultravisor.ask_page_in(kLpid, Gpa(page * kPageSize));
          EXPECT_TRUE(done == Status::kSuccess ||
                      guest->page(Gpa(page * kPageSize)) != PageState::kLost);
        }
      });
    }
    threads.emplace_back(
        [this, turn] { static_cast<void>(seen(static_cast<u64>(turn) % kPages)); });
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(ultravisor.use(kLpid).tampered, 0u) << turn;
  }
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
}

TEST_F(ProcessGuest, WhatLeftAheadMayBeAlteredSharedGivenUpAndReset) {
  become_secure();
  for (u64 page = 0; page < kPages; ++page) static_cast<void>(seen(page));
  for (u64 page = 0; page < 4; ++page) EXPECT_EQ(guest_bytes(page), text(page));
  ASSERT_FALSE(is_present(at(6)));
  EXPECT_EQ(guest_call(Call::kUvSharePage, 6, 1), Status::kSuccess);
  EXPECT_EQ(seen(6), Bytes(kPageSize));
  host::change(hva(5).raw(), kPageSize, host::EventKind::kClear,
               [&] { ::madvise(at(5), kPageSize, MADV_DONTNEED); });
  EXPECT_EQ(seen(5), Bytes(kPageSize));
  at(7)[100] = static_cast<u8>(at(7)[100] ^ 1);
  EXPECT_EQ(guest_bytes(7), Bytes());
  EXPECT_EQ(ultravisor.use(kLpid).tampered_gpa, 7 * kPageSize);
  EXPECT_TRUE(guest->svm_off().has_value());
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(seen(page), Bytes(kPageSize)) << page;
}

}  // namespace
}  // namespace stagetwo::uv
