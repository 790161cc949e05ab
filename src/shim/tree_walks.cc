// SPDX-License-Identifier: Apache-2.0
#include "shim/tree_walks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include <memory>
#include <string_view>

#include "base/alloc.h"
#include "shim/absent_buffers.h"
#include "shim/files.h"
#include "shim/mdev_files.h"
#include "shim/next.h"
#include "shim/options.h"
#include "shim/paths.h"

namespace stagetwo::shim {
namespace {

// ---- glob

void* open_folder(const char* path) {
  return ::opendir(path);
}
dirent* read_folder(void* folder) {
  return ::readdir(static_cast<DIR*>(folder));
}
void close_folder(void* folder) {
  ::closedir(static_cast<DIR*>(folder));
}
int stat_name(const char* path, struct ::stat* out) {
  return stat_at(AT_FDCWD, path, out, 0);
}
int lstat_name(const char* path, struct ::stat* out) {
  return stat_at(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
}

// ---- nftw

bool is_shown(const char* path) {
  if (MovedName(path).moved()) return true;
  const Target target = target_of(AT_FDCWD, path);
  return target && !target.file.kernel_has_it();
}

// What a step answers without FTW_ACTIONRETVAL ends the walk unless it is 0; with it, these.
constexpr int kGoOn = 0, kSkipTree = INT_MIN, kSkipRest = INT_MIN + 1;

class Walk {
 public:
  Walk(WalkStep step, OldWalkStep old_step, int flags)
      : step_(step), old_step_(old_step), flags_(flags) {}
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;
  ~Walk() {
    while (seen_ != nullptr) {
      Seen* const one = seen_;
      seen_ = one->next;
      destroy(one);
    }
    if (here_ >= 0) {
      const int error = errno;
      static_cast<void>(::fchdir(here_));
      close_fd(here_);
      errno = error;
    }
  }

  int run(const char* path) {
    const size_t size = strlen(path);
    if (size >= sizeof(path_)) return fail(ENAMETOOLONG);
    memcpy(path_, path, size + 1);
    length_ = size;
    while (length_ > 1 && path_[length_ - 1] == '/') path_[--length_] = '\0';
    if ((flags_ & FTW_CHDIR) != 0) {
      here_ = open_at(AT_FDCWD, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
      if (here_ < 0) return -1;
    }
    const char* const slash = strrchr(path_, '/');
    const int answer = visit(slash == nullptr ? 0 : static_cast<int>(slash + 1 - path_), 0);
    return answer == kSkipTree || answer == kSkipRest ? 0 : answer;
  }

 private:
  struct Seen {
    dev_t device;
    ino_t inode;
    Seen* next;
  };

  static int fail(int error) {
    errno = error;
    return -1;
  }

  bool is_new(const struct ::stat& said) {
    for (const Seen* one = seen_; one != nullptr; one = one->next) {
      if (one->device == said.st_dev && one->inode == said.st_ino) return false;
    }
    const auto made = make<Seen>("shim.walk", Seen{said.st_dev, said.st_ino, seen_});
    if (made) seen_ = *made;
    failed_ = !made;
    return true;
  }

  // In the order of libc's: what a name is, and whether it is walked at all.
  int visit(int base, int level) {
    struct ::stat said{};
    int kind = FTW_NS;
    const bool links = old_step_ == nullptr && (flags_ & FTW_PHYS) != 0;
    if (stat_at(AT_FDCWD, path_, &said, links ? AT_SYMLINK_NOFOLLOW : 0) == 0) {
      kind = S_ISDIR(said.st_mode) ? FTW_D : S_ISLNK(said.st_mode) ? FTW_SL : FTW_F;
    } else if (errno != EACCES && errno != ENOENT) {
      return -1;
    } else if (lstat_name(path_, &said) == 0 && S_ISLNK(said.st_mode)) {
      kind = old_step_ != nullptr ? FTW_NS : FTW_SLN;
    } else if (level == 0) {
      return -1;
    }
    if (kind != FTW_NS && (flags_ & FTW_MOUNT) != 0) {
      if (level == 0) device_ = said.st_dev;
      if (said.st_dev != device_) return kGoOn;
    }
    if (kind != FTW_D) return tell(said, kind, base, level);
    // A folder is walked once, however many links lead there.
    if (!links && !is_new(said)) return kGoOn;
    return failed_ ? fail(ENOMEM) : visit_folder(said, base, level);
  }

  int visit_folder(const struct ::stat& said, int base, int level) {
    DIR* const folder = ::opendir(path_);
    if (folder == nullptr && errno == EACCES) return tell(said, FTW_DNR, base, level);
    if (folder == nullptr) return -1;
    const bool after = (flags_ & FTW_DEPTH) != 0;
    int answer = after ? kGoOn : tell(said, FTW_D, base, level);
    if (answer == kGoOn) {
      answer = visit_names(folder, level + 1);
    } else if (answer == kSkipTree) {
      answer = kGoOn;
    }
    const int error = errno;
    ::closedir(folder);
    errno = error;
    if (answer == kSkipRest && level_of_skip_ > level) answer = kGoOn;
    return answer == kGoOn && after ? tell(said, FTW_DP, base, level) : answer;
  }

  int visit_names(DIR* folder, int level) {
    const size_t before = length_;
    if (path_[length_ - 1] != '/') path_[length_++] = '/';
    const size_t base = length_;
    int answer = kGoOn;
    while (answer == kGoOn) {
      const dirent* const entry = ::readdir(folder);
      if (entry == nullptr) break;
      const size_t size = strlen(entry->d_name);
      if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
      if (base + size >= sizeof(path_)) {
        answer = fail(ENAMETOOLONG);
        break;
      }
      memcpy(path_ + base, entry->d_name, size + 1);
      length_ = base + size;
      answer = visit(static_cast<int>(base), level);
    }
    length_ = before;
    path_[length_] = '\0';
    return answer;
  }

  int tell(const struct ::stat& said, int kind, int base, int level) {
    if (old_step_ != nullptr) return old_step_(path_, &said, kind);
    if ((flags_ & FTW_CHDIR) != 0 && !enter_folder_of(base)) return -1;
    FTW where{base, level};
    const int answer = step_(path_, &said, kind, &where);
    if ((flags_ & FTW_ACTIONRETVAL) == 0) return answer;
    if (answer == FTW_SKIP_SUBTREE) return kind == FTW_D ? kSkipTree : kGoOn;
    if (answer != FTW_SKIP_SIBLINGS) return answer;
    level_of_skip_ = level;
    return kSkipRest;
  }

  bool enter_folder_of(int base) {
    if (base == 0) return ::fchdir(here_) == 0;
    const size_t end = base == 1 ? 1 : static_cast<size_t>(base) - 1;
    const char kept = path_[end];
    path_[end] = '\0';
    const int done = path_[0] == '/' || ::fchdir(here_) == 0 ? ::chdir(path_) : -1;
    path_[end] = kept;
    return done == 0;
  }

  WalkStep step_;
  OldWalkStep old_step_;
  int flags_;
  int here_ = -1;  // with FTW_CHDIR
  int level_of_skip_ = 0;
  dev_t device_ = 0;
  bool failed_ = false;
  Seen* seen_ = nullptr;
  size_t length_ = 0;
  char path_[PATH_MAX];
};

// ---- fts

// Of the session's own name at the beginning of a place in its tree: that is left out.
size_t hidden_in(const char* place) {
  const std::string_view session = option("session");
  const std::string_view whole(place);
  if (session.empty() || !whole.starts_with(session)) return 0;
  const std::string_view rest = whole.substr(session.size());
  return rest.starts_with("/sys/") || rest.starts_with("/dev/vfio") ? session.size() : 0;
}

// libc reads what it has told when it goes on.
void give_back(const FTS* walk) {
  FTSENT* const entry = walk->fts_cur;
  const size_t hidden = entry == nullptr ? 0 : option("session").size();
  if (hidden == 0 || entry->fts_path != walk->fts_path + hidden) return;
  if (entry->fts_accpath == entry->fts_path) entry->fts_accpath = walk->fts_path;
  entry->fts_path = walk->fts_path;
  entry->fts_pathlen = static_cast<unsigned short>(entry->fts_pathlen + hidden);
}

void show_as_asked(const FTS* walk, FTSENT* entry) {
  if (entry == nullptr || entry->fts_path != walk->fts_path) return;
  const size_t hidden = hidden_in(entry->fts_path);
  if (hidden == 0) return;
  if (entry->fts_accpath == entry->fts_path) entry->fts_accpath += hidden;
  entry->fts_path += hidden;
  entry->fts_pathlen = static_cast<unsigned short>(entry->fts_pathlen - hidden);
  if (entry->fts_info != FTS_F || (walk->fts_options & FTS_NOSTAT) != 0) return;
  const int error = errno;
  if (lstat_name(entry->fts_path, entry->fts_statp) == 0 && !S_ISREG(entry->fts_statp->st_mode)) {
    entry->fts_info = FTS_DEFAULT;  // a node, for which a file stands
  }
  errno = error;
}

}  // namespace

int find_names(const char* pattern, int flags, GlobError on_error, glob_t* to) {
  const auto go_on = [&](int with) {
    return with_buffers([&](Buffers& buffers) { buffers.text(pattern); },
                        [&] { return next::glob(pattern, with, on_error, to); });
  };
  if ((flags & GLOB_ALTDIRFUNC) != 0 || to == nullptr) return go_on(flags);
  const glob_t clients = *to;
  to->gl_opendir = open_folder;
  to->gl_readdir = read_folder;
  to->gl_closedir = close_folder;
  to->gl_stat = stat_name;
  to->gl_lstat = lstat_name;
  const int result = go_on(flags | GLOB_ALTDIRFUNC);
  to->gl_opendir = clients.gl_opendir;
  to->gl_readdir = clients.gl_readdir;
  to->gl_closedir = clients.gl_closedir;
  to->gl_stat = clients.gl_stat;
  to->gl_lstat = clients.gl_lstat;
  to->gl_flags &= ~GLOB_ALTDIRFUNC;
  return result;
}

int walk_tree(const char* path, WalkStep step, int most_open, int flags) {
  if (!is_shown(path)) return next::nftw(path, step, most_open, flags);
  constexpr int kKnown = FTW_PHYS | FTW_MOUNT | FTW_CHDIR | FTW_DEPTH | FTW_ACTIONRETVAL;
  if ((flags & ~kKnown) != 0) return with_errno<int>(EINVAL);
  Walk walk(step, nullptr, flags);
  return walk.run(path);
}

int walk_tree(const char* path, OldWalkStep step, int most_open) {
  if (!is_shown(path)) return next::ftw(path, step, most_open);
  Walk walk(nullptr, step, 0);
  return walk.run(path);
}

FTS* open_walk(char* const* names, int options, FtsOrder order) {
  size_t count = 0;
  bool any = false;
  for (; names[count] != nullptr; ++count) any = any || MovedName(names[count]).moved();
  if (!any) return next::fts_open(names, options, order);
  struct Places {
    MovedName* names;
    char** paths;
  };
  const size_t bytes = count * sizeof(MovedName) + (count + 1) * sizeof(char*);
  void* const block = alloc(bytes, alignof(MovedName), "shim.walk");
  if (block == nullptr) return with_errno<FTS*>(ENOMEM);
  const Places places{static_cast<MovedName*>(block),
                      reinterpret_cast<char**>(static_cast<MovedName*>(block) + count)};
  for (size_t i = 0; i < count; ++i) {
    const MovedName* const moved = std::construct_at(places.names + i, names[i]);
    places.paths[i] = const_cast<char*>(moved->path());
  }
  places.paths[count] = nullptr;
  FTS* const walk = next::fts_open(places.paths, options, order);
  const int error = errno;
  dealloc(block, bytes, alignof(MovedName));
  errno = error;
  return walk;
}

FTSENT* read_walk(FTS* walk) {
  give_back(walk);
  FTSENT* const entry = next::fts_read(walk);
  show_as_asked(walk, entry);
  return entry;
}

FTSENT* children_of_walk(FTS* walk, int options) {
  FTSENT* const entry = walk->fts_cur;
  give_back(walk);
  FTSENT* const children = next::fts_children(walk, options);
  show_as_asked(walk, entry);
  return children;
}

}  // namespace stagetwo::shim
