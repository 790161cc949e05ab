// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which paths are ours. Devices are rows of a table (paths.cc), files of /sys and /proc stand in
// shim/virtual_files.h. Names are compared after lexical normalisation; a relative name is looked
// at only when its last component could be one of ours.
//
// Context: any; allocates nothing, touches no errno. The common answer "not ours" costs a few byte
// comparisons.

#include <string_view>

#include "base/result.h"
#include "base/text.h"
#include "base/types.h"
#include "shim/virtual_files.h"

namespace stagetwo::shim {

enum class PathKind : u8 {
  kForeign,    // not ours: ask the next function
  kDevice,     // a character device
  kVirtual,    // a file of /sys or /proc that we answer
  kDirectory,  // a directory that holds parameters
};

struct Device {
  std::string_view path;
  u32 major;
  u32 minor;
  Result<int> (*open)(int flags);
  bool (*exists)() = nullptr;  // null: always
};

struct Target {
  PathKind kind = PathKind::kForeign;
  bool trailing_slash = false;
  const Device* device = nullptr;  // of a kDevice
  VirtualFile file;                // of a kVirtual

  explicit operator bool() const { return kind != PathKind::kForeign; }
};

// Pre: `path` is what the client passed; nullptr is nobody's.
Target target_of(int directory, const char* path);
// The name as a whole, without dots and doubled slashes. False: not one of ours, by its first or
// last letters, or longer than any.
[[nodiscard]] bool could_name_ours(int directory, const char* path, FixedString<128>* name);
// The one of this number, or nullptr: of those that have numbers.
const Device* device_numbered(u32 major, u32 minor);

}  // namespace stagetwo::shim
