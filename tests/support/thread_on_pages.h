// SPDX-License-Identifier: Apache-2.0
#pragma once

// A thread whose stack is known memory: it does one thing, says so, and does the next when asked.

#include <pthread.h>
#include <semaphore.h>

#include <cstdlib>
#include <functional>

#include "tests/support/pages.h"

namespace stagetwo::test {

class ThreadOnPages {
 public:
  static constexpr size_t kPages = 128;
  // The thread itself, its record and its first frames are at the end; this far below is nothing of
  // what an entry to the engine stands on.
  static constexpr size_t kFarPages = kPages - 64;

  // `first` has been done when this returns; `then` is done in finish().
  ThreadOnPages(std::function<void()> first, std::function<void()> then)
      : first_(std::move(first)), then_(std::move(then)) {
    std::memset(pages_.bytes_at(0), 1, kPages * kPageSize);
    sem_init(&done_, 0, 0);
    sem_init(&go_, 0, 0);
    pthread_attr_t about;
    pthread_attr_init(&about);
    pthread_attr_setstack(&about, pages_.bytes_at(0), kPages * kPageSize);
    if (pthread_create(&thread_, &about, run, this) != 0) std::abort();
    pthread_attr_destroy(&about);
    sem_wait(&done_);
  }
  ~ThreadOnPages() { finish(); }
  ThreadOnPages(const ThreadOnPages&) = delete;
  ThreadOnPages& operator=(const ThreadOnPages&) = delete;

  void finish() {
    if (finished_) return;
    finished_ = true;
    sem_post(&go_);
    pthread_join(thread_, nullptr);
  }
  [[nodiscard]] HvaRange stack() const {
    return HvaRange(Hva(pages_.address()), kPages * kPageSize);
  }
  // A page that it certainly uses.
  [[nodiscard]] Hva in_use() const { return page_floor(Hva(reinterpret_cast<u64>(here_))); }

 private:
  static void* run(void* self) {
    auto* const thread = static_cast<ThreadOnPages*>(self);
    thread->here_ = __builtin_frame_address(0);
    thread->first_();
    sem_post(&thread->done_);
    while (sem_wait(&thread->go_) != 0) {
    }
    thread->then_();
    return nullptr;
  }

  GuardedPages pages_{kPages};
  std::function<void()> first_, then_;
  sem_t done_, go_;
  pthread_t thread_{};
  void* here_ = nullptr;
  bool finished_ = false;
};

}  // namespace stagetwo::test
