// SPDX-License-Identifier: Apache-2.0
#include "vfio/dma_engine.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/process_page.h"
#include "vfio/device_thread.h"
#include "vfio/dma.h"
#include "vfio/interrupts.h"
#include "vfio/pci_config.h"

namespace stagetwo::vfio {
namespace {

namespace at = engine_register;
using iommu::FaultReason;

constexpr u32 kQueueLength = 64, kFetch = 16, kMaxTransferShift = 31, kMaxBatchShift = 10;
constexpr u64 kPiece = 64 * 1024;
constexpr u32 kKnownFlags = kFence | kBlockOnFault | kCompletionValid | kRequestCompletion |
                            kRequestInterrupt | kCacheControl;
constexpr u32 kOpcodes = 0x1003f;
// Commands, as a mask of their numbers: of all, of the queue, of a PASID, which is this one's.
constexpr u32 kDrains = bit(3) | bit(8) | bit(11), kAborts = bit(4) | bit(9) | bit(10) | bit(12);
constexpr u32 kResetDevice = 5, kBadCommand = 1, kActive = 1u << 31;
constexpr u32 kCauseError = 1, kCauseCommand = 2;

constexpr PciIdentity kIdentity{.vendor = 0x1af4,
                                .device = 0x57a7,
                                .sub_vendor = 0,
                                .sub_device = 0,
                                .class_code = 0x088000,  // a system peripheral
                                .revision = 1,
                                .interrupt_pin = 0,
                                .bars = {{4096}, {}, {4096}, {}, {kRingBytes}}};
// The device's memory: the portal as loads see it, the ring.
constexpr u64 kRingMemory = 4096;
constexpr MappedArea kPortal[] = {{0, 4096, 0, true}}, kRing[] = {{0, kRingBytes, kRingMemory}};
static_assert(kRingMemory + kRingBytes <= Model::kMemoryBytes);

// Shared by all processes.
struct State {
  PciConfig config;
  sync::Atomic<u32> server;  // the process whose thread serves the ring
  sync::Atomic<u32> cause, command_status, pasid;
  sync::Atomic<u64> error[3];  // as in the register: what, batch and flags, address
};
static_assert(sizeof(State) <= Model::kStateBytes);

// CRC-32C, as the field's: reflected, inverted at both ends.
struct SumTable {
  u32 of[256];
  constexpr SumTable() : of() {
    for (u32 byte = 0; byte < 256; ++byte) {
      u32 sum = byte;
      for (unsigned i = 0; i < 8; ++i) sum = sum >> 1 ^ ((sum & 1) != 0 ? 0x82f63b78 : 0);
      of[byte] = sum;
    }
  }
};
constexpr SumTable kSums;

// A descriptor and what becomes of it.
struct Task {
  const Descriptor& what;
  DmaHow how;
  bool in_batch;
  Completion done{};
  void ends(Status status) { done.status = static_cast<u8>(status); }
  [[nodiscard]] bool is(Status status) const { return done.status == static_cast<u8>(status); }
};

class Engine final : public Model, DeviceThread::Work {
 public:
  Engine(bool shares_addresses, const ModelContext& context);
  ~Engine() override { thread_.stop(); }
  [[nodiscard]] const Shape& shape() const override { return shape_; }
  void read(unsigned region, u64 offset, std::span<u8> to) override;
  void write(unsigned region, u64 offset, std::span<const u8> from) override;
  void reset() override;

 private:
  // ---- the client's calls: under the device's lock
  [[nodiscard]] u64 word_at(u64 offset) const;
  void write_register(u64 offset, u32 value);
  void command(u32 value);
  void submit(const Descriptor& descriptor);
  void discard();
  // ---- the thread's
  void begins() override;
  bool work() override;
  void falls_asleep() override { say_asleep(1); }
  void wakes_up() override { say_asleep(0); }
  void in_child() override { std::construct_at(&lock_, sync::Rank::kLeaf), discard(); }
  void say_asleep(u32 value);
  bool work_queue();
  bool work_ring();
  bool execute(const Descriptor& descriptor, bool in_batch = false);
  static Status refusal(const Descriptor& d, bool in_batch);
  void run(Task& task);
  void batch(Task& task);
  void move(Task& task);
  void fill(Task& task);
  void compare(Task& task);
  void sum(Task& task);
  bool get(Task& task, u64 from, void* to, u64 bytes);
  void finish(const Task& task);
  bool complete(const Task& task);
  void report(Status status, const Task* task, u64 address, bool write);
  [[nodiscard]] DmaHow how(bool asks) const;
  [[nodiscard]] bool cancelled() const { return thread_.cancelled(); }
  [[nodiscard]] sync::Atomic<u32>& ring_word(u32 RingHead::* word) const {
    return reinterpret_cast<sync::Atomic<u32>&>(reinterpret_cast<RingHead*>(ring_)->*word);
  }

