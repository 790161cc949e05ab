// SPDX-License-Identifier: Apache-2.0
// Mapping memory of this process, with the lock given back while its pages are pinned: that may
// wait for whoever fills them, who may want the same iommufd. kernel file:
// drivers/iommu/iommufd/io_pagetable.c (iopt_map_pages).
//
//   who maps                                     others meanwhile
//   lock: look, place the area with its filler,  a map there: EEXIST; an automatic one: elsewhere
//     the IOAS has a user more; unlock           unmap, cut: EBUSY; copy, access, dirty bits: as if
//                                                nothing were there; the IOAS destroyed: EBUSY
//   pin page after page: may wait                attach: the new tables do not have it yet
//                                                detach: there is nothing to take out
//   lock: hold the pages, enter them into every  from here on it is an area like any other
//     table there is now, filler = nobody
//   fails: lock; the area goes, as if it had     what came meanwhile stays
//     never been; unpin
//   dies before the end: its pins go with it     who meets the area, or would destroy its IOAS,
//                                                takes it away
//
// Differs: the kernel makes an attach wait until no map is under way in the IOAS. Here the map
// fills what it finds when it comes back, before it returns.
// A page that is known to be there is pinned at once: nothing can be waited for.
#include <utility>

#include "iommu/locked.h"

namespace stagetwo::iommu {

class MapCall {
 public:
  explicit MapCall(Context& context) : c_(context) {}
  Result<void> run(u32 ioas_id, u64 user_address, MapRequest* request);

 private:
  Result<void> begin(Locked& l, Ioas& ioas, u64 user_address, MapRequest* request);
  Result<void> begin_fill(Locked& l, Ioas& ioas, Area& area);
  Result<void> finish(Locked& l, Result<void> done) const;

  Context& c_;
  Filling filling_;
};

Result<void> MapCall::run(u32 ioas_id, u64 user_address, MapRequest* request) {
  {
    Locked locked(c_);
    if (!locked.ok()) return refuse(EIO);
    Ioas& ioas = *ST_TRY(locked.find<Ioas>(ioas_id));
    if (locked.map_one_page(ioas, user_address, *request)) return {};
    ST_TRY(begin(locked, ioas, user_address, request));
    if (filling_.area == nullptr) return {};
  }
  auto pinned = pin_filling(&filling_);
  Locked locked(c_);
  if (locked.ok()) return finish(locked, std::move(pinned));
  if (pinned) drop_filling(filling_);
  return refuse(EIO);
}

Result<void> MapCall::begin(Locked& l, Ioas& ioas, u64 user_address, MapRequest* request) {
  PageSet* const set =
      ST_TRY(l.make_page_set(user_address, request->length, (request->rights & kMayWrite) != 0));
  const auto area = l.place_page_set(ioas, *set, user_address - set->start, request);
  if (!area) {
    l.put_page_set(set);
    return refuse(area.error());
  }
  if (const auto begun = begin_fill(l, ioas, **area); !begun) {
    l.erase_area(ioas, *area);
    l.put_page_set(set);
    return begun;
  }
  request->iova = (*area)->iova();
  return {};
}

Result<void> MapCall::begin_fill(Locked& l, Ioas& ioas, Area& area) {
  if (ioas.hwpts.get() == nullptr) return {};
  PageSet& set = *area.pages;
  const u64 count = area.page_count();
  if (count == 1 && l.hold_known_page(set, set.process)) {
    const auto done = l.enter_area(ioas, area);
    if (!done) l.release_pages(set, 0, 1);
    return done;
  }
  ST_TRY(l.make_frames(set));
  area.filler = set.process + 1;
  ++ioas.object.users;
  filling_ = {.ioas = &ioas, .area = &area, .set = &set, .count = count, .process = set.process};
  return {};
}

Result<void> MapCall::finish(Locked& l, Result<void> done) const {
  Ioas& ioas = *filling_.ioas;
  Area& area = *filling_.area;
  PageSet& set = *filling_.set;
  --ioas.object.users;
  area.filler = 0;
  if (done) {
    for (u64 page = 0; page < filling_.count; ++page) set.holds[page] = 1;
    l.use_process(filling_.process, static_cast<s64>(filling_.count));
    set.file_asked = set.file_asked || !filling_.shared;
    l.note_file(set);
    const bool wanted = ioas.hwpts.get() != nullptr;
    if (wanted) done = l.enter_area(ioas, area);
    if (!wanted || !done) l.release_pages(set, 0, filling_.count);
  }
  if (!done) {
    l.erase_area(ioas, &area);
    l.put_page_set(&set);
  }
  return done;
}

Result<void> Context::map(u32 ioas_id, u64 user_address, MapRequest* request) {
  return MapCall(*this).run(ioas_id, user_address, request);
}

// False: nobody fills it, or who does may live.
bool Locked::drop_dead_fill(Ioas& ioas, Area* area) {
  if (area->filler == 0 || is_alive(area->filler - 1)) return false;
  PageSet* const set = area->pages;
  erase_area(ioas, area);
  put_page_set(set);
  --ioas.object.users;
  return true;
}

// Of all of them; true: there was one.
bool Locked::drop_dead_fills(Ioas& ioas) {
  bool any = false;
  Area* next = nullptr;
  for (Area* area = areas(ioas).first(); area != nullptr; area = next) {
    next = ioas.nodes.next(area);
    any = drop_dead_fill(ioas, area) || any;
  }
  return any;
}

}  // namespace stagetwo::iommu
