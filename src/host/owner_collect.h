// SPDX-License-Identifier: Apache-2.0
#pragma once

// A look at the records of a reach, under one lock (host/owner_table.h). Not for other rooms.

#include "host/owner_table.h"

namespace stagetwo::host {

template <typename F>
unsigned OwnerTable::collect(const Reach& reach, PageKey* out, unsigned room, F&& wanted) {
  const sync::MutexGuard guard(lock_);
  unsigned count = 0;
  if (reach.range.size() / kPageSize <= pages_.size()) {
    for (Hva at = reach.range.start(); at < reach.range.end() && count < room; at += kPageSize) {
      const PageKey key = reach.object == kPrivateMemory
                              ? key_at(at)
                              : PageKey{reach.object, at.raw() >> kPageShift};
      PageRecord* record = pages_.find(key);
      if (record != nullptr && wanted(key, *record)) out[count++] = key;
    }
    return count;
  }
  pages_.for_each([&](const PageKey& key, PageRecord& record) {
    lock_.assert_held();
    if (count < room && within(key, record.at, reach) && wanted(key, record)) out[count++] = key;
  });
  return count;
}

}  // namespace stagetwo::host
