// SPDX-License-Identifier: Apache-2.0
#include "host/descriptor_file.h"

#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/sys.h"
#include "host/descriptor.h"
#include "host/kept_fd.h"
#include "sync/passing_number.h"

namespace stagetwo::host {
namespace {

constexpr std::string_view kLinkPrefix = "/memfd:";
constexpr std::string_view kLinkSuffix = " (deleted)";

struct flock held_byte(short type) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = kHeldByte;
  lock.l_len = 1;
  return lock;
}

}  // namespace

bool is_held(int watch_fd) {
  struct flock lock = held_byte(F_WRLCK);
  const auto asked = sys::fcntl(watch_fd, F_OFD_GETLK, sys::arg(&lock));
  return !asked || lock.l_type != F_UNLCK;
}

// The kernel tells locks of open file descriptions to everybody, each with the number of its file.
Result<bool> is_held_anywhere(u64 inode) {
  FixedString<64> lock(":");
  lock.append_int(inode).append_char(' ').append_int(u64{kHeldByte}).append_char(' ');
  const std::string_view wanted(lock.c_str());
  const sync::PassingNumber passing;
  const int fd = ST_TRY(open_proc("/proc/locks", O_RDONLY | O_CLOEXEC));
  Result<bool> found = false;
  char buffer[2048];
  for (size_t kept = 0;;) {
    const auto got = sys::read(fd, buffer + kept, sizeof(buffer) - kept);
    if (!got) found = refuse(got.error());
    if (!got || *got == 0) break;
    const std::string_view text(buffer, kept + *got);
    if (text.find(wanted) != std::string_view::npos) {
      found = true;
      break;
    }
    kept = std::min(text.size(), wanted.size() - 1);  // the next part may begin within it
    memmove(buffer, text.data() + (text.size() - kept), kept);
  }
  static_cast<void>(sys::close(fd));
  return found;
}

Result<int> open_for_client(int backing_fd, int flags, bool has_position) {
  const ProcPath path(backing_fd);
  const int keep = O_ACCMODE | O_CLOEXEC | O_NONBLOCK | O_APPEND;
  const int fd = ST_TRY(open_proc(path.c_str(), flags & keep));
  const bool readable = (flags & O_ACCMODE) == O_RDONLY;
  struct flock lock = held_byte(readable ? F_RDLCK : F_WRLCK);
  const auto locked = sys::fcntl(fd, F_OFD_SETLK, sys::arg(&lock));
  if (!locked) {
    static_cast<void>(sys::close(fd));
    return refuse(locked.error());
  }
  if (!has_position) sys::call(SYS_lseek, fd, INT64_MAX, SEEK_SET);
  return fd;
}

std::string_view kind_behind(int fd, char* buffer, size_t capacity) {
  const ProcPath path(fd);
  const long size = sys::call(SYS_readlinkat, AT_FDCWD, sys::arg(path.c_str()), sys::arg(buffer),
                              static_cast<long>(capacity));
  if (size <= 0) return {};
  std::string_view name(buffer, static_cast<size_t>(size));
  if (!name.ends_with(kLinkSuffix)) return {};
  name.remove_suffix(kLinkSuffix.size());
  if (const size_t pipe = name.rfind(kReadyPrefix); pipe != std::string_view::npos) {
    return name.substr(pipe + kReadyPrefix.size());
  }
  if (!name.starts_with(kLinkPrefix)) return {};
  name.remove_prefix(kLinkPrefix.size());
  if (!name.starts_with(kNamePrefix)) return {};
  return name.substr(kNamePrefix.size());
}

}  // namespace stagetwo::host
