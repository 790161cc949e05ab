// SPDX-License-Identifier: Apache-2.0
#pragma once

// A close that libc makes inside one of its functions.
//
// Context: the client's thread, in no section; errno is the call's.

#include <errno.h>
#include <stdio.h>

#include <utility>

#include "host/descriptor.h"
#include "host/run_section.h"

namespace stagetwo::shim {

// Pre: `call` waits for nobody, and closes what is behind the stream.
template <typename F>
auto close_watched(FILE* stream, F&& call) {
  host::EngineSection section(host::Touches::kNothing);
  const auto [result, error] = [&] {
    host::CloseWatch watch(fileno(stream));
    const auto done = call();
    const int said = errno;
    watch.closed();
    return std::pair(done, said);
  }();
  section.leave();
  errno = error;
  return result;
}

}  // namespace stagetwo::shim
