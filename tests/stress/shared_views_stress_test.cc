// SPDX-License-Identifier: Apache-2.0
// Goal: no store is lost, whatever becomes of the mappings it was made through. Threads map, move,
// grow, cut, replace and unmap views of one file, change their rights, discard what they show and
// punch the file, while its pages are taken all the time. Each thread counts in a word of its own
// in every page, and looks at each count whenever it has made a view, and at every store.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "host/held_pages.h"
#include "host/page_owner.h"
#include "host/shared_objects.h"
#include "host/userfault.h"
#include "shim/absent_buffers.h"
#include "shim/engine.h"
#include "shim/files.h"
#include "shim/memory.h"
#include "tests/support/pages.h"
#include "tests/support/random_source.h"
#include "tests/support/stress_time.h"

namespace stagetwo {
namespace {

using host::BringBack;

constexpr unsigned kThreads = 4;
constexpr size_t kCounted = 24;                         // pages that all threads count in
constexpr size_t kFilePages = kCounted + 2 * kThreads;  // and two for each alone, which it punches
constexpr size_t kWindows = 2;  // of a thread: with ours one too many at times

// A place for each page; every take and bring-back of a page must meet the other.
class Places final : public host::PageOwner {
 public:
  bool take(const host::AbsentPage& page, host::PageExit& exit) override {
    if (!begin(page, 1)) return false;
    const bool went = exit.to(place_of(page));
    if (!went) with_us[page.key.index] = false;
    taken += went ? 1 : 0;
    return went;
  }
  unsigned take_run(const host::AbsentPage& first, unsigned pages, host::PageExit& exit) override {
    if (!begin(first, pages)) return 0;
    const unsigned went = exit.run_to(place_of(first));
    for (unsigned i = went; i < pages; ++i) with_us[first.key.index + i] = false;
    taken += went;
    return went;
  }
  BringBack bring_back(const host::AbsentPage& page, host::PageEntry& entry) override {
    if (!with_us[page.key.index]) ++wrong;
    if (asked.fetch_add(1) % 7 == 0) return BringBack::kRetry;  // now and then there is no memory
    with_us[page.key.index] = false;
    if (entry.from(place_of(page))) return BringBack::kBack;
    with_us[page.key.index] = true;
    return BringBack::kRetry;
  }
  unsigned bring_back_run(const host::AbsentPage& first, unsigned pages,
                          host::PageEntry& entry) override {
    if (asked.fetch_add(1) % 7 == 0) return 0;
    for (unsigned i = 0; i < pages; ++i) {
      if (!with_us[first.key.index + i].exchange(false)) ++wrong;
    }
    const unsigned came =
        entry.run_from_bytes(reinterpret_cast<const u8*>(place_of(first).raw()), pages);
    for (unsigned i = came; i < pages; ++i) with_us[first.key.index + i] = true;
    return came;
  }
  void discard(const host::AbsentPage& page) override {
    if (!with_us[page.key.index].exchange(false)) ++wrong;
    if (page.key.index < kCounted) ++wrong;
  }

  std::atomic<bool> with_us[kFilePages]{};
  std::atomic<u64> wrong{0}, asked{0}, taken{0};

 private:
  bool begin(const host::AbsentPage& first, unsigned pages) {
    for (unsigned i = 0; i < pages; ++i) {
      if (with_us[first.key.index + i].exchange(true)) ++wrong;
    }
    return true;
  }
  Hva place_of(const host::AbsentPage& page) const {
    return Hva(places_.address() + page.key.index * kPageSize);
  }
  test::GuardedPages places_{kFilePages};
};

struct World {
  int file = -1;
  u8* base = nullptr;
  Places places;
  std::atomic<bool> over{false};
  std::atomic<u64> wrong{0};
};

class Client {
 public:
  Client(World& world, unsigned number)
      : world_(world), number_(number), random_(test::seed() * 64 + number) {}

  void run() {
    while (!world_.over.load(std::memory_order_relaxed)) act();
    while (!windows_.empty()) unmap_whole(0);
  }

 private:
  struct Window {
    u8* at;
    size_t first;
    size_t pages;
  };

