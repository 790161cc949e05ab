// SPDX-License-Identifier: Apache-2.0
// The requests on IOASes, options, and destruction. kernel file: drivers/iommu/iommufd/ioas.c.
#include <linux/capability.h>

#include "abi/iommufd/calls.h"
#include "abi/iommufd/test_commands.h"
#include "base/bits.h"
#include "host/capable.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u64 kMost = ~u64{0};
constexpr u32 kMapFlags =
    IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE;

u32 rights_of(u32 flags) {
  return ((flags & IOMMU_IOAS_MAP_READABLE) != 0 ? iommu::kMayRead : 0u) |
         ((flags & IOMMU_IOAS_MAP_WRITEABLE) != 0 ? iommu::kMayWrite : 0u);
}

}  // namespace

Outcome destroy(Call& call, iommu_destroy& cmd) {
  ST_TRY(may_fail("abi_iommufd.find_object", ENOENT));
  const auto try_it = [&]() -> Outcome {
    ST_LOCK_IOMMUFD(locked, call);
    ST_TRY(check_not_mapped(locked, call.iommufd, cmd.id));
    return locked.destroy(cmd.id);
  };
  const auto done = try_it();
  if (done || to_int(done.error()) != EBUSY) return done;
  // What is a user of it by a descriptor that was closed here first, and elsewhere since.
  host::sweep_closed();
  host::sweep_closed_memory();
  return try_it();
}

Outcome finish(Call& call, u32 id, Result<void> answered) {
  ST_LOCK_IOMMUFD(locked, call);
  if (answered) {
    locked.told(id);
  } else {
    locked.take_back(id);
  }
  return answered;
}

Outcome ioas_alloc(Call& call, iommu_ioas_alloc& cmd) {
  if (cmd.flags != 0) return refuse(EOPNOTSUPP);
  {
    ST_LOCK_IOMMUFD(locked, call);
    iommu::Object& object = ST_TRY(locked.make_ioas())->object;
    locked.hold_back(object);
    cmd.out_ioas_id = object.id;
  }
  return finish(call, cmd.out_ioas_id, call.respond(cmd));
}

Outcome allow_iovas(Call& call, iommu_ioas_allow_iovas& cmd) {
  if (cmd.__reserved != 0) return refuse(EOPNOTSUPP);
  {
    ST_LOCK_IOMMUFD(locked, call);
    ST_TRY(locked.find<iommu::Ioas>(cmd.ioas_id));
  }
  Vec<iommu::IovaRanges> ranges("abi_iommufd.allowed");
  Result<void> readable;
  for (u32 i = 0; i < cmd.num_iovas && readable; ++i) {
    iommu_iova_range range{};
    readable = copy_in_bytes(&range, cmd.allowed_iovas + u64{i} * sizeof(range), sizeof(range));
    if (readable) ST_TRY(ranges.push_back({range.start, range.last}));
    // The first that is wrong ends it, however many there are said to be.
    const bool look = range.start >= range.last || is_pow2(ranges.size());
    if (!readable || !look) continue;
    ST_LOCK_IOMMUFD(locked, call);
    ST_TRY(locked.check_allowed(ranges.span()));
  }
  ST_LOCK_IOMMUFD(locked, call);
  auto* const ioas = ST_TRY(locked.find<iommu::Ioas>(cmd.ioas_id));
  if (readable) return locked.allow(*ioas, ranges.span());
  // What is wrong with the ranges before it is said first.
  ST_TRY(locked.check_allowed(ranges.span()));
  return readable;
}

Outcome iova_ranges(Call& call, iommu_ioas_iova_ranges& cmd) {
  if (cmd.__reserved != 0) return refuse(EOPNOTSUPP);
  const u32 room = cmd.num_iovas;
  cmd.num_iovas = 0;
  for (u64 from = 0;;) {
    iommu_iova_range out{};
    {
      ST_LOCK_IOMMUFD(locked, call);
      const auto* const ioas = ST_TRY(locked.find<iommu::Ioas>(cmd.ioas_id));
      cmd.out_iova_alignment = ioas->alignment;
      iommu::IovaRanges range{};
      if (!iommu::Locked::next_range(*ioas, from, &range)) break;
      out = {range.start, range.last};
    }
    if (cmd.num_iovas < room) {
      ST_TRY(
          copy_out_bytes(cmd.allowed_iovas + u64{cmd.num_iovas} * sizeof(out), &out, sizeof(out)));
    }
    ++cmd.num_iovas;
    if (out.last == kMost) break;
    from = out.last + 1;
  }
  ST_TRY(call.respond(cmd));
  if (cmd.num_iovas > room) return refuse(EMSGSIZE);
  return {};
}

Outcome ioas_map(Call& call, iommu_ioas_map& cmd) {
  if ((cmd.flags & ~kMapFlags) != 0 || cmd.__reserved != 0) return refuse(EOPNOTSUPP);
  if (cmd.iova == kMost || cmd.length == kMost) return refuse(EOVERFLOW);
  if (rights_of(cmd.flags) == 0) return refuse(EINVAL);
  iommu::MapRequest request{(cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA) != 0, cmd.iova, cmd.length,
                            rights_of(cmd.flags)};
  ST_TRY(call.context().map(cmd.ioas_id, cmd.user_va, &request));
  cmd.iova = request.iova;
  return call.respond(cmd);
}

