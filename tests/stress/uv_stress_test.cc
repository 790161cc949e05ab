// SPDX-License-Identifier: Apache-2.0
// Goal: a secure guest reads what it wrote whatever its VMM does at the time: touches, plugs and
// unplugs memory, resets; and whatever is done to a sealed page, the guest never gets it.
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <string>
#include <thread>

#include "tests/support/random_source.h"
#include "tests/support/secure_machine.h"
#include "tests/support/stress_time.h"
#include "tests/support/stress_watch.h"
#include "tests/support/toy_guest_table.h"

namespace stagetwo::uv {
namespace {

using test::Bytes;
using test::SecureMachine;

constexpr u64 kPages = 12;
constexpr u32 kPool = 8;  // evictions

// Both halves, page by page, for a test that does not end.
void tell_machine(SecureMachine* m, u64 pages) {
  const GuestLife life = m->guest.debug_life();
  std::printf("  the guest's life: %s, %u wait for it; %u messages, %u vCPUs; pool: %u free\n",
              life.changing ? "changing" : "still", life.wanted, life.messages, life.running,
              m->ultravisor.pool_free());
  for (u64 page = 0; page < pages; ++page) {
    bool busy = false;
    u32 runs = 0;
    const Asked asked = m->ultravisor.debug_asked(m->kLpid, m->gpa(page), &busy, &runs);
    std::printf("  page %llu: hypervisor %d%s%s, ultravisor %d asked %d%s, %u operations\n",
                static_cast<unsigned long long>(page), static_cast<int>(m->hv_page(page)),
                m->guest.debug_busy(m->gpa(page)) ? " busy" : "",
                m->normal.is_absent(m->gpa(page)) ? " absent" : "",
                static_cast<int>(m->uv_page(page)), static_cast<int>(asked), busy ? " busy" : "",
                runs);
  }
}

// What the guest knows of its pages. It alone writes them.
class GuestModel {
 public:
  GuestModel(SecureMachine* m, test::ToyGuestTable* table, test::StressWatch* watch, u64 seed)
      : m_(*m), table_(*table), watch_(*watch), random_(seed) {
    for (u64 page = 0; page < kPages; ++page) pages_[page] = m_.text(page);
  }
  // One step; what was found wrong, or nothing.
  std::string step() {
    const u64 page = random_.below(kPages);
    const unsigned what = random_.small(8);
    static constexpr const char* kSteps[] = {"shares", "unshares", "writes", "writes"};
    watch_.at(0, what < 4 ? kSteps[what] : "reads or unshares all", page);
    switch (what) {
      case 0:
        return share(page, 1 + random_.below(3));
      case 1:
        return unshare(page, 1 + random_.below(3));
      case 2:
      case 3:
        return write(page);
      case 4:
        if (!random_.one_in(50)) return read(page);
        return all_secret();
      default:
        return read(page);
    }
  }

 private:
  std::string share(u64 page, u64 count) {
    if (page + count > kPages) return {};
    const Status done = m_.guest_call(Call::kUvSharePage, page, count);
    if (done == Status::kRetry) {
      // All of the range is as before or zeros: those that had been reached.
      for (u64 i = page; i < page + count; ++i) {
        if (!shared_.contains(i)) maybe_zeros_.insert(i);
      }
      return {};
    }
    if (done != Status::kSuccess) return "sharing is refused";
    for (u64 i = page; i < page + count; ++i) {
      if (shared_.insert(i).second) pages_[i] = Bytes(m_.page_bytes);
      maybe_zeros_.erase(i);
    }
    return {};
  }
  std::string unshare(u64 page, u64 count) {
    if (page + count > kPages) return {};
    const Status done = m_.guest_call(Call::kUvUnsharePage, page, count);
    if (done != Status::kSuccess && done != Status::kRetry) return "unsharing is refused";
    forget_unshared();
    return {};
  }
  // Also those that were reached before the rest had to come again.
  void forget_unshared() {
    std::erase_if(shared_, [&](u64 page) {
      if (m_.uv_page(page) == PageState::kShared) return false;
      pages_[page] = Bytes(m_.page_bytes);
      return true;
    });
  }
  std::string all_secret() {
    const Status done = m_.guest_call(Call::kUvUnshareAllPages);
    if (done != Status::kSuccess && done != Status::kRetry) return "unsharing is refused";
    forget_unshared();
    return done == Status::kSuccess && !shared_.empty() ? "a page is shared still" : "";
  }
  // Half of the accesses are a vCPU's, of one word, by a translation: it stays until the page goes.
  std::string write(u64 page) {
    if (random_.one_in(2) && !maybe_zeros_.contains(page)) {
      u64 word = random_.next();
      if (table_.access(m_.gpa(page), &word, true) != Where::kSecure) return {};
      std::memcpy(pages_[page].data(), &word, sizeof(word));
      return {};
    }
    const Bytes fresh = m_.text(page, random_.next());
    const GuestAccess done = m_.guest_write(page, fresh);
    if (done == GuestAccess::kRetry) return {};
    if (done != GuestAccess::kDone) return "a write is refused";
    pages_[page] = fresh;
    maybe_zeros_.erase(page);
    return {};
  }
  std::string read(u64 page) {
    if (random_.one_in(2)) {
      u64 word = 0, known = 0;
      std::memcpy(&known, pages_[page].data(), sizeof(known));
      if (table_.access(m_.gpa(page), &word, false) != Where::kSecure || word == known) return {};
      if (word == 0 && maybe_zeros_.contains(page)) return {};
      return "a vCPU reads " + std::to_string(word) + " in page " + std::to_string(page) +
             " where it wrote " + std::to_string(known) +
             (shared_.contains(page) ? ", which is shared" : "");
    }
    Bytes got;
    const GuestAccess done = m_.guest_read(page, &got);
    if (done == GuestAccess::kRetry) return {};
    if (done != GuestAccess::kDone) return "a read is refused";
    const bool zeros = maybe_zeros_.contains(page) && got == Bytes(got.size());
    if (zeros) pages_[page] = got;
    maybe_zeros_.erase(page);
    return got == pages_[page] ? std::string() : "the guest reads what it did not write";
  }

