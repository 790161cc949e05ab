// SPDX-License-Identifier: Apache-2.0
#include "host/descriptor.h"

#include <limits.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <new>
#include <optional>
#include <type_traits>
#include <utility>

#include "base/process_page.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/client_limits.h"
#include "host/descriptor_file.h"
#include "host/kept_fd.h"
#include "host/worker.h"
#include "sync/atomic.h"
#include "sync/futex.h"
#include "sync/mutex.h"
#include "sync/passing_number.h"

// The table is an array of buckets, each a chain of slots that is only ever extended: a reader
// walks it without a lock, and a slot keeps its place for ever. A slot is used again for another
// identity only after its count has fallen to zero, and a reader takes a count before it believes
// an identity:
//
//   reader                                   last close
//   identity equal?                          identity := 0
//   refs 0 → not found, else refs + 1        over := true
//   identity still equal? else give back     refs - 1 → 0: last_close, the object dies, slot free
//
// A request that is under way holds a ref, so the last close waits for it, as a file's release
// does.
//
// The first slot of every bucket is part of the library itself, so a program with few
// descriptors allocates no slot at all.

namespace stagetwo::host {

struct DescriptorSlot {
  // 0: nobody; else the inode. Written under the table lock (release); readers acquire.
  sync::Atomic<u64> identity{0};
  // Refs of the object, the table's own among them. 0: the slot is free.
  sync::Atomic<u32> refs{0};
  // Written before the slot is reachable.
  sync::Atomic<DescriptorSlot*> next{nullptr};
  // Nobody holds the descriptor any more: last_close() is due when the last ref goes. Written by
  // whoever took the slot out of the table, before its unref.
  sync::Atomic<bool> over{false};

  // Constant while refs > 0.
  DescriptorSpec spec;
  u64 device = 0;
  u32 stamp = 0;  // the process whose state it is; 0: nobody's here
  alignas(Box<Description>) u8 storage[sizeof(Box<Description>)] = {};  // alive while refs > 0

  // Guarded by the table lock.
  int watch_fd = -1;  // a second open that is asked now and then: does anybody still hold it?
  DescriptorSlot* next_watched = nullptr;

