// SPDX-License-Identifier: Apache-2.0
#pragma once

// Programs that start in place of this process, or of a child that uses its memory until then
// (vfork, posix_spawn, and what libc makes of it: system, popen, wordexp). What one inherits of
// shared memory it may read: so that is whole before, and stays in memory (host/given_files.h).
// A child of fork has done with that at the fork (shim/forks.h).
//
// The descriptors are looked through as the call is made, in the process that makes it: another
// thread that takes a close-on-exec flag off at the same moment gives its file to nobody who knows.
//
// Context: the client's thread, awake or not. errno is the call's.

#include <errno.h>
#include <spawn.h>

#include <type_traits>

#include "host/given_files.h"
#include "shim/engine.h"

namespace stagetwo::shim {

class Inheritance {
 public:
  // `steps`: what a child of posix_spawn does with its descriptors first; null: nothing.
  explicit Inheritance(const posix_spawn_file_actions_t* steps);
  // Bytes of something it would inherit are lost: the program is not to start.
  [[nodiscard]] bool refused() const { return refused_; }
  void started() { given_.keep(); }

 private:
  host::GivenFiles given_;
  bool refused_ = false;
};

// How a call says that no program has started.
constexpr auto kNever = [](auto) { return true; };  // it returns
constexpr auto kMinusOne = [](int result) { return result == -1; };
constexpr auto kErrno = [](int result) { return result != 0; };
constexpr auto kNull = [](const void* result) { return result == nullptr; };

// `refusal`: what it answers where bytes are lost; errno is EIO then.
template <typename Failed, typename T, typename F>
T start_program(const posix_spawn_file_actions_t* steps, Failed&& failed, T refusal, F&& call) {
  if (!awake()) [[likely]]
    return call();
  Inheritance inherited(steps);
  if (inherited.refused()) {
    errno = EIO;
    return refusal;
  }
  const T result = call();
  if (!failed(result)) inherited.started();
  return result;
}

// What a child opens and enters is opened and entered inside libc: by the name that leads there. A
// device, and a file of sysfs that is to be written, are none of libc's to open: ENOENT in the
// child.
int add_opening(posix_spawn_file_actions_t* steps, int fd, const char* path, int flags,
                mode_t mode);
int add_entering(posix_spawn_file_actions_t* steps, const char* path);

}  // namespace stagetwo::shim
