// SPDX-License-Identifier: Apache-2.0
#include "vfio/dma_engine.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "vfio/device_thread.h"
#include "vfio/dma.h"
#include "vfio/interrupts.h"
#include "vfio/pci_config.h"
#include "vfio/work_queue.h"

namespace stagetwo::vfio {
namespace {

namespace at = engine_register;
using iommu::FaultReason;

constexpr u32 kListed = 16, kMaxTransferShift = 31, kMaxBatchShift = 10;
constexpr u64 kPiece = 128 * 1024;
constexpr u32 kKnownFlags = kFence | kBlockOnFault | kCompletionValid | kRequestCompletion |
                            kRequestInterrupt | kCacheControl;
constexpr u32 kSays = kCompletionValid | kRequestCompletion;
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
  QueueShare queue;
  DeviceHalt halt;
  sync::Atomic<u32> cause, command_status, pasid;
  sync::Atomic<u64> error[3];  // as in the register: what, batch and flags, address
};
static_assert(sizeof(State) <= Model::kStateBytes);

// A descriptor and what becomes of it.
struct Task {
  const Descriptor& what;
  DmaHow how;
  bool in_batch;
  Completion done{};
  bool posted = false;  // the record is written already
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
  // ---- the client's calls, under the device's lock
  [[nodiscard]] u64 word_at(u64 offset) const;
  void write_register(u64 offset, u32 value);
  void command(u32 value);
  void submit(const Descriptor& descriptor);
  // ---- the thread's
  void begins() override;
  bool work() override;
  void falls_asleep() override { queue_.say_asleep(true); }
  void wakes_up() override { queue_.say_asleep(false); }
  void in_child() override { queue_.in_child(); }
  iommu::DmaEngine::Moved move_ahead(std::span<const Descriptor> list);
  bool execute(const Descriptor& descriptor, bool in_batch = false, u64 bytes = 0);
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

