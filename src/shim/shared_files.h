// SPDX-License-Identifier: Apache-2.0
#pragma once

// What `host` has to hear of shared memory, so that pages of it may be taken away
// (host/shared_objects.h, host/page_owner.h): files made, given away, mapped, made smaller.
//
// Context: the client's thread, awake or not. errno is the call's.

#include <stdio.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <optional>

#include "host/change.h"
#include "host/file_change.h"
#include "host/held_pages.h"
#include "host/process_map.h"
#include "host/run_section.h"
#include "shim/announce.h"
#include "shim/engine.h"

namespace stagetwo::shim {

// Is the engine awake, or wakes now? Only memory that was seen from its first moment on may be
// taken, and under a limit from the start that is wanted of what a guest is given later, too.
[[nodiscard]] bool sees_shared_memory();
// memfd_create answered `fd`.
int noted_file(int fd);
// Shared memory was mapped there; MAP_FAILED is nothing. Post: no absent page shows through.
void* noted_mapping(void* at, size_t size, bool anonymous);
// Around a call that maps a part of a file, and what is told of the mapping: nothing of the part is
// absent meanwhile, so that the kernel cannot fill it with zeros. Where it is refused the call is
// not made; errno says so.
class ViewToCome {
 public:
  ViewToCome(int fd, off_t offset, u64 size);
  ViewToCome(const void* at, off_t offset, u64 size);  // of the file that is mapped there
  ~ViewToCome();
  ViewToCome(const ViewToCome&) = delete;
  ViewToCome& operator=(const ViewToCome&) = delete;
  [[nodiscard]] bool refused() const { return refused_; }

 private:
  host::HeldPages held_;
  bool refused_ = false;
};
// Are pages absent of the file that is about to be mapped, and could the mapping show them by its
// touches? It is one that the kernel does not fill, at an address that nobody knows.
[[nodiscard]] bool may_join_views(int fd, int prot, int flags);
// A mapping without rights does so from now on; it is to have the rights `prot`. False: it is to be
// made again, with the file's pages held (ViewToCome).
[[nodiscard]] bool joins_views(const void* at, size_t size, int prot);
// Private memory was mapped there, which nobody has the address of if it is `fresh`, or got other
// rights: host::join_watched().
void note_private(const void* at, size_t size, bool fresh);

// A stream reads and writes by libc's own calls, which are not seen: the memory behind it is whole
// from now on, and stays. Where some of it is lost there is no stream; errno says so.
bool stream_refused(int fd);
FILE* noted_stream(FILE* stream);

// Descriptors on their way to others (host/given_files.h). True: bytes of one are lost; errno says
// so.
bool giving_refused(const msghdr* message);
bool giving_refused(mmsghdr* messages, unsigned count);

// A call that takes bytes [offset, offset + size) out of a file.
template <typename F>
int take_out(int fd, off_t offset, u64 size, F&& call) {
  if (!awake() || offset < 0) [[likely]]
    return call();
  host::EngineSection section(host::Touches::kNothing);
  int result = 0;
  {
    host::FileChange change(fd, static_cast<u64>(offset), size);
    result = change.refused() ? host::no_memory<int>() : call();
    if (result == 0) change.succeeded();
  }
  section.leave();
  return result;
}

// A call that ends the file of that name at `size`, if it succeeds. Which file that is is asked
// before the call: who puts another in its place meanwhile has raced with it anyway.
// `flags`: of open, as far as they say what a name leads to.
std::optional<host::FileId> file_of_name(int directory, const char* path, int flags);
inline bool has_ended(int result) {
  return result >= 0;
}
inline bool has_ended(long result) {
  return result >= 0;
}
inline bool has_ended(const FILE* stream) {
  return stream != nullptr;
}
template <typename F>
auto take_out_named(int directory, const char* path, int flags, off_t size, F&& call) {
  const auto file =
      awake() && size >= 0 ? file_of_name(directory, path, flags) : std::optional<host::FileId>{};
  if (!file) [[likely]]
    return call();
  host::EngineSection section(host::Touches::kNothing);
  const auto result = [&] {
    host::FileChange change(*file, static_cast<u64>(size), host::FileChange::kToTheEnd);
    using Answer = decltype(call());
    const auto answer = change.refused() ? host::no_memory<Answer>() : call();
    if (has_ended(answer)) change.succeeded();
    return answer;
  }();
  section.leave();
  return result;
}

}  // namespace stagetwo::shim
