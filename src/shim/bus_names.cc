// SPDX-License-Identifier: Apache-2.0
#include "shim/bus_names.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi/vfio/vfio.h"
#include "base/sys.h"
#include "shim/options.h"
#include "shim/paths.h"
#include "shim/virtual_io.h"

namespace stagetwo::shim {
namespace {

using Place = FixedString<512>;
constexpr std::string_view kSys = "/sys/", kNodes = "/dev/vfio/";
constexpr const char* kNodeFolder = "/dev/vfio";
constexpr off_t kAttributeBytes = 4096;

bool refuse_with_errno(int error) {
  errno = error;
  return true;
}

int look(const char* path, struct ::stat* out) {
  return static_cast<int>(
      -sys::call(SYS_newfstatat, AT_FDCWD, sys::arg(path), sys::arg(out), AT_SYMLINK_NOFOLLOW));
}

bool is_in_sysfs(std::string_view place) {
  const std::string_view session = option("session");
  if (session.empty() || !place.starts_with(session)) return false;
  place.remove_prefix(session.size());
  return place.starts_with(kSys);
}

// In the folder that stands for /dev/vfio, or that one.
bool is_of_nodes(std::string_view place) {
  const std::string_view session = option("session");
  if (session.empty() || !place.starts_with(session)) return false;
  place.remove_prefix(session.size());
  return place == kNodeFolder || place.starts_with(kNodes);
}

// By any spelling of /dev/vfio, from wherever.
bool in_node_folder(int directory, const char* path, Place& to) {
  FixedString<128> name;
  if (!could_name_ours(directory, path, &name)) return false;
  const bool below = name.view() == kNodeFolder || name.view().starts_with(kNodes);
  const MovedName folder(below ? kNodeFolder : "");
  if (!folder.moved()) return false;
  const std::string_view rest = name.view().substr(std::string_view(kNodeFolder).size());
  to.append(folder.path()).append(rest);
  return true;
}

// Where a name leads that is in the tree; a relative one is where its folder is. False: it is not.
bool in_tree(int directory, const MovedName& moved, Place& to) {
  const char* const path = moved.path();
  if (moved.moved()) {
    to.append(moved.path());
    return is_in_sysfs(to.view()) || is_of_nodes(to.view());
  }
  if (in_node_folder(directory, path, to)) return true;
  if (reinterpret_cast<u64>(path) < 4096 || path[0] == '/' || path[0] == '\0') return false;
  read_options();
  if (option("session").empty()) return false;
  FixedString<48> link;
  if (directory == AT_FDCWD) {
    link.append("/proc/thread-self/cwd");
  } else {
    link.append("/proc/thread-self/fd/").append_int(directory);
  }
  char folder[512];
  const long size =
      sys::call(SYS_readlinkat, AT_FDCWD, sys::arg(link.c_str()), sys::arg(folder), sizeof(folder));
  if (size <= 0) return false;
  to.append({folder, static_cast<size_t>(size)}).append_char('/');
  if (!is_in_sysfs(to.view()) && !is_of_nodes(to.view())) {
    to.clear();
    return false;
  }
  to.append(path);
  return true;
}

// Why nothing can be made there: the errno of the folder, or `refusal`.
int refusal_in_folder(std::string_view place, int refusal) {
  while (place.ends_with('/')) place.remove_suffix(1);
  Place folder;
  folder.append(place.substr(0, place.rfind('/')));
  struct ::stat said{};
  const int error = look(folder.c_str(), &said);
  if (error != 0) return error;
  return S_ISDIR(said.st_mode) || S_ISLNK(said.st_mode) ? refusal : ENOTDIR;
}

// Nothing is made or taken away there: a name of devtmpfs would be the machine's, and not be seen.
// Who could not in the kernel, either, hears what it says.
int refusal_at(std::string_view place) {
  return is_of_nodes(place) && geteuid() != 0 ? EACCES : EPERM;
}

// Our files whose names are the machine's otherwise.
bool stands(int directory, const char* path, Naming what) {
  const Target target = target_of(directory, path);
  if (!target || target.file.kernel_has_it()) return false;
  if (what == Naming::kMakes) return refuse_with_errno(EEXIST);
  const bool folder = target.kind == PathKind::kDirectory;
  if (folder && what == Naming::kRemovesFile) return refuse_with_errno(EISDIR);
  if (!folder && what == Naming::kRemovesFolder) return refuse_with_errno(ENOTDIR);
  return refuse_with_errno(geteuid() != 0 ? EACCES : EPERM);
}

// What stands for the node with these numbers. False: none of /dev/vfio, or nothing does.
bool find_stand_in(u32 major_number, u32 minor_number, Place& place, struct ::stat* said) {
  const bool container =
      major_number == host::kMiscMajor && minor_number == static_cast<u32>(abi_vfio::kMinor);
  const bool group = major_number == abi_vfio::kGroupMajor;
  if (!container && !group && major_number != abi_vfio::kNodeMajor) return false;
  read_options();
  const std::string_view session = option("session");
  if (session.empty()) return false;
  place.append(session).append(kNodes);
  if (container) {
    place.append("vfio");
  } else if (group) {
    place.append_int(minor_number);
  } else {
    place.append("devices/vfio").append_int(minor_number);
  }
  return look(place.c_str(), said) == 0;
}

// link() says that a name is taken before it asks whether the two are in one file system.
bool pair_refused(int directory, const char* from, int other, const char* to, bool links) {
  Place source, target;
  const bool one = in_tree(directory, MovedName(from), source);
  const bool both = in_tree(other, MovedName(to), target) && one;
  if (!both) return (one || target.size() != 0) && refuse_with_errno(EXDEV);
  struct ::stat said{};
  if (const int error = look(source.c_str(), &said); error != 0) return refuse_with_errno(error);
  if (links && look(target.c_str(), &said) == 0) return refuse_with_errno(EEXIST);
  return refuse_with_errno(refusal_in_folder(target.view(), refusal_at(target.view())));
}

bool is_attribute(const MovedName& name, mode_t mode) {
  return name.moved() && S_ISREG(mode) && is_in_sysfs(name.path());
}

}  // namespace

bool naming_refused(int directory, const char* path, Naming what) {
  Place place;
  if (!in_tree(directory, MovedName(path), place)) return stands(directory, path, what);
  struct ::stat said{};
  const int error = look(place.c_str(), &said);
  if (what == Naming::kMakes) {
    return refuse_with_errno(
        error == 0 ? EEXIST : refusal_in_folder(place.view(), refusal_at(place.view())));
  }
  if (error != 0) return refuse_with_errno(error);
  if (what == Naming::kRemovesFile && S_ISDIR(said.st_mode)) return refuse_with_errno(EISDIR);
  if (what == Naming::kRemovesFolder && !S_ISDIR(said.st_mode)) return refuse_with_errno(ENOTDIR);
  return refuse_with_errno(refusal_at(place.view()));
}

bool renaming_refused(int directory, const char* from, int other, const char* to) {
  return pair_refused(directory, from, other, to, false);
}
bool linking_refused(int directory, const char* from, int other, const char* to) {
  return pair_refused(directory, from, other, to, true);
}

bool making_refused(int directory, const MovedName& name, int flags) {
  Place place;
  if ((flags & O_CREAT) == 0 || (flags & O_PATH) != 0 || !in_tree(directory, name, place)) {
    return false;
  }
  struct ::stat said{};
  const int error = look(place.c_str(), &said);
  if (error == ENOENT) return refuse_with_errno(refusal_in_folder(place.view(), EACCES));
  if (error != 0) return refuse_with_errno(error);
  if ((flags & O_EXCL) != 0) return refuse_with_errno(EEXIST);
  return S_ISDIR(said.st_mode) && refuse_with_errno(EISDIR);
}

ChangedName::ChangedName(const char* path) : moved_(path), path_(moved_.path()) {
  if (moved_.moved() || reinterpret_cast<u64>(path) < 4096 || path[0] != '/') return;
  const std::string_view name(path);
  if (!name.starts_with(kNodes)) return;
  read_options();
  const std::string_view session = option("session");
  node_.append(session).append(name);
  struct ::stat said{};
  if (!session.empty() && !node_.cut() && look(node_.c_str(), &said) == 0) path_ = node_.c_str();
}

void show_rights(u32 major_number, u32 minor_number, struct ::stat* out) {
  Place place;
  struct ::stat said{};
  if (!find_stand_in(major_number, minor_number, place, &said)) return;
  out->st_mode = (out->st_mode & ~mode_t{07777}) | (said.st_mode & 07777);
  // Whose the session is has the part of root in it.
  out->st_uid = said.st_uid == geteuid() ? 0 : said.st_uid;
  out->st_gid = said.st_gid == getegid() ? 0 : said.st_gid;
}

std::optional<int> node_refusal(u32 major_number, u32 minor_number, int mode, bool effective) {
  Place place;
  struct ::stat said{};
  if (!find_stand_in(major_number, minor_number, place, &said)) return {};
  constexpr long kFaccessat2 = 439;
  const long done =
      sys::call(kFaccessat2, AT_FDCWD, sys::arg(place.c_str()), mode, effective ? AT_EACCESS : 0);
  if (done == -ENOSYS) return {};
  return static_cast<int>(-done);
}

int show_attribute(const MovedName& name, int result, struct ::stat* out) {
  if (result != 0 || !is_attribute(name, out->st_mode)) return result;
  out->st_size = kAttributeBytes;
  out->st_blocks = 0;
  return result;
}

int show_attribute(const MovedName& name, int result, struct ::statx* out) {
  if (result != 0 || !is_attribute(name, out->stx_mode)) return result;
  out->stx_size = kAttributeBytes;
  out->stx_blocks = 0;
  return result;
}

long truncation_of_attribute(const MovedName& name) {
  struct ::stat said{};
  const long path = sys::arg(name.path());
  const long found = sys::call(SYS_newfstatat, AT_FDCWD, path, sys::arg(&said), 0);
  if (found != 0) return found;
  return S_ISDIR(said.st_mode) ? -EISDIR : sys::call(SYS_faccessat, AT_FDCWD, path, W_OK);
}

void show_open_attribute(int fd, struct ::stat* out) {
  if (any_virtual_io() && virtual_behind(fd).of_bus()) out->st_size = kAttributeBytes;
}

}  // namespace stagetwo::shim
