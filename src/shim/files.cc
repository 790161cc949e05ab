// SPDX-License-Identifier: Apache-2.0
#include "shim/files.h"

#include <errno.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <cstring>

#include "base/sys.h"
#include "base/text.h"
#include "host/access.h"
#include "host/hugetlb_standin.h"
#include "host/run_section.h"
#include "shim/absent_buffers.h"
#include "shim/behind.h"
#include "shim/buffered_calls.h"
#include "shim/bus_names.h"
#include "shim/closing.h"
#include "shim/described.h"
#include "shim/engine.h"
#include "shim/file_holes.h"
#include "shim/link_names.h"
#include "shim/mdev_files.h"
#include "shim/next.h"
#include "shim/paths.h"
#include "shim/shared_files.h"
#include "shim/show.h"
#include "shim/userfault_calls.h"
#include "shim/virtual_io.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
Result<int> open_target(const Target& target, int flags) {
  if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) return refuse(EEXIST);
  if ((flags & O_DIRECTORY) != 0 || target.trailing_slash) return refuse(ENOTDIR);
  if (target.kind == PathKind::kVirtual) return open_virtual(target.file, flags);
  ST_TRY(wake());
  host::EngineSection section(host::Touches::kNothing);
  const Result<int> opened = target.device->open(flags);
  section.leave();
  return opened;
}

namespace {

int call_next_open(int directory, const char* path, int flags, mode_t mode) {
  const auto go_on = [&] {
    return directory == AT_FDCWD ? next::open(path, flags, mode)
                                 : next::openat(directory, path, flags, mode);
  };
  return with_buffers([&](Buffers& buffers) { buffers.text(path); },
                      [&] {
                        if (!truncates(flags)) [[likely]]
                          return go_on();
                        return take_out_named(directory, path, flags, 0, go_on);
                      });
}

bool asks_about_descriptor(const char* path, int flags) {
  return (flags & AT_EMPTY_PATH) != 0 && path != nullptr && path[0] == '\0';
}

// What is behind `fd`, when it is ours. Pre: *said is what the kernel says of it.
host::DescriptionRef ours_behind(int fd, const struct ::stat& said) {
  if (!awake() || !host::could_be_ours(said)) return {};
  return host::find(fd, said);
}

void correct(int fd, struct ::stat* said) {
  if (host::hugetlb::any()) {
    const unsigned level = host::hugetlb::level_of_file(*said);
    if (level != 0) said->st_blksize = static_cast<blksize_t>(host::hugetlb::page_bytes(level));
  }
  if (!awake() || !host::could_be_ours(*said)) return;
  host::EngineSection section(host::Touches::kNothing);
  if (const host::DescriptionRef ref = ours_behind(fd, *said)) show_description(ref, said);
  section.leave();
}

void correct_blocks(struct ::stat* said) {
  const auto kept = static_cast<blkcnt_t>(kept_blocks(said->st_dev, said->st_ino));
  if (kept != 0) said->st_blocks += kept;
}

// The name of a descriptor in /proc leads to what is behind it.
void correct_by_name(int directory, const char* path, struct ::stat* said) {
  if (!awake() || !host::could_be_ours(*said)) return;
  if (behind_name(directory, path) == Behind::kForeign) return;
  const sync::PassingNumber passing;
  const auto place = sys::openat(directory, path, O_PATH | O_CLOEXEC);
  if (!place) return;
  correct(*place, said);
  static_cast<void>(sys::close(*place));
}

int call_next_stat(int directory, const char* path, struct ::stat* out, int flags) {
  return with_buffers([&](Buffers& buffers) { buffers.text(path).value(out); },
                      [&] {
                        const bool here = directory == AT_FDCWD;
                        if (here && flags == 0) return next::stat(path, out);
                        if (here && flags == AT_SYMLINK_NOFOLLOW) return next::lstat(path, out);
                        return next::fstatat(directory, path, out, flags);
                      });
}

// Of other drivers: as large as the request says; of terminals and sockets, whose requests say
// nothing, what the largest of their structs needs.
int call_next_ioctl(int fd, unsigned long request, unsigned long argument) {
  constexpr unsigned kTerminals = 'T';
  constexpr unsigned kSockets = 0x89;
  constexpr u64 kLargest = 64;
  const unsigned type = _IOC_TYPE(request);
  const u64 size = type == kTerminals || type == kSockets ? kLargest : _IOC_SIZE(request);
  return with_buffer(reinterpret_cast<const void*>(argument), size,
                     [&] { return next::ioctl(fd, request, argument); });
}

// hugetlbfs allocates whole pages that the range touches.
void round_to_huge_pages(unsigned level, int mode, off_t* offset, off_t* size) {
  if (level == 0 || *offset < 0 || *size <= 0 || (mode & FALLOC_FL_PUNCH_HOLE) != 0) return;
  const off_t page = static_cast<off_t>(host::hugetlb::page_bytes(level));
  const off_t end = (*offset + *size + page - 1) / page * page;
  *offset = *offset / page * page;
  *size = end - *offset;
}

// The ioctls the kernel answers before it asks the file.
bool is_the_kernels(unsigned long request) {
  switch (request) {
    case FIOCLEX:
    case FIONCLEX:
    case FIONBIO:
    case FIOASYNC:
    case FIGETBSZ:
    case FS_IOC_FIEMAP:
    case FICLONE:
    case FICLONERANGE:
    case FIDEDUPERANGE:
    case FIFREEZE:
    case FITHAW:
      return true;
    default:
      return false;
  }
}

// The first letter of every KVM request: enough to recognise a descriptor that came through exec.
constexpr unsigned kKvmLetter = 0xAE, kIommufdLetter = 0x3B;

}  // namespace

