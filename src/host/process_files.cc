// SPDX-License-Identifier: Apache-2.0
#include "host/process_files.h"

#include <errno.h>
#include <fcntl.h>

#include <charconv>
#include <cstring>
#include <string_view>

#include "base/sys.h"
#include "host/capable.h"
#include "host/kept_fd.h"

namespace stagetwo::host {
namespace {

constinit KeptFd maps("/proc/self/maps");
constinit KeptFd pagemap("/proc/self/pagemap");
constinit KeptFd memory("/proc/self/mem", O_RDWR, KeptFd::Calls::kMayWait);
constinit KeptFd status("/proc/self/status");

}  // namespace

void open_process_files() {
  note_user_namespace();
  for (KeptFd* const file : {&maps, &pagemap, &memory, &status}) static_cast<void>(file->keep());
}

Result<FdUse> maps_file() {
  return maps.use();
}
Result<FdUse> pagemap_file() {
  return pagemap.use();
}
Result<FdUse> memory_file() {
  return memory.use();
}

// "VmLck:      64 kB"
Result<u64> status_kilobytes(const char* label) {
  char buffer[2048];
  const FdUse file = ST_TRY(status.use());
  const size_t got = ST_TRY(sys::pread(file.get(), buffer, sizeof(buffer), 0));
  std::string_view text(buffer, got);
  const size_t at = text.find(label);
  if (at == std::string_view::npos) return refuse(EINVAL);
  text.remove_prefix(at + std::strlen(label));
  while (text.starts_with(' ') || text.starts_with('\t')) text.remove_prefix(1);
  u64 kilobytes = 0;
  const auto number = std::from_chars(text.data(), text.data() + text.size(), kilobytes);
  if (number.ec != std::errc()) return refuse(EINVAL);
  return kilobytes;
}

}  // namespace stagetwo::host
