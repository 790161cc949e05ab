// SPDX-License-Identifier: Apache-2.0
#include "host/process_map.h"

#include <algorithm>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <string_view>

#include "base/sys.h"
#include "host/kept_fd.h"
#include "host/owned_change.h"
#include "host/page_owner.h"
#include "host/proc_ioctls_internal.h"
#include "host/process_files.h"
#include "sync/atomic.h"
#include "sync/passing_number.h"

namespace stagetwo::host {
namespace {

constexpr u64 kReadable = 1, kWritable = 2, kExecutable = 4, kShared = 8;
constexpr u64 kThisOrNext = 16, kOfFile = 32;

// Bits of a word of /proc/self/pagemap.
constexpr u64 kEntryPresent = u64{1} << 63;
constexpr u64 kEntrySwapped = u64{1} << 62;
constexpr u64 kEntryFile = u64{1} << 61;
constexpr u64 kEntryExclusive = u64{1} << 56;
constexpr u64 kEntryProtected = u64{1} << 57;  // by a userfaultfd, Linux 5.13

constexpr u64 kHugePage = u64{1} << 21;

// Set once by whoever finds out; every finder finds the same.
constinit sync::Atomic<bool> without_query{false};

Result<Mapping> by_query(Hva at, u64 flags) {
  ProcmapQuery query{};
  query.size = sizeof(query);
  query.flags = flags;
  query.address = at.raw();
  const FdUse maps = ST_TRY(maps_file());
  const auto asked = sys::ioctl(maps.get(), kProcmapQuery, reinterpret_cast<u64>(&query));
  if (!asked) return refuse(asked.error());
  Mapping found;
  found.range = HvaRange(Hva(query.start), query.end - query.start);
  found.prot = {(query.vma_flags & kReadable) != 0, (query.vma_flags & kWritable) != 0,
                (query.vma_flags & kExecutable) != 0};
  found.shared = (query.vma_flags & kShared) != 0;
  found.file_backed = query.inode != 0;
  found.page_size = query.page_size;
  found.device = ::makedev(query.device_major, query.device_minor);
  found.inode = query.inode;
  found.offset = query.offset;
  return found;
}

bool take_number(std::string_view* text, unsigned base, u64* out) {
  u64 value = 0;
  size_t n = 0;
  for (; n < text->size(); ++n) {
    const char c = (*text)[n];
    const unsigned digit = c >= '0' && c <= '9'   ? static_cast<unsigned>(c - '0')
                           : c >= 'a' && c <= 'f' ? static_cast<unsigned>(c - 'a') + 10
                                                  : 16;
    if (digit >= base) break;
    value = value * base + digit;
  }
  text->remove_prefix(n);
  *out = value;
  return n != 0;
}

bool skip(std::string_view* text, char wanted) {
  if (!text->starts_with(wanted)) return false;
  text->remove_prefix(1);
  return true;
}

// What the kernel maps for itself: [vdso], [vvar] and its like. A client's names have a colon.
bool is_the_kernels(std::string_view name) {
  return name.starts_with("[vdso]") || name.starts_with("[vvar") || name.starts_with("[uprobes]");
}

// A file of a client's may be called so, too: then it is taken for one.
KernelRing ring_named(std::string_view name) {
  if (name.starts_with("anon_inode:[io_uring]")) return KernelRing::kIoUring;
  return name.starts_with("/[aio]") ? KernelRing::kIoContext : KernelRing::kNone;
}

// "start-end rwxp offset major:minor inode   path"
bool parse_line(std::string_view line, Mapping* out) {
  u64 start = 0, end = 0, major = 0, minor = 0;
  if (!take_number(&line, 16, &start) || !skip(&line, '-')) return false;
  if (!take_number(&line, 16, &end) || !skip(&line, ' ') || line.size() < 5) return false;
  *out = {};
  out->range = HvaRange(Hva(start), end - start);
  out->prot = {line[0] == 'r', line[1] == 'w', line[2] == 'x'};
  out->shared = line[3] == 's';
  line.remove_prefix(5);
  if (!take_number(&line, 16, &out->offset) || !skip(&line, ' ')) return false;
  if (!take_number(&line, 16, &major) || !skip(&line, ':')) return false;
  if (!take_number(&line, 16, &minor) || !skip(&line, ' ')) return false;
  if (!take_number(&line, 10, &out->inode)) return false;
  out->device = ::makedev(static_cast<unsigned>(major), static_cast<unsigned>(minor));
  out->file_backed = out->inode != 0;
  const size_t name = line.find_first_not_of(' ');
  if (name != std::string_view::npos) {
    out->special = is_the_kernels(line.substr(name));
    out->ring = ring_named(line.substr(name));
  }
  // The only kind of memory with pages of its own size that a client makes without a file system.
  if (line.find("/anon_hugepage") != std::string_view::npos) out->page_size = kHugePage;
  return true;
}

// The first one that `wanted` accepts; the lines are in order of address.
template <typename F>
Result<Mapping> by_text(F&& wanted) {
  const sync::PassingNumber passing;
  const int fd = ST_TRY(open_proc("/proc/self/maps", O_RDONLY | O_CLOEXEC));
  char buffer[4096];
  size_t held = 0;
  Result<Mapping> found = refuse(EFAULT);
  for (bool over = false; !over;) {
    const auto got = sys::read(fd, buffer + held, sizeof(buffer) - held);
    if (!got) found = refuse(got.error());
    if (!got || *got == 0) break;
    held += *got;
    std::string_view text(buffer, held);
    for (size_t end = text.find('\n'); end != std::string_view::npos && !over;
         end = text.find('\n')) {
      Mapping line;
      if (parse_line(text.substr(0, end), &line) && wanted(line)) {
        over = true;
        found = line;
      }
      text.remove_prefix(end + 1);
    }
    if (text.size() == sizeof(buffer)) text = {};  // no line of ours is that long
    for (size_t i = 0; i < text.size(); ++i) buffer[i] = text[i];
    held = text.size();
  }
  static_cast<void>(sys::close(fd));
  return found;
}

}  // namespace

namespace {

// `flags` and `wanted` say the same.
template <typename F>
Result<Mapping> look_up(Hva at, u64 flags, F&& wanted) {
  if (!without_query.load(sync::kRelaxed)) {
    const auto found = by_query(at, flags);
    if (found) return found;
    if (to_int(found.error()) == ENOENT) return refuse(EFAULT);
    without_query.store(true, sync::kRelaxed);
  }
  return by_text(wanted);
}

}  // namespace

Result<Mapping> shown_mapping_at(Hva at) {
  return look_up(at, 0, [&](const Mapping& line) { return line.range.contains(at); });
}

Result<Mapping> shown_mapping_from(Hva at) {
  return look_up(at, kThisOrNext, [&](const Mapping& line) { return line.range.end() > at; });
}

u64 in_one_mapping(Hva at, u64 bytes) {
  const auto first = shown_mapping_at(at);
  return std::min(bytes, first ? first->range.end() - at : kPageSize);
}

Result<Mapping> next_file_mapping(Hva at, bool shared) {
  const u64 flags = kThisOrNext | kOfFile | (shared ? kShared : 0);
  return look_up(at, flags, [&](const Mapping& line) {
    return line.range.end() > at && line.file_backed && (line.shared || !shared);
  });
}

namespace {

// What is said of the mapping that covers `at`: by its name, or by the line of text about it.
template <typename N, typename L>
auto by_name_at(Hva at, N&& of_name, L&& of_line) -> decltype(of_name(std::string_view())) {
  const auto fd = maps_file();
  char name[32];
  ProcmapQuery query{};
  query.size = sizeof(query);
  query.address = at.raw();
  query.name_size = sizeof(name);
  query.name = reinterpret_cast<u64>(name);
  const auto asked = fd ? sys::ioctl(fd->get(), kProcmapQuery, reinterpret_cast<u64>(&query))
                        : Result<long>(refuse(fd.error()));
  if (asked) return of_name(std::string_view(name, query.name_size));
  if (to_int(asked.error()) == ENAMETOOLONG) return of_name({});
  const auto line = by_text([&](const Mapping& one) { return one.range.contains(at); });
  return line ? of_line(*line) : of_name({});
}

}  // namespace

bool is_special(Hva at) {
  return by_name_at(at, is_the_kernels, [](const Mapping& line) { return line.special; });
}

KernelRing ring_at(Hva at) {
  return by_name_at(at, ring_named, [](const Mapping& line) { return line.ring; });
}

namespace {

// The pages from `first` on in `category`, marked by `mark(PageState&)`.
template <typename Mark>
void mark_scanned(Hva first, unsigned count, u64 category, PageState* out, Mark&& mark) {
  const auto fd = pagemap_file();
  if (!fd) return;
  PageRegion regions[kMaxPageStates];
  PageScan scan{};
  scan.size = sizeof(scan);
  scan.start = first.raw();
  scan.end = first.raw() + u64{count} * kPageSize;
  scan.regions = reinterpret_cast<u64>(regions);
  scan.region_count = kMaxPageStates;
  scan.category_mask = scan.return_mask = category;
  const auto found = sys::ioctl(fd->get(), kPageScan, reinterpret_cast<u64>(&scan));
  if (!found) return;
  for (long i = 0; i < *found; ++i) {
    for (u64 at = regions[i].start; at < regions[i].end; at += kPageSize) {
      mark(out[(at - first.raw()) / kPageSize]);
    }
  }
}

}  // namespace

// An msync that would drop cached pages is refused for that.
bool is_locked(HvaRange range) {
  const auto asked =
      sys::checked(sys::call(SYS_msync, static_cast<long>(range.start().raw()),
                             static_cast<long>(range.size()), MS_ASYNC | MS_INVALIDATE));
  return !asked && to_int(asked.error()) != ENOMEM;
}

Result<Mapping> mapping_at(Hva at) {
  for (;;) {
    const u64 turn = owners_turn();
    Mapping found = ST_TRY(shown_mapping_at(at));
    const Hva start = found.range.start();
    if (found.prot.read || hidden_rights(at, &found.range, &found.prot)) {
      found.offset += found.range.start() - start;
      return found;
    }
    // What the client may not read may stand in one mapping with pages that an owner hides.
    const bool joined = has_absent_pages(found.range);
    // Was it hidden when the kernel was asked, and back when the owners were?
    if (owners_turn() != turn) continue;
    if (joined) found.range = HvaRange(page_floor(at), kPageSize);
    if (joined) found.offset += found.range.start() - start;
    return found;
  }
}

Result<void> page_states(Hva first, unsigned count, PageState* out) {
  u64 words[kMaxPageStates] = {};
  const u64 bytes = u64{count} * sizeof(u64);
  const FdUse pagemap = ST_TRY(pagemap_file());
  const auto got = sys::pread(pagemap.get(), words, bytes,
                              static_cast<off_t>(first.raw() / kPageSize * sizeof(u64)));
  if (!got) return refuse(got.error());
  bool any = false;
  for (unsigned i = 0; i < count; ++i) {
    out[i] = {};
    out[i].present = (words[i] & kEntryPresent) != 0;
    out[i].swapped = (words[i] & kEntrySwapped) != 0;
    out[i].anonymous = out[i].present && (words[i] & kEntryFile) == 0;
    out[i].exclusive = (words[i] & kEntryExclusive) != 0;
    out[i].guarded = (words[i] & kEntryProtected) != 0;
    any = any || out[i].present;
  }
  if (!any) return {};
  mark_scanned(first, count, kScanZero, out, [](PageState& page) { page.zero = true; });
  mark_scanned(first, count, kScanHuge, out, [](PageState& page) { page.huge = true; });
  return {};
}

Result<void> missing_pages(Hva first, unsigned count, u64* bits) {
  u64 words[kMostMissing];
  const FdUse pagemap = ST_TRY(pagemap_file());
  const auto got = ST_TRY(sys::pread(pagemap.get(), words, u64{count} * sizeof(u64),
                                     static_cast<off_t>(first.raw() / kPageSize * sizeof(u64))));
  if (got != u64{count} * sizeof(u64)) return refuse(EIO);
  std::fill_n(bits, (count + 63) / 64, u64{0});
  for (unsigned i = 0; i < count; ++i) {
    const bool none = (words[i] & (kEntryPresent | kEntrySwapped)) == 0;
    bits[i / 64] |= u64{none} << (i % 64);
  }
  return {};
}

bool is_untouched(HvaRange range) {
  u64 missing[kMostMissing / 64];
  for (Hva at = range.start(); at < range.end();) {
    const u64 left = (range.end() - at) / kPageSize;
    const auto count = static_cast<unsigned>(std::min<u64>(left, kMostMissing));
    if (!missing_pages(at, count, missing)) return false;
    for (unsigned i = 0; i < count; ++i) {
      if ((missing[i / 64] >> (i % 64) & 1) == 0) return false;
    }
    at += count * kPageSize;
  }
  return true;
}

u64 present_pages(HvaRange range, bool own) {
  const auto fd = pagemap_file();
  if (!fd || range.empty()) return 0;
  // Room for one run: the walk ends where a second one begins.
  PageRegion run{};
  PageScan scan{};
  scan.size = sizeof(scan);
  scan.start = range.start().raw();
  scan.end = range.end().raw();
  scan.regions = reinterpret_cast<u64>(&run);
  scan.region_count = 1;
  scan.category_inverted = kScanZero | (own ? kScanFile : 0);
  scan.category_mask = kScanPresent | kScanWritten | scan.category_inverted;
  scan.return_mask = kScanPresent;
  const auto found = sys::ioctl(fd->get(), kPageScan, reinterpret_cast<u64>(&scan));
  if (!found || *found != 1 || run.start != scan.start) return 0;
  return (run.end - run.start) >> kPageShift;
}

namespace {

void set_bits(u64 first, u64 count, u64* bits) {
  for (u64 i = first; i < first + count;) {
    if (i % 64 == 0 && first + count - i >= 64) {
      bits[i / 64] = ~u64{0};
      i += 64;
    } else {
      bits[i / 64] |= u64{1} << (i % 64);
      ++i;
    }
  }
}

// Runs of pages that are present and not the page of zeros, from *at on. False: an old kernel.
bool scan_resident(HvaRange range, u64* bits, u64* huge, u64* count) {
  constexpr unsigned kRuns = 256;
  const auto fd = pagemap_file();
  if (!fd) return false;
  PageRegion runs[kRuns];
  PageScan scan{};
  scan.size = sizeof(scan);
  scan.start = range.start().raw();
  scan.end = range.end().raw();
  scan.regions = reinterpret_cast<u64>(runs);
  scan.region_count = kRuns;
  scan.category_inverted = kScanZero;
  scan.category_mask = kScanPresent | kScanZero;
  scan.return_mask = kScanPresent | (huge != nullptr ? kScanHuge : 0);
  while (scan.start < scan.end) {
    const auto found = sys::ioctl(fd->get(), kPageScan, reinterpret_cast<u64>(&scan));
    if (!found) return false;
    for (long i = 0; i < *found; ++i) {
      const u64 pages = (runs[i].end - runs[i].start) >> kPageShift;
      set_bits((runs[i].start - range.start().raw()) >> kPageShift, pages, bits);
      *count += pages;
      if (huge == nullptr || (runs[i].categories & kScanHuge) == 0) continue;
      const u64 first = huge_block(range, Hva(runs[i].start));
      set_bits(first, huge_block(range, Hva(runs[i].end - 1)) + 1 - first, huge);
    }
    if (scan.walk_end <= scan.start) return false;
    scan.start = scan.walk_end;
  }
  return true;
}

Result<u64> read_resident(HvaRange range, u64* bits) {
  PageState states[kMaxPageStates];
  const u64 pages = range.size() >> kPageShift;
  u64 count = 0;
  for (u64 i = 0; i < pages; i += kMaxPageStates) {
    const unsigned some =
        static_cast<unsigned>(pages - i < kMaxPageStates ? pages - i : kMaxPageStates);
    ST_TRY(page_states(range.start() + (i << kPageShift), some, states));
    for (unsigned n = 0; n < some; ++n) {
      if (!states[n].present || states[n].zero) continue;
      set_bits(i + n, 1, bits);
      ++count;
    }
  }
  return count;
}

Result<u64> cached_pages(HvaRange range, u64* bits) {
  constexpr u64 kAtOnce = 2048;
  unsigned char cached[kAtOnce];
  const u64 pages = range.size() >> kPageShift;
  u64 count = 0;
  for (u64 i = 0; i < pages; i += kAtOnce) {
    const u64 some = pages - i < kAtOnce ? pages - i : kAtOnce;
    void* const at = reinterpret_cast<void*>((range.start() + (i << kPageShift)).raw());
    ST_TRY(sys::mincore(at, some << kPageShift, cached));
    for (u64 n = 0; n < some; ++n) {
      if ((cached[n] & 1) == 0) continue;
      set_bits(i + n, 1, bits);
      ++count;
    }
  }
  return count;
}

}  // namespace

Result<u64> resident_pages(HvaRange range, bool shared, u64* bits, u64* huge) {
  const u64 words = ((range.size() >> kPageShift) + 63) / 64;
  const auto clear = [&] {
    for (u64 i = 0; i < words; ++i) bits[i] = 0;
    if (huge != nullptr) std::fill_n(huge, huge_block(range, range.end() - 1) / 64 + 1, u64{0});
  };
  clear();
  if (shared) return cached_pages(range, bits);
  u64 count = 0;
  if (scan_resident(range, bits, huge, &count)) return count;
  clear();
  return read_resident(range, bits);
}

}  // namespace stagetwo::host
