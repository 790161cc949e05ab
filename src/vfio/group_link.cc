// SPDX-License-Identifier: Apache-2.0
#include "vfio/group_link.h"

#include <utility>

#include "vfio/registry.h"

namespace stagetwo::vfio {
namespace {

// fn(slot) under the lock, if the opening is the last one of the group.
template <typename F>
void with_opening(u32 slot, u64 opening, F&& fn) {
  const auto shared = registry();
  if (!shared) return;
  const sync::ProcessMutexGuard guard((*shared)->lock, sync::Rank::kContainer);
  Slot& found = (*shared)->slots[slot];
  if (found.openings == opening) fn(found);
}

}  // namespace

Result<Opening> begin_opening(u32 slot) {
  Registry& shared = *ST_TRY(registry());
  const sync::ProcessMutexGuard guard(shared.lock, sync::Rank::kContainer);
  Slot& found = shared.slots[slot];
  return Opening{++found.openings, std::exchange(found.link, GroupLink{})};
}

bool is_opening(u32 slot, u64 opening) {
  bool is = false;
  with_opening(slot, opening, [&](const Slot&) { is = true; });
  return is;
}

GroupLink link_of(u32 slot, u64 opening) {
  GroupLink link;
  with_opening(slot, opening, [&](const Slot& found) { link = found.link; });
  return link;
}

Result<void> set_link(u32 slot, u64 opening, const GroupLink& link) {
  bool done = false;
  with_opening(slot, opening, [&](Slot& found) {
    done = found.link.kind == GroupLink::Kind::kNone;
    if (done) found.link = link;
  });
  if (!done) return refuse(EINVAL);
  return {};
}

GroupLink take_link(u32 slot, u64 opening) {
  GroupLink link;
  with_opening(slot, opening, [&](Slot& found) { link = std::exchange(found.link, GroupLink{}); });
  return link;
}

}  // namespace stagetwo::vfio
