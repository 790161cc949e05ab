// SPDX-License-Identifier: Apache-2.0
// Reading, writing and pinning through an IOAS without a device. kernel files:
// drivers/iommu/iommufd/device.c (iommufd_access_*), pages.c.
//
// An unmap finds pins of an access in its way:
//
//   unmapper                               access's maker
//   area.prevent_access, unlock
//   AccessClient::unmap                    unpins what overlaps; what another process holds by pins
//                                          alone is unpinned for it
//   lock, look again; 100 times, then EDEADLOCK
#include <algorithm>

#include "base/bits.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "iommu/locked.h"
#include "sync/futex.h"

namespace stagetwo::iommu {

Result<void> Locked::join_ioas(Access& access, Ioas& ioas) {
  if (access.alignment > ioas.alignment) ST_TRY(check_alignment(ioas, access.alignment));
  ioas.alignment = std::max(ioas.alignment, access.alignment);
  AccessSeat& seat = access.seats[access.seats[0].ioas.get() == nullptr ? 0 : 1];
  ST_DCHECK(seat.ioas.get() == nullptr);
  seat.access = &access;
  seat.ioas = &ioas;
  seat.next = ioas.accesses.get();
  ioas.accesses = &seat;
  ++ioas.object.users;
  return {};
}

void Locked::leave_ioas(AccessSeat& seat) {
  Ioas* const ioas = seat.ioas;
  if (ioas == nullptr) return;
  RelPtr<AccessSeat>* link = &ioas->accesses;
  while (link->get() != &seat) link = &link->get()->next;
  *link = seat.next.get();
  seat.next = nullptr;
  seat.ioas = nullptr;
  --ioas->object.users;
  ST_CHECK(recompute_alignment(*ioas).has_value());  // it only falls
}

Result<Access*> Locked::make_access(Ioas* ioas, bool pins, AccessClient* client, u64 inode) {
  const u32 process = client == nullptr ? kNobody : ST_TRY(this_process());
  Access* const access = ST_TRY(add<Access>(ObjectType::kAccess, "iommu.access"));
  access->alignment = pins ? kPageSize : 1;
  access->process = process;
  access->inode = inode;
  if (process != kNobody) use_process(process, 1);
  access->object.users = 1;  // its maker, until destroy_access()
  Result<void> done;
  if (ioas != nullptr) done = join_ioas(*access, *ioas);
  if (done && client != nullptr) done = c_.add_client(access->object.id, client);
  if (done) {
    access->enter(ioas);
    return access;
  }
  destroy_access(access);
  return refuse(done.error());
}

void Locked::destroy_access(Access* access) {
  unpin_within(*access, 0, ~u64{0});
  if (access->process != kNobody) use_process(access->process, -1);
  for (AccessSeat& seat : access->seats) leave_ioas(seat);
  remove(access);
}

namespace {

// Does the memory from `iova` on begin with a page, and end with one unless it is the last area?
bool is_page_aligned(const Area& area, u64 iova, u64 last) {
  if (area.byte_at(iova) % kPageSize != 0) return false;
  return last <= area.last() || (area.byte_at(area.last()) + 1) % kPageSize == 0;
}

bool permits(const Area& area, bool write) {
  return (area.rights & (write ? kMayWrite : kMayRead)) != 0;
}

}  // namespace

// Answers how many pages.
Result<u64> Locked::pin_pages_of(Area& area, u64 iova, u64 last, bool write, u64* frames) {
  if (area.prevent_access || !is_page_aligned(area, iova, last)) return refuse(EINVAL);
  if (!permits(area, write)) return refuse(EPERM);
  const u64 first = area.page_at(iova);
  const u64 count = area.page_at(std::min(last, area.last())) - first + 1;
  if (write && !area.pages->writable) return refuse(EPERM);
  if (failpoint::should_fail("iommu.access_pin")) return refuse(ENOMEM);
  ST_TRY(hold_pages(*area.pages, first, count));
  for (u64 i = 0; i < count; ++i) frames[i] = area.pages->frames[first + i];
  ++area.accesses;
  return count;
}

void Locked::unpin_areas(Ioas& ioas, u64 iova, u64 last) {
  for (u64 at = iova;;) {
    Area* const area = areas(ioas, at, at).first(at, at);
    ST_CHECK(area != nullptr && area->accesses != 0);  // what is pinned stays mapped
    const u64 end = std::min(last, area->last());
    const u64 first = area->page_at(at);
    release_pages(*area->pages, first, area->page_at(end) - first + 1);
    --area->accesses;
    if (end == last) return;
    at = end + 1;
  }
}

Result<void> Locked::pin(Access& access, u64 iova, u64 length, bool write, u64* frames) {
  if (length == 0) return refuse(EINVAL);
  const auto last = checked_add(iova, length - 1);
  if (!last) return refuse(EOVERFLOW);
  Ioas* const ioas = access.ioas;
  if (ioas == nullptr) return refuse(ENOENT);
  AccessPin* const made = ST_TRY(arena().make<AccessPin>("iommu.access_pin_note"));
  for (u64 at = iova;;) {
    Area* const area = areas(*ioas, at, at).first(at, at);
    Result<u64> pages = refuse(ENOENT);
    if (area != nullptr && area->filler == 0) pages = pin_pages_of(*area, at, *last, write, frames);
    if (!pages) {
      if (at != iova) unpin_areas(*ioas, iova, at - 1);
      arena().destroy(made);
      return refuse(pages.error());
    }
    frames += *pages;
    if (area->last() >= *last) break;
    at = area->last() + 1;
  }
  made->node.start = iova;
  made->node.last = *last;
  made->number = access.next_pin;
  ++access.next_pin;
  access.pins.insert(made);
  return {};
}

void Locked::unpin(Access& access, u64 iova, u64 length) {
  const u64 last = iova + length - 1;
  AccessPin* pin = access.pins.first(iova, last);
  while (pin != nullptr && (pin->node.start != iova || pin->node.last != last)) {
    pin = access.pins.next(pin);
  }
  if (pin != nullptr) unpin_one(access, pin);
}

void Locked::unpin_one(Access& access, AccessPin* pin) {
  const u64 iova = pin->node.start, last = pin->node.last;
  access.pins.erase(pin);
  arena().destroy(pin);
  unpin_areas(*access.has_pins_in, iova, last);
}

bool Locked::unpin_numbered(Access& access, u32 number) {
  for (AccessPin* pin = access.pins.first(); pin != nullptr; pin = access.pins.next(pin)) {
    if (pin->number != number) continue;
    unpin_one(access, pin);
    return true;
  }
  return false;
}

void Locked::unpin_within(Access& access, u64 iova, u64 last) {
  while (AccessPin* const pin = access.pins.first(iova, last)) unpin_one(access, pin);
}

Result<void> Locked::transfer(Access& access, u64 iova, u64 length, void* to, const void* from) {
  if (length == 0) return refuse(EINVAL);
  const auto last = checked_add(iova, length - 1);
  if (!last) return refuse(EOVERFLOW);
  const Ioas* const ioas = access.ioas;
  if (ioas == nullptr) return refuse(ENOENT);
  for (u64 at = iova;;) {
    const Area* const area = areas(*ioas, at, at).first(at, at);
    if (area == nullptr || area->filler != 0) return refuse(ENOENT);
    if (area->prevent_access) return refuse(EINVAL);
    if (!permits(*area, from != nullptr)) return refuse(EPERM);
    const u64 end = std::min(*last, area->last());
    const u64 bytes = end - at + 1;
    ST_TRY(copy_pages(*area->pages, area->byte_at(at), bytes, to, from));
    if (end == *last) return {};
    if (to != nullptr) to = static_cast<u8*>(to) + bytes;
    if (from != nullptr) from = static_cast<const u8*>(from) + bytes;
    at = end + 1;
  }
}

// ---- clients of this process --------------------------------------------------------------------

Result<void> Context::add_client(u32 access_id, AccessClient* client) {
  const sync::MutexGuard guard(clients_lock_);
  return clients_.push_back({access_id, client, 0});
}

AccessClient* Context::begin_call(u32 access_id) {
  const sync::MutexGuard guard(clients_lock_);
  for (Client& one : clients_) {
    if (one.access_id != access_id) continue;
    ++one.calls;
    return one.client;
  }
  return nullptr;
}

void Context::end_call(u32 access_id) {
  const sync::MutexGuard guard(clients_lock_);
  for (Client& one : clients_) {
    if (one.access_id == access_id) --one.calls;
  }
}

// After it nobody calls the client.
void Context::remove_client(u32 access_id) {
  for (;; sync::yield_thread()) {
    const sync::MutexGuard guard(clients_lock_);
    size_t i = 0;
    while (i < clients_.size() && clients_[i].access_id != access_id) ++i;
    if (i == clients_.size()) return;
    if (clients_[i].calls != 0) continue;
    clients_.swap_erase(i);
    return;
  }
}

void Context::call_clients(u32 ioas_id, u64 start, u64 last) {
  u32 after = 0;
  for (;;) {
    u32 id = 0;
    {
      Locked locked(*this);
      if (!locked.ok()) return;
      const auto ioas = locked.find<Ioas>(ioas_id);
      if (!ioas) return;
      // The next one by number: the list may change between two calls.
      for (const AccessSeat* seat = (*ioas)->accesses; seat != nullptr; seat = seat->next) {
        Access& access = *seat->access;
        const u32 one = access.object.id;
        if (!locked.is_this_process(access.process)) {
          if (access.is_pins_alone && access.has_pins_in.get() == *ioas) {
            locked.unpin_within(access, start, last);
          }
        } else if (one > after && (id == 0 || one < id)) {
          id = one;
        }
      }
    }
    if (id == 0) return;
    after = id;
    if (AccessClient* const client = begin_call(id)) {
      client->unmap(start, last);
      end_call(id);
    }
  }
}

void Context::ask_to_let_go(u32 access_id) {
  if (AccessClient* const client = begin_call(access_id)) {
    client->unmap(0, ~u64{0});
    end_call(access_id);
  }
}

Result<void> Context::change_ioas(u32 access_id, u32 ioas_id) {
  {
    Locked locked(*this);
    if (!locked.ok()) return refuse(EIO);
    const Access* const access = ST_TRY(locked.find<Access>(access_id));
    if (access->ioas.get() == nullptr) return refuse(ENOENT);
  }
  return set_ioas(access_id, ioas_id);
}

// Between the two sections its maker is asked to let go. It is in both IOASes then: the one it
// leaves asks for unmaps, the other keeps to its alignment. Nothing new is pinned, and what is let
// go of is looked for in the one it leaves.
Result<void> Context::set_ioas(u32 access_id, u32 ioas_id) {
  bool has_client_here = false;
  {
    Locked locked(*this);
    if (!locked.ok()) return refuse(EIO);
    Access* const access = ST_TRY(locked.find<Access>(access_id));
    Ioas* const ioas = ioas_id == 0 ? nullptr : ST_TRY(locked.find<Ioas>(ioas_id));
    if (access->ioas.get() != access->has_pins_in.get()) return refuse(EBUSY);
    if (access->ioas.get() == ioas) return {};
    if (ioas != nullptr) ST_TRY(locked.join_ioas(*access, *ioas));
    if (access->ioas.get() == nullptr) {
      access->enter(ioas);
      return {};
    }
    access->ioas = nullptr;
    has_client_here = locked.is_this_process(access->process);
  }
  if (has_client_here) ask_to_let_go(access_id);
  Locked locked(*this);
  if (!locked.ok()) return refuse(EIO);
  Access* const access = ST_TRY(locked.find<Access>(access_id));
  locked.unpin_within(*access, 0, ~u64{0});  // what it did not let go of
  Ioas* const left = access->has_pins_in;
  Ioas* joined = nullptr;
  for (AccessSeat& seat : access->seats) {
    if (seat.ioas.get() == left) {
      locked.leave_ioas(seat);
    } else {
      joined = seat.ioas;
    }
  }
  access->enter(joined);
  return {};
}

void Context::destroy_access(u32 access_id) {
  ask_to_let_go(access_id);
  remove_client(access_id);
  Locked locked(*this);
  if (!locked.ok()) return;
  const auto access = locked.find<Access>(access_id);
  if (!access) return;
  locked.destroy_access(*access);
}

void Context::release_all() {
  Locked locked(*this);
  if (locked.ok()) locked.release_process();
}

}  // namespace stagetwo::iommu
