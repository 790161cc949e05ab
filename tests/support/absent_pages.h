// SPDX-License-Identifier: Apache-2.0
#pragma once

// Eight pages of the process, an owner with a place for each, and both ways of hiding them.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "base/alloc.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/page_owner.h"
#include "host/userfault.h"
#include "tests/support/pages.h"

namespace stagetwo::test {

using host::BringBack;

// Keeps pages in places of its own, one a page number of the span it serves.
class Keeper final : public host::PageOwner {
 public:
  static constexpr size_t kPages = 2048;
  explicit Keeper(Hva first) : first_(first) {
    places_ = Hva(reinterpret_cast<u64>(*map_pages(kPages * kPageSize, "test.places")));
    host::prepare_places(HvaRange(places_, kPages * kPageSize));
  }
  // Waits for who is still bringing one back.
  ~Keeper() {
    host::bring_back_range(HvaRange(first_, kPages * kPageSize));
    unmap_pages(reinterpret_cast<void*>(places_.raw()), kPages * kPageSize);
  }

  bool take(const host::AbsentPage& page, host::PageExit& exit) override {
    writable = page.writable;
    if (while_taking) while_taking(page);
    if (refuses || !exit.to(place_of(page))) return false;
    ++taken;
    return true;
  }
  BringBack bring_back(const host::AbsentPage& page, host::PageEntry& entry) override {
    ++asked;
    if (answer != BringBack::kBack) std::this_thread::sleep_for(before_it_refuses);
    if (answer != BringBack::kBack) return answer;
    if (!entry.from(place_of(page))) return BringBack::kRetry;
    empty(page);
    ++back;
    return BringBack::kBack;
  }
  void discard(const host::AbsentPage& page) override {
    empty(page);
    ++discarded;
  }
  unsigned take_run(const host::AbsentPage& first, unsigned, host::PageExit& exit) override {
    if (refuses || while_taking) return 0;
    const unsigned went = exit.run_to(place_of(first));
    writable = first.writable;
    taken += went;
    in_runs += went;
    return went;
  }
  unsigned bring_back_run(const host::AbsentPage& first, unsigned,
                          host::PageEntry& entry) override {
    if (answer != BringBack::kBack) return 0;
    const unsigned came = entry.run_from(place_of(first));
    asked += came;
    back += came;
    return came;
  }

  u8* bytes_of(const void* at) const {
    return reinterpret_cast<u8*>((places_ + (reinterpret_cast<u64>(at) - first_.raw())).raw());
  }

  std::function<void(const host::AbsentPage&)> while_taking;
  // A touch that another thread serves orders nothing in the eyes of a sanitizer.
  std::atomic<bool> refuses{false};
  std::atomic<BringBack> answer{BringBack::kBack};
  std::chrono::microseconds before_it_refuses{0};
  std::atomic<u64> taken{0}, asked{0}, back{0}, discarded{0}, in_runs{0};
  std::atomic<bool> writable{false};

 private:
  Hva place_of(const host::AbsentPage& page) const { return places_ + (page.at - first_); }
  void empty(const host::AbsentPage& page) const {
    ::madvise(reinterpret_cast<void*>(place_of(page).raw()), kPageSize, MADV_DONTNEED);
  }
  Hva first_;
  Hva places_;
};

// Both ways of hiding a page have to behave alike where they promise the same.
class AbsentPages : public testing::TestWithParam<bool> {
 protected:
  static constexpr size_t kPages = 8;
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    host::userfault::debug_deny(GetParam());
    if (!GetParam() && !host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
    for (size_t i = 0; i < kPages; ++i) std::memset(page(i), static_cast<int>(i + 1), kPageSize);
  }
  void TearDown() override {
    // Lost ones, too, die with a change that says so.
    host::change(at(0).raw(), kPages * kPageSize, host::EventKind::kClear,
                 [&] { return ::madvise(page(0), kPages * kPageSize, MADV_DONTNEED); });
    host::userfault::debug_deny(false);
  }
  [[nodiscard]] bool serves_system_calls() const {
    return !GetParam() && host::userfault::serves_kernel();
  }
  u8* page(size_t i) { return memory_.bytes_at(i * kPageSize); }
  HvaRange range(size_t first = 0, size_t pages = kPages) {
    return HvaRange(Hva(memory_.address() + first * kPageSize), pages * kPageSize);
  }
  Hva at(size_t i) { return range(i, 1).start(); }
  u64 take(size_t first = 0, size_t pages = kPages) {
    const auto taken =
        host::take_away(range(first, pages), &keeper_, this, host::Which::kAnonymous);
    return taken ? *taken : ~u64{0};
  }
  bool is_page_of(size_t i) {
    for (size_t b = 0; b < kPageSize; ++b) {
      if (page(i)[b] != i + 1) return false;
    }
    return true;
  }

  GuardedPages memory_{kPages};
  Keeper keeper_{Hva(memory_.address())};
};
inline std::string hiding_name(const testing::TestParamInfo<bool>& denied) {
  return denied.param ? "Protection" : "Userfault";
}

}  // namespace stagetwo::test