  void act() {
    const unsigned what = random_.small(24);
    if (windows_.empty() || (what < 3 && windows_.size() < kWindows)) return make();
    const size_t which = random_.small(static_cast<unsigned>(windows_.size()));
    Window& window = windows_[which];
    switch (what) {
      case 3:
      case 4:
        return unmap_whole(which);
      case 5:
        return cut(which);
      case 6:
        return move(window);
      case 7:
        return replace(window);
      case 8:
        return number_again(window);
      case 9:
        expect(shim::advise(window.at, window.pages * kPageSize, MADV_DONTNEED) == 0);
        return look(window);
      case 10:
        expect(shim::protect(window.at, window.pages * kPageSize, PROT_READ, -1) == 0);
        look(window);
        expect(shim::protect(window.at, window.pages * kPageSize, PROT_READ | PROT_WRITE, -1) == 0);
        return look(window);
      case 11:
        return punch();
      case 12:
        return write_file();
      case 13:
        return again(window);
      default:
        return count(window);
    }
  }

  u64* word(const Window& window, size_t page) const {
    return reinterpret_cast<u64*>(window.at + (page - window.first) * kPageSize) + 8 * number_;
  }
  bool is_mine(size_t page) const { return page < kCounted || (page - kCounted) / 2 == number_; }
  void expect(bool holds) {
    if (!holds) ++world_.wrong;
  }
  void check(u64 shown, size_t page) {
    if (shown == counts_[page]) return;
    ++world_.wrong;
    std::printf("thread %u page %zu: %llu of %llu\n", number_, page,
                static_cast<unsigned long long>(shown),
                static_cast<unsigned long long>(counts_[page]));
    counts_[page] = shown;
  }
  void look(const Window& window) {
    for (size_t page = window.first; page < window.first + window.pages; ++page) {
      if (is_mine(page)) check(__atomic_load_n(word(window, page), __ATOMIC_RELAXED), page);
    }
  }
  void count(const Window& window) {
    for (int i = 0; i < 8; ++i) {
      const size_t page = window.first + random_.small(static_cast<unsigned>(window.pages));
      if (!is_mine(page)) continue;
      check(__atomic_fetch_add(word(window, page), 1, __ATOMIC_RELAXED), page);
      ++counts_[page];
    }
  }
  size_t some_pages() { return 1 + random_.small(12); }
  size_t some_first(size_t pages) {
    return random_.small(static_cast<unsigned>(kFilePages - pages + 1));
  }
  static off_t offset_of(size_t page) { return static_cast<off_t>(page * kPageSize); }

