// SPDX-License-Identifier: Apache-2.0
#include "abi/vfio/region_changes.h"

#include <sys/mman.h>

#include <algorithm>

#include "abi/vfio/mapping_table.h"
#include "vfio/trapped_rights.h"

namespace stagetwo::abi_vfio {

bool has_mapped_regions() {
  const Mappings* const known = known_mappings();
  return known != nullptr && known->used();
}

Result<void> divide_regions(HvaRange range) {
  return mappings().divide(range);
}
RightsAt rights_at(HvaRange range, int prot) {
  const HvaRange trapped = mappings().first_trapped(range);
  if (trapped.empty()) return {range.size(), prot};
  if (trapped.start() > range.start()) return {trapped.start() - range.start(), prot};
  return {trapped.size(), vfio::rights_of_trapped(prot)};
}
void note_rights(HvaRange range, int prot) {
  mappings().allow(range, prot);
}

// ---- mremap

struct RemapOfRegions::Kept {
  Vec<Mapping> rows{"abi_vfio.moved"};
};

RemapOfRegions::RemapOfRegions(const host::Remap& call) : from_(call.from) {
  if (has_mapped_regions()) look(call);
}
RemapOfRegions::~RemapOfRegions() = default;

// What the kernel refuses of any mapping it is left to refuse.
void RemapOfRegions::look(const host::Remap& asked) {
  host::Remap call = asked;
  call.size = (asked.size + kPageSize - 1) & kPageMask;
  call.new_size = (asked.new_size + kPageSize - 1) & kPageMask;
  if (host::kind_of(call) == host::Remapping::kRefused) return;
  if (mappings().has(Hva(call.from))) {
    if (call.new_size > call.size) refused_ = EFAULT;
    if ((call.flags & MREMAP_DONTUNMAP) != 0) refused_ = EINVAL;
  }
  const u64 moving = std::min(call.size, call.new_size);
  if (refused_ != 0 || moving == 0) return;
  auto kept = make_box<Kept>("abi_vfio.moved_rows");
  if (!kept || !mappings().copy_of(HvaRange(Hva(call.from), moving), &(*kept)->rows)) {
    refused_ = ENOMEM;
    return;
  }
  kept_ = std::move(*kept);
}

void RemapOfRegions::moved(Hva to) {
  if (!kept_ || to == from_) return;
  for (Mapping& row : kept_->rows) {
    row.range = HvaRange(to + (row.range.start() - from_), row.range.size());
    mappings().put_back(std::move(row));
  }
}

}  // namespace stagetwo::abi_vfio
