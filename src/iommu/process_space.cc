// SPDX-License-Identifier: Apache-2.0
#include "iommu/process_space.h"

#include <string.h>

#include <algorithm>

#include "base/check.h"
#include "base/guard.h"
#include "base/process_page.h"
#include "host/access.h"
#include "host/faultin.h"
#include "pt/fmt/x86_first_level.h"
#include "pt/map.h"
#include "sync/futex.h"
#include "sync/try_mutex.h"

namespace stagetwo::iommu {
namespace {

using Format = pt::X86FirstLevel;
using Entry = pt::Entry<Format>;

constexpr unsigned kLevels = 4;
constexpr u64 kTableBytes = 4096;

// A table that was taken out is nobody's: its own first word links it.
struct TableNode {
  pt::GatherNode link;
};

struct PageTables {
  Entry* allocate(unsigned) {
    void* const table = alloc(kTableBytes, kTableBytes, "iommu.process_table");
    if (table != nullptr) memset(table, 0, kTableBytes);
    return static_cast<Entry*>(table);
  }
  void free(Entry* table, unsigned) { dealloc(table, kTableBytes, kTableBytes); }
  static u64 address_of(Entry* table) { return reinterpret_cast<u64>(table); }
  static pt::GatherNode* node_of(Entry* table) {
    return &(::new (static_cast<void*>(table)) TableNode())->link;
  }
};
using Mapper = pt::Mapper<Format, PageTables>;

// Everybody who walks holds the lock: nothing else is owed.
void release(pt::Gather& gather) {
  gather.flushed();
  gather.release<TableNode, &TableNode::link>(
      [](TableNode* node) { dealloc(node, kTableBytes, kTableBytes); });
}

}  // namespace

Result<Box<ProcessSpace>> ProcessSpace::make() {
  auto space = ST_TRY(make_box<ProcessSpace>("iommu.process_space"));
  ST_TRY(host::register_notifier(space.get()));
  space->listens_ = true;
  return space;
}

ProcessSpace::~ProcessSpace() {
  if (listens_) host::unregister_notifier(this);  // releases
}

void ProcessSpace::release() {
  const sync::BigWriterGuard guard(lock_);
  take_out(host::kWholeAddressSpace);
  dealloc(root_, kTableBytes, kTableBytes);
  root_ = nullptr;
}

bool ProcessSpace::take_out(HvaRange range) {
  if (pages_ == 0) return false;
  PageTables source;
  Mapper mapper(static_cast<Entry*>(root_), kLevels, source);
  const u64 first = range.start().raw() / kPageSize;
  const u64 limit = pt::frame_limit<Format>(kLevels);
  if (first >= limit) return false;
  pt::Gather gather;
  const u64 gone = mapper.unmap(first, std::min(range.size() / kPageSize, limit - first), gather);
  iommu::release(gather);
  pages_ -= gone;
  removals_ += gone != 0;
  return gone != 0;
}

bool ProcessSpace::has(Hva at, Rights wanted) const {
  if (pages_ == 0 || at.raw() / kPageSize >= pt::frame_limit<Format>(kLevels)) return false;
  PageTables source;
  const Mapper mapper(static_cast<Entry*>(root_), kLevels, source);
  const auto found = mapper.translate(at.raw() / kPageSize);
  return found && (wanted == kMayRead || found->attributes.write);
}

bool ProcessSpace::use(Hva at, Rights wanted, UseFn fn, void* context) {
  {
    const sync::BigReaderGuard guard(lock_);
    if (!has(at, wanted)) return false;
    if (fn(context, at)) return true;
  }
  const sync::BigWriterGuard guard(lock_);
  take_out(HvaRange(page_floor(at), kPageSize));  // it went without a word
  return false;
}

u64 ProcessSpace::Section::present(Hva at, u64 most, Rights wanted) const {
  space_.lock_.assert_held_shared();
  const Hva first = page_floor(at), end = at + most;
  Hva page = first;
  while (page < end && space_.has(page, wanted)) page += kPageSize;
  return page == first ? 0 : std::min(page, end) - at;
}

u64 ProcessSpace::Section::removals() const {
  space_.lock_.assert_held_shared();
  return space_.removals_;
}

bool ProcessSpace::access(Hva at, u64 bytes, void* to, const void* from) {
  ST_DCHECK(at.raw() % kPageSize + bytes <= kPageSize);
  struct Copy {
    u64 bytes;
    void* to;
    const void* from;
  } copy{bytes, to, from};
  const UseFn fn = [](void* context, Hva from_or_to) {
    const Copy& c = *static_cast<const Copy*>(context);
    const size_t done = c.to != nullptr ? host::copy_from(c.to, from_or_to, c.bytes)
                                        : host::copy_to(from_or_to, c.from, c.bytes);
    return done == c.bytes;
  };
  return use(at, to != nullptr ? kMayRead : kMayWrite, fn, &copy);
}

Result<bool> ProcessSpace::enter(Look look, Hva at, Rights right) {
  const sync::BigWriterGuard guard(lock_);
  const bool changed = gate_.must_retry(look, at.raw() / kPageSize);
  if (ST_GUARD(iommu_space_gate, changed)) return false;
  PageTables source;
  if (root_ == nullptr) root_ = source.allocate(kLevels);
  if (root_ == nullptr) return refuse(ENOMEM);
  const HvaRange page(page_floor(at), kPageSize);
  take_out(page);
  Mapper mapper(static_cast<Entry*>(root_), kLevels, source);
  pt::Gather gather;
  const auto entered = mapper.map(page.start().raw() / kPageSize, 1, page.start().raw(),
                                  {.write = right == kMayWrite, .user = true}, gather, 1);
  iommu::release(gather);
  if (!entered) return refuse(entered.error());
  ++pages_;
  return true;
}

Result<void> ProcessSpace::bring(Hva at, Rights wanted) {
  for (;;) {
    const Look before = look();
    const auto there = host::faultin(at, wanted == kMayWrite ? Access::kWrite : Access::kRead);
    if (!there) return refuse(EFAULT);
    if (ST_TRY(enter(before, at, wanted))) return {};
    sync::yield_thread();  // progress: a change waits for no page request
  }
}

u64 ProcessSpace::debug_pages() {
  const sync::BigWriterGuard guard(lock_);
  return pages_;
}

// ---- the bell -----------------------------------------------------------------------------------

void ProcessSpace::begin(HvaRange range) {
  gate_.begin(range.start().raw() / kPageSize, (range.end().raw() - 1) / kPageSize);
  if (ST_GUARD(iommu_space_zap, true)) take_out(range);
}

bool ProcessSpace::invalidate_range_start(const host::InvalidateEvent& event) {
  const sync::BigWriterGuard guard(lock_);
  begin(event.range);
  return true;
}

host::TryStart ProcessSpace::try_invalidate_range_start(const host::InvalidateEvent& event) {
  const sync::TryBigWriterGuard guard(lock_);
  if (!guard.locked()) return host::TryStart::kWouldWait;
  begin(event.range);
  return host::TryStart::kEngaged;
}

void ProcessSpace::invalidate_range_end(const host::InvalidateEvent&) {
  gate_.end();
}

// ---- the one of the process ---------------------------------------------------------------------

namespace {

struct Made {
  ProcessSpace* space;
  u32 stamp;  // of its process
};
constinit sync::Atomic<Made*> made{nullptr};

}  // namespace

ProcessSpace* process_space() {
  const Made* const now = made.load(sync::kAcquire);
  return now != nullptr && now->stamp == process_stamp() ? now->space : nullptr;
}

Result<ProcessSpace*> make_process_space() {
  if (ProcessSpace* const space = process_space()) return space;
  auto space = ST_TRY(ProcessSpace::make());
  Made* const fresh = ST_TRY(stagetwo::make<Made>("iommu.process_space", Made{}));
  fresh->space = space.get();
  fresh->stamp = process_stamp();
  Made* seen = made.load(sync::kAcquire);
  const bool free = seen == nullptr || seen->stamp != fresh->stamp;  // the parent's is not ours
  if (!free || !made.compare_exchange(seen, fresh)) {
    destroy(fresh);
    return process_space();
  }
  return space.release();
}

}  // namespace stagetwo::iommu
