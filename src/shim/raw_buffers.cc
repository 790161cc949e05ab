// SPDX-License-Identifier: Apache-2.0
#include "shim/raw_buffers.h"

#include <linux/aio_abi.h>
#include <sys/syscall.h>

#include <utility>

#include "host/access.h"
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

// Parameters of a row that its buffers do not need.
#pragma GCC diagnostic ignored "-Wunused-parameter"

namespace stagetwo::shim {
namespace {

namespace shim = stagetwo::shim;

// A row with its parameters' types, which only unpack() looks at.
#define ST_CALL(result, name, parameters, arguments, ...) \
  struct Same_##name {                                    \
    Buffers* buffers;                                     \
    bool refused parameters {                             \
      return false;                                       \
    }                                                     \
    void note parameters {                                \
      ignore arguments;                                   \
    }                                                     \
    void describe parameters {                            \
      static_cast<void>((*buffers)__VA_ARGS__);           \
    }                                                     \
  };
#define ST_FILE_CALL(result, name, parameters, arguments, refuses, ...) \
  struct Same_##name {                                                  \
    Buffers* buffers;                                                   \
    bool refused parameters {                                           \
      return refuses;                                                   \
    }                                                                   \
    void note parameters {                                              \
      ignore arguments;                                                 \
    }                                                                   \
    void describe parameters {                                          \
      static_cast<void>((*buffers)__VA_ARGS__);                         \
    }                                                                   \
  };
#define ST_RECEIVING_CALL(result, name, parameters, arguments, came, ...) \
  struct Same_##name {                                                    \
    Buffers* buffers;                                                     \
    long answer = -1;                                                     \
    bool refused parameters {                                             \
      return false;                                                       \
    }                                                                     \
    void note parameters {}                                               \
    void describe parameters {                                            \
      static_cast<void>((*buffers)__VA_ARGS__);                           \
    }                                                                     \
    void end parameters {                                                 \
      came;                                                               \
    }                                                                     \
  };
#define ST_SAME(number, name)
#define ST_OWN(number, parameters, refuses, ...) \
  struct Own_##number {                          \
    Buffers* buffers;                            \
    bool refused parameters {                    \
      return refuses;                            \
    }                                            \
    void note parameters {}                      \
    void describe parameters {                   \
      static_cast<void>((*buffers)__VA_ARGS__);  \
    }                                            \
  };

// What is told of a call's arguments before it is made is told while they are evaluated.
template <typename... A>
void ignore(A&&...) {}

#include "shim/buffered_calls.def"
#include "shim/raw_calls.def"
#undef ST_CALL
#undef ST_FILE_CALL
#undef ST_SAME
#undef ST_OWN

template <typename T>
T from_word(long word) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(word);
  } else {
    return static_cast<T>(word);
  }
}
template <typename Row, typename R, typename... A, size_t... I>
R unpack(Row row, R (Row::*call)(A...), const long* words, std::index_sequence<I...>) {
  return (row.*call)(from_word<A>(words[I])...);
}
template <typename Row, typename R, typename... A>
R unpack(Row row, R (Row::*call)(A...), const long* words) {
  static_assert(sizeof...(A) <= 6);
  return unpack(row, call, words, std::index_sequence_for<A...>{});
}

struct Row {
  bool (*refused)(const long* words);
  void (*note)(const long* words);
  void (*describe)(Buffers& buffers, const long* words);
  void (*end)(const long* words, long answer);  // null: nothing to do
};
template <typename T>
constexpr auto end_of() -> decltype(Row::end) {
  if constexpr (requires { &T::end; }) {
    return [](const long* words, long answer) { unpack(T{nullptr, answer}, &T::end, words); };
  } else {
    return nullptr;
  }
}
template <typename T>
constexpr Row kRowOf = {
    [](const long* words) { return unpack(T{nullptr}, &T::refused, words); },
    [](const long* words) { unpack(T{nullptr}, &T::note, words); },
    [](Buffers& buffers, const long* words) { unpack(T{&buffers}, &T::describe, words); },
    end_of<T>(),
};

const Row* row_of(long number) {
  switch (number) {
#define ST_SAME(number, name) \
  case SYS_##number:          \
    return &kRowOf<Same_##name>;
#define ST_OWN(number, ...) \
  case SYS_##number:        \
    return &kRowOf<Own_##number>;
#include "shim/raw_calls.def"
#undef ST_SAME
#undef ST_OWN
    default:
      return nullptr;
  }
}

}  // namespace

long call_with_buffers(long number, const long (&w)[6]) {
  const auto go_on = [&] { return next::syscall(number, w[0], w[1], w[2], w[3], w[4], w[5]); };
  const Row* const row = row_of(number);
  if (row == nullptr) return go_on();
  if (row->refused(w)) return -1;
  row->note(w);
  const auto call = [&] {
    return with_buffers([&](Buffers& buffers) { row->describe(buffers, w); }, go_on);
  };
  const bool starts = number == SYS_execve || number == SYS_execveat;
  const long answer = starts ? start_program(nullptr, kNever, -1L, call) : call();
  if (answer >= 0 && row->end != nullptr) row->end(w, answer);
  return answer;
}

}  // namespace stagetwo::shim
