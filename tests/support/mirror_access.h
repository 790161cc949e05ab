// SPDX-License-Identifier: Apache-2.0
#pragma once

// The steps of a mirror's fault one by one, so that a test can do something in between.

#include "mirror/mirror.h"

namespace stagetwo::mirror {

struct MirrorTestAccess {
  // One attempt of a read fault. False: refused, or to be tried again.
  template <typename F>
  static bool fault_once(Mirror& mirror, Hva page, F&& between) {
    const auto seen = mirror.gate_.snapshot();
    if (mirror.changed(seen, page, 1)) return false;
    Mirror::Found found;
    if (!mirror.look_up(page, 1, false, &found)) return false;
    between();
    const Result<bool> stored = mirror.store_found(seen, page, 1, found);
    return stored && *stored;
  }
  // As a device that copies a page.
  template <typename F>
  static void hold(Mirror& mirror, F&& during) {
    const sync::MutexGuard guard(mirror.device_->lock);
    during();
  }
};

}  // namespace stagetwo::mirror
