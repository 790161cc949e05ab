// SPDX-License-Identifier: Apache-2.0
#include "host/process_name.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <charconv>
#include <string_view>

#include "base/process_page.h"
#include "base/sys.h"
#include "base/text.h"
#include "sync/atomic.h"

namespace stagetwo::host {
namespace {

// The number in a field of `text`, the first of which is 0; 0 where there is none.
u64 number_at(std::string_view text, int field) {
  for (; field > 0; --field) {
    const size_t space = text.find(' ');
    if (space == std::string_view::npos) return 0;
    text.remove_prefix(space + 1);
  }
  u64 value = 0;
  static_cast<void>(std::from_chars(text.data(), text.data() + text.size(), value));
  return value;
}

// "pid (name) state ppid …": the name may hold anything but ends with the last ')'. From the state
// on, which is the third field of all: the 20th is the number of threads, the 22nd the start, the
// 28th the stack.
constexpr int kThreads = 17, kStart = 19, kStack = 25;

ProcessName name_in(u32 pid, const Result<int>& fd) {
  ProcessName name{.pid = pid};
  if (!fd) return name;
  char buffer[1024];
  const auto got = sys::read(*fd, buffer, sizeof(buffer));
  static_cast<void>(sys::close(*fd));
  std::string_view text(buffer, got ? *got : 0);
  const size_t close = text.rfind(')');
  if (close == std::string_view::npos || text.size() < close + 4) return name;
  text.remove_prefix(close + 2);
  const char state = text[0];
  // The state is its first thread's, which may end before the others.
  const bool is_zombie = state == 'Z' && number_at(text, kThreads) <= 1;
  name.alive = !is_zombie && state != 'X' && state != 'x';
  name.start_time = number_at(text, kStart);
  name.stack = number_at(text, kStack);
  return name;
}

// Asked once a process.
struct Space {
  sync::Atomic<u32> stamp, space, ours;
};
constinit Space known;

const Space& this_space() {
  const u32 stamp = process_stamp();
  if (known.stamp.load(sync::kAcquire) == stamp) return known;
  struct ::stat is{};
  char number[16] = {};
  const long got =
      sys::call(SYS_newfstatat, AT_FDCWD, sys::arg("/proc/self/ns/pid"), sys::arg(&is), 0);
  const long length =
      sys::call(SYS_readlinkat, AT_FDCWD, sys::arg("/proc/self"), sys::arg(number), sizeof(number));
  const std::string_view text(number, length > 0 ? static_cast<size_t>(length) : 0);
  known.space.store(got == 0 ? static_cast<u32>(is.st_ino) : 0, sync::kRelaxed);
  known.ours.store(number_at(text, 0) == static_cast<u64>(sys::getpid()) ? 1 : 0, sync::kRelaxed);
  known.stamp.store(stamp, sync::kRelease);
  return known;
}

}  // namespace

ProcessName name_of_process(u32 pid) {
  FixedString<32> path;
  path.append("/proc/").append_int(pid).append("/stat");
  return name_in(pid, sys::openat(AT_FDCWD, path.c_str(), O_RDONLY | O_CLOEXEC));
}

ProcessName name_of_this_process() {
  return name_in(static_cast<u32>(sys::getpid()),
                 sys::openat(AT_FDCWD, "/proc/self/stat", O_RDONLY | O_CLOEXEC));
}

u32 pid_space() {
  return this_space().space.load(sync::kRelaxed);
}
bool proc_is_ours() {
  return this_space().ours.load(sync::kRelaxed) != 0;
}

}  // namespace stagetwo::host
