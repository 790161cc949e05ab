// SPDX-License-Identifier: Apache-2.0
#pragma once

// A device that notes what is stored to its registers, shows it to loads, and moves bytes by DMA
// when it is told to. Region 0: a page of registers, trapped; a page nobody maps; a page of memory.

#include <cstring>

#include "vfio/dma.h"
#include "vfio/interrupts.h"
#include "vfio/mdev.h"

namespace stagetwo::test {

struct Stored {
  u64 offset, value;
  u32 bytes;
};
struct RegisterState {
  u32 count;
  u32 resets;
  u32 first_opens;
  Stored stored[64];
};

class RegisterDevice final : public vfio::Model {
 public:
  // Of the process's last one.
  static inline const RegisterState* state = nullptr;
  static inline vfio::Dma* dma = nullptr;
  static inline vfio::Interrupts* interrupts = nullptr;
  static inline void (*on_write)() = nullptr;

  explicit RegisterDevice(const vfio::ModelContext& context)
      : state_(*reinterpret_cast<RegisterState*>(context.state.data())), memory_(context.memory) {
    state = &state_;
    dma = &context.dma;
    interrupts = &context.interrupts;
    shape_.regions[0] = {3 * kPageSize, kAreas};
    shape_.regions[2] = {kPageSize, kWhole};
    shape_.vectors[vfio::kMsiIndex] = 2;
    shape_.vectors[vfio::kRequestIndex] = 1;
  }
  [[nodiscard]] const vfio::Shape& shape() const override { return shape_; }
  void read(unsigned region, u64 offset, std::span<u8> to) override {
    std::memcpy(to.data(), memory_.data() + (region == 2 ? 2 * kPageSize : 0) + offset, to.size());
  }
  void write(unsigned region, u64 offset, std::span<const u8> from) override {
    if (region != 0) return;
    Stored one{offset, 0, static_cast<u32>(from.size())};
    std::memcpy(&one.value, from.data(), from.size());
    if (state_.count < 64) state_.stored[state_.count++] = one;
    std::memcpy(memory_.data() + offset, from.data(), from.size());
    if (on_write != nullptr) on_write();
  }
  void reset() override { ++state_.resets; }
  void first_open() override { ++state_.first_opens; }

 private:
  static constexpr vfio::MappedArea kAreas[] = {{0, kPageSize, 0, true},
                                                {2 * kPageSize, kPageSize, kPageSize, false}};
  static constexpr vfio::MappedArea kWhole[] = {{0, kPageSize, 2 * kPageSize, false}};
  vfio::Shape shape_;
  RegisterState& state_;
  std::span<u8> memory_;
};

inline constexpr vfio::Type kRegisterTypes[] = {{"a", "Registers", 1}};
inline Result<Box<vfio::Model>> make_registers(const vfio::Type&,
                                               const vfio::ModelContext& context) {
  return make_box<RegisterDevice>("test.registers", context);
}
// One whose isolation is its own business, and one that the IOMMU tells apart.
inline constinit const vfio::Parent kRegisters{.name = "registers",
                                               .description = {},
                                               .units = 4,
                                               .counting = vfio::Counting::kCore,
                                               .types = kRegisterTypes,
                                               .make = make_registers};
inline constinit const vfio::Parent kIsolated{.name = "isolated",
                                              .description = {},
                                              .units = 4,
                                              .counting = vfio::Counting::kCore,
                                              .source = 0x55,
                                              .pasid_bits = 8,
                                              .types = kRegisterTypes,
                                              .make = make_registers};
inline void register_devices() {
  for (const vfio::Parent* parent : {&kRegisters, &kIsolated}) {
    if (vfio::find_parent(parent->name) == nullptr) {
      static_cast<void>(vfio::register_parent(*parent));
    }
  }
}

}  // namespace stagetwo::test
