// SPDX-License-Identifier: Apache-2.0
#pragma once

// Who waits for what, in a stress test that does not end: each thread says what it is about, and
// from half a minute on somebody prints it, with whatever else the test knows.

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <mutex>
#include <thread>

#include "base/types.h"

namespace stagetwo::test {

class StressWatch {
 public:
  static constexpr unsigned kMostThreads = 16;

  // `tell` may take the locks of what it looks at: it comes last, so that a lock that is never
  // given back shows as a report without its part.
  StressWatch(const char* test, std::function<void()> tell,
              std::chrono::milliseconds patience = std::chrono::seconds(30))
      : test_(test), tell_(std::move(tell)), patience_(patience), thread_([this] { watch(); }) {}
  ~StressWatch() {
    {
      const std::lock_guard guard(lock_);
      over_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  StressWatch(const StressWatch&) = delete;
  StressWatch& operator=(const StressWatch&) = delete;

  // `what` stays for the whole test: a string literal.
  void at(unsigned thread, const char* what, u64 number = 0) {
    threads_[thread].what.store(what, std::memory_order_relaxed);
    threads_[thread].number.store(number, std::memory_order_relaxed);
    threads_[thread].turns.fetch_add(1, std::memory_order_relaxed);
  }
  [[nodiscard]] unsigned reports() const { return reports_.load(); }

 private:
  struct Thread {
    std::atomic<const char*> what{nullptr};
    std::atomic<u64> number{0}, turns{0};
  };
  void watch() {
    std::unique_lock guard(lock_);
    while (!wake_.wait_for(guard, patience_, [this] { return over_; })) report();
  }
  void report() {
    std::printf("%s has not ended:\n", test_);
    for (unsigned i = 0; i < kMostThreads; ++i) {
      const char* const what = threads_[i].what.load(std::memory_order_relaxed);
      if (what == nullptr) continue;
      std::printf("  thread %u: %s %llu, turn %llu\n", i, what,
                  static_cast<unsigned long long>(threads_[i].number.load()),
                  static_cast<unsigned long long>(threads_[i].turns.load()));
    }
    std::fflush(stdout);
    tell_();
    std::fflush(stdout);
    ++reports_;
  }

  const char* const test_;
  const std::function<void()> tell_;
  const std::chrono::milliseconds patience_;
  std::array<Thread, kMostThreads> threads_;
  std::atomic<unsigned> reports_{0};
  std::mutex lock_;
  std::condition_variable wake_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace stagetwo::test
