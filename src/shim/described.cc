// SPDX-License-Identifier: Apache-2.0
#include "shim/described.h"

#include <errno.h>
#include <limits.h>

#include <algorithm>

#include "base/sys.h"
#include "host/access.h"
#include "host/placed_io.h"
#include "host/run_section.h"
#include "shim/absent_buffers.h"
#include "shim/behind.h"
#include "shim/buffered_calls.h"
#include "shim/engine.h"
#include "shim/next.h"

namespace stagetwo::shim {

int access_of(const host::DescriptionRef& ref, const Result<long>& flags) {
  if (!flags || ref.spec().reads_alone) return O_RDWR;
  return static_cast<int>(*flags) & O_ACCMODE;
}

bool io_described(int fd, Io io, const void* buffer, size_t size, const off_t* at, ssize_t* done) {
  struct ::stat behind{};
  if (!awake() || !may_be_ours(fd, &behind)) [[likely]]
    return false;
  host::EngineSection section(host::Touches::kClientMemory);
  bool ours = false;
  Result<long> moved = 0;
  if (const host::DescriptionRef ref = host::find(fd, behind)) {
    const auto flags = sys::fcntl(fd, F_GETFL);
    const int access = access_of(ref, flags);
    const bool place = flags && (*flags & O_PATH) != 0;
    // An anonymous file has no places to ask at; a file of /proc or /sys takes any.
    auto* const places = at == nullptr ? nullptr : dynamic_cast<host::PlacedIo*>(ref.get());
    const bool placed =
        at == nullptr || places != nullptr || ref.spec().shape == host::FileShape::kCharDevice;
    ours = !ref.foreign() && ref->moves_bytes() && placed && !place &&
           access != (io == Io::kRead ? O_WRONLY : O_RDONLY);
    const u64 address = reinterpret_cast<u64>(buffer);
    if (ours && places != nullptr && *at < 0) {
      moved = refuse(EINVAL);
    } else if (ours && !host::is_user_range(Hva(address), size)) {
      moved = refuse(EFAULT);  // the kernel's own memory, whatever the file would say
    } else if (ours && places != nullptr) {
      moved = io == Io::kRead ? places->read_at(address, size, *at)
                              : places->write_at(address, size, *at);
    } else if (ours) {
      moved = io == Io::kRead ? ref->read_bytes(address, size) : ref->write_bytes(address, size);
    }
  }
  section.leave();
  if (!ours) return false;
  *done = moved ? *moved : as_libc(-static_cast<long>(to_int(moved.error())));
  return true;
}

namespace {

// Has what is behind `fd` a read and a write of its own?
bool moves_bytes(int fd) {
  struct ::stat behind{};
  if (!awake() || !may_be_ours(fd, &behind)) [[likely]]
    return false;
  host::EngineSection section(host::Touches::kNothing);
  bool moves = false;
  if (const host::DescriptionRef ref = host::find(fd, behind)) moves = ref->moves_bytes();
  section.leave();
  return moves;
}

// Failure: EFAULT, EINVAL (longer than a call's answer can be).
Result<iovec> part_at(const iovec* parts, int i) {
  iovec part{};
  host::EngineSection section(host::Touches::kClientMemory);
  const bool there = host::read_struct(Hva(reinterpret_cast<u64>(parts + i)), &part);
  section.leave();
  if (!there) return refuse(EFAULT);
  if (part.iov_len > SSIZE_MAX) return refuse(EINVAL);
  return part;
}

bool is_user_part(const iovec& part) {
  return host::is_user_range(Hva(reinterpret_cast<u64>(part.iov_base)), part.iov_len);
}

}  // namespace

// As the kernel does it for a file that has the plain operations alone: one after the other, until
// one is not done in full.
bool parts_described(int fd, Io io, const iovec* parts, int count, const off_t* at, ssize_t* done) {
  if (!moves_bytes(fd)) return false;
  off_t place = at == nullptr ? 0 : *at;
  *done = 0;
  int error = count < 0 || count > IOV_MAX ? EINVAL : 0;
  bool outside = false;
  for (int i = 0; i < count && error == 0; ++i) {
    const auto part = part_at(parts, i);
    if (!part) error = to_int(part.error());
    if (part) outside = outside || !is_user_part(*part);
  }
  if (error == 0 && outside) error = EFAULT;
  for (int i = 0; i < count && error == 0; ++i) {
    const auto part = part_at(parts, i);
    ssize_t one = 0;
    if (!part) break;
    if (!io_described(fd, io, part->iov_base, part->iov_len, at == nullptr ? nullptr : &place,
                      &one))
      return *done != 0;
    if (one < 0 && *done == 0) error = errno;
    if (one > 0) *done += one;
    place += std::max<ssize_t>(one, 0);
    if (one != static_cast<ssize_t>(part->iov_len)) break;
  }
  if (error != 0) *done = as_libc(-error);
  return true;
}

namespace {

// What F_GETFL says of a descriptor of ours, as the kernel's would: the client's may be opened for
// less, and is always a large file, which an anonymous file of the kernel's never is.
int flags_of(int fd, int said) {
  constexpr int kLargeFile = 0100000;  // O_LARGEFILE, which libc says is 0
  struct ::stat behind{};
  if (!awake() || !may_be_ours(fd, &behind)) [[likely]]
    return said;
  host::EngineSection section(host::Touches::kNothing);
  if (const host::DescriptionRef ref = host::find(fd, behind)) {
    if (ref.spec().shape == host::FileShape::kAnonInode) said &= ~kLargeFile;
    if (ref.spec().reads_alone) said = (said & ~O_ACCMODE) | O_RDWR;
  }
  section.leave();
  return said;
}

}  // namespace

int control_fd(int fd, int command, long argument) {
  if (control_refused(fd, command, argument)) return -1;
  const int answer =
      with_buffer(reinterpret_cast<const void*>(argument), sizeof(struct flock),
                  [&] { return next::fcntl(fd, command, AskedLock(fd, command, argument)); });
  if (command != F_GETFL || answer < 0 || (answer & O_PATH) != 0) return answer;
  return flags_of(fd, answer);
}

}  // namespace stagetwo::shim
