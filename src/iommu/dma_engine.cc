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

#include "base/sys.h"
#include "host/access.h"
#include "host/pin.h"
#include "iommu/locked.h"

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
    engine.queue_->enter(*engine.line_, engine.own_thread());
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
  engine->source_ = SourceId{device->source};
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

// A thread's number costs a system call; where its own storage is tells whether it is the same one.
u32 DmaEngine::own_thread() {
  const void* const here = __builtin_thread_pointer();
  if (here != thread_) {
    thread_ = here;
    tid_ = static_cast<u32>(sys::gettid());
  }
  return tid_;
}

DmaEngine::Page& DmaEngine::page_of(Page* pages, unsigned count, u32 pasid, u64 iova) {
  return pages[(iova / kPageSize ^ u64{pasid} * 37) % count];
}

void DmaEngine::heed() {
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
      return once->done ? FaultReason::kNone : FaultReason::kFirstNotPresent;
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
    const u64 some = std::min(bytes - answer.done, kPageSize - answer.iova % kPageSize);
    u8* const into = to == nullptr ? nullptr : static_cast<u8*>(to) + answer.done;
    const u8* const out = from == nullptr ? nullptr : static_cast<const u8*>(from) + answer.done;
    answer.reason = access_page(pasid, answer.iova, some, into, out);
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

// Where the bytes at `address` are while the section lives; *bytes is cut to those that are there
// in one piece.
std::optional<Hva> where(const host::FrameSection& frames, u64 address, stagetwo::Access access,
                         u64* bytes) {
  const host::Frame first{address / kPageSize & (bit(kFrameBits) - 1)};
  const auto start = frames.at(first, access);
  if (!start) return {};
  const u64 offset = address % kPageSize;
  u64 there = kPageSize - offset;
  for (u64 page = 1; there < *bytes; ++page, there += kPageSize) {
    const auto next = frames.at(first + page, access);
    if (!next || *next != *start + page * kPageSize) break;
  }
  *bytes = std::min(*bytes, there);
  return *start + offset;
}

// Answers how far it came. The guard of a long move covers both of its ends.
u64 move_bytes(Hva to, Hva from, u64 bytes) {
  u8 buffer[512];
  if (bytes > sizeof(buffer)) return host::copy_to(to, reinterpret_cast<void*>(from.raw()), bytes);
  return host::copy_to(to, buffer, host::copy_from(buffer, from, bytes));
}

}  // namespace

const DmaEngine::Run* DmaEngine::find_run(u32 pasid, u64 iova, Rights wanted) const {
  for (const Run& run : runs_) {
    const bool in = run.valid && iova >= run.iova && iova <= run.last;
    if (in && run.pasid == pasid && (run.rights & wanted) != 0) return &run;
  }
  return nullptr;
}

// 0: not both ends are known, or one is not to be touched directly now.
u64 DmaEngine::copy_cached(u32 pasid, u64 to, u64 from, u64 bytes) {
  const Section section(*this);
  const Run* const source = find_run(pasid, from, kMayRead);
  const Run* const target = find_run(pasid, to, kMayWrite);
  if (source == nullptr || target == nullptr) return 0;
  bytes = std::min({bytes, kLongestCopy, source->last - from + 1, target->last - to + 1});
  const host::FrameSection frames;
  const auto out =
      where(frames, source->address + (from - source->iova), stagetwo::Access::kRead, &bytes);
  const auto in =
      where(frames, target->address + (to - target->iova), stagetwo::Access::kWrite, &bytes);
  return out && in ? move_bytes(*in, *out, bytes) : 0;
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
  Run run{true, number_of(pasid), u32{kMayRead} | kMayWrite, page, page, 0};
  for (u64 length = 0; length < wants;) {
    const Walked walked = locked.walk_entry(entry, page + length, wanted);
    const bool found = walked.reason == FaultReason::kNone && !walked.of_process;
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

// One that continues another makes it longer.
void DmaEngine::keep(const Run& run) {
  for (Run& known : runs_) {
    const bool same = known.valid && known.pasid == run.pasid && known.rights == run.rights &&
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

DmaEngine::CopyAnswer DmaEngine::copy(s64 pasid, u64 to, u64 from, u64 bytes, bool asks) {
  const u32 number = number_of(pasid);
  for (u64 done = 0; done < bytes;) {
    const u64 left = bytes - done, out = from + done, in = to + done;
    u64 some = copy_cached(number, in, out, left);
    if (some == 0 && cache_run(pasid, out, left, kMayRead) &&
        cache_run(pasid, in, left, kMayWrite)) {
      some = copy_cached(number, in, out, left);
    }
    if (some == 0) {  // a page as the process has it, one that moves, or none
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
  return {{bytes, FaultReason::kNone, to + bytes}, false};
}

}  // namespace stagetwo::iommu
