// SPDX-License-Identifier: Apache-2.0
#include "vfio/sysfs_tree.h"

#include "vfio/pci_functions.h"
#include "vfio/tree_files.h"

namespace stagetwo::vfio {

Tree::Identity Tree::identity() const {
  struct ::stat root {};
  if (sys::call(SYS_fstat, root_, sys::arg(&root)) != 0) return {};
  const timespec& at = root.st_ctim;
  return {root.st_ino, static_cast<u64>(at.tv_sec) * 1'000'000'000 + static_cast<u64>(at.tv_nsec)};
}

bool Tree::says(const Path& path, std::string_view text) const {
  struct ::stat old {};
  if (sys::call(SYS_newfstatat, root_, sys::arg(path.c_str()), sys::arg(&old),
                AT_SYMLINK_NOFOLLOW) != 0 ||
      !S_ISREG(old.st_mode) || old.st_size != static_cast<off_t>(text.size())) {
    return false;
  }
  char bytes[4096];
  if (text.empty()) return true;
  if (text.size() > sizeof(bytes)) return false;
  const auto fd = sys::openat(root_, path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (!fd) return false;
  const long size = sys::call(SYS_read, *fd, sys::arg(bytes), sizeof(bytes));
  static_cast<void>(sys::close(*fd));
  return size >= 0 && std::string_view(bytes, static_cast<size_t>(size)) == text;
}

namespace {

Path parent_path(const Parent& parent) {
  return Path("devices/virtual/").append(parent.name).append("/").append(parent.name);
}

// As mtty's driver is called by its parent's name.
Path driver_path(const Parent& parent) {
  return Path("bus/mdev/drivers/").append(parent.name);
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
        of_driver(driver_path(*device.type.parent).append("/").append(name.view())),
        of_type(type_path(device.type, "/devices/").append(name.view())) {}
  Path name, folder, group, node;
  Path of_bus, of_group, of_driver, of_type;  // links to the folder
};

}  // namespace

bool tree_start(const Registry& shared) {
  const Tree tree;
  if (!tree) return false;
  tree.folder("class/mdev_bus");
  tree.folder("bus/mdev/devices");
  tree.folder("kernel/iommu_groups");
  tree.folder(kOwnNodes);
  tree.node(Path(kNodes).append("/vfio"));
  for (unsigned i = 0; const Parent* parent = parent_at(i); ++i) {
    if (parent->function != nullptr) continue;
    for (u32 type = 0; type < parent->types.size(); ++type) add_type(tree, {parent, type});
    tree.folder(driver_path(*parent).view());
    tree.link(Path("class/mdev_bus/").append(parent->name),
              Path("../../").append(parent_path(*parent).view()));
    write_available(tree, shared, *parent);
  }
  return true;
}

void tree_add(const Registry& shared, const Listed& device) {
  const Tree tree;
  if (!tree || !device.type) return;
  if (device.type.parent->function != nullptr) return add_function(tree, device);
  const Places at(device);
  add_node(tree, at.node, device.number());
  tree.file(at.folder.below("/remove"), {}, 0200);
  tree.link(at.folder.below("/mdev_type"),
            Path("../mdev_supported_types/").append(folder_of(device.type).view()));
  tree.link(at.folder.below("/iommu_group"), Path("../../../../../").append(at.group.view()));
  tree.link(at.folder.below("/subsystem"), Path("../../../../../bus/mdev"));
  tree.link(at.folder.below("/driver"),
            Path("../../../../../").append(driver_path(*device.type.parent).view()));
  tree.file(at.folder.below("/uevent"),
            Path("DRIVER=").append(device.type.parent->name).append("\n").view(), 0444);
  add_power(tree, at.folder);
  add_group(tree, at.group, "unknown\n", {});  // it has no domain of the kernel's own
  tree.link(at.of_driver, Path("../../../../").append(at.folder.view()));
  tree.link(at.of_group, Path("../../../../").append(at.folder.view()));
  tree.link(at.of_bus, Path("../../../").append(at.folder.view()));
  tree.link(at.of_type, Path("../../../").append(at.name.view()));
  write_available(tree, shared, *device.type.parent);
}

void tree_begin_removal(const Listed& device) {
  const Tree tree;
  if (!tree) return;
  remove_nodes(tree, device.number());
  if (!device.type || device.type.parent->function != nullptr) return;
  tree.remove(Places(device).folder.below("/remove"));
}

void tree_remove(const Listed& device) {
  const Tree tree;
  if (!tree || !device.type) return;
  remove_nodes(tree, device.number());
  if (device.type.parent->function != nullptr) return remove_function(tree, device);
  const Places at(device);
  for (const Path* link : {&at.of_type, &at.of_bus, &at.of_driver, &at.of_group}) {
    tree.remove(*link);
  }
  tree.remove_folder(at.group);
  tree.remove_folder(at.folder);
}

void tree_count(const Registry& shared, const TypeRef& type) {
  const Tree tree;
  if (tree && type && type.parent->function == nullptr) {
    write_available(tree, shared, *type.parent);
  }
}

}  // namespace stagetwo::vfio
