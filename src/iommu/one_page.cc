// SPDX-License-Identifier: Apache-2.0
// A page mapped or unmapped by a call of its own: the most frequent requests of all, for which
// nothing has to be looked for. The steps are those of the general way (map.cc, ioas.cc), with what
// they ask answered before the first of them. What is out of the ordinary in any respect is left
// to it as it was found:
//
//   to map      fixed, page aligned, writable, private memory that is known to be there, charged to
//               nobody; no failpoint is armed
//   to unmap    a page of a row (page_rows.cc) that this process has pinned, or the one use of a
//               page set of one page; no access, no hardware queue
//   both        one domain, in pages of 4 KiB, and the page's table is there
//
// Who goes on where the page before ended begins a row, and whatever fits into it comes into it.
#include "base/failpoint_armed.h"
#include "host/access.h"
#include "host/pin.h"
#include "iommu/locked.h"
#include "iommu/near_entry.h"
#include "iommu/page_rows.h"

namespace stagetwo::iommu {
namespace {

Domain* only_domain(const Ioas& ioas) {
  Hwpt* const hwpt = ioas.hwpts;
  return hwpt != nullptr && hwpt->next.get() == nullptr ? &hwpt->domain : nullptr;
}

bool is_page(u64 start, u64 last) {
  return start % kPageSize == 0 && last - start == kPageSize - 1;
}

// The entry of a page; null: its table is not there.
template <pt::Format F>
pt::Entry<F>* entry_of_page(Arena& arena, Domain& domain, u64 iova) {
  if constexpr (u64{1} << F::kGranuleLg2 != kPageSize) return nullptr;
  if (auto* const entry = near_entry<F>(domain, iova, kPageSize)) [[likely]]
    return entry;
  return find_near_table(arena, domain, iova) ? near_entry<F>(domain, iova, kPageSize) : nullptr;
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
  if (ioas.nodes.first(iova, last) != nullptr) return false;
  return with_format(domain->format, [&]<typename F>(std::type_identity<F>) {
    auto* const entry = entry_of_page<F>(arena(), *domain, iova);
    if (entry == nullptr || ArenaMemory<typename F::Word>::load(entry) != F::kNonpresent) {
      return false;
    }
    if (host::pin_charge(host::PinCharge::kUser, 1) != host::PinCharge::kNone) return false;
    const auto frame = host::pin_known_page(Hva(address));
    if (!frame) return false;
    const u64 name = named(c_.process_, *frame);
    const PageRows rows(*this, ioas, c_.process_);
    if (PageRow* const row = rows.row_for(address, request)) [[likely]] {
      rows.enter(*row, iova);
    } else if (!enter_one_page(ioas, address, request, name)) {
      host::unpin_pages({*frame, 1});
      return false;
    }
    static_cast<void>(map_near<F>(entry, name * kPageSize, request.rights));
    return true;
  });
}

// With an area and a page set of its own. False: there is no memory.
bool Locked::enter_one_page(Ioas& ioas, u64 address, const MapRequest& request, u64 frame) {
  const auto set = arena().make<PageSet>("iommu.page_set");
  const auto area = arena().make<Area>("iommu.area");
  if (!set || !area) {
    if (set) arena().destroy(*set);
    if (area) arena().destroy(*area);
    return false;
  }
  enter_page_set(root(), **set, {c_.process_, true, true, address, 1});
  hold_known(root(), **set, number_of(frame));
  enter_area_of(ioas, **area, **set, {request.iova, 0, kPageSize, request.rights});
  (*area)->filled.set_unnoted(true);
  return true;
}

// Out of the table, then of all caches, then the pin.
bool Locked::unmap_one_page(Ioas& ioas, u64 start, u64 last) {
  Domain* const domain = only_domain(ioas);
  if (domain == nullptr || !is_page(start, last)) return false;
  const PageRows rows(*this, ioas);
  PageRow* const row = rows.at(start);
  if (row == nullptr || !PageRows::has(*row, start)) return unmap_alone(ioas, start, last);
  if (!is_this_process(row->process)) return false;
  return with_format(domain->format, [&]<typename F>(std::type_identity<F>) {
    auto* const entry = entry_of_page<F>(arena(), *domain, start);
    if (entry == nullptr) return false;
    const u64 frame = F::output(ArenaMemory<typename F::Word>::load(entry), 1) / kPageSize;
    if (unmap_near<F>(entry) == 0) return false;
    if (root().queue.has_lines()) flush_ioas(ioas, start, last);
    host::unpin_pages({number_of(frame), 1});
    rows.erase(*row, start);
    return true;
  });
}

// The same of a page with an area of its own.
bool Locked::unmap_alone(Ioas& ioas, u64 start, u64 last) {
  Area* const area = ioas.nodes.first(start, last);
  if (area == nullptr || area->iova() != start || area->last() != last) return false;
  // Its frames are whoever fills it's until then, who holds no lock for that.
  if (!area->filled) return false;
  PageSet& set = *area->pages;
  const u64 frame = set.few_frames[0];
  const bool ordinary = area->accesses == 0 && area->locks == 0 && set.pages == 1 &&
                        set.users == 1 && set.few_holds[0] == 1 && set.no_charge &&
                        !set.engine_maps && is_this_process(process_of(frame));
  if (!ordinary) return false;
  Domain& domain = *only_domain(ioas);
  const u64 gone = with_format(domain.format, [&]<typename F>(std::type_identity<F>) -> u64 {
    auto* const entry = entry_of_page<F>(arena(), domain, start);
    return entry == nullptr ? 0 : unmap_near<F>(entry);
  });
  if (gone == 0) return false;
  if (root().queue.has_lines()) flush_ioas(ioas, start, last);
  prefetch_behind(ioas, *area);
  host::unpin_pages({number_of(frame), 1});
  use_process(process_of(frame), -1);
  erase_area(ioas, area);
  unlink_page_set(root(), set);
  arena().destroy(&set);
  return true;
}

}  // namespace stagetwo::iommu
