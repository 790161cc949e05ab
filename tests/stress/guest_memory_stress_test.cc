// SPDX-License-Identifier: Apache-2.0
// Goal: faults, zaps, slot changes, harvests, ageing and counts at once, and nobody reads or writes
// what is not his any more, and no store is missing from the log. Method: three threads access as
// vCPUs do. One replaces pages, whose old bytes are poison from the moment the change may begin:
// who reads poison, or writes over it, came too late. One makes, moves, deletes and re-flags slots
// that lead to the same pages. One harvests a slot that is always logged and copies what it is
// told of: at the end the copy is the memory. One ages and counts.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "stage2/address_space.h"
#include "sync/futex.h"
#include "tests/support/pages.h"
#include "tests/support/random_source.h"
#include "tests/support/region.h"

namespace stagetwo::stage2 {
namespace {

constexpr u64 kReplacedGpa = 0x100000;   // slot 0: pages that are replaced
constexpr u64 kAliasGpa = 0x40000000;    // slot 1: the same pages, comes and goes
constexpr u64 kMovedGpa = 0x48000000;    // where slot 1 goes when it moves
constexpr u64 kLoggedGpa = 0x200000000;  // slot 2: always logged, its bytes stay
constexpr u64 kPages = 48;
constexpr u64 kBytes = kPages * kPageSize;
constexpr u64 kPoison = 0xdeadbeefdeadbeef;
constexpr u64 kWordsOfPage = kPageSize / sizeof(u64);

// What each thread did; read when it has ended.
struct Tally {
  u64 loads = 0;
  u64 stores = 0;
  u64 faults = 0;
  u64 mmio = 0;
  u64 poison = 0;  // loads that came too late
  u64 absent = 0;  // accesses where there was no page: too late as well
};

// One vCPU: a TLB that lives from flush to flush, and a table of its own to start from. Now and
// then it ends, and another takes its place.
class Guest {
 public:
  Guest(GuestMemory& memory, u64 seed) : memory_(memory), random_(seed) { begin(); }
  ~Guest() { end(); }

  void run(const std::atomic<bool>& stop) {
    for (u64 n = 1; !stop.load(std::memory_order_relaxed); ++n) {
      block();
      if (n % 16 == 0) sync::yield_thread();
      if (n % 5000 != 0) continue;
      end();
      begin();
    }
  }
  Tally tally;

 private:
  struct Translation {
    u64 gpa = ~u64{0};
    u64 hva = 0;
    bool writable = false;
  };

  void begin() {
    context_ = std::move(*memory_.new_context());
    memory_.lines().add(line_);
  }
  void end() {
    forget();
    memory_.lines().remove(line_);
    context_.reset();
  }
  void forget() { std::fill(std::begin(tlb_), std::end(tlb_), Translation{}); }
  void enter() {
    if (line_.enter()) flush();
  }
  void flush() {
    memory_.flushed(*context_);
    forget();
  }

  void block() {
    enter();
    for (int i = 0; i < 12; ++i) access();
    if (line_.poll()) flush();
    line_.leave();
  }
  void access() {
    static constexpr u64 kBases[] = {kReplacedGpa, kAliasGpa, kMovedGpa, kLoggedGpa};
    const u64 base = kBases[random_.below(4)];
    const u64 page = base + random_.below(kPages) * kPageSize;
    const bool logged = base == kLoggedGpa;
    const bool write = random_.one_in(2);
    const Translation* found = translate(page, write ? Access::kWrite : Access::kRead);
    if (found == nullptr) return;
    u64 word = 0;
    if (!write) {
      // The first word of a page is never a guest's: zero in a fresh page, then poison.
      tally.absent += !host::load(Hva(found->hva), &word);
      tally.poison += word == kPoison;
      ++tally.loads;
      return;
    }
    const u64 at = found->hva + 8 * (1 + random_.below(kWordsOfPage - 1));
    tally.absent += !host::fetch_add(Hva(at), u64{1}, &word);
    tally.poison += !logged && word == kPoison;
    ++tally.stores;
  }
  // RUNNING on entry and on return. Null: no translation for this access now.
  const Translation* translate(u64 gpa, Access access) {
    Translation& cached = tlb_[(gpa >> kPageShift) % std::size(tlb_)];
    if (cached.gpa == gpa && (access == Access::kRead || cached.writable)) return &cached;
    Fault fault;
    fault.gpa = Gpa(gpa);
    fault.access = access;
    Walk::Kind found = memory_.translate(*context_, fault);
    if (found == Walk::Kind::kMiss) {
      ++tally.faults;
      line_.leave();
      static_cast<void>(memory_.handle_fault(*context_, fault));
      enter();
      found = memory_.translate(*context_, fault);
    }
    tally.mmio += found == Walk::Kind::kMmio;
    if (found != Walk::Kind::kHit) return nullptr;
    cached = {gpa, fault.page.raw(), fault.writable};
    return &cached;
  }

