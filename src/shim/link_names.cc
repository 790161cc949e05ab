// SPDX-License-Identifier: Apache-2.0
#include "shim/link_names.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <string_view>

#include "base/sys.h"
#include "host/access.h"
#include "host/descriptor_file.h"
#include "host/run_section.h"
#include "shim/engine.h"
#include "shim/received.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
namespace {

// What the name of a stand-in begins with, and the kernel's name of its file. `number`: what comes
// behind it, up to the next colon, ends that.
struct Name {
  std::string_view kind, shown;
  enum class Rest : u8 { kNone, kAny, kNumber } rest;
};
constexpr Name kNames[] = {
    {"kvm", "/dev/kvm", Name::Rest::kNone},
    {"kvm-vm", "anon_inode:kvm-vm", Name::Rest::kNone},
    {"kvm-vcpu:", "anon_inode:kvm-vcpu:", Name::Rest::kNumber},
    {"kvm-gmem-", "anon_inode:[kvm-gmem]", Name::Rest::kAny},
    {"iommufd", "/dev/iommu", Name::Rest::kNone},
    {"vfio-container", "/dev/vfio/vfio", Name::Rest::kNone},
    {"vfio-group:", "/dev/vfio/", Name::Rest::kNumber},
    {"vfio-device:", "anon_inode:[vfio-device]", Name::Rest::kAny},
    {"vfio-node:", "/dev/vfio/devices/vfio", Name::Rest::kNumber},
};

void append_name(std::string_view kind, FixedString<64>& out) {
  for (const Name& name : kNames) {
    if (!kind.starts_with(name.kind)) continue;
    const std::string_view rest = kind.substr(name.kind.size());
    if (name.rest == Name::Rest::kNone && !rest.empty()) continue;
    out.append(name.shown);
    if (name.rest == Name::Rest::kNumber) out.append(rest.substr(0, rest.find(':')));
    return;
  }
}

}  // namespace

ReadLink::ReadLink(int directory, const char* path, size_t size) : size_(size) {
  if (!awake() || !could_name_descriptor(path)) [[likely]]
    return;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  const sync::PassingNumber passing;
  if (const auto place = sys::openat(directory, path, O_PATH | O_CLOEXEC)) {
    struct ::stat said {};
    char buffer[host::kMaxLink];
    if (may_be_ours(*place, &said)) {
      append_name(host::kind_behind(*place, buffer, sizeof(buffer)), name_);
    }
    static_cast<void>(sys::close(*place));
  }
  section.leave();
  errno = error;
  if (!name_.view().empty()) size_ = std::min(size, name_.view().size());
}

ssize_t ReadLink::show(char* buffer, ssize_t length) const {
  if (name_.view().empty() || length <= 0) return length;
  const int error = errno;
  host::EngineSection section(host::Touches::kClientMemory);
  static_cast<void>(host::copy_to(Hva(reinterpret_cast<u64>(buffer)), name_.view().data(), size_));
  section.leave();
  errno = error;
  return length;
}

}  // namespace stagetwo::shim
