// SPDX-License-Identifier: Apache-2.0
// /sys/kernel/debug/gup_test: takes references and pins of pages. A reference is given back within
// its call and keeps nothing: it is a fault-in. A pin is the engine's (host/pin.h); those of
// PIN_LONGTERM_TEST_START outlive the call and are this process's, as the kernel's are the
// machine's: a second START is EINVAL whoever began, and any file's last close ends it.
// kernel file: mm/gup_test.c.
#include <fcntl.h>

#include <algorithm>

#include "abi/hmm/gup_uapi.h"
#include "abi/hmm/hmm.h"
#include "base/process_page.h"
#include "base/sys.h"
#include "base/trace.h"
#include "base/vec.h"
#include "host/access.h"
#include "host/descriptor.h"
#include "host/faultin.h"
#include "host/pin.h"
#include "host/process_map.h"
#include "mirror/mirror.h"
#include "sync/mutex.h"

static_assert(sizeof(gup_test) == 80 && sizeof(pin_longterm_test) == 24);
static_assert(GUP_FAST_BENCHMARK == 0xC0506701 && DUMP_USER_PAGES_TEST == 0xC0506706);
static_assert(PIN_LONGTERM_TEST_START == 0x40186707 && PIN_LONGTERM_TEST_STOP == 0x6708 &&
              PIN_LONGTERM_TEST_READ == 0x40086709);

namespace stagetwo::abi_hmm {
namespace {

constexpr u32 kForWriting = 1;
constexpr u32 kLongTerm = 0x100;
constexpr u64 kMostPages = u64{1} << 32;

// What one call has pinned, or the long-term test holds.
class PinnedPages {
 public:
  PinnedPages() = default;
  PinnedPages(const PinnedPages&) = delete;
  PinnedPages& operator=(const PinnedPages&) = delete;
  ~PinnedPages() { release(); }

  // How many from `first` on were pinned. Failure: none.
  Result<u64> add(Hva first, u64 count, host::PinHow how) {
    constexpr unsigned kRoom = 32;
    u64 had = 0;
    while (had < count) {
      ST_TRY(runs_.reserve(runs_.size() + kRoom));
      host::FrameRun runs[kRoom];
      const HvaRange rest(first + had * kPageSize, (count - had) * kPageSize);
      const auto done = host::pin_pages(rest, how, runs, kRoom);
      if (!done) return had == 0 ? Result<u64>(refuse(done.error())) : had;
      for (unsigned i = 0; i < done->runs; ++i) static_cast<void>(runs_.push_back(runs[i]));
      had += done->pages;
      if (done->runs < kRoom && had < count) break;
    }
    return had;
  }
  void release() {
    for (const host::FrameRun& run : runs_) host::unpin_pages(run);
    runs_.clear();
  }
  // fn(frame) -> Result<void> for each page in order.
  template <typename F>
  Result<void> each(F&& fn) {
    for (const host::FrameRun& run : runs_) {
      for (u64 i = 0; i < run.pages; ++i) ST_TRY(fn(run.first + i));
    }
    return {};
  }

