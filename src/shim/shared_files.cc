// SPDX-License-Identifier: Apache-2.0
#include "shim/shared_files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/sys.h"
#include "host/blocked_faults.h"
#include "host/given_files.h"
#include "host/page_owner.h"
#include "host/shared_objects.h"
#include "shim/announce.h"
#include "shim/files.h"
#include "shim/memory_limit.h"
#include "shim/rights.h"

namespace stagetwo::shim {
namespace {

template <typename F>
void tell(host::Touches touches, F&& what) {
  const int error = errno;
  host::EngineSection section(touches);
  what();
  section.leave();
  errno = error;
}

bool give(const msghdr* message) {
  bool whole = true;
  for_each_right(message, [&](int fd) {
    host::GivenFiles given;
    whole = given.add(fd, host::GivenTo::kReceiver) && whole;
    given.keep();
  });
  return whole;
}

}  // namespace

bool sees_shared_memory() {
  return awake() || (limited_from_the_start() && wake().has_value());
}

int noted_file(int fd) {
  if (fd < 0 || !sees_shared_memory()) return fd;
  tell(host::Touches::kNothing, [&] { host::shared_file_made(fd); });
  return fd;
}

void* noted_mapping(void* at, size_t size, bool anonymous) {
  if (!awake() || at == MAP_FAILED || (!anonymous && !host::owners_active())) [[likely]]
    return at;
  const auto range = host::pages_of(number_of(at), size);
  if (!range) return at;
  tell(host::Touches::kNothing, [&] {
    if (anonymous) {
      host::shared_memory_mapped(range->start());
    } else {
      host::owners_see_mapping(*range);
    }
  });
  return at;
}

bool may_join_views(int fd, int prot, int flags) {
  constexpr int kRights = PROT_READ | PROT_WRITE | PROT_EXEC;
  constexpr int kHarmless = MAP_NORESERVE | MAP_32BIT;
  constexpr int kSharedValidate = 3;
  const int type = flags & MAP_TYPE;
  if (!awake() || fd < 0 || !host::owners_active()) [[likely]]
    return false;
  if ((type != MAP_SHARED && type != kSharedValidate) || (prot & ~kRights) != 0 ||
      (flags & ~(MAP_TYPE | kHarmless)) != 0) {
    return false;
  }
  bool may = false;
  tell(host::Touches::kNothing, [&] {
    const u64 object = host::object_behind(fd);
    if (object == 0 || host::kept_pages_of(object) == 0) return;
    struct ::stat behind{};
    may = !may_be_ours(fd, &behind) || !host::find(fd, behind);
  });
  return may;
}

bool joins_views(const void* at, size_t size, int prot) {
  const Prot wanted{(prot & PROT_READ) != 0, (prot & PROT_WRITE) != 0, (prot & PROT_EXEC) != 0};
  const auto range = host::pages_of(number_of(at), size);
  bool joined = false;
  if (range) {
    tell(host::Touches::kNothing, [&] { joined = host::owners_join_mapping(*range, wanted); });
  }
  return joined;
}

ViewToCome::ViewToCome(int fd, off_t offset, u64 size) {
  if (!awake() || fd < 0 || !host::owners_active()) [[likely]]
    return;
  tell(host::Touches::kNothing,
       [&] { refused_ = !held_.hold_for_view(fd, static_cast<u64>(offset), size); });
  if (refused_) errno = ENOMEM;
}

ViewToCome::ViewToCome(const void* at, off_t offset, u64 size) {
  if (!awake() || !host::owners_active()) [[likely]]
    return;
  tell(host::Touches::kNothing, [&] {
    const auto like = host::mapping_at(Hva(number_of(at)));
    refused_ = like && !held_.hold_for_view(*like, static_cast<u64>(offset), size);
  });
  if (refused_) errno = ENOMEM;
}

ViewToCome::~ViewToCome() {
  if (held_.holds()) tell(host::Touches::kNothing, [&] { held_.release(); });
}

void note_private(const void* at, size_t size, bool fresh) {
  // Where touches are signals it may have been a stack of libc's before.
  const bool matters = awake() && (host::owners_active() || host::touches_are_signals());
  const auto range = matters ? host::pages_of(number_of(at), size) : std::optional<HvaRange>{};
  if (range) tell(host::Touches::kNothing, [&] { host::join_watched(*range, fresh); });
}

bool stream_refused(int fd) {
  if (!awake()) [[likely]]
    return false;
  bool whole = true;
  tell(host::Touches::kNothing, [&] {
    host::GivenFiles given;
    whole = given.add(fd, host::GivenTo::kReceiver);
    given.keep();
  });
  if (!whole) errno = EIO;
  return !whole;
}

FILE* noted_stream(FILE* stream) {
  if (!awake() || stream == nullptr || !stream_refused(::fileno(stream))) [[likely]]
    return stream;
  close_stream(stream);
  errno = EIO;
  return nullptr;
}

bool giving_refused(const msghdr* message) {
  bool whole = true;
  if (awake()) tell(host::Touches::kClientMemory, [&] { whole = give(message); });
  if (!whole) errno = EIO;
  return !whole;
}

bool giving_refused(mmsghdr* messages, unsigned count) {
  bool whole = true;
  if (!awake()) return false;
  tell(host::Touches::kClientMemory, [&] {
    for (unsigned i = 0; i < std::min(count, 1024u); ++i) {
      whole = give(&messages[i].msg_hdr) && whole;
    }
  });
  if (!whole) errno = EIO;
  return !whole;
}

std::optional<host::FileId> file_of_name(int directory, const char* path, int flags) {
  struct ::stat behind{};
  const int follow = (flags & O_NOFOLLOW) != 0 ? AT_SYMLINK_NOFOLLOW : 0;
  const long asked =
      sys::call(SYS_newfstatat, directory, sys::arg(path), sys::arg(&behind), follow);
  if (asked != 0 || !S_ISREG(behind.st_mode)) return std::nullopt;
  return host::FileId{behind.st_dev, behind.st_ino};
}

}  // namespace stagetwo::shim