int open_at(int directory, const char* name, int flags, mode_t mode) {
  const MovedName moved(name);
  const char* const path = moved.path();
  if (int opened = -1; opened_of_bus(directory, moved, flags, &opened)) return opened;
  const Target target = target_to_open(directory, path, flags);
  if (!target || target.kind == PathKind::kDirectory) [[likely]] {
    if (opening_refused(directory, path, flags)) return -1;
    return call_next_open(directory, path, flags, mode);
  }
  return static_cast<int>(as_libc(open_target(target, flags)));
}

int stat_at(int directory, const char* name, struct stat* out, int flags) {
  const MovedName moved(name);
  const char* const path = moved.path();
  if (asks_about_descriptor(path, flags)) {
    const int result = call_next_stat(directory, path, out, flags);
    if (result != 0) return result;
    correct(directory, out);
    correct_blocks(out);
    return 0;
  }
  const Target target = target_of(directory, path);
  if (!target || target.file.kernel_has_it()) [[likely]] {
    const int result = show_attribute(moved, call_next_stat(directory, path, out, flags), out);
    if (result != 0 || (flags & AT_SYMLINK_NOFOLLOW) != 0) return result;
    correct_by_name(directory, path, out);
    correct_blocks(out);
    return 0;
  }
  if (target.trailing_slash && target.kind != PathKind::kDirectory) {
    return static_cast<int>(as_libc(-ENOTDIR));
  }
  show_target(target, out);
  return 0;
}

int stat_fd(int fd, struct stat* out) {
  if (engines_refused(fd)) return -1;
  const int result = with_buffer(out, sizeof(*out), [&] { return next::fstat(fd, out); });
  if (result != 0) return result;
  correct(fd, out);
  correct_blocks(out);
  show_open_attribute(fd, out);
  return 0;
}

int statx_at(int directory, const char* name, int flags, unsigned mask, struct statx* out) {
  const MovedName moved(name);
  const char* const path = moved.path();
  const bool about_fd = asks_about_descriptor(path, flags);
  const Target target = about_fd ? Target{} : target_of(directory, path);
  struct ::stat said{};
  if (target && !target.file.kernel_has_it()) {
    if (target.trailing_slash && target.kind != PathKind::kDirectory) {
      return static_cast<int>(as_libc(-ENOTDIR));
    }
    show_target(target, &said);
    *out = {};
    to_statx(said, out);
    return 0;
  }
  const auto go_on = [&] { return next::statx(directory, path, flags, mask, out); };
  const int result =
      show_attribute(moved, with_buffers([&](Buffers& b) { b.text(path).value(out); }, go_on), out);
  if (result != 0 || !awake()) return result;
  if ((out->stx_mask & STATX_BLOCKS) != 0) {
    const u64 device = ::makedev(out->stx_dev_major, out->stx_dev_minor);
    if (const u64 kept = kept_blocks(device, out->stx_ino)) out->stx_blocks += kept;
  }
  if (about_fd && may_be_ours(directory, &said)) {
    const nlink_t links = said.st_nlink;
    correct(directory, &said);
    if (said.st_nlink != links) to_statx(said, out);
  } else if (!about_fd && (flags & AT_SYMLINK_NOFOLLOW) == 0 &&
             behind_name(directory, path) != Behind::kForeign &&
             stat_at(directory, path, &said, 0) == 0) {
    to_statx(said, out);
  }
  return result;
}

