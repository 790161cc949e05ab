// SPDX-License-Identifier: Apache-2.0
#include "shim/behind.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/sys.h"
#include "host/access.h"
#include "host/descriptor.h"
#include "host/process_map.h"
#include "host/run_section.h"
#include "shim/absent_buffers.h"
#include "shim/buffered_calls.h"
#include "shim/engine.h"
#include "shim/files.h"
#include "shim/next.h"
#include "shim/received.h"

namespace stagetwo::shim {
namespace {

constexpr std::string_view kMemoryLink = "anon_inode:[kvm-gmem]";
// The byte of I2, and what a lock "to the end" means without it.
constexpr off_t kOurByte = host::kHeldByte;

bool refuse_with(int error) {
  errno = error;
  return true;
}

Behind of_shape(host::FileShape shape) {
  switch (shape) {
    case host::FileShape::kCharDevice:
      return Behind::kDevice;
    case host::FileShape::kAnonInode:
      return Behind::kAnonymous;
    case host::FileShape::kMemory:
      return Behind::kMemory;
  }
  return Behind::kForeign;
}

// Of an open descriptor, or of one that is a place only. `read_natively`: it has a read of its own.
Behind find_behind(int fd, bool* read_natively) {
  struct ::stat said{};
  if (!awake() || !may_be_ours(fd, &said)) return Behind::kForeign;
  const host::DescriptionRef ref = host::find(fd, said);
  if (!ref) return Behind::kForeign;
  *read_natively = ref->native_read();
  return of_shape(ref.spec().shape);
}

// By name where that is not ours, else of a file that stands where anonymous inodes do.
template <typename T, typename ByName, typename ByFd>
int ask_filesystem(const char* path, T* out, ByName& by_name, ByFd& by_fd) {
  const Behind what = behind_name(AT_FDCWD, path);
  if (what != Behind::kMemory && what != Behind::kAnonymous) {
    return with_buffers([&](Buffers& buffers) { buffers.text(path).value(out); },
                        [&] { return by_name(path, out); });
  }
  const auto blank = sys::checked(sys::call(SYS_epoll_create1, O_CLOEXEC));
  if (!blank) return static_cast<int>(as_libc(blank));
  const int done = by_fd(static_cast<int>(*blank), out);
  static_cast<void>(sys::close(static_cast<int>(*blank)));
  return done;
}

}  // namespace

Behind behind_fd(int fd) {
  if (!awake()) [[likely]]
    return Behind::kForeign;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  bool native = false;
  Behind what = find_behind(fd, &native);
  if (what != Behind::kForeign) {
    const auto flags = sys::fcntl(fd, F_GETFL);
    if (!flags || (*flags & O_PATH) != 0) what = Behind::kForeign;
  }
  section.leave();
  errno = error;
  return what;
}

Behind behind_name(int directory, const char* path) {
  if (!awake() || !could_name_descriptor(path)) [[likely]]
    return Behind::kForeign;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  Behind what = Behind::kForeign;
  if (const auto place = sys::openat(directory, path, O_PATH | O_CLOEXEC)) {
    bool native = false;
    what = find_behind(*place, &native);
    static_cast<void>(sys::close(*place));
  }
  section.leave();
  errno = error;
  return what;
}

namespace {

constinit sync::Atomic<bool> any_mapped{false};

// Post: the description whose mapping is there, or empty. Context: in `section`.
host::DescriptionRef mapped_at(const host::Mapping& mapping) {
  struct ::stat behind{};
  behind.st_mode = S_IFREG;
  behind.st_dev = mapping.device;
  behind.st_ino = mapping.inode;
  return host::find(-1, behind);
}

template <typename F>
void ask_mapped(const void* at, F&& fn) {
  if (!awake() || !any_mapped.load(sync::kRelaxed)) [[likely]]
    return;
  const int error = errno;
  const auto mapping = host::shown_mapping_at(Hva(reinterpret_cast<u64>(at)));
  if (mapping && mapping->shared && mapping->inode != 0) {
    host::EngineSection section(host::Touches::kNothing);
    if (const host::DescriptionRef ref = mapped_at(*mapping)) fn(ref);
    section.leave();
  }
  errno = error;
}

}  // namespace

void note_mapped() {
  any_mapped.store(true, sync::kRelaxed);
}

Behind behind_address(const void* at) {
  Behind what = Behind::kForeign;
  ask_mapped(at, [&](const host::DescriptionRef& ref) { what = of_shape(ref.spec().shape); });
  return what;
}

size_t page_behind(const void* at, size_t size, size_t page) {
  ask_mapped(at, [&](const host::DescriptionRef& ref) {
    const host::MapRequest request{size, PROT_READ, MAP_SHARED,
                                   static_cast<off_t>(page << kPageShift)};
    page = static_cast<size_t>(ref->map_offset(request)) >> kPageShift;
  });
  return page;
}

Behind behind_either(int directory, const char* path, int flags) {
  const bool itself = path == nullptr || ((flags & AT_EMPTY_PATH) != 0 && path[0] == '\0');
  if (itself) return behind_fd(directory);
  return (flags & AT_SYMLINK_NOFOLLOW) != 0 ? Behind::kForeign : behind_name(directory, path);
}

Asked::Asked(int fd) : fd_(fd) {
  if (!awake()) [[likely]]
    return;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  bool native = false;
  const Behind what = find_behind(fd, &native);
  if (what == Behind::kMemory || (what == Behind::kAnonymous && !native)) {
    const auto flags = sys::fcntl(fd, F_GETFL);
    if (flags && (*flags & O_PATH) == 0) {
      const long made = sys::call(SYS_epoll_create1, O_CLOEXEC);
      blank_ = made >= 0 ? static_cast<int>(made) : -1;
      if (made < 0) fd_ = -1;  // none to spare: EBADF, before it reaches the stand-in
    }
  }
  section.leave();
  errno = error;
}

Asked::~Asked() {
  if (blank_ >= 0) static_cast<void>(sys::close(blank_));
}

AskedLock::AskedLock(int fd, int command, long argument) : client_(argument) {
  answers_ = command == F_GETLK || command == F_OFD_GETLK;
  const bool locks = answers_ || command == F_SETLK || command == F_SETLKW ||
                     command == F_OFD_SETLK || command == F_OFD_SETLKW;
  if (!locks || behind_fd(fd) == Behind::kForeign) return;
  host::EngineSection section(host::Touches::kClientMemory);
  struct ::stat said{};
  ours_ = host::read_struct(Hva(static_cast<u64>(argument)), &lock_) &&
          static_cast<bool>(sys::fstat(fd, &said));
  section.leave();
  if (!ours_) return;
  off_t start = 0;
  const off_t base = lock_.l_whence == SEEK_END ? said.st_size : 0;
  if (__builtin_add_overflow(base, lock_.l_start, &start) || start < 0) return;  // refused
  const bool to_the_end =
      lock_.l_len == 0 || (lock_.l_len > 0 && lock_.l_len - 1 == kOurByte - start);
  if (!to_the_end) return;
  if (start == kOurByte) {  // that byte alone: the one before it stands for it
    lock_.l_whence = SEEK_SET;
    lock_.l_start = kOurByte - 1;
  }
  lock_.l_len = std::max<off_t>(kOurByte - start, 1);
}

AskedLock::operator long() const {
  return ours_ ? reinterpret_cast<long>(&lock_) : client_;
}

AskedLock::~AskedLock() {
  if (!ours_ || !answers_) return;
  if (lock_.l_len != 0 && lock_.l_whence == SEEK_SET && lock_.l_start + lock_.l_len == kOurByte) {
    lock_.l_len = 0;
  }
  const int error = errno;
  host::EngineSection section(host::Touches::kClientMemory);
  static_cast<void>(host::write_struct(Hva(static_cast<u64>(client_)), lock_));
  section.leave();
  errno = error;
}

// --- refusals ---

bool change_refused(Behind what) {
  return what == Behind::kMemory && refuse_with(EINVAL);
}

bool times_refused(Behind what, const timespec* times) {
  // Nothing to change is nothing to refuse.
  const bool nothing =
      times != nullptr && times[0].tv_nsec == UTIME_OMIT && times[1].tv_nsec == UTIME_OMIT;
  return !nothing && change_refused(what);
}

bool resize_refused(Behind what) {
  return (what == Behind::kMemory || what == Behind::kAnonymous) && refuse_with(EINVAL);
}

bool syncing_refused(int fd) {
  return behind_fd(fd) != Behind::kForeign && refuse_with(EINVAL);
}

bool syncing_refused(const void* at, size_t size, int flags) {
  if ((flags & MS_SYNC) == 0 || size == 0) return false;
  return behind_address(at) != Behind::kForeign && refuse_with(EINVAL);
}

// Anonymous inodes live on a mount without execution.
bool execution_refused(const void* at, size_t size, int prot) {
  const bool judged = size != 0 && (reinterpret_cast<u64>(at) & ~kPageMask) == 0;
  if ((prot & PROT_EXEC) == 0 || !judged) return false;
  return behind_address(at) != Behind::kForeign && refuse_with(EACCES);
}

bool opening_refused(int directory, const char* path, int flags) {
  will_be_opened(directory, path);
  // These are refused, or answered, before the file is asked.
  const bool earlier = (flags & (O_PATH | O_NOFOLLOW | O_DIRECTORY)) != 0 ||
                       (flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL);
  if (earlier) return false;
  const Behind what = behind_name(directory, path);
  return (what == Behind::kMemory || what == Behind::kAnonymous) && refuse_with(ENXIO);
}

bool engines_refused(int fd) {
  if (!awake()) return false;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  const bool engines = host::is_engine_fd(fd);
  section.leave();
  errno = error;
  return engines && refuse_with(EBADF);
}

// Their file system encodes no handle, but for who only compares it. A place is asked as well.
bool handle_refused(int directory, const char* path, int flags) {
  constexpr int kUniqueMount = 1;  // AT_HANDLE_MNT_ID_UNIQUE
  if (!awake() || (flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH | kUniqueMount)) != 0) return false;
  Behind what = Behind::kForeign;
  if ((flags & AT_EMPTY_PATH) != 0 && path != nullptr && path[0] == '\0') {
    const int error = errno;
    host::EngineSection section(host::Touches::kNothing);
    bool native = false;
    what = find_behind(directory, &native);
    section.leave();
    errno = error;
  } else if ((flags & AT_SYMLINK_FOLLOW) != 0) {
    what = behind_name(directory, path);
  }
  return (what == Behind::kMemory || what == Behind::kAnonymous) && refuse_with(EOPNOTSUPP);
}

