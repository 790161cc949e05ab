// SPDX-License-Identifier: Apache-2.0
#pragma once

// The deterministic scheduler: runs a few threads one at a time, decides by a seed who goes on at
// every shared access and which of the permitted values a load returns. Only in ST_SCHED builds,
// for tests/sched. Analogue: DeterministicSchedule of folly, with a memory model
// (schedule_model.h).
//
//   const Outcome end = run({.seed = seed}, 2, [&](unsigned thread) { … });
//
// A run that does not finish (deadlock, step limit, sched::fail) leaves its threads asleep for
// ever: what they refer to must then not be destroyed. The same seed gives the same run.

#include <type_traits>

#include "sync/schedule_seam.h"

#if defined(ST_SCHED)

namespace stagetwo::sync::sched {

inline constexpr unsigned kMaxThreads = 8;

// One shared access, or what a test says, for who wants to print a run.
struct Access {
  enum class Kind { kLoad, kStore, kNote };
  Kind kind;
  const void* word;  // of kNote: the text
  u64 value;
};

struct Options {
  u64 seed = 1;
  u64 max_steps = 20'000;
  // May loads return older values? Off: sequential consistency, interleavings only.
  bool weak_memory = true;
  // Called at every step, outside the model; may call fail().
  void (*invariant)(void* context) = nullptr;
  void* invariant_context = nullptr;
  // Called after every access of a scheduled thread, outside the model.
  void (*observer)(void* context, unsigned thread, const Access& access) = nullptr;
  void* observer_context = nullptr;
};

enum class End { kFinished, kDeadlock, kStepLimit, kFailed };

struct Outcome {
  End end;
  u64 steps;
  const char* why;  // of kFailed
  [[nodiscard]] bool finished() const { return end == End::kFinished; }
};

// Runs body(context, 0) … body(context, threads - 1). One run at a time.
Outcome run(const Options& options, unsigned threads, void (*body)(void* context, unsigned thread),
            void* context);

template <typename F>
Outcome run(const Options& options, unsigned threads, F&& body) {
  using Body = std::remove_reference_t<F>;
  return run(
      options, threads,
      [](void* context, unsigned thread) { (*static_cast<Body*>(context))(thread); }, &body);
}

// From inside a run: the property does not hold. Ends the run; does not return in a scheduled
// thread.
void fail(const char* why);
inline void expect(bool holds, const char* why) {
  if (!holds) fail(why);
}
// A schedule point without an access, for tests that act on the outside world.
void point();
// A restartable access: what happens in it happens, or does not, at one step.
//   begin_restartable(); … look at the request …; word.read_restartable(&value)
void begin_restartable();
// Tells the observer, if there is one, what the thread is about to do. Nothing else happens.
void note(const char* text);

// Plain data under a protocol: a read or write that is not ordered after the last write fails the
// run as a data race, whatever value it would have seen.
class PlainWord {
 public:
  explicit PlainWord(u64 value = 0) : value_(value) { forget(this, sizeof(*this)); }
  PlainWord(const PlainWord&) = delete;
  PlainWord& operator=(const PlainWord&) = delete;
  [[nodiscard]] u64 read() const;
  void write(u64 value);
  // Ends a restartable access. False: it was aborted, nothing is read.
  [[nodiscard]] bool read_restartable(u64* value) const;

 private:
  u64 value_;
};

}  // namespace stagetwo::sync::sched

#endif
