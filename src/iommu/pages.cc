// SPDX-License-Identifier: Apache-2.0
// Page sets: the memory behind areas, and its pins. kernel file: drivers/iommu/iommufd/pages.c.
//
// Differs: the kernel keeps intervals of accesses and domains and lets the frames stand in the
// domain's own tables; here each page of a set that was ever held has its frame and a count. That
// costs 12 bytes a page and makes every question about pins one load.
//
// Several processes. A frame is a number of the pin table of the process that pinned
// (host/pin.h), and is named with that process:
//
//   page held by        reached by another process
//   one that lives      the same file, if it is shared memory: by this process's own mapping of it
//   one that is gone    the same, by what was noted when the page was pinned
//   nobody, of one that      what it has at the address, as process_vm_readv does
//   lives
//   (pinned private memory of another process is EFAULT: nobody but itself reaches it)
//
// Pins of a process that is gone are gone with it, and so are those of one that runs another
// program since exec; those of a living one that another process drops are its orphans until it
// comes here again.
#include <algorithm>

#include "base/bits.h"
#include "base/check.h"
#include "base/process_page.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/faultin.h"
#include "host/pin.h"
#include "host/pin_account.h"
#include "host/process_map.h"
#include "iommu/locked.h"
#include "iommu/other_process.h"
#include "iommu/page_rows.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kRunBytes = 12;  // of the kernel's list of pages: a frame and a count
constexpr unsigned kMostRuns = 64;

constinit sync::Atomic<u64> batch_limit{u64{64} << 10};

unsigned runs_at_once() {
  const u64 runs = batch_limit.load(sync::kRelaxed) / kRunBytes;
  return static_cast<unsigned>(std::clamp<u64>(runs, 1, kMostRuns));
}

host::PinCharge charge_of(const PageSet& set) {
  if (set.no_charge) return host::PinCharge::kNone;
  return set.process_charge ? host::PinCharge::kProcess : host::PinCharge::kUser;
}

}  // namespace

void Context::set_batch_limit(u64 bytes) {
  batch_limit.store(bytes, sync::kRelaxed);
}

// This process's place in the table; a new one at its first use, a place nobody needs any more.
// What ran here before exec may have been inside of a section that a removal waits for.
Result<u32> Locked::find_this_process() {
  const u32 stamp = process_stamp();
  const ProcessName self = name_of_this_process();
  const u32 space = pid_space();
  const u64 image = image_of_this_process();
  u32 free = kProcesses;
  bool had_image = false;
  for (u32 i = 0; i < kProcesses; ++i) {
    Process& place = root().processes[i];
    if (place.pid == self.pid && place.start_time == self.start_time && place.space == space) {
      if (place.image == image) {
        free = i;
        break;
      }
      had_image = true;
    }
    const bool is_free = place.pid == 0 || (place.uses == 0 && !is_alive(i));
    if (is_free && free == kProcesses) free = i;
  }
  if (free == kProcesses) return refuse(ENOMEM);
  root().processes[free].pid = self.pid;
  root().processes[free].space = space;
  root().processes[free].start_time = self.start_time;
  root().processes[free].image = image;
  root().processes[free].stack = self.stack;
  c_.process_ = free;
  c_.stamp_ = stamp;
  if (had_image) drop_dead_lines();
  return free;
}

// One that cannot be asked for by its number lives, as far as anybody here knows.
bool Locked::is_near(u32 process) const {
  return root().processes[process].space == pid_space() && proc_is_ours();
}

// Nor does one that runs another program now.
bool Locked::is_alive(u32 process) const {
  const Process& place = root().processes[process];
  if (place.pid == 0) return false;
  if (is_this_process(process)) return true;
  const u32 space = pid_space();
  const bool is_own_number =
      space != 0 && place.space == space && place.pid == static_cast<u32>(sys::getpid());
  if (is_own_number && place.image != image_of_this_process()) return false;
  if (!is_near(process)) return true;
  const ProcessName now = name_of_process(place.pid);
  if (!now.alive || now.start_time != place.start_time) return false;
  return now.stack == 0 || place.stack == 0 || now.stack == place.stack;
}

