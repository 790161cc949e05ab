// SPDX-License-Identifier: Apache-2.0
#include "host/ready_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <string_view>

#include "base/sys.h"
#include "base/text.h"
#include "host/client_limits.h"
#include "host/descriptor.h"
#include "host/session.h"
#include "sync/passing_number.h"

namespace stagetwo::host {
namespace {

// A pipe without a name, whoever may reopen it by its number; the mark says whose it is.
constexpr mode_t kNameless = S_ISVTX | 0666;

// Makes the pipe and takes its name away at once: what is left is a link in /proc that says it.
Result<int> make_pipe(std::string_view folder, const char* kind) {
  FixedString<640> path(folder);
  path.append(kReadyPrefix).append(kind);
  if (folder.empty() || path.cut()) return refuse(ENAMETOOLONG);
  const auto make = [&] {
    return sys::checked(
        sys::call(SYS_mknodat, AT_FDCWD, sys::arg(path.c_str()), S_IFIFO | 0600, 0));
  };
  const auto unlink = [&] { sys::call(SYS_unlinkat, AT_FDCWD, sys::arg(path.c_str()), 0); };
  auto made = make();
  if (!made && to_int(made.error()) == EEXIST) {  // whoever made it died before it took the name
    unlink();
    made = make();
  }
  if (!made) return refuse(made.error());
  const auto fd = sys::openat(AT_FDCWD, path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  unlink();
  if (fd) sys::call(SYS_fchmod, *fd, kNameless);
  return fd;
}

}  // namespace

Result<Backing> Backing::create_ready(const char* kind) {
  Backing backing;
  Result<int> made = refuse(ENOENT);
  for (const std::string_view folder :
       {session_folder(), std::string_view("/dev/shm"), std::string_view("/tmp")}) {
    made = sync::PassingNumber::begin_with(
        [&] { return open_beyond_limit([&] { return make_pipe(folder, kind); }); });
    if (made) break;
  }
  backing.fd_ = ST_TRY(made);
  return backing;
}

Result<void> ReadyFile::hold(int fd) {
  struct ::stat behind{};
  ST_TRY(sys::fstat(fd, &behind));
  {
    const sync::PassingNumber passing;
    FixedString<48> path;
    path.append("/proc/thread-self/fd/").append_int(fd);
    ST_TRY(own_.hold(ST_TRY(open_proc(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK))));
  }
  device_ = behind.st_dev;
  inode_ = behind.st_ino;
  return {};
}

void ReadyFile::rise(bool waited) {
  const FdUse own = own_.number().use();
  char byte = 1;
  static_cast<void>(sys::write(own.get(), &byte, 1));
  if (waited) static_cast<void>(sys::read(own.get(), &byte, 1));
}

void ReadyFile::fall() {
  const FdUse own = own_.number().use();
  char bytes[16];
  static_cast<void>(sys::read(own.get(), bytes, sizeof(bytes)));
}

}  // namespace stagetwo::host
