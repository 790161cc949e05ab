// SPDX-License-Identifier: Apache-2.0
// The descriptor of an access, as a driver without DMA would hold one: pins by IOVA, reading and
// writing. kernel file: drivers/iommu/iommufd/selftest.c.
#include <fcntl.h>
#include <sys/stat.h>

#include <utility>

#include "abi/iommufd/test_commands.h"
#include "base/sys.h"
#include "host/descriptor.h"
#include "host/faultin.h"
#include "host/process.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u64 kMostBytes = u64{16} << 20;

class AccessFile final : public host::Description, public iommu::AccessClient {
 public:
  AccessFile(sync::Ref<Iommufd> iommufd, bool pins) : iommufd_(std::move(iommufd)), pins_(pins) {}
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  // In a process that was given it the maker's hears of it, too, or its end is seen.
  void last_close() override {
    if (id_ != 0 && maker_.is_creator()) iommufd_->context().destroy_access(id_);
  }
  void unmap(u64 iova, u64 last) override;

  void set_id(u32 id) { id_ = id; }
  [[nodiscard]] u32 id() const { return id_; }
  [[nodiscard]] iommu::Context& context() const { return iommufd_->context(); }
  [[nodiscard]] bool pins() const { return pins_; }
  Result<u32> pin(u64 iova, u64 length, u64 uptr, bool write);
  Result<void> unpin(u32 number);

 private:
  const sync::Ref<Iommufd> iommufd_;
  const bool pins_;
  const host::ProcessOwner maker_;
  u32 id_ = 0;  // before it is published
};

void AccessFile::unmap(u64 iova, u64 last) {
  iommu::Locked locked(context());
  if (!locked.ok()) return;
  if (const auto access = locked.find<iommu::Access>(id_)) {
    locked.unpin_within(**access, iova, last);
  }
}

Result<void> AccessFile::unpin(u32 number) {
  iommu::Locked locked(context());
  if (!locked.ok()) return refuse(EIO);
  auto* const access = ST_TRY(locked.find<iommu::Access>(id_));
  return locked.unpin_numbered(*access, number) ? Result<void>{} : Result<void>(refuse(ENOENT));
}

// Are the pages those the caller has from `uptr` on?
Result<void> check_pages(iommu::Locked& locked, u64 uptr, const Vec<u64>& frames) {
  ST_TRY(may_fail("abi_iommufd.check_pages", EFAULT));
  for (size_t i = 0; i < frames.size(); ++i) {
    const Hva page = page_floor(Hva(uptr + i * kPageSize));
    ST_TRY(host::faultin(page, Access::kRead));
    const auto frame = locked.frame_at(page);
    if (!frame || *frame != frames[i]) return refuse(EBADE);
  }
  return {};
}

Result<u32> AccessFile::pin(u64 iova, u64 length, u64 uptr, bool write) {
  const u64 first = iova & kPageMask;
  const u64 end = (iova + length + kPageSize - 1) & kPageMask;
  Vec<u64> frames("abi_iommufd.access_frames");
  ST_TRY(frames.resize((end - first) / kPageSize));
  iommu::Locked locked(context());
  if (!locked.ok()) return refuse(EIO);
  auto* const access = ST_TRY(locked.find<iommu::Access>(id_));
  const u32 number = access->next_pin;
  ST_TRY(locked.pin(*access, iova, length, write, frames.data()));
  if (uptr != 0) {
    const auto same = check_pages(locked, uptr - (iova - first), frames);
    if (!same) {
      locked.unpin_numbered(*access, number);
      return refuse(same.error());
    }
  }
  return number;
}

// The access behind a descriptor that this process has made or inherited. Failure: EBADFD.
class AccessRef {
 public:
  explicit AccessRef(u32 fd) : ref_(host::find(static_cast<int>(fd))) {
    if (ref_) access_ = dynamic_cast<AccessFile*>(ref_.get());
  }
  explicit operator bool() const { return access_ != nullptr; }
  AccessFile* operator->() const { return access_; }

 private:
  host::DescriptionRef ref_;
  AccessFile* access_ = nullptr;
};

// What a fuzzer that cannot guess an IOVA asks for: how many areas stand before, and how far into
// the one that is meant. 0: there are not so many.
u64 nth_area_iova(const iommu::Locked& locked, const iommu::Ioas& ioas, u64 asked) {
  u32 before = static_cast<u32>(asked);
  const iommu::AreaSet& areas = locked.areas(ioas);
  const iommu::Area* area = areas.first();
  for (; area != nullptr && before != 0; --before) area = areas.next(area);
  return area == nullptr ? 0 : area->iova() + (asked >> 32);
}

// Which IOVA an access means; one in no IOAS 0. Failure: EIO, ENOENT.
Result<u64> iova_of(iommu::Context& context, u32 access_id, u64 asked, u32 flags) {
  if ((flags & MOCK_FLAGS_ACCESS_SYZ) == 0) return asked;
  iommu::Locked locked(context);
  if (!locked.ok()) return refuse(EIO);
  const iommu::Ioas* const ioas = ST_TRY(locked.find<iommu::Access>(access_id))->ioas;
  return ioas == nullptr ? 0 : nth_area_iova(locked, *ioas, asked);
}

}  // namespace

