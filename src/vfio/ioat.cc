// SPDX-License-Identifier: Apache-2.0
#include "vfio/ioat.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/process_page.h"
#include "vfio/device_thread.h"
#include "vfio/dma.h"
#include "vfio/interrupts.h"
#include "vfio/pci_config.h"

namespace stagetwo::vfio {
namespace {

using namespace ioat;

// The registers as BAR0 shows them, at the beginning of the device's memory: clients that have
// mapped it load them from there. The rest of the BAR reads as zeros and takes nothing.
struct Registers {
  u8 chan_cnt, xfer_cap, gen_ctrl, intr_ctrl;
  u32 attn_status;
  u8 cb_ver;
  u8 reserved1[7];
  u32 dma_cap;
  u8 reserved2[0x6c];
  u16 chan_ctrl;
  u16 dma_comp;
  u8 chan_cmd;
  u8 reserved3;
  u16 dma_count;
  u64 chan_sts;
  u64 chain_addr;
  u64 chan_cmp;
  u64 current;
  u32 chan_err;
  u32 chan_err_mask;
};
static_assert(offsetof(Registers, dma_cap) == kDmaCap);
static_assert(offsetof(Registers, chan_ctrl) == kChanCtrl);
static_assert(offsetof(Registers, dma_count) == kDmaCount);
static_assert(offsetof(Registers, chan_err_mask) == kChanErrMask);

// What no register shows.
struct State {
  PciConfig config;
  DeviceHalt halt;
  sync::Atomic<u32> server;  // the process whose thread walks the chain
  u8 started;
  u8 interrupting;  // until the client arms it again
  u16 done;         // descriptors of the chain
  u32 chan_err_int, uncorrectable;
  u64 next;  // the one to be done next
  u64 last;  // the one that was done last; 0: none of the chain
};
static_assert(sizeof(State) <= Model::kStateBytes);

constexpr u64 kStateMask = 7;
constexpr MappedArea kMapped[] = {{0, kBarBytes, 0, true}};

// MSI-X: one vector, its table at 0x2000 of BAR0. MSI: one, with an address of 64 bits. PCI
// Express: an integrated endpoint, version 2.
constexpr u8 kMsix[] = {0x11, 0, 0, 0, 0x00, 0x20, 0, 0, 0x00, 0x30, 0, 0};
constexpr u8 kMsi[] = {0x05, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
constexpr u8 kMsiWritable[] = {0,    0,    0x01, 0,    0xfc, 0xff, 0xff, 0xff,
                               0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0,    0};
constexpr u8 kExpress[60] = {0x10, 0, 0x92, 0, 0x00, 0x80, 0, 0};
constexpr PciCapability kCapabilities[] = {
    {0x40, kMsi, kMsiWritable}, {0x80, kMsix, {}}, {0x90, kExpress, {}}};

constexpr PciIdentity kIdentity{.vendor = 0x8086,
                                .device = 0x2021,
                                .sub_vendor = 0x8086,
                                .sub_device = 0x0000,
                                .class_code = 0x088000,  // a system peripheral, of no known kind
                                .revision = 0x04,
                                .interrupt_pin = 1,
                                .bars = {{kBarBytes, false, true}},
                                .capabilities = kCapabilities};

class Ioat final : public Model, DeviceThread::Work {
 public:
  explicit Ioat(const ModelContext& context)
      : state_(*reinterpret_cast<State*>(context.state.data())),
        registers_(*reinterpret_cast<Registers*>(context.memory.data())),
        interrupts_(context.interrupts),
        channel_(context.dma) {
    channel_.set_cancel(thread_.cancel());
    shape_.regions[0] = {kBarBytes, kMapped};
    shape_.regions[kConfigRegion].size = kConfigBytes;
    shape_.vectors[kIntxIndex] = shape_.vectors[kMsiIndex] = shape_.vectors[kMsixIndex] = 1;
    shape_.vectors[kErrorIndex] = shape_.vectors[kRequestIndex] = 1;
    shape_.function = true;
    shape_.msix_region = 0;
    if (state_.started == 0) first_open();
  }
  ~Ioat() override { thread_.stop(); }

  [[nodiscard]] const Shape& shape() const override { return shape_; }
  void read(unsigned region, u64 offset, std::span<u8> to) override;
  void write(unsigned region, u64 offset, std::span<const u8> from) override;
  // The configuration stays: who resets a function by VFIO finds it saved and restored.
  void reset() override;
  void first_open() override {
    state_.config.start(kIdentity);
    reset();
  }

 private:
  static constexpr size_t kPiece = 4096;
  // No piece of work is under way while it lives.
  class Paused {
   public:
    explicit Paused(DeviceThread& thread) : thread_(thread) { thread.pause(); }
    ~Paused() { thread_.resume(); }
    Paused(const Paused&) = delete;
    Paused& operator=(const Paused&) = delete;

   private:
    DeviceThread& thread_;
  };

  u32* extended(u64 offset);
  void take(u64 offset, std::span<const u8> from);
  void command(u8 value);
  void begin_chain();
  void ring(u16 count);
  void ask_for(u16 count);
  // ---- the thread's
  bool work() override;
  void do_next();
  u32 do_descriptor(const Descriptor& descriptor);
  u32 copy(const Descriptor& descriptor);
  u32 fill(const Descriptor& descriptor);
  void halt(u32 error);
  bool write_completion(u64 status);
  void interrupt();
  void show_line();

  // A register that clients load while the thread stores it, or the other way round.
  template <typename T>
  static sync::Atomic<T>& shared(T& field) {
    return reinterpret_cast<sync::Atomic<T>&>(field);
  }
  [[nodiscard]] u64 status() const { return shared(registers_.chan_sts).load() & kStateMask; }
  void show(u64 status) { shared(registers_.chan_sts).store(state_.last | status); }
  [[nodiscard]] u16 count() const { return shared(registers_.dma_count).load(); }
  [[nodiscard]] bool reads(u64 iova, void* to, u64 bytes) {
    return is_master() && channel_.read(iova, to, bytes).done == bytes;
  }
  [[nodiscard]] bool writes(u64 iova, const void* from, u64 bytes) {
    return is_master() && channel_.write(iova, from, bytes).done == bytes;
  }
  [[nodiscard]] bool is_master() const {
    return (state_.config.command() & PciConfig::kCommandMaster) != 0;
  }

  Shape shape_;
  State& state_;
  Registers& registers_;
  Interrupts& interrupts_;
  DmaChannel channel_;  // the thread's
  u8 piece_[kPiece];    // on its way
  DeviceThread thread_{*this, &state_.halt};
};

void Ioat::reset() {
  const Paused paused(thread_);
  registers_ = {};
  registers_.chan_cnt = 1;
  registers_.xfer_cap = kXferCapLog2;
  registers_.cb_ver = kVersion;
  registers_.dma_cap = kCanFill;
  state_.started = 1;
  state_.interrupting = 0;
  state_.done = 0;
  state_.chan_err_int = state_.uncorrectable = 0;
  state_.next = state_.last = 0;
  show(kHalted);
  show_line();
}

// ---- accesses

u32* Ioat::extended(u64 offset) {
  if (offset == kUncorrectable) return &state_.uncorrectable;
  return offset == kChanErrInt ? &state_.chan_err_int : nullptr;
}

void Ioat::read(unsigned region, u64 offset, std::span<u8> to) {
  if (region == kConfigRegion && offset < PciConfig::kBytes) return state_.config.read(offset, to);
  std::memset(to.data(), 0, to.size());
  if (region == kConfigRegion) {
    const u32* const word = extended(offset & ~u64{3});
    const size_t at = offset % 4;
    if (word != nullptr) {
      std::memcpy(to.data(), reinterpret_cast<const u8*>(word) + at, std::min(to.size(), 4 - at));
    }
  } else if (offset + to.size() <= sizeof(Registers)) {
    u8* const at = reinterpret_cast<u8*>(&registers_) + offset;
    const auto load = [&]<typename T>(T value) {
      value = shared(*reinterpret_cast<T*>(at)).load();
      std::memcpy(to.data(), &value, sizeof(value));
    };
    if (to.size() == 1) load(u8{});
    if (to.size() == 2) load(u16{});
    if (to.size() == 4) load(u32{});
  }
}

// A doorbell waits for nobody; else what is under way, one descriptor at most, ends first.
void Ioat::write(unsigned region, u64 offset, std::span<const u8> from) {
  if (region == 0 && offset == kDmaCount && from.size() == sizeof(u16)) {
    u16 count = 0;
    std::memcpy(&count, from.data(), sizeof(count));
    return ring(count);
  }
  const Paused paused(thread_);
  if (region == 0) return take(offset, from);
  if (offset < PciConfig::kBytes) {
    state_.config.write(kIdentity, offset, from);
    return show_line();
  }
  // Errors are cleared by ones.
  u32* const word = extended(offset & ~u64{3});
  for (size_t i = 0; word != nullptr && i < from.size(); ++i) {
    *word &= ~(u32{from[i]} << (8 * ((offset + i) % 4)));
  }
}

// What is written to the registers, byte by byte where they are narrower than the access.
void Ioat::take(u64 offset, std::span<const u8> from) {
  auto* const image = reinterpret_cast<u8*>(&registers_);
  bool chain = false, count = false;
  for (size_t i = 0; i < from.size(); ++i) {
    const u64 at = offset + i;
    const u8 value = from[i];
    const auto is_of = [at](u64 reg, u64 bytes) { return at >= reg && at < reg + bytes; };
    if (at == kIntrCtrl) {
      registers_.intr_ctrl =
          static_cast<u8>((registers_.intr_ctrl & ~(kMasterEnable | kMsixEnable)) |
                          (value & (kMasterEnable | kMsixEnable)));
      show_line();
    } else if (at == kChanCmd) {
      command(value);
    } else if (is_of(kChanErr, 4)) {
      image[at] = static_cast<u8>(image[at] & ~value);
    } else if (is_of(kChanCtrl, 2) || is_of(kChanCmp, 8) || is_of(kChanErrMask, 4) ||
               is_of(kChainAddr, 8) || is_of(kDmaCount, 2)) {
      image[at] = value;
      chain = chain || is_of(kChainAddr, 8);
      count = count || is_of(kDmaCount, 2);
      if (at == kChanCtrl && (value & kRearm) != 0) {
        image[at] = static_cast<u8>(value & ~kRearm);
        state_.interrupting = 0;
        registers_.attn_status = 0;
        show_line();
      }
    }
  }
  if (chain) begin_chain();
  if (count) ask_for(registers_.dma_count);
}

void Ioat::command(u8 value) {
  if ((value & kCmdReset) != 0) {
    state_.done = 0;
    state_.last = 0;
    registers_.dma_count = 0;
    return show(kHalted);
  }
  if ((value & kCmdSuspend) != 0 && status() != kHalted && status() != kArmed) show(kSuspended);
  if ((value & kCmdResume) != 0 && status() == kSuspended) {
    show(kIdle);
    ask_for(registers_.dma_count);
  }
}

// ---- the chain

// Of an address that is written in two halves each begins a chain, and nothing runs between them.
void Ioat::begin_chain() {
  if (registers_.chan_err != 0) return;
  state_.done = 0;
  state_.last = 0;
  state_.next = registers_.chain_addr;
  registers_.dma_count = 0;
  show(kArmed);
}

// Of two processes that have it open, the one that asked last works.
void Ioat::ring(u16 count) {
  if (state_.server.load() == process_stamp()) return ask_for(count);
  const Paused paused(thread_);
  ask_for(count);
}

// Pre: this process serves, or the threads are paused. The thread may be at the chain: it finds the
// new count, or has shown that it is idle.
void Ioat::ask_for(u16 count) {
  state_.server.store(process_stamp());
  shared(registers_.dma_count).store(count);
  u64 seen = shared(registers_.chan_sts).load();
  const u64 was = seen & kStateMask;
  if (was == kHalted || was == kSuspended) return;
  if (was != kActive) {
    shared(registers_.chan_sts).compare_exchange(seen, (seen & ~kStateMask) | kActive);
  }
  if (thread_.start()) return thread_.wake();
  while (work()) {  // there is no thread to be had: as it can be
  }
}

// ---- the thread

// False: there is nothing to do.
bool Ioat::work() {
  if (state_.server.load() != process_stamp() || status() != kActive) return false;
  if (state_.done != count()) {
    do_next();
  } else {
    // Who asks for more meanwhile finds it idle, or is found by the next look.
    show(kIdle);
    if (state_.done != count()) show(kActive);
  }
  return true;
}

void Ioat::do_next() {
  Descriptor descriptor;
  shared(registers_.current).store(state_.next);
  if (state_.next % sizeof(descriptor) != 0) return halt(state_.done == 0 ? kBadChain : kBadNext);
  if (!reads(state_.next, &descriptor, sizeof(descriptor))) return halt(kReadError);
  if (const u32 error = do_descriptor(descriptor); error != 0) return halt(error);
  ++state_.done;
  state_.last = state_.next;
  state_.next = descriptor.next;
  const bool says = (descriptor.control & kWritesCompletion) != 0;
  const u64 is = state_.done == count() ? kIdle : kActive;
  if (says && !write_completion(is)) return halt(kBadCompletion);
  if ((descriptor.control & kInterrupts) != 0) interrupt();
  show(kActive);  // work() says when it is idle
}

// Answers the error, or 0.
u32 Ioat::do_descriptor(const Descriptor& descriptor) {
  const u32 operation = descriptor.control >> kOpShift;
  if (operation != kCopy && operation != kFill) return kBadControl;
  if ((descriptor.control & kNull) != 0) return 0;
  if (descriptor.size == 0 || descriptor.size > u32{1} << kXferCapLog2) return kBadLength;
  return operation == kCopy ? copy(descriptor) : fill(descriptor);
}

u32 Ioat::copy(const Descriptor& descriptor) {
  for (u64 at = 0; at < descriptor.size;) {
    const u64 bytes = std::min<u64>(kPiece, descriptor.size - at);
    if (!reads(descriptor.source + at, piece_, bytes)) return kBadSource;
    if (!writes(descriptor.destination + at, piece_, bytes)) return kBadDestination;
    at += bytes;
  }
  return 0;
}

// The pattern stands where a copy has its source.
u32 Ioat::fill(const Descriptor& descriptor) {
  for (size_t i = 0; i < kPiece; i += sizeof(descriptor.source)) {
    std::memcpy(piece_ + i, &descriptor.source, sizeof(descriptor.source));
  }
  for (u64 at = 0; at < descriptor.size;) {
    const u64 bytes = std::min<u64>(kPiece, descriptor.size - at);
    if (!writes(descriptor.destination + at, piece_, bytes)) return kBadDestination;
    at += bytes;
  }
  return 0;
}

void Ioat::halt(u32 error) {
  shared(registers_.chan_err).fetch_or(error);
  if ((registers_.chan_ctrl & kErrorCompletion) != 0 && error != kBadCompletion &&
      !write_completion(kHalted)) {
    shared(registers_.chan_err).fetch_or(kBadCompletion);
  }
  show(kHalted);
  if ((registers_.chan_ctrl & kErrorInterrupt) != 0) interrupt();
}

bool Ioat::write_completion(u64 status) {
  const u64 told = state_.last | status;
  return registers_.chan_cmp % sizeof(told) == 0 &&
         writes(registers_.chan_cmp, &told, sizeof(told));
}

// ---- interrupts

void Ioat::interrupt() {
  state_.interrupting = 1;
  shared(registers_.attn_status).store(1);
  show_line();
}

void Ioat::show_line() {
  const bool enabled = (registers_.intr_ctrl & (kMasterEnable | kMsixEnable)) != 0;
  const bool up = enabled && state_.interrupting != 0;
  const u8 kept = registers_.intr_ctrl & (kMasterEnable | kMsixEnable);
  const int now = kept | (state_.interrupting != 0 ? kIntStatus : 0) | (up ? kInterrupting : 0);
  shared(registers_.intr_ctrl).store(static_cast<u8>(now));
  interrupts_.set_line(up, (state_.config.command() & PciConfig::kCommandNoIntx) != 0);
}

Result<Box<Model>> make_ioat(const Type&, const ModelContext& context) {
  return make_box<Ioat>("vfio.ioat", context);
}

constexpr Type kTypes[] = {{"cbdma", "I/OAT DMA channel, Skylake-E (8086:2021)", 1}};

}  // namespace

constinit const Parent kIoat{.name = "ioat",
                             .description = {},
                             .units = 8,
                             .counting = Counting::kDriver,
                             .source = 0x0020,
                             .pasid_bits = 20,
                             .function = &kIdentity,
                             .types = kTypes,
                             .make = make_ioat};

}  // namespace stagetwo::vfio