  State& state_;
  u8* const ring_;
  Interrupts& interrupts_;
  Dma& dma_;
  DmaChannel channel_;  // the thread's
  const bool shares_addresses_;
  Shape shape_;
  u8 portal_[64][64] = {};  // of slots that are being written
  DeviceThread thread_{*this};
  sync::Mutex lock_{sync::Rank::kLeaf};
  Descriptor queue_[kQueueLength] TA_GUARDED(lock_) = {};
  u32 first_ TA_GUARDED(lock_) = 0;
  sync::Atomic<u32> queued_{0};  // written under the lock
  u32 head_ = 0;                 // the thread's, or of who paused it
};

Engine::Engine(bool shares_addresses, const ModelContext& context)
    : state_(*reinterpret_cast<State*>(context.state.data())),
      ring_(context.memory.data() + kRingMemory),
      interrupts_(context.interrupts),
      dma_(context.dma),
      channel_(context.dma),
      shares_addresses_(shares_addresses) {
  shape_.regions[0] = {kPageSize};
  shape_.regions[2] = {kPageSize, kPortal};
  shape_.regions[4] = {kRingBytes, kRing};
  shape_.regions[kConfigRegion] = {PciConfig::kBytes};
  shape_.vectors[kMsixIndex] = kEngineVectors;
  channel_.set_cancel(thread_.cancel_word());
  reset();  // whoever had it before leaves nothing behind
}

void Engine::read(unsigned region, u64 offset, std::span<u8> to) {
  if (region == kConfigRegion) return state_.config.read(offset, to);
  if (region == 4) {
    std::memcpy(to.data(), ring_ + offset, to.size());
    return;
  }
  const u64 word = region == 0 ? word_at(offset & ~u64{7}) >> 8 * (offset & 7) : 0;
  std::memcpy(to.data(), &word, to.size());
}

u64 Engine::word_at(u64 offset) const {
  switch (offset) {
    case at::kVersion:
      return 0x100;
    case at::kGenCap:  // blocks on faults, takes commands
      return 1 | 1 << 4 | kMaxTransferShift << 16 | kMaxBatchShift << 21;
    case at::kQueueCap:  // one, dedicated; page requests where addresses are shared
      return kQueueLength | 1 << 16 | u64{1} << 49 | u64{shares_addresses_} << 55;
    case at::kOpCap:
      return kOpcodes;
    case at::kGenStatus:
      return 1;  // enabled
    case at::kIntCause:
      return state_.cause.load(sync::kAcquire);
    case at::kCommandStatus:
      return state_.command_status.load(sync::kAcquire);
    case at::kCommandCap:
      return kDrains | kAborts | bit(kResetDevice);
    case at::kPasid:
      return state_.pasid.load(sync::kRelaxed);
    default:
      break;
  }
  const u64 error = (offset - at::kSoftwareError) / 8;
  return error < std::size(state_.error) ? state_.error[error].load(sync::kAcquire) : 0;
}

void Engine::write(unsigned region, u64 offset, std::span<const u8> from) {
  if (region == kConfigRegion) return state_.config.write(kIdentity, offset, from);
  if (region == 4) {
    std::memcpy(ring_ + offset, from.data(), from.size());
    return;
  }
  if (region == 0) {
    u32 value = 0;
    std::memcpy(&value, from.data(), std::min(from.size(), sizeof(value)));
    return write_register(offset, value);
  }
  u8* const slot = portal_[offset / 64];
  std::memcpy(slot + offset % 64, from.data(), from.size());
  if (offset % 64 + from.size() != 64) return;
  Descriptor descriptor;
  std::memcpy(&descriptor, slot, sizeof(descriptor));
  submit(descriptor);
}

void Engine::write_register(u64 offset, u32 value) {
  switch (offset) {
    case at::kIntCause:
      state_.cause.fetch_and(~value);
      return;
    case at::kCommand:
      return command(value);
    case at::kSoftwareError:
      if ((value & 1) != 0) state_.error[0].store(0, sync::kRelease);
      return;
    case at::kDoorbell:
      if (thread_.start()) thread_.wake();
      return;
    case at::kPasid:
      if (!shares_addresses_) state_.pasid.store(value & 0xfffff, sync::kRelease);
      return;
    default:
      return;
  }
}

void Engine::command(u32 value) {
  const u32 which = value >> 20 & 31;
  u32 status = 0;
  if (which == kResetDevice) {
    reset();
  } else if ((kAborts & bit(which)) != 0) {
    thread_.pause();
    discard();
    thread_.resume();
  } else if ((kDrains & bit(which)) == 0) {
    status = kBadCommand;
  } else if (thread_.start()) {
    state_.command_status.store(kActive, sync::kRelease);  // the thread's to take away
    return thread_.wake();
  }
  state_.command_status.store(status, sync::kRelease);
  state_.cause.fetch_or(kCauseCommand);
  interrupts_.raise(0);
}

void Engine::reset() {
  thread_.pause();
  state_.config.start(kIdentity);
  std::memset(ring_, 0, kRingBytes);
  ring_word(&RingHead::asleep).store(1, sync::kRelease);  // nobody serves it before a doorbell
  state_.server.store(process_stamp(), sync::kRelease);
  state_.cause.store(0, sync::kRelease);
  state_.command_status.store(0, sync::kRelease);
  if (!shares_addresses_) state_.pasid.store(dma_.pasid().value_or(0), sync::kRelease);
  for (auto& word : state_.error) word.store(0, sync::kRelease);
  discard();
  thread_.resume();
}

// What was submitted is as if it had not been.
void Engine::discard() {
  const sync::MutexGuard guard(lock_);
  queued_.store(0, sync::kRelease);
  head_ = ring_word(&RingHead::tail).load(sync::kAcquire);
  ring_word(&RingHead::head).store(head_, sync::kRelease);
}

void Engine::submit(const Descriptor& descriptor) {
  bool full = !thread_.start();
  if (!full) {
    const sync::MutexGuard guard(lock_);
    const u32 queued = queued_.load(sync::kRelaxed);
    full = queued == kQueueLength;
    if (!full) {
      queue_[(first_ + queued) % kQueueLength] = descriptor;
      queued_.store(queued + 1, sync::kRelease);
    }
  }
  const Task task{descriptor, {}, false};
  if (full) return report(Status::kQueueFull, &task, 0, false);
  thread_.wake();
}

// ---- the thread

void Engine::begins() {
  if (shares_addresses_) {
    state_.pasid.store(dma_.bind_process().value_or(0), sync::kRelease);
  } else if (dma_.pasid()) {
    state_.pasid.store(*dma_.pasid(), sync::kRelease);
  }
}

DmaHow Engine::how(bool asks) const {
  const u32 pasid = state_.pasid.load(sync::kRelaxed);
  return {pasid != 0 ? std::optional(pasid) : std::nullopt, asks};
}

bool Engine::work() {
  if (work_queue() || work_ring()) return true;
  u32 active = kActive;  // a drain: there is nothing before it any more
  if (!state_.command_status.compare_exchange(active, 0)) return false;
  state_.cause.fetch_or(kCauseCommand);
  interrupts_.raise(0);
  return true;
}

bool Engine::work_queue() {
  if (queued_.load(sync::kAcquire) == 0) return false;
  Descriptor next;
  {
    const sync::MutexGuard guard(lock_);
    const u32 queued = queued_.load(sync::kRelaxed);
    if (queued == 0) return false;
    next = queue_[first_];
    first_ = (first_ + 1) % kQueueLength;
    queued_.store(queued - 1, sync::kRelease);
  }
  execute(next);
  return true;
}

// Descriptors are copied before they are looked at. A tail that is too far is moved back.
bool Engine::work_ring() {
  const u32 waiting = ring_word(&RingHead::tail).load(sync::kAcquire) - head_;
  if (waiting == 0 || state_.server.load(sync::kRelaxed) != process_stamp()) return false;
  if (waiting > kRingSlots) {
    ring_word(&RingHead::tail).store(head_, sync::kRelease);
    report(Status::kBadCount, nullptr, 0, false);
    return true;
  }
  const u32 place = head_ % kRingSlots;
  const u32 some = std::min({waiting, kFetch, u32{kRingSlots} - place});
  Descriptor fetched[kFetch];
  std::memcpy(fetched, ring_ + kRingAt + place * sizeof(Descriptor), some * sizeof(Descriptor));
  head_ += some;
  ring_word(&RingHead::head).store(head_, sync::kRelease);
  for (u32 i = 0; i < some && !cancelled(); ++i) execute(fetched[i]);
  return true;
}

void Engine::say_asleep(u32 value) {
  const bool serves = state_.server.load(sync::kRelaxed) == process_stamp();
  if (serves) ring_word(&RingHead::asleep).store(value);
}

// False: it failed, or was dropped.
bool Engine::execute(const Descriptor& descriptor, bool in_batch) {
  Task task{descriptor, how((descriptor.flags() & kBlockOnFault) != 0), in_batch};
  task.ends(refusal(descriptor, in_batch));
  if (task.is(Status::kNone)) run(task);
  if (cancelled()) return false;
  if (task.is(Status::kBadFlags)) task.done.special[0] = descriptor.flags() & ~kKnownFlags;
  finish(task);
  return task.is(Status::kSuccess);
}

Status Engine::refusal(const Descriptor& d, bool in_batch) {
  const auto opcode = static_cast<Opcode>(d.opcode());
  const bool lists = opcode == Opcode::kBatch;
  const bool known = d.opcode() < 32 && (kOpcodes & bit(d.opcode())) != 0;
  if (!known || (lists && in_batch)) return Status::kBadOpcode;
  if ((d.flags() & ~kKnownFlags) != 0) return Status::kBadFlags;
  if (d.reserved != 0 || (d.pasid & 0x7ff00000) != 0) return Status::kReservedSet;
  const bool rings = (d.flags() & kRequestInterrupt) != 0;
  if (rings && d.interrupt >= kEngineVectors) return Status::kBadInterrupt;
  if (opcode == Opcode::kNoop || opcode == Opcode::kDrain) return Status::kNone;
  if (lists && (d.size < 2 || d.size > 1u << kMaxBatchShift)) return Status::kBadCount;
  if (lists && d.source % sizeof(Descriptor) != 0) return Status::kListMisaligned;
  if (d.size == 0 || d.size > 1u << kMaxTransferShift) return Status::kBadSize;
  const u64 apart = std::max(d.source, d.destination) - std::min(d.source, d.destination);
  return opcode == Opcode::kMove && apart < d.size ? Status::kOverlap : Status::kNone;
}

void Engine::run(Task& task) {
  switch (static_cast<Opcode>(task.what.opcode())) {
    case Opcode::kBatch:
      return batch(task);
    case Opcode::kMove:
      return move(task);
    case Opcode::kFill:
      return fill(task);
    case Opcode::kCompare:
      return compare(task);
    case Opcode::kSum:
      return sum(task);
    default:  // everything before a drain has completed: one thing at a time
      return task.ends(Status::kSuccess);
  }
}

void fault(Task& task, const iommu::DmaAnswer& answer, bool write) {
  const auto status = static_cast<u8>(task.how.asks ? Status::kPageRefused : Status::kPageFault);
  task.done.status = write ? status | kFaultWasWrite : status;
  task.done.fault_info = static_cast<u8>(answer.reason);
  task.done.fault_address = answer.iova;
}

// A fence behind a failure ends it.
void Engine::batch(Task& task) {
  bool failed = false;
  Descriptor list[kFetch];
  for (u32 i = 0; i < task.what.size && !cancelled(); ++i) {
    if (i % kFetch == 0) {
      const u64 bytes = std::min(kFetch, task.what.size - i) * sizeof(Descriptor);
      if (!get(task, task.what.source + i * sizeof(Descriptor), list, bytes)) {
        return task.ends(Status::kBatchFault);
      }
    }
    const Descriptor& next = list[i % kFetch];
    if (failed && (next.flags() & kFence) != 0) break;
    failed = !execute(next, true) || failed;
    ++task.done.bytes;
  }
  task.ends(failed ? Status::kBatchFailed : Status::kSuccess);
}

bool Engine::get(Task& task, u64 from, void* to, u64 bytes) {
  const auto answer = channel_.read(from, to, bytes, task.how);
  if (answer.reason != FaultReason::kNone) fault(task, answer, false);
  return answer.reason == FaultReason::kNone;
}

void Engine::move(Task& task) {
  const Descriptor& d = task.what;
  for (u64 done = 0; done < d.size && !cancelled();) {
    const u64 some = std::min(kPiece, d.size - done);
    const auto copied = channel_.copy(d.destination + done, d.source + done, some, task.how);
    done += copied.answer.done;
    task.done.bytes = static_cast<u32>(done);
    if (copied.answer.done != some) return fault(task, copied.answer, copied.write);
  }
  task.ends(Status::kSuccess);
}

void Engine::fill(Task& task) {
  const Descriptor& d = task.what;
  u64 pattern[512];
  std::fill(std::begin(pattern), std::end(pattern), d.source);
  for (u64 done = 0; done < d.size && !cancelled();) {
    const u64 some = std::min<u64>(sizeof(pattern), d.size - done);
    const auto answer = channel_.write(d.destination + done, pattern, some, task.how);
    done += answer.done;
    task.done.bytes = static_cast<u32>(done);
    if (answer.done != some) return fault(task, answer, true);
  }
  task.ends(Status::kSuccess);
}

void Engine::compare(Task& task) {
  const Descriptor& d = task.what;
  u8 one[kPageSize], other[kPageSize];
  for (u64 done = 0; done < d.size && !cancelled() && task.done.result == 0; done += kPageSize) {
    const u64 some = std::min<u64>(kPageSize, d.size - done);
    if (!get(task, d.source + done, one, some)) return;
    if (!get(task, d.destination + done, other, some)) return;
    const u64 same = static_cast<u64>(std::mismatch(one, one + some, other).first - one);
    task.done.bytes = static_cast<u32>(done + same);
    task.done.result = same != some;
  }
  task.ends(Status::kSuccess);
}

void Engine::sum(Task& task) {
  u8 bytes[kPageSize];
  u32 value = ~static_cast<u32>(task.what.operation[0]);
  for (u64 done = 0; done < task.what.size && !cancelled(); done = task.done.bytes) {
    const u64 some = std::min<u64>(kPageSize, task.what.size - done);
    if (!get(task, task.what.source + done, bytes, some)) return;
    for (u64 i = 0; i < some; ++i) value = value >> 8 ^ kSums.of[(value ^ bytes[i]) & 0xff];
    task.done.bytes = static_cast<u32>(done + some);
  }
  task.done.special[0] = u32{~value};
  task.ends(Status::kSuccess);
}

void Engine::finish(const Task& task) {
  const u32 flags = task.what.flags();
  const bool wanted = (flags & kRequestCompletion) != 0 || !task.is(Status::kSuccess);
  if (wanted && !complete(task)) return;
  const bool rings = (flags & kRequestInterrupt) != 0 && task.what.interrupt < kEngineVectors;
  if (rings) interrupts_.raise(task.what.interrupt);
}

// The status comes last: who sees it sees the rest. (I2)
bool Engine::complete(const Task& task) {
  const u64 to = task.what.completion;
  if ((task.what.flags() & kCompletionValid) == 0) {
    if (task.is(Status::kSuccess)) return true;
    const auto status = static_cast<Status>(task.done.status & ~kFaultWasWrite);
    report(status, &task, task.done.fault_address, task.done.status >= kFaultWasWrite);
    return true;
  }
  if (to % sizeof(Completion) != 0) {
    report(Status::kCompletionMisaligned, &task, to, true);
    return false;
  }
  const auto* const record = reinterpret_cast<const u8*>(&task.done);
  auto answer = channel_.write(to + 8, record + 8, sizeof(Completion) - 8, how(true));
  if (answer.reason == FaultReason::kNone) answer = channel_.write(to, record, 8, how(true));
  if (answer.reason == FaultReason::kNone) return true;
  if (!cancelled()) report(Status::kCompletionFault, &task, answer.iova, true);
  return false;
}

// Into kSoftwareError, as the field's lies; what comes before the last was read is only counted.
void Engine::report(Status status, const Task* task, u64 address, bool write) {
  constexpr u64 kValid = 1, kOverflow = 2, kDescriptor = 4, kQueue = 8, kInBatch = 16, kWrote = 32;
  if ((state_.error[0].load(sync::kAcquire) & kValid) != 0) {
    state_.error[0].fetch_or(kOverflow);
  } else {
    u64 what = kValid | kQueue | u64{static_cast<u8>(status)} << 8 | (write ? kWrote : 0);
    if (task != nullptr) what |= kDescriptor | u64{task->what.opcode()} << 32;
    if (task != nullptr && task->in_batch) what |= kInBatch;
    what |= u64{state_.pasid.load(sync::kRelaxed)} << 40;
    state_.error[1].store(task != nullptr ? u64{task->what.flags()} << 32 : 0, sync::kRelease);
    state_.error[2].store(address, sync::kRelease);
    state_.error[0].store(what, sync::kRelease);
  }
  state_.cause.fetch_or(kCauseError);
  interrupts_.raise(0);
}

Result<Box<Model>> make_engine(const Type& type, const ModelContext& context) {
  return make_box<Engine>("vfio.dma_engine", type.name == "sva", context);
}

constexpr Type kTypes[] = {{"1", "Work queue, mapped memory", 1},
                           {"sva", "Work queue, own addresses", 1}};

}  // namespace

constinit const Parent kDmaEngine{.name = "dma-engine",
                                  .description = "copies, fills, compares and sums memory\n",
                                  .units = kEngineInstances,
                                  .counting = Counting::kCore,
                                  .source = 0x6d,
                                  .pasid_bits = 12,
                                  .types = kTypes,
                                  .make = make_engine};

}  // namespace stagetwo::vfio