  Box<Description>& object() { return *std::launder(reinterpret_cast<Box<Description>*>(storage)); }
};
static_assert(std::is_trivially_destructible_v<DescriptorSlot>,
              "slots live as long as the process and cost nothing at exit");

namespace {

constexpr unsigned kBuckets = 256;
// In DescriptorSlot::refs: the last ref is gone and the object is being destroyed.
constexpr u32 kDying = u32{1} << 31;
// Watches asked by one sweep, so that a client's munmap stays cheap.
constexpr int kSweepLimit = 64;

DescriptorSlot buckets[kBuckets];
sync::Mutex table_lock{sync::Rank::kDescriptors};
DescriptorSlot* watched = nullptr;  // guarded by table_lock
sync::Atomic<u32> watched_count{0};
sync::Atomic<u32> watched_memory{0};  // of those, what is_waited_for(), until its end is over
sync::Atomic<u32> ending_memory{0};   // of that, what is no longer watched
sync::Atomic<u32> ending_any{0};      // of everything
sync::Atomic<bool> sweeper_added{false};
sync::Atomic<u32> live_count{0};
sync::Atomic<bool> anything{false};
sync::Atomic<Attacher> attacher{nullptr};

DescriptorSlot& bucket_of(u64 inode) {
  return buckets[(inode * 0x9e3779b97f4a7c15u) >> 56];  // the top 8 bits: kBuckets
}
static_assert(kBuckets == 256);

bool try_ref(DescriptorSlot& slot) {
  u32 seen = slot.refs.load(sync::kRelaxed);
  while (seen != 0 && seen != kDying) {
    if (slot.refs.compare_exchange_weak(seen, seen + 1, sync::kAcquire)) return true;
  }
  return false;
}

// A foreign object is a copy that fork made of another process's state: it is never run, not even
// to end it.
bool is_foreign(const DescriptorSlot& slot) {
  return slot.spec.home == StateHome::kProcess && slot.stamp != process_stamp();
}

void unref(DescriptorSlot& slot) {
  u32 seen = slot.refs.load(sync::kRelaxed);
  while (!slot.refs.compare_exchange_weak(seen, seen == 1 ? kDying : seen - 1, sync::kAcqRel)) {
  }
  if (seen != 1) return;
  const bool closed = slot.over.exchange(false, sync::kRelaxed);
  if (!is_foreign(slot) || slot.stamp == 0) {
    if (closed) slot.object()->last_close();
    slot.object().~Box();
  } else {
    slot.object()->let_go_in_child();
  }
  slot.refs.store(0, sync::kRelease);  // pairs with free_slot
}

DescriptorSlot* lookup(u64 device, u64 inode) {
  for (DescriptorSlot* slot = &bucket_of(inode); slot != nullptr;
       slot = slot->next.load(sync::kAcquire)) {
    if (slot->identity.load(sync::kAcquire) != inode || !try_ref(*slot)) continue;
    if (slot->identity.load(sync::kAcquire) == inode && slot->device == device) return slot;
    unref(*slot);
  }
  return nullptr;
}

// A free slot in the chain of `inode`, or a new one. Failure: ENOMEM.
Result<DescriptorSlot*> free_slot(u64 inode) TA_REQ(table_lock) {
  DescriptorSlot& first = bucket_of(inode);
  for (DescriptorSlot* slot = &first; slot != nullptr; slot = slot->next.load(sync::kRelaxed)) {
    if (slot->refs.load(sync::kAcquire) == 0) return slot;  // pairs with the store in unref
  }
  void* block = alloc(sizeof(DescriptorSlot), alignof(DescriptorSlot), "descriptor slot");
  if (block == nullptr) return refuse(ENOMEM);
  auto* slot = ::new (block) DescriptorSlot();
  slot->next.store(first.next.load(sync::kRelaxed), sync::kRelaxed);
  first.next.store(slot, sync::kRelease);
  return slot;
}

// Does the description end with the last holder anywhere, rather than be known again by its name?
bool ends_with_holders(const DescriptorSpec& spec) {
  return spec.home == StateHome::kProcess || spec.wants_last_close;
}

// May somebody wait for its end who asks nothing of this process: a guest, another process?
bool is_waited_for(const DescriptorSlot& slot) {
  const bool shared = slot.spec.home == StateHome::kDescription && slot.spec.wants_last_close;
  return slot.spec.shape == FileShape::kMemory || shared;
}

void watch(DescriptorSlot& slot, int watch_fd) TA_REQ(table_lock) {
  note_engine_fd(watch_fd);
  slot.watch_fd = watch_fd;
  slot.next_watched = std::exchange(watched, &slot);
  watched_count.fetch_add(1, sync::kRelaxed);
  if (is_waited_for(slot)) watched_memory.fetch_add(1, sync::kRelaxed);
}

void take_off_list(DescriptorSlot& slot) TA_REQ(table_lock) {
  DescriptorSlot** link = &watched;
  while (*link != &slot) link = &(*link)->next_watched;
  *link = std::exchange(slot.next_watched, nullptr);
  watched_count.fetch_sub(1, sync::kRelaxed);
  if (is_waited_for(slot)) watched_memory.fetch_sub(1, sync::kRelaxed);
}

void unwatch(DescriptorSlot& slot) TA_REQ(table_lock) {
  if (slot.watch_fd < 0) return;
  take_off_list(slot);
  static_cast<void>(sys::close(std::exchange(slot.watch_fd, -1)));
  take_number_back();
}

// Takes the slot out of the table. False: somebody else has done it.
bool forget(DescriptorSlot& slot) {
  const sync::MutexGuard guard(table_lock);
  if (slot.identity.load(sync::kRelaxed) == 0) return false;
  slot.identity.store(0, sync::kRelease);
  unwatch(slot);
  live_count.fetch_sub(1, sync::kRelaxed);
  return true;
}

// Who asks for the end of what is waited for (sweep_closed_memory) finds it watched, under way, or
// over. From before it is forgotten until its last_close() has returned.
class Ending {
 public:
  explicit Ending(const DescriptorSlot& slot) : counts_(is_waited_for(slot)) {
    ending_any.fetch_add(1, sync::kRelaxed);
    if (!counts_) return;
    ending_memory.fetch_add(1, sync::kRelaxed);
    watched_memory.fetch_add(1, sync::kRelaxed);
  }
  Ending(const Ending&) = delete;
  Ending& operator=(const Ending&) = delete;
  ~Ending() {
    leave(ending_any);
    if (!counts_) return;
    leave(ending_memory);
    watched_memory.fetch_sub(1, sync::kRelease);
  }
  // Progress: who ends something waits for nobody that waits here.
  static void wait(sync::Atomic<u32>& under_way) {
    while (const u32 seen = under_way.load(sync::kAcquire)) {
      sync::futex_wait(under_way, seen, sync::kNoTimeout);
    }
  }

