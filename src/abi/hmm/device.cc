// SPDX-License-Identifier: Apache-2.0
#include "abi/hmm/hmm.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "abi/hmm/uapi.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/access.h"
#include "host/descriptor.h"
#include "host/faultin.h"
#include "mirror/mirror.h"

namespace stagetwo::abi_hmm {
namespace {

using mirror::Mirror;
using mirror::PageView;
using mirror::Transfer;

// What a client can map of the device: pages of zeros.
constexpr u64 kMappableBytes = u64{1} << 40;

// The driver's own copy of what is transferred: nothing half-done reaches the caller.
class Bounce {
 public:
  static Result<Bounce> make(u64 pages) {
    if (pages > (u64{1} << 36)) return refuse(ENOMEM);
    return Bounce(ST_TRY(map_pages(pages * kPageSize, "abi_hmm.bounce")), pages * kPageSize);
  }
  Bounce(Bounce&& other) noexcept : bytes_(other.bytes_), size_(other.size_) {
    other.bytes_ = nullptr;
  }
  Bounce& operator=(Bounce&&) = delete;
  ~Bounce() {
    if (bytes_ != nullptr) unmap_pages(bytes_, size_);
  }
  [[nodiscard]] u8* bytes() const { return static_cast<u8*>(bytes_); }
  [[nodiscard]] Result<void> to_client(u64 ptr) const {
    if (!host::is_user_range(Hva(ptr), size_)) return refuse(EFAULT);
    if (host::copy_to(Hva(ptr), bytes_, size_) != size_) return refuse(EFAULT);
    return {};
  }
  [[nodiscard]] Result<void> from_client(u64 ptr) const {
    if (!host::is_user_range(Hva(ptr), size_)) return refuse(EFAULT);
    if (host::copy_from(bytes_, Hva(ptr), size_) != size_) return refuse(EFAULT);
    return {};
  }

 private:
  Bounce(void* bytes, u64 size) : bytes_(bytes), size_(size) {}
  void* bytes_;
  u64 size_;
};

u8 byte_of(const PageView& view) {
  u8 byte = HMM_DMIRROR_PROT_NONE;
  switch (view.where) {
    case PageView::Where::kError:
      return HMM_DMIRROR_PROT_ERROR;
    case PageView::Where::kNothing:
      return HMM_DMIRROR_PROT_NONE;
    case PageView::Where::kThisDevice:
      byte = HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL;
      break;
    case PageView::Where::kResidentHere:
      byte = HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL;
      break;
    case PageView::Where::kResidentElsewhere:
      byte = HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE;
      break;
    case PageView::Where::kSystem:
      byte = view.zero ? HMM_DMIRROR_PROT_ZERO : HMM_DMIRROR_PROT_NONE;
      break;
  }
  byte |= view.writable ? HMM_DMIRROR_PROT_WRITE : HMM_DMIRROR_PROT_READ;
  if (view.level == 2) byte |= HMM_DMIRROR_PROT_PMD;
  if (view.level == 3) byte |= HMM_DMIRROR_PROT_PUD;
  return byte;
}

class DeviceFile final : public host::Description {
 public:
  explicit DeviceFile(Box<Mirror> mirror) : mirror_(std::move(mirror)) {}

  long ioctl(int, unsigned long request, unsigned long arg) override {
    const Result<void> done = serve(static_cast<u32>(request), arg);
    return done ? 0 : -static_cast<long>(to_int(done.error()));
  }
  Result<void> check_mmap(const host::MapRequest& request) override {
    const u64 offset = static_cast<u64>(request.offset);
    if (request.size > kMappableBytes || offset > kMappableBytes - request.size) {
      return refuse(ENOMEM);
    }
    return {};
  }
  // The kernel's driver puts a page behind every address at once.
  void mapped(Hva at, u64 size) override {
    for (u64 done = 0; done < size; done += kPageSize) {
      if (!host::faultin(at + done, Access::kRead)) return;
    }
  }
  void last_close() override { mirror_.reset(); }

 private:
  Result<void> serve(u32 request, u64 arg);
  Result<void> perform(u32 request, hmm_dmirror_cmd* cmd);
  Result<void> read(hmm_dmirror_cmd* cmd);
  Result<void> write(hmm_dmirror_cmd* cmd);
  Result<void> read_back(hmm_dmirror_cmd* cmd);
  Result<void> snapshot(hmm_dmirror_cmd* cmd);

