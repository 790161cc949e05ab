// SPDX-License-Identifier: Apache-2.0
#include "host/guest_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/directory_names.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/client_limits.h"
#include "host/kept_fd.h"
#include "sync/passing_number.h"

namespace stagetwo::host {
namespace {

// Not a name of the client's descriptors (host/descriptor.h): it is none.
constexpr const char* kName = "stagetwo:pages:kvm-gmem";
constexpr int kSizeStays = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr long kNotExecutable = 0666;

Result<void> finish(int fd, u64 size) {
  ST_TRY(set_file_size(fd, size));
  ST_TRY(sys::fcntl(fd, F_ADD_SEALS, kSizeStays));
  ST_TRY(sys::checked(sys::call(SYS_fchmod, fd, kNotExecutable)));
  return {};
}

// Does the name in the folder lead to that file? Then it is opened.
Result<int> open_if(int folder, const char* name, u64 device, u64 inode) {
  struct ::stat behind{};
  const long asked = sys::call(SYS_newfstatat, folder, sys::arg(name), sys::arg(&behind), 0);
  if (asked != 0 || behind.st_dev != device || behind.st_ino != inode) return refuse(ENOENT);
  return sys::openat(folder, name, O_RDWR | O_CLOEXEC);
}

Result<int> find_in(int folder, u64 device, u64 inode) {
  DirectoryNames names(folder);
  while (const char* const name = names.next()) {
    if (const auto found = open_if(folder, name, device, inode)) return *found;
  }
  return refuse(names.error() == 0 ? ENOENT : EIO);
}

}  // namespace

Result<void> make_pages_file(u64 size, HeldFd* pages) {
  const sync::PassingNumber passing;
  // Up where no number is the client's before anything is done with it.
  ST_TRY(pages->hold(ST_TRY(sys::memfd_create(kName, MFD_CLOEXEC | MFD_ALLOW_SEALING))));
  const auto done = finish(pages->number().use().get(), size);
  if (!done) pages->close();
  return done;
}

Result<PagesPlace> place_of_pages(int pages_fd) {
  struct ::stat behind{};
  ST_TRY(sys::fstat(pages_fd, &behind));
  return PagesPlace{static_cast<u32>(sys::getpid()), behind.st_ino};
}

Result<int> find_pages_file(const PagesPlace& place, int stand_in) {
  const sync::PassingNumber passing;
  struct ::stat behind{};
  ST_TRY(sys::fstat(stand_in, &behind));
  FixedString<48> path;
  path.append("/proc/").append_int(static_cast<s64>(place.process)).append("/fd");
  const auto folder = open_proc(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (!folder) return refuse(to_int(folder.error()) == ENOENT ? ENOENT : EIO);
  HeldFd held;
  ST_TRY(held.hold(*folder));
  return find_in(held.number().use().get(), behind.st_dev, place.inode);
}

}  // namespace stagetwo::host