  void make() {
    const size_t pages = some_pages();
    const size_t first = some_first(pages);
    const int flags = MAP_SHARED | (random_.one_in(4) ? MAP_POPULATE : 0);
    void* const at = shim::map(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, flags,
                               world_.file, offset_of(first));
    if (at == MAP_FAILED) return;
    windows_.push_back({static_cast<u8*>(at), first, pages});
    finish(windows_.back());
  }
  void finish(const Window& window) {
    if (random_.one_in(2)) look(window);
    count(window);
  }
  void unmap_whole(size_t which) {
    const Window window = windows_[which];
    if (shim::unmap(window.at, window.pages * kPageSize) != 0) return;
    windows_[which] = windows_.back();
    windows_.pop_back();
  }
  void cut(size_t which) {
    Window& window = windows_[which];
    if (window.pages == 1) return unmap_whole(which);
    const size_t gone = 1 + random_.small(static_cast<unsigned>(window.pages - 1));
    const bool head = random_.one_in(2);
    u8* const at = head ? window.at : window.at + (window.pages - gone) * kPageSize;
    if (shim::unmap(at, gone * kPageSize) != 0) return;
    if (head) window.at += gone * kPageSize;
    if (head) window.first += gone;
    window.pages -= gone;
    finish(window);
  }
  void move(Window& window) {
    const size_t most = kFilePages - window.first;
    const size_t pages =
        random_.one_in(2) ? 1 + random_.small(static_cast<unsigned>(most)) : window.pages;
    void* const at = shim::remap(window.at, window.pages * kPageSize, pages * kPageSize,
                                 MREMAP_MAYMOVE, nullptr);
    if (at == MAP_FAILED) return;
    window.at = static_cast<u8*>(at);
    window.pages = pages;
    finish(window);
  }
  void replace(Window& window) {
    const size_t first = some_first(window.pages);
    if (random_.one_in(4)) {
      void* const other = shim::map(window.at, window.pages * kPageSize, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      if (other == MAP_FAILED) return;
      *window.at = 1;
    }
    void* const at = shim::map(window.at, window.pages * kPageSize, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_FIXED, world_.file, offset_of(first));
    expect(at != MAP_FAILED);
    window.first = first;
    finish(window);
  }
  void number_again(Window& window) {
    const size_t first = some_first(window.pages);
    if (shim::remap_pages(window.at, window.pages * kPageSize, 0, first, 0) != 0) return;
    window.first = first;
    finish(window);
  }
  void again(const Window& window) {
    void* const at = shim::remap(window.at, 0, window.pages * kPageSize, MREMAP_MAYMOVE, nullptr);
    if (at == MAP_FAILED) return;
    const Window other{static_cast<u8*>(at), window.first, window.pages};
    finish(other);
    expect(shim::unmap(at, window.pages * kPageSize) == 0);
  }
  void punch() {
    const size_t page = kCounted + 2 * number_ + random_.small(2);
    constexpr int kHole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    expect(shim::fallocate_fd(world_.file, kHole, offset_of(page), kPageSize) == 0);
    counts_[page] = 0;
  }
  void write_file() {
    const size_t page = random_.small(kCounted);
    const off_t at = offset_of(page) + static_cast<off_t>(64 * number_);
    u64 now = 0;
    expect(shim::with_buffer(world_.file, true, &at, &now, sizeof(now), [&] {
             return ::pread(world_.file, &now, sizeof(now), at);
           }) == sizeof(now));
    check(now, page);
    ++now;
    expect(shim::with_buffer(world_.file, false, &at, &now, sizeof(now), [&] {
             return ::pwrite(world_.file, &now, sizeof(now), at);
           }) == sizeof(now));
    counts_[page] = now;
  }

  World& world_;
  const unsigned number_;
  test::RandomSource random_;
  std::vector<Window> windows_;
  u64 counts_[kFilePages] = {};
};

TEST(SharedViewsStress, NoStoreIsLostWhateverBecomesOfItsMapping) {
  ASSERT_TRUE(shim::wake());
  if (!host::userfault::open() || !host::userfault::serves_kernel()) {
    GTEST_SKIP() << "userfaultfd does not serve system calls here";
  }
  test::announced_seed("shared views");
  // As with a limit: a map that is under way when this is said is not known of.
  host::expect_takes();
  World world;
  world.file = shim::memory_file("views", MFD_CLOEXEC);
  ASSERT_EQ(0, shim::truncate_fd(world.file, kFilePages * kPageSize));
  world.base = static_cast<u8*>(shim::map(nullptr, kFilePages * kPageSize, PROT_READ | PROT_WRITE,
                                          MAP_SHARED, world.file, 0));
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kThreads; ++i) {
    threads.emplace_back([&world, i] { Client(world, i).run(); });
  }
  for (unsigned i = 0; i < 2; ++i) {
    threads.emplace_back([&world, i] {
      test::RandomSource random(test::seed() * 64 + 32 + i);
      while (!world.over.load(std::memory_order_relaxed)) {
        const size_t first = random.small(kFilePages);
        const size_t pages = 1 + random.small(static_cast<unsigned>(kFilePages - first));
        const Hva at(reinterpret_cast<u64>(world.base) + first * kPageSize);
        static_cast<void>(host::take_away(HvaRange(at, pages * kPageSize), &world.places, &world,
                                          host::Which::kAll));
        std::this_thread::sleep_for(std::chrono::microseconds(random.small(200)));
      }
    });
  }
  std::this_thread::sleep_for(
      std::chrono::milliseconds(static_cast<s64>(test::test_seconds() * 100)));
  // However long a busy machine needs for that many.
  while (world.places.taken.load() < 50) std::this_thread::yield();
  world.over.store(true);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(0U, world.wrong.load());
  EXPECT_EQ(0U, world.places.wrong.load());
  host::bring_back_range(HvaRange(Hva(reinterpret_cast<u64>(world.base)), kFilePages * kPageSize));
  EXPECT_EQ(0, shim::unmap(world.base, kFilePages * kPageSize));
  ::close(world.file);
}

}  // namespace
}  // namespace stagetwo
