// SPDX-License-Identifier: Apache-2.0
#include "shim/paths.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <utility>

#include "abi/hmm/hmm.h"
#include "abi/iommufd/iommufd.h"
#include "abi/kvm/kvm.h"
#include "abi/kvm/parameters.h"
#include "abi/vfio/vfio.h"
#include "base/sys.h"
#include "base/text.h"
#include "shim/mdev_files.h"
#include "shim/options.h"

namespace stagetwo::shim {
namespace {

template <u32 unit>
Result<int> open_hmm(int flags) {
  return abi_hmm::open_device(unit, flags);
}
template <u32 unit>
bool has_hmm() {
  enter_session();
  return abi_hmm::has_unit(unit);
}

bool has_fault_injection() {
  read_options();
  return !option("iommufd-test").empty();
}

constexpr std::array kDevices = {
    Device{"/dev/kvm", host::kMiscMajor, abi_kvm::kMinor, abi_kvm::open_device},
    Device{"/dev/vfio/vfio", host::kMiscMajor, abi_vfio::kMinor, abi_vfio::open_container},
    Device{"/dev/iommu", host::kMiscMajor, abi_iommufd::kMinor, abi_iommufd::open_device},
    Device{"/dev/hmm_dmirror0", abi_hmm::kMajor, 0, open_hmm<0>},
    Device{"/dev/hmm_dmirror1", abi_hmm::kMajor, 1, open_hmm<1>},
    Device{"/dev/hmm_dmirror2", abi_hmm::kMajor, 2, open_hmm<2>, has_hmm<2>},
    Device{"/dev/hmm_dmirror3", abi_hmm::kMajor, 3, open_hmm<3>, has_hmm<3>},
    Device{"/sys/kernel/debug/gup_test", 0, 0, abi_hmm::open_gup_test},
    Device{"/sys/kernel/debug/failslab/ignore-gfp-wait", 0, 0, abi_iommufd::open_fail_knob,
           has_fault_injection},
};

template <u32 group>
Result<int> open_group(int flags) {
  return abi_vfio::open_group(group, flags);
}
// /dev/vfio/<group>; the name is not looked at.
template <size_t... kGroups>
constexpr auto group_devices(std::index_sequence<kGroups...>) {
  return std::array{
      Device{"/dev/vfio/…", abi_vfio::kGroupMajor, u32{kGroups}, open_group<u32{kGroups}>}...};
}
constexpr std::array kGroups = group_devices(std::make_index_sequence<abi_vfio::kMostGroups>());
constexpr std::string_view kGroupFolder = "/dev/vfio/";

template <u32 number>
Result<int> open_node(int flags) {
  return abi_vfio::open_node(number, flags);
}
// /dev/vfio/devices/vfio<number>; as those of groups.
template <size_t... kNodes>
constexpr auto node_devices(std::index_sequence<kNodes...>) {
  return std::array{
      Device{"/dev/vfio/devices/…", abi_vfio::kNodeMajor, u32{kNodes}, open_node<u32{kNodes}>}...};
}
constexpr std::array kNodes = node_devices(std::make_index_sequence<abi_vfio::kMostGroups>());
constexpr std::string_view kNodeFolder = "/dev/vfio/devices/vfio";

constexpr Device kFailNth{"/proc/self/task/…/fail-nth", 0, 0, abi_iommufd::open_fail_nth};
constexpr std::string_view kTasks = "/proc/self/task/";
constexpr std::string_view kFailNthName = "/fail-nth";
constexpr std::string_view kModules = "/sys/module/";
constexpr std::string_view kParameters = "/parameters";
// A parameter that says whether a module is there at all.
constexpr std::array kModuleProbes = {std::string_view("kvm/parameters/tdp_mmu"),
                                      std::string_view("kvm_amd/parameters/npt"),
                                      std::string_view("kvm_intel/parameters/ept")};
constexpr size_t kLongestName = 128;

using Name = FixedString<kLongestName>;

// Appends `path` without empty and dot components. False: it is longer than anything of ours.
bool append_normal(Name& name, std::string_view path) {
  while (!path.empty()) {
    const size_t slash = path.find('/');
    const std::string_view part = path.substr(0, slash);
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      const size_t last = name.view().rfind('/');
      const Name parent(last == std::string_view::npos ? std::string_view()
                                                       : name.view().substr(0, last));
      name.clear();
      name.append(parent.view());
      continue;
    }
    name.append_char('/').append(part);
    if (name.cut()) return false;
  }
  return true;
}

bool could_be_ours(std::string_view absolute) {
  // "/dev…", "/sys…", "/pro…", or something to be normalised first.
  if (absolute.size() < 4) return false;
  switch (absolute[1]) {
    case 'd':
      return absolute[2] == 'e' && absolute[3] == 'v';
    case 's':
      return absolute[2] == 'y' && absolute[3] == 's';
    case 'p':
      return absolute[2] == 'r' && absolute[3] == 'o';
    case '/':
    case '.':
      return true;
    default:
      return absolute.find("/..") != std::string_view::npos;
  }
}

bool relative_could_be_ours(std::string_view path) {
  while (path.ends_with('/')) path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  const std::string_view last = slash == std::string_view::npos ? path : path.substr(slash + 1);
  // What /dev/vfio lists is asked for by its number.
  const bool node = last.starts_with("vfio") ||
                    (!last.empty() && last.find_first_not_of("0123456789") == last.npos);
  return node || last.starts_with("kvm") || last == "iommu" || last.starts_with("hmm_dmirror") ||
         path.find("parameters") != std::string_view::npos ||
         (last.find('_') != std::string_view::npos && slash == std::string_view::npos) ||
         last == "ignore-gfp-wait" || last == "meminfo" || last == "pagemap" ||
         last == "clear_refs" || last == "bitmap" || last.ends_with("hugepages") || last == "npt" ||
         last == "avic" || last == "ept" || last == "nested";
}

// The directory a relative name starts from. Empty: unknown.
bool append_base(Name& name, int directory) {
  char buffer[kLongestName];
  long size = 0;
  if (directory == AT_FDCWD) {
    size = sys::call(SYS_getcwd, sys::arg(buffer), sizeof(buffer)) - 1;
  } else {
    FixedString<48> link;
    link.append("/proc/thread-self/fd/").append_int(directory);
    size = sys::call(SYS_readlinkat, AT_FDCWD, sys::arg(link.c_str()), sys::arg(buffer),
                     sizeof(buffer));
  }
  if (size <= 0 || size >= static_cast<long>(sizeof(buffer)) || buffer[0] != '/') return false;
  return append_normal(name, spelt_name({buffer, static_cast<size_t>(size)}));
}

bool is_module_directory(std::string_view below) {
  if (below.ends_with(kParameters)) below.remove_suffix(kParameters.size());
  for (const std::string_view probe : kModuleProbes) {
    if (probe.substr(0, probe.find('/')) == below)
      return static_cast<bool>(abi_kvm::find_parameter(probe));
  }
  return false;
}

// Of a thread of this process.
bool is_fail_nth(std::string_view name) {
  if (!name.starts_with(kTasks) || !name.ends_with(kFailNthName)) return false;
  name.remove_prefix(kTasks.size());
  name.remove_suffix(std::min(name.size(), kFailNthName.size()));
  u64 thread = 0;
  return parse_u64(name, &thread) && has_fault_injection() &&
         sys::call(SYS_tgkill, sys::getpid(), static_cast<long>(thread), 0) == 0;
}

// Of a group, or a device's own node. nullptr: none of that number is there.
const Device* group_named(std::string_view name) {
  u64 group = 0;
  if (!name.starts_with(kGroupFolder)) return nullptr;
  const bool node = name.starts_with(kNodeFolder);
  const std::string_view digits = name.substr((node ? kNodeFolder : kGroupFolder).size());
  if (digits.empty() || digits[0] > '9' || (digits[0] == '0' && digits.size() != 1)) return nullptr;
  if (!parse_u64(digits, &group) || group >= kGroups.size()) return nullptr;
  enter_session();
  if (!abi_vfio::has_group(static_cast<u32>(group))) return nullptr;
  return node ? &kNodes[group] : &kGroups[group];
}

Target target_named(std::string_view name) {
  Target target;
  if (const Device* const group = group_named(name)) {
    target.kind = PathKind::kDevice;
    target.device = group;
    return target;
  }
  if (is_fail_nth(name)) {
    target.kind = PathKind::kDevice;
    target.device = &kFailNth;
    return target;
  }
  for (const Device& device : kDevices) {
    if (name != device.path || (device.exists != nullptr && !device.exists())) continue;
    target.kind = PathKind::kDevice;
    target.device = &device;
    return target;
  }
  target.file = virtual_file_named(name);
  if (target.file) {
    target.kind = PathKind::kVirtual;
  } else if (name.starts_with(kModules) && is_module_directory(name.substr(kModules.size()))) {
    target.kind = PathKind::kDirectory;
  }
  return target;
}

}  // namespace

const Device* device_numbered(u32 major, u32 minor) {
  if (major == abi_vfio::kGroupMajor && minor < kGroups.size()) return &kGroups[minor];
  if (major == abi_vfio::kNodeMajor && minor < kNodes.size()) return &kNodes[minor];
  for (const Device& device : kDevices) {
    if (major != 0 && device.major == major && device.minor == minor) return &device;
  }
  return nullptr;
}

bool could_name_ours(int directory, const char* path, Name* name) {
  // What cannot be a pointer is left to the kernel's EFAULT.
  if (reinterpret_cast<u64>(path) < 4096) return false;
  const bool absolute = path[0] == '/';
  const std::string_view text(path);
  if (absolute ? !could_be_ours(text) : !relative_could_be_ours(text)) [[likely]]
    return false;
  return (absolute || append_base(*name, directory)) && append_normal(*name, text);
}

Target target_of(int directory, const char* path) {
  Name name;
  if (!could_name_ours(directory, path, &name)) return {};
  const std::string_view text(path);
  Target target = target_named(name.view());
  target.trailing_slash = text.ends_with('/') || text.ends_with("/.");
  return target;
}

}  // namespace stagetwo::shim
