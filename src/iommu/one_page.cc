// SPDX-License-Identifier: Apache-2.0
// A page mapped or unmapped by a call of its own: the most frequent requests of all, for which
// nothing has to be looked for. The steps are those of the general way (map.cc, ioas.cc), with what
// they ask answered before the first of them. What is out of the ordinary in any respect is left
// to it as it was found:
//
//   to map      fixed, page aligned, writable, private memory that is known to be there, charged to
//               nobody; no failpoint is armed
//   to unmap    the one use of a page set of one page that this process has pinned; no access, no
//               hardware queue, no engine that remembers anything
//   both        one domain, and the page's table is the one used last (near_entry.h)
#include "base/failpoint_armed.h"
#include "host/access.h"
#include "host/pin.h"
#include "iommu/locked.h"
#include "iommu/near_entry.h"

namespace stagetwo::iommu {
namespace {

Domain* only_domain(const Ioas& ioas) {
  Hwpt* const hwpt = ioas.hwpts;
  return hwpt != nullptr && hwpt->next.get() == nullptr ? &hwpt->domain : nullptr;
}

bool is_page(u64 start, u64 last) {
  return start % kPageSize == 0 && last - start == kPageSize - 1;
}

}  // namespace

bool Locked::map_one_page(Ioas& ioas, u64 address, const MapRequest& request) {
  Domain* const domain = only_domain(ioas);
  const u64 iova = request.iova, last = iova + (kPageSize - 1);
  const bool ordinary = domain != nullptr && request.fixed && request.length == kPageSize &&
                        (address | iova) % kPageSize == 0 && (request.rights & kMayWrite) != 0 &&
                        is_this_process(c_.process_) && !failpoint::is_armed() &&
                        host::is_user_range(Hva(address), kPageSize);
  if (!ordinary || ioas.reserved.first(iova, last) != nullptr) return false;
  if (ioas.areas.first(iova, last) != nullptr) return false;
  return with_format(domain->format, [&]<typename F>(std::type_identity<F>) {
    auto* const entry = near_entry<F>(*domain, iova, kPageSize);
    const bool is_free =
        entry != nullptr && ArenaMemory<typename F::Word>::load(entry) == F::kNonpresent;
    const PageSet* const set = is_free ? enter_one_page(ioas, address, request) : nullptr;
    if (set == nullptr) return false;
    static_cast<void>(map_near<F>(entry, set->few_frames[0] * kPageSize, request.rights));
    return true;
  });
}

// Null: it is not known to be there, or would be charged.
PageSet* Locked::enter_one_page(Ioas& ioas, u64 address, const MapRequest& request) {
  if (host::pin_charge(host::PinCharge::kUser, 1) != host::PinCharge::kNone) return nullptr;
  const auto set = arena().make<PageSet>("iommu.page_set");
  const auto area = arena().make<Area>("iommu.area");
  const auto frame = set && area ? host::pin_known_page(Hva(address)) : std::nullopt;
  if (!frame) {
    if (set) arena().destroy(*set);
    if (area) arena().destroy(*area);
    return nullptr;
  }
  enter_page_set(root(), **set, {c_.process_, true, true, address, 1});
  hold_known(root(), **set, *frame);
  enter_area_of(ioas, **area, **set, {request.iova, 0, kPageSize, request.rights});
  (*area)->filled.set_unnoted(true);
  return *set;
}

bool Locked::unmap_one_page(Ioas& ioas, u64 start, u64 last) {
  Domain* const domain = only_domain(ioas);
  if (domain == nullptr || !is_page(start, last) || root().queue.has_lines()) return false;
  Area* const area = ioas.areas.first(start, last);
  if (area == nullptr || area->iova() != start || area->last() != last) return false;
  PageSet& set = *area->pages;
  const u64 frame = set.few_frames[0];
  const bool ordinary = area->filled && area->accesses == 0 && area->locks == 0 && set.pages == 1 &&
                        set.users == 1 && set.few_holds[0] == 1 && set.no_charge &&
                        !set.engine_maps && is_this_process(process_of(frame));
  if (!ordinary) return false;
  const u64 gone = with_format(domain->format, [&]<typename F>(std::type_identity<F>) -> u64 {
    auto* const entry = near_entry<F>(*domain, start, kPageSize);
    return entry == nullptr ? 0 : unmap_near<F>(entry);
  });
  if (gone == 0) return false;
  prefetch_behind(ioas, *area);
  host::unpin_pages({number_of(frame), 1});
  use_process(process_of(frame), -1);
  erase_area(ioas, area);
  unlink_page_set(root(), set);
  arena().destroy(&set);
  return true;
}

}  // namespace stagetwo::iommu
