// SPDX-License-Identifier: Apache-2.0
#include "shim/mdev_files.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi/vfio/vfio.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/session.h"
#include "shim/absent_buffers.h"
#include "shim/bus_names.h"
#include "shim/engine.h"
#include "shim/next.h"
#include "shim/options.h"
#include "shim/virtual_io.h"
#include "vfio/bus.h"
#include "vfio/device.h"

namespace stagetwo::shim {
namespace {

constexpr std::string_view kSys = "/sys/";
constexpr std::string_view kDevices = "/sys/devices/virtual/";
constexpr std::string_view kFolders[] = {"/sys/class/mdev_bus", "/sys/bus/mdev",
                                         "/sys/kernel/iommu_groups"};
// These only where the session has PCI functions (vfio/pci_functions.h); the machine's own devices
// and drivers are reached by its own names.
constexpr std::string_view kOwnFolders[] = {"/sys/devices/pcifffe:00",
                                            "/sys/bus/pci/drivers/vfio-pci", "/sys/module/vfio",
                                            "/sys/module/vfio_pci"};
constexpr std::string_view kLists[] = {"/sys/bus/pci/devices", "/sys/bus/pci/drivers"};
// As folders; what they list is opened by its own name (shim/paths.h).
constexpr std::string_view kNodes = "/dev/vfio", kNodeFolders[] = {kNodes, "/dev/vfio/devices"};
constexpr std::string_view kFunctions = "/sys/bus/pci/devices/fffe:";

bool is_below(std::string_view name, std::string_view folder) {
  return name.starts_with(folder) && (name.size() == folder.size() || name[folder.size()] == '/');
}

bool is_of_bus(std::string_view name) {
  for (const std::string_view folder : kFolders) {
    if (is_below(name, folder)) return true;
  }
  if (!name.starts_with(kDevices)) return false;
  const std::string_view rest = name.substr(kDevices.size());
  for (unsigned i = 0; const vfio::Parent* parent = vfio::parent_at(i); ++i) {
    if (is_below(rest, parent->name)) return true;
  }
  return false;
}

bool is_node_folder(std::string_view name) {
  while (name.ends_with('/') || name.ends_with("/.")) name.remove_suffix(1);
  return name == kNodeFolders[0] || name == kNodeFolders[1];
}

// Empty: not of the functions. Else what the tree has if there are any.
std::string_view folder_of_functions(std::string_view name) {
  for (const std::string_view folder : kOwnFolders) {
    if (is_below(name, folder)) return folder;
  }
  std::string_view whole = name;
  while (whole.ends_with('/')) whole.remove_suffix(1);
  for (const std::string_view list : kLists) {
    if (whole == list) return list;
  }
  return name.starts_with(kFunctions) ? kLists[0] : std::string_view();
}

// The tree of the session, made at the first look. False: there is none.
bool has_tree() {
  static constinit sync::Atomic<u32> started{0};
  enter_session();
  if (option("session").empty()) return false;
  if (started.load(sync::kAcquire) != 0) {
    vfio::finish_left();
  } else if (vfio::start_bus()) {
    started.store(1, sync::kRelease);
  }
  return started.load(sync::kAcquire) != 0;
}

VirtualFile numbered(Source source, unsigned level) {
  VirtualFile file;
  file.source = source;
  file.level = static_cast<u8>(level);
  return file;
}

// Types of all parents, one after the other.
vfio::TypeRef type_at(unsigned number) {
  for (unsigned i = 0; const vfio::Parent* parent = vfio::parent_at(i); ++i) {
    if (number < parent->types.size()) return {parent, number};
    number -= static_cast<unsigned>(parent->types.size());
  }
  return {};
}

VirtualFile create_file(std::string_view folder) {
  const vfio::TypeRef wanted = vfio::find_type(folder);
  for (unsigned number = 0; wanted && number < kMostTypes; ++number) {
    const vfio::TypeRef type = type_at(number);
    if (type.parent == wanted.parent && type.type == wanted.type) {
      return numbered(Source::kMdevCreate, number);
    }
  }
  return {};
}

VirtualFile remove_file(std::string_view folder) {
  const auto uuid = vfio::parse_uuid(folder);
  if (!uuid || folder.size() != vfio::Uuid::kTextBytes) return {};
  const auto device = vfio::find_device(*uuid);
  return device ? numbered(Source::kMdevRemove, device->slot) : VirtualFile{};
}

int create(const VirtualFile& file, std::string_view text) {
  if (text.size() < vfio::Uuid::kTextBytes || text.size() > vfio::Uuid::kTextBytes + 1) {
    return EINVAL;
  }
  const auto uuid = vfio::parse_uuid(text);
  if (!uuid) return to_int(uuid.error());
  const vfio::TypeRef type = type_at(file.level);
  const auto done = type ? vfio::create_device(type, *uuid) : Result<void>(refuse(ENODEV));
  return done ? 0 : to_int(done.error());
}

int remove(const VirtualFile& file, std::string_view text) {
  const auto value = parse_kernel_unsigned(text);
  if (!value) return EINVAL;
  if (*value == 0) return 0;
  const auto device = vfio::device_from(file.level);
  if (!device || device->slot != file.level) return ENODEV;
  auto removal = vfio::begin_removal(device->uuid);
  // Somebody takes it away: the file has gone meanwhile.
  if (!removal) return to_int(removal.error()) == EAGAIN ? ENODEV : to_int(removal.error());
  vfio::finish_removal(std::move(*removal));  // waits for the last close
  return 0;
}

// ---- where names lead

using Place = FixedString<512>;

// What /proc says of what is behind the name. Failure: ENOENT and its kin.
Result<void> lead(int directory, const char* path, Place& to) {
  const int place = ST_TRY(sys::openat(directory, path, O_PATH | O_CLOEXEC));
  FixedString<48> link;
  link.append("/proc/thread-self/fd/").append_int(place);
  char buffer[512];
  const long size =
      sys::call(SYS_readlinkat, AT_FDCWD, sys::arg(link.c_str()), sys::arg(buffer), sizeof(buffer));
  static_cast<void>(sys::close(place));
  if (size <= 0) return refuse(ENOENT);
  to.append({buffer, static_cast<size_t>(size)});
  return {};
}

// What `place` is called below the session's folder; empty: it is elsewhere.
std::string_view in_session(std::string_view place) {
  const std::string_view session = option("session");
  if (session.empty() || !place.starts_with(session)) return {};
  place.remove_prefix(session.size());
  return place.starts_with('/') ? place : std::string_view();
}
bool is_in_tree(std::string_view place) {
  return in_session(place).starts_with(kSys);
}

void hide_session(char* name) {
  const std::string_view whole(name);
  // Out of the tree, to the machine's own?
  if (!is_in_tree(whole) && !is_below(in_session(whole), kNodes)) return;
  const size_t session = option("session").size();
  memmove(name, name + session, whole.size() - session + 1);
}

bool ends_in_written_file(const char* path) {
  if (reinterpret_cast<u64>(path) < 4096) return false;
  const std::string_view name(path);
  const std::string_view last = name.substr(name.rfind('/') + 1);
  return last == "create" || last == "remove" || last == "config";
}

// `create` of a type, `remove` of a device: what has no show, whatever rights it is given.
bool takes_writes_only(std::string_view place) {
  struct ::stat behind {};
  FixedString<512> path;
  path.append(place);
  const long said =
      sys::call(SYS_newfstatat, AT_FDCWD, sys::arg(path.c_str()), sys::arg(&behind), 0);
  return said == 0 && S_ISREG(behind.st_mode);
}

VirtualFile config_file(std::string_view folder) {
  for (u32 from = 0;;) {
    const auto device = vfio::device_from(from);
    if (!device) return {};
    FixedString<vfio::Uuid::kTextBytes + 1> name;
    vfio::append_name(*device, name);
    const bool function = device->type && device->type.parent->function != nullptr;
    if (function && name.view() == folder) return numbered(Source::kPciConfig, device->slot);
    from = device->slot + 1;
  }
}

// Bytes, or minus the errno.
long write_config(const VirtualFile& file, const void* buffer, size_t size, u64 place) {
  constexpr u64 kBytes = 4096;
  if (place >= kBytes || size == 0) return 0;
  size = size < kBytes - place ? size : kBytes - place;
  u8 bytes[kBytes];
  {
    const host::EngineSection section(host::Touches::kClientMemory);
    if (host::copy_from(bytes, Hva(reinterpret_cast<u64>(buffer)), size) != size) return -EFAULT;
  }
  const auto which = vfio::device_at(file.level);
  if (!which) return -ENODEV;
  const auto device = vfio::Device::open(*which);
  if (!device) return -to_int(device.error());
  for (size_t done = 0; done < size;) {
    size_t width = 4;
    while (width > size - done || (place + done) % width != 0) width /= 2;
    (*device)->write(vfio::kConfigRegion, place + done, {bytes + done, width});
    done += width;
  }
  abi_vfio::follow_memory(**device);
  return static_cast<long>(size);
}

// Pre: `place` is in the tree. What takes no writes is for reading.
Result<int> open_place(std::string_view place, int flags) {
  const size_t slash = place.rfind('/');
  const std::string_view last = place.substr(slash + 1);
  const std::string_view above = place.substr(0, slash);
  const std::string_view folder = above.substr(above.rfind('/') + 1);
  VirtualFile file;
  if (last == "create") file = create_file(folder);
  if (last == "remove") file = remove_file(folder);
  if (last == "config") file = config_file(folder);
  if (!file) return refuse(EACCES);
  if (!file.is_by_call()) return open_virtual(file, flags);
  constexpr int kKept = O_ACCMODE | O_CLOEXEC | O_NONBLOCK;
  FixedString<512> path;
  path.append(place);
  const int opened = ST_TRY(sys::openat(AT_FDCWD, path.c_str(), flags & kKept));
  note_virtual(opened, file);
  return opened;
}

}  // namespace

MovedName::MovedName(const char* path) : path_(path) {
  if (reinterpret_cast<u64>(path) < 4096 || path[0] != '/') [[likely]]
    return;
  if (path[1] == 'd') move_node_folder();
  if (path[1] != 's') [[likely]]
    return;
  std::string_view name(path);
  if (!name.starts_with(kSys)) return;
  const std::string_view folder = folder_of_functions(name);
  if ((folder.empty() && !is_of_bus(name)) || !has_tree()) return;
  TextWriter place(place_, sizeof(place_));
  place.append(option("session"));  // the tree begins with "sys"
  if (!folder.empty()) {
    place.append(folder);
    if (place.cut() || sys::call(SYS_faccessat, AT_FDCWD, sys::arg(place_), F_OK) != 0) return;
    name.remove_prefix(folder.size());
  }
  place.append(name);
  if (!place.cut()) path_ = place_;
}

void MovedName::move_node_folder() {
  const std::string_view name(path_);
  if (!name.starts_with(kNodes) || !is_node_folder(name) || !has_tree()) return;
  TextWriter place(place_, sizeof(place_));
  if (!place.append(option("session")).append(name).cut()) path_ = place_;
}

std::string_view spelt_name(std::string_view place) {
  read_options();
  const std::string_view name = in_session(place);
  return is_below(name, kNodes) ? name : place;
}

char* real_name(const char* path, char* to) {
  const MovedName moved(path);
  char* const answer =
      with_buffers([&](Buffers& buffers) { buffers.text(path).bytes(to, PATH_MAX); },
                   [&] { return next::realpath(moved.path(), to); });
  if (answer != nullptr && moved.moved()) hide_session(answer);
  return answer;
}

namespace {

// Kernel file: fs/kernfs/file.c: what has no show is not opened to be read, by root either.
bool is_refused_to_read(int directory, const MovedName& name, int flags) {
  constexpr int kPlaceOnly = O_PATH | O_DIRECTORY;
  if ((flags & kPlaceOnly) != 0 || (flags & O_ACCMODE) == O_WRONLY) return false;
  const std::string_view path(name.path());
  if (!path.ends_with("/create") && !path.ends_with("/remove")) return false;
  Place place;
  return lead(name.moved() ? AT_FDCWD : directory, name.path(), place) &&
         is_in_tree(place.view()) && takes_writes_only(place.view());
}

}  // namespace

bool opened_of_bus(int directory, const MovedName& name, int flags, int* opened) {
  if (making_refused(directory, name, flags)) {
    *opened = -1;
    return true;
  }
  if (is_node_folder(name.moved() ? in_session(name.path()) : std::string_view())) return false;
  if (name.moved() && is_refused_to_read(directory, name, flags)) {
    *opened = static_cast<int>(as_libc(-EACCES));
    return true;
  }
  if ((flags & O_ACCMODE) == O_RDONLY) return false;
  Place place;
  if (name.moved()) {
    const auto led = lead(AT_FDCWD, name.path(), place);
    *opened = static_cast<int>(
        as_libc(led ? open_place(place.view(), flags) : Result<int>(refuse(led.error()))));
    return true;
  }
  if (!ends_in_written_file(name.path())) return false;
  read_options();
  if (!lead(directory, name.path(), place) || !is_in_tree(place.view()) || !has_tree()) {
    return false;
  }
  *opened = static_cast<int>(as_libc(open_place(place.view(), flags)));
  return true;
}

VirtualFile bus_file(unsigned number) {
  if (number < kMostTypes) {
    return type_at(number) ? numbered(Source::kMdevCreate, number) : VirtualFile{};
  }
  return numbered(Source::kMdevRemove, number - kMostTypes);
}

// Reads are the kernel's own: the room keeps the file as the model's registers are.
bool config_io(const VirtualFile& file, int fd, Io io, const void* buffer, size_t size,
               const off_t* at, long* answer) {
  if (io == Io::kRead) return false;
  const off_t place = at != nullptr ? *at : next::lseek(fd, 0, SEEK_CUR);
  if (place < 0) return false;
  *answer = write_config(file, buffer, size, static_cast<u64>(place));
  if (at == nullptr && *answer > 0) next::lseek(fd, place + *answer, SEEK_SET);
  return true;
}

int store_bus_file(const VirtualFile& file, std::string_view text) {
  return file.source == Source::kMdevCreate ? create(file, text) : remove(file, text);
}

}  // namespace stagetwo::shim
