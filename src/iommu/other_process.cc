// SPDX-License-Identifier: Apache-2.0
#include "iommu/other_process.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>

#include <string_view>

#include "base/directory_names.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/process_map.h"
#include "sync/atomic.h"

namespace stagetwo::iommu {
namespace {

Result<int> open_of(u32 pid, std::string_view name) {
  FixedString<64> path;
  path.append("/proc/").append_int(static_cast<s64>(pid)).append(name);
  return sys::openat(AT_FDCWD, path.c_str(), O_RDONLY | O_CLOEXEC);
}

// A number at the front of `text`, which is taken off with the character behind it.
u64 take_number(std::string_view& text, unsigned base) {
  u64 value = 0;
  size_t i = 0;
  for (; i < text.size(); ++i) {
    const char c = text[i];
    const unsigned digit = c >= '0' && c <= '9'   ? static_cast<unsigned>(c - '0')
                           : c >= 'a' && c <= 'f' ? static_cast<unsigned>(c - 'a') + 10
                                                  : base;
    if (digit >= base) break;
    value = value * base + digit;
  }
  text.remove_prefix(i < text.size() ? i + 1 : i);
  return value;
}

// "start-end rwxs offset major:minor inode name": the page at `at`, if the line is about it and the
// memory is shared.
bool parse_line(std::string_view line, Hva at, std::optional<FilePage>* out) {
  const u64 start = take_number(line, 16);
  const u64 end = take_number(line, 16);
  if (at.raw() < start || at.raw() >= end || line.size() < 5) return false;
  const bool shared = line[3] == 's';
  line.remove_prefix(5);
  const u64 offset = take_number(line, 16);
  const u64 major = take_number(line, 16);
  const u64 minor = take_number(line, 16);
  const u64 inode = take_number(line, 10);
  if (shared && inode != 0) {
    *out = FilePage{makedev(static_cast<unsigned>(major), static_cast<unsigned>(minor)), inode,
                    (offset + (at.raw() - start)) / kPageSize};
  }
  return true;
}

}  // namespace

u64 image_of_this_process() {
  static constinit sync::Atomic<u64> image{0};
  u64 number = image.load(sync::kRelaxed);
  if (number != 0) [[likely]]
    return number;
  u64 fresh = 0;
  if (sys::call(SYS_getrandom, sys::arg(&fresh), sizeof(fresh), 0) != sizeof(fresh)) {
    timespec now{};  // a filter that forbids the other one
    static_cast<void>(sys::call(SYS_clock_gettime, CLOCK_MONOTONIC, sys::arg(&now)));
    fresh = static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
  }
  fresh |= 1;  // not 0
  return image.compare_exchange(number, fresh, sync::kRelaxed) ? fresh : number;
}

std::optional<FilePage> shared_page_of(u32 pid, Hva at) {
  const auto fd = open_of(pid, "/maps");
  if (!fd) return std::nullopt;
  std::optional<FilePage> found;
  char buffer[4096];
  size_t kept = 0;
  bool done = false;
  while (!done) {
    const auto got = sys::read(*fd, buffer + kept, sizeof(buffer) - kept);
    if (!got || *got == 0) break;
    std::string_view text(buffer, kept + *got);
    for (size_t end = text.find('\n'); !done && end != std::string_view::npos;
         end = text.find('\n')) {
      done = parse_line(text.substr(0, end), at, &found);
      text.remove_prefix(end + 1);
    }
    // A line longer than the buffer has all its numbers at its beginning.
    kept = text.size() == sizeof(buffer) ? 0 : text.size();
    memmove(buffer, text.data(), kept);
  }
  static_cast<void>(sys::close(*fd));
  return found;
}

bool copy_of_process(u32 pid, Hva at, size_t size, void* to, const void* from) {
  const iovec here{to != nullptr ? to : const_cast<void*>(from), size};
  const iovec there{reinterpret_cast<void*>(at.raw()), size};
  const long number = to != nullptr ? SYS_process_vm_readv : SYS_process_vm_writev;
  const long done = sys::call(number, pid, sys::arg(&here), 1, sys::arg(&there), 1, 0);
  return done == static_cast<long>(size);
}

Result<int> open_of_process(u32 pid, u64 device, u64 inode, int flags) {
  FixedString<48> path;
  path.append("/proc/").append_int(pid).append("/fd");
  const int folder =
      ST_TRY(sys::openat(AT_FDCWD, path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  Result<int> found = refuse(ENOENT);
  DirectoryNames names(folder);
  while (const char* const name = names.next()) {
    struct ::stat behind{};
    const long asked = sys::call(SYS_newfstatat, folder, sys::arg(name), sys::arg(&behind), 0);
    if (asked != 0 || behind.st_ino != inode || behind.st_dev != device) continue;
    found = sys::openat(folder, name, flags | O_CLOEXEC);
    break;
  }
  static_cast<void>(sys::close(folder));
  return found;
}

std::optional<Hva> own_address_of(const FilePage& page) {
  const u64 offset = page.page * kPageSize;
  for (Hva at;;) {
    const auto mapping = host::next_file_mapping(at, true);
    if (!mapping) return std::nullopt;
    const bool same = mapping->device == page.device && mapping->inode == page.inode;
    if (same && offset >= mapping->offset && offset - mapping->offset < mapping->range.size()) {
      return mapping->range.start() + (offset - mapping->offset);
    }
    at = mapping->range.end();
  }
}

}  // namespace stagetwo::iommu
