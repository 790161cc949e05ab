// SPDX-License-Identifier: Apache-2.0
#include "vfio/serial.h"

#include "vfio/interrupts.h"
#include "vfio/pci_config.h"

namespace stagetwo::vfio {
namespace {

enum Register : u64 { kData, kIer, kIirFcr, kLcr, kMcr, kLsr, kMsr, kScr, kRegisters };

constexpr u8 kIerReceived = 1, kIerTransmitter = 2, kIerLine = 4, kIerModem = 8;
constexpr u8 kIirNone = 1, kIirTransmitter = 2, kIirReceived = 4, kIirLine = 6, kIirTimeout = 12;
constexpr u8 kIirModem = 0, kIirFifos = 0xc0;
constexpr u8 kFcrEnable = 1, kFcrClearReceived = 2, kFcrClearSent = 4;
constexpr u8 kLcrDivisor = 0x80;
constexpr u8 kMcrDtr = 1, kMcrRts = 2, kMcrOut1 = 4, kMcrOut2 = 8, kMcrLoop = 16;
constexpr u8 kLsrReady = 1, kLsrOverrun = 2, kLsrEmpty = 0x60;  // both of the transmitter's
constexpr u8 kMsrCts = 0x10, kMsrDsr = 0x20, kMsrRing = 0x40, kMsrCarrier = 0x80;
constexpr u8 kTriggers[] = {1, 4, 8, 14};
constexpr u8 kDeepest = 16;

// One port, in shared memory. All zero: after power-on.
struct Port {
  u8 ier, fcr, lcr, mcr, scr;
  u8 first, count;  // of the FIFO
  u8 fifo[kDeepest];
  u8 overrun;        // since LSR was read
  u8 became_empty;   // since IIR told of it
  u8 modem_changes;  // low bits of MSR
  u16 divisor;

  [[nodiscard]] u8 depth() const { return (fcr & kFcrEnable) != 0 ? kDeepest : u8{1}; }
  [[nodiscard]] u8 trigger() const { return (fcr & kFcrEnable) != 0 ? kTriggers[fcr >> 6] : u8{1}; }
  [[nodiscard]] bool divides() const { return (lcr & kLcrDivisor) != 0; }
  [[nodiscard]] u8 modem_lines() const;
  [[nodiscard]] u8 cause() const;
  void send(u8 byte);
  u8 receive();
  void set_mcr(u8 value);
  void set_fcr(u8 value);
  void set_ier(u8 value);
};

// At the end of the line is the port itself, ready; with MCR's loop its own outputs.
u8 Port::modem_lines() const {
  if ((mcr & kMcrLoop) == 0) return kMsrCts | kMsrDsr | kMsrCarrier;
  u8 lines = 0;
  if ((mcr & kMcrRts) != 0) lines |= kMsrCts;
  if ((mcr & kMcrDtr) != 0) lines |= kMsrDsr;
  if ((mcr & kMcrOut1) != 0) lines |= kMsrRing;
  if ((mcr & kMcrOut2) != 0) lines |= kMsrCarrier;
  return lines;
}

// By priority.
u8 Port::cause() const {
  if ((ier & kIerLine) != 0 && overrun != 0) return kIirLine;
  if ((ier & kIerReceived) != 0 && count != 0) {
    return count >= trigger() ? kIirReceived : kIirTimeout;
  }
  if ((ier & kIerTransmitter) != 0 && became_empty != 0) return kIirTransmitter;
  if ((ier & kIerModem) != 0 && modem_changes != 0) return kIirModem;
  return kIirNone;
}

void Port::send(u8 byte) {
  if (count == depth()) {
    overrun = 1;
    return;
  }
  fifo[(first + count) % kDeepest] = byte;
  ++count;
  became_empty = 0;
}

u8 Port::receive() {
  if (count == 0) return 0;
  const u8 byte = fifo[first];
  first = static_cast<u8>((first + 1) % kDeepest);
  if (--count == 0) became_empty = 1;
  return byte;
}

void Port::set_mcr(u8 value) {
  const u8 before = modem_lines();
  mcr = value & 0x3f;
  modem_changes = static_cast<u8>(modem_changes | (before ^ modem_lines()) >> 4);
}

void Port::set_fcr(u8 value) {
  const bool switched = ((fcr ^ value) & kFcrEnable) != 0;
  fcr = value & 0xc9;
  if (switched || (value & (kFcrClearReceived | kFcrClearSent)) != 0) {
    count = 0;
    became_empty = 1;
  }
}

void Port::set_ier(u8 value) {
  const bool wants = (value & ~ier & kIerTransmitter) != 0;
  ier = value & 0x0f;
  if (wants && count == 0) became_empty = 1;
}

struct State {
  PciConfig config;
  u8 started;
  Port ports[2];
};
static_assert(sizeof(State) <= Model::kStateBytes);

constexpr u32 kBarBytes = 8;

class Serial final : public Model {
 public:
  Serial(unsigned ports, const ModelContext& context)
      : state_(*reinterpret_cast<State*>(context.state.data())),
        interrupts_(context.interrupts),
        ports_(ports) {
    for (unsigned i = 0; i < ports; ++i) {
      identity_.bars[i] = {kBarBytes, true};
      shape_.regions[i].size = kBarBytes;
    }
    shape_.regions[kConfigRegion].size = PciConfig::kBytes;
    shape_.vectors[kIntxIndex] = shape_.vectors[kMsiIndex] = 1;
    if (state_.started == 0) reset();
  }

