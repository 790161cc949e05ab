// SPDX-License-Identifier: Apache-2.0
#include "sync/schedule.h"

#if defined(ST_SCHED)

#include <pthread.h>

#include "base/alloc.h"
#include "base/check.h"
#include "base/sys.h"
#include "sync/schedule_model.h"

// One token: the thread whose `go` is 1 runs, everybody else sleeps on its own `go`. At a schedule
// point the running thread picks the next one, sets its `go` and sleeps. How often it picks another
// than itself is part of the seed: some bugs want many switches, some want few at the right place.
//
// Time is counted in steps; a step counts 500 ns, so that spinning, yielding and sleeping phases of
// the code under test are all reached within a few hundred steps.

namespace stagetwo::sync::sched {
namespace {

constexpr u64 kNsPerStep = 500;

enum class State { kReady, kAsleep, kAsleepTimed, kDone };

struct Run;

struct Thread {
  Run* run;
  unsigned index;
  u32 go;
  State state;
  const void* sleeps_on;
  bool woken;
  bool aborted;  // the restartable access under way, if there is one
  pthread_t handle;
};

struct Run {
  Options options;
  Random random{0};
  void (*body)(void*, unsigned);
  void* context;
  unsigned count;
  unsigned switch_one_in;
  u64 steps;
  bool over;  // the model no longer stands behind the threads' accesses
  bool in_invariant;
  u32 main_go;
  Outcome outcome;
  Thread thread[kMaxThreads];
  Model model;
};

[[gnu::tls_model("initial-exec")]] thread_local Thread* self = nullptr;
Run* spare = nullptr;

void sleep_until_set(u32& word) {
  while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) == 0) {
    static_cast<void>(sys::futex_wait(&word, 0, nullptr));
  }
  __atomic_store_n(&word, 0u, __ATOMIC_RELAXED);
}

void set(u32& word) {
  __atomic_store_n(&word, 1u, __ATOMIC_RELEASE);
  sys::futex_wake(&word, 1);
}

// Ends the run; the caller, if it is a scheduled thread that has not returned, sleeps for ever.
void finish(Run& run, End end, const char* why) {
  run.over = true;
  run.outcome = {end, run.steps, why};
  set(run.main_go);
}

[[noreturn]] void sleep_for_ever() {
  u32 never = 0;
  for (;;) static_cast<void>(sys::futex_wait(&never, 0, nullptr));
}

bool can_run(const Thread& thread) {
  return thread.state == State::kReady || thread.state == State::kAsleepTimed;
}

// The next thread, another than `than` if there is one and `other` is asked for. nullptr: nobody.
Thread* pick(Run& run, const Thread* than, bool other) {
  Thread* candidates[kMaxThreads];
  unsigned n = 0;
  for (unsigned i = 0; i < run.count; ++i) {
    Thread& thread = run.thread[i];
    if (can_run(thread) && !(other && &thread == than)) candidates[n++] = &thread;
  }
  return n == 0 ? nullptr : candidates[run.random.below(n)];
}

// Hands the token to `next` and waits to get it back.
void switch_to(Thread& me, Thread& next) {
  if (&next == &me) return;
  set(next.go);
  sleep_until_set(me.go);
}

void run_invariant(Run& run) {
  if (run.options.invariant == nullptr) return;
  run.in_invariant = true;
  run.options.invariant(run.options.invariant_context);
  run.in_invariant = false;
}

void observe(Access::Kind kind, const void* word, u64 value) {
  Run& run = *self->run;
  if (run.options.observer == nullptr) return;
  run.in_invariant = true;
  run.options.observer(run.options.observer_context, self->index, {kind, word, value});
  run.in_invariant = false;
}

// The schedule point.
void step(bool prefer_others) {
  Thread& me = *self;
  Run& run = *me.run;
  run_invariant(run);
  if (++run.steps > run.options.max_steps) {
    finish(run, End::kStepLimit, "step limit");
    sleep_for_ever();
  }
  if (!prefer_others && run.random.below(run.switch_one_in) != 0) return;
  Thread* next = pick(run, &me, prefer_others);
  if (next != nullptr) switch_to(me, *next);
}

// The thread cannot go on by itself.
void block(State how) {
  Thread& me = *self;
  Run& run = *me.run;
  me.state = how;
  ++run.steps;
  if (run.steps > run.options.max_steps) {
    finish(run, End::kStepLimit, "step limit");
    sleep_for_ever();
  }
  Thread* next = pick(run, nullptr, false);
  if (next == nullptr) {
    finish(run, End::kDeadlock, "every thread sleeps");
    sleep_for_ever();
  }
  switch_to(me, *next);
  me.state = State::kReady;
}

void* thread_main(void* argument) {
  Thread& me = *static_cast<Thread*>(argument);
  Run& run = *me.run;
  sleep_until_set(me.go);
  self = &me;
  run.body(run.context, me.index);
  self = nullptr;
  me.state = State::kDone;
  Thread* next = pick(run, nullptr, false);
  if (next != nullptr) {
    set(next->go);
    return nullptr;
  }
  bool all_done = true;
  for (unsigned i = 0; i < run.count; ++i) all_done &= run.thread[i].state == State::kDone;
  finish(run, all_done ? End::kFinished : End::kDeadlock, all_done ? "" : "the others sleep");
  return nullptr;
}

