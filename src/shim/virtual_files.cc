// SPDX-License-Identifier: Apache-2.0
#include "shim/virtual_files.h"

#include <errno.h>
#include <fcntl.h>

#include <algorithm>
#include <array>

#include "abi/hmm/hmm.h"
#include "base/sys.h"
#include "host/hugetlb_standin.h"
#include "host/pin_account.h"
#include "host/session.h"
#include "shim/engine.h"
#include "shim/mdev_files.h"
#include "shim/options.h"
#include "sync/mutex.h"
#include "sync/passing_number.h"
#include "vfio/bus.h"

namespace stagetwo::shim {
namespace {

namespace hugetlb = host::hugetlb;

constexpr std::string_view kModules = "/sys/module/";
constexpr unsigned kFirstBusFile = 48;  // behind parameters and the pool
constexpr std::string_view kHugePages = "/sys/kernel/mm/hugepages/hugepages-";
constexpr std::string_view kPageIdle = "/sys/kernel/mm/page_idle/bitmap";
constexpr std::string_view kMeminfo = "/proc/meminfo";
constexpr std::string_view kSysctl = "/proc/sys/vm/nr_hugepages";
constexpr std::string_view kProc = "/proc/";
constexpr std::string_view kPagemap = "/pagemap";
constexpr std::string_view kClearRefs = "/clear_refs";

struct PoolName {
  std::string_view name;
  PoolField field;
};
constexpr std::array kPoolNames = {PoolName{"nr_hugepages", PoolField::kTotal},
                                   PoolName{"free_hugepages", PoolField::kFree},
                                   PoolName{"resv_hugepages", PoolField::kReserved},
                                   PoolName{"surplus_hugepages", PoolField::kSurplus}};

enum class Wish : u32 { kUnknown, kNo, kYes };
constinit sync::Atomic<Wish> standin{Wish::kUnknown};

VirtualFile pool_file(unsigned level, PoolField field) {
  VirtualFile file;
  file.source = Source::kPool;
  file.level = static_cast<u8>(level);
  file.field = field;
  return file;
}

VirtualFile of_source(Source source) {
  VirtualFile file;
  file.source = source;
  return file;
}

// "2048kB/nr_hugepages"
VirtualFile pool_file_named(std::string_view name) {
  for (const unsigned level : hugetlb::kLevels) {
    FixedString<24> size;
    size.append_int(hugetlb::page_bytes(level) >> 10).append("kB/");
    if (!name.starts_with(size.view())) continue;
    for (const PoolName& row : kPoolNames) {
      if (name.substr(size.size()) == row.name) return pool_file(level, row.field);
    }
  }
  return {};
}

// "self/pagemap", "thread-self/pagemap", "4711/pagemap", "4711/task/4712/pagemap" has another name.
bool is_own(std::string_view below_proc, std::string_view file) {
  if (!below_proc.ends_with(file)) return false;
  below_proc.remove_suffix(file.size());
  if (below_proc == "self" || below_proc == "thread-self") return true;
  u64 pid = 0;
  return parse_u64(below_proc, &pid) && pid == static_cast<u64>(sys::getpid());
}

// Kernel file: mm/hugetlb.c (nr_hugepages_store).
int store_pool_size(unsigned level, std::string_view text) {
  const auto pages = parse_kernel_unsigned(text, ~u64{0}, 10);
  if (!pages) return to_int(pages.error());
  hugetlb::set_pool(level, *pages);
  return 0;
}

u64 pool_number(unsigned level, PoolField field) {
  const hugetlb::Pool pool = hugetlb::pool(level);
  switch (field) {
    case PoolField::kTotal:
      return pool.total;
    case PoolField::kFree:
      return pool.total - pool.used;
    case PoolField::kReserved:
    case PoolField::kSurplus:
      break;
  }
  return 0;
}

// "HugePages_Total:    2048" in the kernel's columns.
void append_row(TextWriter& out, std::string_view name, u64 value, bool kilobytes) {
  FixedString<24> digits;
  digits.append_int(value);
  out.append(name);
  for (size_t used = name.size() + digits.size(); used < 24; ++used) {
    out.append_char(' ');
  }
  out.append(digits.view()).append(kilobytes ? " kB\n" : "\n");
}

constexpr std::array kHugeRows = {
    std::string_view("HugePages_Total:"), std::string_view("HugePages_Free:"),
    std::string_view("HugePages_Rsvd:"),  std::string_view("HugePages_Surp:"),
    std::string_view("Hugepagesize:"),    std::string_view("Hugetlb:")};

bool is_huge_row(std::string_view line) {
  return std::any_of(kHugeRows.begin(), kHugeRows.end(),
                     [line](std::string_view name) { return line.starts_with(name); });
}

// The kernel's text without its rows of huge pages, then ours: they are its last but the direct
// map.
void show_meminfo(TextWriter& out) {
  const sync::PassingNumber passing;
  const auto fd = sys::openat(AT_FDCWD, kMeminfo.data(), O_RDONLY | O_CLOEXEC);
  if (!fd) return;
  char buffer[kLongestVirtualText / 2];
  const auto got = sys::read(*fd, buffer, sizeof(buffer));
  static_cast<void>(sys::close(*fd));
  FixedString<1024> tail;
  std::string_view text(buffer, got ? *got : 0);
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (is_huge_row(line)) continue;
    TextWriter& to = line.starts_with("DirectMap") ? static_cast<TextWriter&>(tail) : out;
    to.append(line).append_char('\n');
  }
  const unsigned level = hugetlb::kDefaultLevel;
  u64 all = 0;
  for (const unsigned each : hugetlb::kLevels) {
    all += pool_number(each, PoolField::kTotal) * hugetlb::page_bytes(each);
  }
  append_row(out, kHugeRows[0], pool_number(level, PoolField::kTotal), false);
  append_row(out, kHugeRows[1], pool_number(level, PoolField::kFree), false);
  append_row(out, kHugeRows[2], pool_number(level, PoolField::kReserved), false);
  append_row(out, kHugeRows[3], pool_number(level, PoolField::kSurplus), false);
  append_row(out, kHugeRows[4], hugetlb::page_bytes(level) >> 10, true);
  append_row(out, kHugeRows[5], all >> 10, true);
  out.append(tail.view());
}

}  // namespace

