// SPDX-License-Identifier: Apache-2.0
#include "shim/virtual_io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio_ext.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

#include "base/sys.h"
#include "base/text.h"
#include "host/session.h"
#include "shim/engine.h"
#include "shim/frame_files.h"
#include "shim/mdev_files.h"
#include "shim/next.h"
#include "shim/options.h"
#include "sync/mutex.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
namespace {

constexpr size_t kTakenAtOnce = 4096;

struct Open {
  dev_t device = 0;
  ino_t inode = 0;
  VirtualFile file;
};

// What is behind a descriptor, by identity, so that dup and fork need no help. A file of the
// session has one identity for good; without a session each open has its own, and the oldest is
// forgotten.
constinit sync::Mutex table_lock{sync::Rank::kLeaf};
constinit std::array<Open, 32> table{};
size_t table_next = 0;
constinit sync::Atomic<bool> any_open{false};

void note_open(int fd, const VirtualFile& file) {
  struct ::stat behind{};
  if (!sys::fstat(fd, &behind)) return;
  const sync::MutexGuard guard(table_lock);
  for (Open& row : table) {
    if (row.file && row.device == behind.st_dev && row.inode == behind.st_ino) {
      row.file = file;
      return;
    }
  }
  table[table_next++ % table.size()] = {behind.st_dev, behind.st_ino, file};
  any_open.store(true, sync::kRelaxed);
}

// A second description of what is behind `fd`, with the client's access mode, close-on-exec as it
// asked. Post: `fd` is closed.
Result<int> as_clients(int fd, int flags) {
  FixedString<48> path;
  path.append("/proc/thread-self/fd/").append_int(fd);
  constexpr int kKept = O_ACCMODE | O_CLOEXEC | O_NONBLOCK | O_APPEND;
  const auto opened = sys::openat(AT_FDCWD, path.c_str(), flags & kKept);
  static_cast<void>(sys::close(fd));
  return opened;
}

Result<int> make_memory_file(const char* name) {
  const int made = ST_TRY(sys::memfd_create(name, MFD_CLOEXEC));
  return sys::raise_engine_fd(made);
}

Result<int> open_text(const VirtualFile& file, int flags) {
  const sync::PassingNumber passing;
  FixedString<kLongestVirtualText> text;
  show(file, text);
  const int backing = ST_TRY(make_memory_file("sysfs"));
  if (const auto written = sys::write(backing, text.data(), text.size()); !written) {
    static_cast<void>(sys::close(backing));
    return refuse(written.error());
  }
  return as_clients(backing, flags);
}

// The session's file that writes of `file` are appended to.
Result<int> open_appended(const VirtualFile& file, int flags) {
  FixedString<32> name("appended-");
  name.append_int(file.number());
  return host::open_in_session(name.view(), flags);
}

Result<int> open_to_write(const VirtualFile& file, int flags) {
  const auto shared = open_appended(file, O_RDWR | O_CREAT);
  const int backing = shared ? *shared : ST_TRY(make_memory_file("sysfs"));
  const int opened = ST_TRY(as_clients(backing, flags | O_APPEND));
  note_open(opened, file);
  return opened;
}

// The lines of `text` are writes; the last one may lack its newline.
int store_lines(const VirtualFile& file, std::string_view text) {
  int error = 0;
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    const size_t length = newline == std::string_view::npos ? text.size() : newline + 1;
    error = store(file, text.substr(0, length));
    text.remove_prefix(length);
  }
  return error;
}

// What was appended: by one write that was seen, or by writes that were not, whose lines it is.
enum class By { kOneWrite, kUnseen };

int store_text(const VirtualFile& file, std::string_view text, By by) {
  return by == By::kOneWrite ? store(file, text) : store_lines(file, text);
}

// What the bus is written has locks of its own, and is stored without the session's.
struct Later {
  FixedString<kTakenAtOnce> unseen, write;
};

// Pre: SessionLock held. `fd` reads what was appended; the word says how much is taken.
int take_from(int fd, const VirtualFile& file, sync::Atomic<u64>& taken, By by, Later& later) {
  struct ::stat behind{};
  if (!sys::fstat(fd, &behind)) return 0;
  const u64 size = static_cast<u64>(behind.st_size);
  u64 from = taken.load(sync::kRelaxed);
  if (size < from) from = 0;
  int error = 0;
  char buffer[kTakenAtOnce];
  while (from < size) {
    const auto got = sys::pread(fd, buffer, sizeof(buffer), static_cast<off_t>(from));
    if (!got || *got == 0) break;
    if (file.of_bus()) {
      (by == By::kOneWrite ? later.write : later.unseen).append({buffer, *got});
    } else {
      error = store_text(file, {buffer, *got}, by);
    }
    from += *got;
  }
  taken.store(size, sync::kRelaxed);
  return error;
}

