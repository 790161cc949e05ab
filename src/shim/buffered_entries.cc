// SPDX-License-Identifier: Apache-2.0
// The entry points of shim/buffered_calls.def. Each has the name of libc's function as its symbol
// and one of its own in C++, where libc's declarations promise things of the arguments.

#include "shim/absent_buffers.h"
#include "shim/behind.h"
#include "shim/buffered_calls.h"
#include "shim/bus_names.h"
#include "shim/files.h"
#include "shim/mdev_files.h"
#include "shim/poll_events.h"
#include "shim/programs.h"
#include "shim/received.h"
#include "shim/shared_files.h"
#include "shim/signal_masks.h"

namespace shim = stagetwo::shim;

#define ST_CALL(result, name, parameters, arguments, ...)                                      \
  extern "C"                                                                                   \
      __attribute__((visibility("default"))) result st_entry_##name parameters __asm__(#name); \
  result st_entry_##name parameters {                                                          \
    return shim::with_buffers([&](shim::Buffers& buffers) { buffers __VA_ARGS__; },            \
                              [&] { return shim::next::name arguments; });                     \
  }
#define ST_FILE_CALL(result, name, parameters, arguments, refused, ...)                        \
  extern "C"                                                                                   \
      __attribute__((visibility("default"))) result st_entry_##name parameters __asm__(#name); \
  result st_entry_##name parameters {                                                          \
    if (refused) return -1;                                                                    \
    return shim::with_buffers([&](shim::Buffers& buffers) { buffers __VA_ARGS__; },            \
                              [&] { return shim::next::name arguments; });                     \
  }
// `answer` stands in what is done with a call that has brought descriptors.
#define ST_RECEIVING_CALL(result, name, parameters, arguments, came, ...)                          \
  extern "C"                                                                                       \
      __attribute__((visibility("default"))) result st_entry_##name parameters __asm__(#name);     \
  result st_entry_##name parameters {                                                              \
    const result answer = shim::with_buffers([&](shim::Buffers& buffers) { buffers __VA_ARGS__; }, \
                                             [&] { return shim::next::name arguments; });          \
    if (answer >= 0) came;                                                                         \
    return answer;                                                                                 \
  }
#define ST_ERROR_CALL(name, parameters, arguments, ...)                                            \
  extern "C" __attribute__((visibility("default"))) int st_entry_##name parameters __asm__(#name); \
  int st_entry_##name parameters {                                                                 \
    return shim::with_buffers_and_error([&](shim::Buffers& buffers) { buffers __VA_ARGS__; },      \
                                        [&] { return shim::next::name arguments; });               \
  }
#define ST_PROGRAM_CALL(result, name, parameters, arguments, failed, refusal, ...)             \
  extern "C"                                                                                   \
      __attribute__((visibility("default"))) result st_entry_##name parameters __asm__(#name); \
  result st_entry_##name parameters {                                                          \
    return shim::start_program<decltype(failed)&, result>(nullptr, failed, refusal, [&] {      \
      return shim::with_buffers([&](shim::Buffers& buffers) { buffers __VA_ARGS__; },          \
                                [&] { return shim::next::name arguments; });                   \
    });                                                                                        \
  }
#define ST_SPAWN_CALL(name, parameters, arguments, ...)                                            \
  extern "C" __attribute__((visibility("default"))) int st_entry_##name parameters __asm__(#name); \
  int st_entry_##name parameters {                                                                 \
    return shim::start_program(steps, shim::kErrno, EIO, [&] {                                     \
      return shim::with_buffers_and_error([&](shim::Buffers& buffers) { buffers __VA_ARGS__; },    \
                                          [&] { return shim::next::name arguments; });             \
    });                                                                                            \
  }
#include "shim/buffered_calls.def"
#undef ST_CALL
