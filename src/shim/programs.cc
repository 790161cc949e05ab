// SPDX-License-Identifier: Apache-2.0
#include "shim/programs.h"

#include <fcntl.h>
#include <limits.h>

#include "base/sys.h"
#include "host/access.h"
#include "host/run_section.h"
#include "shim/buffers.h"
#include "shim/mdev_files.h"
#include "shim/next.h"
#include "shim/open_descriptors.h"

namespace stagetwo::shim {
namespace {

bool stays_open(int fd) {
  const auto flags = sys::fcntl(fd, F_GETFD);
  return flags && (*flags & FD_CLOEXEC) == 0;
}

}  // namespace

Inheritance::Inheritance(const posix_spawn_file_actions_t* steps) {
  if (!host::any_shared_objects()) return;
  const int error = errno;
  host::EngineSection section(host::Touches::kClientMemory);
  const auto give = [&](int fd) {
    if (!given_.add(fd, host::GivenTo::kProgram)) refused_ = true;
  };
  const bool listed = for_each_open(0, INT_MAX, [&](int fd) {
    if (stays_open(fd)) give(fd);
  });
  if (!listed) given_.add_all();
  for_each_spawn_step(steps, [&](const SpawnStep& step) {
    if (step.kind == SpawnStep::kDup) give(step.descriptor());
  });
  section.leave();
  errno = error;
}

int add_opening(posix_spawn_file_actions_t* steps, int fd, const char* path, int flags,
                mode_t mode) {
  const MovedName moved(path);
  const std::string_view place(moved.path());
  const bool only_written = place.ends_with("/create") || place.ends_with("/remove");
  const bool leads = (flags & (O_ACCMODE | O_CREAT | O_TRUNC)) == O_RDONLY && !only_written;
  return next::posix_spawn_file_actions_addopen(steps, fd, leads ? moved.path() : path, flags,
                                                mode);
}

int add_entering(posix_spawn_file_actions_t* steps, const char* path) {
  return next::posix_spawn_file_actions_addchdir_np(steps, MovedName(path).path());
}

}  // namespace stagetwo::shim
