// SPDX-License-Identifier: Apache-2.0
#pragma once

// Files, folders and links of the tree that stands for sysfs (vfio/sysfs_tree.h). Not for other
// rooms.

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/directory_names.h"
#include "base/sys.h"
#include "host/session.h"
#include "vfio/sysfs_tree.h"

namespace stagetwo::vfio {

// A path below the root. What is too long is cut, and then not there.
class Path {
 public:
  Path() = default;
  explicit Path(std::string_view text) { append(text); }
  Path& append(std::string_view text) {
    TextWriter out(text_ + size_, sizeof(text_) - size_);
    size_ += out.append(text).size();
    return *this;
  }
  [[nodiscard]] Path below(std::string_view name) const { return Path(*this).append(name); }
  [[nodiscard]] std::string_view view() const { return {text_, size_}; }
  [[nodiscard]] const char* c_str() const { return text_; }

 private:
  static constexpr size_t kLongest = 256;
  char text_[kLongest] = {};
  size_t size_ = 0;
};

// The root of the tree while something is changed in it.
class Tree {
 public:
  Tree() {
    const auto session = host::open_in_session(".", O_PATH | O_DIRECTORY);
    if (!session) return;
    sys::call(SYS_mkdirat, *session, sys::arg(kTreeFolder.data()), 0755);
    if (const auto root = sys::openat(*session, kTreeFolder.data(),
                                      O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW)) {
      root_ = *root;
    }
    static_cast<void>(sys::close(*session));
  }
  ~Tree() {
    if (root_ >= 0) static_cast<void>(sys::close(root_));
  }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;
  explicit operator bool() const { return root_ >= 0; }

  // With what is above it.
  void folder(std::string_view path) const {
    for (size_t end = 0; end != std::string_view::npos;) {
      end = path.find('/', end + 1);
      const Path part(path.substr(0, end));
      sys::call(SYS_mkdirat, root_, sys::arg(part.c_str()), 0755);
    }
  }
  void link(const Path& path, const Path& target) const {
    sys::call(SYS_symlinkat, sys::arg(target.c_str()), root_, sys::arg(path.c_str()));
  }
  // Which root it is: another after somebody took it away. {}: there is none.
  struct Identity {
    u64 inode = 0, changed = 0;
    bool operator==(const Identity&) const = default;
  };
  [[nodiscard]] Identity identity() const;
  // A new file is put in the place of the old one, whose rights and owner it has: nobody reads half
  // of one. One that says it already stays.
  void file(const Path& path, std::string_view text, mode_t mode) const {
    if (says(path, text)) return;
    const Path fresh = path.below(".new");
    const auto fd =
        sys::openat(root_, fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (!fd) return;
    static_cast<void>(sys::write(*fd, text.data(), text.size()));
    struct ::stat old {};
    if (sys::call(SYS_newfstatat, root_, sys::arg(path.c_str()), sys::arg(&old),
                  AT_SYMLINK_NOFOLLOW) == 0) {
      sys::call(SYS_fchown, *fd, old.st_uid, old.st_gid);
      sys::call(SYS_fchmod, *fd, old.st_mode & 07777);
    }
    static_cast<void>(sys::close(*fd));
    sys::call(SYS_renameat, root_, sys::arg(fresh.c_str()), root_, sys::arg(path.c_str()));
  }
  // Other bytes in the file that is there.
  void update(const Path& path, std::string_view bytes) const {
    const auto fd = sys::openat(root_, path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (!fd) return;
    static_cast<void>(sys::pwrite(*fd, bytes.data(), bytes.size(), 0));
    static_cast<void>(sys::close(*fd));
  }
  void remove(const Path& path, bool is_folder = false) const {
    sys::call(SYS_unlinkat, root_, sys::arg(path.c_str()), is_folder ? AT_REMOVEDIR : 0);
  }
  // With all that is in it, half a file of a process that died included.
  void remove_folder(const Path& path) const {
    const auto folder =
        sys::openat(root_, path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (!folder) return;
    DirectoryNames names(*folder);
    while (const char* const name = names.next()) {
      const std::string_view entry(name);
      if (entry == "." || entry == "..") continue;
      const Path inside = path.below("/").append(entry);
      if (sys::call(SYS_unlinkat, root_, sys::arg(inside.c_str()), 0) == -EISDIR) {
        remove_folder(inside);
      }
    }
    static_cast<void>(sys::close(*folder));
    remove(path, true);
  }
  // What stands for a device node: its name, and that it is one. Who opens that name is not led
  // here (shim/paths.h). Nobody needs a right to make a node 0:0; where it cannot be made, a file.
  void node(const Path& path) const {
    constexpr mode_t kMode = 0666;  // for everybody who reaches the session
    const long made = sys::call(SYS_mknodat, root_, sys::arg(path.c_str()), S_IFCHR | kMode, 0);
    if (made == -EPERM) file(path, {}, kMode);
    if (made == -EPERM || made == 0) {  // whatever the umask
      sys::call(SYS_fchmodat, root_, sys::arg(path.c_str()), kMode);
    }
  }

 private:
  [[nodiscard]] bool says(const Path& path, std::string_view text) const;

  int root_ = -1;
};

inline Path numbered(std::string_view before, u32 number) {
  FixedString<16> digits;
  digits.append_int(number);
  return Path(before).append(digits.view());
}

// /dev/vfio, beside sysfs.
inline constexpr std::string_view kNodes = "../dev/vfio", kOwnNodes = "../dev/vfio/devices";

struct Nodes {
  explicit Nodes(u32 number)
      : group(numbered("../dev/vfio/", number)),
        own(numbered("../dev/vfio/devices/vfio", number)) {}
  Path group, own;
};
inline void add_nodes(const Tree& tree, u32 number) {
  const Nodes nodes(number);
  tree.folder(kOwnNodes);
  tree.node(nodes.group);
  tree.node(nodes.own);
}
inline void remove_nodes(const Tree& tree, u32 number) {
  const Nodes nodes(number);
  tree.remove(nodes.group);
  tree.remove(nodes.own);
}

// vfio-dev/vfioN of a device, and the number of its node.
inline void add_node(const Tree& tree, const Path& at, u32 number) {
  FixedString<24> text;
  text.append_int(kNodeMajor).append_char(':').append_int(number).append_char('\n');
  tree.folder(at.view());
  tree.file(at.below("/dev"), text.view(), 0444);
  FixedString<96> event;
  event.append("MAJOR=").append_int(kNodeMajor).append("\nMINOR=").append_int(number);
  event.append("\nDEVNAME=vfio/devices/vfio").append_int(number).append_char('\n');
  tree.file(at.below("/uevent"), event.view(), 0444);
  add_nodes(tree, number);
}

// A group's own files. What is reserved: a line each.
inline void add_group(const Tree& tree, const Path& at, std::string_view type,
                      std::string_view reserved) {
  tree.folder(at.below("/devices").view());
  tree.file(at.below("/type"), type, 0444);
  tree.file(at.below("/reserved_regions"), reserved, 0444);
}

// Run-time power management of a device that has none. Analogue: drivers/base/power/sysfs.c.
inline void add_power(const Tree& tree, const Path& device) {
  const Path at = device.below("/power");
  tree.folder(at.view());
  tree.file(at.below("/control"), "auto\n", 0444);
  tree.file(at.below("/runtime_status"), "unsupported\n", 0444);
  tree.file(at.below("/runtime_active_time"), "0\n", 0444);
  tree.file(at.below("/runtime_suspended_time"), "0\n", 0444);
}

}  // namespace stagetwo::vfio
