// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a model reaches its client's memory: by IOVA, through the container its group is in, and no
// other way. What the container's domain is decides what an access is:
//
//   domain      an access                                 a map
//   by PASID    (the parent's source, the domain's        is pinned; what is unmapped is not
//   reached
//               PASID), with the caches of a device       any more when the unmap returns
//   external    the map's own memory, and dirty           is pinned where the model holds it; the
//                                                         listener is told before it goes
//
// Analogue: a device's bus master, vfio_pin_pages, vfio_unpin_pages and vfio_dma_rw (kernel file:
// include/linux/vfio.h).
// I1  The PASID is the container's: no model and no client of one names it.
// I2  Not connected, nothing is reached: every access is a fault.
// I3  What was held and is unmapped is let go when the listener has been told, held by it or not.
// Context: one thread at a time; no lock below kDevice. A child of fork makes caches of its own.

#include <optional>

#include "iommu/dma_engine.h"
#include "vfio/container.h"

namespace stagetwo::vfio {

class Dma final : public iommu::AccessClient {
 public:
  // Of what a model holds: [iova, last] goes. Context: no lock of the room but the container's.
  class Listener {
   public:
    virtual void unmapped(u64 iova, u64 last) = 0;

   protected:
    ~Listener() = default;
  };

  Dma() = default;
  ~Dma() override;
  Dma(const Dma&) = delete;
  Dma& operator=(const Dma&) = delete;

  // Pre: not connected; the group is in the container, which has a type. Failure: EINVAL (it is
  // not), ENOSPC (too many engines), ENOMEM, EIO.
  Result<void> connect(sync::Ref<Container> container, const Listed& device);
  // How far it came, and why no further.
  iommu::DmaAnswer read(u64 iova, void* to, u64 bytes) { return access(iova, bytes, to, nullptr); }
  iommu::DmaAnswer write(u64 iova, const void* from, u64 bytes) {
    return access(iova, bytes, nullptr, from);
  }
  [[nodiscard]] std::optional<u32> pasid() const { return pasid_; }

  // Whole pages of the external domain stay where they are until they are let go; with a domain
  // they do anyway. Failure: ENOTCONN, ENOENT (not mapped), EPERM, EFAULT, ENOMEM.
  Result<void> hold(u64 iova, u64 bytes, bool write);
  void let_go(u64 iova, u64 bytes);
  void set_listener(Listener* listener) { listener_ = listener; }

  void unmap(u64 iova, u64 last) override;  // of AccessClient

 private:
  struct Held {
    u64 iova, bytes;
  };
  iommu::DmaAnswer access(u64 iova, u64 bytes, void* to, const void* from);
  iommu::FaultReason access_page(u64 iova, u64 bytes, void* to, const void* from);
  iommu::DmaEngine* engine();
  void unpin(const Held& held);

  sync::Ref<Container> container_;
  std::optional<u32> pasid_;
  u32 device_ = 0;  // the iommu room's, by PASID
  u32 access_ = 0;  // the iommu room's, external
  Box<iommu::DmaEngine> engine_;
  int process_ = 0;  // whose engine_ is
  Listener* listener_ = nullptr;
  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<Held> held_ TA_GUARDED(lock_){"vfio.held"};
};

}  // namespace stagetwo::vfio