Outcome ioas_copy(Call& call, iommu_ioas_copy& cmd) {
  if (has_test_commands()) take_nth_area(call, cmd);
  if ((cmd.flags & ~kMapFlags) != 0) return refuse(EOPNOTSUPP);
  if (cmd.length == kMost || cmd.src_iova == kMost || cmd.dst_iova == kMost) {
    return refuse(EOVERFLOW);
  }
  if (rights_of(cmd.flags) == 0) return refuse(EINVAL);
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const from = ST_TRY(locked.find<iommu::Ioas>(cmd.src_ioas_id));
    iommu::Locked::MapRequest request{(cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA) != 0, cmd.dst_iova,
                                      cmd.length, rights_of(cmd.flags)};
    ST_TRY(locked.copy(*from, cmd.src_iova, cmd.dst_ioas_id, &request));
    cmd.dst_iova = request.iova;
  }
  return call.respond(cmd);
}

Outcome ioas_unmap(Call& call, iommu_ioas_unmap& cmd) {
  {
    ST_LOCK_IOMMUFD(locked, call);
    ST_TRY(locked.find<iommu::Ioas>(cmd.ioas_id));
  }
  u64 unmapped = 0;
  if (cmd.iova == 0 && cmd.length == kMost) {
    ST_TRY(call.context().unmap(cmd.ioas_id, 0, kMost, &unmapped));
  } else {
    if (cmd.iova == kMost || cmd.length == kMost) return refuse(EOVERFLOW);
    if (cmd.length == 0) return refuse(EINVAL);
    u64 last = 0;
    if (__builtin_add_overflow(cmd.iova, cmd.length - 1, &last)) return refuse(EOVERFLOW);
    ST_TRY(call.context().unmap(cmd.ioas_id, cmd.iova, last, &unmapped));
    if (unmapped == 0) return refuse(ENOENT);
  }
  cmd.length = unmapped;
  return call.respond(cmd);
}

namespace {

Outcome rlimit_mode(Call& call, iommu_option& cmd) {
  if (cmd.object_id != 0) return refuse(EOPNOTSUPP);
  if (cmd.op == IOMMU_OPTION_OP_GET) {
    ST_LOCK_IOMMUFD(locked, call);
    cmd.val64 = locked.root().process_accounting ? 1 : 0;
    return {};
  }
  if (cmd.op != IOMMU_OPTION_OP_SET) return refuse(EOPNOTSUPP);
  // Differs: in any user namespace. It chooses whose account of this session is charged, and a
  // container's root, who has not this right, could not have the mode otherwise.
  if (!host::capable_here(CAP_SYS_RESOURCE)) return refuse(EPERM);
  ST_LOCK_IOMMUFD(locked, call);
  if (locked.root().objects != 0) return refuse(EBUSY);
  if (cmd.val64 > 1) return refuse(EINVAL);
  locked.root().process_accounting = cmd.val64 == 1;
  return {};
}

Outcome huge_pages(Call& call, iommu_option& cmd) {
  ST_LOCK_IOMMUFD(locked, call);
  auto* const ioas = ST_TRY(locked.find<iommu::Ioas>(cmd.object_id));
  if (cmd.op == IOMMU_OPTION_OP_GET) {
    cmd.val64 = ioas->no_large_pages ? 0 : 1;
    return {};
  }
  if (cmd.op != IOMMU_OPTION_OP_SET) return refuse(EOPNOTSUPP);
  if (cmd.val64 > 1) return refuse(EINVAL);
  return locked.set_large_pages(*ioas, cmd.val64 == 1);
}

}  // namespace

Outcome option(Call& call, iommu_option& cmd) {
  if (cmd.__reserved != 0) return refuse(EOPNOTSUPP);
  switch (cmd.option_id) {
    case IOMMU_OPTION_RLIMIT_MODE:
      ST_TRY(rlimit_mode(call, cmd));
      break;
    case IOMMU_OPTION_HUGE_PAGES:
      ST_TRY(huge_pages(call, cmd));
      break;
    default:
      return refuse(EOPNOTSUPP);
  }
  return copy_out_bytes(call.arg + offsetof(iommu_option, val64), &cmd.val64, sizeof(cmd.val64));
}

Outcome vfio_ioas(Call& call, iommu_vfio_ioas& cmd) {
  if (cmd.__reserved != 0) return refuse(EOPNOTSUPP);
  {
    ST_LOCK_IOMMUFD(locked, call);
    switch (cmd.op) {
      case IOMMU_VFIO_IOAS_GET:
        if (locked.root().vfio_ioas.get() == nullptr) return refuse(ENODEV);
        cmd.ioas_id = locked.root().vfio_ioas->object.id;
        break;
      case IOMMU_VFIO_IOAS_SET:
        locked.root().vfio_ioas = ST_TRY(locked.find<iommu::Ioas>(cmd.ioas_id));
        return {};
      case IOMMU_VFIO_IOAS_CLEAR:
        locked.root().vfio_ioas = nullptr;
        return {};
      default:
        return refuse(EOPNOTSUPP);
    }
  }
  return call.respond(cmd);
}

}  // namespace stagetwo::abi_iommufd
