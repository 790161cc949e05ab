// SPDX-License-Identifier: Apache-2.0
// A process takes over what another has mapped of files: it pins the pages itself, by its own
// mapping of the file, and the tables name its frames. kernel file: drivers/iommu/iommufd/ioas.c
// (iommufd_ioas_change_process). Differs: there the pages stay pinned and only the account moves;
// here frames are a process's own. A device that works meanwhile may find a page missing.
//
//   1  for each page set of another process: where the file is mapped here (in a child of fork as
//   it
//      was there, else anew). Pin what is held, into fresh lists. May fail: all is put back
//   2  for each area of one that is in tables: out with the old frames, in with the new. May fail:
//      the same with old and new changed about; what tables that takes was given back just before
//   3  the old lists go to a page set nobody uses: its process unpins them when it comes here again
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "base/alloc.h"
#include "base/check.h"
#include "base/sys.h"
#include "base/vec.h"
#include "host/process_map.h"
#include "iommu/file_map.h"
#include "iommu/other_process.h"
#include "iommu/page_rows.h"
#include "sync/passing_number.h"

namespace stagetwo::iommu {
namespace {

struct Written {
  Domain* domain;
  u64 iova;
  u64 bytes;
};

// What a device wrote stays known.
Result<void> note_written(Arena& arena, Domain& domain, const Area& area, Vec<Written>* written) {
  if (!domain.tracking) return {};
  for (u64 at = area.iova();;) {
    const auto page = next_dirty(arena, domain, at, area.last(), false);
    if (!page) return {};
    ST_TRY(written->push_back({&domain, page->iova, page->bytes}));
    if (page->iova + (page->bytes - 1) >= area.last()) return {};
    at = page->iova + page->bytes;
  }
}

void mark_written(Arena& arena, const Vec<Written>& written) {
  for (const Written& one : written) {
    const u64 step = one.domain->page_sizes & -one.domain->page_sizes;
    for (u64 done = 0; done < one.bytes; done += step) {
      static_cast<void>(set_dirty(arena, *one.domain, one.iova + done));
    }
  }
}

}  // namespace

// What is taken over, and beside it the lists it does not have: the new ones, then the old ones.
struct Taken {
  PageSet* set;
  PageSet* other = nullptr;
  u64 start = 0;      // where this process has the memory
  bool maps = false;  // since now
};

class TakeOver {
 public:
  explicit TakeOver(Locked& locked) : l_(locked) {}
  Result<void> run();

 private:
  Result<FilePage> file_of(const PageSet& set) const;
  static bool is_inherited(const PageSet& set, const FilePage& there);
  Result<void> find_memory(Taken& taken) const;
  static void drop_memory(Taken& taken);
  Result<void> take(Taken& taken);
  void free_other(Taken& taken);
  void give_back(Taken& taken);
  bool takes(const PageSet* set) const;
  template <typename F>
  Result<void> for_each_area(F&& fn);
  Result<void> note_all_written();
  Result<void> change_tables();
  void exchange_all();
  void leave_behind(Taken& taken);

