// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a model reaches its client's memory: by IOVA, through what its client has given it, and no
// other way. What that is decides what an access is:
//
//   given                          an access                           a map
//   a container, IOMMU device      (the parent's source, the           is pinned; what is unmapped
//                                  container's PASID), with the        is not reached any more when
//                                  caches of a device                  the unmap returns
//   an iommufd, IOMMU device       (a source of the device's own, no   the same
//                                  PASID or one that was attached)
//   either, without                the map's own memory, and dirty     is pinned where the model
//   (external)                     in a container                      holds it; the listener is
//                                                                      told before it goes
//
// Analogue: a device's bus master, vfio_pin_pages, vfio_unpin_pages and vfio_dma_rw (kernel file:
// include/linux/vfio.h); binding and attaching are vfio_iommufd_{physical,emulated}_* of
// drivers/vfio/iommufd.c.
// I1  In a container the PASID is the container's: no client names it, and of others a model names
//     only that of its own process (bind_process).
// I2  Not connected, or nothing attached: every access is a fault.
// I3  What was held and is unmapped is let go when the listener has been told, held by it or not.
// Context: one thread at a time, and one a channel; no lock below kDevice. A child of fork makes
// caches of its own.

#include <optional>

#include "host/process.h"
#include "iommu/dma_engine.h"
#include "iommu/iommufd.h"
#include "vfio/container.h"

namespace stagetwo::vfio {

class Dma;

// Of one request.
struct DmaHow {
  std::optional<u32> pasid;  // none: the device's own, or its container's
  bool asks = false;         // for a page that is not there it makes a page request, and waits
};

// The device's way for one thread, with caches of its own. Lifetime: ends before its Dma; in a
// child of fork it may be used and destroyed.
class DmaChannel {
 public:
  explicit DmaChannel(Dma& dma) : dma_(dma) {}
  ~DmaChannel();
  DmaChannel(const DmaChannel&) = delete;
  DmaChannel& operator=(const DmaChannel&) = delete;
  // How far it came, and why no further.
  iommu::DmaAnswer read(u64 iova, void* to, u64 bytes, DmaHow how = {}) {
    return access(iova, bytes, to, nullptr, how);
  }
  iommu::DmaAnswer write(u64 iova, const void* from, u64 bytes, DmaHow how = {}) {
    return access(iova, bytes, nullptr, from, how);
  }
  // From one address to another; the answer is of whichever end had the fault, and says whether the
  // record came with the bytes. Pre: they do not overlap.
  iommu::DmaEngine::CopyAnswer copy(u64 to, u64 from, u64 bytes, DmaHow how = {},
                                    const iommu::DmaEngine::Record* record = nullptr);
  // Moves that need not be looked at one by one, as far as that goes: see there.
  iommu::DmaEngine::Moved move_known(std::span<const iommu::DmaEngine::Move> moves, DmaHow how);
  // A record whose first word comes last (iommu/dma_engine.h).
  iommu::DmaAnswer post(const iommu::DmaEngine::Record& record, DmaHow how = {});
  // While it is set, nothing waits for the response to a page request. Its words outlive this.
  void set_cancel(iommu::Cancel cancel) { cancel_ = cancel; }
  // Made now, so that the first access need not. Pre: the device has an IOMMU device. Failure:
  // ENOSPC (too many engines), ENOMEM, EIO.
  Result<void> prepare();
  void forget();  // makes it afresh at the next access

 private:
  iommu::DmaAnswer access(u64 iova, u64 bytes, void* to, const void* from, DmaHow how);
  [[nodiscard]] iommu::DmaAnswer told(iommu::DmaAnswer answer, DmaHow how) const;
  iommu::DmaEngine* engine();

  Dma& dma_;
  Box<iommu::DmaEngine> engine_;
  host::ProcessOwner made_in_;
  iommu::Cancel cancel_;
};

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
  // The same to an iommufd, where nothing is attached yet. Answers its number there. Failure: EBUSY
  // (it is in that iommufd), ENOSPC, ENOMEM, EIO.
  Result<u32> bind(sync::Ref<iommu::Iommufd> iommufd, const Listed& device);
  void disconnect();  // nothing that is held stays
  // Pre: bound. `pt_id`: as Locked::attach(); out: the page table's. What is attached is replaced.
  // Failure: as that; with a PASID EOPNOTSUPP where there are none, EBUSY where it is a process's.
  Result<void> attach(u32* pt_id, u32 pasid = 0);
  void detach(u32 pasid = 0);
  [[nodiscard]] bool is_connected() const { return context() != nullptr; }

  iommu::DmaAnswer read(u64 iova, void* to, u64 bytes, DmaHow how = {}) {
    return own_.read(iova, to, bytes, how);
  }
  iommu::DmaAnswer write(u64 iova, const void* from, u64 bytes, DmaHow how = {}) {
    return own_.write(iova, from, bytes, how);
  }
  [[nodiscard]] std::optional<u32> pasid() const { return pasid_; }
  // Has it an IOMMU device here?
  [[nodiscard]] bool is_isolated() const { return device_ != 0; }

  // The PASID that means the addresses of this process, munmap and all (iommu/sva.h). Failure:
  // ENOTCONN, ENODEV (no IOMMU device), as iommu::bind_process().
  Result<u32> bind_process();
  void unbind_process();

  // Whole pages of the external domain stay where they are until they are let go; with a domain
  // they do anyway. Failure: ENOTCONN, ENOENT (not mapped), EPERM, EFAULT, ENOMEM.
  Result<void> hold(u64 iova, u64 bytes, bool write);
  void let_go(u64 iova, u64 bytes);
  void set_listener(Listener* listener) { listener_ = listener; }

  void unmap(u64 iova, u64 last) override;  // of AccessClient

 private:
  friend class DmaChannel;
  struct Held {
    u64 iova, bytes;
  };
  [[nodiscard]] iommu::Context* context() const;
  // Failure: what a request of that PASID meets.
  [[nodiscard]] std::optional<s64> pasid_of(DmaHow how) const;
  iommu::DmaAnswer access_external(u64 iova, u64 bytes, void* to, const void* from);
  iommu::FaultReason access_page(u64 iova, u64 bytes, void* to, const void* from);
  void unpin(const Held& held);

  sync::Ref<Container> container_;  // one of the two
  sync::Ref<iommu::Iommufd> iommufd_;
  std::optional<u32> pasid_;  // the container's
  std::optional<u32> process_pasid_;
  u32 device_ = 0;            // the iommu room's, with an IOMMU device
  u32 access_ = 0;            // the iommu room's, external
  host::ProcessOwner owner_;  // who takes both away
  DmaChannel own_{*this};
  Listener* listener_ = nullptr;
  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<Held> held_ TA_GUARDED(lock_){"vfio.held"};
};

}  // namespace stagetwo::vfio
