// SPDX-License-Identifier: Apache-2.0
// Streams: opening one by name, and opening another file in one.
#include <errno.h>
#include <stdio.h>

#include <cstring>
#include <string_view>

#include "base/sys.h"
#include "shim/absent_buffers.h"
#include "shim/behind.h"
#include "shim/closing.h"
#include "shim/engine.h"
#include "shim/files.h"
#include "shim/mdev_files.h"
#include "shim/next.h"
#include "shim/paths.h"
#include "shim/shared_files.h"
#include "shim/virtual_io.h"

namespace stagetwo::shim {

namespace {

// The open flags of an fopen mode; what fopen itself refuses is left to it.
int flags_of_mode(const char* mode) {
  const bool plus = strchr(mode, '+') != nullptr;
  int flags = plus ? O_RDWR : mode[0] == 'r' ? O_RDONLY : O_WRONLY;
  if (mode[0] == 'w') flags |= O_CREAT | O_TRUNC;
  if (mode[0] == 'a') flags |= O_CREAT | O_APPEND;
  if (strchr(mode, 'x') != nullptr) flags |= O_EXCL;
  if (strchr(mode, 'e') != nullptr) flags |= O_CLOEXEC;
  return flags;
}

FILE* stream_over(int fd, const char* mode) {
  if (fd < 0) return nullptr;
  FILE* const stream = stream_on(fd, mode);
  if (stream == nullptr) close_fd(fd);
  return stream;
}

template <typename F>
FILE* stream_of(const char* path, const char* mode, F&& call) {
  if (path == nullptr || mode[0] != 'w' || !truncates(flags_of_mode(mode))) return call();
  return take_out_named(AT_FDCWD, path, 0, 0, call);
}

}  // namespace

FILE* open_stream(const char* name, const char* mode) {
  const MovedName moved(name);
  const char* const path = moved.path();
  if (int opened = -1; opened_of_bus(AT_FDCWD, moved, flags_of_mode(mode), &opened))
    return stream_over(opened, mode);
  const Target target = target_to_open(AT_FDCWD, path, flags_of_mode(mode));
  const bool known = mode[0] == 'r' || mode[0] == 'w' || mode[0] == 'a';
  if (!target || target.kind == PathKind::kDirectory || !known) {
    if (known && opening_refused(AT_FDCWD, path, flags_of_mode(mode))) return nullptr;
    return with_buffers(
        [&](Buffers& buffers) { buffers.text(path); },
        [&] { return stream_of(path, mode, [&] { return next::fopen(path, mode); }); });
  }
  return stream_over(static_cast<int>(as_libc(open_target(target, flags_of_mode(mode)))), mode);
}

namespace {

FILE* reopen_by_name(const char* path, const char* mode, FILE* stream);

// As after any open that fails there: of a name that nothing has.
FILE* close_and_say(int error, const char* mode, FILE* stream) {
  static_cast<void>(reopen_by_name("", mode, stream));
  return with_errno<FILE*>(error);
}

// What libc cannot open by its name: opened, and then put under the stream's own number. Of a file
// whose bytes libc's own calls do not move there is no such stream.
FILE* reopen_ours(const char* name, const char* mode, FILE* stream) {
  const int flags = flags_of_mode(mode);
  const int opened = open_at(AT_FDCWD, name, flags, 0666);
  if (opened < 0) return close_and_say(errno, mode, stream);
  FILE* again = nullptr;
  if (any_virtual_io() && virtual_behind(opened).is_by_call()) {
    again = close_and_say(EACCES, mode, stream);
  } else {
    again = reopen_by_name("/dev/null", mode, stream);
    if (again != nullptr && dup_to(opened, fileno(again), flags & O_CLOEXEC, true) < 0) {
      again = close_and_say(errno, mode, again);
    }
  }
  const int error = errno;
  close_fd(opened);
  errno = error;
  return again;
}

bool opens_by_us(const MovedName& name, const char* mode) {
  const int flags = flags_of_mode(mode);
  const std::string_view path(name.path());
  const bool only_written = path.ends_with("/create") || path.ends_with("/remove");
  if (name.moved()) return only_written || (flags & (O_ACCMODE | O_CREAT)) != O_RDONLY;
  const Target target = target_to_open(AT_FDCWD, name.path(), flags);
  return target && target.kind != PathKind::kDirectory && !target.file.is_by_call();
}

FILE* reopen_by_name(const char* path, const char* mode, FILE* stream) {
  if (path != nullptr && opening_refused(AT_FDCWD, path, flags_of_mode(mode))) {
    close_stream(stream);
    return with_errno<FILE*>(ENXIO);
  }
  const auto go_on = [&] {
    return stream_of(path, mode, [&] { return next::freopen(path, mode, stream); });
  };
  if (stream == nullptr || !holds_ours(stream)) return go_on();
  if (path == nullptr) {
    // What is behind it is opened again by its name in /proc, which leads to nothing to be opened.
    close_stream(stream);
    return with_errno<FILE*>(ENXIO);
  }
  // The name may be a pipe's and be waited for, so not in a section. In a full table, where there
  // is no number for a copy, nothing can be opened and so nothing waited for.
  const int copy = next::fcntl(fileno(stream), F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return close_watched(stream, [&] { return next::freopen(path, mode, stream); });
  FILE* const again = go_on();
  const int error = errno;
  close_fd(copy);
  errno = error;
  return again;
}

}  // namespace

FILE* reopen_stream(const char* name, const char* mode, FILE* stream) {
  const MovedName moved(name);
  const bool known = mode[0] == 'r' || mode[0] == 'w' || mode[0] == 'a';
  if (name != nullptr && stream != nullptr && known && opens_by_us(moved, mode)) {
    return reopen_ours(name, mode, stream);
  }
  return reopen_by_name(moved.path(), mode, stream);
}

}  // namespace stagetwo::shim
