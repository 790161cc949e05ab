// SPDX-License-Identifier: Apache-2.0
// Devices write through pins while the client unmaps, discards, moves and forbids the memory. A
// model knows every word: the device's page goes on where the device left it, whatever became of
// the address, and no store lands in memory that is mapped there now (fresh memory is poisoned).
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "host/backstop.h"
#include "host/change.h"
#include "host/pin.h"
#include "tests/support/seeds.h"

namespace stagetwo::test {
namespace {

using host::EventKind;

constexpr unsigned kPages = 24;
constexpr unsigned kSlots = 16;
constexpr u64 kPoison = 0xdeadbeef00000000;

// One pin. Its device counts in word `slot` of whatever page it has.
struct Slot {
  std::mutex lock;
  std::optional<host::Frame> frame;
  unsigned page = 0;
  u64 count = 0;  // what the word is
};

class PinsStress : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    memory_ = map(nullptr);
    for (unsigned page = 0; page < kPages; ++page) poison(page);
  }
  void TearDown() override { ::munmap(memory_, kPages * kPageSize); }

  static u8* map(void* at) {
    const int fixed = at == nullptr ? 0 : MAP_FIXED;
    return static_cast<u8*>(::mmap(at, kPages * kPageSize, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0));
  }
  u8* at(unsigned page) { return memory_ + page * kPageSize; }
  u64& word(unsigned page, unsigned slot) { return reinterpret_cast<u64*>(at(page))[slot]; }
  HvaRange range(unsigned page, unsigned pages) {
    return HvaRange(Hva(reinterpret_cast<u64>(at(page))), pages * kPageSize);
  }
  void poison(unsigned page) {
    for (unsigned slot = 0; slot < kSlots; ++slot) model_[page][slot] = word(page, slot) = kPoison;
  }
  template <typename F>
  auto change(unsigned page, unsigned pages, EventKind kind, F&& call) {
    return host::change(range(page, pages).start().raw(), pages * kPageSize, kind, call);
  }

  void discard(unsigned page, unsigned pages) {
    change(page, pages, EventKind::kClear,
           [&] { return ::madvise(at(page), pages * kPageSize, MADV_DONTNEED); });
    detach(page, pages);
  }
  void map_over(unsigned page, unsigned pages) {
    change(page, pages, EventKind::kUnmap, [&] {
      return ::mmap(at(page), pages * kPageSize, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    });
    detach(page, pages);
  }
  // What is mapped there now is nobody's yet.
  void detach(unsigned page, unsigned pages) {
    for (unsigned i = page; i < page + pages; ++i) {
      for (unsigned slot = 0; slot < kSlots; ++slot) {
        ASSERT_EQ(word(i, slot), 0u) << "a device wrote where something else is mapped";
      }
      poison(i);
    }
  }
  void forbid_and_allow(unsigned page, unsigned pages) {
    change(page, pages, EventKind::kProtection,
           [&] { return ::mprotect(at(page), pages * kPageSize, PROT_NONE); });
    std::this_thread::yield();
    host::gain(range(page, pages).start().raw(), pages * kPageSize,
               [&] { return ::mprotect(at(page), pages * kPageSize, PROT_READ | PROT_WRITE); });
  }
  // All of it to another address: pins come along.
  void move() {
    u8* there = map(nullptr);
    const auto call = [&] {
      return ::mremap(memory_, kPages * kPageSize, kPages * kPageSize,
                      MREMAP_MAYMOVE | MREMAP_FIXED, there);
    };
    host::change(range(0, kPages).start().raw(), kPages * kPageSize, EventKind::kUnmap,
                 host::Announced::kMoves, call, kPages * kPageSize);
    memory_ = there;
  }

  void let_go(Slot& slot, unsigned n) {
    const bool at_home = host::frame_at(range(slot.page, 1).start()) == slot.frame;
    host::unpin_pages({*slot.frame, 1});
    if (at_home) model_[slot.page][n] = slot.count;
    slot.frame.reset();
  }
  void pin(Slot& slot, unsigned n, unsigned page) {
    host::FrameRun run;
    ASSERT_TRUE(host::pin_pages(range(page, 1), {.write = true}, &run, 1));
    slot.page = page;
    slot.frame = run.first;
    ASSERT_TRUE(host::read_frame(run.first, n * 8, &slot.count, 8));
    ASSERT_EQ(slot.count, model_[page][n]) << "a pin has another page than the client";
  }
  // A word of the client's is the device's if it still has that page, else what it was left at.
  void check(Slot& slot, unsigned n, unsigned page) {
    const bool is_devices = slot.frame && host::frame_at(range(page, 1).start()) == slot.frame;
    ASSERT_EQ(word(page, n), is_devices ? slot.count : model_[page][n]);
  }

  // Returns how often it wrote.
  u64 device(unsigned me) {
    std::mt19937_64 random(seed() + me);
    u64 stores = 0;
    while (!stop_.load()) {
      const unsigned n = static_cast<unsigned>(random() % kSlots);
      const std::lock_guard guard(slots_[n].lock);
      Slot& slot = slots_[n];
      u64 found = 0;
      if (!slot.frame) continue;
      EXPECT_TRUE(host::read_frame(*slot.frame, n * 8, &found, 8));
      EXPECT_EQ(found, slot.count) << "a store of the device's is lost";
      ++slot.count;
      EXPECT_TRUE(host::write_frame(*slot.frame, n * 8, &slot.count, 8));
      ++stores;
      if (HasFailure()) stop_.store(true);
    }
    return stores;
  }

  u8* memory_ = nullptr;
  std::array<Slot, kSlots> slots_;
  u64 model_[kPages][kSlots] = {};  // the client's words no device has; the client thread's
  std::atomic<bool> stop_{false};
};

TEST_F(PinsStress, EveryWordIsWhatTheModelSays) {
  SCOPED_TRACE(testing::Message() << "STAGETWO_SEED=" << seed());
  std::mt19937_64 random(seed());
  u64 stores[2] = {};
  std::thread devices[2];
  for (unsigned i = 0; i < 2; ++i) devices[i] = std::thread([&, i] { stores[i] = device(i + 1); });
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(test_seconds());
  u64 changes = 0;
  for (; std::chrono::steady_clock::now() < end && !HasFailure(); ++changes) {
    const unsigned page = static_cast<unsigned>(random() % kPages);
    const unsigned pages = 1 + static_cast<unsigned>(random() % (kPages - page));
    const unsigned n = static_cast<unsigned>(random() % kSlots);
    switch (random() % 12) {
      case 0:
        discard(page, std::min(pages, 4u));
        break;
      case 1:
        map_over(page, std::min(pages, 4u));
        break;
      case 2:
        forbid_and_allow(page, pages);
        break;
      case 3:
        move();
        break;
      default: {
        const std::lock_guard guard(slots_[n].lock);
        if (slots_[n].frame) let_go(slots_[n], n);
        if (random() % 4 != 0) pin(slots_[n], n, page);
        for (unsigned i = 0; i < kPages && !HasFailure(); ++i) check(slots_[n], n, i);
      }
    }
  }
  stop_.store(true);
  for (std::thread& each : devices) each.join();
  for (unsigned n = 0; n < kSlots; ++n) {
    if (slots_[n].frame) let_go(slots_[n], n);
  }
  EXPECT_EQ(host::pin_use().pages, 0u);
  EXPECT_EQ(host::pin_use().stored, 0u);
  EXPECT_GT(stores[0] + stores[1], 0u);
  RecordProperty("changes", static_cast<int>(changes));
}

}  // namespace
}  // namespace stagetwo::test
