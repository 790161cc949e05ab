// SPDX-License-Identifier: Apache-2.0
// The client registers a userfaultfd of its own on memory that ours watches: a range has one only.
#include <algorithm>

#include "host/owner_table.h"

namespace stagetwo::host {

bool OwnerTable::stop_watching(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  bool any = false;
  const size_t known = spans_.size();
  for (size_t i = 0; i < known; ++i) {
    const HvaRange span = spans_[i];
    const Hva first = std::max(span.start(), range.start());
    const Hva end = std::min(span.end(), range.end());
    if (first >= end) continue;
    // What is left of the span behind the range; without memory for that the span stays ours.
    if (end < span.end() && !spans_.push_back(HvaRange(end, span.end() - end))) continue;
    userfault::forget(HvaRange(first, end - first));
    spans_[i] = HvaRange(span.start(), first - span.start());
    any = true;
  }
  return any;
}

bool stop_watching(HvaRange range) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table != nullptr && table->stop_watching(range);
}

}  // namespace stagetwo::host