 private:
  Vec<host::FrameRun> runs_{"abi_hmm.pins"};
};

// ---- commands that give everything back -------------------------------------------------------

bool is_known(u32 request) {
  return request == GUP_FAST_BENCHMARK || request == PIN_FAST_BENCHMARK ||
         request == PIN_LONGTERM_BENCHMARK || request == GUP_BASIC_TEST ||
         request == PIN_BASIC_TEST || request == DUMP_USER_PAGES_TEST;
}

bool only_gets(u32 request, const gup_test& test) {
  const bool dump_gets = (test.test_flags & GUP_TEST_FLAG_DUMP_PAGES_USE_PIN) == 0;
  return request == GUP_FAST_BENCHMARK || request == GUP_BASIC_TEST ||
         (request == DUMP_USER_PAGES_TEST && dump_gets);
}

// How many pages from `first` on could be had.
u64 reference_pages(Hva first, u64 count, u32 flags) {
  const Access access = (flags & kForWriting) != 0 ? Access::kWrite : Access::kRead;
  u64 had = 0;
  while (had < count && host::faultin(first + had * kPageSize, access)) ++had;
  return had;
}

// The kernel writes what it knows of a page to its log; here it is an event of the trace.
void dump_page(Hva at, u32 index) {
  host::PageState state{};
  static_cast<void>(host::page_states(at, 1, &state));
  const auto frame = host::frame_at(at);
  const u64 bits = u64{state.present} | u64{state.anonymous} << 1 | u64{state.exclusive} << 2 |
                   u64{state.zero} << 3 | u64{state.huge} << 4;
  trace::emit(trace::Event::st_page_dump, trace::Room::abi_hmm, index, at.raw(),
              frame ? host::pins_of(*frame) : 0, bits);
}

void dump_pages(gup_test* test, u64 had) {
  for (u32& which : test->which_pages) {
    if (which > had) which = 0;
    if (which == 0) continue;
    dump_page(page_floor(Hva(test->addr)) + u64{which - 1} * kPageSize, which - 1);
  }
}

// A batch that cannot begin ends the call without an error: the size says how far it came.
void take_references(u32 request, gup_test* test) {
  const u64 begun = sys::monotonic_ns();
  const bool gets = only_gets(request, *test);
  const bool refused = gets && (test->gup_flags & kLongTerm) != 0;
  const bool long_term = request == PIN_LONGTERM_BENCHMARK || (test->gup_flags & kLongTerm) != 0;
  const host::PinHow how{(test->gup_flags & kForWriting) != 0, long_term};
  PinnedPages pins;
  const u64 end = test->addr + test->size;
  u64 at = test->addr;
  u64 batch = test->nr_pages_per_call;
  u64 had = 0;
  while (at < end && batch == test->nr_pages_per_call && !refused) {
    batch = std::min<u64>(batch, (end - at) / kPageSize);
    const u64 next = std::min(end, at + u64{test->nr_pages_per_call} * kPageSize);
    const Hva first = page_floor(Hva(at));
    // A device's memory is not to be held for long: what is there goes to ordinary memory first.
    if (long_term && !gets) mirror::leave_device_memory(HvaRange(first, batch * kPageSize));
    batch = gets ? reference_pages(first, batch, test->gup_flags)
                 : pins.add(first, batch, how).value_or(0);
    if (batch == 0) break;
    had += batch;
    at = next;
  }
  test->size = at - test->addr;
  test->get_delta_usec = (sys::monotonic_ns() - begun) / 1000;
  if (request == DUMP_USER_PAGES_TEST) dump_pages(test, had);
  const u64 putting = sys::monotonic_ns();
  pins.release();
  test->put_delta_usec = (sys::monotonic_ns() - putting) / 1000;
}

// ---- pins that outlive a call -----------------------------------------------------------------

struct LongTermTest {
  PinnedPages pins;
  u32 stamp;
};
constinit sync::Mutex long_term_lock{sync::Rank::kDevice};
// Of this process; one inherited by fork is its parent's and is forgotten.
constinit LongTermTest* long_term TA_GUARDED(long_term_lock) = nullptr;

LongTermTest* current() TA_REQ(long_term_lock) {
  const bool mine = long_term != nullptr && long_term->stamp == process_stamp();
  return mine ? long_term : nullptr;
}

void stop() TA_REQ(long_term_lock) {
  destroy(current());
  long_term = nullptr;
}

Result<void> start(u64 arg) TA_REQ(long_term_lock) {
  pin_longterm_test args{};
  if (current() != nullptr) return refuse(EINVAL);
  if (!host::is_user_range(Hva(arg), sizeof(args)) || !host::read_struct(Hva(arg), &args)) {
    return refuse(EFAULT);
  }
  constexpr u32 kKnown = PIN_LONGTERM_TEST_FLAG_USE_WRITE | PIN_LONGTERM_TEST_FLAG_USE_FAST;
  if ((args.flags & ~kKnown) != 0) return refuse(EINVAL);
  if (((args.addr | args.size) & ~kPageMask) != 0) return refuse(EINVAL);
  if (args.size >> 63 != 0 || args.size == 0) return refuse(EINVAL);
  if (args.size / kPageSize > kMostPages) return refuse(ENOMEM);
  if (!host::is_user_range(Hva(args.addr), args.size)) return refuse(EFAULT);
  long_term = ST_TRY(make<LongTermTest>("abi_hmm.long_term"));
  long_term->stamp = process_stamp();
  const host::PinHow how{(args.flags & PIN_LONGTERM_TEST_FLAG_USE_WRITE) != 0, true};
  mirror::leave_device_memory(HvaRange(Hva(args.addr), args.size));
  for (u64 done = 0; done < args.size / kPageSize;) {
    const auto more =
        long_term->pins.add(Hva(args.addr) + done * kPageSize, args.size / kPageSize - done, how);
    if (!more) {
      stop();
      return refuse(more.error());
    }
    done += *more;
  }
  return {};
}

Result<void> read(u64 arg) TA_REQ(long_term_lock) {
  u64 to = 0;
  if (current() == nullptr) return refuse(EINVAL);
  if (!host::is_user_range(Hva(arg), sizeof(to)) || !host::read_struct(Hva(arg), &to)) {
    return refuse(EFAULT);
  }
  return long_term->pins.each([&](host::Frame frame) -> Result<void> {
    u8 page[kPageSize];
    if (!host::read_frame(frame, 0, page, kPageSize)) return refuse(EFAULT);
    if (!host::is_user_range(Hva(to), kPageSize)) return refuse(EFAULT);
    if (host::copy_to(Hva(to), page, kPageSize) != kPageSize) return refuse(EFAULT);
    to += kPageSize;
    return {};
  });
}

class GupFile final : public host::Description {
 public:
  long ioctl(int, unsigned long request, unsigned long arg) override {
    const Result<void> done = serve(static_cast<u32>(request), arg);
    return done ? 0 : -static_cast<long>(to_int(done.error()));
  }
  void last_close() override {
    const sync::MutexGuard guard(long_term_lock);
    stop();
  }

