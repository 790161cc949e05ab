// SPDX-License-Identifier: Apache-2.0
#include "vfio/dma_engine.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "vfio/interrupts.h"
#include "vfio/queue_device.h"

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
// Shared by all processes.
struct State {
  QueueDevice::Shared device;
  sync::Atomic<u32> cause, command_status;
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

class Engine final : public QueueDevice {
 public:
  Engine(Addresses addresses, const ModelContext& context)
      : QueueDevice(kIdentity, kEngineVectors, addresses, context),
        state_(*reinterpret_cast<State*>(context.state.data())) {
    reset();
  }
  ~Engine() override { stop(); }

 private:
  // ---- the client's calls
  [[nodiscard]] u64 word_at(u64 offset) const override;
  void write_register(u64 offset, u32 value) override;
  void clear_registers() override;
  void is_full(const void* descriptor) override;
  void command(u32 value);
  // ---- the thread's
  void serve(const void* list, u32 count) override;
  void overran() override { report(Status::kBadCount, nullptr, 0, false); }
  void unbound(const void* list, u32 count, int error) override;
  bool drained() override;
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
  template <typename F>
  void in_pieces(Task& task, u64 most, F&& piece);
  void finish(const Task& task);
  bool complete(const Task& task);
  void report(Status status, const Task* task, u64 address, bool write);

