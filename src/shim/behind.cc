// SPDX-License-Identifier: Apache-2.0
#include "shim/behind.h"

#include <errno.h>
#include <sys/ioctl.h>
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
#include "shim/mdev_files.h"
#include "shim/next.h"
#include "shim/paths.h"
#include "shim/received.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
namespace {

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

// Of an open descriptor, or of one that is a place only.
host::DescriptionRef find_ours(int fd) {
  struct ::stat said{};
  if (!awake() || !may_be_ours(fd, &said)) return {};
  return host::find(fd, said);
}

// `read_natively`: it has a read of its own.
Behind find_behind(int fd, bool* read_natively) {
  const host::DescriptionRef ref = find_ours(fd);
  if (!ref) return Behind::kForeign;
  *read_natively = ref->native_read();
  return of_shape(ref.spec().shape);
}

// What of ours the name in /proc leads to.
template <typename F>
void ask_named(int directory, const char* path, F&& fn) {
  if (!awake() || !could_name_descriptor(path)) [[likely]]
    return;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  const sync::PassingNumber passing;
  if (const auto place = sys::openat(directory, path, O_PATH | O_CLOEXEC)) {
    if (const host::DescriptionRef ref = find_ours(*place)) fn(ref.spec());
    static_cast<void>(sys::close(*place));
  }
  section.leave();
  errno = error;
}

// By name where that is not ours, else of a file that stands where anonymous inodes do.
template <typename T, typename ByName, typename ByFd>
int ask_filesystem(const char* path, T* out, ByName& by_name, ByFd& by_fd) {
  const Behind what = behind_name(AT_FDCWD, path);
  if (what != Behind::kMemory && what != Behind::kAnonymous) {
    return with_buffers([&](Buffers& buffers) { buffers.text(path).value(out); },
                        [&] { return by_name(path, out); });
  }
  const auto blank = blank_file();
  if (!blank) return static_cast<int>(as_libc(-static_cast<long>(to_int(blank.error()))));
  return by_fd(blank->get(), out);
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
  Behind what = Behind::kForeign;
  ask_named(directory, path,
            [&](const host::DescriptorSpec& spec) { what = of_shape(spec.shape); });
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
  host::EngineSection section(host::Touches::kNothing);
  const auto mapping = host::shown_mapping_at(Hva(reinterpret_cast<u64>(at)));
  if (mapping && mapping->shared && mapping->inode != 0) {
    if (const host::DescriptionRef ref = mapped_at(*mapping)) fn(ref);
  }
  section.leave();
  errno = error;
}

}  // namespace

bool maps_ours() {
  return any_mapped.load(sync::kRelaxed);
}

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

namespace {

// In the order of madvise_remove (kernel file: mm/madvise.c). The file's observers hear of it, so
// it is the file that is asked.
std::optional<int> remove_in_section(u64 at, u64 size) {
  const auto mapping = host::shown_mapping_at(Hva(at));
  if (!mapping || !mapping->shared || mapping->inode == 0) return std::nullopt;
  const host::DescriptionRef ref = mapped_at(*mapping);
  if (!ref || ref.spec().shape != host::FileShape::kMemory) return std::nullopt;
  if (host::is_locked(HvaRange(Hva(at), size))) return EINVAL;
  const u64 placed = mapping->offset + (at - mapping->range.start().raw());
  const auto done =
      ref->fallocate(-1, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
                     ref->asked_offset(static_cast<off_t>(placed)), static_cast<off_t>(size));
  if (done) return 0;
  // Another process's file: its pages are the mapping's own, or there are none.
  if (to_int(done.error()) == ENODEV) return std::nullopt;
  return to_int(done.error());
}

}  // namespace