 private:
  static Result<void> serve(u32 request, u64 arg) {
    if (request == PIN_LONGTERM_TEST_START || request == PIN_LONGTERM_TEST_STOP ||
        request == PIN_LONGTERM_TEST_READ) {
      return serve_long_term(request, arg);
    }
    gup_test test{};
    if (!is_known(request)) return refuse(EINVAL);
    if (!host::is_user_range(Hva(arg), sizeof(test))) return refuse(EFAULT);
    if (!host::read_struct(Hva(arg), &test)) return refuse(EFAULT);
    if (test.size / kPageSize > kMostPages) return refuse(ENOMEM);
    take_references(request, &test);
    if (!host::write_struct(Hva(arg), test)) return refuse(EFAULT);
    return {};
  }
  static Result<void> serve_long_term(u32 request, u64 arg) {
    const sync::MutexGuard guard(long_term_lock);
    if (request == PIN_LONGTERM_TEST_START) return start(arg);
    if (request == PIN_LONGTERM_TEST_READ) return read(arg);
    stop();
    return {};
  }
};

}  // namespace

Result<int> open_gup_test(int flags) {
  auto backing = ST_TRY(host::Backing::create("gup_test", 0));
  auto file = ST_TRY(make_box<GupFile>("abi_hmm.gup"));
  const host::DescriptorSpec spec{.shape = host::FileShape::kAnonInode,
                                  .home = host::StateHome::kProcess,
                                  .open_flags = flags & host::kOpenFlags};
  return host::publish(std::move(file), std::move(backing), spec);
}

}  // namespace stagetwo::abi_hmm
