// SPDX-License-Identifier: Apache-2.0
#include "base/trace.h"

#include "base/alloc.h"
#include "base/bits.h"
#include "base/sys.h"
#include "base/text.h"

// The ring. A writer claims position p with one fetch-and-add and owns slot p % size until another
// writer comes round. A slot's stamp says whose record it holds:
//
//   writer of position p              | reader
//   stamp = 2p + 1   (release)        |
//   record words     (relaxed)        | stamp -> x (acquire); x odd: skip
//   stamp = 2p + 2   (release)        | record words
//                                     | stamp again; differs from x: skip
//
// Two writers a whole ring apart may meet in one slot; the stamp is then the later one's while the
// words are mixed. The ring is large enough for that to need a writer asleep for 65,536 events, and
// traces are evidence for people and tests, never input of a decision.

namespace stagetwo::trace {
namespace detail {
bool on = false;
}  // namespace detail

namespace {

struct Slot {
  u64 stamp;
  u64 word[6];
  u64 unused;
};
static_assert(sizeof(Slot) == 64);

struct Ring {
  Slot* slots = nullptr;
  u64 size = 0;  // a power of two
  u64 head = 0;  // positions claimed
};
Ring ring;
Mark* first_mark = nullptr;

constexpr std::string_view kEventNames[] = {"none",
#define ST_X(name) #name,
                                            ST_KERNEL_EVENTS(ST_X) ST_ENGINE_EVENTS(ST_X)
#undef ST_X
};
constexpr std::string_view kRoomNames[] = {"none",
#define ST_X(name) #name,
                                           ST_ROOMS(ST_X)
#undef ST_X
};
static_assert(std::size(kEventNames) == static_cast<size_t>(Event::count_));
static_assert(std::size(kRoomNames) == static_cast<size_t>(Room::count_));
static_assert(static_cast<size_t>(Room::count_) <= 64, "rooms_since() is a mask");

u64 load(const u64& word) {
  return __atomic_load_n(&word, __ATOMIC_RELAXED);
}
void store(u64& word, u64 value) {
  __atomic_store_n(&word, value, __ATOMIC_RELAXED);
}

// False: being written, overwritten, or never written.
bool read_slot(u64 position, Record* out) {
  const Slot& slot = ring.slots[position & (ring.size - 1)];
  const u64 stamp = __atomic_load_n(&slot.stamp, __ATOMIC_ACQUIRE);
  if (stamp != 2 * position + 2) return false;
  out->ns = load(slot.word[0]);
  const u64 packed = load(slot.word[1]);
  out->tid = static_cast<u32>(packed);
  out->event = static_cast<Event>(static_cast<u16>(packed >> 32));
  out->room = static_cast<Room>(static_cast<u16>(packed >> 48));
  for (size_t i = 0; i < 4; ++i) out->arg[i] = __atomic_load_n(&slot.word[2 + i], __ATOMIC_ACQUIRE);
  return load(slot.stamp) == stamp;
}

u64 oldest(u64 head) {
  return head > ring.size ? head - ring.size : 0;
}

}  // namespace

void detail::emit_slow(Event event, Room room, u64 a, u64 b, u64 c, u64 d) {
  const u64 position = __atomic_fetch_add(&ring.head, 1, __ATOMIC_RELAXED);
  Slot& slot = ring.slots[position & (ring.size - 1)];
  // An exchange, so that no later word is visible before the odd stamp.
  static_cast<void>(__atomic_exchange_n(&slot.stamp, 2 * position + 1, __ATOMIC_ACQ_REL));
  store(slot.word[0], sys::monotonic_ns());
  store(slot.word[1], static_cast<u64>(static_cast<u32>(sys::current_tid())) |
                          static_cast<u64>(event) << 32 | static_cast<u64>(room) << 48);
  const u64 args[4] = {a, b, c, d};
  for (size_t i = 0; i < 4; ++i) store(slot.word[2 + i], args[i]);
  __atomic_store_n(&slot.stamp, 2 * position + 2, __ATOMIC_RELEASE);
}

std::string_view name_of(Event event) {
  return event < Event::count_ ? kEventNames[static_cast<size_t>(event)] : "?";
}
std::string_view name_of(Room room) {
  return room < Room::count_ ? kRoomNames[static_cast<size_t>(room)] : "?";
}
bool is_kernel_event(Event event) {
  return event > Event::none && event < Event::st_room;
}

Result<void> start(size_t records) {
  const u64 size = std::bit_ceil(records < 64 ? u64{64} : u64{records});
  stop();
  if (ring.size < size) {
    void* fresh = ST_TRY(map_pages(size * sizeof(Slot), "base.trace"));
    release();
    ring.slots = static_cast<Slot*>(fresh);
    ring.size = size;
  }
  clear();
  __atomic_store_n(&detail::on, true, __ATOMIC_RELEASE);
  return {};
}

void stop() {
  __atomic_store_n(&detail::on, false, __ATOMIC_RELEASE);
}

void clear() {
  __atomic_store_n(&ring.head, 0, __ATOMIC_RELEASE);
  for (u64 i = 0; i < ring.size; ++i) store(ring.slots[i].stamp, 0);
}

void release() {
  if (ring.slots != nullptr) unmap_pages(ring.slots, ring.size * sizeof(Slot));
  ring = Ring{};
}

u64 written() {
  return __atomic_load_n(&ring.head, __ATOMIC_ACQUIRE);
}

void for_each(void (*fn)(void*, const Record&), void* context) {
  const u64 head = written();
  for (u64 position = oldest(head); position < head; ++position) {
    Record record;
    if (read_slot(position, &record)) fn(context, record);
  }
}

u64 count(Event event) {
  u64 n = 0;
  for_each([&](const Record& record) { n += record.event == event ? 1 : 0; });
  return n;
}

u64 rooms_since(u64 since) {
  u64 rooms = 0;
  const u64 head = written();
  for (u64 position = since < oldest(head) ? oldest(head) : since; position < head; ++position) {
    Record record;
    if (read_slot(position, &record)) rooms |= bit(static_cast<unsigned>(record.room));
  }
  return rooms;
}

void dump(int fd) {
  for_each([fd](const Record& record) {
    FixedString<256> line;
    line.append_int(record.ns).append(" ").append_int(record.tid).append(" ");
    line.append(name_of(record.room)).append(" ").append(name_of(record.event));
    for (const u64 a : record.arg) line.append(" ").append_hex(a);
    line.append("\n");
    static_cast<void>(sys::write(fd, line.data(), line.size()));
  });
}

void Mark::hit() {
  __atomic_fetch_add(&hits_, 1, __ATOMIC_RELAXED);
  if (__atomic_load_n(&listed_, __ATOMIC_RELAXED)) [[likely]]
    return;
  if (__atomic_exchange_n(&listed_, true, __ATOMIC_RELAXED)) return;
  next_ = __atomic_load_n(&first_mark, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(&first_mark, &next_, this, true, __ATOMIC_RELEASE,
                                      __ATOMIC_RELAXED)) {
  }
}

u64 mark_count(std::string_view name) {
  u64 n = 0;
  for (Mark* mark = __atomic_load_n(&first_mark, __ATOMIC_ACQUIRE); mark != nullptr;
       mark = mark->next_) {
    if (name == mark->name_) n += __atomic_load_n(&mark->hits_, __ATOMIC_RELAXED);
  }
  return n;
}

void reset_marks() {
  for (Mark* mark = __atomic_load_n(&first_mark, __ATOMIC_ACQUIRE); mark != nullptr;
       mark = mark->next_) {
    __atomic_store_n(&mark->hits_, 0, __ATOMIC_RELAXED);
  }
}

}  // namespace stagetwo::trace
