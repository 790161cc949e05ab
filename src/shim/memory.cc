// SPDX-License-Identifier: Apache-2.0
#include "shim/memory.h"

#include <errno.h>
#include <fcntl.h>

#include "base/sys.h"
#include "base/trace.h"
#include "host/change.h"
#include "host/descriptor.h"
#include "host/run_section.h"
#include "shim/engine.h"
#include "shim/next.h"

namespace stagetwo::shim {
namespace {

u64 number(const void* at) {
  return reinterpret_cast<u64>(at);
}

// What the kernel refuses before it asks the file, in its order.
int refusal_before_file(int fd, const host::DescriptionRef& ref, const host::MapRequest& request) {
  const auto flags = sys::fcntl(fd, F_GETFL);
  const int access = flags ? static_cast<int>(*flags) & O_ACCMODE : O_RDWR;
  const bool shared = (request.flags & MAP_TYPE) != MAP_PRIVATE;
  if (access == O_WRONLY) return EACCES;
  if (shared && (request.prot & PROT_WRITE) != 0 && access == O_RDONLY) return EACCES;
  const bool anonymous = ref.spec().shape == host::FileShape::kAnonInode;
  // Anonymous inodes live on a mount without execution.
  if (anonymous && (request.prot & PROT_EXEC) != 0) return EPERM;
  return 0;
}

// What stands against an mmap of `fd`, -errno; 0: nothing.
long refusal_of_map(int fd, const host::MapRequest& request) {
  struct ::stat behind{};
  if (!may_be_ours(fd, &behind)) return 0;
  host::EngineSection section(host::Touches::kNothing);
  long answer = 0;
  {
    const host::DescriptionRef ref = host::find(fd, behind);
    if (ref) answer = -refusal_before_file(fd, ref, request);
    if (ref && answer == 0 && ref.foreign()) {
      answer = -ENODEV;
    } else if (ref && answer == 0) {
      const auto checked = ref->check_mmap(request);
      if (!checked) answer = -static_cast<long>(to_int(checked.error()));
    }
  }
  section.leave();
  return answer;
}

// The system call between start and end, then the handlers that had to wait.
template <typename F>
auto change(const void* at, u64 size, host::EventKind kind, F&& system_call) {
  host::EngineSection section(host::Touches::kNothing);
  trace::enter_room(trace::Room::shim, 1, number(at));
  auto result = host::change(number(at), size, kind, static_cast<F&&>(system_call));
  section.leave();
  return result;
}

}  // namespace

void* map(void* at, size_t size, int prot, int flags, int fd, off_t offset) {
  const auto go_on = [&] { return next::mmap(at, size, prot, flags, fd, offset); };
  if (!awake()) [[likely]]
    return go_on();
  if (fd >= 0 && (flags & MAP_ANONYMOUS) == 0) {
    const long refusal = refusal_of_map(fd, {size, prot, flags, offset});
    if (refusal != 0) {
      as_libc(refusal);
      return MAP_FAILED;
    }
  }
  if (!host::mmap_replaces(flags)) return go_on();
  return change(at, size, host::EventKind::kUnmap, go_on);
}

int unmap(void* at, size_t size) {
  if (!awake()) [[likely]]
    return next::munmap(at, size);
  host::EngineSection section(host::Touches::kNothing);
  trace::enter_room(trace::Room::shim, 1, number(at));
  const int result = host::change(number(at), size, host::EventKind::kUnmap,
                                  [&] { return next::munmap(at, size); });
  // It may have been what kept a closed descriptor alive.
  host::sweep_closed();
  section.leave();
  return result;
}

void* remap(void* old_at, size_t old_size, size_t new_size, int flags, void* new_at) {
  const auto go_on = [&] { return next::mremap(old_at, old_size, new_size, flags, new_at); };
  if (!awake()) [[likely]]
    return go_on();
  const bool may_move = (flags & (MREMAP_MAYMOVE | MREMAP_FIXED)) != 0;
  const auto source = [&] {
    if (may_move) return change(old_at, old_size, host::EventKind::kUnmap, go_on);
    if (new_size >= old_size) return go_on();
    const auto* tail = static_cast<const char*>(old_at) + new_size;
    return change(tail, old_size - new_size, host::EventKind::kUnmap, go_on);
  };
  if ((flags & MREMAP_FIXED) == 0) return source();
  return change(new_at, new_size, host::EventKind::kUnmap, source);
}

int protect(void* at, size_t size, int prot, int key) {
  const auto go_on = [&] {
    return key < 0 ? next::mprotect(at, size, prot) : next::pkey_mprotect(at, size, prot, key);
  };
  if (!awake()) [[likely]]
    return go_on();
  const auto loss = host::loss_by_mprotect(prot);
  return loss ? change(at, size, *loss, go_on) : go_on();
}

int advise(void* at, size_t size, int advice) {
  const auto go_on = [&] { return next::madvise(at, size, advice); };
  if (!awake()) [[likely]]
    return go_on();
  const auto loss = host::loss_by_madvise(advice);
  return loss ? change(at, size, *loss, go_on) : go_on();
}

}  // namespace stagetwo::shim