bool wants_hugetlb_standin() {
  const Wish known = standin.load(sync::kRelaxed);
  if (known != Wish::kUnknown) [[likely]]
    return known == Wish::kYes;
  read_options();
  const bool yes = option("hugetlb") == "standin";
  if (yes) {
    enter_session();
    hugetlb::enable();
  }
  standin.store(yes ? Wish::kYes : Wish::kNo, sync::kRelaxed);
  return yes;
}

VirtualFile virtual_file_named(std::string_view name) {
  if (name.starts_with(kModules)) {
    VirtualFile file;
    file.parameter = abi_kvm::find_parameter(name.substr(kModules.size()));
    if (file.parameter) file.source = Source::kParameter;
    return file;
  }
  if (name.starts_with(kHugePages)) {
    return wants_hugetlb_standin() ? pool_file_named(name.substr(kHugePages.size()))
                                   : VirtualFile{};
  }
  if (name == kMeminfo)
    return wants_hugetlb_standin() ? of_source(Source::kMeminfo) : VirtualFile{};
  if (name == kSysctl) {
    return wants_hugetlb_standin() ? pool_file(hugetlb::kDefaultLevel, PoolField::kTotal)
                                   : VirtualFile{};
  }
  // Programs look whether the bitmap is there before they open a device.
  if (name == kPageIdle) return of_source(Source::kPageIdle);
  if (name.starts_with(kProc) && awake()) {
    if (is_own(name.substr(kProc.size()), kPagemap)) return of_source(Source::kPagemap);
    if (is_own(name.substr(kProc.size()), kClearRefs)) return of_source(Source::kClearRefs);
  }
  return {};
}

