// SPDX-License-Identifier: Apache-2.0
// A device's descriptor: what it is, its regions byte by byte, its interrupts. kernel files:
// drivers/vfio/vfio_main.c, drivers/vfio/pci/vfio_pci_core.c; where these leave it to a driver,
// samples/vfio-mdev/mtty.c.
#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/mman.h>

#include "abi/vfio/client_memory.h"
#include "abi/vfio/files.h"
#include "abi/vfio/mappings.h"
#include "abi/vfio/requests.h"
#include "abi/vfio/uapi.h"
#include "abi/vfio/vfio.h"
#include "base/vec.h"

namespace stagetwo::abi_vfio {
namespace {

constexpr unsigned kOffsetBits = 40;               // of a region's place in the file
constexpr std::string_view kKind = "vfio-device";  // opened by its group
constexpr std::string_view kNodeKind = "vfio-node";
constexpr u64 kOffsetMask = (u64{1} << kOffsetBits) - 1;
static_assert(vfio::kRegions == VFIO_PCI_NUM_REGIONS && vfio::kIrqIndexes == VFIO_PCI_NUM_IRQS);
static_assert(kNodeMajor == vfio::kNodeMajor);
static_assert(vfio::kConfigRegion == VFIO_PCI_CONFIG_REGION_INDEX);
static_assert(vfio::kIntxIndex == VFIO_PCI_INTX_IRQ_INDEX &&
              vfio::kMsiIndex == VFIO_PCI_MSI_IRQ_INDEX &&
              vfio::kMsixIndex == VFIO_PCI_MSIX_IRQ_INDEX);
static_assert(vfio::IrqSet::kNoData == VFIO_IRQ_SET_DATA_NONE &&
              vfio::IrqSet::kBools == VFIO_IRQ_SET_DATA_BOOL &&
              vfio::IrqSet::kEventfds == VFIO_IRQ_SET_DATA_EVENTFD &&
              vfio::IrqSet::kMask == VFIO_IRQ_SET_ACTION_MASK &&
              vfio::IrqSet::kUnmask == VFIO_IRQ_SET_ACTION_UNMASK &&
              vfio::IrqSet::kTrigger == VFIO_IRQ_SET_ACTION_TRIGGER);

class DeviceFile final : public host::Description, public host::PlacedIo, public host::PlacedMaps {
 public:
  explicit DeviceFile(sync::Ref<OpenDevice> device) : device_(std::move(device)) {}
  long ioctl(int fd, unsigned long request, unsigned long arg) override;
  Result<void> check_mmap(const host::MapRequest& request) override;
  Result<void> mapped_at(Hva at, const host::MapRequest& request) override;
  [[nodiscard]] bool moves_bytes() const override { return true; }
  // Without an offset: at the file's own position.
  Result<long> read_bytes(u64 to, u64 size) override {
    return advance(read_at(to, size, at_.load()));
  }
  Result<long> write_bytes(u64 from, u64 size) override {
    return advance(write_at(from, size, at_.load()));
  }
  Result<long> read_at(u64 to, u64 size, off_t at) override;
  Result<long> write_at(u64 from, u64 size, off_t at) override;

 private:
  Result<long> serve(u32 request, u64 arg);
  Result<long> serve_node(int fd, u32 request, u64 arg);
  Result<long> advance(Result<long> moved) {
    if (moved) at_.fetch_add(*moved);
    return moved;
  }

  [[nodiscard]] vfio::Device& device() const { return device_->device(); }
  // What a node is that is not bound, or is by another process.
  [[nodiscard]] int ungranted() const { return device_->is_elsewhere() ? EIO : EINVAL; }

