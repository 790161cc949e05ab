// SPDX-License-Identifier: Apache-2.0
// A miss and an unmap, side by side:
//
//   engine                                unmap
//   section ends, lock                    waits for the lock, or has it and is done
//   heed; look up; cache; unlock          tables, post, wait: the engine is outside
//   section: heed                         → what was cached and is gone by now is forgotten here
#include "iommu/dma_engine.h"

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "base/guard.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/pin.h"
#include "iommu/locked.h"
#include "iommu/process_space.h"

namespace stagetwo::iommu {
namespace {

constexpr unsigned kMostAsks = 1000;  // for one page that goes again and again

// The byte of `iova` in the page that was found.
Walked walked_at(Walked found, u64 iova) {
  found.address += iova % kPageSize;
  return found;
}

u32 number_of(s64 pasid) {
  return pasid < 0 ? 0 : static_cast<u32>(pasid);
}

bool overlaps(const PageBlock& block, u64 page) {
  return page >= block.start && page <= block.last();
}

}  // namespace

// An access that is made where it is looked up.
struct DmaEngine::Once {
  u64 bytes;
  void* to;
  const void* from;
  bool done = false;
};

class DmaEngine::Section {
 public:
  explicit Section(DmaEngine& engine) : engine_(engine) {
    // Of the thread that is here now: who waits lets go of one that has ended, and where a thread's
    // storage is says nothing, as libc gives it to the next one.
    engine.queue_->enter(*engine.line_, static_cast<u32>(sys::current_tid()));
    if (engine.queue_->owes(*engine.line_)) engine.heed();
  }
  ~Section() { engine_.queue_->leave(*engine_.line_); }
  Section(const Section&) = delete;
  Section& operator=(const Section&) = delete;

