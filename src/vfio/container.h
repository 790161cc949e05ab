// SPDX-License-Identifier: Apache-2.0
#pragma once

// A container: groups that share one window of IOVAs, mapped by type 1. Its state stands in the
// arena behind its descriptor, as an iommufd's; the maps are the areas of one IOAS.
//
//   devices of a group      attached as                       a map is
//   name an IOMMU device    auxiliary, by PASID, to the one   pinned at once, and in the tables
//                           domain of the container
//   do not                  nothing: the external domain      recorded; pinned where a driver asks
//
// Analogue: struct vfio_container and vfio_iommu_type1.c; the choice at attach is that of kernels
// 5.2 to 5.15, where a group whose devices all named one IOMMU device got a real domain. Here a
// group is one device. Existing maps are replayed into the domain, and so are those that come.
// I1  A map is one area, and is taken away whole (v2 refuses what would cut one).
// I2  The domain is there exactly while a group that names an IOMMU device is attached.
// I3  With the last group goes the type, and every map.
// Locking: the arena's (kIoas); `changing_` (kContainer) keeps two changes of this process apart
// while drivers are asked. Failure: the kernel's, and nothing has changed.

#include "iommu/locked.h"
#include "sync/ref.h"
#include "vfio/bus.h"

namespace stagetwo::vfio {

enum class IommuType : u32 { kNone = 0, kType1 = 1, kType1v2 = 3, kNesting = 6 };

struct ContainerState;

struct Map {
  u64 iova, size, address;
  u32 rights;  // iommu::Rights
};
struct Unmap {
  u64 iova, size;
  bool all;
};
// What GET_INFO tells.
struct ContainerInfo {
  u64 page_sizes;
  u32 maps_left;
  bool has_ranges;  // else: any IOVA
};

class Container final : public sync::RefCounted {
 public:
  static constexpr u32 kMostMaps = 65535;

  // Over the file behind a descriptor. Failure: ENOMEM, EMFILE, EIO.
  static Result<sync::Ref<Container>> attach(int fd);
  static Result<host::Backing> make_file(const char* kind) {
    return iommu::Context::make_file(kind);
  }
  explicit Container(Box<iommu::Context> context) : context_(std::move(context)) {}

  [[nodiscard]] iommu::Context& context() const { return *context_; }
  void closed() { closed_.store(true, sync::kRelease); }

  [[nodiscard]] IommuType type();
  // Failure: EINVAL (no group, or it is set), ENODEV (no such type), as add_group().
  Result<void> set_type(u64 type);
  // Failure: EINVAL (it is in), and while a type is set EINVAL, ENOMEM, EFAULT, ENOSPC of the
  // domain.
  Result<void> add_group(const Listed& device);
  void remove_group(const Listed& device);
  [[nodiscard]] bool has_group(const Listed& device);
  // As what its requests are the container's; none: it has no IOMMU device.
  struct Tag {
    u32 device;  // the iommu room's
    u32 pasid;
  };
  [[nodiscard]] std::optional<Tag> tag_of(const Listed& device);

  // Pre: a type is set.
  Result<void> map(const Map& map);
  // Maps move to other addresses, where no group is a mediated device's: of those in the range the
  // addresses are gone until move() says others. A device reaches what is pinned all the time; no
  // group joins meanwhile. Answers the bytes. Failure: EBUSY (mediated), EINVAL (as unmap(), or one
  // of them waits already), ENOMEM.
  Result<u64> lose_addresses(const Unmap& range);
  // Failure: EINVAL (not one whole map that waits), ENOENT (no map), EOPNOTSUPP (of another
  // process: what it has pinned is its own).
  Result<void> move(const Map& map);
  [[nodiscard]] bool may_move();
  // Answers the bytes. late(context, first, last): what drivers wrote up to the end and nobody has
  // read; under the lock.
  using LateFn = void (*)(void* context, u64 first, u64 last);
  Result<u64> unmap(const Unmap& unmap, LateFn late = nullptr, void* context = nullptr);
  Result<ContainerInfo> info();
  // The nth range of IOVAs that may be mapped. Empty: no more.
  Result<std::optional<iommu::IovaRanges>> range_from(u64 iova);

  Result<void> set_tracking(bool on);
  [[nodiscard]] Result<bool> is_tracking();
  // fn(context, first, last, dirty) of each map in [iova, last] as clean, then of each dirty range
  // of them; if all are told they are clean from now on. Failure: EINVAL (a map would be cut, or
  // nobody tracks), fn's.
  using DirtyFn = Result<void> (*)(void* context, u64 first, u64 last, bool dirty);
  Result<void> read_dirty(u64 iova, u64 last, DirtyFn fn, void* context);
  // What was told and did not arrive. Failure: ENOMEM.
  Result<void> note_dirty_again(u64 iova, u64 last);

 private:
  friend class Dma;
  ~Container() override;
  static Result<ContainerState*> state(iommu::Locked& locked, bool make);
  static Result<void> attach_group(iommu::Locked& locked, ContainerState& state, u32 slot);
  static void detach_group(iommu::Locked& locked, ContainerState& state, u32 slot);
  static void note_all_dirty(iommu::Locked& locked, ContainerState& state);
  void drop_type();

  Box<iommu::Context> context_;
  sync::Mutex changing_{sync::Rank::kContainer};
  sync::Atomic<bool> closed_{false};
};

}  // namespace stagetwo::vfio