  Locked& l_;
  Vec<Taken> all_{"iommu.taken"};
  Vec<Written> written_{"iommu.taken_written"};
};

namespace {

void exchange(PageSet& one, PageSet& other) {
  auto* const frames = one.frames.get();
  auto* const holds = one.holds.get();
  const bool few = one.pages <= kFewPages;
  if (few) {
    std::swap_ranges(std::begin(one.few_frames), std::end(one.few_frames), other.few_frames);
    std::swap_ranges(std::begin(one.few_holds), std::end(one.few_holds), other.few_holds);
  } else {
    one.frames = other.frames.get();
    one.holds = other.holds.get();
    other.frames = frames;
    other.holds = holds;
  }
}

}  // namespace

// Which file it is, whoever has it mapped.
Result<FilePage> TakeOver::file_of(const PageSet& set) const {
  if (set.file_known) return FilePage{set.device, set.inode, set.file_page};
  if (!l_.is_alive(set.process)) return refuse(EOPNOTSUPP);
  const auto found = shared_page_of(l_.root().processes[set.process].pid, Hva(set.start));
  if (!found) return refuse(EOPNOTSUPP);
  return *found;
}

// Does this process have the file where the other has it, as a child of fork does?
bool TakeOver::is_inherited(const PageSet& set, const FilePage& there) {
  const auto mapping = host::mapping_at(Hva(set.start));
  if (!mapping || !mapping->shared || !mapping->file_backed) return false;
  const u64 into = Hva(set.start) - mapping->range.start();
  if (set.pages * kPageSize > mapping->range.size() - into) return false;
  return mapping->device == there.device && mapping->inode == there.inode &&
         (mapping->offset + into) / kPageSize == there.page;
}

namespace {

// Is it that part of the file, whole, and where?
std::optional<Hva> place_in(const host::Mapping& mapping, const FilePage& there, u64 bytes) {
  const u64 first = there.page * kPageSize;
  const bool same = mapping.device == there.device && mapping.inode == there.inode;
  if (!same || first < mapping.offset) return std::nullopt;
  const u64 into = first - mapping.offset;
  if (into >= mapping.range.size() || bytes > mapping.range.size() - into) return std::nullopt;
  return mapping.range.start() + into;
}

// What this process has mapped of it, mapped once more: the kernel does that to shared memory
// without its file, and wherever it likes. Failure: EOPNOTSUPP, it has not.
Result<void*> map_once_more(const FilePage& there, u64 bytes, bool writable) {
  const long prot = PROT_READ | (writable ? PROT_WRITE : 0);
  for (Hva at;;) {
    const auto mapping = host::next_file_mapping(at, true);
    if (!mapping) return refuse(EOPNOTSUPP);
    at = mapping->range.end();
    const auto from = place_in(*mapping, there, bytes);
    if (!from) continue;
    const long made = sys::call(SYS_mremap, static_cast<long>(from->raw()), 0,
                                static_cast<long>(bytes), MREMAP_MAYMOVE);
    if (made < 0) continue;
    // The client may have put something else there meanwhile.
    const auto shown = host::shown_mapping_at(Hva(static_cast<u64>(made)));
    const bool is_it = shown && shown->shared && place_in(*shown, there, bytes).has_value();
    const auto to = is_it ? reserve_pages(bytes, "iommu.taken_file") : refuse(EOPNOTSUPP);
    const bool placed =
        to && sys::call(SYS_mprotect, made, static_cast<long>(bytes), prot) == 0 &&
        sys::call(SYS_mremap, made, static_cast<long>(bytes), static_cast<long>(bytes),
                  MREMAP_MAYMOVE | MREMAP_FIXED, sys::arg(*to)) >= 0;
    if (placed) return *to;
    sys::call(SYS_munmap, made, static_cast<long>(bytes));
    if (to) unmap_pages(*to, bytes);
    if (is_it) return refuse(to ? EOPNOTSUPP : ENOMEM);
  }
}

}  // namespace

// Where this process has it, or from now on has it: whoever is given an iommufd to go on with is
// given the files, too, or is given them by the one before, or has them mapped. Failure: EOPNOTSUPP
// (neither has the file open, and it is not mapped here), ENOMEM.
Result<void> TakeOver::find_memory(Taken& taken) const {
  const PageSet& set = *taken.set;
  const FilePage there = ST_TRY(file_of(set));
  taken.start = set.start;
  if (is_inherited(set, there)) return {};
  const sync::PassingNumber passing;
  const int access = set.writable ? O_RDWR : O_RDONLY;
  auto fd = open_of_process(static_cast<u32>(sys::getpid()), there.device, there.inode, access);
  if (!fd) {
    const u32 pid = l_.root().processes[set.process].pid;
    fd = open_of_process(pid, there.device, there.inode, access);
  }
  const u64 bytes = set.pages * kPageSize;
  const auto mapped =
      fd ? map_file(bytes, PROT_READ | (set.writable ? PROT_WRITE : 0), MAP_SHARED, *fd,
                    static_cast<long>(there.page * kPageSize), "iommu.taken_file")
         : map_once_more(there, bytes, set.writable);
  if (fd) static_cast<void>(sys::close(*fd));
  if (!mapped) return refuse(mapped.error());
  taken.start = reinterpret_cast<u64>(*mapped);
  taken.maps = true;
  return {};
}

void TakeOver::drop_memory(Taken& taken) {
  if (!taken.maps) return;
  unmap_pages(reinterpret_cast<void*>(taken.start), taken.set->pages * kPageSize);
  taken.maps = false;
}

// Pins for this process what is held of the set.
Result<void> TakeOver::take(Taken& taken) {
  const PageSet& set = *taken.set;
  const u32 process = ST_TRY(l_.this_process());
  taken.other = ST_TRY(l_.arena().make<PageSet>("iommu.taken_set"));
  PageSet& other = *taken.other;
  other.process = process;
  other.writable = set.writable;
  other.process_charge = set.process_charge;
  other.no_charge = set.no_charge;
  other.engine_maps = true;
  other.start = taken.start;
  other.pages = set.pages;
  if (set.holds.get() == nullptr) return {};
  auto done = l_.make_frames(other);
  for (u64 page = 0; done && page < set.pages; ++page) {
    u64 end = page;
    while (end < set.pages && set.holds[end] != 0 && set.holds[end] != kOrphan) ++end;
    if (end != page) done = l_.pin_run(other, page, end - page);
    for (; done && page < end; ++page) other.holds[page] = set.holds[page];
  }
  if (!done) give_back(taken);
  return done;
}

void TakeOver::free_other(Taken& taken) {
  PageSet& other = *taken.other;
  if (other.pages > kFewPages && other.holds.get() != nullptr) {
    l_.arena().free(other.frames.get(), other.pages * sizeof(u64));
    l_.arena().free(other.holds.get(), other.pages * sizeof(u32));
  }
  l_.arena().destroy(taken.other);
}

// Undoes take(), as far as it came.
void TakeOver::give_back(Taken& taken) {
  PageSet& other = *taken.other;
  for (u64 page = 0; other.holds.get() != nullptr && page < other.pages; ++page) {
    if (other.holds[page] != 0) l_.unpin_run(other, page, 1);
  }
  free_other(taken);
}

bool TakeOver::takes(const PageSet* set) const {
  for (const Taken& one : all_) {
    if (one.set == set) return true;
  }
  return false;
}

// fn(ioas, area) of every area in tables that has one of them, until it fails.
template <typename F>
Result<void> TakeOver::for_each_area(F&& fn) {
  for (u64 id = 1; id < l_.root().table_size; ++id) {
    const auto found = l_.find<Ioas>(static_cast<u32>(id));
    if (!found) continue;
    Ioas& ioas = **found;
    for (Area* area = l_.areas(ioas).first(); area != nullptr; area = ioas.nodes.next(area)) {
      if (!area->filled || !takes(area->pages)) continue;
      ST_TRY(fn(ioas, *area));
    }
  }
  return {};
}

Result<void> TakeOver::note_all_written() {
  return for_each_area([&](Ioas& ioas, Area& area) -> Result<void> {
    for (Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
      ST_TRY(note_written(l_.arena(), hwpt->domain, area, &written_));
    }
    return {};
  });
}

// What stood there goes, what the sets' lists say comes.
Result<void> TakeOver::change_tables() {
  return for_each_area([&](Ioas& ioas, Area& area) -> Result<void> {
    for (Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
      unmap_range(l_.arena(), hwpt->domain, area.iova(), area.length());
      ST_TRY(l_.map_area(ioas, *hwpt, area));
    }
    l_.flush_ioas(ioas, area.iova(), area.last());
    return {};
  });
}

void TakeOver::exchange_all() {
  for (Taken& one : all_) {
    if (one.set->holds.get() != nullptr) exchange(*one.set, *one.other);
    std::swap(one.set->process, one.other->process);
    std::swap(one.set->start, one.other->start);
  }
}

// What its process has pinned, for it to unpin; its mapping goes with the last.
void TakeOver::leave_behind(Taken& taken) {
  PageSet& left = *taken.other;
  Root& root = l_.root();
  l_.use_process(taken.set->process, 1);
  taken.set->orphans = 0;
  for (u64 page = 0; left.holds.get() != nullptr && page < left.pages; ++page) {
    if (left.holds[page] == 0) continue;
    if (left.holds[page] != kOrphan) ++root.orphans;
    left.holds[page] = kOrphan;
    ++left.orphans;
  }
  if (left.orphans == 0) {
    l_.use_process(left.process, -1);
    return free_other(taken);
  }
  PageSet* const next = root.page_sets;
  left.next = next;
  if (next != nullptr) next->previous = &left;
  root.page_sets = &left;
}

Result<void> TakeOver::run() {
  PageRows::spread_all(l_);
  for (PageSet* set = l_.root().page_sets; set != nullptr; set = set->next) {
    if (set->users == 0) continue;  // left behind
    if (!set->engine_maps) return refuse(EINVAL);
    if (!l_.is_this_process(set->process)) ST_TRY(all_.push_back({.set = set}));
  }
  size_t taken = 0;
  Result<void> done;
  for (Taken& one : all_) {
    if (done) done = find_memory(one);
  }
  while (done && taken < all_.size()) {
    done = take(all_[taken]);
    if (done) ++taken;
  }
  if (done) done = note_all_written();
  if (done) {
    exchange_all();
    done = change_tables();
    if (!done) {
      exchange_all();
      ST_CHECK(change_tables().has_value());  // what it takes was given back just before
    }
    mark_written(l_.arena(), written_);
  }
  if (done) {
    for (Taken& one : all_) leave_behind(one);
  } else {
    while (taken != 0) give_back(all_[--taken]);
    for (Taken& one : all_) drop_memory(one);
  }
  return done;
}

Result<void> take_over_files(Locked& locked) {
  return TakeOver(locked).run();
}

}  // namespace stagetwo::iommu