  SecureMachine& m_;
  test::ToyGuestTable& table_;
  test::StressWatch& watch_;
  test::RandomSource random_;
  std::map<u64, Bytes> pages_;
  std::set<u64> shared_, maybe_zeros_;
};

TEST(SecureGuestStress, TheGuestReadsWhatItWroteWhateverTheVmmDoes) {
  const u64 seed = test::announced_seed("TheGuestReadsWhatItWroteWhateverTheVmmDoes");
  const test::Deadline deadline(0.35);
  u64 steps = 0, lives = 0;
  SecureMachine m(4096, kPool);
  m.plug(0, 0, kPages);
  test::ToyGuestTable table;
  table.listen(&m.ultravisor, m.kLpid);
  test::StressWatch watch("TheGuestReadsWhatItWroteWhateverTheVmmDoes",
                          [&] { tell_machine(&m, kPages); });
  while (deadline.running()) {
    watch.at(0, "life", lives);
    m.vmm_fill(0, kPages);
    ASSERT_EQ(m.esm(), Status::kSuccess);
    std::atomic<bool> stop{false};
    std::vector<std::thread> vmm;
    for (u64 me = 0; me < 2; ++me) {
      vmm.emplace_back([&, me] {
        test::RandomSource random(seed + lives * 8 + me);
        while (!stop.load()) {
          const u64 page = random.below(kPages);
          watch.at(1 + static_cast<unsigned>(me), "touches", page);
          EXPECT_FALSE(m.vmm_read(page).empty());
        }
      });
    }
    vmm.emplace_back([&] {
      while (!stop.load()) {
        watch.at(3, "plugs");
        if (!m.guest.add_slot(1, m.gpa(20), 2 * 4096)) continue;
        watch.at(3, "uses what is plugged");
        Bytes got;
        const bool read = m.guest_read(21, &got) == GuestAccess::kDone;
        EXPECT_TRUE(!read || got == Bytes(4096)) << "what was plugged is zeros";
        static_cast<void>(m.guest_write(21, m.text(21)));
        watch.at(3, "unplugs");
        m.guest.remove_slot(1);
      }
    });
    GuestModel guest(&m, &table, &watch, seed + lives);
    std::string wrong;
    for (unsigned i = 0; i < 400 && wrong.empty(); ++i, ++steps) wrong = guest.step();
    stop.store(true);
    watch.at(0, "waits for the others");
    for (std::thread& thread : vmm) thread.join();
    ASSERT_EQ(wrong, "") << "life " << lives << ", STAGETWO_SEED=" << seed;
    ASSERT_EQ(m.ultravisor.state(m.kLpid), SvmState::kSecure);
    ASSERT_TRUE(m.guest.svm_off().has_value());
    ASSERT_EQ(m.ultravisor.pool_free(), kPool);
    ASSERT_EQ(table.size(), 0u);
    ++lives;
  }
  EXPECT_EQ(m.memory.stale(), 0u);
  EXPECT_GT(lives, 0u);
}

// What a VMM may try with a sealed page. False: this one needs more than there is yet.
bool tamper(SecureMachine* m, test::RandomSource* random, const Bytes& older, const Bytes& former) {
  Bytes sealed = m->vmm_read(0);
  const Bytes was = sealed;
  switch (random->small(6)) {
    case 0:
      sealed[random->below(sealed.size())] ^= static_cast<u8>(1U << random->small(8));
      break;
    case 1:
      sealed = older;
      break;
    case 2:
      sealed = m->vmm_read(1);
      break;
    case 3:
      sealed = Bytes(sealed.size());
      break;
    case 4:
      for (u8& byte : sealed) byte = random->byte();
      break;
    default:
      sealed = former;
      break;
  }
  if (sealed.empty() || sealed == was) return false;
  return m->vmm_write(0, sealed);
}

TEST(SecureGuestStress, EveryAttemptWithASealedPageIsFound) {
  test::RandomSource random(test::announced_seed("EveryAttemptWithASealedPageIsFound"));
  const u64 rounds = test::stress_rounds(100'000);
  SecureMachine m(4096, 4);
  m.plug(0, 0, 2);
  Bytes former;
  u64 attempts = 0;
  while (attempts < rounds) {
    m.vmm_fill(0, 2);
    ASSERT_EQ(m.esm(), Status::kSuccess);
    const Bytes older = m.vmm_read(0);
    ASSERT_EQ(m.guest_bytes(0), m.text(0));
    const bool tried = tamper(&m, &random, older, former);
    former = older;
    if (tried) {
      ++attempts;
      Bytes got;
      ASSERT_NE(m.guest_read(0, &got), GuestAccess::kDone) << attempts;
      ASSERT_EQ(got, Bytes(4096, 0xcc)) << "not one byte of it";
      ASSERT_EQ(m.ultravisor.use(m.kLpid).tampered, 1u);
      ASSERT_EQ(m.ultravisor.state(m.kLpid), SvmState::kStopped);
    }
    ASSERT_TRUE(m.guest.svm_off().has_value());
  }
  ASSERT_EQ(attempts, rounds);
  std::printf("%llu of %llu attempts were found\n", static_cast<unsigned long long>(attempts),
              static_cast<unsigned long long>(attempts));
}

}  // namespace
}  // namespace stagetwo::uv
