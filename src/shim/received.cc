// SPDX-License-Identifier: Apache-2.0
#include "shim/received.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <string_view>

#include "abi/kvm/kvm.h"
#include "base/sys.h"
#include "host/descriptor.h"
#include "host/run_section.h"
#include "shim/engine.h"
#include "shim/forks.h"
#include "shim/open_descriptors.h"
#include "shim/rights.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
namespace {

constexpr long kMostMessages = 1024;  // of one recvmmsg (UIO_MAXIOV)

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_ours(int fd, std::string_view kind = {}) {
  struct ::stat behind{};
  return may_be_ours(fd, &behind) && host::is_named_as_ours(fd, kind);
}

// fn(seen) sets *seen where it finds one of ours. Where the engine cannot start, the next one that
// comes tries again.
template <typename F>
void wake_if(host::Touches touches, F&& fn) {
  const int error = errno;
  bool seen = false;
  {
    host::EngineSection section(touches);
    fn(&seen);
    section.leave();
  }
  if (seen) static_cast<void>(wake());
  errno = error;
}

// How many numbers are open: newer kernels (6.2) say so without making an entry for each. 0:
// unknown.
u64 count_open() {
  struct ::stat directory{};
  const long asked =
      sys::call(SYS_newfstatat, AT_FDCWD, sys::arg("/proc/self/fd"), sys::arg(&directory), 0);
  return asked == 0 ? static_cast<u64>(directory.st_size) : 0;
}

// Has exec left us the memory of a guest? Most programs have three descriptors, and the lowest; one
// question tells which of these are open. A device is left to many a program that has nothing to do
// with it, and shows nothing beneath us.
bool has_inherited() {
  constexpr int kProbed = 256;
  pollfd numbers[kProbed];
  for (int fd = 0; fd < kProbed; ++fd) numbers[fd] = {.fd = fd, .events = 0, .revents = 0};
  u64 left = count_open();
  if (left != 0 && sys::call(SYS_poll, sys::arg(numbers), kProbed, 0) >= 0) {
    for (const pollfd& number : numbers) {
      if ((number.revents & POLLNVAL) != 0) continue;
      if (is_ours(number.fd, abi_kvm::kGuestMemoryKind)) return true;
      if (--left == 0) return false;
    }
  }
  bool seen = false;
  for_each_open(0, ~0u, [&](int fd) { seen = seen || is_ours(fd, abi_kvm::kGuestMemoryKind); });
  return seen;
}

// What exec left us. Before the program's own code; libraries that are initialised earlier have had
// no reason to look. The fork of a process that has not woken is seen, too: another thread may wake
// it meanwhile.
[[gnu::constructor]] void look_at_inherited() {
  static_cast<void>(see_forks());
  if (has_inherited()) static_cast<void>(wake());
}

}  // namespace

void came_in(const msghdr* message) {
  if (awake()) return;
  // The kernel has just written it. Most messages bring nothing.
  msghdr copy{};
  if (!host::read_struct(Hva(reinterpret_cast<u64>(message)), &copy)) return;
  if (copy.msg_controllen < sizeof(cmsghdr)) [[likely]]
    return;
  wake_if(host::Touches::kClientMemory, [&](bool* seen) {
    for_each_right(message, [&](int fd) { *seen = *seen || is_ours(fd); });
  });
}

void came_in(const mmsghdr* messages, long count) {
  for (long i = 0; i < std::min(count, kMostMessages); ++i) came_in(&messages[i].msg_hdr);
}

void came_in(long fd) {
  if (awake()) return;
  wake_if(host::Touches::kNothing, [&](bool* seen) { *seen = is_ours(static_cast<int>(fd)); });
}

bool could_name_descriptor(const char* path) {
  if (reinterpret_cast<u64>(path) < 4096) return false;
  const std::string_view text(path);
  size_t digits = 0;
  while (digits < text.size() && is_digit(text[text.size() - 1 - digits])) ++digits;
  if (digits == 0) return false;
  return digits == text.size() || text.substr(0, text.size() - digits).ends_with("/fd/");
}

void will_be_opened(int directory, const char* path) {
  if (awake() || !could_name_descriptor(path)) [[likely]]
    return;
  wake_if(host::Touches::kNothing, [&](bool* seen) {
    const sync::PassingNumber passing;
    const auto place = sys::openat(directory, path, O_PATH | O_CLOEXEC);
    if (!place) return;
    *seen = is_ours(*place);
    static_cast<void>(sys::close(*place));
  });
}

}  // namespace stagetwo::shim
