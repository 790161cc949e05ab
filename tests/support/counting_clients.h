// SPDX-License-Identifier: Apache-2.0
#pragma once

// Threads of a client that count in words of its memory while something takes the pages away.

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "base/types.h"

namespace stagetwo::test {

class CountingClients {
 public:
  // A thread for each word, from zero.
  explicit CountingClients(std::vector<u64*> words) : words_(std::move(words)) {
    sums_.resize(words_.size());
    for (u64* word : words_) __atomic_store_n(word, 0, __ATOMIC_RELAXED);
    for (size_t i = 0; i < words_.size(); ++i) {
      threads_.emplace_back([this, i] {
        u64 sum = 0;
        // Relaxed: in an ordered access the thread sanitizer holds a lock of its own, which the
        // handler of the fault wants too.
        for (; !stop_.load(); ++sum) __atomic_fetch_add(words_[i], 1, __ATOMIC_RELAXED);
        sums_[i] = sum;
      });
    }
  }
  ~CountingClients() { stop(); }

  void stop() {
    stop_.store(true);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  // Of a stopped one: the words that do not hold what was added to them.
  [[nodiscard]] unsigned wrong() const {
    unsigned count = 0;
    for (size_t i = 0; i < words_.size(); ++i) {
      count += __atomic_load_n(words_[i], __ATOMIC_RELAXED) != sums_[i];
    }
    return count;
  }
  [[nodiscard]] u64 added() const {
    u64 all = 0;
    for (const u64 sum : sums_) all += sum;
    return all;
  }

 private:
  std::vector<u64*> words_;
  std::vector<u64> sums_;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

}  // namespace stagetwo::test