bool control_refused(int fd, int command, long argument) {
  if (engines_refused(fd)) return true;
  if (command != F_ADD_SEALS && command != F_GET_SEALS && command != F_SETFL) return false;
  const Behind what = behind_fd(fd);
  if (what == Behind::kForeign) return false;
  return (command != F_SETFL || (argument & O_DIRECT) != 0) && refuse_with(EINVAL);
}

bool copying_refused(int from, int to, unsigned flags) {
  const Behind source = behind_fd(from);
  const Behind target = behind_fd(to);
  if (source == Behind::kForeign && target == Behind::kForeign) return false;
  struct ::stat other{};
  if (!sys::fstat(source == Behind::kForeign ? from : to, &other)) return refuse_with(EBADF);
  const bool memory = source == Behind::kMemory || target == Behind::kMemory;
  const bool both = source != Behind::kForeign && target != Behind::kForeign;
  if (flags != 0) return refuse_with(EINVAL);
  if (!both && S_ISDIR(other.st_mode)) return refuse_with(EISDIR);
  // Files of two file systems; anonymous inodes are no regular files.
  return refuse_with(memory && !both && S_ISREG(other.st_mode) ? EXDEV : EINVAL);
}

bool attribute_refused(Behind what, const char* name, int flags) {
  if (what != Behind::kMemory) return false;
  if ((flags & ~3) != 0) return refuse_with(EINVAL);
  const size_t size = strnlen(name, 256);
  return refuse_with(size == 0 || size > 255 ? ERANGE : EOPNOTSUPP);
}