  GuestMemory& memory_;
  test::RandomSource random_;
  Box<MmuContext> context_;
  sync::AckLine line_;
  Translation tlb_[96];
};

class EverythingAtOnce : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    memory_ = std::move(*GuestMemory::create(SlotPolicy{}));
    seed_ = test::announced_seed("EverythingAtOnce");
    ASSERT_TRUE(set(0, kReplacedGpa, replaced_.address()));
    ASSERT_TRUE(set(2, kLoggedGpa, logged_.address(), kLogDirtyPages));
  }
  bool set(u32 id, u64 gpa, u64 hva, u32 flags = 0, u64 size = kBytes) {
    return memory_->slots().set_region(test::region_of(id, gpa, size, hva, flags)).has_value();
  }

  void replace_pages(test::RandomSource& random);
  void change_slots(test::RandomSource& random);
  void harvest();
  void age(test::RandomSource& random);

  test::GuardedPages replaced_{kPages};
  test::GuardedPages logged_{kPages};
  test::GuardedPages bitmap_{1};
  Box<GuestMemory> memory_;
  u64 seed_ = 0;
  std::vector<u8> copy_ = std::vector<u8>(kBytes);
  u64 overwritten_ = 0;  // stores that came too late
  u64 replacements_ = 0, slot_changes_ = 0, harvests_ = 0, agings_ = 0;
};