  [[nodiscard]] const Shape& shape() const override { return shape_; }

  void read(unsigned region, u64 offset, std::span<u8> to) override {
    if (region == kConfigRegion) return state_.config.read(offset, to);
    for (size_t i = 0; i < to.size(); ++i) to[i] = read_port(state_.ports[region], offset + i);
    show_line();
  }
  void write(unsigned region, u64 offset, std::span<const u8> from) override {
    if (region == kConfigRegion) return state_.config.write(identity_, offset, from);
    for (size_t i = 0; i < from.size(); ++i) {
      write_port(state_.ports[region], offset + i, from[i]);
    }
    show_line();
  }
  void reset() override {
    state_.config.start(identity_);
    for (Port& port : state_.ports) port = {};
    state_.started = 1;
    show_line();
  }

 private:
  static u8 read_port(Port& port, u64 at);
  static void write_port(Port& port, u64 at, u8 value);
  void show_line() {
    bool up = false;
    for (unsigned i = 0; i < ports_; ++i) up = up || state_.ports[i].cause() != kIirNone;
    interrupts_.set_line(up);
  }

  PciIdentity identity_{.vendor = 0x4348,
                        .device = 0x3253,
                        .sub_vendor = 0x4348,
                        .sub_device = 0x3253,
                        .class_code = 0x070002,  // serial, 16550-compatible
                        .revision = 0x10,
                        .interrupt_pin = 1,
                        .bars = {}};
  Shape shape_;
  State& state_;
  Interrupts& interrupts_;
  unsigned ports_;
};

u8 Serial::read_port(Port& port, u64 at) {
  switch (at) {
    case kData:
      return port.divides() ? static_cast<u8>(port.divisor) : port.receive();
    case kIer:
      return port.divides() ? static_cast<u8>(port.divisor >> 8) : port.ier;
    case kIirFcr: {
      const u8 cause = port.cause();
      if (cause == kIirTransmitter) port.became_empty = 0;
      return (port.fcr & kFcrEnable) != 0 ? cause | kIirFifos : cause;
    }
    case kLcr:
      return port.lcr;
    case kMcr:
      return port.mcr;
    case kLsr: {
      u8 lsr = port.count == 0 ? kLsrEmpty : kLsrReady;
      if (port.overrun != 0) lsr |= kLsrOverrun;
      port.overrun = 0;
      return lsr;
    }
    case kMsr: {
      const u8 msr = port.modem_lines() | port.modem_changes;
      port.modem_changes = 0;
      return msr;
    }
    default:
      return port.scr;
  }
}

void Serial::write_port(Port& port, u64 at, u8 value) {
  switch (at) {
    case kData:
      if (!port.divides()) return port.send(value);
      port.divisor = static_cast<u16>((port.divisor & 0xff00) | value);
      return;
    case kIer:
      if (!port.divides()) return port.set_ier(value);
      port.divisor = static_cast<u16>((port.divisor & 0x00ff) | value << 8);
      return;
    case kIirFcr:
      return port.set_fcr(value);
    case kLcr:
      port.lcr = value;
      return;
    case kMcr:
      return port.set_mcr(value);
    case kScr:
      port.scr = value;
      return;
    default:  // LSR and MSR are the port's own
      return;
  }
}

Result<Box<Model>> make_serial(const Type& type, const ModelContext& context) {
  return make_box<Serial>("vfio.serial", type.units, context);
}

constexpr Type kTypes[] = {{"1", "Single port serial", 1}, {"2", "Dual port serial", 2}};

}  // namespace

constinit const Parent kSerial{.name = "serial",
                               .description = {},
                               .units = 24,
                               .counting = Counting::kDriver,
                               .source = 0,
                               .pasid_bits = 0,
                               .types = kTypes,
                               .make = make_serial};

}  // namespace stagetwo::vfio
