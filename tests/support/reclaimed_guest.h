// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory under a limit, and a guest that uses it: a subscriber of the bell that borrows pages and
// has an accessed bit for each. The process is its own VMM.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "host/backstop.h"
#include "host/change.h"
#include "host/faultin.h"
#include "host/memory_budget.h"
#include "host/mmu_notifier.h"
#include "host/page_owner.h"
#include "host/process_map.h"
#include "host/shared_objects.h"
#include "host/userfault.h"
#include "host/worker.h"
#include "mem/swap_file.h"
#include "reclaim/reclaim.h"
#include "tests/support/random_source.h"

namespace stagetwo::test {

inline constexpr u64 kMiB = u64{1} << 20;

// Which pages it has used, page by page of one range.
class FakeGuest final : public host::MmuNotifier {
 public:
  FakeGuest(u8* base, size_t pages)
      : range_(Hva(reinterpret_cast<u64>(base)), pages << kPageShift),
        young_(pages),
        mapped_(pages) {
    EXPECT_TRUE(host::register_notifier(this));
  }
  ~FakeGuest() { host::unregister_notifier(this); }

  // A guest's access: faults if the translation is gone.
  void use(size_t page) {
    if (!mapped_[page].load()) {
      const Hva at = range_.start() + (page << kPageShift);
      const host::budget::Reach reach(1, at);
      EXPECT_TRUE(host::faultin(at, Access::kWrite, host::Ask::kTouch));
      ++faults;
      mapped_[page] = true;
    }
    young_[page] = true;
  }
  bool invalidate_range_start(const host::InvalidateEvent& event) override {
    if (!event.range.overlaps(range_)) return false;
    for_each(event.range, [&](size_t page) {
      mapped_[page] = false;
      young_[page] = false;
    });
    return true;
  }
  void invalidate_range_end(const host::InvalidateEvent&) override {}
  bool clear_young(HvaRange range) override {
    bool any = false;
    for_each(range, [&](size_t page) { any |= young_[page].exchange(false); });
    return any;
  }
  bool test_young(HvaRange range) override {
    bool any = false;
    for_each(range, [&](size_t page) { any |= young_[page].load(); });
    return any;
  }
  std::atomic<u64> faults{0};

 private:
  template <typename F>
  void for_each(HvaRange range, F&& fn) {
    const Hva end = std::min(range.end(), range_.end());
    for (Hva at = std::max(range.start(), range_.start()); at < end; at += kPageSize) {
      fn((at - range_.start()) >> kPageShift);
    }
  }
  const HvaRange range_;
  std::vector<std::atomic<bool>> young_, mapped_;
};

// What the engine has said, by whatever thread.
struct Said {
  std::mutex lock;
  std::vector<std::string> lines;
};
inline Said& all_said() {
  static Said all;
  return all;
}
inline std::vector<std::string> said() {
  const std::lock_guard guard(all_said().lock);
  return all_said().lines;
}
inline void say(const char* line) {
  const std::lock_guard guard(all_said().lock);
  all_said().lines.emplace_back(line);
}
inline void forget_said() {
  const std::lock_guard guard(all_said().lock);
  all_said().lines.clear();
}

class ReclaimedGuest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
    forget_said();
    folder_ = std::filesystem::temp_directory_path() /
              ("reclaim-" + std::to_string(static_cast<unsigned>(::getpid())));
    std::filesystem::create_directory(folder_);
  }
  void TearDown() override {
    guest_.reset();
    reclaim::stop();
    for (const Mapped& one : mappings_) {
      host::change(reinterpret_cast<u64>(one.at), one.bytes, host::EventKind::kUnmap,
                   [&] { return ::munmap(one.at, one.bytes); });
    }
    std::error_code ignored;
    EXPECT_TRUE(std::filesystem::is_empty(folder_, ignored));
    std::filesystem::remove_all(folder_, ignored);
  }

  u8* map(size_t pages, int flags = MAP_PRIVATE) {
    void* const at = ::mmap(nullptr, pages << kPageShift, PROT_READ | PROT_WRITE,
                            flags | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(MAP_FAILED, at);
    if (flags == MAP_SHARED) host::shared_memory_mapped(Hva(reinterpret_cast<u64>(at)));
    mappings_.push_back({at, pages << kPageShift});
    return static_cast<u8*>(at);
  }
  static HvaRange range_of(const u8* at, size_t pages) {
    return HvaRange(Hva(reinterpret_cast<u64>(at)), pages << kPageShift);
  }
  enum class Swap { kNone, kFile };
  void start(u64 limit, Swap swap = Swap::kFile, u64 interval_ns = 0) {
    reclaim::Settings settings;
    settings.memory_limit = limit;
    settings.interval_ns = interval_ns;
    settings.say = say;
    if (swap == Swap::kFile) {
      settings.swap_fd = *mem::SwapFile::create(folder_.c_str());
    }
    ASSERT_TRUE(reclaim::start(settings));
    guest_ = std::make_unique<reclaim::Guest>();
  }
  // Half of the pages of a seeded pattern do not get smaller.
  static void fill(u8* page, u64 seed) {
    RandomSource random(seed);
    for (size_t i = 0; i < kPageSize; i += 8) {
      const u64 word = seed % 2 == 0 || i % 64 < 16 ? random.next() : seed;
      std::memcpy(page + i, &word, 8);
    }
  }
  static bool is_filled(const u8* page, u64 seed) {
    u8 wanted[kPageSize];
    fill(wanted, seed);
    return std::memcmp(page, wanted, kPageSize) == 0;
  }
  // The swap file, which has no name: some descriptor of ours leads to it.
  int swap_fd() const {
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      const std::string target = std::filesystem::read_symlink(entry, gone).string();
      if (target.starts_with(folder_.string() + "/")) return std::stoi(entry.path().filename());
    }
    return -1;
  }
  static u64 kept() {
    const reclaim::Statistics now = reclaim::statistics();
    return now.resident + now.compressed;
  }
  // The worker's turns go on until it is so.
  static bool soon(const std::function<bool()>& is_so) {
    for (int i = 0; i < 5000; ++i) {
      if (is_so()) return true;
      host::kick_worker(true);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return is_so();
  }
  static bool all_absent(const u8* at, size_t pages) {
    for (size_t i = 0; i < pages; ++i) {
      if (!host::is_absent(Hva(reinterpret_cast<u64>(at + (i << kPageShift))))) return false;
    }
    return true;
  }

  std::filesystem::path folder_;
  std::unique_ptr<reclaim::Guest> guest_;
  struct Mapped {
    void* at;
    size_t bytes;
  };
  std::vector<Mapped> mappings_;
};

}  // namespace stagetwo::test