namespace {

// "kvm.nx_huge_pages=force": as on the kernel's command line. Pre: SessionLock held.
void set_parameter(std::string_view setting) {
  const size_t dot = setting.find('.');
  const size_t equals = setting.find('=');
  if (setting.substr(0, dot) == "test_hmm" && equals != std::string_view::npos) {
    const auto name = setting.substr(dot + 1, equals - dot - 1);
    if (!abi_hmm::set_parameter(name, setting.substr(equals + 1))) {
      warn("--param: not taken: ", setting);
    }
    return;
  }
  FixedString<128> path;
  if (dot < equals && equals != std::string_view::npos) {
    path.append(setting.substr(0, dot)).append("/parameters/");
    path.append(setting.substr(dot + 1, equals - dot - 1));
  }
  const abi_kvm::Parameter parameter = abi_kvm::find_parameter(path.view());
  if (!parameter || !parameter.store(setting.substr(equals + 1))) {
    warn("--param: not taken: ", setting);
  }
}

}  // namespace

void enter_session() {
  read_options();
  vfio::want_functions(option("vfio-device"));
  if (!host::join_session(option("session"))) {
    log_line("the session directory cannot be used: parameters are this process's own");
  }
  host::begin_pin_account();
  std::string_view rest = option("param");
  sync::Atomic<u64>& done = host::session_word(host::kStartWord);
  if (rest.empty() || done.load(sync::kAcquire) != 0) return;
  const host::SessionLock lock;
  if (done.load(sync::kRelaxed) != 0) return;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    set_parameter(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  done.store(1, sync::kRelease);
}

VirtualFile written_file(unsigned number) {
  VirtualFile file;
  if (number < abi_kvm::kMaxParameters) {
    file.parameter = abi_kvm::parameter_at(number);
    if (file.parameter) file.source = Source::kParameter;
  } else if (number >= kFirstBusFile && number < kFirstBusFile + kMostTypes + kMostDevices) {
    file = bus_file(number - kFirstBusFile);
  } else {
    for (const unsigned level : hugetlb::kLevels) {
      if (pool_file(level, PoolField::kTotal).number() != number) continue;
      file = pool_file(level, PoolField::kTotal);
    }
  }
  return file && (file.mode() & 0222) != 0 ? file : VirtualFile{};
}

unsigned VirtualFile::mode() const {
  switch (source) {
    case Source::kParameter:
      return parameter.mode();
    case Source::kPool:
      return field == PoolField::kTotal ? 0644 : 0444;
    case Source::kPciConfig:
      return 0644;
    case Source::kPageIdle:
      return 0666;  // as the device: it tells of this process's own memory
    case Source::kClearRefs:
    case Source::kMdevCreate:
    case Source::kMdevRemove:
      return 0200;
    default:
      return 0444;
  }
}

unsigned VirtualFile::number() const {
  constexpr unsigned kFirstPool = abi_kvm::kMaxParameters;
  switch (source) {
    case Source::kParameter:
      return parameter.index();
    case Source::kPool:
      return kFirstPool + level * 4u + static_cast<unsigned>(field);
    case Source::kMdevCreate:
      return kFirstBusFile + level;
    case Source::kMdevRemove:
      return kFirstBusFile + kMostTypes + level;
    default:
      return kMaxVirtualFiles - 1 - static_cast<unsigned>(source);
  }
}

void show(const VirtualFile& file, TextWriter& out) {
  switch (file.source) {
    case Source::kParameter:
      return file.parameter.show(out);
    case Source::kPool:
      out.append_int(pool_number(file.level, file.field)).append_char('\n');
      return;
    case Source::kMeminfo:
      return show_meminfo(out);
    default:
      return;
  }
}

int store(const VirtualFile& file, std::string_view text) {
  if (file.source == Source::kPool && file.field == PoolField::kTotal) {
    return store_pool_size(file.level, text);
  }
  if (file.of_bus()) return store_bus_file(file, text);
  if (file.source != Source::kParameter) return EACCES;
  const auto stored = file.parameter.store(text);
  return stored ? 0 : to_int(stored.error());
}

}  // namespace stagetwo::shim