  State& state_;
};

u64 Engine::word_at(u64 offset) const {
  const struct {
    u64 offset, value;
  } words[] = {{at::kVersion, 0x100},
               // Blocks on faults, takes commands.
               {at::kGenCap, 1 | 1 << 4 | kMaxTransferShift << 16 | kMaxBatchShift << 21},
               // One, dedicated; page requests where addresses are shared.
               {at::kQueueCap, WorkQueue::kPlaces | 1 << 16 | u64{1} << 49 |
                                   u64{addresses_ == Addresses::kOwn} << 55},
               {at::kOpCap, kOpcodes},
               {at::kGenStatus, 1},  // enabled
               {at::kIntCause, state_.cause.load(sync::kAcquire)},
               {at::kCommandStatus, state_.command_status.load(sync::kAcquire)},
               {at::kCommandCap, kDrains | kAborts | bit(kResetDevice)},
               {at::kSoftwareError, state_.error[0].load(sync::kAcquire)},
               {at::kSoftwareError + 8, state_.error[1].load(sync::kAcquire)},
               {at::kSoftwareError + 16, state_.error[2].load(sync::kAcquire)}};
  const auto* const found =
      std::ranges::find(words, offset, [](auto& word) { return word.offset; });
  return found != std::end(words) ? found->value : 0;
}

void Engine::write_register(u64 offset, u32 value) {
  if (offset == at::kIntCause) state_.cause.fetch_and(~value);
  if (offset == at::kCommand) command(value);
  if (offset == at::kSoftwareError && (value & 1) != 0) state_.error[0].store(0, sync::kRelease);
}

void Engine::command(u32 value) {
  const u32 which = value >> 20 & 31;
  u32 status = 0;
  if (which == kResetDevice) {
    reset();
  } else if ((kAborts & bit(which)) != 0) {
    discard();
  } else if ((kDrains & bit(which)) == 0) {
    status = kBadCommand;
  } else {
    state_.command_status.store(kActive, sync::kRelease);  // the thread's to take away
    if (look()) return;
  }
  state_.command_status.store(status, sync::kRelease);
  state_.cause.fetch_or(kCauseCommand);
  interrupts_.raise(0);
}

void Engine::clear_registers() {
  state_.cause.store(0, sync::kRelease);
  state_.command_status.store(0, sync::kRelease);
  for (auto& word : state_.error) word.store(0, sync::kRelease);
}

void Engine::is_full(const void* descriptor) {
  const Task task{*static_cast<const Descriptor*>(descriptor), {}, false};
  report(Status::kQueueFull, &task, 0, false);
}

// ---- the thread

void Engine::serve(const void* list, u32 count) {
  const std::span taken(static_cast<const Descriptor*>(list), count);
  for (u32 i = 0; i < count && !cancelled();) {
    const auto ahead = move_ahead(taken.subspan(i));
    i += ahead.moves;
    if (i < count && !cancelled()) execute(taken[i++], false, ahead.bytes);
  }
}

// There is no memory that a record could be written to.
void Engine::unbound(const void* list, u32 count, int error) {
  for (const Descriptor& d : std::span(static_cast<const Descriptor*>(list), count)) {
    const Task task{d, {}, false};
    report(Status::kNotBound, &task, static_cast<u64>(error), false);
  }
}

// There is nothing before a drain any more.
bool Engine::drained() {
  u32 active = kActive;
  if (!state_.command_status.compare_exchange(active, 0)) return false;
  state_.cause.fetch_or(kCauseCommand);
  interrupts_.raise(0);
  return true;
}

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
  const auto opcode = static_cast<Opcode>(task.what.opcode());
  if (opcode == Opcode::kBatch) return batch(task);
  if (opcode == Opcode::kMove) return move(task);
  if (opcode == Opcode::kFill) return fill(task);
  if (opcode == Opcode::kCompare) return compare(task);
  if (opcode == Opcode::kSum) return sum(task);
  task.ends(Status::kSuccess);  // everything before a drain has completed: one thing at a time
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

// A fault has said why a piece was not done whole.
template <typename F>
void Engine::in_pieces(Task& task, u64 most, F&& piece) {
  const u64 done = QueueDevice::in_pieces(task.done.bytes, task.what.size, most, piece);
  task.done.bytes = static_cast<u32>(done);
  if (task.is(Status::kNone)) task.ends(Status::kSuccess);
}

// The record of success goes with the last piece: one way to memory less.
void Engine::move(Task& task) {
  const Descriptor& d = task.what;
  const auto words = success_of(d);
  const iommu::DmaEngine::Record record{d.completion, words.data()};
  const bool says = (d.flags() & kSays) == kSays && d.completion % sizeof(Completion) == 0;
  in_pieces(task, kPiece, [&](u64 done, u64 some) {
    const bool last = done + some == d.size;
    const auto copied = channel_.copy(d.destination + done, d.source + done, some, task.how,
                                      says && last ? &record : nullptr);
    task.posted = copied.posted;
    if (copied.answer.done != some) fault(task, copied.answer, copied.write);
    return copied.answer.done;
  });
}

void Engine::fill(Task& task) {
  u64 pattern[512];
  std::fill(std::begin(pattern), std::end(pattern), task.what.source);
  in_pieces(task, sizeof(pattern), [&](u64 done, u64 some) {
    const auto answer = channel_.write(task.what.destination + done, pattern, some, task.how);
    if (answer.done != some) fault(task, answer, true);
    return answer.done;
  });
}

void Engine::compare(Task& task) {
  u8 one[kPageSize], other[kPageSize];
  in_pieces(task, kPageSize, [&](u64 done, u64 some) {
    if (!get(task, task.what.source + done, one, some)) return u64{0};
    if (!get(task, task.what.destination + done, other, some)) return u64{0};
    const u64 same = static_cast<u64>(std::mismatch(one, one + some, other).first - one);
    task.done.result = same != some;
    return same;
  });
}

void Engine::sum(Task& task) {
  u8 bytes[kPageSize];
  u32 value = ~static_cast<u32>(task.what.operation[0]);
  in_pieces(task, kPageSize, [&](u64 done, u64 some) {
    if (!get(task, task.what.source + done, bytes, some)) return u64{0};
    value = crc32c(value, bytes, some);
    return some;
  });
  if (task.is(Status::kSuccess)) task.done.special[0] = u32{~value};
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
  if (!cancelled())
    report(Status::kCompletionFault, &task, to, true);  // whole, whatever word failed
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
    what |= u64{pasid()} << 40;
    state_.error[1].store(task != nullptr ? u64{task->what.flags()} << 32 : 0, sync::kRelease);
    state_.error[2].store(address, sync::kRelease);
    state_.error[0].store(what, sync::kRelease);
  }
  state_.cause.fetch_or(kCauseError);
  interrupts_.raise(0);
}

Result<Box<Model>> make_engine(const Type& type, const ModelContext& context) {
  using enum QueueDevice::Addresses;
  return make_box<Engine>("vfio.dma_engine", type.name == "sva" ? kOwn : kMapped, context);
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