Result<PageSet*> Locked::make_page_set(u64 user_address, u64 length, bool writable) {
  if (length == 0 || length > ~u64{0} - kPageSize) return refuse(EINVAL);
  if (!checked_add(user_address, length)) return refuse(EOVERFLOW);
  const u32 process = ST_TRY(this_process());
  PageSet* const set = ST_TRY(arena().make<PageSet>("iommu.page_set"));
  const u64 start = user_address & kPageMask;
  const u64 pages = div_ceil(length + (user_address - start), kPageSize);
  const auto charge = host::pin_charge(host::PinCharge::kUser, pages);
  enter_page_set(root(), *set, {process, writable, charge == host::PinCharge::kNone, start, pages});
  return set;
}

Result<void> Locked::move_page_set(PageSet& set, u64 address) {
  if (!is_this_process(set.process)) return refuse(EOPNOTSUPP);
  set.start = address;
  set.file_asked = set.file_known = false;
  return {};
}

void Locked::put_page_set(PageSet* set) {
  if (--set->users != 0 || set->orphans != 0) return;  // orphans: until they are unpinned
  free_page_set(set);
}

void Locked::free_page_set(PageSet* set) {
  unlink_page_set(root(), *set);
  // Of another process it stays until that one ends.
  if (set->engine_maps && is_this_process(set->process)) {
    unmap_pages(reinterpret_cast<void*>(set->start.get()), set->pages * kPageSize);
  }
  if (set->pages > kFewPages) {
    arena().free(set->frames.get(), set->pages * sizeof(u64));
    arena().free(set->holds.get(), set->pages * sizeof(u32));
  }
  arena().destroy(set);
}

Result<void> Locked::hold_pages(PageSet& set, u64 first, u64 count) {
  if (set.holds.get() == nullptr) ST_TRY(make_frames(set));
  if (auto* const hold = &set.holds[first]; count == 1 && *hold == 0) {
    const u32 process = ST_TRY(this_process());
    const auto pinned =
        set.process == process ? pin_own_page(set, first, process) : pin_run(set, first, 1);
    *hold = pinned ? 1 : 0;
    return pinned;
  }
  u64 done = 0;
  while (done < count) {
    u64 end = done;
    while (end < count && set.holds[first + end] == 0) ++end;
    if (end != done) {
      if (const auto pinned = pin_run(set, first + done, end - done); !pinned) {
        release_pages(set, first, done);
        return pinned;
      }
    }
    for (; done < end; ++done) set.holds[first + done] = 1;
    for (; done < count && set.holds[first + done] != 0; ++done) hold_again(set, first + done);
  }
  return {};
}

// A page that is pinned already.
void Locked::hold_again(PageSet& set, u64 page) {
  if (set.holds[page] != kOrphan) {
    ++set.holds[page];
    return;
  }
  set.holds[page] = 1;
  --set.orphans;
  --root().orphans;
}

Result<void> Locked::make_frames(PageSet& set) {
  if (set.pages <= kFewPages) {
    set.frames = set.few_frames;
    set.holds = set.few_holds;
    return {};
  }
  if (set.pages > Arena::kFileBytes / sizeof(u64)) return refuse(ENOMEM);
  auto* const frames =
      static_cast<Kept<u64>*>(arena().alloc(set.pages * sizeof(u64), "iommu.frames"));
  if (frames == nullptr) return refuse(ENOMEM);
  auto* const holds =
      static_cast<Kept<u32>*>(arena().alloc(set.pages * sizeof(u32), "iommu.holds"));
  if (holds == nullptr) {
    arena().free(frames, set.pages * sizeof(u64));
    return refuse(ENOMEM);
  }
  set.frames = frames;
  set.holds = holds;
  return {};
}

namespace {

// Is there something at every page? Asked before the first is pinned: a pin may make a mapping of
// the engine's own, and the kernel may put that into the very hole.
Result<void> check_whole(HvaRange range) {
  if (!host::is_user_range(range.start(), range.size())) return refuse(EFAULT);
  for (Hva at = range.start(); range.size() > kPageSize && at < range.end();) {
    at = ST_TRY(host::mapping_at(at)).range.end();
  }
  return {};
}

}  // namespace

