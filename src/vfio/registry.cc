// SPDX-License-Identifier: Apache-2.0
#include "vfio/registry.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <memory>

#include "base/sys.h"
#include "host/client_limits.h"
#include "host/device_memory.h"
#include "host/session.h"
#include "sync/passing_number.h"

namespace stagetwo::vfio {
namespace {

constexpr std::string_view kFile = "mdev";
constexpr off_t kFirstByte = off_t{1} << 40;  // of the claims: behind all that is mapped

constinit sync::Mutex mapping{sync::Rank::kStats};
constinit sync::Atomic<Registry*> mapped{nullptr};
// Set before the mapping; neither is ever taken back.
constinit sync::Atomic<host::HeldFd*> file{nullptr};

Result<int> open_file() {
  if (const auto shared = host::open_in_session(kFile, O_RDWR | O_CREAT)) return *shared;
  return sys::memfd_create("stagetwo-mdev", MFD_CLOEXEC);
}

// Whoever comes first writes the head; a fresh file reads as zeros.
Result<Registry*> map(int fd) {
  ST_TRY(host::set_file_size(fd, memory_of(kSlots)));
  auto* const found = static_cast<Registry*>(ST_TRY(
      map_file(sizeof(Registry), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0, "vfio.registry")));
  {
    const sync::ProcessMutexGuard guard(found->lock, sync::Rank::kContainer);
    if (found->magic == 0) {
      found->version = Registry::kVersion;
      found->magic = Registry::kMagic;
    }
    if (found->magic == Registry::kMagic && found->version == Registry::kVersion) return found;
  }
  unmap_pages(found, sizeof(Registry));
  return refuse(EIO);
}

// Pre: `mapping`. Post: `fd` is taken, also on failure.
Result<void> keep(int fd) {
  host::HeldFd* held = file.load(sync::kRelaxed);
  if (held == nullptr) {
    auto made = make_box<host::HeldFd>("vfio.registry_file", host::HeldFd::Child::kHasIt);
    if (!made) {
      static_cast<void>(sys::close(fd));
      return refuse(made.error());
    }
    held = made->release();
    file.store(held, sync::kRelease);
  }
  return held->hold(fd);
}

struct ::flock byte_of(ClaimKind kind, u64 born, short type) {
  struct ::flock byte{};
  byte.l_type = type;
  byte.l_start = kFirstByte + static_cast<off_t>(born * 8 + static_cast<u32>(kind));
  byte.l_len = 1;
  return byte;
}

}  // namespace

Result<Registry*> registry() {
  if (Registry* const found = mapped.load(sync::kAcquire)) return found;
  const int fd = ST_TRY(open_file());
  const auto made = map(fd);
  if (!made) {
    static_cast<void>(sys::close(fd));
    return refuse(made.error());
  }
  // Two threads may have come here: one's file and mapping stay.
  Registry* before = nullptr;
  {
    const sync::MutexGuard guard(mapping);
    before = mapped.load(sync::kRelaxed);
    if (before == nullptr) {
      if (const auto held = keep(fd); !held) {
        unmap_pages(*made, sizeof(Registry));
        return refuse(held.error());
      }
      mapped.store(*made, sync::kRelease);
      return *made;
    }
  }
  static_cast<void>(sys::close(fd));
  unmap_pages(*made, sizeof(Registry));
  return before;
}

Result<Claim> claim(ClaimKind kind, u64 born, Share share) {
  static_cast<void>(ST_TRY(registry()));
  auto held = ST_TRY(make_box<host::HeldFd>("vfio.claim", host::HeldFd::Child::kHasIt));
  const int fd = ST_TRY([] {
    const auto use = file.load(sync::kAcquire)->number().use();
    return host::reopen_engine_file(use.get());
  }());
  struct ::flock byte = byte_of(kind, born, share == Share::kMany ? F_RDLCK : F_WRLCK);
  auto locked = sys::fcntl(fd, F_OFD_SETLK, sys::arg(&byte));
  if (locked && share == Share::kFirst) {
    byte.l_type = F_RDLCK;
    locked = sys::fcntl(fd, F_OFD_SETLK, sys::arg(&byte));
  }
  if (!locked) {
    static_cast<void>(sys::close(fd));
    return refuse(EBUSY);
  }
  ST_TRY(held->hold(fd));
  return held;
}

Result<u8*> map_memory(u32 slot) {
  const auto use = file.load(sync::kAcquire)->number().use();
  return static_cast<u8*>(
      ST_TRY(map_file(Model::kMemoryBytes, PROT_READ | PROT_WRITE, MAP_SHARED, use.get(),
                      static_cast<long>(memory_of(slot)), "vfio.memory")));
}

Result<void> show_memory(u32 slot, u64 offset, u64 size, int prot, Hva at) {
  const auto use = file.load(sync::kAcquire)->number().use();
  static_cast<void>(
      ST_TRY(sys::mmap(reinterpret_cast<void*>(at.raw()), size, prot, MAP_SHARED | MAP_FIXED,
                       use.get(), static_cast<off_t>(memory_of(slot) + offset))));
  // Not before a client maps it: who asks for the process's map has to be one whose forks are seen.
  // Where it fails the device's memory is pinned as any file's.
  static constinit sync::Atomic<bool> noted{false};
  if (!noted.exchange(true)) static_cast<void>(host::note_device_memory(at));
  return {};
}

Result<host::FileId> show_nothing(u64 size, int prot, Hva at) {
  const sync::PassingNumber passing;
  const int empty = ST_TRY(sys::memfd_create("stagetwo-off", MFD_CLOEXEC));
  struct ::stat behind{};
  const auto named = sys::fstat(empty, &behind);
  const auto done =
      sys::mmap(reinterpret_cast<void*>(at.raw()), size, prot, MAP_SHARED | MAP_FIXED, empty, 0);
  static_cast<void>(sys::close(empty));
  if (!done) return refuse(done.error());
  return named ? host::FileId{behind.st_dev, behind.st_ino} : host::FileId{};
}

// As the kernel names it among the mappings, which of some file systems is not what fstat says.
bool is_registry(const host::Mapping& found) {
  const auto own = host::shown_mapping_at(Hva(reinterpret_cast<u64>(mapped.load(sync::kAcquire))));
  return own && own->inode == found.inode && own->device == found.device;
}

void wipe_memory(u32 slot) {
  const auto use = file.load(sync::kAcquire)->number().use();
  sys::call(SYS_fallocate, use.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            static_cast<long>(memory_of(slot)), static_cast<long>(Model::kMemoryBytes));
}

u32 units_in_use(const Registry& shared, const Parent& parent) {
  u32 units = 0;
  for (const Slot& slot : shared.slots) {
    const bool in_use = slot.state.load(sync::kAcquire) != SlotState::kFree;
    if (in_use && parent.name == slot.parent) units += slot.units;
  }
  return units;
}

u32 instances_left(const Registry& shared, const TypeRef& type) {
  const Parent& parent = *type.parent;
  const u32 left = parent.units - units_in_use(shared, parent);
  return parent.counting == Counting::kCore ? left : left / type.get().units;
}

bool is_claimed(ClaimKind kind, u64 born) {
  const auto use = file.load(sync::kAcquire)->number().use();
  struct ::flock byte = byte_of(kind, born, F_WRLCK);
  const auto asked = sys::fcntl(use.get(), F_OFD_GETLK, sys::arg(&byte));
  return asked && byte.l_type != F_UNLCK;
}

u64 registry_identity() {
  if (!registry()) return 0;
  const auto use = file.load(sync::kAcquire)->number().use();
  struct ::stat behind{};
  return sys::fstat(use.get(), &behind) ? behind.st_ino : 0;
}

void registry_after_fork_child() {
  std::construct_at(&mapping, sync::Rank::kStats);
}

void debug_leave_registry() {
  const sync::MutexGuard guard(mapping);
  if (Registry* const found = mapped.load(sync::kRelaxed)) unmap_pages(found, sizeof(Registry));
  mapped.store(nullptr, sync::kRelease);
  if (host::HeldFd* const held = file.load(sync::kRelaxed)) held->close();
}

}  // namespace stagetwo::vfio
