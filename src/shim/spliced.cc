// SPDX-License-Identifier: Apache-2.0
#include "shim/spliced.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "base/sys.h"
#include "host/access.h"
#include "host/run_section.h"
#include "shim/absent_buffers.h"
#include "shim/behind.h"
#include "shim/next.h"
#include "shim/virtual_io.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
namespace {

constexpr size_t kPage = 4096;

// A descriptor of ours for as long as it is in use.
class Scratch {
 public:
  explicit Scratch(int fd) : fd_(fd) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { static_cast<void>(sys::close(fd_)); }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

Result<int> memory_file() {
  const sync::PassingNumber passing;
  return sys::raise_engine_fd(ST_TRY(sys::memfd_create("spliced", MFD_CLOEXEC)));
}

Result<void> open_pipe(int (&ends)[2]) {
  const sync::PassingNumber passing;
  ST_TRY(sys::checked(sys::call(SYS_pipe2, sys::arg(ends), O_CLOEXEC | O_NONBLOCK)));
  for (int& end : ends) {
    if (const auto raised = sys::raise_engine_fd(end)) end = *raised;
  }
  return {};
}

// What is behind `fd`, if what is spliced there is written. Those of proc that speak of this
// process's pages have no such operation.
VirtualFile written_behind(int fd) {
  if (!any_virtual_io()) [[likely]]
    return {};
  const VirtualFile file = virtual_behind(fd);
  const bool takes = file && file.source != Source::kPagemap && file.source != Source::kClearRefs;
  return takes ? file : VirtualFile{};
}

// The place in the target, if the caller names one.
class Place {
 public:
  explicit Place(off_t* client) : client_(client) {
    if (client == nullptr) return;
    const host::EngineSection section(host::Touches::kClientMemory);
    readable_ = host::load(Hva(reinterpret_cast<u64>(client)), &at_);
  }
  [[nodiscard]] bool readable() const { return readable_; }
  [[nodiscard]] const off_t* at() const { return client_ != nullptr ? &at_ : nullptr; }
  void advance(ssize_t by) { at_ += by; }
  [[nodiscard]] bool told() const {
    if (client_ == nullptr) return true;
    const host::EngineSection section(host::Touches::kClientMemory);
    return host::store(Hva(reinterpret_cast<u64>(client_)), at_);
  }

 private:
  off_t* client_;
  off_t at_ = 0;
  bool readable_ = true;
};

// Of the file at `from`: what is not written after all is to be read again.
void give_back(int from, off_t* at, ssize_t count) {
  if (at != nullptr) {
    *at -= count;  // the kernel has just written there
  } else {
    next::lseek(from, -count, SEEK_CUR);
  }
}

ssize_t send_to_virtual(int to, int from, off_t* at, size_t size) {
  const auto made = memory_file();
  if (!made) return as_libc(-ENOMEM);
  const Scratch scratch(*made);
  ssize_t moved = 0;
  for (;;) {
    // The kernel says whether there can be read, and how far.
    const ssize_t got =
        next::sendfile(scratch.get(), from, at, std::min(size - static_cast<size_t>(moved), kPage));
    if (got <= 0) return moved != 0 ? moved : got;
    char bytes[kPage];
    const auto have = sys::pread(scratch.get(), bytes, static_cast<size_t>(got), moved);
    ssize_t written = 0;
    if (!have || !virtual_io(to, Io::kWrite, bytes, *have, nullptr, &written)) {
      written = as_libc(-EINVAL);
    }
    const int error = errno;
    if (written < got) give_back(from, at, got - std::max<ssize_t>(written, 0));
    errno = error;
    if (written < 0) return moved != 0 ? moved : -1;
    moved += written;
    if (written < got || static_cast<size_t>(moved) == size) return moved;
  }
}

// A page's bytes of the pipe, which stay in it; as a write. 0: there are none and will be none.
ssize_t write_from_pipe(int from, int to, const off_t* at, size_t size, unsigned flags) {
  int ends[2];
  if (!open_pipe(ends)) return as_libc(-ENOMEM);
  const Scratch out(ends[0]), in(ends[1]);
  char bytes[kPage];
  const long copied =
      sys::call(SYS_tee, from, in.get(), static_cast<long>(std::min(size, kPage)), flags);
  if (copied <= 0) return as_libc(copied);
  const auto have = sys::read(out.get(), bytes, static_cast<size_t>(copied));
  ssize_t written = 0;
  if (!have || !virtual_io(to, Io::kWrite, bytes, *have, at, &written)) written = as_libc(-EINVAL);
  if (written <= 0) return written;
  static_cast<void>(sys::read(from, bytes, static_cast<size_t>(written)));
  return written;
}

ssize_t splice_to_virtual(int from, int to, off_t* to_at, size_t size, unsigned flags) {
  Place place(to_at);
  if (!place.readable()) return as_libc(-EFAULT);
  ssize_t moved = 0;
  while (static_cast<size_t>(moved) < size) {
    // Only the first bytes are waited for.
    const unsigned waits = moved == 0 ? flags : flags | SPLICE_F_NONBLOCK;
    const ssize_t written =
        write_from_pipe(from, to, place.at(), size - static_cast<size_t>(moved), waits);
    if (written <= 0 && moved == 0) return written;
    if (written <= 0) break;
    moved += written;
    place.advance(written);
  }
  return place.told() ? moved : as_libc(-EFAULT);
}

bool is_pipe(int fd) {
  struct ::stat behind{};
  return sys::fstat(fd, &behind) && S_ISFIFO(behind.st_mode);
}

bool is_written(int fd) {
  const auto flags = sys::fcntl(fd, F_GETFL);
  return flags && (static_cast<int>(*flags) & O_ACCMODE) != O_RDONLY;
}

}  // namespace

ssize_t send_file(int to, int from, off_t* at, size_t size) {
  if (transfer_refused(from, to)) return -1;
  const Asked target(to), source(from);
  const bool ours = written_behind(to) && is_written(to);
  return with_buffers([&](Buffers& b) { b.value(at).file_at(from, at, size).file(to); },
                      [&] {
                        return ours ? send_to_virtual(to, source, at, size)
                                    : next::sendfile(target, source, at, size);
                      });
}

ssize_t splice_bytes(int from, off_t* from_at, int to, off_t* to_at, size_t size, unsigned flags) {
  if (transfer_refused(from, to)) return -1;
  constexpr unsigned kKnown = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT;
  const Asked source(from), target(to);
  // What else the kernel refuses it refuses by itself, before it looks at the target's kind.
  const bool ours = written_behind(to) && is_written(to) && is_pipe(from) && from_at == nullptr &&
                    (flags & ~kKnown) == 0;
  return with_buffers(
      [&](Buffers& b) {
        b.value(from_at).value(to_at).file_at(from, from_at, size).file_at(to, to_at, size);
      },
      [&] {
        return ours ? splice_to_virtual(from, to, to_at, size, flags)
                    : next::splice(source, from_at, target, to_at, size, flags);
      });
}

}  // namespace stagetwo::shim