sync::Atomic<u64>& taken_word(const VirtualFile& file) {
  return host::session_word(host::kAppendedWords + file.number());
}

// Answers the write's error, if there was one. Context: no lock.
int store_later(const VirtualFile& file, const Later& later) {
  const int unseen = store_lines(file, later.unseen.view());
  return later.write.empty() ? unseen : store(file, later.write.view());
}

// A write we see. Behind `fd` is a file of the session, or without one a memfd of this open. The
// kernel copies, so a bad pointer is its EFAULT.
long write_locked(int fd, const VirtualFile& file, const iovec* parts, int count, Later& later) {
  const sync::PassingNumber passing;
  const host::SessionLock lock;
  const auto shared = open_appended(file, O_RDONLY);
  if (shared) {  // what came before
    static_cast<void>(take_from(*shared, file, taken_word(file), By::kUnseen, later));
  }
  const long written = sys::call(SYS_writev, fd, sys::arg(parts), count);
  int error = 0;
  if (written > 0 && shared) {
    error = take_from(*shared, file, taken_word(file), By::kOneWrite, later);
  } else if (const auto own = sys::reopen_engine_fd(fd, O_RDWR); written > 0 && own) {
    sync::Atomic<u64> none{0};
    error = take_from(*own, file, none, By::kOneWrite, later);
    static_cast<void>(sys::ftruncate(*own, 0));
    static_cast<void>(sys::close(*own));
  }
  if (shared) static_cast<void>(sys::close(*shared));
  return error == 0 ? written : -error;
}

long write_now(int fd, const VirtualFile& file, const iovec* parts, int count) {
  Later later;
  const long written = write_locked(fd, file, parts, count, later);
  const int error = store_later(file, later);
  return error == 0 || written <= 0 ? written : -error;
}

// Of a descriptor open for reading and writing: the text as it is now.
long read_now(int fd, const VirtualFile& file, const iovec* parts, int count, const off_t* at) {
  FixedString<kLongestVirtualText> text;
  show(file, text);
  const off_t from = at != nullptr ? *at : next::lseek(fd, 0, SEEK_CUR);
  if (from < 0) return -EINVAL;
  size_t position =
      static_cast<size_t>(from) < text.size() ? static_cast<size_t>(from) : text.size();
  const size_t start = position;
  for (int i = 0; i < count; ++i) {
    char* const out = static_cast<char*>(parts[i].iov_base);
    for (size_t n = 0; n < parts[i].iov_len && position < text.size(); ++n) {
      out[n] = text.data()[position++];
    }
  }
  const size_t moved = position - start;
  if (at == nullptr) next::lseek(fd, from + static_cast<off_t>(moved), SEEK_SET);
  return static_cast<long>(moved);
}

// Part by part, as the kernel's loop does for files without a vector form.
bool io_by_call(const VirtualFile& file, int fd, Io io, const iovec* parts, int count,
                const off_t* at, long* answer) {
  long moved = 0;
  for (int i = 0; i < count; ++i) {
    const off_t there = at == nullptr ? 0 : *at + moved;
    long part = 0;
    const off_t* const place = at == nullptr ? nullptr : &there;
    const bool ours =
        file.source == Source::kPciConfig
            ? config_io(file, fd, io, parts[i].iov_base, parts[i].iov_len, place, &part)
            : frame_file_io(file.source, fd, io, parts[i].iov_base, parts[i].iov_len, place, &part);
    if (!ours) return false;
    if (part < 0) {
      *answer = moved != 0 ? moved : part;
      return true;
    }
    moved += part;
    if (static_cast<size_t>(part) != parts[i].iov_len) break;
  }
  *answer = moved;
  return true;
}

}  // namespace

Result<int> open_virtual(const VirtualFile& file, int flags) {
  const int access = flags & O_ACCMODE;
  const bool writes = access != O_RDONLY;
  if (file.source == Source::kPagemap && writes) return refuse(EACCES);
  if (file.is_by_call()) {
    const int opened = ST_TRY(open_frame_file(file.source, flags));
    note_open(opened, file);
    return opened;
  }
  // The bus is the session's, and so its user's.
  const bool allowed = file.of_bus() || geteuid() == 0;
  if (writes && ((file.mode() & 0222) == 0 || !allowed)) return refuse(EACCES);
  enter_session();
  take_appended(file);
  return writes ? open_to_write(file, flags) : open_text(file, flags);
}

void note_virtual(int fd, const VirtualFile& file) {
  note_open(fd, file);
}

bool any_virtual_io() {
  return any_open.load(sync::kRelaxed);
}

