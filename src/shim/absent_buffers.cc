// SPDX-License-Identifier: Apache-2.0
#include "shim/absent_buffers.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/sys.h"
#include "host/access.h"
#include "host/change.h"

namespace stagetwo::shim {
namespace {

constexpr u64 kWholeFile = u64{1} << 62;

u64 number(const void* at) {
  return reinterpret_cast<u64>(at);
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
  for (HvaRange& range : ranges_) range = HvaRange();
}

void Buffers::add(const void* at, u64 size) {
  if (!host::kernel_meets_hidden_pages()) return;
  const auto range = host::pages_of(number(at), size);
  if (!range) return;
  const unsigned place = std::min(used_++, kPlaces - 1);
  if (fetching_) {
    fetched_ += held_[place].fetch(*range);
  } else {
    ranges_[place] = ranges_[place].empty() ? *range : hull(ranges_[place], *range);
  }
}

void Buffers::hold() {
  for (unsigned i = 0; i < kPlaces; ++i) {
    if (!ranges_[i].empty()) held_[i].hold(ranges_[i]);
  }
}

bool Buffers::all_held() const {
  for (unsigned i = 0; i < kPlaces; ++i) {
    if (!ranges_[i].empty() && !held_[i].holds()) return false;
  }
  return true;
}

Buffers& Buffers::bytes(const void* at, u64 size) {
  add(at, size);
  return *this;
}

Buffers& Buffers::file(int fd, const off_t* at, u64 size) {
  if (!host::shared_pages_taken() || used_files_ == kFiles) return *this;
  host::HeldPages& held = files_[used_files_++];
  if (fetching_) {
    lost_ = !held.fetch_file() || lost_;
    return *this;
  }
  // Who appends writes at the end, whatever it asked for.
  const auto flags = sys::fcntl(fd, F_GETFL);
  const bool appends = flags && (*flags & O_APPEND) != 0;
  const long from = appends ? 0 : at != nullptr ? *at : sys::call(SYS_lseek, fd, 0, SEEK_CUR);
  if (from >= 0) held.hold_file(fd, static_cast<u64>(from), appends ? kWholeFile : size);
  return *this;
}

Buffers& Buffers::file(int fd) {
  constexpr off_t kStart = 0;
  return file(fd, &kStart, kWholeFile);
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
