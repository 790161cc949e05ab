// SPDX-License-Identifier: Apache-2.0
#include "host/session.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <memory>

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/check.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/client_limits.h"
#include "sync/mutex.h"
#include "sync/passing_number.h"

namespace stagetwo::host {
namespace {

constexpr std::string_view kValues = kSessionValues;
constexpr size_t kLongestPath = 512;

using Word = sync::Atomic<u64>;
constexpr size_t kPageBytes = sizeof(Word) * kSessionWords;
static_assert(kPageBytes == kPageSize);

enum class Joined : u32 { kUndecided, kNo, kYes };

constinit Word own_words[kSessionWords];
// Set once, under `threads`; a reader that misses it reads words nobody has written yet.
constinit sync::Atomic<Word*> shared_words{nullptr};
constinit sync::Atomic<Joined> joined{Joined::kUndecided};
constinit sync::Mutex threads{
    sync::Rank::kStats};  // the threads here; other processes: a file lock
// Written once, before `joined` is released as kYes.
char directory[kLongestPath];

Result<int> open_below(std::string_view folder, std::string_view name, int flags) {
  FixedString<kLongestPath + 64> path(folder);
  path.append_char('/').append(name);
  if (path.cut()) return refuse(ENAMETOOLONG);
  return sys::openat(AT_FDCWD, path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0600);
}

Result<Word*> map_values(std::string_view folder) {
  const sync::PassingNumber passing;
  const int fd = ST_TRY(open_below(folder, kValues, O_RDWR | O_CREAT));
  Result<void*> mapped = refuse(EIO);
  if (const auto sized = set_file_size(fd, kPageBytes); sized) {
    mapped = map_file(kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0, "host.session_values");
  }
  static_cast<void>(sys::close(fd));
  if (!mapped) return refuse(mapped.error());
  return static_cast<Word*>(*mapped);
}

}  // namespace

sync::Atomic<u64>& session_word(unsigned index) {
  ST_DCHECK(index < kSessionWords);
  Word* const shared = shared_words.load(sync::kAcquire);
  return (shared == nullptr ? own_words : shared)[index];
}

Result<void> join_session(std::string_view folder) {
  if (joined.load(sync::kAcquire) != Joined::kUndecided) return {};
  const sync::MutexGuard guard(threads);
  if (joined.load(sync::kRelaxed) != Joined::kUndecided) return {};
  joined.store(Joined::kNo, sync::kRelaxed);
  if (folder.empty()) return {};
  TextWriter copy(directory, sizeof(directory));
  if (copy.append(folder).cut()) return refuse(ENAMETOOLONG);
  shared_words.store(ST_TRY(map_values(folder)), sync::kRelease);
  joined.store(Joined::kYes, sync::kRelease);
  return {};
}

std::string_view session_folder() {
  return joined.load(sync::kAcquire) == Joined::kYes ? std::string_view(directory)
                                                     : std::string_view();
}

bool session_is_named() {
  const std::string_view folder = session_folder();
  const size_t name = folder.rfind('/') + 1;  // 0: no slash
  return name < folder.size() && folder[name] != '.';
}

Result<int> open_in_session(std::string_view name, int flags) {
  if (joined.load(sync::kAcquire) != Joined::kYes) return refuse(ENOENT);
  return open_below(directory, name, flags);
}

// The file lock is of the file description: gone with the descriptor, kill -9 included.
SessionLock::SessionLock() : guard_(threads) {
  const auto fd = open_in_session(kValues, O_RDWR);
  if (!fd) return;
  fd_ = *fd;
  struct ::flock whole{};
  whole.l_type = F_WRLCK;
  static_cast<void>(sys::fcntl(fd_, F_OFD_SETLKW, sys::arg(&whole)));
}

SessionLock::~SessionLock() {
  if (fd_ >= 0) static_cast<void>(sys::close(fd_));
}

void session_after_fork_child() {
  std::construct_at(&threads, sync::Rank::kLeaf);
}

void debug_leave_session() {
  for (Word& word : own_words) word.store(0, sync::kRelaxed);
  shared_words.store(nullptr, sync::kRelaxed);
  joined.store(Joined::kUndecided, sync::kRelaxed);
}

}  // namespace stagetwo::host
