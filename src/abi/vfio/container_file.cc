// SPDX-License-Identifier: Apache-2.0
// The container's requests. kernel files: drivers/vfio/container.c, vfio_iommu_type1.c (the ioctl
// half; what maps is vfio/container.h).
#include <fcntl.h>
#include <linux/vfio.h>

#include <cstring>

#include "abi/vfio/client_memory.h"
#include "abi/vfio/files.h"
#include "abi/vfio/requests.h"
#include "abi/vfio/vfio.h"
#include "base/vec.h"

namespace stagetwo::abi_vfio {
namespace {

constexpr std::string_view kKind = "vfio-container";

static_assert(static_cast<u32>(vfio::IommuType::kType1) == VFIO_TYPE1_IOMMU);
static_assert(static_cast<u32>(vfio::IommuType::kType1v2) == VFIO_TYPE1v2_IOMMU);
static_assert(static_cast<u32>(vfio::IommuType::kNesting) == VFIO_TYPE1_NESTING_IOMMU);

long check_extension(vfio::Container& container, u64 extension) {
  switch (extension) {
    case VFIO_TYPE1_IOMMU:
    case VFIO_TYPE1v2_IOMMU:
    case VFIO_TYPE1_NESTING_IOMMU:
    case VFIO_UNMAP_ALL:
      return 1;
    case VFIO_UPDATE_VADDR:
      return container.may_move() ? 1 : 0;
    default:
      return 0;
  }
}

// ---- GET_INFO

// Capabilities behind the struct: each names the next by its place in the answer.
class Chain {
 public:
  explicit Chain(size_t head) : head_(head) {}
  // One more of `bytes`, the first of which are its header.
  Result<void> add(u16 id, const void* item, size_t bytes) {
    if (last_ != kNone) header(last_)->next = static_cast<u32>(head_ + bytes_.size());
    last_ = bytes_.size();
    ST_TRY(bytes_.append({static_cast<const u8*>(item), bytes}));
    while (bytes_.size() % sizeof(u64) != 0) ST_TRY(bytes_.push_back(0));
    *header(last_) = {id, 1, 0};
    return {};
  }
  [[nodiscard]] const Vec<u8>& bytes() const { return bytes_; }

