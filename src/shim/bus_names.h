// SPDX-License-Identifier: Apache-2.0
#pragma once

// Calls that make, remove, rename or change a name where the session's tree stands for sysfs and
// /dev/vfio (shim/mdev_files.h), or of another device of ours. sysfs has the files it has: what
// would make or take away one is refused with the errno it has there; rights, owner and times of
// one, or of a node, are those of the session's file that stands for it, and are shown.
//
// Analogue: fs/kernfs/dir.c and inode.c; what a directory without the operation gives is
// fs/namei.c's (vfs_unlink, vfs_link, lookup_open). Differs: a node's rights are shown, not asked
// when it is opened; devtmpfs lets root make and take away names, here it is refused (EPERM), for
// it would be on the machine, where nobody of the session sees it. Context: any thread of the
// client, awake or not.

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <optional>

#include "shim/mdev_files.h"

namespace stagetwo::shim {

enum class Naming : u8 { kMakes, kRemovesFile, kRemovesFolder, kRemovesEither };
constexpr Naming removal_of(int flags) {  // of unlinkat()
  return (flags & AT_REMOVEDIR) != 0 ? Naming::kRemovesFolder : Naming::kRemovesFile;
}

// True: refused, errno is set. A name that leads elsewhere is not.
bool naming_refused(int directory, const char* path, Naming what);
bool renaming_refused(int directory, const char* from, int other, const char* to);
bool linking_refused(int directory, const char* from, int other, const char* to);
// open() with O_CREAT of a name that is not there, or that shall not be.
bool making_refused(int directory, const MovedName& name, int flags);

// Where a call changes rights, owner or times: as MovedName, and of a node what stands for it.
class ChangedName {
 public:
  explicit ChangedName(const char* path);
  [[nodiscard]] const char* path() const { return path_; }

 private:
  const MovedName moved_;
  const char* path_;
  FixedString<512> node_;
};

// What was set of a node of /dev/vfio by its numbers; and what access() says of it: 0 or an errno.
// Nothing: nobody can have set anything.
void show_rights(u32 major_number, u32 minor_number, struct ::stat* out);
[[nodiscard]] std::optional<int> node_refusal(u32 major_number, u32 minor_number, int mode,
                                              bool effective);
// An attribute's size is a page, by its name or open to be written. Answers `result`, which is 0
// where there is something to show.
int show_attribute(const MovedName& name, int result, struct ::stat* out);
int show_attribute(const MovedName& name, int result, struct ::statx* out);
// An attribute has no length to change. 0 or minus the errno. Pre: the name was moved.
[[nodiscard]] long truncation_of_attribute(const MovedName& name);
void show_open_attribute(int fd, struct ::stat* out);

}  // namespace stagetwo::shim
