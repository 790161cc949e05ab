// SPDX-License-Identifier: Apache-2.0
#include "host/descriptor_file.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include "base/sys.h"
#include "host/descriptor.h"
#include "host/kept_fd.h"

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
