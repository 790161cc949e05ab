// SPDX-License-Identifier: Apache-2.0
#pragma once

// /dev/vfio as a folder, and sysfs as far as it tells of mediated devices and of the session's PCI
// functions:
// /sys/class/mdev_bus, /sys/bus/mdev, /sys/kernel/iommu_groups, the parents' own folders, and where
// there are functions these, the lists of PCI devices and drivers, and vfio-pci are a tree of real
// files in the session's directory (vfio/bus.h), and a name that begins so is rewritten to lead
// there. What is written to `create` and `remove` is taken as of any virtual file
// (shim/virtual_io.h); what is written to a function's `config`, at its place, is the model's.
//
// Analogue: drivers/vfio/mdev/mdev_sysfs.c (create_store, remove_store), pci-sysfs.c.
// Names are moved from their beginning, as they are spelt there; without a session none. A program
// whose working folder is below one is in the session's folder, and getcwd() says so; what it opens
// there for writing by another name (openat(), a relative one) is found by where it leads.
// Context: any thread of the client, asleep or awake.

#include <string_view>

#include "shim/files.h"
#include "shim/virtual_files.h"

namespace stagetwo::shim {

// A name, and where it leads. The common answer, itself, costs a comparison.
class MovedName {
 public:
  explicit MovedName(const char* path);
  MovedName(const MovedName&) = delete;
  MovedName& operator=(const MovedName&) = delete;

  [[nodiscard]] const char* path() const { return path_; }
  [[nodiscard]] bool moved() const { return path_ == place_; }

 private:
  void move_node_folder();

  static constexpr size_t kLongest = 512;
  const char* path_;
  char place_[kLongest];
};

// realpath(): the session's folder is not in the answer.
char* real_name(const char* path, char* to);

// A place, as /proc tells it, in the folder that stands for /dev/vfio: as it is spelt. Others:
// itself.
[[nodiscard]] std::string_view spelt_name(std::string_view place);

// open() of what the bus takes, by a name that was moved or leads into the tree all the same: that
// is taken, and for writing alone; the rest is for reading. True: *opened is the answer, a
// descriptor or -1 and errno.
[[nodiscard]] bool opened_of_bus(int directory, const MovedName& name, int flags, int* opened);

// Of VirtualFile: which it is, by its number among these.
[[nodiscard]] VirtualFile bus_file(unsigned number);
inline constexpr unsigned kMostTypes = 8, kMostDevices = 64;

// One write; a removal waits for the last close. 0 or the kernel's errno. Context: no lock.
[[nodiscard]] int store_bus_file(const VirtualFile& file, std::string_view text);

// As frame_file_io() (shim/frame_files.h), of a function's `config`.
[[nodiscard]] bool config_io(const VirtualFile& file, int fd, Io io, const void* buffer,
                             size_t size, const off_t* at, long* answer);

}  // namespace stagetwo::shim