namespace {

// Gives the pins of this process back, of pages whose frames follow each other at once.
void unpin_frames(PageSet& set, u64 first, u64 count) {
  for (u64 done = 0; done < count;) {
    u64 end = done + 1;
    while (end < count && set.frames[first + end] == set.frames[first + end - 1] + 1) ++end;
    host::unpin_pages({number_of(set.frames[first + done]), end - done});
    done = end;
  }
}

// Pins pages of `range` from its first one on, and names them with the process.
Result<host::PinBatch> pin_some(HvaRange range, bool write, u32 process, Kept<u64>* frames) {
  host::FrameRun runs[kMostRuns];
  const auto some = ST_TRY(host::pin_pages(range, {.write = write}, runs, runs_at_once()));
  for (const host::FrameRun* run = runs; run != runs + some.runs; ++run) {
    for (u64 i = 0; i < run->pages; ++i) *frames++ = named(process, run->first + i);
  }
  return some;
}

}  // namespace

// By far the most frequent number, and nothing for it is looked up that need not be.
Result<void> Locked::pin_own_page(PageSet& set, u64 page, u32 process) {
  const Hva at(set.start + page * kPageSize);
  if (!host::is_user_range(at, kPageSize)) return refuse(EFAULT);
  const host::PinnedPage pinned = ST_TRY(host::pin_page(at, {.write = set.writable}));
  if (const auto charged = host::charge_pins(charge_of(set), 1); !charged) {
    host::unpin_pages({pinned.frame, 1});
    return charged;
  }
  set.frames[page] = named(process, pinned.frame);
  use_process(process, 1);
  set.file_asked = set.file_asked || (page == 0 && !pinned.shared);
  if (!set.file_asked) note_file(set);
  return {};
}

// Pins pages that nobody holds, all or none. They are not yet held.
Result<void> Locked::pin_run(PageSet& set, u64 first, u64 count) {
  const u32 process = ST_TRY(this_process());
  const bool own = set.process == process;
  if (own && count == 1) return pin_own_page(set, first, process);
  if (!own && !set.engine_maps && !is_alive(set.process)) return refuse(EFAULT);
  if (own) {
    ST_TRY(check_whole(HvaRange(Hva(set.start + first * kPageSize), count * kPageSize)));
  }
  Result<void> done_so_far;
  bool any_shared = !own || first != 0;
  u64 done = 0;
  while (done < count) {
    HvaRange range(Hva(set.start + (first + done) * kPageSize), (count - done) * kPageSize);
    if (!own) {
      const auto here = address_here(set, first + done);
      if (!here) {
        done_so_far = refuse(EFAULT);
        break;
      }
      range = HvaRange(*here, kPageSize);
    }
    auto* const frames = set.frames.get() + (first + done);
    const auto some = pin_some(range, set.writable, process, frames);
    if (!some) {
      done_so_far = refuse(some.error());
      break;
    }
    any_shared = any_shared || some->shared;
    done += some->pages;
  }
  if (done_so_far) done_so_far = host::charge_pins(charge_of(set), count);
  if (!done_so_far) {
    unpin_frames(set, first, done);
    return done_so_far;
  }
  use_process(process, static_cast<s64>(count));
  set.file_asked = set.file_asked || !any_shared;
  note_file(set);
  return {};
}

// Without the lock: the lists are the filler's alone, and mean nothing while nobody holds a page.
Result<void> pin_filling(Filling* filling) {
  PageSet& set = *filling->set;
  const u64 count = filling->count;
  const HvaRange whole(Hva(set.start), count * kPageSize);
  ST_TRY(check_whole(whole));
  Result<void> result;
  u64 done = 0;
  while (done < count) {
    const HvaRange rest(whole.start() + done * kPageSize, (count - done) * kPageSize);
    const auto some = pin_some(rest, set.writable, filling->process, set.frames.get() + done);
    if (!some) {
      result = refuse(some.error());
      break;
    }
    filling->shared = filling->shared || some->shared;
    done += some->pages;
  }
  if (result) result = host::charge_pins(charge_of(set), count);
  if (!result) unpin_frames(set, 0, done);
  return result;
}