int access_at(int directory, const char* name, int mode, int flags) {
  const MovedName moved(name);
  const char* const path = moved.path();
  const Target target = target_of(directory, path);
  if (target && !target.file.kernel_has_it()) {
    return static_cast<int>(as_libc(-access_refusal(target, mode, (flags & AT_EACCESS) != 0)));
  }
  return with_buffers([&](Buffers& buffers) { buffers.text(path); },
                      [&] {
                        const bool here = directory == AT_FDCWD;
                        if (here && flags == 0) return next::access(path, mode);
                        if (here && flags == AT_EACCESS) return next::eaccess(path, mode);
                        return next::faccessat(directory, path, mode, flags);
                      });
}

ssize_t readlink_at(int directory, const char* name, char* buffer, size_t size) {
  const MovedName moved(name);
  const char* const path = moved.path();
  if (target_of(directory, path)) return as_libc(-EINVAL);
  const ReadLink link(directory, path, size);
  return link.show(
      buffer, with_buffers([&](Buffers& buffers) { buffers.text(path).bytes(buffer, size); },
                           [&] {
                             return directory == AT_FDCWD
                                        ? next::readlink(path, buffer, link.size())
                                        : next::readlinkat(directory, path, buffer, link.size());
                           }));
}

ssize_t attribute_at(const char* given, const char* name, void* to, size_t size, Link link) {
  const MovedName moved(given);
  const char* const path = moved.path();
  const Target target = target_of(AT_FDCWD, path);
  if (target && !target.file.kernel_has_it()) return as_libc(-ENODATA);
  if (link == Link::kFollowed && attribute_refused(behind_name(AT_FDCWD, path), name, 0)) return -1;
  return with_buffers([&](Buffers& buffers) { buffers.text(path).text(name).bytes(to, size); },
                      [&] {
                        return link == Link::kFollowed ? next::getxattr(path, name, to, size)
                                                       : next::lgetxattr(path, name, to, size);
                      });
}

ssize_t attributes_at(const char* given, char* to, size_t size, Link link) {
  const MovedName moved(given);
  const char* const path = moved.path();
  const Target target = target_of(AT_FDCWD, path);
  if (target && !target.file.kernel_has_it()) return 0;
  if (link == Link::kFollowed && has_no_attributes(behind_name(AT_FDCWD, path))) return 0;
  return with_buffers([&](Buffers& buffers) { buffers.text(path).bytes(to, size); },
                      [&] {
                        return link == Link::kFollowed ? next::listxattr(path, to, size)
                                                       : next::llistxattr(path, to, size);
                      });
}

long ioctl_fd(int fd, unsigned long request, unsigned long argument) {
  if (engines_refused(fd)) return -1;
  const bool letter = _IOC_TYPE(request) == kKvmLetter || _IOC_TYPE(request) == kIommufdLetter;
  if (awake() && _IOC_TYPE(request) == kUserfaultLetter) {
    return userfault_ioctl(fd, request, argument);
  }
  if (long answer = 0; awake() && ask_regular(fd, request, argument, &answer)) {
    return as_libc(answer);
  }
  struct ::stat behind{};
  if ((!awake() && !letter) || is_the_kernels(request) || !may_be_ours(fd, &behind)) {
    return call_next_ioctl(fd, request, argument);
  }
  if (const auto woken = wake(); !woken) return as_libc(woken);
  host::EngineSection section(host::Touches::kClientMemory);
  long answer = 0;
  bool ours = false;
  {
    const host::DescriptionRef ref = host::find(fd, behind);
    ours = static_cast<bool>(ref);
    if (ours) answer = ref.foreign() ? -EIO : ref->ioctl(fd, request, argument);
  }
  section.leave();
  return ours ? as_libc(answer) : call_next_ioctl(fd, request, argument);
}

