// SPDX-License-Identifier: Apache-2.0
#include "vfio/sysfs_tree.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include "base/sys.h"
#include "host/session.h"

namespace stagetwo::vfio {
namespace {

constexpr size_t kLongestPath = 256;

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
  char text_[kLongestPath] = {};
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
  // A new file is put in the place of the old one: nobody reads half of one.
  void file(const Path& path, std::string_view text, mode_t mode) const {
    const Path fresh = path.below(".new");
    const auto fd =
        sys::openat(root_, fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (!fd) return;
    static_cast<void>(sys::write(*fd, text.data(), text.size()));
    static_cast<void>(sys::close(*fd));
    sys::call(SYS_renameat, root_, sys::arg(fresh.c_str()), root_, sys::arg(path.c_str()));
  }
  void remove(const Path& path, bool is_folder = false) const {
    sys::call(SYS_unlinkat, root_, sys::arg(path.c_str()), is_folder ? AT_REMOVEDIR : 0);
  }

 private:
  int root_ = -1;
};

Path parent_path(const Parent& parent) {
  return Path("devices/virtual/").append(parent.name).append("/").append(parent.name);
}

Path folder_of(const TypeRef& type) {
  FixedString<2 * Parent::kLongestName> name;
  append_folder(type, name);
  return Path(name.view());
}

Path type_path(const TypeRef& type, std::string_view file) {
  const Path types = parent_path(*type.parent).below("/mdev_supported_types/");
  return types.below(folder_of(type).view()).below(file);
}

Path name_of(const Uuid& uuid) {
  FixedString<Uuid::kTextBytes + 1> name;
  uuid.append(name);
  return Path(name.view());
}

Path numbered(std::string_view before, u32 number) {
  FixedString<16> digits;
  digits.append_int(number);
  return Path(before).append(digits.view());
}

void write_available(const Tree& tree, const Registry& shared, const Parent& parent) {
  for (u32 type = 0; type < parent.types.size(); ++type) {
    const TypeRef ref{&parent, type};
    FixedString<16> text;
    text.append_int(instances_left(shared, ref)).append_char('\n');
    tree.file(type_path(ref, "/available_instances"), text.view(), 0444);
  }
}

void add_type(const Tree& tree, const TypeRef& type) {
  tree.folder(type_path(type, "/devices").view());
  tree.file(type_path(type, "/name"), Path(type.get().pretty).append("\n").view(), 0444);
  tree.file(type_path(type, "/device_api"), "vfio-pci\n", 0444);
  tree.file(type_path(type, "/create"), {}, 0200);
  if (!type.parent->description.empty()) {
    tree.file(type_path(type, "/description"), type.parent->description, 0444);
  }
}

// The places that a device has in the tree.
struct Places {
  explicit Places(const Listed& device)
      : name(name_of(device.uuid)),
        folder(parent_path(*device.type.parent).append("/").append(name.view())),
        group(numbered("kernel/iommu_groups/", device.group())),
        node(folder.below("/vfio-dev/").append(numbered("vfio", device.number()).view())),
        of_bus(Path("bus/mdev/devices/").append(name.view())),
        of_group(group.below("/devices/").append(name.view())),
        of_type(type_path(device.type, "/devices/").append(name.view())) {}
  Path name, folder, group, node;
  Path of_bus, of_group, of_type;  // links to the folder
};

}  // namespace

bool tree_start(const Registry& shared) {
  const Tree tree;
  if (!tree) return false;
  tree.folder("class/mdev_bus");
  tree.folder("bus/mdev/devices");
  tree.folder("kernel/iommu_groups");
  for (unsigned i = 0; const Parent* parent = parent_at(i); ++i) {
    for (u32 type = 0; type < parent->types.size(); ++type) add_type(tree, {parent, type});
    tree.link(Path("class/mdev_bus/").append(parent->name),
              Path("../../").append(parent_path(*parent).view()));
    write_available(tree, shared, *parent);
  }
  return true;
}

void tree_add(const Registry& shared, const Listed& device) {
  const Tree tree;
  if (!tree || !device.type) return;
  const Places at(device);
  tree.folder(at.node.view());
  tree.file(at.folder.below("/remove"), {}, 0200);
  tree.link(at.folder.below("/mdev_type"),
            Path("../mdev_supported_types/").append(folder_of(device.type).view()));
  tree.link(at.folder.below("/iommu_group"), Path("../../../../../").append(at.group.view()));
  tree.link(at.folder.below("/subsystem"), Path("../../../../../bus/mdev"));
  tree.folder(at.group.below("/devices").view());
  tree.link(at.of_group, Path("../../../../").append(at.folder.view()));
  tree.link(at.of_bus, Path("../../../").append(at.folder.view()));
  tree.link(at.of_type, Path("../../../").append(at.name.view()));
  write_available(tree, shared, *device.type.parent);
}

void tree_remove(const Registry& shared, const Listed& device) {
  const Tree tree;
  if (!tree || !device.type) return;
  const Places at(device);
  for (const Path* link : {&at.of_type, &at.of_bus, &at.of_group}) tree.remove(*link);
  tree.remove(at.group.below("/devices"), true);
  tree.remove(at.group, true);
  for (const std::string_view file : {"/remove", "/mdev_type", "/iommu_group", "/subsystem"}) {
    tree.remove(at.folder.below(file));
  }
  tree.remove(at.node, true);
  tree.remove(at.folder.below("/vfio-dev"), true);
  tree.remove(at.folder, true);
  write_available(tree, shared, *device.type.parent);
}

}  // namespace stagetwo::vfio
