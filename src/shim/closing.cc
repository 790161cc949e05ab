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
  const long result = close_watched(fd);
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
  if (from == to) return call_next();
  struct ::stat behind{};
  if (!host::may_be_engines(to) && !may_be_ours(to, &behind)) return call_next();
  host::EngineSection section(host::Touches::kNothing);
  int result = 0;
  if (host::is_engine_fd(to) && host::vacate_engine_fd(to)) {
    // Until now the number was taken, so that no thread of the engine has it again.
    result = call_next();
    const int error = errno;
    if (result < 0) static_cast<void>(sys::close(to));
    errno = error;
  } else {
    host::CloseWatch watch(to);
    result = call_next();
    if (result >= 0) watch.closed();
  }
  section.leave();
  return result;
}

}  // namespace stagetwo::shim