  Box<Mirror> mirror_;
};

HvaRange range_of(const hmm_dmirror_cmd& cmd) {
  return HvaRange(Hva(cmd.addr), cmd.npages * kPageSize);
}

Result<void> DeviceFile::serve(u32 request, u64 arg) {
  hmm_dmirror_cmd cmd{};
  if (!host::is_user_range(Hva(arg), sizeof(cmd))) return refuse(EFAULT);
  if (!host::read_struct(Hva(arg), &cmd)) return refuse(EFAULT);
  if ((cmd.addr & ~kPageMask) != 0) return refuse(EINVAL);
  // The sum may wrap, as the kernel's does: nothing, and what wraps, is refused.
  if (cmd.addr >= cmd.addr + (cmd.npages << kPageShift)) return refuse(EINVAL);
  cmd.npages = (cmd.npages << kPageShift) >> kPageShift;
  cmd.cpages = 0;
  cmd.faults = 0;
  ST_TRY(perform(request, &cmd));
  if (!host::write_struct(Hva(arg), cmd)) return refuse(EFAULT);
  return {};
}

Result<void> DeviceFile::perform(u32 request, hmm_dmirror_cmd* cmd) {
  switch (request) {
    case HMM_DMIRROR_READ:
      return read(cmd);
    case HMM_DMIRROR_WRITE:
      return write(cmd);
    case HMM_DMIRROR_MIGRATE_TO_DEV:
      ST_TRY(mirror_->migrate_to_device(range_of(*cmd)));
      return read_back(cmd);
    case HMM_DMIRROR_MIGRATE_TO_SYS:
      cmd->cpages = ST_TRY(mirror_->migrate_to_system(range_of(*cmd)));
      return {};
    case HMM_DMIRROR_EXCLUSIVE:
      ST_TRY(mirror_->make_exclusive(range_of(*cmd)));
      return read_back(cmd);
    case HMM_DMIRROR_CHECK_EXCLUSIVE:
      if (mirror_->has_exclusive(range_of(*cmd))) return refuse(EPERM);
      return {};
    case HMM_DMIRROR_SNAPSHOT:
      return snapshot(cmd);
    case HMM_DMIRROR_RELEASE:
      mirror_->release_device();
      return {};
    default:
      return refuse(EINVAL);
  }
}

Result<void> DeviceFile::read(hmm_dmirror_cmd* cmd) {
  const Bounce bounce = ST_TRY(Bounce::make(cmd->npages));
  Transfer done;
  ST_TRY(mirror_->read(Hva(cmd->addr), cmd->npages, bounce.bytes(), &done));
  ST_TRY(bounce.to_client(cmd->ptr));
  cmd->cpages = done.pages;
  cmd->faults = done.faults;
  return {};
}

Result<void> DeviceFile::write(hmm_dmirror_cmd* cmd) {
  const Bounce bounce = ST_TRY(Bounce::make(cmd->npages));
  ST_TRY(bounce.from_client(cmd->ptr));
  Transfer done;
  ST_TRY(mirror_->write(Hva(cmd->addr), cmd->npages, bounce.bytes(), &done));
  cmd->cpages = done.pages;
  cmd->faults = done.faults;
  return {};
}

// What has moved, as the device sees it.
Result<void> DeviceFile::read_back(hmm_dmirror_cmd* cmd) {
  const Bounce bounce = ST_TRY(Bounce::make(cmd->npages));
  Transfer done;
  ST_TRY(mirror_->read_mapped(Hva(cmd->addr), cmd->npages, bounce.bytes(), &done));
  ST_TRY(bounce.to_client(cmd->ptr));
  cmd->cpages = done.pages;
  return {};
}

Result<void> DeviceFile::snapshot(hmm_dmirror_cmd* cmd) {
  PageView views[Mirror::kMaxPages];
  u8 bytes[Mirror::kMaxPages];
  while (cmd->cpages < cmd->npages) {
    const auto count =
        static_cast<unsigned>(std::min<u64>(cmd->npages - cmd->cpages, Mirror::kMaxPages));
    ST_TRY(mirror_->snapshot(Hva(cmd->addr + cmd->cpages * kPageSize), count, views));
    for (unsigned i = 0; i < count; ++i) bytes[i] = byte_of(views[i]);
    const Hva to(cmd->ptr + cmd->cpages);
    if (!host::is_user_range(to, count) || host::copy_to(to, bytes, count) != count) {
      return refuse(EFAULT);
    }
    cmd->cpages += count;
  }
  return {};
}

}  // namespace

void before_fork() {
  mirror::before_fork();
}
void after_fork_parent() {
  mirror::after_fork_parent();
}
void after_fork_child() {
  mirror::after_fork_child();
}

Result<int> open_device(u32 unit, int flags) {
  FixedString<32> kind;
  kind.append("hmm_dmirror").append_int(static_cast<int>(unit));
  auto backing = ST_TRY(host::Backing::create(kind.c_str(), kMappableBytes));
  auto mirror = ST_TRY(Mirror::open(unit));
  struct ::stat status{};
  ST_TRY(sys::fstat(backing.fd(), &status));
  mirror->set_file(status.st_dev, status.st_ino);
  auto file = ST_TRY(make_box<DeviceFile>("abi_hmm.device", std::move(mirror)));
  const host::DescriptorSpec spec{.shape = host::FileShape::kCharDevice,
                                  .home = host::StateHome::kProcess,
                                  .open_flags = flags & host::kOpenFlags,
                                  .device_major = kMajor,
                                  .device_minor = unit};
  return host::publish(std::move(file), std::move(backing), spec);
}

}  // namespace stagetwo::abi_hmm