void EverythingAtOnce::replace_pages(test::RandomSource& random) {
  ++replacements_;
  const u64 first = random.below(kPages);
  const u64 count = 1 + random.below(std::min<u64>(kPages - first, 8));
  const u64 at = replaced_.address() + first * kPageSize;
  const u64 bytes = count * kPageSize;
  if (random.one_in(4)) {
    // The logged pages keep their bytes and lose their rights for a moment.
    const u64 kept = logged_.address() + first * kPageSize;
    host::change(kept, bytes, host::EventKind::kProtection, [&] {
      mprotect(reinterpret_cast<void*>(kept), bytes, PROT_NONE);
      mprotect(reinterpret_cast<void*>(kept), bytes, PROT_READ | PROT_WRITE);
    });
    return;
  }
  host::change(at, bytes, host::EventKind::kUnmap, [&] {
    auto* words = reinterpret_cast<u64*>(at);
    std::fill_n(words, bytes / sizeof(u64), kPoison);
    for (int i = 0; i < 50; ++i) sync::spin_hint();
    overwritten_ += static_cast<u64>(std::count_if(words, words + bytes / sizeof(u64),
                                                   [](u64 word) { return word != kPoison; }));
    void* page = reinterpret_cast<void*>(at);
    mprotect(page, bytes, PROT_NONE);
    mmap(page, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  });
}

void EverythingAtOnce::change_slots(test::RandomSource& random) {
  ++slot_changes_;
  memory_->set_slot_zap_all(random.one_in(2));
  const u32 logging = random.one_in(2) ? kLogDirtyPages : 0;
  switch (random.below(4)) {
    case 0:
      static_cast<void>(set(1, 0, 0, 0, 0));
      break;
    case 1:
      static_cast<void>(set(1, kMovedGpa, replaced_.address(), logging));
      break;
    case 2:
      static_cast<void>(set(0, kReplacedGpa, replaced_.address(), logging));
      break;
    default:
      static_cast<void>(
          set(1, kAliasGpa, replaced_.address(), logging | (random.one_in(8) ? kReadonly : 0)));
  }
}

// What the log names is copied; what it does not name did not change since the harvest before.
void EverythingAtOnce::harvest() {
  ++harvests_;
  ASSERT_TRUE(memory_->slots().get_dirty_log(2, Hva(bitmap_.address())));
  const u64 named = *reinterpret_cast<const u64*>(bitmap_.pointer());
  for (u64 page = 0; page < kPages; ++page) {
    if ((named >> page & 1) == 0) continue;
    // While its rights are gone the page cannot be copied, but its bytes stay.
    u8* to = copy_.data() + page * kPageSize;
    const Hva from(logged_.address() + page * kPageSize);
    while (host::copy_from(to, from, kPageSize) != kPageSize) sync::yield_thread();
  }
}

void EverythingAtOnce::age(test::RandomSource& random) {
  ++agings_;
  const HvaRange range(Hva(replaced_.address() + random.below(kPages) * kPageSize), kPageSize);
  switch (random.below(4)) {
    case 0:
      static_cast<void>(host::clear_flush_young(range));
      break;
    case 1:
      static_cast<void>(host::clear_young(range));
      break;
    case 2:
      static_cast<void>(host::test_young(range));
      break;
    default:
      // A slot that moves may be seen in both places, and a new root beside an old one.
      EXPECT_LE(memory_->count_pages().pages_4k, 8 * kPages);
  }
}

TEST_F(EverythingAtOnce, NothingStaleIsReadOrWrittenAndNoStoreIsMissingFromTheLog) {
  std::atomic<bool> stop{false};
  std::vector<std::unique_ptr<Guest>> guests;
  std::vector<std::thread> threads;
  for (u64 i = 0; i < 3; ++i) {
    guests.push_back(std::make_unique<Guest>(*memory_, seed_ + i));
    threads.emplace_back([&stop, guest = guests.back().get()] { guest->run(stop); });
  }
  const auto repeat = [&](u64 number, u64 every, auto body) {
    threads.emplace_back([this, &stop, number, every, body] {
      test::RandomSource random(seed_ + number);
      for (u64 n = 1; !stop.load(std::memory_order_relaxed); ++n) {
        body(random);
        if (n % every == 0) sync::yield_thread();
      }
    });
  };
  repeat(10, 4, [this](test::RandomSource& random) { replace_pages(random); });
  repeat(11, 2, [this](test::RandomSource& random) { change_slots(random); });
  repeat(12, 1, [this](test::RandomSource&) { harvest(); });
  repeat(13, 4, [this](test::RandomSource& random) { age(random); });
  const test::Deadline deadline;
  while (deadline.running() && !HasFailure()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();

  Tally all;
  for (const auto& guest : guests) {
    all.loads += guest->tally.loads;
    all.stores += guest->tally.stores;
    all.faults += guest->tally.faults;
    all.mmio += guest->tally.mmio;
    all.poison += guest->tally.poison;
    all.absent += guest->tally.absent;
  }
  guests.clear();
  harvest();
  EXPECT_EQ(0, std::memcmp(copy_.data(), logged_.pointer(), kBytes)) << "a store is in no harvest";
  EXPECT_EQ(0U, all.poison) << "bytes of a page that had gone were read";
  EXPECT_EQ(0U, overwritten_) << "bytes of a page that had gone were written";
  EXPECT_EQ(0U, all.absent) << "a page was used that was not there";
  EXPECT_GT(all.loads, 0U);
  EXPECT_GT(all.stores, 0U);
  memory_->check_world();
  std::printf(
      "%llu loads, %llu stores, %llu faults, %llu mmio; %llu replacements, %llu slot calls, %llu "
      "harvests, %llu of ageing and counting\n",
      static_cast<unsigned long long>(all.loads), static_cast<unsigned long long>(all.stores),
      static_cast<unsigned long long>(all.faults), static_cast<unsigned long long>(all.mmio),
      static_cast<unsigned long long>(replacements_),
      static_cast<unsigned long long>(slot_changes_), static_cast<unsigned long long>(harvests_),
      static_cast<unsigned long long>(agings_));
}

}  // namespace
}  // namespace stagetwo::stage2
