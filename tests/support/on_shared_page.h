// SPDX-License-Identifier: Apache-2.0
#pragma once

// One T in memory that this process shares with its children: a lock, and what it guards.

#include <sys/mman.h>

#include <cstdlib>
#include <memory>

namespace stagetwo::test {

template <typename T>
class OnSharedPage {
 public:
  OnSharedPage() {
    void* const at =
        ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) std::abort();
    one_ = std::construct_at(static_cast<T*>(at));
  }
  // What children did to it is nobody's to destroy.
  ~OnSharedPage() { ::munmap(one_, sizeof(T)); }
  OnSharedPage(const OnSharedPage&) = delete;
  OnSharedPage& operator=(const OnSharedPage&) = delete;
  T* operator->() const { return one_; }
  T& operator*() const { return *one_; }

 private:
  T* one_;
};

}  // namespace stagetwo::test
