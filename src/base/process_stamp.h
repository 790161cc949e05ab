// SPDX-License-Identifier: Apache-2.0
#pragma once

// process_stamp() (base/process_page.h) as one load, for who asks at every call.
// Context: any.

#include "base/process_page.h"

namespace stagetwo {

namespace detail {
// The word of the process page that a child finds empty; null: not mapped yet, or not wiped.
// Stored once (release) when the page is published, read with acquire.
extern u64* stamp_word;
}  // namespace detail

inline u32 stamp_of_process() {
  const u64* word = __atomic_load_n(&detail::stamp_word, __ATOMIC_ACQUIRE);
  const u64 stamp = word == nullptr ? 0 : __atomic_load_n(word, __ATOMIC_RELAXED);
  return stamp != 0 ? static_cast<u32>(stamp) : process_stamp();
}

}  // namespace stagetwo
