// SPDX-License-Identifier: Apache-2.0
#include "host/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/failpoint.h"
#include "base/sys.h"
#include "host/kept_fd.h"
#include "host/process_map.h"
#include "host/userfault_requests.h"
#include "sync/atomic.h"
#include "sync/futex.h"
#include "sync/passing_number.h"

namespace stagetwo::host::userfault {
namespace {

constexpr unsigned long kNewFromDevice = _IO(UFFDIO, 0x00);
constexpr int kUserModeOnly = 1;
constexpr u64 kDontWake = 1;  // of move, copy and zero

enum class Reach : u32 { kUnknown, kAll, kUserMode, kDenied };

constinit sync::Atomic<Reach> reach{Reach::kUnknown};
constinit sync::Atomic<bool> denied_by_test{false};
constinit sync::Atomic<bool> user_mode_by_test{false};

Result<int> open_full() {
  if (user_mode_by_test.load(sync::kRelaxed)) return refuse(EPERM);
  const long direct = sys::call(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (direct >= 0) return static_cast<int>(direct);
  const int device = ST_TRY(sys::openat(AT_FDCWD, "/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  const auto made = sys::ioctl(device, kNewFromDevice, O_CLOEXEC | O_NONBLOCK);
  static_cast<void>(sys::close(device));
  if (!made) return refuse(made.error());
  return static_cast<int>(*made);
}

Result<int> open_any() {
  if (const auto full = open_full()) {
    reach.store(Reach::kAll, sync::kRelaxed);
    return *full;
  }
  const int made = static_cast<int>(
      ST_TRY(sys::checked(sys::call(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | kUserModeOnly))));
  reach.store(Reach::kUserMode, sync::kRelaxed);
  return made;
}

Result<int> make() {
  if (denied_by_test.load(sync::kRelaxed)) return refuse(EPERM);
  const sync::PassingNumber passing;
  const int fd = ST_TRY(open_any());
  uffdio_api api{UFFD_API, 0, 0};
  const auto shaken = sys::ioctl(fd, UFFDIO_API, reinterpret_cast<u64>(&api));
  if (shaken) return fd;
  static_cast<void>(sys::close(fd));
  return refuse(shaken.error());
}

constinit KeptFd kept(make);

template <typename Request>
Result<void> ask(unsigned long number, Request* request) {
  const FdUse fd = ST_TRY(kept.use());
  for (;;) {
    const auto asked = sys::ioctl(fd.get(), number, reinterpret_cast<u64>(request));
    if (asked) return {};
    // The address space is changing: whoever changes it gets on without us.
    if (to_int(asked.error()) != EAGAIN) return refuse(asked.error());
    sync::yield_thread();
  }
}

Result<void> watch_for(HvaRange range, u64 mode) {
  uffdio_register request{{range.start().raw(), range.size()}, mode, 0};
  return ask(UFFDIO_REGISTER, &request);
}

}  // namespace

Result<void> open() {
  if (denied_by_test.load(sync::kRelaxed)) return refuse(EPERM);
  return kept.keep();
}

bool serves_kernel() {
  return reach.load(sync::kRelaxed) == Reach::kAll;
}

Result<void> watch(HvaRange range) {
  return watch_for(range, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
}
Result<void> watch_protection(HvaRange range) {
  return watch_for(range, UFFDIO_REGISTER_MODE_WP);
}
// A range is refused for one mapping of a kind that nobody can watch.
void forget(HvaRange range) {
  const auto forget_one = [](HvaRange part) {
    uffdio_range request{part.start().raw(), part.size()};
    return ask(UFFDIO_UNREGISTER, &request);
  };
  if (range.empty() || forget_one(range)) return;
  for (Hva at = range.start(); at < range.end();) {
    const auto next = shown_mapping_from(at);
    if (!next || next->range.start() >= range.end()) return;
    const Hva start = std::max(at, next->range.start());
    at = next->range.end();
    static_cast<void>(forget_one(HvaRange(start, std::min(at, range.end()) - start)));
  }
}

// The kernel makes a mapping's anon_vma before it looks whether there is anything to do.
// (uffd_lock_vma(), kernel file: mm/userfaultfd.c.)
void bind(Hva page) {
  static_cast<void>(is_watched(page));
}

// What is watched is another kind of mapping for the kernel.
void bind_beside(HvaRange piece) {
  if (!watch(piece)) return;
  bind(piece.start());
  forget(piece);
}

// Private memory has no page to go on with, and is refused for that; unwatched memory is refused
// before.
bool is_watched(Hva page) {
  uffdio_continue request{{page.raw(), kPageSize}, UFFDIO_CONTINUE_MODE_DONTWAKE, 0};
  const auto asked = ask(UFFDIO_CONTINUE, &request);
  return asked || to_int(asked.error()) != ENOENT;
}

namespace {
constinit sync::Atomic<bool> client_has_one{false};
}  // namespace

void note_client() {
  client_has_one.store(true, sync::kRelaxed);
}
bool client_watches(Hva page) {
  return client_has_one.load(sync::kRelaxed) && is_watched(page);
}

namespace {

// Of a move that it tried again, for a bit of an entry that a processor set meanwhile, Linux 6.18
// keeps the first answer: it goes round once more, finds the pages moved, and says EEXIST of them.
// (move_pages(), kernel file: mm/userfaultfd.c.)
Result<void> ask_to_move(int fd, MoveRequest* request) {
  const auto asked = sys::ioctl(fd, kMove, reinterpret_cast<u64>(request));
  if (asked && failpoint::should_fail("host.move_answer")) return refuse(EEXIST);
  if (asked) return {};
  return refuse(asked.error());
}

// So many of the first pages are there, whatever the answer was; and have left: what else is there
// is what the kernel has put into an empty place for mlockall(MCL_FUTURE).
u64 came(Hva to, Hva from, u64 pages, Errno answer) {
  if (to_int(answer) != EEXIST) return 0;
  const u64 there = present_pages(HvaRange(to, pages * kPageSize), false);
  u64 left = 0;
  PageState state;
  while (left < there && page_states(from + left * kPageSize, 1, &state) && !state.present &&
         !state.swapped) {
    ++left;
  }
  return left;
}

}  // namespace

Result<void> move(Hva to, Hva from) {
  const FdUse fd = ST_TRY(kept.use());
  for (;;) {
    MoveRequest request{to.raw(), from.raw(), kPageSize, kDontWake, 0};
    const auto asked = ask_to_move(fd.get(), &request);
    if (asked) return {};
    if (to_int(asked.error()) == EAGAIN) {
      sync::yield_thread();
      continue;
    }
    if (came(to, from, 1, asked.error()) == 1) return {};
    return refuse(asked.error());
  }
}
u64 move_run(Hva to, Hva from, u64 pages) {
  const auto fd = kept.use();
  if (!fd) return 0;
  u64 done = 0;
  while (done < pages) {
    const u64 offset = done * kPageSize;
    MoveRequest request{to.raw() + offset, from.raw() + offset, (pages - done) * kPageSize,
                        kDontWake | kMoveAllowsHoles, 0};
    const auto asked = ask_to_move(fd->get(), &request);
    if (asked) return pages;
    if (to_int(asked.error()) != EAGAIN) {
      return done + came(to + offset, from + offset, pages - done, asked.error());
    }
    // A part of it, or none because the address space is changing.
    if (request.moved > 0) done += static_cast<u64>(request.moved) / kPageSize;
    if (request.moved <= 0) sync::yield_thread();
  }
  return done;
}
Result<void> copy(Hva to, const void* bytes) {
  uffdio_copy request{to.raw(), reinterpret_cast<u64>(bytes), kPageSize, kDontWake, 0};
  return ask(UFFDIO_COPY, &request);
}
u64 copy_run(Hva to, const void* bytes, u64 pages) {
  const auto fd = kept.use();
  u64 done = 0;
  while (fd && done < pages) {
    const u64 offset = done * kPageSize;
    uffdio_copy request{to.raw() + offset, reinterpret_cast<u64>(bytes) + offset,
                        (pages - done) * kPageSize, kDontWake, 0};
    const auto asked = sys::ioctl(fd->get(), UFFDIO_COPY, reinterpret_cast<u64>(&request));
    if (asked) return pages;
    if (to_int(asked.error()) != EAGAIN) return done;
    // A part of it, or none because the address space is changing.
    if (request.copy > 0) done += static_cast<u64>(request.copy) / kPageSize;
    if (request.copy <= 0) sync::yield_thread();
  }
  return done;
}
Result<void> zero(Hva to) {
  uffdio_zeropage request{{to.raw(), kPageSize}, kDontWake, 0};
  return ask(UFFDIO_ZEROPAGE, &request);
}
Result<void> poison(Hva page) {
  PoisonRequest request{page.raw(), kPageSize, 0, 0};
  return ask(kPoison, &request);
}
Result<void> write_protect(HvaRange pages, bool on) {
  uffdio_writeprotect request{{pages.start().raw(), pages.size()},
                              on ? UFFDIO_WRITEPROTECT_MODE_WP : UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
  return ask(UFFDIO_WRITEPROTECT, &request);
}
void wake(HvaRange range) {
  uffdio_range request{range.start().raw(), range.size()};
  static_cast<void>(ask(UFFDIO_WAKE, &request));
}

namespace {

// Nothing is read by a number that may have become the client's: the wait is a poll of it, which
// takes nothing away, and the read that follows does not wait. A poll that began on the client's
// file just when the number became the client's ends by its time.
Result<size_t> read_messages(uffd_msg* to, size_t size) {
  constexpr int kPollMs = 500;
  for (;;) {
    int number = -1;
    {
      const FdUse fd = ST_TRY(kept.use());
      number = fd.get();
      const auto got = sys::read(number, to, size);
      if (got) return *got;
    }
    pollfd wait{number, POLLIN, 0};
    static_cast<void>(sys::call(SYS_poll, sys::arg(&wait), 1, kPollMs));
  }
}

}  // namespace

unsigned wait_for_touches(Touch* out) {
  uffd_msg messages[kMaxTouches];
  for (;;) {
    const auto got = read_messages(messages, sizeof(messages));
    if (!got) return 0;
    unsigned count = 0;
    for (size_t i = 0; i < *got / sizeof(uffd_msg); ++i) {
      if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
      const auto& fault = messages[i].arg.pagefault;
      out[count++] = {page_floor(Hva(fault.address)), (fault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0};
    }
    if (count != 0) return count;
  }
}

void debug_deny(bool deny) {
  denied_by_test.store(deny, sync::kRelaxed);
}
void debug_user_mode_only() {
  user_mode_by_test.store(true, sync::kRelaxed);
}

}  // namespace stagetwo::host::userfault
