// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which paths are ours. Devices are rows of a table (paths.cc), parameters are answered by the room
// that knows them. Names are compared after lexical normalisation; a relative name is looked at
// only when its last component could be one of ours.
//
// Context: any; allocates nothing, touches no errno. The common answer "not ours" costs a few byte
// comparisons.

#include <string_view>

#include "base/result.h"
#include "base/types.h"

namespace stagetwo::shim {

enum class PathKind : u8 {
  kForeign,    // not ours: ask the next function
  kDevice,     // a character device
  kParameter,  // a file below /sys/module
  kDirectory,  // a directory that holds parameters
};

struct Device {
  std::string_view path;
  u32 major;
  u32 minor;
  Result<int> (*open)(int flags);
};

struct Target {
  PathKind kind = PathKind::kForeign;
  bool trailing_slash = false;
  const Device* device = nullptr;  // of a kDevice
  std::string_view text;           // of a kParameter: its contents

  explicit operator bool() const { return kind != PathKind::kForeign; }
};

// Pre: `path` is what the client passed; nullptr is nobody's.
Target target_of(int directory, const char* path);

}  // namespace stagetwo::shim
