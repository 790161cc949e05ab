// SPDX-License-Identifier: Apache-2.0
#pragma once

// Telling the engine of what the kernel, or a thread of libc, is asked to do in memory of this
// process behind a call (host/kernel_io.h).
//
// Context: the client's thread. errno stays. Nothing where the engine is asleep.

#include <errno.h>

#include "host/run_section.h"
#include "shim/engine.h"

namespace stagetwo::shim {

template <typename F>
void note_requests(F&& note) {
  if (!awake()) return;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  note();
  section.leave();
  errno = error;
}

}  // namespace stagetwo::shim
