// SPDX-License-Identifier: Apache-2.0
// What a device reads and writes, in the tables as they are now. A test device's are found by its
// attachments, the others' by the tables alone: what they say is what counts.
#include <algorithm>

#include "host/pin.h"
#include "iommu/locked.h"
#include "iommu/process_space.h"
#include "sync/futex.h"

namespace stagetwo::iommu {
namespace {

constexpr unsigned kMostAsks = 1000;  // for one page that goes again and again
constexpr u32 kGroups = 512;          // numbers of a device's groups of page requests

Walked refused(FaultReason reason) {
  return {.reason = reason};
}

// The process's own tables are not in the arena, nor what is in them decided here.
Walked walk_process(u64 iova, bool mine) {
  if (iova >= kInterruptStart && iova <= kInterruptLast) {
    return refused(FaultReason::kInterruptRange);
  }
  if (!mine) return refused(FaultReason::kFirstUnreadable);
  if (iova >> 47 != 0) return refused(FaultReason::kNotCanonical);
  return {.address = iova,
          .page_bytes = kPageSize,
          .rights = u32{kMayRead} | kMayWrite,
          .of_process = true};
}

}  // namespace

// Within one page. False: it is not pinned by this process, or its memory failed.
bool Locked::touch_frame(u64 address, u64 bytes, void* to, const void* from) const {
  const u64 number = address / kPageSize;
  if (!reaches(address)) return false;
  const host::Frame frame{number & (bit(kFrameBits) - 1)};
  const u64 offset = address % kPageSize;
  return to != nullptr ? host::read_frame(frame, offset, to, bytes)
                       : host::write_frame(frame, offset, from, bytes);
}

Walked Locked::walk_entry(const PasidEntry& entry, u64 iova, Rights wanted) {
  if (entry.is_process()) return walk_process(iova, is_this_process(entry.process()));
  class Reader final : public FrameReader {
   public:
    explicit Reader(const Locked& of) : of_(of) {}
    bool read(u64 address, u64* word) override {
      return of_.touch_frame(address, sizeof(*word), word, nullptr);
    }

   private:
    const Locked& of_;
  } reader(*this);
  return walk(arena(), entry, iova, wanted, reader);
}

bool Locked::reaches(u64 address) const {
  return is_this_process(process_of(address / kPageSize));
}

Walked Locked::look_up(Device& device, s64 pasid, u64 iova, Rights wanted) {
  if (device.vtd) {
    const FoundPasid found =
        find_pasid(arena(), root().root_table, SourceId{device.source.get()}, pasid);
    if (found.reason != FaultReason::kNone) return refused(found.reason);
    return walk_entry(found.entry, iova, wanted);
  }
  if (pasid >= 0 && device.max_pasid_lg2 == 0) return refused(FaultReason::kPasidNotEnabled);
  const u32 number = pasid < 0 ? 0 : static_cast<u32>(pasid);
  if (pasid >= 0 && number >> device.max_pasid_lg2 != 0) {
    return refused(FaultReason::kPasidTooLarge);
  }
  const Attachment* const attachment = find_attachment(device, number);
  if (attachment == nullptr) return refused(FaultReason::kPasidNotPresent);
  Hwpt* const parent = attachment->hwpt->parent;
  Domain& domain = parent == nullptr ? attachment->hwpt->domain : parent->domain;
  const auto found = translate(arena(), domain, iova);
  if (!found || (found->rights & wanted) == 0) return refused(FaultReason::kSecondDenied);
  if (wanted == kMayWrite && domain.tracking) set_dirty(arena(), domain, iova);
  return {.address = found->address, .page_bytes = found->page_bytes, .rights = found->rights};
}

DmaAnswer Locked::dma(Device& device, s64 pasid, u64 iova, u64 bytes, void* to, const void* from) {
  DmaAnswer answer;
  while (answer.done < bytes) {
    answer.iova = iova + answer.done;
    const Walked found = look_up(device, pasid, answer.iova, to != nullptr ? kMayRead : kMayWrite);
    answer.reason = found.reason;
    if (found.reason != FaultReason::kNone) return answer;
    const u64 page = std::min(found.page_bytes, kPageSize);
    const u64 some = std::min(bytes - answer.done, page - found.address % page);
    u8* const into = to == nullptr ? nullptr : static_cast<u8*>(to) + answer.done;
    const u8* const out = from == nullptr ? nullptr : static_cast<const u8*>(from) + answer.done;
    if (!touch(found, some, into, out)) {
      answer.reason =
          found.of_process ? FaultReason::kFirstNotPresent : FaultReason::kSecondUnreadable;
      return answer;
    }
    answer.done += some;
  }
  return answer;
}

bool Locked::touch(const Walked& found, u64 bytes, void* to, const void* from) const {
  if (!found.of_process) return touch_frame(found.address, bytes, to, from);
  ProcessSpace* const space = process_space();
  return space != nullptr && space->access(Hva(found.address), bytes, to, from);
}

// ---- with page requests -------------------------------------------------------------------------

DmaAnswer Context::dma(u32 device_id, s64 pasid, u64 iova, u64 bytes, void* to, const void* from,
                       bool asks) {
  DmaAnswer answer;
  for (unsigned asked = 0;; ++asked) {
    u8* const into = to == nullptr ? nullptr : static_cast<u8*>(to) + answer.done;
    const u8* const out = from == nullptr ? nullptr : static_cast<const u8*>(from) + answer.done;
    {
      Locked locked(*this);
      const auto device = locked.ok() ? locked.find<Device>(device_id) : refuse(EIO);
      if (!device) return {answer.done, FaultReason::kContextNotPresent, iova + answer.done};
      const DmaAnswer some =
          locked.dma(**device, pasid, iova + answer.done, bytes - answer.done, into, out);
      if (some.done != 0) asked = 0;
      answer = {answer.done + some.done, some.reason, some.iova};
    }
    if (!asks || !can_be_asked_for(answer.reason) || asked == kMostAsks) return answer;
    if (!ask_for_page(device_id, pasid, answer.iova, to != nullptr ? kMayRead : kMayWrite)) {
      return answer;
    }
  }
}

bool Context::ask_for_page(u32 device_id, s64 pasid, u64 iova, Rights wanted, Cancel cancel) {
  if (cancel.is_set()) return false;
  PageWait* wait = nullptr;
  {
    Locked locked(*this);
    const auto found = locked.ok() ? locked.find<Device>(device_id) : refuse(EIO);
    if (!found) return false;
    Device& device = **found;
    const u32 number = pasid < 0 ? 0 : static_cast<u32>(pasid);
    const Attachment* const attachment = Locked::find_attachment(device, number);
    const bool own = attachment != nullptr && attachment->hwpt->object.type == ObjectType::kProcess;
    if (own && !locked.is_this_process(attachment->hwpt->process)) return false;
    if (!own) {
      const auto made = locked.arena().make<PageWait>("iommu.page_wait");
      if (!made) return false;
      wait = *made;
      device.last_group = (device.last_group + 1) % kGroups;
      const PageAsked asked{number, device.last_group, u32{wanted}, iova & kPageMask};
      if (!locked.request_page(device, asked, wait)) {
        locked.arena().destroy(wait);
        return false;
      }
    }
  }
  if (wait != nullptr) return await_response(wait, cancel);
  ProcessSpace* const space = process_space();
  return space != nullptr && space->bring(Hva(iova), wanted).has_value();
}

// Whoever responds may be of another process, whose wake does not come here. Who gives up leaves
// the wait to the response that may still come.
bool Context::await_response(PageWait* wait, Cancel cancel) {
  constexpr u64 kLookAgainNs = 1'000'000;
  for (;;) {
    sync::Atomic<u32>* responses = nullptr;
    u32 seen = 0;
    {
      Locked locked(*this);
      if (!locked.ok()) return false;
      responses = &locked.root().responses;
      seen = responses->load(sync::kAcquire);
      if (wait->state != PageWait::State::kWaiting) {
        const bool success = wait->state == PageWait::State::kSuccess;
        locked.arena().destroy(wait);
        return success;
      }
    }
    if (cancel.is_set()) return false;
    sync::futex_wait(*responses, seen, kLookAgainNs);
  }
}

}  // namespace stagetwo::iommu