bool has_no_attributes(Behind what) {
  return what == Behind::kMemory;
}

// --- answers ---

int preallocate(int fd, off_t offset, off_t size) {
  if (behind_fd(fd) == Behind::kForeign) return next::posix_fallocate(fd, offset, size);
  const int error = errno;
  const int done = fallocate_fd(fd, 0, offset, size) == 0 ? 0 : errno;
  errno = error;
  if (done != EOPNOTSUPP) return done;
  // libc then writes a byte in each block, which is refused by its position.
  const auto flags = sys::fcntl(fd, F_GETFL);
  return flags && (*flags & O_APPEND) != 0 ? EBADF : ESPIPE;
}

// As libc does it, with locks of the process.
int lock_part(int fd, int command, off_t size) {
  if (behind_fd(fd) == Behind::kForeign) return next::lockf(fd, command, size);
  struct flock lock{};
  lock.l_whence = SEEK_CUR;
  lock.l_len = size;
  lock.l_type = command == F_ULOCK ? F_UNLCK : command == F_TEST ? F_RDLCK : F_WRLCK;
  const int how = command == F_TEST ? F_GETLK : command == F_LOCK ? F_SETLKW : F_SETLK;
  if (command < F_ULOCK || command > F_TEST) return static_cast<int>(as_libc(-EINVAL));
  int done = 0;
  {
    const AskedLock asked(fd, how, reinterpret_cast<long>(&lock));
    done = next::fcntl(fd, how, asked);
  }
  if (command != F_TEST || done != 0) return done;
  const bool free = lock.l_type == F_UNLCK || lock.l_pid == sys::getpid();
  return free ? 0 : static_cast<int>(as_libc(-EACCES));
}

ssize_t list_attributes(int fd, char* to, size_t size) {
  if (has_no_attributes(behind_fd(fd))) return 0;
  return with_buffer(to, size, [&] { return next::flistxattr(fd, to, size); });
}

int filesystem_of(const char* path, struct ::statfs* out) {
  return ask_filesystem(path, out, next::statfs, next::fstatfs);
}
int filesystem_of(const char* path, struct ::statvfs* out) {
  return ask_filesystem(path, out, next::statvfs, next::fstatvfs);
}

ReadLink::ReadLink(int directory, const char* path, size_t size) : size_(size) {
  ours_ = behind_name(directory, path) == Behind::kMemory;
  if (ours_) size_ = std::min(size, kMemoryLink.size());
}

ssize_t ReadLink::show(char* buffer, ssize_t length) const {
  if (!ours_ || length <= 0) return length;
  const int error = errno;
  host::EngineSection section(host::Touches::kClientMemory);
  static_cast<void>(host::copy_to(Hva(reinterpret_cast<u64>(buffer)), kMemoryLink.data(), size_));
  section.leave();
  errno = error;
  return length;
}

}  // namespace stagetwo::shim
