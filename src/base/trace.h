// SPDX-License-Identifier: Apache-2.0
#pragma once

// One trace record for everybody: journey tests count the rooms a request entered, the checker
// reads the order of events, probes read the same words. Off, an event costs one relaxed load.
//
//   trace::emit(trace::Event::kvm_page_fault, trace::Room::stage2, vcpu, rip, gpa, error_code);
//
// The ring is one per process and overwrites its oldest records. Writers never wait. A child of
// fork writes into a copy of its own.
//
// Marks: ST_MARK(lost_install_race); counts an odd branch, so that a test can say it was there.
//
// Context: emit and marks anywhere, signal handlers included. start/stop: one thread at a time.

#include <string_view>

#include "base/result.h"
#include "base/trace_events.h"
#include "base/types.h"

namespace stagetwo::trace {

enum class Event : u16 {
  none,
#define ST_X(name) name,
  ST_KERNEL_EVENTS(ST_X)
  // Above: the kernel's tracepoints. Below: the engine's own.
  ST_ENGINE_EVENTS(ST_X)
#undef ST_X
      count_
};

enum class Room : u16 {
  none,
#define ST_X(name) name,
  ST_ROOMS(ST_X)
#undef ST_X
      count_
};

struct Record {
  u64 ns;
  u32 tid;
  Event event;
  Room room;
  u64 arg[4];
};
static_assert(sizeof(Record) == 48, "readers of a ring in a core dump rely on it");

std::string_view name_of(Event event);
std::string_view name_of(Room room);
// False for the engine's own events.
bool is_kernel_event(Event event);

namespace detail {
extern bool on;
void emit_slow(Event event, Room room, u64 a, u64 b, u64 c, u64 d);
}  // namespace detail

[[nodiscard]] inline bool enabled() {
  return __atomic_load_n(&detail::on, __ATOMIC_RELAXED);
}

inline void emit(Event event, Room room, u64 a = 0, u64 b = 0, u64 c = 0, u64 d = 0) {
  if (enabled()) [[unlikely]]
    detail::emit_slow(event, room, a, b, c, d);
}
// A request enters a room; `step` is the number the journey's document gives.
inline void enter_room(Room room, u64 step = 0, u64 detail = 0) {
  emit(Event::st_room, room, step, detail);
}

inline constexpr size_t kDefaultRecords = 1 << 16;

// Begins with an empty ring of at least `records` (a power of two is chosen). Failure: ENOMEM, and
// tracing stays as it was.
Result<void> start(size_t records = kDefaultRecords);
// No more events are written; the ring stays readable.
void stop();
// Forgets the records.
void clear();
// Gives the ring's memory back. Pre: stopped, and no emit is under way.
void release();

// Records ever written since start, the overwritten ones included.
u64 written();
// Calls fn(context, record) for each complete record still in the ring, oldest first.
void for_each(void (*fn)(void* context, const Record&), void* context);
template <typename F>
void for_each(F&& fn) {
  for_each([](void* f, const Record& r) { (*static_cast<std::remove_reference_t<F>*>(f))(r); },
           &fn);
}
// How many records of `event` are in the ring.
u64 count(Event event);
// The rooms that wrote a record after position `since` (see written()), as a mask of 1 << Room.
u64 rooms_since(u64 since);
// One line a record, to a descriptor.
void dump(int fd);

// A counted odd branch. Constant-initialised; joins the list of marks at its first hit.
class Mark {
 public:
  explicit constexpr Mark(const char* name) : name_(name) {}
  void hit();

 private:
  friend u64 mark_count(std::string_view name);
  friend void reset_marks();
  const char* name_;
  Mark* next_ = nullptr;
  u64 hits_ = 0;
  bool listed_ = false;
};
u64 mark_count(std::string_view name);
void reset_marks();

}  // namespace stagetwo::trace

#define ST_MARK(name)                                        \
  do {                                                       \
    static constinit ::stagetwo::trace::Mark st_mark(#name); \
    st_mark.hit();                                           \
  } while (false)
