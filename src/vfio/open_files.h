// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which files clients have of a group and its device, in the registry. A claim (vfio/registry.h) is
// a process's: one that has closed its own copy keeps it for as long as another has one, and lets
// go of it when it next looks, some milliseconds after the last close of all, or more where it does
// not get to run. The files themselves are closed when they are closed, as the kernel's are: what
// is known here tells a device that is open from one whose claims are yet to go.
//
//   note_file(device, role, inode)                      as soon as a client has a descriptor of it
//   Settling settling(device);
//   while (is_claimed(kind)) if (!settling.goes_on(kind)) refuse(EBUSY)
//
// I1  A file that is noted is forgotten only when nobody holds it, or with its device.
// I2  A claim may be there before its file is noted: who asks waits, and asks again.
// Differs: of a device that another process holds by a mapping alone, all descriptors closed,
// nothing tells that it is open; nor that a process which has not let go is stopped. Who asks waits
// for two seconds and is refused.
// Locking: the registry's, for each call, and none of it while the kernel is asked.

#include "base/result.h"
#include "base/types.h"

namespace stagetwo::vfio {

enum class ClaimKind : u32;
struct Listed;

// What a file's being open means: kBound: a device's own node that was bound to an iommufd.
enum class FileRole : u32 { kGroup = 1, kDevice = 2, kBound = 4 };

struct OpenFile {
  u64 inode;  // of the memfd; 0: none
  u32 role;
};
inline constexpr unsigned kMostFiles = 24;  // of one device
struct OpenFiles {
  OpenFile files[kMostFiles];
  u64 untold;  // there were more: all is said to be open
};

// Pre: somebody holds it, or has. It may be noted already, in another role, too.
void note_file(const Listed& device, FileRole role, u64 inode);

// Asked by whoever finds a claim in his way, again and again. False: it is not going to go, for
// somebody has such a file open. True: some time has passed, and it may have gone.
// Context: no lock of a room below abi held.
class Settling {
 public:
  explicit Settling(const Listed& device);
  [[nodiscard]] bool goes_on(ClaimKind kind);

 private:
  const u32 slot_;
  const u64 born_;
  u64 until_ = 0;
};

}  // namespace stagetwo::vfio
