// SPDX-License-Identifier: Apache-2.0
// Calls by number whose answer is not the kernel's alone where a file of ours stands behind
// (shim/behind.h); those that are only refused stand in shim/raw_calls.def.

#include "shim/raw.h"

#include <sys/statfs.h>
#include <sys/syscall.h>

#include "shim/absent_buffers.h"
#include "shim/behind.h"
#include "shim/buffered_calls.h"
#include "shim/described.h"
#include "shim/files.h"
#include "shim/shared_files.h"
#include "shim/spliced.h"

namespace stagetwo::shim {
namespace {

constexpr long kFchmodat2 = 452;  // the headers here have no name for it

template <typename T>
T* pointer(long value) {
  return reinterpret_cast<T*>(value);
}
int integer(long value) {
  return static_cast<int>(value);
}

// From one pipe to another: on what shows that ours can do neither.
long copy_pipe(int from, int to, long size, long flags) {
  if (transfer_refused(from, to)) return -1;
  const Asked source(from), target(to);
  return with_buffers([&](Buffers& buffers) { buffers.file(from); },
                      [&] { return next::syscall(SYS_tee, source, target, size, flags, 0, 0); });
}

}  // namespace

bool file_call(long number, const long (&w)[6], long* result) {
  switch (number) {
    case SYS_splice:
      *result =
          splice_bytes(integer(w[0]), pointer<off_t>(w[1]), integer(w[2]), pointer<off_t>(w[3]),
                       static_cast<size_t>(w[4]), static_cast<unsigned>(w[5]));
      return true;
    case SYS_tee:
      *result = copy_pipe(integer(w[0]), integer(w[1]), w[2], w[3]);
      return true;
    case SYS_sendfile:
      *result =
          send_file(integer(w[0]), integer(w[1]), pointer<off_t>(w[2]), static_cast<size_t>(w[3]));
      return true;
    case SYS_fcntl:
      *result = control_fd(integer(w[0]), integer(w[1]), w[2]);
      return true;
    case kFchmodat2:
      *result = -1;
      return change_refused(behind_either(integer(w[0]), pointer<const char>(w[1]), integer(w[3])));
    case SYS_fstatfs: {
      auto* const to = pointer<struct ::statfs>(w[1]);
      *result =
          with_buffer(to, sizeof(*to), [&] { return next::fstatfs(Asked(integer(w[0])), to); });
      return true;
    }
    case SYS_statfs:
      *result = filesystem_of(pointer<const char>(w[0]), pointer<struct ::statfs>(w[1]));
      return true;
    case SYS_getxattr:
      *result = attribute_at(pointer<const char>(w[0]), pointer<const char>(w[1]),
                             pointer<void>(w[2]), static_cast<size_t>(w[3]), Link::kFollowed);
      return true;
    case SYS_flistxattr:
      *result = list_attributes(integer(w[0]), pointer<char>(w[1]), static_cast<size_t>(w[2]));
      return true;
    case SYS_readlink:
      *result = readlink_at(AT_FDCWD, pointer<const char>(w[0]), pointer<char>(w[1]),
                            static_cast<size_t>(w[2]));
      return true;
    case SYS_readlinkat:
      *result = readlink_at(integer(w[0]), pointer<const char>(w[1]), pointer<char>(w[2]),
                            static_cast<size_t>(w[3]));
      return true;
    default:
      return false;
  }
}

}  // namespace stagetwo::shim
