// SPDX-License-Identifier: Apache-2.0
#include "host/mapping_level.h"

#include <fcntl.h>

#include <string_view>

#include "base/sys.h"
#include "host/hugetlb_standin.h"
#include "host/kept_fd.h"
#include "host/proc_ioctls_internal.h"
#include "host/process_files.h"
#include "sync/atomic.h"
#include "sync/passing_number.h"

namespace stagetwo::host {
namespace {

constexpr u64 k2M = u64{1} << 21;
constexpr u64 k1G = u64{1} << 30;

enum class Support : u32 { kUnknown, kYes, kNo };

constinit sync::Atomic<Support> scan_support{Support::kUnknown};
constinit sync::Atomic<Support> query_support{Support::kUnknown};

Result<long> ask(const Result<FdUse>& file, unsigned long request, void* question) {
  if (!file) return refuse(file.error());
  return sys::ioctl(file->get(), request, reinterpret_cast<u64>(question));
}

constexpr u64 down(u64 address, u64 to) {
  return address & ~(to - 1);
}

// A file that could not be opened says nothing of what the kernel knows.
void note_support(sync::Atomic<Support>& support, const Result<long>& answer) {
  if (answer) {
    support.store(Support::kYes, sync::kRelaxed);
  } else if (to_int(answer.error()) == ENOTTY) {
    support.store(Support::kNo, sync::kRelaxed);
  }
}

// Is everything in [start, start + 2 MiB) behind huge entries?
bool is_huge(u64 start) {
  PageRegion region{};
  PageScan scan{};
  scan.size = sizeof(scan);
  scan.start = start;
  scan.end = start + k2M;
  scan.regions = reinterpret_cast<u64>(&region);
  scan.region_count = 1;
  scan.category_mask = scan.return_mask = kScanHuge;
  const auto found = ask(pagemap_file(), kPageScan, &scan);
  if (scan_support.load(sync::kRelaxed) == Support::kUnknown) {
    note_support(scan_support, found);
  }
  return found && *found == 1 && region.start == start && region.end == start + k2M;
}

// The page size of the mapping at `address`, or 0.
u64 page_size_by_query(u64 address) {
  ProcmapQuery query{};
  query.size = sizeof(query);
  query.address = address;
  const auto found = ask(maps_file(), kProcmapQuery, &query);
  if (query_support.load(sync::kRelaxed) == Support::kUnknown) {
    note_support(query_support, found);
  }
  return found ? query.page_size : 0;
}

// One hexadecimal number; the text behind it is left in *text.
bool take_hex(std::string_view* text, u64* out) {
  u64 value = 0;
  size_t n = 0;
  for (; n < text->size(); ++n) {
    const char c = (*text)[n];
    if (c >= '0' && c <= '9') {
      value = value * 16 + static_cast<u64>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      value = value * 16 + static_cast<u64>(c - 'a' + 10);
    } else {
      break;
    }
  }
  text->remove_prefix(n);
  *out = value;
  return n != 0;
}

// smaps, a line at a time: "start-end …" heads a mapping, "KernelPageSize:  2048 kB" is below it.
class SmapsSearch {
 public:
  explicit SmapsSearch(u64 address) : address_(address) {}

  // True: no further line is needed.
  bool take_line(std::string_view line) {
    constexpr std::string_view kPageSizeKey = "KernelPageSize:";
    u64 start = 0;
    u64 end = 0;
    if (line.starts_with(kPageSizeKey)) {
      if (!inside_) return false;
      for (const char c : line.substr(kPageSizeKey.size())) {
        if (c >= '0' && c <= '9') page_size_ = page_size_ * 10 + static_cast<u64>(c - '0');
      }
      page_size_ *= 1024;
      return true;
    }
    if (!take_hex(&line, &start) || !line.starts_with('-')) return false;
    line.remove_prefix(1);
    if (!take_hex(&line, &end) || !line.starts_with(' ')) return false;
    if (start > address_) return true;
    inside_ = address_ < end;
    return false;
  }
  [[nodiscard]] u64 page_size() const { return page_size_; }

 private:
  u64 address_;
  bool inside_ = false;
  u64 page_size_ = 0;
};

u64 page_size_by_smaps(u64 address) {
  const sync::PassingNumber passing;
  const auto fd = open_proc("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
  if (!fd) return 0;
  SmapsSearch search(address);
  char buffer[4096];
  size_t held = 0;
  bool over = false;
  while (!over) {
    const auto got = sys::read(*fd, buffer + held, sizeof(buffer) - held);
    if (!got || *got == 0) break;
    held += *got;
    std::string_view text(buffer, held);
    for (size_t end = text.find('\n'); end != std::string_view::npos && !over;
         end = text.find('\n')) {
      over = search.take_line(text.substr(0, end));
      text.remove_prefix(end + 1);
    }
    if (text.size() == sizeof(buffer)) text = {};  // no line of ours is that long
    for (size_t i = 0; i < text.size(); ++i) buffer[i] = text[i];
    held = text.size();
  }
  static_cast<void>(sys::close(*fd));
  return search.page_size();
}

unsigned level_of_size(u64 size) {
  if (size >= k1G) return 3;
  return size >= k2M ? 2 : 1;
}

}  // namespace

unsigned mapping_level(Hva page) {
  if (hugetlb::any()) {
    if (const unsigned level = hugetlb::level_at(page); level != 0) return level;
  }
  const u64 address = page.raw();
  if (scan_support.load(sync::kRelaxed) != Support::kNo) {
    const bool huge = is_huge(down(address, k2M));
    if (scan_support.load(sync::kRelaxed) != Support::kNo) {
      if (!huge || query_support.load(sync::kRelaxed) == Support::kNo) return huge ? 2 : 1;
      return page_size_by_query(address) >= k1G ? 3 : 2;
    }
  }
  return level_of_size(page_size_by_smaps(address));
}

void debug_without_pagemap_scan(bool without) {
  scan_support.store(without ? Support::kNo : Support::kUnknown, sync::kRelaxed);
}

void debug_without_procmap_query(bool without) {
  query_support.store(without ? Support::kNo : Support::kUnknown, sync::kRelaxed);
}

}  // namespace stagetwo::host
