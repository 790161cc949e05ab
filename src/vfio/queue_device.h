// SPDX-License-Identifier: Apache-2.0
#pragma once

// A device that is given work by descriptors of 64 bytes and does it in a thread of its own: all of
// it but the work. Its regions, how descriptors come, resets, and which addresses its requests
// have. How to write one: docs/howto-dma-engine.md.
//
//   region          what
//   0  registers    the model's; two are here
//   2  portal       64 slots of 64 bytes: a descriptor each (vfio/work_queue.h)
//   4  ring         plain memory: RingHead, and descriptors from kRingAt on
//
// I1  After reset() or discard() nothing that was submitted before reaches memory.
// Locking: as Model; serve(), overran() and drained() are called by the thread. Lifetime: a model's
// destructor begins with stop().

#include "vfio/device_thread.h"
#include "vfio/dma.h"
#include "vfio/model.h"
#include "vfio/pci_config.h"
#include "vfio/work_queue.h"

namespace stagetwo::vfio {

class QueueDevice : public Model, DeviceThread::Work {
 public:
  // A write says that there is work; and the requests' PASID, written: one that the client attached
  // by its iommufd, 0: none.
  static constexpr u64 kDoorbell = 0x800, kPasid = 0x808;
  // What its requests name: what the client maps, or the client's process's own.
  enum class Addresses : u8 { kMapped, kOwn };
  // Of all processes; a model's state begins with it.
  struct Shared {
    PciConfig config;
    QueueShare queue;
    DeviceHalt halt;
    sync::Atomic<u32> pasid;
  };
  // Where the ring stands in the device's memory; before it is what loads of the portal see.
  static constexpr u64 kRingMemory = kPageSize;

  [[nodiscard]] const Shape& shape() const final { return shape_; }
  void read(unsigned region, u64 offset, std::span<u8> to) final;
  void write(unsigned region, u64 offset, std::span<const u8> from) final;
  void reset() final;
  void first_open() final { queue_.first_user(); }
  void after_fork() final { queue_.after_fork(); }

 protected:
  // A model's constructor resets it: whoever had it before leaves nothing behind. `identity`: for
  // ever; its base address registers are as the regions.
  QueueDevice(const PciIdentity& identity, u32 vectors, Addresses addresses,
              const ModelContext& context);

  // ---- what a model does, under the device's lock
  [[nodiscard]] virtual u64 word_at(u64 offset) const = 0;  // of the registers
  virtual void write_register(u64 offset, u32 value) = 0;
  virtual void clear_registers() = 0;                // at a reset
  virtual void is_full(const void* descriptor) = 0;  // it is dropped
  // ---- and in the thread
  virtual void serve(const void* list, u32 count) = 0;  // as far as it is not cancelled()
  virtual void overran() = 0;                           // the ring's tail was too far
  // They are dropped: the process's own addresses could not be bound, for `error`.
  virtual void unbound(const void* list, u32 count, int error) = 0;
  virtual bool drained() { return false; }  // nothing waits in any process: was it waited for?

  // ---- and has
  [[nodiscard]] bool look();  // makes the thread look for work. False: there is none to make it
  void discard();
  void stop() { thread_.stop(); }
  [[nodiscard]] bool cancelled() const { return thread_.cancelled(); }
  // Bytes [from, size), at most `most` at once, as long as each piece(done, some) answers that it
  // was done whole, and it is not cancelled. How far it came.
  template <typename F>
  u64 in_pieces(u64 from, u64 size, u64 most, F&& piece) const {
    while (from < size && !cancelled()) {
      const u64 some = size - from < most ? size - from : most;
      const u64 came = piece(from, some);
      from += came;
      if (came != some) break;
    }
    return from;
  }
  [[nodiscard]] u32 pasid() const { return shared_.pasid.load(sync::kRelaxed); }
  [[nodiscard]] DmaHow how(bool asks) const {
    return {pasid() != 0 ? std::optional(pasid()) : std::nullopt, asks};
  }

  Interrupts& interrupts_;
  DmaChannel channel_;  // the thread's
  const Addresses addresses_;

 private:
  void begins() override;
  bool work() override;
  void falls_asleep() override { queue_.say_asleep(true); }
  void wakes_up() override { queue_.say_asleep(false); }
  void in_child() override { queue_.in_child(); }
  void write_own(u64 offset, u32 value);
  void bind_own();

  Shared& shared_;
  const PciIdentity& identity_;
  WorkQueue queue_;
  Dma& dma_;
  int refusal_ = 0;  // the thread's: why its process's addresses are not bound
  Shape shape_;
  DeviceThread thread_{*this, &shared_.halt};
};

}  // namespace stagetwo::vfio
