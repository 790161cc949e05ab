// SPDX-License-Identifier: Apache-2.0
#include "base/process_page.h"

#include <sys/mman.h>

#include "base/own_memory.h"
#include "base/process_stamp.h"
#include "base/sys.h"

namespace stagetwo {
namespace {

constexpr size_t kPageBytes = kProcessPageWords * sizeof(u64);

// Word 0 of the page: the stamp, or 0 in a process that has not asked yet.
constexpr size_t kStampWord = 0;

// Shared with children (same address there), set once by compare-and-exchange.
u64* the_page = nullptr;
bool wiped_on_fork = false;

}  // namespace

namespace detail {
u64* stamp_word = nullptr;
}  // namespace detail

u64* process_page() {
  u64* page = __atomic_load_n(&the_page, __ATOMIC_ACQUIRE);  // pairs with the exchange below
  if (page != nullptr) [[likely]]
    return page;
  auto mapped = map_apart(kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (!mapped) return nullptr;
  const bool wipes = sys::madvise(*mapped, kPageBytes, MADV_WIPEONFORK).has_value();
  __atomic_store_n(&wiped_on_fork, wipes, __ATOMIC_RELAXED);  // published by the exchange
  u64* fresh = static_cast<u64*>(*mapped);
  if (__atomic_compare_exchange_n(&the_page, &page, fresh, false, __ATOMIC_ACQ_REL,
                                  __ATOMIC_ACQUIRE)) {
    if (wipes) __atomic_store_n(&detail::stamp_word, fresh + kStampWord, __ATOMIC_RELEASE);
    return fresh;
  }
  static_cast<void>(sys::munmap(fresh, kPageBytes));  // another thread was faster
  return page;
}

u32 process_stamp() {
  u64* page = process_page();
  if (page == nullptr || !__atomic_load_n(&wiped_on_fork, __ATOMIC_RELAXED)) {
    return static_cast<u32>(sys::getpid());
  }
  const u64 stamp = __atomic_load_n(&page[kStampWord], __ATOMIC_RELAXED);
  if (stamp != 0) [[likely]]
    return static_cast<u32>(stamp);
  // Every thread that finds 0 writes the same number: the pid is unique among living relatives.
  const u64 pid = static_cast<u64>(sys::getpid());
  __atomic_store_n(&page[kStampWord], pid, __ATOMIC_RELAXED);
  return static_cast<u32>(pid);
}

}  // namespace stagetwo
