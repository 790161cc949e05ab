// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory of the client as tests want it: pages with nothing before and after them.

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "base/types.h"

namespace stagetwo::test {

class GuardedPages {
 public:
  explicit GuardedPages(size_t pages, int prot = PROT_READ | PROT_WRITE) : bytes_(pages * 4096) {
    void* reserve = ::mmap(nullptr, bytes_ + 2 * 4096, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserve == MAP_FAILED) std::abort();
    address_ = reinterpret_cast<std::uintptr_t>(reserve) + 4096;
    if (::mprotect(pointer(), bytes_, prot) != 0) std::abort();
  }
  ~GuardedPages() { ::munmap(reinterpret_cast<void*>(address_ - 4096), bytes_ + 2 * 4096); }
  GuardedPages(const GuardedPages&) = delete;
  GuardedPages& operator=(const GuardedPages&) = delete;

  [[nodiscard]] u64 address() const { return address_; }
  [[nodiscard]] void* pointer() const { return reinterpret_cast<void*>(address_); }
  [[nodiscard]] u8* bytes_at(u64 offset) const { return static_cast<u8*>(pointer()) + offset; }
  [[nodiscard]] size_t bytes() const { return bytes_; }

 private:
  u64 address_;
  size_t bytes_;
};

}  // namespace stagetwo::test