 private:
  static constexpr size_t kNone = ~size_t{0};
  vfio_info_cap_header* header(size_t at) {
    return reinterpret_cast<vfio_info_cap_header*>(bytes_.data() + at);
  }
  size_t head_;
  size_t last_ = kNone;
  Vec<u8> bytes_{"abi_vfio.capabilities"};
};

Result<void> add_ranges(vfio::Container& container, Chain* chain) {
  struct Head {
    vfio_info_cap_header header;
    u32 count;
    u32 reserved;
  } head{};
  Vec<u8> item{"abi_vfio.ranges"};
  ST_TRY(item.resize(sizeof(head)));
  for (u64 from = 0;;) {
    const auto range = ST_TRY(container.range_from(from));
    if (!range) break;
    const u64 words[] = {range->start, range->last};
    ST_TRY(item.append({reinterpret_cast<const u8*>(words), sizeof(words)}));
    ++head.count;
    if (range->last == ~u64{0}) break;
    from = range->last + 1;
  }
  std::memcpy(item.data(), &head, sizeof(head));
  return chain->add(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, item.data(), item.size());
}

Result<long> get_info(vfio::Container& container, u64 arg) {
  vfio_iommu_type1_info info{};
  ST_TRY(copy_in(&info, arg, ST_SIZE_TO(vfio_iommu_type1_info, iova_pgsizes)));
  const size_t room = info.argsz;
  const auto known = ST_TRY(container.info());
  Chain chain(sizeof(info));
  vfio_iommu_type1_info_cap_migration migration{};
  migration.pgsize_bitmap = kPageSize;
  migration.max_dirty_bitmap_size = kMostBitmapBytes;
  ST_TRY(chain.add(VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, &migration, sizeof(migration)));
  vfio_iommu_type1_info_dma_avail avail{};
  avail.avail = known.maps_left;
  ST_TRY(chain.add(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, &avail, sizeof(avail)));
  if (known.has_ranges) ST_TRY(add_ranges(container, &chain));
  info.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
  info.iova_pgsizes = known.page_sizes;
  info.cap_offset = 0;
  const size_t whole = sizeof(info) + chain.bytes().size();
  if (room < whole) {
    info.argsz = static_cast<u32>(whole);
  } else {
    ST_TRY(copy_out_bytes(arg + sizeof(info), chain.bytes().data(), chain.bytes().size()));
    info.cap_offset = sizeof(info);
  }
  ST_TRY(copy_out_bytes(arg, &info, std::min(room, sizeof(info))));
  return 0;
}

// ---- mapping

Result<long> map_dma(vfio::Container& container, u64 arg) {
  constexpr u32 kRights = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
  vfio_iommu_type1_dma_map map{};
  ST_TRY(copy_in(&map, arg));
  if ((map.flags & ~(kRights | VFIO_DMA_MAP_FLAG_VADDR)) != 0) return refuse(EINVAL);
  const bool moves = (map.flags & VFIO_DMA_MAP_FLAG_VADDR) != 0;
  if (moves == ((map.flags & kRights) != 0)) return refuse(EINVAL);
  if (moves) {
    ST_TRY(container.move({map.iova, map.size, map.vaddr, 0}));
    return 0;
  }
  const u32 rights = ((map.flags & VFIO_DMA_MAP_FLAG_READ) != 0 ? iommu::kMayRead : 0u) |
                     ((map.flags & VFIO_DMA_MAP_FLAG_WRITE) != 0 ? iommu::kMayWrite : 0u);
  ST_TRY(container.map({map.iova, map.size, map.vaddr, rights}));
  return 0;
}

Result<long> unmap_dma(vfio::Container& container, u64 arg) {
  constexpr u32 kBitmap = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
  constexpr u32 kAlone = VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_VADDR;
  constexpr size_t kHead = offsetof(vfio_iommu_type1_dma_unmap, data);
  vfio_iommu_type1_dma_unmap unmap{};
  ST_TRY(copy_in(&unmap, arg, kHead));
  if ((unmap.flags & ~(kBitmap | kAlone)) != 0) return refuse(EINVAL);
  const bool wants = (unmap.flags & kBitmap) != 0;
  if (wants && (unmap.flags & kAlone) != 0) return refuse(EINVAL);
  DirtyBitmap bitmap;
  if (wants) {
    if (unmap.argsz < kHead + sizeof(vfio_bitmap)) return refuse(EINVAL);
    bitmap = ST_TRY(DirtyBitmap::read(arg + kHead, unmap.iova, unmap.size));
  }
  const vfio::Unmap range{unmap.iova, unmap.size, (unmap.flags & VFIO_DMA_UNMAP_FLAG_ALL) != 0};
  const bool addresses_only = (unmap.flags & VFIO_DMA_UNMAP_FLAG_VADDR) != 0;
  unmap.size = ST_TRY(addresses_only ? container.lose_addresses(range)
                      : wants        ? bitmap.fill_and_unmap(container)
                                     : container.unmap(range));
  ST_TRY(copy_out_bytes(arg, &unmap, kHead));
  return 0;
}

Result<long> dirty_pages(vfio::Container& container, u64 arg) {
  constexpr size_t kHead = offsetof(vfio_iommu_type1_dirty_bitmap, data);
  if (container.type() == vfio::IommuType::kType1) return refuse(EACCES);
  vfio_iommu_type1_dirty_bitmap dirty{};
  ST_TRY(copy_in(&dirty, arg, kHead));
  switch (dirty.flags) {
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_START:
      ST_TRY(container.set_tracking(true));
      return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP:
      ST_TRY(container.set_tracking(false));
      return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: {
      vfio_iommu_type1_dirty_bitmap_get range{};
      if (dirty.argsz - kHead < sizeof(range)) return refuse(EINVAL);
      ST_TRY(copy_in_bytes(&range, arg + kHead, sizeof(range)));
      if (range.iova + range.size < range.iova) return refuse(EINVAL);
      auto bitmap = ST_TRY(DirtyBitmap::make(range.bitmap, range.iova, range.size));
      ST_TRY(bitmap.fill(container));
      return 0;
    }
    default:
      return refuse(EINVAL);
  }
}

Result<long> type1_request(vfio::Container& container, u32 request, u64 arg) {
  switch (request) {
    case VFIO_IOMMU_GET_INFO:
      return get_info(container, arg);
    case VFIO_IOMMU_MAP_DMA:
      return map_dma(container, arg);
    case VFIO_IOMMU_UNMAP_DMA:
      return unmap_dma(container, arg);
    case VFIO_IOMMU_DIRTY_PAGES:
      return dirty_pages(container, arg);
    default:
      return refuse(ENOTTY);
  }
}

Result<long> serve(vfio::Container& container, u32 request, u64 arg) {
  switch (request) {
    case VFIO_GET_API_VERSION:
      return VFIO_API_VERSION;
    case VFIO_CHECK_EXTENSION:
      return check_extension(container, arg);
    case VFIO_SET_IOMMU:
      ST_TRY(container.set_type(arg));
      return 0;
    default:
      if (container.type() == vfio::IommuType::kNone) return refuse(EINVAL);
      return type1_request(container, request, arg);
  }
}

host::DescriptorSpec container_spec(int flags) {
  return host::shared_device(host::kMiscMajor, kMinor, flags);
}

Result<Box<ContainerFile>> make_file(int fd) {
  return make_box<ContainerFile>("abi_vfio.container", ST_TRY(vfio::Container::attach(fd)));
}

}  // namespace

long ContainerFile::ioctl(int, unsigned long request, unsigned long arg) {
  return as_answer(serve(*container_, static_cast<u32>(request), arg));
}

Result<int> open_container(int flags) {
  auto backing = ST_TRY(vfio::Container::make_file(kKind.data()));
  auto file = ST_TRY(make_file(backing.fd()));
  return host::publish(std::move(file), std::move(backing), container_spec(flags));
}

Box<host::Description> attach(std::string_view kind, int fd, host::DescriptorSpec* spec) {
  if (auto group = attach_group(kind, spec)) return group;
  if (auto device = attach_device(kind, spec)) return device;
  if (auto node = attach_node(kind, spec)) return node;
  if (kind != kKind) return {};
  *spec = container_spec(O_RDWR | O_CLOEXEC);
  auto file = make_file(fd);
  if (!file) return {};
  return std::move(*file);
}

}  // namespace stagetwo::abi_vfio
