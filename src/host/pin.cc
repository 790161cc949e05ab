// SPDX-License-Identifier: Apache-2.0
#include "host/pin.h"

#include <algorithm>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/failpoint_armed.h"
#include "base/process_stamp.h"
#include "host/pin_table.h"

namespace stagetwo::host {
namespace {

struct Pins {
  PinTable table;
  u32 stamp;
  explicit Pins(u32 of) : stamp(of) {}
};

// Made at the first pin, never destroyed. Stored and loaded seq_cst: a change either sees it or is
// waited for, as with the roster of mmu_notifier.cc.
constinit sync::Atomic<Pins*> the_pins{nullptr};

inline PinTable* table_of_process() {
  Pins* pins = the_pins.load();
  return pins != nullptr && pins->stamp == stamp_of_process() ? &pins->table : nullptr;
}

Result<PinTable*> make_table() {
  if (PinTable* table = table_of_process()) return table;
  Pins* fresh = ST_TRY(make<Pins>("host.pin_table", process_stamp()));
  Pins* seen = nullptr;
  if (!the_pins.compare_exchange(seen, fresh)) destroy(fresh);
  // Changes that began without it are over.
  wait_for_changes();
  return pin_table();
}

}  // namespace

PinTable* pin_table() {
  return table_of_process();
}

bool pins_active() {
  return the_pins.load(sync::kRelaxed) != nullptr;
}

Result<PinBatch> pin_pages(HvaRange range, PinHow how, FrameRun* runs, unsigned room) {
  PinTable* table = ST_TRY(make_table());
  PinTable::Sink sink{runs, room, {}};
  while (sink.done.pages < range.size() / kPageSize) {
    const u64 before = sink.done.pages;
    const Hva at = range.start() + before * kPageSize;
    const Result<void> some = table->pin_some(HvaRange(at, range.end() - at), how, &sink);
    if (!some && before == 0) return refuse(some.error());
    if (!some || sink.done.pages == before) break;
  }
  return sink.done;
}

Result<PinnedPage> pin_page(Hva at, PinHow how) {
  PinTable* table = pin_table();
  if (table == nullptr) table = ST_TRY(make_table());
  if (failpoint::should_fail("host.pin")) return refuse(ENOMEM);
  if (const auto known = table->pin_known_page(at)) return PinnedPage{.frame = *known};
  FrameRun run;
  PinTable::Sink sink{&run, 1, {}};
  ST_TRY(table->pin_unasked(HvaRange(at, kPageSize), how, &sink));
  if (sink.done.pages == 0) return refuse(ENOMEM);
  return PinnedPage{.frame = run.first, .shared = sink.done.shared};
}

std::optional<Frame> pin_known_page(Hva at) {
  PinTable* const table = table_of_process();
  if (table == nullptr || failpoint::is_armed()) return std::nullopt;
  return table->pin_known_page(at);
}

void unpin_pages(FrameRun run) {
  if (PinTable* table = table_of_process()) table->unpin(run);
}

u32 pins_of(Frame frame) {
  PinTable* table = pin_table();
  return table == nullptr ? 0 : table->pins_of(frame);
}

std::optional<Frame> frame_at(Hva at) {
  PinTable* table = pin_table();
  return table == nullptr ? std::nullopt : table->frame_at(at);
}

FrameSection::FrameSection() : table_(*pin_table()), ticket_(table_.accesses().enter()) {}
FrameSection::~FrameSection() {
  table_.accesses().leave(ticket_);
}
u64 FrameSection::moves() const {
  return table_.moves();
}
std::optional<Hva> FrameSection::at(Frame frame, Access access) const {
  u64 one = 1;
  return table_.direct(frame, access, &one);
}
std::optional<Hva> FrameSection::at(Frame first, Access access, u64* pages) const {
  return table_.direct(first, access, pages);
}

bool read_frame(Frame frame, u64 offset, void* to, size_t size) {
  return pin_table()->transfer(frame, offset, to, nullptr, size);
}
bool write_frame(Frame frame, u64 offset, const void* from, size_t size) {
  return pin_table()->transfer(frame, offset, nullptr, from, size);
}

bool keeps_page(Hva at) {
  if (!pins_active()) [[likely]]
    return false;
  PinTable* table = pin_table();
  return table != nullptr && table->keeps(at);
}

bool keeps_file_page(PageKey key) {
  PinTable* table = pins_active() ? pin_table() : nullptr;
  return table != nullptr && table->keeps_file(key);
}

HvaRange next_unpinned(HvaRange range) {
  PinTable* table = pin_table();
  return table == nullptr ? range : table->next_unpinned(range);
}

PinnedPages pinned_in(HvaRange range) {
  PinTable* table = pins_active() ? pin_table() : nullptr;
  return table == nullptr ? PinnedPages{} : table->pinned_in(range);
}

PinUse pin_use() {
  PinTable* table = pin_table();
  return table == nullptr ? PinUse{} : table->use();
}

PinnedChange::PinnedChange(HvaRange range, Announced what, u64 kept, bool copies)
    : range_(range),
      what_(what),
      kept_(std::min(kept, range.size())),
      moved_to_(range.start()),
      copies_(copies) {
  if (the_pins.load() == nullptr) [[likely]]
    return;
  open();
}

PinnedChange::PinnedChange(const FilePart& part) : what_(Announced::kClears), file_(part) {
  if (the_pins.load() != nullptr && part.first < part.end) open();
}

void PinnedChange::open() {
  PinTable* table = pin_table();
  if (table == nullptr) return;
  open_ = true;
  table->open_change(this);
}

PinnedChange::~PinnedChange() {
  if (open_) pin_table()->close_change(this);
}

namespace {

// The whole pages of [offset, offset + size); a part of a page is only cleared.
u64 page_after(u64 offset) {
  return offset / kPageSize + (offset % kPageSize != 0);
}
u64 page_before(u64 offset, u64 size) {
  u64 end = 0;
  if (__builtin_add_overflow(offset, size, &end)) end = ~u64{0};
  return end / kPageSize;
}

}  // namespace

PinnedPunch::PinnedPunch(u64 device, u64 inode, u64 offset, u64 size)
    : PinnedChange(FilePart{device, inode, page_after(offset), page_before(offset, size)}) {}

void pins_before_fork() {
  if (PinTable* table = pin_table()) table->before_fork();
}
void pins_after_fork_parent() {
  if (PinTable* table = pin_table()) table->after_fork_parent();
}
void pins_after_fork_child() {
  the_pins.store(nullptr);  // the parent's arena is not ours to give back to
}

}  // namespace stagetwo::host
