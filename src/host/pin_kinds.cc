// SPDX-License-Identifier: Apache-2.0
#include "host/pin_kinds.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <string_view>

#include "base/sys.h"
#include "host/device_memory.h"
#include "host/kept_fd.h"
#include "sync/atomic.h"
#include "sync/passing_number.h"

namespace stagetwo::host {
namespace {

// File systems that write nothing back, so that a device may write their pages for long.
constexpr std::string_view kMemoryFileSystems[] = {"tmpfs", "hugetlbfs", "ramfs", "devtmpfs"};

// Of memfds, shared anonymous memory and System V segments: a mount no table shows.
u64 shared_memory_device() {
  static constinit sync::Atomic<u64> known{0};
  u64 device = known.load(sync::kRelaxed);
  if (device != 0) return device;
  const sync::PassingNumber passing;
  const auto made = sys::memfd_create("stagetwo:probe", MFD_CLOEXEC);
  if (!made) return 0;
  struct ::stat file{};
  if (sys::fstat(*made, &file)) device = file.st_dev;
  static_cast<void>(sys::close(*made));
  known.store(device, sync::kRelaxed);
  return device;
}

std::string_view word(std::string_view* line) {
  const size_t end = line->find(' ');
  const std::string_view taken = line->substr(0, end);
  line->remove_prefix(end == std::string_view::npos ? line->size() : end + 1);
  return taken;
}

u64 decimal(std::string_view digits) {
  u64 value = 0;
  for (const char c : digits) value = value * 10 + static_cast<u64>(c - '0');
  return value;
}

// "id parent major:minor root point options … - type source options"
bool is_memory_mount(std::string_view line, u64 device) {
  word(&line);
  word(&line);
  const std::string_view number = word(&line);
  const size_t colon = number.find(':');
  if (colon == std::string_view::npos) return false;
  const u64 found = ::makedev(static_cast<unsigned>(decimal(number.substr(0, colon))),
                              static_cast<unsigned>(decimal(number.substr(colon + 1))));
  const size_t dash = line.find(" - ");
  if (found != device || dash == std::string_view::npos) return false;
  line.remove_prefix(dash + 3);
  const std::string_view type = word(&line);
  for (const std::string_view known : kMemoryFileSystems) {
    if (type == known) return true;
  }
  return false;
}

// Is a file system of `device` mounted that keeps its pages in memory only?
bool is_memory_device(u64 device) {
  const sync::PassingNumber passing;
  const auto fd = open_proc("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
  if (!fd) return false;
  char buffer[4096];
  size_t held = 0;
  bool found = false;
  while (!found) {
    const auto got = sys::read(*fd, buffer + held, sizeof(buffer) - held);
    if (!got || *got == 0) break;
    held += *got;
    std::string_view text(buffer, held);
    for (size_t end = text.find('\n'); end != std::string_view::npos; end = text.find('\n')) {
      found = found || is_memory_mount(text.substr(0, end), device);
      text.remove_prefix(end + 1);
    }
    if (text.size() == sizeof(buffer)) text = {};  // a longer line: overlay's, which is not one
    for (size_t i = 0; i < text.size(); ++i) buffer[i] = text[i];
    held = text.size();
  }
  static_cast<void>(sys::close(*fd));
  return found;
}

constinit sync::Atomic<u64> devices_device{0}, devices_inode{0};

bool is_of_devices(const Mapping& mapping) {
  return mapping.inode != 0 && mapping.inode == devices_inode.load(sync::kAcquire) &&
         mapping.device == devices_device.load(sync::kRelaxed);
}

}  // namespace

Result<void> note_device_memory(Hva at) {
  const Mapping mapping = ST_TRY(mapping_at(at));
  devices_device.store(mapping.device, sync::kRelaxed);
  devices_inode.store(mapping.inode, sync::kRelease);
  return {};
}

Result<void> may_pin(const Mapping& mapping, bool write, bool long_term) {
  if (write ? !mapping.prot.write : !mapping.prot.read) return refuse(EFAULT);
  const bool written_back_later =
      write && long_term && mapping.shared && mapping.page_size == kPageSize;
  if (!written_back_later) return {};
  if (is_of_devices(mapping) || mapping.device == shared_memory_device() ||
      is_memory_device(mapping.device))
    return {};
  return refuse(EFAULT);
}

}  // namespace stagetwo::host