 private:
  DmaEngine& engine_;
};

Result<Box<DmaEngine>> DmaEngine::make(Context& context, u32 device_id) {
  auto engine = ST_TRY(make_box<DmaEngine>("iommu.dma_engine"));
  Locked locked(context);
  if (!locked.ok()) return refuse(EIO);
  const Device* const device = ST_TRY(locked.find<Device>(device_id));
  if (!device->vtd) return refuse(ENODEV);
  engine->source_ = SourceId{device->source.get()};
  engine->device_id_ = device_id;
  engine->queue_ = &locked.root().queue;
  engine->line_ = ST_TRY(locked.add_line());
  engine->context_ = &context;
  return engine;
}

DmaEngine::~DmaEngine() {
  if (context_ == nullptr) return;
  Locked locked(*context_);
  if (locked.ok()) locked.remove_line(line_);
}

DmaEngine::Page& DmaEngine::page_of(Page* pages, unsigned count, u32 pasid, u64 iova) {
  return pages[(iova / kPageSize ^ u64{pasid} * 37) % count];
}

void DmaEngine::heed() {
  if (ST_GUARD(iommu_places, true)) places_.forget();
  queue_->heed(*line_, [this](const Invalidation* what) { forget(what); });
}

void DmaEngine::forget(const Invalidation* what) {
  const auto drop_pages = [](auto& pages, auto&& goes) {
    for (Page& page : pages) page.valid = page.valid && !goes(page);
  };
  if (what == nullptr) {
    drop_pages(device_tlb_, [](const Page&) { return true; });
    for (Run& run : runs_) run.valid = false;
    drop_pages(iotlb_, [](const Page&) { return true; });
    for (Entry& entry : pasid_cache_) entry.valid = false;
    return;
  }
  const PageBlock block = what->whole() ? PageBlock{} : what->block();
  switch (what->type()) {
    case InvalidationType::kIotlb:
      // What a guest's first level leads to is known by its own address: all of it goes.
      drop_pages(iotlb_, [&](const Page& page) {
        return page.domain_id == what->domain_id() && page.type != TranslationType::kFirstLevel &&
               (page.type == TranslationType::kNested || overlaps(block, page.iova));
      });
      break;
    case InvalidationType::kPasidIotlb:
      drop_pages(iotlb_, [&](const Page& page) {
        return page.domain_id == what->domain_id() && page.pasid == what->pasid() &&
               page.type != TranslationType::kSecondLevel && overlaps(block, page.iova);
      });
      break;
    case InvalidationType::kPasidCache:
      for (Entry& entry : pasid_cache_) {
        if (entry.pasid == what->pasid() && entry.entry.domain_id() == what->domain_id()) {
          entry.valid = false;
        }
      }
      break;
    case InvalidationType::kDeviceTlb:
    case InvalidationType::kPasidDeviceTlb:
      if (what->source() != source_) break;
      drop_pages(device_tlb_, [&](const Page& page) {
        const u32 pasid = what->type() == InvalidationType::kDeviceTlb ? 0 : what->pasid();
        return page.pasid == pasid && overlaps(what->block(), page.iova);
      });
      for (Run& run : runs_) {
        const u32 pasid = what->type() == InvalidationType::kDeviceTlb ? 0 : what->pasid();
        const PageBlock gone = what->block();
        if (run.pasid == pasid && run.iova <= gone.last() && gone.start <= run.last) {
          run.valid = false;
        }
      }
      break;
  }
}

FaultReason DmaEngine::find_entry(const Locked& locked, s64 pasid, PasidEntry* out) {
  Entry& cached = pasid_cache_[number_of(pasid) % kEntries];
  if (!cached.valid || cached.pasid != number_of(pasid)) {
    const FoundPasid found = find_pasid(locked.arena(), locked.root().root_table, source_, pasid);
    if (found.reason != FaultReason::kNone) return found.reason;
    cached = {true, number_of(pasid), found.entry};
  }
  *out = cached.entry;
  return FaultReason::kNone;
}

// Puts the page into the device's TLB, from the unit's caches or the tables.
FaultReason DmaEngine::fill(s64 pasid, u64 iova, Rights wanted, Once* once) {
  Locked locked(*context_);
  if (!locked.ok()) return FaultReason::kSecondUnreadable;
  heed();
  PasidEntry entry;
  const FaultReason found = find_entry(locked, pasid, &entry);
  if (found != FaultReason::kNone) return found;
  const u32 number = number_of(pasid);
  // Second-level translations are the domain's, whatever PASID asks.
  const u32 tag = entry.type() == TranslationType::kSecondLevel ? 0 : number;
  const u64 page = iova & kPageMask;
  Page& known = page_of(iotlb_, kUnitPages, tag + entry.domain_id(), page);
  const bool hit = known.valid && known.iova == page && known.pasid == tag &&
                   known.domain_id == entry.domain_id() && known.type == entry.type() &&
                   (known.rights & wanted) != 0;
  if (!hit) {
    ++counts_.walks;
    const Walked walked = locked.walk_entry(entry, page, wanted);
    if (walked.reason != FaultReason::kNone) return walked.reason;
    if (walked.of_process) {
      once->done = locked.touch(walked_at(walked, iova), once->bytes, once->to, once->from);
      if (!once->done) return FaultReason::kFirstNotPresent;
      static_cast<void>(cache_own_run(number, iova, once->bytes, wanted));
      return FaultReason::kNone;
    }
    // A right to write only where this walk has marked one.
    const u32 rights = wanted == kMayWrite ? walked.rights : u32{kMayRead};
    known = {true, entry.domain_id(), entry.type(), tag, rights, page, walked.address};
  } else {
    ++counts_.iotlb_hits;
  }
  if (!locked.reaches(known.address)) return FaultReason::kSecondUnreadable;
  Page& own = page_of(device_tlb_, kDevicePages, number, page);
  own = known;
  own.pasid = number;
  return FaultReason::kNone;
}

FaultReason DmaEngine::access_page(s64 pasid, u64 iova, u64 bytes, void* to, const void* from) {
  const u32 number = number_of(pasid);
  const u64 page = iova & kPageMask;
  const Rights wanted = to != nullptr ? kMayRead : kMayWrite;
  const Page& slot = page_of(device_tlb_, kDevicePages, number, page);
  for (;;) {
    {
      const Section section(*this);
      if (slot.valid && slot.iova == page && slot.pasid == number && (slot.rights & wanted) != 0) {
        ++counts_.hits;
        const host::Frame frame{slot.address / kPageSize & (bit(kFrameBits) - 1)};
        const u64 offset = iova - page;
        const bool done = to != nullptr ? host::read_frame(frame, offset, to, bytes)
                                        : host::write_frame(frame, offset, from, bytes);
        return done ? FaultReason::kNone : FaultReason::kSecondUnreadable;
      }
    }
    ++counts_.misses;
    Once once{bytes, to, from};
    const FaultReason reason = fill(pasid, iova, wanted, &once);
    if (reason != FaultReason::kNone || once.done) return reason;
  }
}

DmaAnswer DmaEngine::access(s64 pasid, u64 iova, u64 bytes, void* to, const void* from, bool asks) {
  DmaAnswer answer;
  const Rights wanted = to != nullptr ? kMayRead : kMayWrite;
  unsigned asked = 0;
  while (answer.done < bytes) {
    answer.iova = iova + answer.done;
    u8* const into = to == nullptr ? nullptr : static_cast<u8*>(to) + answer.done;
    const u8* const out = from == nullptr ? nullptr : static_cast<const u8*>(from) + answer.done;
    u64 some = access_run(number_of(pasid), answer.iova, bytes - answer.done, into, out);
    answer.reason = FaultReason::kNone;
    if (some == 0) {
      some = std::min(bytes - answer.done, kPageSize - answer.iova % kPageSize);
      answer.reason = access_page(pasid, answer.iova, some, into, out);
    }
    if (asks && can_be_asked_for(answer.reason) && asked++ < kMostAsks &&
        context_->ask_for_page(device_id_, pasid, answer.iova, wanted, cancel_)) {
      continue;
    }
    if (answer.reason != FaultReason::kNone) return answer;
    asked = 0;
    answer.done += some;
  }
  return answer;
}

// ---- copies -------------------------------------------------------------------------------------

namespace {

// Answers how far it came. The guard of a long move covers both of its ends.
u64 move_bytes(Hva to, Hva from, u64 bytes) {
  u8 buffer[512];
  if (bytes > sizeof(buffer)) return host::copy_to(to, reinterpret_cast<void*>(from.raw()), bytes);
  return host::copy_to(to, buffer, host::copy_from(buffer, from, bytes));
}

}  // namespace

// While it lives, what runs like the one it was made for lead to stays where it is.
class DmaEngine::Grip {
 public:
  Grip(const Run& run, FramePlaces& places) : places_(places) {
    ProcessSpace* const space = run.own ? process_space() : nullptr;
    if (space != nullptr) own_.emplace(*space);
    if (!run.own) frames_.emplace();
    if (!run.own) moves_ = frames_->moves();
  }
  // Of the bytes from `iova` on, which begin in the run; *bytes is cut to those that are there in
  // one piece. None: they are not to be touched directly now.
  std::optional<Hva> at(const Run& run, u64 iova, stagetwo::Access access, u64* bytes) const {
    *bytes = std::min(*bytes, run.last - iova + 1);
    const auto found = span(run, iova, access, *bytes);
    if (!found) return std::nullopt;
    *bytes = std::min(*bytes, found->last - iova + 1);
    return found->place(iova);
  }
  // The same with all that is known around them, by IOVA. Pre: `bytes` do not leave the run.
  std::optional<Span> span(const Run& run, u64 iova, stagetwo::Access access, u64 bytes) const {
    if (frames_ && !run.own) {
      const u64 address = run.address + (iova - run.iova);
      const auto found = places_.span(*frames_, moves_, address, access, bytes);
      if (!found) return std::nullopt;
      const u64 first = std::max(found->first, run.address);
      const u64 last = std::min(found->last, run.address + (run.last - run.iova));
      return Span{run.iova + (first - run.address), run.iova + (last - run.address),
                  found->place(first).raw()};
    }
    if (!own_ || !run.own) return std::nullopt;
    const bool went = own_->removals() != run.removals;
    if (ST_GUARD(iommu_own_run, went)) return std::nullopt;
    return Span{run.iova, run.last, run.iova};
  }
  // Does somebody wait until it is gone?
  [[nodiscard]] bool is_asked() const {
    return frames_ ? frames_->moves() != moves_ : own_ && own_->is_asked();
  }

