// SPDX-License-Identifier: Apache-2.0
#include "vfio/open_files.h"

#include "base/sys.h"
#include "host/descriptor.h"
#include "sync/futex.h"
#include "vfio/bus.h"
#include "vfio/device.h"
#include "vfio/registry.h"

namespace stagetwo::vfio {
namespace {

constexpr u64 kLookAgainNs = 1'000'000;
constexpr u64 kPatienceNs = 2'000'000'000;

constexpr u32 bit(FileRole role) {
  return static_cast<u32>(role);
}

// Files that have a claim of this kind.
u32 roles_of(ClaimKind kind) {
  switch (kind) {
    case ClaimKind::kGroup:
      return bit(FileRole::kGroup) | bit(FileRole::kDevice);
    case ClaimKind::kDevice:
      return bit(FileRole::kDevice) | bit(FileRole::kBound);
    case ClaimKind::kBound:
    case ClaimKind::kOwnNode:
      return bit(FileRole::kBound);
    case ClaimKind::kNode:
    case ClaimKind::kRemover:
      break;
  }
  return ~u32{0};
}

// On doubt, yes.
bool is_open(u64 inode) {
  return host::is_held_anywhere(inode).value_or(true);
}

// fn(files) under the lock, while it is that device.
template <typename F>
void with_files(u32 slot, u64 born, F&& fn) {
  const auto shared = registry();
  if (!shared) return;
  const sync::ProcessMutexGuard guard((*shared)->lock, sync::Rank::kContainer);
  Slot& found = (*shared)->slots[slot];
  if (found.born == born) fn(found.files);
}

// False: there is no room.
bool enter(OpenFiles& all, u64 inode, u32 role) {
  OpenFile* place = nullptr;
  for (OpenFile& file : all.files) {
    if (file.inode == inode) place = &file;
    if (file.inode == 0 && place == nullptr) place = &file;
  }
  if (place == nullptr) return false;
  if (place->inode != inode) *place = OpenFile{inode, 0};
  place->role |= role;
  return true;
}

bool is_any_open(u32 slot, u64 born, u32 roles) {
  OpenFiles copy{};
  with_files(slot, born, [&](const OpenFiles& all) { copy = all; });
  if (copy.untold != 0) return true;
  for (const OpenFile& file : copy.files) {
    if (file.inode != 0 && (file.role & roles) != 0 && is_open(file.inode)) return true;
  }
  return false;
}

void forget_closed(u32 slot, u64 born) {
  OpenFiles copy{};
  with_files(slot, born, [&](const OpenFiles& all) { copy = all; });
  for (OpenFile& file : copy.files) {
    if (file.inode != 0 && is_open(file.inode)) file.inode = 0;
  }
  with_files(slot, born, [&](OpenFiles& all) {
    for (unsigned i = 0; i < kMostFiles; ++i) {
      if (copy.files[i].inode == all.files[i].inode) all.files[i] = OpenFile{};
    }
  });
}

}  // namespace

void note_file(const Listed& device, FileRole role, u64 inode) {
  bool done = false;
  const auto try_once = [&] {
    with_files(device.slot, device.born,
               [&](OpenFiles& all) { done = enter(all, inode, bit(role)); });
  };
  try_once();
  if (done) return;
  forget_closed(device.slot, device.born);
  try_once();
  if (!done) with_files(device.slot, device.born, [](OpenFiles& all) { all.untold = 1; });
}

Settling::Settling(const Listed& device) : slot_(device.slot), born_(device.born) {}

bool Settling::goes_on(ClaimKind kind) {
  host::sweep_closed_memory();  // this process's own, whoever sees it first
  if (Device::is_open_here(slot_, born_)) return false;
  const u64 now = sys::monotonic_ns();
  if (until_ == 0) until_ = now + kPatienceNs;
  if (now > until_ || is_any_open(slot_, born_, roles_of(kind))) return false;
  sync::Atomic<u32> nobody_wakes{0};
  sync::futex_wait(nobody_wakes, 0, kLookAgainNs);
  return true;
}

}  // namespace stagetwo::vfio
