// SPDX-License-Identifier: Apache-2.0
#pragma once

// The steps of a mirror's fault one by one, so that a test can do something in between.

#include "mirror/mirror.h"

namespace stagetwo::mirror {

struct MirrorTestAccess {
  // One attempt of a read fault. False: refused, or to be tried again.
  template <typename F>
  static bool fault_once(Mirror& mirror, Hva page, F&& between) {
    const Result<Span*> span = mirror.span_of(page);
    if (!span) return false;
    const u64 seen = (*span)->read_begin();
    Mirror::Found found;
    if (!mirror.look_up(page, 1, false, &found)) return false;
    between();
    const Result<bool> stored = mirror.store_found(**span, seen, page, 1, found);
    return stored && *stored;
  }
  // The owner of the events its device rings itself.
  static const void* cookie(Mirror& mirror) { return mirror.device_; }
  static u64 spans(Mirror& mirror) {
    const sync::MutexGuard guard(mirror.device_->lock);
    return mirror.spans_.size();
  }
  // Under the device's lock: fn() if it has an entry that can be read by.
  template <typename F>
  static void use(Mirror& mirror, Hva page, F&& fn) {
    const sync::MutexGuard guard(mirror.device_->lock);
    if (mirror.usable(page, Access::kRead) != nullptr) fn();
  }
  // As a device that copies a page.
  template <typename F>
  static void hold(Mirror& mirror, F&& during) {
    const sync::MutexGuard guard(mirror.device_->lock);
    during();
  }
};

}  // namespace stagetwo::mirror