 private:
  FramePlaces& places_;
  u64 moves_ = 0;
  std::optional<host::FrameSection> frames_;
  std::optional<ProcessSpace::Section> own_;
};

const DmaEngine::Run* DmaEngine::find_run(u32 pasid, u64 iova, Rights wanted) const {
  for (const Run& run : runs_) {
    const bool in = run.valid && iova >= run.iova && iova <= run.last;
    if (in && run.pasid == pasid && (run.rights & wanted) != 0) return &run;
  }
  return nullptr;
}

// 0: not both ends are known, or one is not to be touched directly now.
u64 DmaEngine::copy_cached(u32 pasid, u64 to, u64 from, u64 bytes, const Record* record,
                           bool* posted) {
  const Section section(*this);
  const Run* const source = find_run(pasid, from, kMayRead);
  const Run* const target = find_run(pasid, to, kMayWrite);
  if (source == nullptr || target == nullptr) return 0;
  const Grip grip(*source, places_);
  u64 some = std::min(bytes, kLongestCopy);
  const auto out = grip.at(*source, from, stagetwo::Access::kRead, &some);
  const auto in = grip.at(*target, to, stagetwo::Access::kWrite, &some);
  if (!out || !in) return 0;
  // Whoever waits for the record has its line: it is on its way while the bytes are copied.
  const bool ends = some == bytes && record != nullptr;
  const auto place = ends ? place_of(pasid, *record, grip) : std::nullopt;
  if (place) host::prefetch(*place, stagetwo::Access::kWrite);
  some = move_bytes(*in, *out, some);
  *posted = place && some == bytes && put(*place, *record);
  return some;
}

std::optional<Hva> DmaEngine::place_of(u32 pasid, const Record& record, const Grip& grip) const {
  const Run* const run = find_run(pasid, record.iova, kMayWrite);
  u64 bytes = kRecordBytes;
  if (run == nullptr) return std::nullopt;
  return grip.at(*run, record.iova, stagetwo::Access::kWrite, &bytes);
}

// Makes *span one that has all of the bytes. False: there is none.
bool DmaEngine::reach(u32 pasid, u64 iova, u64 bytes, Rights wanted, const Grip& grip,
                      Span* span) const {
  if (span->has(iova, bytes)) return true;
  const Run* const run = find_run(pasid, iova, wanted);
  if (run == nullptr || bytes - 1 > run->last - iova) return false;
  const auto access = wanted == kMayWrite ? stagetwo::Access::kWrite : stagetwo::Access::kRead;
  const auto found = grip.span(*run, iova, access, bytes);
  if (!found || !found->has(iova, bytes)) return false;
  *span = *found;
  return true;
}

// Who posts an invalidation waits until it is heeded, which is not done here: what is known already
// would be older than that.
bool DmaEngine::must_end(const Grip& grip) const {
  const bool asked = queue_->owes(*line_) || grip.is_asked();
  return ST_GUARD(iommu_moves_end, asked) || cancel_.is_set();
}

DmaEngine::Moved DmaEngine::move_known(s64 pasid, std::span<const Move> moves) {
  ST_DCHECK(!moves.empty() && moves.size() <= kMostMoves);
  const u32 number = number_of(pasid);
  const Section section(*this);
  const Run* const first = find_run(number, moves.front().from, kMayRead);
  if (first == nullptr) return {};
  const Grip grip(*first, places_);
  Ends ends[kMostMoves];
  Span from_span, to_span, record_span;
  Ends* known = ends;
  for (const Move& move : moves) {
    if (!reach(number, move.from, move.bytes, kMayRead, grip, &from_span) ||
        !reach(number, move.to, move.bytes, kMayWrite, grip, &to_span) ||
        !reach(number, move.record.iova, kRecordBytes, kMayWrite, grip, &record_span)) {
      break;
    }
    *known++ = {to_span.place(move.to).raw(), from_span.place(move.from).raw(),
                record_span.place(move.record.iova).raw()};
  }
  Moved done;
  while (ends + done.moves < known && !must_end(grip)) {
    const Move& move = moves[done.moves];
    const auto [to, from, record] = ends[done.moves];
    if (done.bytes == 0) host::prefetch(Hva(record), stagetwo::Access::kWrite);
    const u64 some = std::min(move.bytes - done.bytes, kLongestCopy);
    const u64 came = move_bytes(Hva(to + done.bytes), Hva(from + done.bytes), some);
    done.bytes += came;
    if (came != some) break;
    if (done.bytes != move.bytes) continue;
    if (!put(Hva(record), move.record)) break;
    done = {done.moves + 1, 0};
  }
  return done;
}

// The first word last: who sees it sees the rest.
bool DmaEngine::put(Hva place, const Record& record) {
  constexpr u64 kRest = kRecordBytes - sizeof(u64);
  return host::copy_to(place + sizeof(u64), record.words + 1, kRest) == kRest &&
         host::store(place, *record.words);
}

DmaAnswer DmaEngine::post(s64 pasid, const Record& record, bool asks) {
  ST_DCHECK(record.iova % kRecordBytes == 0);
  const u32 number = number_of(pasid);
  if (find_run(number, record.iova, kMayWrite) != nullptr ||
      cache_run(pasid, record.iova, kRecordBytes, kMayWrite)) {
    const Section section(*this);
    if (const Run* const run = find_run(number, record.iova, kMayWrite)) {
      const Grip grip(*run, places_);
      const auto place = place_of(number, record, grip);
      if (place && put(*place, record)) return {kRecordBytes, FaultReason::kNone, record.iova};
    }
  }
  constexpr u64 kRest = kRecordBytes - sizeof(u64);
  const u64 behind = record.iova + sizeof(u64);
  const DmaAnswer rest = access(pasid, behind, kRest, nullptr, record.words + 1, asks);
  if (rest.reason != FaultReason::kNone) return rest;
  return access(pasid, record.iova, sizeof(u64), nullptr, record.words, asks);
}

// 0: not known, or not to be touched directly now.
u64 DmaEngine::access_run(u32 pasid, u64 iova, u64 bytes, void* to, const void* from) {
  const Rights wanted = to != nullptr ? kMayRead : kMayWrite;
  if (find_run(pasid, iova, wanted) == nullptr) return 0;
  const Section section(*this);
  const Run* const run = find_run(pasid, iova, wanted);
  if (run == nullptr) return 0;
  const Grip grip(*run, places_);
  u64 some = std::min(bytes, kLongestCopy);
  const auto access = to != nullptr ? stagetwo::Access::kRead : stagetwo::Access::kWrite;
  const auto at = grip.at(*run, iova, access, &some);
  if (!at) return 0;
  ++counts_.hits;
  return to != nullptr ? host::copy_from(to, *at, some) : host::copy_to(*at, from, some);
}

// Walks as far as the access goes: a right to write is marked where it is used.
bool DmaEngine::cache_run(s64 pasid, u64 iova, u64 bytes, Rights wanted) {
  Locked locked(*context_);
  if (!locked.ok()) return false;
  heed();
  PasidEntry entry;
  if (find_entry(locked, pasid, &entry) != FaultReason::kNone) return false;
  const u64 page = iova & kPageMask;
  const u64 wants = iova - page + std::min(bytes, kLongestRun);
  Run run{true, false, number_of(pasid), u32{kMayRead} | kMayWrite, page, page, 0, 0};
  for (u64 length = 0; length < wants;) {
    const Walked walked = locked.walk_entry(entry, page + length, wanted);
    if (walked.of_process) return cache_own_run(number_of(pasid), iova, bytes, wanted);
    const bool found = walked.reason == FaultReason::kNone;
    if (length == 0) run.address = walked.address;
    if (!found || walked.address != run.address + length || !locked.reaches(walked.address)) break;
    run.rights &= wanted == kMayWrite ? walked.rights : u32{kMayRead};
    length += walked.page_bytes - (page + length) % walked.page_bytes;
    run.last = page + (length - 1);
  }
  if (run.last == page || run.last < iova) return false;
  ++counts_.walks;
  keep(run);
  return true;
}

// Pre: the PASID means this process, and `iova` may be an address of it.
bool DmaEngine::cache_own_run(u32 pasid, u64 iova, u64 bytes, Rights wanted) {
  ProcessSpace* const space = process_space();
  if (space == nullptr) return false;
  const u64 page = iova & kPageMask;
  u64 wants = iova - page + std::min(bytes, kLongestRun);
  if (page < kInterruptStart) wants = std::min(wants, kInterruptStart - page);
  const ProcessSpace::Section pages(*space);
  const u64 there = pages.present(Hva(page), wants, wanted);
  if (page + there <= iova) return false;
  const u32 rights = wanted == kMayWrite ? u32{kMayRead} | kMayWrite : u32{kMayRead};
  const u64 last = (page + there - 1) | ~kPageMask;  // a page is there as a whole
  keep({true, true, pasid, rights, page, last, page, pages.removals()});
  return true;
}

// One that continues another makes it longer.
void DmaEngine::keep(const Run& run) {
  for (Run& known : runs_) {
    if (run.own && known.own && known.removals != run.removals) known.valid = false;
    const bool same = known.valid && known.own == run.own && known.pasid == run.pasid &&
                      known.rights == run.rights &&
                      known.address - known.iova == run.address - run.iova;
    if (!same || run.iova > known.last + 1 || known.iova > run.last + 1) continue;
    if (run.iova < known.iova) {
      known.iova = run.iova;
      known.address = run.address;
    }
    known.last = std::max(known.last, run.last);
    return;
  }
  runs_[next_run_++ % kRuns] = run;
}

DmaEngine::CopyAnswer DmaEngine::copy(s64 pasid, u64 to, u64 from, u64 bytes, bool asks,
                                      const Record* record) {
  const u32 number = number_of(pasid);
  bool posted = false;
  for (u64 done = 0; done < bytes;) {
    const u64 left = bytes - done, out = from + done, in = to + done;
    u64 some = copy_cached(number, in, out, left, record, &posted);
    if (some == 0 && cache_run(pasid, out, left, kMayRead) &&
        cache_run(pasid, in, left, kMayWrite)) {
      some = copy_cached(number, in, out, left, record, &posted);
    }
    if (some == 0) {  // a page that is not there, or one that moves
      u8 buffer[kPageSize];
      some = std::min({left, kPageSize - out % kPageSize, kPageSize - in % kPageSize});
      DmaAnswer answer = access(pasid, out, some, buffer, nullptr, asks);
      const bool write = answer.reason == FaultReason::kNone;
      if (write) answer = access(pasid, in, some, nullptr, buffer, asks);
      if (answer.reason != FaultReason::kNone) {
        return {{done, answer.reason, answer.iova}, write};
      }
    }
    done += some;
  }
  return {{bytes, FaultReason::kNone, to + bytes}, false, posted};
}

}  // namespace stagetwo::iommu
