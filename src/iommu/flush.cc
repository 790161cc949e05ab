// SPDX-License-Identifier: Apache-2.0
// Telling caches what is no longer so, and waiting until they have heeded it. kernel files:
// drivers/iommu/intel/cache.c, pasid.c. The order of a removal (VT-d specification 6.5.3.3): the
// tables, the PASID cache, the IOTLB, the device's TLB, wait; only then pages are given back.
#include "base/guard.h"
#include "iommu/locked.h"
#include "iommu/other_process.h"

namespace stagetwo::iommu {

Result<DmaLine*> Locked::add_line() {
  const u32 process = ST_TRY(this_process());
  InvalidationQueue& queue = root().queue;
  DmaLine* line = queue.add(process, pid_space());
  if (line == nullptr) {
    drop_dead_lines();
    line = queue.add(process, pid_space());
  }
  if (line == nullptr) return refuse(ENOSPC);
  use_process(process, 1);
  return line;
}

// Those of processes that ended without a word.
void Locked::drop_dead_lines() {
  root().queue.for_each_line([this](DmaLine& line) {
    if (!is_alive(line.process)) remove_line(&line);
  });
}

void Locked::remove_line(DmaLine* line) {
  use_process(line->process, -1);
  root().queue.remove(line);
}

void Locked::post_device(const Attachment& attachment, const PageBlock& block) {
  if (!ST_GUARD(iommu_device_tlb, attachment.device->vtd)) return;
  root().queue.post(
      forget_device_pages(SourceId{attachment.device->source.get()}, attachment.pasid(), block));
}

// Guests' first levels on a parent: which of their pages are meant nobody knows.
void Locked::post_children(const Hwpt& parent) {
  for (u64 id = 1; id < root().table_size; ++id) {
    const auto nested = find<Hwpt>(static_cast<u32>(id));
    if (!nested || (*nested)->parent.get() != &parent) continue;
    for (const Attachment* one = (*nested)->attachments; one != nullptr; one = one->next) {
      post_device(*one, {});
    }
  }
}

// Pages of a domain, in every cache of everybody it is attached to.
void Locked::post_pages(const Hwpt& hwpt, u64 iova, u64 last) {
  const Domain& domain = hwpt.domain;
  const PageBlock block = block_of(iova, last);
  if (ST_GUARD(iommu_iotlb, domain.format == FormatKind::kVtdSecondLevel)) {
    root().queue.post(forget_pages(domain.id, block));
  }
  for (const Attachment* one = hwpt.attachments; one != nullptr; one = one->next) {
    if (ST_GUARD(iommu_iotlb, domain.format == FormatKind::kX86FirstLevel)) {
      root().queue.post(forget_pasid_pages(domain.id, one->pasid(), block));
    }
    post_device(*one, block);
  }
  if (hwpt.nest_parent) post_children(hwpt);
}

void Locked::flush_pages(const Hwpt& hwpt, u64 iova, u64 last) {
  InvalidationQueue& queue = root().queue;
  if (!queue.has_lines()) return;
  post_pages(hwpt, iova, last);
  queue.wait();
}

void Locked::flush_ioas(const Ioas& ioas, u64 iova, u64 last) {
  InvalidationQueue& queue = root().queue;
  if (!queue.has_lines()) return;
  for (const Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
    post_pages(*hwpt, iova, last);
  }
  queue.wait();
}

// Addresses of a guest whose own tables have changed. Pre: nested.
void Locked::flush_nested(const Hwpt& nested, u64 iova, u64 last) {
  InvalidationQueue& queue = root().queue;
  if (!queue.has_lines()) return;
  const PageBlock block = block_of(iova, last);
  for (const Attachment* one = nested.attachments; one != nullptr; one = one->next) {
    queue.post(forget_pasid_pages(nested.parent->domain.id, one->pasid(), block));
    post_device(*one, block);
  }
  queue.wait();
}

// What a PASID meant until now.
void Locked::flush_attachment(const Attachment& attachment) {
  InvalidationQueue& queue = root().queue;
  if (!queue.has_lines() || !attachment.device->vtd) return;
  const Hwpt& hwpt = *attachment.hwpt;
  const Domain& domain = hwpt.parent.get() == nullptr ? hwpt.domain : hwpt.parent->domain;
  const u32 pasid = attachment.pasid();
  if (ST_GUARD(iommu_pasid_cache, true)) queue.post(forget_pasid_entry(domain.id, pasid));
  queue.post(forget_pasid_pages(domain.id, pasid, {}));
  if (domain.format == FormatKind::kVtdSecondLevel) queue.post(forget_domain(domain.id));
  post_device(attachment, {});
  queue.wait();
}

}  // namespace stagetwo::iommu
