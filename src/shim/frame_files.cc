// SPDX-License-Identifier: Apache-2.0
#include "shim/frame_files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "base/sys.h"
#include "base/text.h"
#include "host/access.h"
#include "host/change.h"
#include "host/mmu_notifier.h"
#include "host/page_idle.h"
#include "host/run_section.h"
#include "reclaim/reclaim.h"
#include "shim/engine.h"
#include "shim/next.h"
#include "sync/mutex.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
namespace {

constexpr size_t kEntry = sizeof(u64);
constexpr u64 kPresent = u64{1} << 63;
constexpr u64 kSwapped = u64{1} << 62;
constexpr u64 kFrameMask = (u64{1} << 55) - 1;
constexpr const char* kRealBitmap = "/sys/kernel/mm/page_idle/bitmap";

// An empty file behind every open of the bitmap: a descriptor with a position, and one identity.
constinit sync::Mutex backing_lock{sync::Rank::kLeaf};
int backing = -1;

Result<int> open_backing(int flags) {
  const sync::PassingNumber passing;
  if (backing < 0) {
    const int made = ST_TRY(sys::memfd_create("page_idle", MFD_CLOEXEC));
    backing = ST_TRY(sys::raise_engine_fd(made));
  }
  FixedString<48> path;
  path.append("/proc/thread-self/fd/").append_int(backing);
  const auto opened =
      sys::openat(AT_FDCWD, path.c_str(), flags & (O_ACCMODE | O_CLOEXEC | O_NONBLOCK));
  if (!opened) backing = -1;
  return opened;
}

// A word of the machine's own bitmap. False: there is none, or it may not be used.
bool real_bitmap(Io io, off_t at, u64* word) {
  const int flags = (io == Io::kRead ? O_RDONLY : O_WRONLY) | O_CLOEXEC;
  const sync::PassingNumber passing;
  const auto fd = sys::openat(AT_FDCWD, kRealBitmap, flags);
  if (!fd) return false;
  const auto moved =
      io == Io::kRead ? sys::pread(*fd, word, kEntry, at) : sys::pwrite(*fd, word, kEntry, at);
  static_cast<void>(sys::close(*fd));
  return moved && *moved == kEntry;
}

u64 read_word(u64 first_frame) {
  using namespace host::page_idle;
  if (first_frame >= kFirstFrame) return host::page_idle::read_word(first_frame);
  u64 word = 0;
  return real_bitmap(Io::kRead, static_cast<off_t>(first_frame / 8), &word) ? word : 0;
}

void write_word(u64 first_frame, u64 bits) {
  using namespace host::page_idle;
  if (bits == 0) return;
  if (first_frame >= kFirstFrame) return host::page_idle::write_word(first_frame, bits);
  static_cast<void>(real_bitmap(Io::kWrite, static_cast<off_t>(first_frame / 8), &bits));
}

// The kernel's checks and its ends: whole words only, nothing behind the last frame.
long bitmap_io(Io io, void* buffer, size_t size, u64 from) {
  constexpr u64 kEnd = host::page_idle::kEndFrame / 8;
  if (from % kEntry != 0 || size % kEntry != 0) return -EINVAL;
  if (from >= kEnd) return io == Io::kRead ? 0 : -ENXIO;
  const size_t count = std::min<u64>(size, kEnd - from);
  for (size_t done = 0; done < count; done += kEntry) {
    const Hva at(reinterpret_cast<u64>(buffer) + done);
    const u64 frame = (from + done) * 8;
    u64 word = 0;
    bool moved = false;
    if (io == Io::kRead) {
      word = read_word(frame);
      moved = host::copy_to(at, &word, kEntry) == kEntry;
    } else {
      moved = host::copy_from(&word, at, kEntry) == kEntry;
      if (moved) write_word(frame, word);
    }
    if (!moved) return done != 0 ? static_cast<long>(done) : -EFAULT;
  }
  return static_cast<long>(count);
}

// What the kernel read into the client's buffer, from entry `first` on: pages that are borrowed get
// their frames of ours, those that a limit of memory took away for a while as well.
void name_frames(void* buffer, size_t bytes, u64 first) {
  for (size_t done = 0; done + kEntry <= bytes; done += kEntry) {
    const Hva at(reinterpret_cast<u64>(buffer) + done);
    const Hva page((first + done / kEntry) << kPageShift);
    u64 entry = 0;
    if (!host::load(at, &entry) || !host::is_user_range(page, kPageSize)) continue;
    if ((entry & kPresent) == 0 && !reclaim::keeps(page)) continue;
    if (!host::borrows({page, kPageSize})) continue;
    entry = (entry & ~(kFrameMask | kSwapped)) | kPresent | host::page_idle::frame_of(page);
    static_cast<void>(host::store(at, entry));
  }
}

// The kernel's choice 4 of clear_refs; it looks at so many bytes of what is written.
constexpr size_t kClearRefsBytes = 12;
bool is_soft_dirty(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return false;
  text = text.substr(first, text.find_last_not_of(kSpace) + 1 - first);
  const auto choice = parse_kernel_unsigned(text, ~u64{0}, 10);
  return choice && *choice == 4;
}

// False: the kernel does it alone, a bad pointer included.
bool clear_refs(int fd, const void* buffer, size_t size, long* answer) {
  char text[kClearRefsBytes];
  const size_t count = std::min(size, sizeof(text));
  if (host::copy_from(text, Hva(reinterpret_cast<u64>(buffer)), count) != count) return false;
  if (!is_soft_dirty({text, count})) return false;
  const auto done = host::clear_soft_dirty([&] { return sys::write(fd, text, count); });
  *answer = done ? static_cast<long>(*done) : -static_cast<long>(to_int(done.error()));
  return true;
}

}  // namespace

Result<int> open_frame_file(Source source, int flags) {
  constexpr int kKept = O_CLOEXEC | O_NONBLOCK;
  if (source == Source::kClearRefs) {
    return sys::openat(AT_FDCWD, "/proc/self/clear_refs", flags & (kKept | O_ACCMODE));
  }
  if (source == Source::kPagemap) {
    return sys::openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY | (flags & kKept));
  }
  const sync::MutexGuard guard(backing_lock);
  const auto opened = open_backing(flags);
  if (opened || to_int(opened.error()) != ENOENT) return opened;
  return open_backing(flags);  // the client has closed every number, ours with them
}

bool frame_file_io(Source source, int fd, Io io, void* buffer, size_t size, const off_t* at,
                   long* answer) {
  if (source == Source::kPagemap && io == Io::kWrite) return false;
  if (source == Source::kClearRefs) {
    if (io == Io::kRead) return false;
    const host::EngineSection section(host::Touches::kClientMemory);
    return clear_refs(fd, buffer, size, answer);
  }
  const off_t from = at != nullptr ? *at : next::lseek(fd, 0, SEEK_CUR);
  if (from < 0 || !wake()) return false;
  host::EngineSection section(host::Touches::kClientMemory);
  if (source == Source::kPagemap) {
    const auto got = sys::pread(fd, buffer, size, from);
    *answer = got ? static_cast<long>(*got) : -static_cast<long>(to_int(got.error()));
    if (got) name_frames(buffer, *got, static_cast<u64>(from) / kEntry);
  } else {
    *answer = bitmap_io(io, buffer, size, static_cast<u64>(from));
  }
  section.leave();
  if (at == nullptr && *answer > 0) next::lseek(fd, from + *answer, SEEK_SET);
  return true;
}

}  // namespace stagetwo::shim