  State& state_;
  WorkQueue queue_;
  Interrupts& interrupts_;
  Dma& dma_;
  DmaChannel channel_;  // the thread's
  const bool shares_addresses_;
  Shape shape_;
  DeviceThread thread_{*this, &state_.halt};
};

Engine::Engine(bool shares_addresses, const ModelContext& context)
    : state_(*reinterpret_cast<State*>(context.state.data())),
      queue_(context.memory.data() + kRingMemory, state_.queue),
      interrupts_(context.interrupts),
      dma_(context.dma),
      channel_(context.dma),
      shares_addresses_(shares_addresses) {
  shape_.regions[0] = {kPageSize};
  shape_.regions[2] = {kPageSize, kPortal};
  shape_.regions[4] = {kRingBytes, kRing};
  shape_.regions[kConfigRegion] = {PciConfig::kBytes};
  shape_.vectors[kMsixIndex] = kEngineVectors;
  shape_.vectors[kRequestIndex] = 1;  // who has it open hears that it is to go
  channel_.set_cancel(thread_.cancel());
  reset();  // whoever had it before leaves nothing behind
}

void Engine::read(unsigned region, u64 offset, std::span<u8> to) {
  if (region == kConfigRegion) return state_.config.read(offset, to);
  if (region == 4) return queue_.read_ring(offset, to);
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
      return WorkQueue::kPlaces | 1 << 16 | u64{1} << 49 | u64{shares_addresses_} << 55;
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
  if (region == 4) return queue_.write_ring(offset, from);
  if (region == 0) {
    u32 value = 0;
    std::memcpy(&value, from.data(), std::min(from.size(), sizeof(value)));
    return write_register(offset, value);
  }
  const Descriptor* const whole = queue_.write_portal(offset, from);
  if (whole != nullptr) submit(*whole);
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
    queue_.discard();
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
  queue_.reset();
  state_.cause.store(0, sync::kRelease);
  state_.command_status.store(0, sync::kRelease);
  if (!shares_addresses_) state_.pasid.store(dma_.pasid().value_or(0), sync::kRelease);
  for (auto& word : state_.error) word.store(0, sync::kRelease);
  thread_.resume();
}

void Engine::submit(const Descriptor& descriptor) {
  if (thread_.start() && queue_.put(descriptor)) return thread_.wake();
  const Task task{descriptor, {}, false};
  report(Status::kQueueFull, &task, 0, false);
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
  Descriptor taken[WorkQueue::kTaken];
  bool overrun = false;
  const u32 some = queue_.take(taken, &overrun);
  for (u32 i = 0; i < some && !cancelled();) {
    const auto ahead = move_ahead({taken + i, some - i});
    i += ahead.moves;
    if (i < some && !cancelled()) execute(taken[i++], false, ahead.bytes);
  }
  if (overrun) report(Status::kBadCount, nullptr, 0, false);
  if (some != 0 || overrun) return true;
  // A drain: there is nothing before it any more. Else the other finishes it.
  if (thread_.others_work()) return false;
  u32 active = kActive;
  if (!state_.command_status.compare_exchange(active, 0)) return false;
  state_.cause.fetch_or(kCauseCommand);
  interrupts_.raise(0);
  return true;
}

namespace {

// Everything that a move can ask for but an interrupt.
bool is_plain(const Descriptor& d) {
  const bool says = (d.flags() & (kSays | kRequestInterrupt)) == kSays;
  return d.opcode() == static_cast<u8>(Opcode::kMove) && says &&
         d.completion % sizeof(Completion) == 0;
}

std::array<u64, 4> success_of(const Descriptor& d) {
  Completion success{};
  success.status = static_cast<u8>(Status::kSuccess);
  success.bytes = d.size;
  return success.words();
}

}  // namespace

// Those that the list begins with and that go without a look between: one way to memory for all of
// them. What it answers is done.
iommu::DmaEngine::Moved Engine::move_ahead(std::span<const Descriptor> list) {
  iommu::DmaEngine::Move moves[WorkQueue::kTaken];
  std::array<u64, 4> words[WorkQueue::kTaken];
  unsigned plain = 0;
  for (const Descriptor& d : list) {
    if (!is_plain(d) || refusal(d, false) != Status::kNone) break;
    words[plain] = success_of(d);
    moves[plain] = {d.destination, d.source, d.size, {d.completion, words[plain].data()}};
    ++plain;
  }
  if (plain == 0) return {};
  return channel_.move_known({moves, plain}, how(false));
}

// False: it failed, or was dropped. `bytes` of a move are done already.
bool Engine::execute(const Descriptor& descriptor, bool in_batch, u64 bytes) {
  Task task{descriptor, how((descriptor.flags() & kBlockOnFault) != 0), in_batch};
  task.done.bytes = static_cast<u32>(bytes);
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
  if (d.has_reserved()) return Status::kReservedSet;
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
  Descriptor list[kListed];
  for (u32 i = 0; i < task.what.size && !cancelled(); ++i) {
    if (i % kListed == 0) {
      const u64 bytes = std::min(kListed, task.what.size - i) * sizeof(Descriptor);
      if (!get(task, task.what.source + i * sizeof(Descriptor), list, bytes)) {
        return task.ends(Status::kBatchFault);
      }
    }
    const Descriptor& next = list[i % kListed];
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

// The record of success goes with the last piece: one way to memory less.
void Engine::move(Task& task) {
  const Descriptor& d = task.what;
  const auto words = success_of(d);
  const iommu::DmaEngine::Record record{d.completion, words.data()};
  const bool says = (d.flags() & kSays) == kSays && d.completion % sizeof(Completion) == 0;
  for (u64 done = task.done.bytes; done < d.size && !cancelled();) {
    const u64 some = std::min(kPiece, d.size - done);
    const bool last = done + some == d.size;
    const auto copied = channel_.copy(d.destination + done, d.source + done, some, task.how,
                                      says && last ? &record : nullptr);
    done += copied.answer.done;
    task.posted = copied.posted;
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
    value = crc32c(value, bytes, some);
    task.done.bytes = static_cast<u32>(done + some);
  }
  task.done.special[0] = u32{~value};
  task.ends(Status::kSuccess);
}

void Engine::finish(const Task& task) {
  const u32 flags = task.what.flags();
  const bool wanted = (flags & kRequestCompletion) != 0 || !task.is(Status::kSuccess);
  if (wanted && !task.posted && !complete(task)) return;
  const bool rings = (flags & kRequestInterrupt) != 0 && task.what.interrupt < kEngineVectors;
  if (rings) interrupts_.raise(task.what.interrupt);
}

// (I2)
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
  const auto words = task.done.words();
  const auto answer = channel_.post({to, words.data()}, how(true));
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