void take_nth_area(Call& call, iommu_ioas_copy& cmd) {
  if ((cmd.flags & MOCK_FLAGS_ACCESS_SYZ) == 0) return;
  cmd.flags &= ~u32{MOCK_FLAGS_ACCESS_SYZ};
  const iommu::Locked locked(call.context());
  if (!locked.ok()) return;
  const auto ioas = locked.find<iommu::Ioas>(cmd.src_ioas_id);
  if (ioas) cmd.src_iova = nth_area_iova(locked, **ioas, cmd.src_iova);
}

Outcome create_access(Call& call, iommu_test_cmd& cmd) {
  const u32 flags = cmd.create_access.flags;
  if ((flags & ~u32{MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES}) != 0) return refuse(EOPNOTSUPP);
  const bool pins = flags != 0;
  ST_TRY(may_fail("abi_iommufd.access_file", ENFILE));
  auto backing = ST_TRY(host::Backing::create("iommufd-access", 0));
  struct ::stat behind{};
  ST_TRY(sys::fstat(backing.fd(), &behind));
  call.iommufd.ref();
  auto file = ST_TRY(
      make_box<AccessFile>("abi_iommufd.access", sync::Ref<Iommufd>::adopt(&call.iommufd), pins));
  AccessFile& access = *file;
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const ioas = ST_TRY(locked.find<iommu::Ioas>(cmd.id));
    auto* const made = ST_TRY(locked.make_access(ioas, pins, &access, behind.st_ino));
    made->is_pins_alone = true;
    access.set_id(made->object.id);
  }
  const u32 id = access.id();
  const auto fd = host::publish(std::move(file), std::move(backing),
                                {.home = host::StateHome::kDescription,
                                 .open_flags = O_RDWR | O_CLOEXEC,
                                 .wants_last_close = true});
  if (!fd) {
    call.context().destroy_access(id);
    return refuse(fd.error());
  }
  cmd.create_access.out_access_fd = static_cast<u32>(*fd);
  const auto told = call.respond(cmd);
  if (told) return {};
  host::CloseWatch watch(*fd);
  static_cast<void>(sys::close(*fd));
  watch.closed();
  return told;
}

Outcome access_pages(Call& call, iommu_test_cmd& cmd) {
  auto& c = cmd.access_pages;
  if (c.length > kMostBytes) return refuse(ENOMEM);
  if ((c.flags & ~u32{MOCK_FLAGS_ACCESS_WRITE | MOCK_FLAGS_ACCESS_SYZ}) != 0) {
    return refuse(EOPNOTSUPP);
  }
  const AccessRef access(cmd.id);
  if (!access) return refuse(EBADFD);
  ST_TRY(may_fail("abi_iommufd.find_access", ENOENT));
  if (!access->pins()) return refuse(EOPNOTSUPP);
  const u64 iova = ST_TRY(iova_of(access->context(), access->id(), c.iova, c.flags));
  c.out_access_pages_id =
      ST_TRY(access->pin(iova, c.length, c.uptr, (c.flags & MOCK_FLAGS_ACCESS_WRITE) != 0));
  const auto told = call.respond(cmd);
  if (!told) static_cast<void>(access->unpin(c.out_access_pages_id));
  return told;
}

Outcome access_rw(Call&, iommu_test_cmd& cmd) {
  const auto& c = cmd.access_rw;
  constexpr u32 kKnown = MOCK_ACCESS_RW_WRITE | MOCK_ACCESS_RW_SLOW_PATH | MOCK_FLAGS_ACCESS_SYZ;
  if (c.length > kMostBytes) return refuse(ENOMEM);
  if ((c.flags & ~kKnown) != 0) return refuse(EOPNOTSUPP);
  const AccessRef access(cmd.id);
  if (!access) return refuse(EBADFD);
  ST_TRY(may_fail("abi_iommufd.find_access", ENOENT));
  const bool write = (c.flags & MOCK_ACCESS_RW_WRITE) != 0;
  Vec<u8> bytes("abi_iommufd.access_bytes");
  ST_TRY(bytes.resize(c.length));
  if (write) ST_TRY(copy_in_bytes(bytes.data(), c.uptr, c.length));
  const u64 iova = ST_TRY(iova_of(access->context(), access->id(), c.iova, c.flags));
  {
    iommu::Locked locked(access->context());
    if (!locked.ok()) return refuse(EIO);
    auto* const object = ST_TRY(locked.find<iommu::Access>(access->id()));
    ST_TRY(locked.transfer(*object, iova, c.length, write ? nullptr : bytes.data(),
                           write ? bytes.data() : nullptr));
  }
  if (!write) ST_TRY(copy_out_bytes(c.uptr, bytes.data(), c.length));
  return {};
}

Outcome destroy_access_pages(iommu_test_cmd& cmd) {
  ST_TRY(may_fail("abi_iommufd.find_item", ENOENT));
  const AccessRef access(cmd.id);
  if (!access) return refuse(EBADFD);
  return access->unpin(cmd.destroy_access_pages.access_pages_id);
}

Outcome replace_access_ioas(iommu_test_cmd& cmd) {
  const AccessRef access(cmd.id);
  if (!access) return refuse(EBADFD);
  return access->context().change_ioas(access->id(), cmd.access_replace_ioas.ioas_id);
}

}  // namespace stagetwo::abi_iommufd