bool io_refused(int fd, Io io, const off_t* offset) {
  struct ::stat behind{};
  if (engines_refused(fd)) return true;
  if (io == Io::kWrite && host::hugetlb::any() && sys::fstat(fd, &behind) &&
      host::hugetlb::level_of_file(behind) != 0) {
    errno = EINVAL;  // hugetlbfs has no write
    return true;
  }
  if (!awake() || !may_be_ours(fd, &behind)) [[likely]]
    return false;
  host::EngineSection section(host::Touches::kNothing);
  int refusal = 0;
  if (const host::DescriptionRef ref = host::find(fd, behind)) {
    const auto flags = sys::fcntl(fd, F_GETFL);
    const int access = access_of(ref, flags);
    const bool anonymous = ref.spec().shape != host::FileShape::kCharDevice;
    const bool native = io == Io::kRead && ref->native_read();
    const int closed_to = io == Io::kRead ? O_WRONLY : O_RDONLY;
    if (native && !ref.foreign()) ref->refresh();
    if (flags && (*flags & O_PATH) != 0) {
      refusal = 0;  // a place only: EBADF, as the kernel says
    } else if (offset != nullptr && *offset < 0) {
      refusal = EINVAL;
    } else if (offset != nullptr && anonymous && !native) {
      refusal = ESPIPE;
    } else if (access == closed_to) {
      refusal = EBADF;
    } else if (!native) {
      refusal = EINVAL;
    }
  }
  section.leave();
  if (refusal != 0) errno = refusal;
  return refusal != 0;
}

bool parts_refused(int fd, Io io, off_t offset) {
  return io_refused(fd, io, offset == -1 ? nullptr : &offset);
}

// Files without operations are asked for in the kernel (shim/behind.h).
bool transfer_refused(int from, int to) {
  return (behind_fd(from) == Behind::kDevice && io_refused(from, Io::kRead, nullptr)) ||
         (behind_fd(to) == Behind::kDevice && io_refused(to, Io::kWrite, nullptr));
}

// As the kernel: those before it are taken, and their number is the answer.
long requests_allowed(const iocb* const* requests, long count) {
  if (!awake()) return count;
  for (long i = 0; i < count; ++i) {
    const iocb* one = nullptr;
    iocb request{};
    host::EngineSection section(host::Touches::kClientMemory);
    const bool known = host::read_struct(Hva(reinterpret_cast<u64>(requests + i)), &one) &&
                       host::read_struct(Hva(reinterpret_cast<u64>(one)), &request);
    section.leave();
    if (!known) return count;  // the kernel says the same
    const bool reads =
        request.aio_lio_opcode == IOCB_CMD_PREAD || request.aio_lio_opcode == IOCB_CMD_PREADV;
    const Io io = reads ? Io::kRead : Io::kWrite;
    if (io_refused(static_cast<int>(request.aio_fildes), io, nullptr)) return i == 0 ? -1 : i;
  }
  return count;
}

off_t seek_fd(int fd, off_t offset, int whence) {
  if (engines_refused(fd)) return -1;
  if (whence == SEEK_DATA || whence == SEEK_HOLE) {
    if (const u64 object = has_our_holes(fd)) return seek_data(fd, object, offset, whence);
  }
  struct ::stat behind{};
  if (!awake() || !may_be_ours(fd, &behind)) [[likely]]
    return next::lseek(fd, offset, whence);
  host::EngineSection section(host::Touches::kNothing);
  host::DescriptionRef found = host::find(fd, behind);
  const bool ours = static_cast<bool>(found);
  const bool seekable = ours && found.spec().shape != host::FileShape::kMemory &&
                        found.spec().seeks && !S_ISFIFO(behind.st_mode);  // a queue
  const bool moves = ours && found->native_read();
  found.reset();
  section.leave();
  const bool known = whence >= SEEK_SET && whence <= SEEK_HOLE;
  if (ours && !seekable && known && behind_fd(fd) != Behind::kForeign) return as_libc(-ESPIPE);
  // The kernel's files of this kind have a position that only reading moves; where nothing is read,
  // it is the first one.
  if (ours && seekable && known && !moves && behind_fd(fd) != Behind::kForeign) return 0;
  return ours && known ? next::lseek(fd, 0, SEEK_CUR) : next::lseek(fd, offset, whence);
}

int truncate_at(const char* name, off_t size) {
  const MovedName moved(name);
  const char* const path = moved.path();
  if (moved.moved()) return static_cast<int>(as_libc(truncation_of_attribute(moved)));
  if (resize_refused(behind_name(AT_FDCWD, path))) return -1;
  return with_buffers([&](Buffers& buffers) { buffers.text(path); },
                      [&] {
                        return take_out_named(AT_FDCWD, path, 0, size,
                                              [&] { return next::truncate(path, size); });
                      });
}

int truncate_fd(int fd, off_t size) {
  if (engines_refused(fd)) return -1;
  struct ::stat behind{};
  if (any_virtual_io() && virtual_behind(fd)) return 0;  // an attribute has no length to change
  if (host::hugetlb::any() && sys::fstat(fd, &behind)) {
    const unsigned level = host::hugetlb::level_of_file(behind);
    const u64 page = level == 0 ? 1 : host::hugetlb::page_bytes(level);
    if (size > 0 && static_cast<u64>(size) % page != 0) {
      return static_cast<int>(as_libc(-EINVAL));
    }
  }
  const auto go_on = [&] {
    return take_out(fd, size, host::FileChange::kToTheEnd,
                    [&] { return next::ftruncate(fd, size); });
  };
  return behind_fd(fd) != Behind::kForeign ? static_cast<int>(as_libc(-EINVAL)) : go_on();
}

