// SPDX-License-Identifier: Apache-2.0
#pragma once

// The table of objects by their types, and which process this is: what of Locked is not called but
// put where it is used. Included by iommu/locked.h alone.

#include "base/check.h"
#include "base/process_stamp.h"
#include "host/pin.h"
#include "iommu/locked.h"

namespace stagetwo::iommu {

namespace detail {
void spread_rows(const Locked& locked, Ioas& ioas, u64 start, u64 last);  // page_rows.h
}

inline bool Locked::is_this_process(u32 process) const {
  return process == c_.process_ && c_.stamp_ == stamp_of_process();
}
inline Result<u32> Locked::this_process() {
  if (c_.process_ != kProcesses && is_this_process(c_.process_)) [[likely]]
    return c_.process_;
  return find_this_process();
}

inline void Locked::uncharge(host::PinCharge mode, u64 pages) {
  if (guard_.notes()) [[unlikely]]
    return uncharged_.add(mode, pages);
  host::uncharge_pins(mode, pages);
}

// A frame as tables hold it.
inline constexpr u64 kFrameMask = (u64{1} << kFrameBits) - 1;
inline u64 named(u32 process, host::Frame frame) {
  const u64 number = static_cast<u64>(frame);
  ST_CHECK(number <= kFrameMask);
  return u64{process} << kFrameBits | number;
}
inline u32 process_of(u64 frame) {
  return static_cast<u32>(frame >> kFrameBits);
}
inline host::Frame number_of(u64 frame) {
  return host::Frame{frame & kFrameMask};
}

// Into the list, from a fresh block.
inline void enter_page_set(Root& root, PageSet& set, const PageSetHow& how) {
  PageSet* const next = root.page_sets;
  set.users.set_unnoted(1);
  set.process.set_unnoted(how.process);
  set.writable.set_unnoted(how.writable);
  set.process_charge.set_unnoted(root.process_accounting);
  set.no_charge.set_unnoted(how.no_charge);
  set.start.set_unnoted(how.start);
  set.pages.set_unnoted(how.pages);
  set.next.set_unnoted(next);
  if (next != nullptr) next->previous = &set;
  root.page_sets = &set;
  ++root.processes[how.process].uses;
}
inline void unlink_page_set(Root& root, const PageSet& set) {
  PageSet *const previous = set.previous, *const next = set.next;
  if (previous == nullptr) {
    root.page_sets = next;
  } else {
    previous->next = next;
  }
  if (next != nullptr) next->previous = previous;
  --root.processes[set.process].uses;
}
// The page of a fresh set that has one: private memory of this process.
inline void hold_known(Root& root, PageSet& set, host::Frame frame) {
  set.frames.set_unnoted(set.few_frames);
  set.holds.set_unnoted(set.few_holds);
  set.few_frames[0].set_unnoted(named(set.process, frame));
  set.few_holds[0].set_unnoted(1);
  set.file_asked.set_unnoted(true);
  ++root.processes[set.process].uses;
}
// A fresh one.
inline void enter_area_of(Ioas& ioas, Area& area, PageSet& set, const AreaHow& how) {
  area.node.start.set_unnoted(how.iova);
  area.node.last.set_unnoted(how.iova + (how.length - 1));
  area.pages.set_unnoted(&set);
  area.start_byte.set_unnoted(how.start_byte);
  area.rights.set_unnoted(how.rights);
  ioas.nodes.insert(&area);
  ++ioas.area_count;
}
inline void Locked::erase_area(Ioas& ioas, Area* area) {
  ioas.nodes.erase(area);
  --ioas.area_count;
  arena().destroy(area);
}
// What stands behind the area that is unmapped is unmapped next.
inline void prefetch_behind(const Ioas& ioas, const Area& area) {
  const Area* const next = ioas.nodes.prefetch_behind(&area);
  if (next != nullptr) prefetch_ahead(area.pages.get(), next->pages.get());
}

// Each with a node. Where no more is wanted: those that have something in common with [start,
// last].
inline AreaSet& Locked::areas(const Ioas& ioas, u64 start, u64 last) const {
  auto& of = const_cast<Ioas&>(ioas);  // what is mapped does not change
  if (!of.rows.tree.empty()) [[unlikely]]
    detail::spread_rows(*this, of, start, last);
  return of.nodes;
}

template <typename T>
Result<T*> Locked::find(u32 id) const {
  Object* const object = ST_TRY(find(id));
  if (!TypeOf<T>::is(object->type)) return refuse(ENOENT);
  return reinterpret_cast<T*>(object);
}

template <typename T>
Result<T*> Locked::find_made(u32 id) const {
  Object* const object = object_at(id);
  if (object == nullptr || !TypeOf<T>::is(object->type)) return refuse(ENOENT);
  return reinterpret_cast<T*>(object);
}

template <typename T>
Result<T*> Locked::add(ObjectType type, const char* site) {
  T* const made = ST_TRY(arena().make<T>(site));
  made->object.type = type;
  if (const auto inserted = insert_object(&made->object); !inserted) {
    arena().destroy(made);
    return refuse(inserted.error());
  }
  return made;
}

template <typename T>
void Locked::remove(T* object) {
  erase_object(&object->object);
  arena().destroy(object);
}

}  // namespace stagetwo::iommu