std::optional<int> remove_behind(u64 at, u64 size) {
  host::EngineSection section(host::Touches::kNothing);
  const std::optional<int> answer = remove_in_section(at, size);
  section.leave();
  return answer;
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
  if (host::is_engine_fd(fd)) fd_ = -1;
  bool native = false;
  const Behind what = find_behind(fd, &native);
  if (what == Behind::kMemory || (what == Behind::kAnonymous && !native)) {
    const auto flags = sys::fcntl(fd, F_GETFL);
    if (flags && (*flags & O_PATH) == 0) {
      auto blank = blank_file();
      if (blank) blank_.emplace(std::move(*blank));
      if (!blank) fd_ = -1;  // none to spare: EBADF, before it reaches the stand-in
    }
  }
  section.leave();
  errno = error;
}

Asked::~Asked() = default;

namespace {

Result<int> open_blank() {
  return static_cast<int>(ST_TRY(sys::checked(sys::call(SYS_epoll_create1, O_CLOEXEC))));
}
// A call on it is in no section, and a handler of the client's may leave it for good.
constinit host::KeptFd blank(open_blank, host::KeptFd::Child::kHasIt,
                             host::KeptFd::Calls::kMayWait);

}  // namespace

Result<host::FdUse> blank_file() {
  return blank.use();
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
  // A file without a position stands at the last one (host/descriptor.cc).
  if (lock_.l_whence == SEEK_CUR && sys::call(SYS_lseek, fd, 0, SEEK_CUR) == kOurByte) {
    lock_.l_whence = SEEK_SET;
  }
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

namespace {

// Refused, or answered, before the file is asked.
bool is_decided_earlier(int flags) {
  return (flags & (O_PATH | O_NOFOLLOW | O_DIRECTORY)) != 0 ||
         (flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL);
}

}  // namespace

Target target_to_open(int directory, const char* path, int flags) {
  Target target = target_of(directory, path);
  if (target || is_decided_earlier(flags)) return target;
  will_be_opened(directory, path);
  ask_named(directory, path, [&](const host::DescriptorSpec& spec) {
    if (of_shape(spec.shape) != Behind::kDevice) return;
    target.device = device_numbered(spec.device_major, spec.device_minor);
    if (target.device != nullptr) target.kind = PathKind::kDevice;
  });
  return target;
}

bool opening_refused(int directory, const char* path, int flags) {
  will_be_opened(directory, path);
  if (is_decided_earlier(flags)) return false;
  const Behind what = behind_name(directory, path);
  return (what == Behind::kMemory || what == Behind::kAnonymous) && refuse_with(ENXIO);
}

bool seeking_refused(FILE* stream) {
  return awake() && behind_fd(fileno(stream)) == Behind::kMemory && refuse_with(ESPIPE);
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
  const bool pipes = command == F_GETPIPE_SZ || command == F_SETPIPE_SZ;
  if (command != F_ADD_SEALS && command != F_GET_SEALS && command != F_SETFL && !pipes)
    return false;
  const Behind what = behind_fd(fd);
  if (what == Behind::kForeign) return false;
  if (pipes) return refuse_with(EBADF);
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

namespace {

// xfs_flock64 of the ioctls that allocate and punch (kernel file: include/linux/falloc.h).
struct SpaceRequest {
  s16 type;
  s16 whence;
  s64 start;
  s64 size;
  s32 sysid;
  u32 pid;
  s32 pad[4];
};
constexpr unsigned long kReserve = _IOW('X', 40, SpaceRequest);
constexpr unsigned long kReserve64 = _IOW('X', 42, SpaceRequest);
constexpr unsigned long kUnreserve = _IOW('X', 41, SpaceRequest);
constexpr unsigned long kUnreserve64 = _IOW('X', 43, SpaceRequest);
constexpr unsigned long kZero = _IOW('X', 57, SpaceRequest);
constexpr unsigned long kAllocatedBytes = 0x5460;  // FIOQSIZE

int mode_of(unsigned long request) {
  const bool punches = request == kUnreserve || request == kUnreserve64;
  if (punches) return FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
  return request == kZero ? FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE : FALLOC_FL_KEEP_SIZE;
}

// A guest_memfd that the kernel takes for a regular file; *size is then its own.
bool is_regular(int fd, off_t* size) {
  struct ::stat said{};
  if (!may_be_ours(fd, &said)) return false;
  host::EngineSection section(host::Touches::kNothing);
  bool regular = false;
  if (const host::DescriptionRef ref = host::find(fd, said)) {
    const auto flags = sys::fcntl(fd, F_GETFL);
    regular = flags && (*flags & O_PATH) == 0 && ref->is_regular();
  }
  section.leave();
  *size = said.st_size;
  return regular;
}

template <typename T>
long give(unsigned long to, const T& value) {
  host::EngineSection section(host::Touches::kClientMemory);
  const bool given = host::write_struct(Hva(to), value);
  section.leave();
  return given ? 0 : -EFAULT;
}

long change_space(int fd, unsigned long request, unsigned long argument, off_t size) {
  SpaceRequest asked{};
  host::EngineSection section(host::Touches::kClientMemory);
  const bool read = host::read_struct(Hva(argument), &asked);
  section.leave();
  if (!read) return -EFAULT;
  if (asked.whence < SEEK_SET || asked.whence > SEEK_END) return -EINVAL;
  if (asked.whence == SEEK_END) asked.start += size;
  return fallocate_fd(fd, mode_of(request), asked.start, asked.size) == 0 ? 0 : -errno;
}

}  // namespace

// In do_vfs_ioctl and file_ioctl (kernel file: fs/ioctl.c). Such a file has no position and no
// bytes that count.
bool ask_regular(int fd, unsigned long request, unsigned long argument, long* answer) {
  off_t size = 0;
  switch (request) {
    case FIONREAD:
      if (!is_regular(fd, &size)) return false;
      *answer = give(argument, static_cast<int>(size));
      return true;
    case kAllocatedBytes:
      if (!is_regular(fd, &size)) return false;
      *answer = give(argument, off_t{0});
      return true;
    case kReserve:
    case kReserve64:
    case kUnreserve:
    case kUnreserve64:
    case kZero:
      if (!is_regular(fd, &size)) return false;
      *answer = change_space(fd, request, argument, size);
      return true;
    default:
      return false;
  }
}

int preallocate(int fd, off_t offset, off_t size) {
  if (behind_fd(fd) == Behind::kForeign) {
    const u64 bytes = static_cast<u64>(std::max<off_t>(size, 0));
    return with_buffers_and_error([&](Buffers& buffers) { buffers.file(fd, &offset, bytes); },
                                  [&] { return next::posix_fallocate(fd, offset, size); });
  }
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

namespace {

// What the kernel has it on: the session's own folder is not looked at.
template <typename T, typename ByName>
bool ask_shown(const char* name, T* out, ByName& by_name, int* result) {
  const MovedName moved(name);
  const Target target = moved.moved() ? Target{} : target_of(AT_FDCWD, name);
  const bool ours = target && !target.file.kernel_has_it();
  if (!moved.moved() && !ours) return false;
  long refusal = 0;
  if (moved.moved()) {
    refusal = sys::call(SYS_faccessat, AT_FDCWD, sys::arg(moved.path()), F_OK);
  } else if (target.trailing_slash && target.kind != PathKind::kDirectory) {
    refusal = -ENOTDIR;
  }
  const std::string_view text(name);
  const char* const place = text.starts_with("/sys/")    ? "/sys"
                            : text.starts_with("/proc/") ? "/proc"
                                                         : "/dev";
  *result = refusal != 0 ? static_cast<int>(as_libc(refusal))
                         : with_buffers([&](Buffers& buffers) { buffers.value(out); },
                                        [&] { return by_name(place, out); });
  return true;
}

}  // namespace

int filesystem_of(const char* path, struct ::statfs* out) {
  if (int result = 0; ask_shown(path, out, next::statfs, &result)) return result;
  return ask_filesystem(path, out, next::statfs, next::fstatfs);
}
int filesystem_of(const char* path, struct ::statvfs* out) {
  if (int result = 0; ask_shown(path, out, next::statvfs, &result)) return result;
  return ask_filesystem(path, out, next::statvfs, next::fstatvfs);
}

}  // namespace stagetwo::shim