bool engines_refused(int fd) {
  if (!awake() || !host::may_be_engines(fd)) [[likely]]
    return false;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  const bool engines = host::is_engine_fd(fd);
  section.leave();
  errno = engines ? EBADF : error;
  return engines;
}

namespace {

// One kind of change at a time, with KEEP_SIZE where it must be and without where it must not.
bool is_known_change(int mode) {
  constexpr int kModes = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_ZERO_RANGE |
                         FALLOC_FL_INSERT_RANGE | FALLOC_FL_UNSHARE_RANGE;
  if ((mode & ~(kModes | FALLOC_FL_KEEP_SIZE)) != 0) return false;
  const bool keeps = (mode & FALLOC_FL_KEEP_SIZE) != 0;
  switch (mode & kModes) {
    case 0:
    case FALLOC_FL_UNSHARE_RANGE:
    case FALLOC_FL_ZERO_RANGE:
      return true;
    case FALLOC_FL_PUNCH_HOLE:
      return keeps;
    case FALLOC_FL_COLLAPSE_RANGE:
    case FALLOC_FL_INSERT_RANGE:
      return !keeps;
    default:
      return false;
  }
}

// In the order of vfs_fallocate (kernel file: fs/open.c).
long allocate_ours(const host::DescriptionRef& ref, int fd, int mode, off_t offset, off_t size) {
  const auto flags = sys::fcntl(fd, F_GETFL);
  if (flags && (*flags & O_PATH) != 0) return -EBADF;
  if (offset < 0 || size <= 0) return -EINVAL;
  if (!is_known_change(mode)) return -EOPNOTSUPP;
  if (flags && (*flags & O_ACCMODE) == O_RDONLY) return -EBADF;
  if (ref.spec().shape != host::FileShape::kMemory) return -ENODEV;
  if (off_t end = 0; __builtin_add_overflow(offset, size, &end)) return -EFBIG;
  const auto done = ref->fallocate(fd, mode, offset, size);
  return done ? 0 : -static_cast<long>(to_int(done.error()));
}

// Another file than the one that was looked at, or none, or one of ours.
bool means_another(int fd, const struct ::stat& before) {
  struct ::stat now{};
  return !sys::fstat(fd, &now) || now.st_ino != before.st_ino || now.st_dev != before.st_dev ||
         behind_fd(fd) == Behind::kMemory;
}

}  // namespace

int fallocate_fd(int fd, int mode, off_t offset, off_t size) {
  if (engines_refused(fd)) return -1;
  struct ::stat behind{};
  if (host::hugetlb::any() && sys::fstat(fd, &behind)) {
    round_to_huge_pages(host::hugetlb::level_of_file(behind), mode, &offset, &size);
  }
  constexpr int kMoves = FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE;
  constexpr int kTakesOut = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | kMoves;
  const auto go_on = [&] {
    const auto call = [&] { return next::fallocate(fd, mode, offset, size); };
    if (size <= 0) return call();
    // The kernel would put zeros where pages of ours are absent.
    if ((mode & kTakesOut) == 0) {
      const u64 bytes = static_cast<u64>(size);
      return with_buffers([&](Buffers& buffers) { buffers.file(fd, &offset, bytes); }, call);
    }
    const u64 taken = (mode & kMoves) != 0 ? host::FileChange::kToTheEnd : static_cast<u64>(size);
    return take_out(fd, offset, taken, call);
  };
  for (;;) {
    bool ours = awake() && may_be_ours(fd, &behind);
    if (ours) [[unlikely]] {
      host::EngineSection section(host::Touches::kNothing);
      long answer = 0;
      {
        const host::DescriptionRef ref = host::find(fd, behind);
        ours = static_cast<bool>(ref);
        if (ours) answer = allocate_ours(ref, fd, mode, offset, size);
      }
      section.leave();
      if (ours) return static_cast<int>(as_libc(answer));
    }
    const int done = go_on();
    // A stand-in is sealed: the number has come to mean one in between, and may mean another by
    // now.
    if (done == 0 || errno != EPERM || !(awake() && means_another(fd, behind))) return done;
  }
}

}  // namespace stagetwo::shim