 private:
  static void leave(sync::Atomic<u32>& under_way) {
    if (under_way.fetch_sub(1, sync::kRelease) == 1) sync::futex_wake(under_way, INT_MAX);
  }
  bool counts_;
};

// Pre: the caller has a ref of its own.
void end_of(DescriptorSlot& slot) {
  if (!forget(slot)) return;
  slot.over.store(true, sync::kRelaxed);
  unref(slot);  // the table's
}

// Fills a free slot. Post: the table's ref and one more, the caller's.
Result<DescriptorSlot*> fill_slot(Box<Description> object, const DescriptorSpec& spec, u32 stamp,
                                  const struct ::stat& behind) TA_REQ(table_lock) {
  DescriptorSlot* slot = ST_TRY(free_slot(behind.st_ino));
  slot->spec = spec;
  slot->device = behind.st_dev;
  slot->stamp = stamp;
  ::new (slot->storage) Box<Description>(std::move(object));
  slot->refs.store(2, sync::kRelease);
  slot->identity.store(behind.st_ino, sync::kRelease);  // pairs with lookup
  live_count.fetch_add(1, sync::kRelaxed);
  anything.store(true, sync::kRelease);
  return slot;
}

bool stands_behind(int fd, const struct ::stat& behind) {
  struct ::stat now{};
  return sys::fstat(fd, &now) && now.st_ino == behind.st_ino && now.st_dev == behind.st_dev;
}

// A descriptor that somebody else made. Another thread may just have attached it: that one stays.
// The number may meanwhile have been published by its maker, closed and forgotten; a close comes
// before its forget(), which needs the lock we hold, so what still stands behind `fd` now is not.
Result<DescriptorSlot*> enter_received(Box<Description> object, const DescriptorSpec& spec,
                                       u32 stamp, int fd, const struct ::stat& behind) {
  const sync::MutexGuard guard(table_lock);
  if (DescriptorSlot* const present = lookup(behind.st_dev, behind.st_ino)) return present;
  if (!stands_behind(fd, behind)) return refuse(ENOENT);
  return fill_slot(std::move(object), spec, stamp, behind);
}

// A descriptor that we make. An identity that is here already is a stand-in: a thread that used the
// number while it was not yet a descriptor saw a memfd of ours and attached it.
Result<DescriptorSlot*> enter_made(Box<Description> object, const DescriptorSpec& spec,
                                   const struct ::stat& behind) {
  for (;;) {
    if (DescriptorSlot* const stand_in = lookup(behind.st_dev, behind.st_ino)) {
      if (forget(*stand_in)) unref(*stand_in);
      unref(*stand_in);
    }
    const sync::MutexGuard guard(table_lock);
    DescriptorSlot* const late = lookup(behind.st_dev, behind.st_ino);
    if (late == nullptr) return fill_slot(std::move(object), spec, process_stamp(), behind);
    unref(*late);  // the table's ref keeps it; it is forgotten in the next turn
  }
}

constexpr int kWatching = O_RDONLY | O_CLOEXEC | O_NONBLOCK;

// Ours until close_passing(), or until it is written down.
int open_watch(int fd) {
  const ProcPath path(fd);
  const auto open = [&] { return open_proc(path.c_str(), kWatching); };
  return sync::PassingNumber::begin_with([&] { return open_beyond_limit(open); }).value_or(-1);
}
void close_passing(int fd) {
  static_cast<void>(sys::close(fd));
  sync::PassingNumber::end();
  take_number_back();
}

// What stands for a description whose state lives in another process (I4).
class Elsewhere final : public Description {
 public:
  long ioctl(int, unsigned long, unsigned long) override { return -EIO; }
};

// A descriptor of ours that this process did not make.
Result<DescriptorSlot*> attach(int fd, const struct ::stat& behind) {
  char buffer[kMaxLink];
  const std::string_view kind = kind_behind(fd, buffer, sizeof(buffer));
  // The number may have been closed and taken again while we looked.
  if (kind.empty() || !stands_behind(fd, behind)) return refuse(ENOENT);
  DescriptorSpec spec;
  Box<Description> object;
  if (const Attacher attach_kind = attacher.load(sync::kAcquire); attach_kind != nullptr) {
    object = attach_kind(kind, fd, &spec);
  }
  u32 stamp = process_stamp();
  if (!object) {
    object = ST_TRY(make_box<Elsewhere>("foreign description"));
    spec.home = StateHome::kProcess;
    stamp = 0;
  }
  return enter_received(std::move(object), spec, stamp, fd, behind);
}

}  // namespace

Backing::~Backing() {
  if (fd_ >= 0) close_passing(fd_);
}

Result<Backing> Backing::create(const char* kind, u64 size) {
  return make(kind, size, MFD_CLOEXEC);
}

Result<Backing> Backing::create_memory(const char* kind, u64 size, Pages pages) {
  auto backing = ST_TRY(make(kind, size, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  constexpr int kSizeStays = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  const int seals = pages == Pages::kEmpty ? kSizeStays | F_SEAL_WRITE : kSizeStays;
  ST_TRY(sys::fcntl(backing.fd_, F_ADD_SEALS, seals));
  constexpr long kNotExecutable = 0666;
  ST_TRY(sys::checked(sys::call(SYS_fchmod, backing.fd_, kNotExecutable)));
  return backing;
}

Result<Backing> Backing::make(const char* kind, u64 size, unsigned flags) {
  FixedString<kMaxKind + 16> name;
  name.append(kNamePrefix).append(kind);
  Backing backing;
  // Out of the way, so that the client's descriptor is the lowest free number, also the last one.
  // Ends with the backing, when the client has its own number.
  backing.fd_ = ST_TRY(sync::PassingNumber::begin_with(
      [&] { return open_beyond_limit([&] { return sys::memfd_create(name.c_str(), flags); }); }));
  if (size != 0) ST_TRY(set_file_size(backing.fd_, size));
  return backing;
}

Result<void*> Backing::map(u64 offset, u64 size, int prot) const {
  return map_file(size, prot, MAP_SHARED, fd_, static_cast<long>(offset), "descriptor contents");
}

void Backing::unmap(void* at, u64 size) {
  unmap_pages(at, size);
}

Result<int> publish(Box<Description> description, Backing backing, const DescriptorSpec& spec) {
  struct ::stat behind{};
  ST_TRY(sys::fstat(backing.fd(), &behind));
  const bool has_position = description->native_read();
  // The table first: whoever finds the descriptor finds the description.
  DescriptorSlot& slot = *ST_TRY(enter_made(std::move(description), spec, behind));
  const int flags = spec.reads_alone ? spec.open_flags & ~O_ACCMODE : spec.open_flags;
  const auto fd = open_for_client(backing.fd(), flags, has_position);
  if (!fd && forget(slot)) unref(slot);
  unref(slot);
  keep_a_number();
  return fd;
}

DescriptionRef& DescriptionRef::operator=(DescriptionRef&& other) noexcept {
  std::swap(slot_, other.slot_);
  return *this;
}

Description* DescriptionRef::get() const {
  return slot_->object().get();
}
Description* DescriptionRef::operator->() const {
  return get();
}
const DescriptorSpec& DescriptionRef::spec() const {
  return slot_->spec;
}
bool DescriptionRef::foreign() const {
  return is_foreign(*slot_);
}

void DescriptionRef::reset() {
  if (slot_ != nullptr) unref(*std::exchange(slot_, nullptr));
}

DescriptionRef find(int fd) {
  struct ::stat behind{};
  if (!sys::fstat(fd, &behind)) return {};
  return find(fd, behind);
}

DescriptionRef find(int fd, const struct ::stat& behind) {
  if (!could_be_ours(behind)) return {};
  if (DescriptorSlot* slot = lookup(behind.st_dev, behind.st_ino)) return DescriptionRef(slot);
  const auto attached = attach(fd, behind);
  return attached ? DescriptionRef(*attached) : DescriptionRef();
}

bool is_named_as_ours(int fd, std::string_view kind) {
  char buffer[kMaxLink];
  const std::string_view found = kind_behind(fd, buffer, sizeof(buffer));
  return !found.empty() && found.starts_with(kind);
}

bool ever_published() {
  return anything.load(sync::kRelaxed);
}
void set_attacher(Attacher attach) {
  attacher.store(attach, sync::kRelease);
}

bool in_borrowed_memory() {
  return static_cast<u32>(sys::getpid()) != process_stamp();
}

CloseWatch::CloseWatch(int fd) : ref_(find(fd)) {
  if (ref_ && in_borrowed_memory()) ref_.reset();
  if (!ref_ || ref_.foreign() || !ends_with_holders(ref_.spec())) return;
  watch_fd_ = open_watch(fd);
}

CloseWatch::~CloseWatch() {
  if (watch_fd_ >= 0) close_passing(watch_fd_);
  take_number_back();
}

namespace {

// What was closed here while another process holds it: nobody calls us when that process lets go,
// and a vCPU that stays in its guest asks nothing. The engine's thread looks.
class Sweeper final : public WorkItem {
 public:
  void turn() override {
    if (watched_memory.load(sync::kRelaxed) != 0) sweep_closed();
  }
  u64 period_ns() override {
    return watched_memory.load(sync::kRelaxed) != 0 ? kSweepPeriodNs : sync::kNoTimeout;
  }

 private:
  static constexpr u64 kSweepPeriodNs = 5'000'000;
};
constinit Sweeper sweeper;

// Context: no lock held.
void watch_memory() {
  if (watched_memory.load(sync::kRelaxed) == 0) [[likely]]
    return;
  if (sweeper_added.exchange(true, sync::kAcqRel)) {
    kick_worker();
  } else {
    add_work(&sweeper);
  }
}

}  // namespace

// There was no number for a watch, and the close has given one back: what the object itself holds
// leads to its memfd.
void CloseWatch::watch_late() {
  const DescriptorSlot& slot = *ref_.slot_;
  const int own = kept_fd_of(slot.device, slot.identity.load(sync::kRelaxed));
  if (own < 0) return;
  const ProcPath path(own);
  watch_fd_ = sync::PassingNumber::begin_with([&] {
                return open_proc(path.c_str(), kWatching);
              }).value_or(-1);
}

void CloseWatch::closed() {
  if (ref_) {
    DescriptorSlot& slot = *ref_.slot_;
    const bool ours = !ref_.foreign() && ends_with_holders(ref_.spec());
    if (ours && watch_fd_ < 0) watch_late();
    if (!ours) {
      // Whoever still holds it is recognised again by its name.
      if (forget(slot)) unref(slot);
    } else if (watch_fd_ >= 0 && !is_held(watch_fd_)) {
      const Ending ending(slot);
      end_of(slot);
      ref_.reset();
    } else if (watch_fd_ >= 0) {
      const sync::MutexGuard guard(table_lock);
      if (slot.watch_fd < 0 && slot.identity.load(sync::kRelaxed) != 0) {
        watch(slot, std::exchange(watch_fd_, -1));
        sync::PassingNumber::end();
      }
    }
  }
  sweep_closed();
  watch_memory();
}

void sweep_closed() {
  if (watched_count.load(sync::kRelaxed) == 0) [[likely]]
    return;
  DescriptorSlot* over[kSweepLimit];
  std::optional<Ending> endings[kSweepLimit];
  int count = 0;
  {
    const sync::MutexGuard guard(table_lock);
    for (DescriptorSlot* slot = watched; slot != nullptr && count < kSweepLimit;
         slot = slot->next_watched) {
      if (is_held(slot->watch_fd) || !try_ref(*slot)) continue;
      endings[count].emplace(*slot);
      over[count++] = slot;
    }
  }
  for (int i = 0; i < count; ++i) {
    end_of(*over[i]);
    unref(*over[i]);
    endings[i].reset();
  }
}

void sweep_closed_memory() {
  if (watched_memory.load(sync::kAcquire) == 0) [[likely]]
    return;
  sweep_closed();
  Ending::wait(ending_memory);  // the engine's thread may have been first
}

void settle_closed() {
  sweep_closed();
  Ending::wait(ending_any);  // the same
}

bool is_engine_fd(int fd) {
  if (!may_be_engines(fd)) [[likely]]
    return false;
  return next_engine_fd(fd) == fd;
}

int next_engine_fd(int first) {
  int lowest = next_kept_fd(first);
  if (watched_count.load(sync::kRelaxed) == 0) [[likely]]
    return lowest;
  const sync::MutexGuard guard(table_lock);
  for (const DescriptorSlot* slot = watched; slot != nullptr; slot = slot->next_watched) {
    if (slot->watch_fd >= first && (lowest < 0 || slot->watch_fd < lowest)) lowest = slot->watch_fd;
  }
  return lowest;
}

bool vacate_engine_fd(int fd) {
  if (vacate_kept_fd(fd)) return true;
  const sync::PassingNumber passing;
  const sync::MutexGuard guard(table_lock);
  for (DescriptorSlot* slot = watched; slot != nullptr; slot = slot->next_watched) {
    if (slot->watch_fd != fd) continue;
    const auto copy = sys::fcntl(fd, F_DUPFD_CLOEXEC);
    const Result<int> moved =
        copy ? sys::raise_engine_fd(static_cast<int>(*copy)) : Result<int>(refuse(EMFILE));
    if (moved) {
      note_engine_fd(*moved);
      slot->watch_fd = *moved;
    } else {
      slot->watch_fd = -1;
      take_off_list(*slot);
    }
    return true;
  }
  return false;
}

void descriptors_after_fork_child() {
  ::new (&table_lock) sync::Mutex(sync::Rank::kDescriptors);
  DescriptorSlot* slot = std::exchange(watched, nullptr);
  watched_count.store(0, sync::kRelaxed);
  watched_memory.store(0, sync::kRelaxed);
  ending_memory.store(0, sync::kRelaxed);
  ending_any.store(0, sync::kRelaxed);
  sweeper_added.store(false, sync::kRelaxed);
  while (slot != nullptr) {
    static_cast<void>(sys::close(std::exchange(slot->watch_fd, -1)));
    slot = std::exchange(slot->next_watched, nullptr);
  }
}

DescriptorCounts descriptor_counts() {
  return {live_count.load(sync::kRelaxed), watched_count.load(sync::kRelaxed)};
}

}  // namespace stagetwo::host
