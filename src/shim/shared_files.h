// SPDX-License-Identifier: Apache-2.0
#pragma once

// What `host` has to hear of shared memory, so that pages of it may be taken away
// (host/shared_objects.h, host/page_owner.h): files made, given away, mapped, made smaller.
//
// Context: the client's thread, awake or not. errno is the call's.

#include <sys/socket.h>
#include <sys/types.h>

#include "host/file_change.h"
#include "host/process_map.h"
#include "host/run_section.h"
#include "shim/announce.h"
#include "shim/engine.h"

namespace stagetwo::shim {

// memfd_create answered `fd`.
int noted_file(int fd, bool inherited);
// Shared memory was mapped there; MAP_FAILED is nothing. Post: no absent page shows through.
void* noted_mapping(void* at, size_t size, bool anonymous);

// Descriptors on their way to others. Answer what they were given.
const msghdr* noted(const msghdr* message);
mmsghdr* noted(mmsghdr* messages, unsigned count);
int noted_fcntl(int fd, int command, long argument);

// A call that takes bytes [offset, offset + size) out of a file.
template <typename F>
int take_out(int fd, off_t offset, u64 size, F&& call) {
  if (!awake() || offset < 0) [[likely]]
    return call();
  host::EngineSection section(host::Touches::kNothing);
  int result = 0;
  {
    host::FileChange change(fd, static_cast<u64>(offset), size);
    result = call();
    if (result == 0) change.succeeded();
  }
  section.leave();
  return result;
}

// MADV_REMOVE: of the file that is mapped there.
template <typename F>
int take_out_mapped(const void* at, size_t size, F&& call) {
  const auto mapping = host::mapping_at(Hva(number_of(at)));
  if (!mapping || !mapping->shared || mapping->range.end().raw() - number_of(at) < size) {
    return announce(at, size, host::EventKind::kClear, host::Announced::kPunches, call);
  }
  host::EngineSection section(host::Touches::kNothing);
  int result = 0;
  {
    const u64 offset = mapping->offset + (number_of(at) - mapping->range.start().raw());
    host::FileChange change({mapping->device, mapping->inode}, offset, size);
    result = call();
    if (result == 0) change.succeeded();
  }
  section.leave();
  return result;
}

}  // namespace stagetwo::shim
