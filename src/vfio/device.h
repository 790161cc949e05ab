// SPDX-License-Identifier: Apache-2.0
#pragma once

// A device that is open in this process: its model, its interrupts, the bounds of its regions. All
// descriptors of it here share one; other processes have their own, over the same model state.
//
// Analogue: struct vfio_device between its first open and its last close (kernel file:
// drivers/vfio/vfio_main.c).
// I1  While one lives, its mdev is not removed (it has a Claim of kDevice).
// Locking: the slot's lock (rank kDevice) around every call of the model. Lifetime: the last Ref.

#include "host/worker.h"
#include "sync/ref.h"
#include "vfio/bus.h"
#include "vfio/dma.h"
#include "vfio/interrupts.h"
#include "vfio/registry.h"

namespace stagetwo::vfio {

class Device final : public sync::RefCounted {
 public:
  // kHeld: the caller has its node open, and a removal waits for that. kReceived: another process
  // has opened it, and what it has made of it stays.
  enum class Opening : u8 { kByName, kHeld, kReceived };
  // The one of this process, made at the first call. Failure: ENODEV (gone, of a parent that this
  // process does not know; by name: being removed), ENOMEM, EMFILE.
  static Result<sync::Ref<Device>> open(const Listed& device, Opening how = Opening::kByName);
  Device(const Listed& which, Claim claim) : which_(which), claim_(std::move(claim)) {}

  // Has this process it open, be it by a mapping alone?
  [[nodiscard]] static bool is_open_here(u32 slot, u64 born);

  [[nodiscard]] const Listed& which() const { return which_; }
  [[nodiscard]] const Shape& shape() const { return model_->shape(); }

  // To the memory of the container its group is in. Again: nothing. Failure: as Dma::connect().
  Result<void> connect(sync::Ref<Container> container);

  // The same by an iommufd. Answers its number there. Failure: as Dma::bind().
  Result<u32> bind(sync::Ref<iommu::Iommufd> iommufd);
  // Of what is bound; the caller keeps changes apart. Failure: as Dma::attach().
  Result<void> attach(u32* pt_id, u32 pasid = 0) { return dma_.attach(pt_id, pasid); }
  void detach(u32 pasid = 0) { dma_.detach(pasid); }

  // One access: 1, 2 or 4 bytes, aligned. Pre: in the region.
  [[nodiscard]] bool is_connected();  // or bound
  void read(unsigned region, u64 offset, std::span<u8> to);
  void write(unsigned region, u64 offset, std::span<const u8> from);
  void reset();
  // Puts the device's memory over [at, at + size), where a client has mapped `region` from `offset`
  // on: plain areas as `prot` says, trapped ones without a right to write. Pre: the range is in
  // areas that are mapped. Failure: ENOMEM.
  Result<void> show(unsigned region, u64 offset, u64 size, int prot, Hva at);
  // Nothing is there: a touch is SIGBUS. Answers what stands for that. Failure: EMFILE, ENOMEM;
  // what was there stands.
  Result<host::FileId> hide(u64 size, int prot, Hva at) { return show_nothing(size, prot, at); }
  // How many bytes from `at` on `found` shows of the region from `offset` on, as show() has put it
  // there. Pre: `at` is in `found`.
  [[nodiscard]] u64 shown(unsigned region, u64 offset, const host::Mapping& found, Hva at) const;
  Result<void> set_irqs(const IrqSet& request);

 private:
  friend void devices_after_fork_child();
  class Locked;
  // Looks whether its holder is to let go of it, while he wants to hear that.
  class Watch final : public host::WorkItem {
   public:
    explicit Watch(Device& device) : device_(device) {}
    void turn() override;
    u64 period_ns() override { return kPeriodNs; }

   private:
    static constexpr u64 kPeriodNs = 50'000'000;
    static constexpr unsigned kTurnsBetween = 200;  // he is asked again every ten seconds
    Device& device_;
    unsigned turns_ = 0;
  };
  ~Device() override;
  Result<void> start(Registry& shared, bool may_be_going);
  void changed(unsigned region);

  const Listed which_;
  Claim claim_;
  Interrupts interrupts_;
  Dma dma_;
  bool connected_ = false;  // under the slot's lock
  u32 bound_ = 0;           // the iommufd's number for it
  Slot* slot_ = nullptr;
  u8* memory_ = nullptr;
  Box<Model> model_;
  Watch watch_{*this};
  sync::Atomic<u32> watching_{0};  // the process that does
};

void devices_after_fork_child();

}  // namespace stagetwo::vfio