  sync::Ref<OpenDevice> device_;
  sync::Atomic<off_t> at_{0};
};

// ---- what it is

Result<long> get_info(const vfio::Shape& shape, u64 arg) {
  constexpr size_t kHead = ST_SIZE_TO(vfio_device_info, num_irqs);
  struct {
    vfio_device_info info;
    u32 room[2];  // the struct of 6.12 is longer than Debian's
  } told{};
  ST_TRY(copy_in(&told.info, arg, kHead));
  constexpr size_t kWhole = kHead + 2 * sizeof(u32);  // no capabilities, a reserved word
  told.info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
  told.info.num_regions = VFIO_PCI_NUM_REGIONS;
  told.info.num_irqs = VFIO_PCI_NUM_IRQS;
  const size_t size = shape.function ? std::min<size_t>(told.info.argsz, kWhole) : kHead;
  ST_TRY(copy_out_bytes(arg, &told, size));
  return 0;
}

// Where a region may be mapped in parts only.
struct SparseAreas {
  static constexpr size_t kMost = 16;
  struct Head {  // struct vfio_region_info_cap_sparse_mmap without its array
    vfio_info_cap_header header;
    u32 nr_areas;
    u32 reserved;
  } head{};
  vfio_region_sparse_mmap_area areas[kMost]{};
  [[nodiscard]] size_t bytes() const { return sizeof(head) + head.nr_areas * sizeof(areas[0]); }
};
static_assert(sizeof(SparseAreas::Head) == sizeof(vfio_region_info_cap_sparse_mmap));
static_assert(offsetof(SparseAreas, areas) == sizeof(SparseAreas::Head));

// Areas that follow each other are one to a client, who does not see which stores are trapped.
SparseAreas sparse_areas(const vfio::RegionShape& region) {
  SparseAreas sparse;
  sparse.head.header = {VFIO_REGION_INFO_CAP_SPARSE_MMAP, 1, 0};
  for (const vfio::MappedArea& area : region.mapped) {
    auto* const last =
        sparse.head.nr_areas == 0 ? nullptr : &sparse.areas[sparse.head.nr_areas - 1];
    if (last != nullptr && last->offset + last->size == area.offset) {
      last->size += area.size;
    } else if (sparse.head.nr_areas < SparseAreas::kMost) {
      sparse.areas[sparse.head.nr_areas++] = {area.offset, area.size};
    }
  }
  return sparse;
}

Result<long> get_region_info(const vfio::Shape& shape, u64 arg) {
  vfio_region_info info{};
  ST_TRY(copy_in(&info, arg));
  if (info.index >= VFIO_PCI_NUM_REGIONS) return refuse(EINVAL);
  if (info.index == VFIO_PCI_VGA_REGION_INDEX && shape.function) return refuse(EINVAL);
  const vfio::RegionShape& region = shape.regions[info.index];
  const size_t room = info.argsz;
  info.offset = u64{info.index} << kOffsetBits;
  info.size = region.size;
  info.cap_offset = 0;
  const bool nothing = info.size == 0 && shape.function;
  info.flags = nothing ? 0 : VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
  if (!region.mapped.empty()) {
    info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
    const SparseAreas sparse = sparse_areas(region);
    const bool whole = sparse.head.nr_areas == 1 && sparse.areas[0].offset == 0 &&
                       sparse.areas[0].size >= region.size;
    const vfio_info_cap_header messages{VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1, 0};
    const void* const capability = whole ? static_cast<const void*>(&messages) : &sparse;
    const size_t bytes = whole ? sizeof(messages) : sparse.bytes();
    if (!whole || info.index == shape.msix_region) {
      info.flags |= VFIO_REGION_INFO_FLAG_CAPS;
      info.argsz = static_cast<u32>(sizeof(info) + bytes);
      if (room >= info.argsz) {
        ST_TRY(copy_out_bytes(arg + sizeof(info), capability, bytes));
        info.cap_offset = sizeof(info);
        info.argsz = static_cast<u32>(room);
      }
    }
  }
  ST_TRY(copy_out_bytes(arg, &info, sizeof(info)));
  return 0;
}

Result<long> get_irq_info(const vfio::Shape& shape, u64 arg) {
  vfio_irq_info info{};
  ST_TRY(copy_in(&info, arg));
  if (info.index >= VFIO_PCI_NUM_IRQS) return refuse(EINVAL);
  if (shape.vectors[info.index] == 0 && !shape.function) return refuse(EINVAL);
  info.count = shape.vectors[info.index];
  info.flags = VFIO_IRQ_INFO_EVENTFD;
  info.flags |= info.index == VFIO_PCI_INTX_IRQ_INDEX
                    ? VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED
                    : VFIO_IRQ_INFO_NORESIZE;
  ST_TRY(copy_out_bytes(arg, &info, sizeof(info)));
  return 0;
}

// ---- interrupts

// How many bytes come behind the struct. Failure: EINVAL.
Result<size_t> irq_data_size(const vfio_irq_set& set, const vfio::Shape& shape) {
  constexpr u32 kKnown = VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK;
  if (set.index >= VFIO_PCI_NUM_IRQS || set.count >= ~u32{0} - set.start ||
      (set.flags & ~kKnown) != 0) {
    return refuse(EINVAL);
  }
  // As mtty.c: an index without vectors is refused by its request, not by its size.
  const u32 vectors = shape.vectors[set.index];
  const u32 most = vectors == 0 && !shape.function ? u32{VFIO_PCI_NUM_IRQS} : vectors;
  if (set.start >= most || set.start + set.count > most) return refuse(EINVAL);
  size_t each = 0;
  switch (set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK) {
    case VFIO_IRQ_SET_DATA_NONE:
      break;
    case VFIO_IRQ_SET_DATA_BOOL:
      each = sizeof(u8);
      break;
    case VFIO_IRQ_SET_DATA_EVENTFD:
      each = sizeof(s32);
      break;
    default:
      return refuse(EINVAL);
  }
  if (set.argsz - sizeof(set) < set.count * each) return refuse(EINVAL);
  return set.count * each;
}

Result<long> set_irqs(vfio::Device& device, u64 arg) {
  vfio_irq_set set{};
  ST_TRY(copy_in(&set, arg, sizeof(vfio_irq_set)));
  const size_t bytes = ST_TRY(irq_data_size(set, device.shape()));
  Vec<u8> data{"abi_vfio.irq_data"};
  ST_TRY(data.resize(bytes));
  ST_TRY(copy_in_bytes(data.data(), arg + sizeof(set), bytes));
  ST_TRY(device.set_irqs({set.flags, set.index, set.start, set.count, data.span()}));
  return 0;
}

// The flags are looked at before it is said that there is no feature.
Result<long> feature(u64 arg) {
  constexpr u32 kGet = VFIO_DEVICE_FEATURE_GET, kSet = VFIO_DEVICE_FEATURE_SET;
  constexpr u32 kProbe = VFIO_DEVICE_FEATURE_PROBE;
  vfio_device_feature asked{};
  ST_TRY(copy_in(&asked, arg, sizeof(vfio_device_feature)));
  if ((asked.flags & ~(VFIO_DEVICE_FEATURE_MASK | kGet | kSet | kProbe)) != 0) {
    return refuse(EINVAL);
  }
  if ((asked.flags & kProbe) == 0 && (asked.flags & kGet) != 0 && (asked.flags & kSet) != 0) {
    return refuse(EINVAL);
  }
  return refuse(ENOTTY);
}

// A function stands alone on its root bus, which no reset reaches.
Result<long> hot_reset_info(const vfio::Shape& shape, u64 arg) {
  if (!shape.function) return refuse(ENOTTY);
  struct {
    u32 argsz, flags, count;
  } asked{};
  static_assert(sizeof(asked) == sizeof(vfio_pci_hot_reset_info));
  ST_TRY(copy_in(&asked, arg, sizeof(asked)));
  return refuse(ENODEV);
}

Result<long> hot_reset(const vfio::Shape& shape, u64 arg, bool has_group) {
  if (!shape.function) return refuse(ENOTTY);
  vfio_pci_hot_reset asked{};
  ST_TRY(copy_in(&asked, arg, sizeof(asked)));
  // Who has its own node names no groups, who has its group's names some.
  if (asked.flags != 0 || (asked.count != 0) != has_group) return refuse(EINVAL);
  return refuse(ENODEV);
}

Result<long> DeviceFile::serve(u32 request, u64 arg) {
  switch (request) {
    case VFIO_DEVICE_GET_INFO:
      return get_info(device().shape(), arg);
    case VFIO_DEVICE_GET_REGION_INFO:
      return get_region_info(device().shape(), arg);
    case VFIO_DEVICE_GET_IRQ_INFO:
      return get_irq_info(device().shape(), arg);
    case VFIO_DEVICE_SET_IRQS:
      return set_irqs(device(), arg);
    case VFIO_DEVICE_RESET:
      device().reset();
      return 0;
    case VFIO_DEVICE_FEATURE:
      return feature(arg);
    case VFIO_DEVICE_GET_PCI_HOT_RESET_INFO:
      return hot_reset_info(device().shape(), arg);
    case VFIO_DEVICE_PCI_HOT_RESET:
      return hot_reset(device().shape(), arg, device_->has_group());
    default:
      return refuse(ENOTTY);
  }
}

// Before it is bound a node's file answers nothing else.
Result<long> DeviceFile::serve_node(int fd, u32 request, u64 arg) {
  if (request == VFIO_DEVICE_BIND_IOMMUFD && !device_->stays_elsewhere()) {
    return bind_iommufd(*device_, fd, arg);
  }
  if (!device_->is_granted()) return refuse(ungranted());
  if (!device_->has_group() && request == VFIO_DEVICE_ATTACH_IOMMUFD_PT) {
    return attach_pt(*device_, arg);
  }
  if (!device_->has_group() && request == VFIO_DEVICE_DETACH_IOMMUFD_PT) {
    return detach_pt(*device_, arg);
  }
  return serve(request, arg);
}

long DeviceFile::ioctl(int fd, unsigned long request, unsigned long arg) {
  return as_answer(serve_node(fd, static_cast<u32>(request), arg));
}

// ---- regions

struct Place {
  unsigned region;
  u64 offset;
  u64 bytes;  // of the request that are in the region
};

Result<Place> place_of(vfio::Device& device, u64 size, off_t at) {
  const vfio::Shape& shape = device.shape();
  const u64 index = static_cast<u64>(at) >> kOffsetBits;
  const u64 offset = static_cast<u64>(at) & kOffsetMask;
  if (index >= vfio::kRegions) return refuse(EINVAL);
  const u64 whole = shape.regions[index].size;
  // vfio_pci_config.c takes accesses whole, and its word for what is outside is another.
  const bool configures = shape.function && index == vfio::kConfigRegion;
  if (configures && (offset >= whole || size > whole - offset)) return refuse(EFAULT);
  if (offset >= whole) return refuse(EINVAL);
  if (shape.function && index < vfio::kBars && memory_is_off(device)) return refuse(EIO);
  return Place{static_cast<unsigned>(index), offset, std::min(size, whole - offset)};
}

// The widest access that is aligned and not too long.
unsigned width_at(u64 offset, u64 left) {
  unsigned width = 4;
  while (width > left || offset % width != 0) width /= 2;
  return width;
}

Result<long> DeviceFile::read_at(u64 to, u64 size, off_t at) {
  if (!device_->is_granted()) return refuse(ungranted());
  if (size == 0) return 0;
  const Place place = ST_TRY(place_of(device(), size, at));
  for (u64 done = 0; done < place.bytes;) {
    const unsigned width = width_at(place.offset + done, place.bytes - done);
    u8 bytes[4] = {};
    device().read(place.region, place.offset + done, {bytes, width});
    ST_TRY(copy_out_bytes(to + done, bytes, width));
    done += width;
  }
  return static_cast<long>(place.bytes);
}

Result<long> DeviceFile::write_at(u64 from, u64 size, off_t at) {
  if (!device_->is_granted()) return refuse(ungranted());
  if (size == 0) return 0;
  const Place place = ST_TRY(place_of(device(), size, at));
  for (u64 done = 0; done < place.bytes;) {
    const unsigned width = width_at(place.offset + done, place.bytes - done);
    u8 bytes[4] = {};
    ST_TRY(copy_in_bytes(bytes, from + done, width));
    device().write(place.region, place.offset + done, {bytes, width});
    if (place.region == vfio::kConfigRegion) follow_memory(device());
    done += width;
  }
  return static_cast<long>(place.bytes);
}

// ---- mappings

// Whole pages of the region that may be mapped, and nothing beside them.
Result<void> DeviceFile::check_mmap(const host::MapRequest& request) {
  if (!device_->is_granted()) return refuse(ungranted());
  const u64 index = static_cast<u64>(request.offset) >> kOffsetBits;
  if (index >= vfio::kRegions || (request.flags & MAP_TYPE) == MAP_PRIVATE) return refuse(EINVAL);
  u64 at = static_cast<u64>(request.offset) & kOffsetMask;
  const u64 size = (request.size + kPageSize - 1) & kPageMask;
  const u64 end = at + size;
  if (size == 0 || end > kOffsetMask) return refuse(EINVAL);
  for (const vfio::MappedArea& area : device().shape().regions[index].mapped) {
    if (area.offset <= at && at - area.offset < area.size) at = area.offset + area.size;
  }
  if (at < end) return refuse(EINVAL);
  return {};
}

Result<void> DeviceFile::mapped_at(Hva at, const host::MapRequest& request) {
  return note_mapping(device_, at, (request.size + kPageSize - 1) & kPageMask, request.prot,
                      static_cast<unsigned>(static_cast<u64>(request.offset) >> kOffsetBits),
                      static_cast<u64>(request.offset) & kOffsetMask);
}

host::DescriptorSpec device_spec() {
  return {.shape = host::FileShape::kAnonInode,
          .home = host::StateHome::kDescription,
          .open_flags = O_RDWR | O_CLOEXEC,
          .wants_last_close = true,
          .seeks = false};
}

Result<Box<DeviceFile>> make_device_file(sync::Ref<Group> group, sync::Ref<vfio::Device> device) {
  auto opened = ST_TRY(
      sync::Ref<OpenDevice>::make("abi_vfio.open_device", std::move(group), std::move(device)));
  return make_box<DeviceFile>("abi_vfio.device_file", std::move(opened));
}

}  // namespace

Result<long> open_device(sync::Ref<Group> group) {
  const vfio::Listed which = group->which();
  // Who opens it first has it as it is after a reset.
  using enum vfio::ClaimKind;
  vfio::Settling settling(which);
  while (vfio::is_claimed(kDevice, which.born) && settling.goes_on(kDevice)) {
  }
  auto device = ST_TRY(vfio::Device::open(which));
  ST_TRY(group->connect(*device));
  FixedString<kLongestKind> kind;
  group->append_kind(kKind, kind);
  auto backing = ST_TRY(host::Backing::create(kind.c_str(), 0));
  auto file = ST_TRY(make_device_file(std::move(group), std::move(device)));
  return ST_TRY(
      publish(which, vfio::FileRole::kDevice, std::move(file), std::move(backing), device_spec()));
}

Box<host::Description> attach_device(std::string_view kind, host::DescriptorSpec* spec) {
  if (!kind.starts_with(kKind) || !kind.substr(kKind.size()).starts_with(':')) return {};
  auto group = Group::received(kind.substr(kKind.size()));
  if (!group) return {};
  auto device = vfio::Device::open((*group)->which(), vfio::Device::Opening::kReceived);
  if (!device || !(*group)->connect(**device)) return {};
  *spec = device_spec();
  auto file = make_device_file(std::move(*group), std::move(*device));
  if (!file) return {};
  return std::move(*file);
}

namespace {

host::DescriptorSpec node_spec(u32 number, int flags) {
  return host::shared_device(kNodeMajor, number, flags);
}

Result<Box<DeviceFile>> make_node_file(const vfio::Listed& which, vfio::Claim node, bool received) {
  auto opened =
      ST_TRY(sync::Ref<OpenDevice>::make("abi_vfio.open_device", which, std::move(node), received));
  return make_box<DeviceFile>("abi_vfio.device_file", std::move(opened));
}

}  // namespace

Result<int> open_node(u32 number, int flags) {
  const auto which = vfio::device_at(number);
  if (!which || !which->type) return refuse(ENODEV);
  auto node = ST_TRY(vfio::claim(vfio::ClaimKind::kNode, which->born, vfio::Share::kMany));
  FixedString<kLongestKind> kind;
  append_kind(kNodeKind, *which, 0, kind);
  auto backing = ST_TRY(host::Backing::create(kind.c_str(), 0));
  auto file = ST_TRY(make_node_file(*which, std::move(node), false));
  return host::publish(std::move(file), std::move(backing), node_spec(number, flags));
}

// A removal waits for the sender's claim, and from here on for this one; what went before is gone.
Box<host::Description> attach_node(std::string_view kind, host::DescriptorSpec* spec) {
  if (!kind.starts_with(kNodeKind)) return {};
  kind.remove_prefix(kNodeKind.size());
  const auto named = read_kind(kind);
  if (!named) return {};
  auto node = vfio::claim(vfio::ClaimKind::kNode, named->which.born, vfio::Share::kMany);
  if (!node || !read_kind(kind)) return {};
  *spec = node_spec(named->which.slot, O_RDWR | O_CLOEXEC);
  auto file = make_node_file(named->which, std::move(*node), true);
  if (!file) return {};
  return std::move(*file);
}

}  // namespace stagetwo::abi_vfio