VirtualFile virtual_behind(int fd) {
  struct ::stat behind{};
  if (fd < 0 || !sys::fstat(fd, &behind)) return {};
  const sync::MutexGuard guard(table_lock);
  for (const Open& row : table) {
    if (row.file && row.device == behind.st_dev && row.inode == behind.st_ino) return row.file;
  }
  return {};
}

bool virtual_io(int fd, Io io, const iovec* parts, int count, const off_t* at, ssize_t* result) {
  if (!any_virtual_io()) [[likely]]
    return false;
  const VirtualFile file = virtual_behind(fd);
  if (!file) return false;
  const auto flags = sys::fcntl(fd, F_GETFL);
  const int access = flags ? static_cast<int>(*flags) & O_ACCMODE : O_RDWR;
  if (access == (io == Io::kRead ? O_WRONLY : O_RDONLY)) return false;  // the kernel's EBADF
  long answer = 0;
  if (file.is_by_call()) {
    if (!io_by_call(file, fd, io, parts, count, at, &answer)) return false;
  } else {
    answer =
        io == Io::kRead ? read_now(fd, file, parts, count, at) : write_now(fd, file, parts, count);
  }
  *result = as_libc(answer);
  return true;
}

namespace {

int take_appended_by(const VirtualFile& file, By by) {
  if (file.source != Source::kParameter && file.source != Source::kPool && !file.of_bus()) return 0;
  Later later;
  int error = 0;
  {
    const sync::PassingNumber passing;
    const host::SessionLock lock;
    const auto fd = open_appended(file, O_RDONLY);
    if (!fd) return 0;
    error = take_from(*fd, file, taken_word(file), by, later);
    static_cast<void>(sys::close(*fd));
  }
  return file.of_bus() ? store_later(file, later) : error;
}

}  // namespace

int take_appended(const VirtualFile& file) {
  return take_appended_by(file, By::kUnseen);
}

void take_all_appended() {
  for (unsigned number = 0; number < kMaxVirtualFiles; ++number) {
    if (const VirtualFile file = written_file(number)) static_cast<void>(take_appended(file));
  }
}

// A stream is flushed by one write of its buffer; one without, or by lines, has written already.
int flush_stream(FILE* stream) {
  if (!any_virtual_io() || stream == nullptr) return next::fflush(stream);
  const VirtualFile file = virtual_behind(fileno(stream));
  const bool one_write = __flbf(stream) == 0 && __fpending(stream) != 0;
  if (file && one_write) static_cast<void>(take_appended(file));  // what came before
  const int result = next::fflush(stream);
  if (!file || result != 0) return result;
  const int error = take_appended_by(file, one_write ? By::kOneWrite : By::kUnseen);
  if (error == 0) return result;
  stream->_flags |= _IO_ERR_SEEN;  // as if write(2) had refused it
  errno = error;
  return EOF;
}

namespace {

int number_in(void* cookie) {
  return static_cast<int>(reinterpret_cast<intptr_t>(cookie));
}
ssize_t cookie_read(void* cookie, char* to, size_t size) {
  ssize_t done = 0;
  const int fd = number_in(cookie);
  return virtual_io(fd, Io::kRead, to, size, nullptr, &done) ? done : next::read(fd, to, size);
}
ssize_t cookie_write(void* cookie, const char* from, size_t size) {
  ssize_t done = 0;
  const int fd = number_in(cookie);
  if (!virtual_io(fd, Io::kWrite, from, size, nullptr, &done)) done = next::write(fd, from, size);
  return done < 0 ? 0 : done;  // libc takes nothing written for an error
}
int cookie_seek(void* cookie, off64_t* offset, int whence) {
  const off_t at = next::lseek(number_in(cookie), *offset, whence);
  if (at >= 0) *offset = at;
  return at >= 0 ? 0 : -1;
}
int cookie_close(void* cookie) {
  return next::close(number_in(cookie));
}

// As fdopen refuses a mode that the descriptor does not allow.
bool allows(int fd, const char* mode) {
  const auto flags = sys::fcntl(fd, F_GETFL);
  const int access = flags ? static_cast<int>(*flags) & O_ACCMODE : O_RDWR;
  const bool both = strchr(mode, '+') != nullptr;
  return access == O_RDWR || (!both && (access == O_RDONLY) == (mode[0] == 'r'));
}

}  // namespace

FILE* stream_on(int fd, const char* mode) {
  if (!any_virtual_io() || !virtual_behind(fd).is_by_call()) return next::fdopen(fd, mode);
  if (!allows(fd, mode)) {
    errno = EINVAL;
    return nullptr;
  }
  void* const cookie = reinterpret_cast<void*>(intptr_t{fd});
  FILE* const stream =
      fopencookie(cookie, mode, {cookie_read, cookie_write, cookie_seek, cookie_close});
  if (stream != nullptr) stream->_fileno = fd;
  return stream;
}

}  // namespace stagetwo::shim
