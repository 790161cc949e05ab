// SPDX-License-Identifier: Apache-2.0
#pragma once

// Files of /sys and /proc that we answer, as text: module parameters, and with --hugetlb=standin
// the pool of huge pages. Analogue: sysfs attributes with show and store (kernel files: params.c,
// hugetlb.c), proc files (meminfo.c).
//
// What a name shows is made when it is opened; what is written to it goes to a file of the session
// directory and is taken from there (shim/virtual_io.h).
// Context: any thread of the client, asleep or awake.

#include <string_view>

#include "abi/kvm/parameters.h"
#include "base/result.h"
#include "base/text.h"
#include "base/types.h"

namespace stagetwo::shim {

enum class Source : u8 {
  kNone,
  kParameter,   // /sys/module/*/parameters/*
  kPool,        // /sys/kernel/mm/hugepages/hugepages-*/*, /proc/sys/vm/nr_hugepages
  kMeminfo,     // /proc/meminfo
  kPageIdle,    // /sys/kernel/mm/page_idle/bitmap: no text (shim/frame_files.h)
  kPagemap,     // /proc/<this process>/pagemap: the same
  kClearRefs,   // /proc/<this process>/clear_refs: the same
  kMdevCreate,  // `create` of a type of mediated devices: to be written (shim/mdev_files.h)
  kMdevRemove,  // `remove` of one: the same
  kPciConfig,   // `config` of a PCI function of the session, to be written
};

// What one of the pool's files counts.
enum class PoolField : u8 { kTotal, kFree, kReserved, kSurplus };

struct VirtualFile {
  Source source = Source::kNone;
  PoolField field = PoolField::kTotal;  // of a kPool
  u8 level = 0;                         // of a kPool; of the bus's, which type or device
  abi_kvm::Parameter parameter;         // of a kParameter

  explicit operator bool() const { return source != Source::kNone; }
  // Read by read and write by write, at its place, as shim/frame_files.h does it?
  [[nodiscard]] bool is_by_call() const {
    return source == Source::kPageIdle || source == Source::kPagemap ||
           source == Source::kClearRefs || source == Source::kPciConfig;
  }
  [[nodiscard]] bool of_bus() const {
    return source == Source::kMdevCreate || source == Source::kMdevRemove;
  }
  [[nodiscard]] unsigned mode() const;
  // Stable, different for different files, below kMaxVirtualFiles.
  [[nodiscard]] unsigned number() const;
  // Does the kernel's own file say the right things when it is asked about, but not read?
  [[nodiscard]] bool kernel_has_it() const {
    return source == Source::kMeminfo || source == Source::kPagemap || source == Source::kClearRefs;
  }
};

inline constexpr unsigned kMaxVirtualFiles = 160;
inline constexpr size_t kLongestVirtualText = 8192;

// Pre: `name` is absolute and normal. Asks for options where it must (shim/options.h).
[[nodiscard]] VirtualFile virtual_file_named(std::string_view name);
// A relaxed load once the options are known: is the stand-in for huge pages wanted?
[[nodiscard]] bool wants_hugetlb_standin();

// The file of that number if it can be written, else none.
[[nodiscard]] VirtualFile written_file(unsigned number);

// Joins the session, if that has not happened, and puts the parameters of --param in force, if
// nobody has; whoever comes first, before a value is read.
void enter_session();

void show(const VirtualFile& file, TextWriter& out);
// One write. 0 or the kernel's errno. Pre: host::SessionLock held; of the bus's: no lock.
[[nodiscard]] int store(const VirtualFile& file, std::string_view text);

}  // namespace stagetwo::shim
