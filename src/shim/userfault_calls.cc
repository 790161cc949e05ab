// SPDX-License-Identifier: Apache-2.0
#include "shim/userfault_calls.h"

#include <errno.h>
#include <linux/userfaultfd.h>

#include "host/access.h"
#include "host/pin.h"
#include "host/userfault_requests.h"
#include "shim/announce.h"
#include "shim/behind.h"
#include "shim/engine.h"
#include "shim/next.h"

namespace stagetwo::shim {
namespace {

template <typename T>
bool fetch(unsigned long at, T* to) {
  host::EngineSection section(host::Touches::kClientMemory);
  const bool read = host::read_struct(Hva(at), to);
  section.leave();
  return read;
}

template <typename F>
int ring(u64 start, u64 size, host::EventKind kind, host::Announced what, F&& go_on) {
  return announce(reinterpret_cast<const void*>(start), size, kind, what, static_cast<F&&>(go_on));
}

// A range that is ours becomes the client's, unless the kernel refuses for another reason.
template <typename F>
int give_way(u64 start, u64 size, F&& go_on) {
  const auto range = host::pages_of(start, size);
  if (!range || !host::owners_active()) return go_on();
  host::EngineSection section(host::Touches::kNothing);
  int result = 0;
  {
    const host::OwnedChange absent(*range, host::Announced::kMoves);
    result = go_on();
  }
  section.leave();
  return result;
}

// What the kernel says of a page that is pinned, and how much it has moved before it.
int answer_of_pinned(unsigned long argument, host::userfault::MoveRequest asked, s64 moved) {
  asked.moved = moved;
  host::EngineSection section(host::Touches::kClientMemory);
  const bool written = host::write_struct(Hva(argument), asked);
  section.leave();
  errno = !written ? EFAULT : moved < 0 ? EBUSY : EAGAIN;
  return -1;
}

// UFFDIO_MOVE takes no page that is pinned.
template <typename F>
int move_pages(int fd, unsigned long argument, const host::userfault::MoveRequest& asked,
               F&& go_on) {
  const auto range = host::pages_of(asked.from, asked.size);
  const HvaRange all = range ? *range : HvaRange();
  const HvaRange free = range && host::pins_active() ? host::next_unpinned(all) : all;
  const auto move = [&](u64 size, auto&& call) {
    return ring(asked.from, size, host::EventKind::kUnmap, host::Announced::kMoves, call);
  };
  if (free == all) return move(asked.size, go_on);
  if (free.empty() || free.start() != all.start()) return answer_of_pinned(argument, asked, -EBUSY);
  host::userfault::MoveRequest cut = asked;
  cut.size = free.size();
  const int result =
      move(cut.size, [&] { return next::ioctl(fd, host::userfault::kMove, number_of(&cut)); });
  if (result == 0) return answer_of_pinned(argument, asked, cut.moved);
  const int error = errno;
  static_cast<void>(answer_of_pinned(argument, asked, cut.moved));
  errno = error;
  return result;
}

}  // namespace

long userfault_ioctl(int fd, unsigned long request, unsigned long argument) {
  const auto go_on = [&] { return next::ioctl(fd, request, argument); };
  if (request == UFFDIO_WRITEPROTECT) {
    uffdio_writeprotect asked{};
    if (!fetch(argument, &asked) || (asked.mode & UFFDIO_WRITEPROTECT_MODE_WP) == 0) return go_on();
    return ring(asked.range.start, asked.range.len, host::EventKind::kProtection,
                host::Announced::kProtects, go_on);
  }
  if (request == host::userfault::kMove) {
    host::userfault::MoveRequest asked{};
    if (!fetch(argument, &asked)) return go_on();
    return move_pages(fd, argument, asked, go_on);
  }
  if (request == UFFDIO_REGISTER) {
    uffdio_register asked{};
    if (!fetch(argument, &asked)) return go_on();
    // Memory of ours is no shared memory for the kernel.
    if (behind_address(reinterpret_cast<const void*>(asked.range.start)) != Behind::kForeign) {
      return as_libc(-EINVAL);
    }
    host::userfault::note_client();
    return give_way(asked.range.start, asked.range.len, go_on);
  }
  return go_on();
}

}  // namespace stagetwo::shim
