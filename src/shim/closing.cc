// SPDX-License-Identifier: Apache-2.0
// Every way a descriptor number stops meaning what it meant: a close, a dup over it, a range. What
// was behind it may have had its last holder (host/descriptor.h, CloseWatch). The engine's own
// descriptors are not there for the client: closing one is EBADF, a range goes around them, and a
// dup onto one makes the engine move.

#include <errno.h>
#include <linux/close_range.h>
#include <sys/syscall.h>

#include "base/sys.h"
#include "host/kept_fd.h"
#include "host/run_section.h"
#include "shim/behind.h"
#include "shim/closing.h"
#include "shim/engine.h"
#include "shim/files.h"
#include "shim/next.h"
#include "shim/open_descriptors.h"
#include "shim/virtual_io.h"
#include "sync/futex.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
namespace {

// Of close_range: the descriptors stay open until exec.
constexpr int kOnlyMark = CLOSE_RANGE_CLOEXEC;

// Not libc's close: that is a cancellation point, and a watch is open.
long close_watched(int fd) {
  host::CloseWatch watch(fd);
  const auto result = sys::close(fd);
  watch.closed();
  return result ? 0 : -static_cast<long>(to_int(result.error()));
}

}  // namespace

namespace {

// What libc or another program wrote to a virtual file is taken when its descriptor goes.
VirtualFile virtual_before(int fd) {
  return any_virtual_io() ? virtual_behind(fd) : VirtualFile{};
}

}  // namespace

namespace {

enum class Stands : u8 { kNothing, kEngines, kClients };

// What a number stands for that the client closes or puts a file on. The engine has some for a
// moment only, which nobody knows but who opened them (sync/passing_number.h): the answer waits
// until there is none, or gives up after a second, for a thread that does not run. `take` is called
// where nothing stands: does that settle it?
template <typename F>
Stands behind_number(int fd, F&& take) {
  constexpr u64 kPatienceNs = 1'000'000'000;
  u64 until = 0;
  for (;;) {
    const auto look = sync::PassingNumber::look();
    if (!sys::fcntl(fd, F_GETFD)) {
      if (take()) return Stands::kNothing;
    } else if (host::is_engine_fd(fd)) {
      return Stands::kEngines;
    } else if (look.holds()) {
      return Stands::kClients;
    }
    const u64 now = sys::monotonic_ns();
    if (until == 0) until = now + kPatienceNs;
    if (now > until) return Stands::kClients;
    sync::yield_thread();
  }
}

}  // namespace

int close_fd(int fd) {
  if (const VirtualFile file = virtual_before(fd)) {
    const int result = next::close(fd);
    static_cast<void>(take_appended(file));
    return result;
  }
  if (!awake()) [[likely]]
    return next::close(fd);
  if (engines_refused(fd)) return -1;
  struct ::stat behind{};
  if (!may_be_ours(fd, &behind)) return next::close(fd);
  host::EngineSection section(host::Touches::kNothing);
  const bool clients = behind_number(fd, [] { return true; }) == Stands::kClients;
  const long result = clients ? close_watched(fd) : -EBADF;
  section.leave();
  return static_cast<int>(as_libc(result));
}

int close_stream(FILE* stream) {
  if (const VirtualFile file = virtual_before(any_virtual_io() ? fileno(stream) : -1)) {
    const int result = next::fclose(stream);
    const int error = take_appended(file);
    if (error != 0) errno = error;
    return error != 0 ? EOF : result;
  }
  struct ::stat behind{};
  if (!awake() || !may_be_ours(fileno(stream), &behind)) return next::fclose(stream);
  // The stream writes what it holds, which a file of ours takes or refuses at once, and then
  // closes.
  return close_watched(stream, [&] { return next::fclose(stream); });
}

bool holds_ours(FILE* stream) {
  struct ::stat behind{};
  if (!awake() || !may_be_ours(fileno(stream), &behind)) return false;
  return behind_fd(fileno(stream)) != Behind::kForeign;
}

int close_fds(unsigned first, unsigned last, int flags) {
  if (!awake() || (flags & kOnlyMark) != 0 || first > last) {
    return next::close_range(first, last, flags);
  }
  host::EngineSection section(host::Touches::kNothing);
  for_each_open(first, last, [](int fd) {
    struct ::stat behind{};
    if (!host::is_engine_fd(fd) && may_be_ours(fd, &behind)) static_cast<void>(close_watched(fd));
  });
  int result = 0;
  unsigned start = first;
  for (;;) {
    const int engine = start <= INT32_MAX ? host::next_engine_fd(static_cast<int>(start)) : -1;
    const bool around = engine >= 0 && static_cast<unsigned>(engine) <= last;
    const unsigned end = around ? static_cast<unsigned>(engine) - 1 : last;
    if (!around || static_cast<unsigned>(engine) > start) {
      result = next::close_range(start, end, flags);
    }
    if (!around || result != 0 || static_cast<unsigned>(engine) == last) break;
    start = static_cast<unsigned>(engine) + 1;
  }
  section.leave();
  return result;
}

namespace {

// dup2 onto a number that is free: the lowest one from there, if it is that one.
bool dup_if_free(int from, int to, int flags, int* result) {
  const sync::PassingNumber passing;
  const int command = (flags & O_CLOEXEC) != 0 ? F_DUPFD_CLOEXEC : F_DUPFD;
  const auto made = sys::fcntl(from, command, to);
  if (!made) {
    *result = -1;
    return to_int(made.error()) != EMFILE;  // else it is taken by now
  }
  *result = static_cast<int>(*made);
  if (*result != to) static_cast<void>(sys::close(*result));
  return *result == to;
}

}  // namespace

int dup_to(int from, int to, int flags, bool dup3) {
  const auto call_next = [&] { return dup3 ? next::dup3(from, to, flags) : next::dup2(from, to); };
  if (const VirtualFile file = from == to ? VirtualFile{} : virtual_before(to)) {
    const int result = call_next();
    static_cast<void>(take_appended(file));
    return result;
  }
  if (!awake()) [[likely]]
    return call_next();
  if (engines_refused(from)) return -1;
  if (from == to || (flags & ~O_CLOEXEC) != 0) return call_next();
  host::EngineSection section(host::Touches::kNothing);
  int result = 0;
  Stands stands = Stands::kEngines;
  for (bool moved = false; stands == Stands::kEngines && !moved;) {
    stands = behind_number(to, [&] { return dup_if_free(from, to, flags, &result); });
    moved = stands == Stands::kEngines && host::vacate_engine_fd(to);
  }
  struct ::stat behind{};
  if (stands == Stands::kNothing) {
    if (result < 0) result = call_next();  // the kernel's own refusal
  } else if (stands == Stands::kEngines) {
    // Until now the number was taken, so that no thread of the engine has it again.
    result = call_next();
    const int error = errno;
    if (result < 0) static_cast<void>(sys::close(to));
    errno = error;
  } else if (may_be_ours(to, &behind)) {
    host::CloseWatch watch(to);
    result = call_next();
    if (result >= 0) watch.closed();
  } else {
    section.leave();
    return call_next();
  }
  section.leave();
  return result;
}

}  // namespace stagetwo::shim
