// SPDX-License-Identifier: Apache-2.0
#include "shim/absent_buffers.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <sys/sem.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/sys.h"
#include "base/text.h"
#include "host/access.h"
#include "host/change.h"

namespace stagetwo::shim {
namespace {

constexpr u64 kWholeFile = u64{1} << 62;

u64 number(const void* at) {
  return reinterpret_cast<u64>(at);
}

// Through a cache of pages or a pipe. One opened with O_DIRECT is asked about apart.
bool copies_what_is_read(int fd) {
  struct ::stat file{};
  struct ::statfs system{};
  if (!sys::checked(sys::call(SYS_fstat, fd, sys::arg(&file)))) return false;
  if (S_ISFIFO(file.st_mode)) return true;
  if (!S_ISREG(file.st_mode) || !sys::checked(sys::call(SYS_fstatfs, fd, sys::arg(&system)))) {
    return false;
  }
  switch (system.f_type) {
    case BTRFS_SUPER_MAGIC:
    case EXT4_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case XFS_SUPER_MAGIC:
      return true;
    default:
      return false;
  }
}

HvaRange hull(HvaRange a, HvaRange b) {
  const Hva start = std::min(a.start(), b.start());
  return HvaRange(start, std::max(a.end(), b.end()) - start);
}

}  // namespace

void Buffers::begin(bool fetching) {
  fetching_ = fetching;
  used_ = 0;
  used_files_ = 0;
  fetched_ = 0;
  if (fetching) return;
  pins_ = false;
  for (HvaRange& range : ranges_) range = HvaRange();
}

void Buffers::add(const void* at, u64 size) {
  if (!pins_ && !host::kernel_meets_hidden_pages()) return;
  if (const auto range = host::pages_of(number(at), size)) add(*range);
}

void Buffers::add(HvaRange pages) {
  const unsigned place = std::min(used_++, kPlaces - 1);
  if (fetching_) {
    fetched_ += held_[place].fetch(pages);
  } else {
    ranges_[place] = ranges_[place].empty() ? pages : hull(ranges_[place], pages);
  }
}

void Buffers::hold() {
  for (unsigned i = 0; i < kPlaces; ++i) {
    if (!ranges_[i].empty()) held_[i].hold(ranges_[i]);
  }
}

void Buffers::let_go() {
  for (host::HeldPages& held : held_) held.release();
  for (host::HeldPages& held : files_) held.release();
}

bool Buffers::all_held() const {
  for (unsigned i = 0; i < kPlaces; ++i) {
    if (!ranges_[i].empty() && !held_[i].holds()) return false;
  }
  return true;
}

Buffers& Buffers::pinned() {
  if (host::pages_copied_away()) pins_ = true;
  return *this;
}

Buffers& Buffers::filled_from(int fd, bool fills) {
  return fills && host::pages_copied_away() && !copies_what_is_read(fd) ? pinned() : *this;
}

Buffers& Buffers::bytes(const void* at, u64 size) {
  add(at, size);
  return *this;
}

Buffers& Buffers::file(int fd, const off_t* at, u64 size) {
  if (!host::pages_copied_away() || used_files_ == kFiles) return *this;
  host::HeldPages& held = files_[used_files_++];
  if (fetching_) {
    lost_ = !held.fetch_file() || lost_;
    return *this;
  }
  // Who appends writes at the end, whatever it asked for.
  const auto flags = sys::fcntl(fd, F_GETFL);
  if (flags && (*flags & O_DIRECT) != 0) pins_ = true;
  const bool appends = flags && (*flags & O_APPEND) != 0;
  const long from = appends ? 0 : at != nullptr ? *at : sys::call(SYS_lseek, fd, 0, SEEK_CUR);
  if (from >= 0) held.hold_file(fd, static_cast<u64>(from), appends ? kWholeFile : size);
  return *this;
}

Buffers& Buffers::file(int fd) {
  constexpr off_t kStart = 0;
  return file(fd, &kStart, kWholeFile);
}

Buffers& Buffers::file_at(int fd, const off_t* at, u64 size) {
  off_t from = -1;
  const bool given = at != nullptr && host::read_struct(Hva(number(at)), &from) && from >= 0;
  return given ? file(fd, &from, std::min(size, kWholeFile)) : file(fd);
}

Buffers& Buffers::file_at(int fd, const off_t* at, const iovec* parts, s64 count) {
  if (!host::pages_copied_away()) return *this;
  u64 size = 0;
  for (s64 i = 0; i < std::min(count, kMostParts); ++i) {
    iovec part{};
    const bool read = host::read_struct(Hva(number(parts + i)), &part);
    if (!read || __builtin_add_overflow(size, part.iov_len, &size)) return file(fd);
  }
  return file_at(fd, at, size);
}

Buffers& Buffers::sized(const void* at, const socklen_t* length) {
  socklen_t size = 0;
  value(length);
  if (length == nullptr || !host::read_struct(Hva(number(length)), &size)) size = 0;
  return bytes(at, size);
}

// To the end of the page it ends in.
Buffers& Buffers::text(const char* at) {
  u64 size = 0;
  char piece[64];
  while (at != nullptr && size < PATH_MAX) {
    const u64 got = host::copy_from(piece, Hva(number(at) + size), sizeof(piece));
    size += got;
    if (got != sizeof(piece) || memchr(piece, '\0', sizeof(piece)) != nullptr) break;
  }
  return bytes(at, size);
}

Buffers& Buffers::parts(const iovec* at, s64 count) {
  const s64 known = std::clamp<s64>(count, 0, kMostParts);
  array(at, known);
  for (s64 i = 0; i < known; ++i) {
    iovec part{};
    if (!host::read_struct(Hva(number(at + i)), &part)) break;
    add(part.iov_base, part.iov_len);
  }
  return *this;
}

Buffers& Buffers::remote(pid_t who, const iovec* at, unsigned long count) {
  const bool self = who == sys::getpid() || sys::call(SYS_tgkill, sys::getpid(), who, 0) == 0;
  return self ? parts(at, count) : bytes(at, count * sizeof(iovec));
}

Buffers& Buffers::remote_written(pid_t who, const iovec* at, unsigned long count) {
  if (host::pages_copied_away()) pins_ = true;
  return remote(who, at, count);
}

Buffers& Buffers::traced(int what, const void* data) {
  constexpr int kGetSet = 0x4204;  // PTRACE_GETREGSET, PTRACE_SETREGSET
  constexpr int kPutSet = 0x4205;
  const bool vector = what == kGetSet || what == kPutSet;
  return bytes(data, 512).parts(static_cast<const iovec*>(data), vector ? 1 : 0);
}

Buffers& Buffers::semaphores(int what, unsigned long data) {
  constexpr u64 kMostSemaphores = 32000;  // of a set (kernel file: uapi/linux/sem.h)
  const bool all = what == GETALL || what == SETALL;
  return bytes(reinterpret_cast<const void*>(data), all ? kMostSemaphores * 2 : 128);
}

Buffers& Buffers::texts(char* const* at) {
  constexpr u64 kMost = 1 << 16;
  u64 count = 0;
  const char* one = nullptr;
  while (at != nullptr && count < kMost && host::read_struct(Hva(number(at + count)), &one) &&
         one != nullptr) {
    text(one);
    ++count;
  }
  return bytes(at, at == nullptr ? 0 : (count + 1) * sizeof(char*));
}

Buffers& Buffers::steps(const posix_spawn_file_actions_t* at) {
  posix_spawn_file_actions_t all{};
  value(at);
  if (at == nullptr || !host::read_struct(Hva(number(at)), &all)) return *this;
  array(reinterpret_cast<const SpawnStep*>(all.__actions), all.__used);
  for_each_spawn_step(at, [&](const SpawnStep& step) { text(step.first).text(step.second); });
  return *this;
}

Buffers& Buffers::requests(const iocb* const* at, long count) {
  const s64 known = std::clamp<s64>(count, 0, kMostParts);
  array(at, known);
  for (s64 i = 0; i < known; ++i) {
    const iocb* one = nullptr;
    iocb request{};
    if (!host::read_struct(Hva(number(at + i)), &one)) break;
    value(one);
    if (one == nullptr || !host::read_struct(Hva(number(one)), &request)) break;
    const void* const buffer = reinterpret_cast<const void*>(request.aio_buf);
    const bool vectors =
        request.aio_lio_opcode == IOCB_CMD_PREADV || request.aio_lio_opcode == IOCB_CMD_PWRITEV;
    if (vectors) {
      parts(static_cast<const iovec*>(buffer), static_cast<unsigned long>(request.aio_nbytes));
    } else {
      bytes(buffer, request.aio_nbytes);
    }
    file(static_cast<int>(request.aio_fildes));
  }
  return *this;
}

Buffers& Buffers::own_memory(u64 at, u64 size) {
  if (const auto range = host::pages_of(at, size)) add(*range);
  return *this;
}

Buffers& Buffers::own_memory(u64 at, const iovec* parts, int count) {
  u64 size = 0;
  for (int i = 0; i < std::min<int>(count, kMostParts); ++i) {
    iovec part{};
    if (!host::read_struct(Hva(number(parts + i)), &part)) break;
    size += part.iov_len;
  }
  return own_memory(at, size);
}

u64 offset_of(int fd, const off_t* at) {
  return static_cast<u64>(at != nullptr ? *at : sys::call(SYS_lseek, fd, 0, SEEK_CUR));
}

bool shows_absent_memory(int fd) {
  struct ::stat behind{};
  if (!host::owners_active() || !sys::fstat(fd, &behind)) return false;
  // As a file of /proc looks: nothing in it.
  if (!S_ISREG(behind.st_mode) || behind.st_size != 0 || major(behind.st_dev) != 0) return false;
  FixedString<48> link;
  link.append("/proc/thread-self/fd/").append_int(fd);
  char name[64] = {};
  const long size =
      sys::call(SYS_readlinkat, AT_FDCWD, sys::arg(link.c_str()), sys::arg(name), sizeof(name) - 1);
  FixedString<32> process;
  process.append("/proc/").append_int(sys::getpid()).append_char('/');
  const std::string_view said(name, size > 0 ? static_cast<size_t>(size) : 0);
  return said.starts_with(process.view()) && said.ends_with("/mem");
}

Buffers& Buffers::message(const msghdr* at) {
  msghdr copy{};
  value(at);
  if (at == nullptr || !host::read_struct(Hva(number(at)), &copy)) return *this;
  bytes(copy.msg_control, copy.msg_controllen);
  parts(copy.msg_iov, copy.msg_iovlen);
  return bytes(copy.msg_name, copy.msg_namelen);
}

Buffers& Buffers::messages(const mmsghdr* at, u64 count) {
  const u64 known = std::min<u64>(count, kMostParts);
  bytes(at, known * sizeof(mmsghdr));
  for (u64 i = 0; i < known; ++i) message(&at[i].msg_hdr);
  return *this;
}

}  // namespace stagetwo::shim
