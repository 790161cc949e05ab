// SPDX-License-Identifier: Apache-2.0
// What a device reads and writes, in the tables as they are now. A test device's are found by its
// attachments, the others' by the tables alone: what they say is what counts.
#include <algorithm>

#include "host/pin.h"
#include "iommu/locked.h"

namespace stagetwo::iommu {
namespace {

Walked refused(FaultReason reason) {
  return {.reason = reason};
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
  return is_this_process(static_cast<u32>(address / kPageSize >> kFrameBits));
}

Walked Locked::look_up(Device& device, s64 pasid, u64 iova, Rights wanted) {
  if (device.vtd) {
    const FoundPasid found = find_pasid(arena(), root().root_table, SourceId{device.source}, pasid);
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
    if (!touch_frame(found.address, some, into, out)) {
      answer.reason = FaultReason::kSecondUnreadable;
      return answer;
    }
    answer.done += some;
  }
  return answer;
}

}  // namespace stagetwo::iommu