void start_threads(Run& run) {
  pthread_attr_t attributes;
  ST_CHECK(pthread_attr_init(&attributes) == 0);
  for (unsigned i = 0; i < run.count; ++i) {
    Thread& thread = run.thread[i];
    thread = {&run, i, 0, State::kReady, nullptr, false, false, {}};
    ST_CHECK(pthread_create(&thread.handle, &attributes, thread_main, &thread) == 0);
  }
  static_cast<void>(pthread_attr_destroy(&attributes));
}

}  // namespace

Outcome run(const Options& options, unsigned threads, void (*body)(void*, unsigned),
            void* context) {
  ST_CHECK(threads > 0 && threads <= kMaxThreads);
  Run* run = std::exchange(spare, nullptr);
  if (run == nullptr) {
    auto pages = map_pages(sizeof(Run), "sync.sched");
    ST_CHECK(pages.has_value());
    run = ::new (*pages) Run;
  }
  run->options = options;
  run->random = Random(options.seed);
  run->body = body;
  run->context = context;
  run->count = threads;
  run->steps = 0;
  run->over = run->in_invariant = false;
  run->main_go = 0;
  static constexpr unsigned kOneIn[] = {1, 2, 4, 12};
  run->switch_one_in = kOneIn[run->random.below(4)];
  run->model.reset(threads, options.weak_memory);
  start_threads(*run);
  set(run->thread[run->random.below(threads)].go);
  sleep_until_set(run->main_go);
  const Outcome outcome = run->outcome;
  for (unsigned i = 0; i < threads; ++i) {
    if (outcome.finished()) {
      ST_CHECK(pthread_join(run->thread[i].handle, nullptr) == 0);
    } else {
      ST_CHECK(pthread_detach(run->thread[i].handle) == 0);
    }
  }
  // Threads that sleep for ever keep their run.
  if (outcome.finished()) spare = run;
  return outcome;
}

bool active() {
  return self != nullptr && !self->run->over && !self->run->in_invariant;
}

unsigned thread_number() {
  return self == nullptr ? 0 : self->index;
}

void fail(const char* why) {
  if (self == nullptr || self->run->over) return;
  finish(*self->run, End::kFailed, why);
  sleep_for_ever();
}

void point() {
  if (active()) step(false);
}

void note(const char* text) {
  if (active()) observe(Access::Kind::kNote, text, 0);
}

u64 load(const void* word, u64 newest, std::memory_order order) {
  Run& run = *self->run;
  step(false);
  const u64 value = run.model.load(self->index, word, newest, order, run.random);
  observe(Access::Kind::kLoad, word, value);
  return value;
}

void before_write(const void* word, u64 newest) {
  self->run->model.learn(word, newest);
  step(false);
}

void read_newest(const void* word, std::memory_order order) {
  self->run->model.read_newest(self->index, word, order);
}

void wrote(const void* word, u64 value, std::memory_order order) {
  self->run->model.write(self->index, word, value, order, false);
  observe(Access::Kind::kStore, word, value);
}

void modified(const void* word, u64 value, std::memory_order order) {
  self->run->model.write(self->index, word, value, order, true);
  observe(Access::Kind::kStore, word, value);
}

bool fail_weakly() {
  return self->run->random.below(8) == 0;
}

void forget(const void* memory, u64 bytes) {
  if (active()) self->run->model.forget(memory, bytes);
}

void spin() {
  if (active()) step(true);
}

bool futex_wait(const void* word, u32 expected, bool has_timeout) {
  step(false);
  Thread& me = *self;
  // The kernel compares the newest value, under its own lock.
  if (__atomic_load_n(static_cast<const u32*>(word), __ATOMIC_RELAXED) != expected) return false;
  me.sleeps_on = word;
  me.woken = false;
  block(has_timeout ? State::kAsleepTimed : State::kAsleep);
  me.sleeps_on = nullptr;
  return me.woken;
}

void futex_wake(const void* word, int count) {
  Run& run = *self->run;
  step(false);
  for (unsigned i = 0; i < run.count && count > 0; ++i) {
    Thread& thread = run.thread[i];
    if (thread.sleeps_on != word || thread.state == State::kReady) continue;
    thread.state = State::kReady;
    thread.woken = true;
    thread.sleeps_on = nullptr;
    --count;
  }
}

void barrier_everywhere() {
  step(false);
  self->run->model.barrier_everywhere();
}

void restart_everywhere() {
  barrier_everywhere();
  for (Thread& thread : self->run->thread) thread.aborted = true;
}

void begin_restartable() {
  if (active()) self->aborted = false;
}

u64 now() {
  return self->run->steps * kNsPerStep;
}

bool PlainWord::read_restartable(u64* value) const {
  if (active()) {
    step(false);
    if (self->aborted) return false;
    if (!self->run->model.ordered(self->index, this)) fail("data race: restartable read");
  }
  *value = value_;
  return true;
}

u64 PlainWord::read() const {
  if (!active()) return value_;
  step(false);
  if (!self->run->model.ordered(self->index, this)) fail("data race: read");
  return value_;
}

void PlainWord::write(u64 value) {
  if (!active()) {
    value_ = value;
    return;
  }
  self->run->model.learn(this, value_);
  step(false);
  if (!self->run->model.ordered(self->index, this)) fail("data race: write");
  value_ = value;
  self->run->model.write(self->index, this, value, std::memory_order_relaxed, false);
}

}  // namespace stagetwo::sync::sched

#endif