// The lock could not be had again.
void drop_filling(const Filling& filling) {
  host::uncharge_pins(charge_of(*filling.set), filling.count);
  unpin_frames(*filling.set, 0, filling.count);
}

// Known to be there, and not yet held: nothing is waited for. Pre: the set, of one page, was made
// in this section.
bool Locked::hold_known_page(PageSet& set, u32 process) {
  const Hva at(set.start);
  if (set.process != process || !set.writable || !host::is_user_range(at, kPageSize)) return false;
  const auto frame = host::pin_known_page(at);
  if (!frame) return false;
  if (!host::charge_pins(charge_of(set), 1)) {
    host::unpin_pages({*frame, 1});
    return false;
  }
  hold_known(root(), set, *frame);  // what is known is private memory
  return true;
}

void Locked::release_pages(PageSet& set, u64 first, u64 count) {
  if (count == 1) {
    if (--set.holds[first] != 0) return;
    const u64 frame = set.frames[first];
    const u32 whose = process_of(frame);
    if (!is_this_process(whose)) return unpin_run(set, first, 1);
    host::unpin_pages({number_of(frame), 1});
    uncharge(charge_of(set), 1);
    return use_process(whose, -1);
  }
  for (u64 done = 0; done < count;) {
    u64 end = done;
    while (end < count && --set.holds[first + end] == 0) ++end;
    if (end != done) unpin_run(set, first + done, end - done);
    done = end + 1;  // the one at `end` is still held by somebody
  }
}

// Pages that nobody holds any more, each pinned by whatever process its frame names.
void Locked::unpin_run(PageSet& set, u64 first, u64 count) {
  for (u64 done = 0; done < count;) {
    const u32 whose = process_of(set.frames[first + done]);
    u64 end = done + 1;
    while (end < count && process_of(set.frames[first + end]) == whose) ++end;
    const u64 pages = end - done;
    if (is_this_process(whose)) {
      unpin_frames(set, first + done, pages);
      uncharge(charge_of(set), pages);
      use_process(whose, -static_cast<s64>(pages));
    } else if (is_alive(whose)) {
      for (u64 i = done; i < end; ++i) set.holds[first + i] = kOrphan;
      set.orphans += pages;
      root().orphans += pages;
    } else {  // what it has charged went with it
      use_process(whose, -static_cast<s64>(pages));
    }
    done = end;
  }
}

// What other processes have let go of, and only this one can unpin.
void Locked::settle_orphans() {
  PageSet* next = nullptr;
  for (PageSet* set = root().page_sets; set != nullptr; set = next) {
    next = set->next;
    if (set->orphans == 0) continue;
    for (u64 page = 0; page < set->pages; ++page) {
      const u32 whose = process_of(set->frames[page]);
      if (set->holds[page] != kOrphan || (!is_this_process(whose) && is_alive(whose))) continue;
      set->holds[page] = 0;
      --set->orphans;
      --root().orphans;
      unpin_run(*set, page, 1);
    }
    if (set->users == 0 && set->orphans == 0) free_page_set(set);
  }
}

// The description is nobody's any more: what this process has pinned for it. The arena goes with
// the file, so that only what stands outside of it matters.
void Locked::release_process() {
  PageRows::spread_all(*this);
  for (PageSet* set = root().page_sets; set != nullptr; set = set->next) {
    for (u64 page = 0; set->holds.get() != nullptr && page < set->pages; ++page) {
      if (set->holds[page] == 0) continue;
      const u32 whose = process_of(set->frames[page]);
      if (!is_this_process(whose) && is_alive(whose)) continue;
      set->holds[page] = 0;
      unpin_run(*set, page, 1);
    }
  }
}

std::optional<u64> Locked::frame_at(Hva at) {
  const auto frame = host::frame_at(at);
  const auto process = this_process();
  if (!frame || !process) return std::nullopt;
  return u64{*process} << kFrameBits | static_cast<u64>(*frame);
}

}  // namespace stagetwo::iommu
