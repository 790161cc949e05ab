// SPDX-License-Identifier: Apache-2.0
#pragma once

// Clients of the dma-engine: each a container of its own and a device of it, as abi/vfio has them.

#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "host/backstop.h"
#include "host/pin.h"
#include "tests/support/pages.h"
#include "tests/unit/vfio/bus_world.h"
#include "vfio/container.h"
#include "vfio/dma_engine.h"
#include "vfio/queue_device.h"

namespace stagetwo::vfio {

// 16 pages, mapped at kIova: completion records in the first, data behind.
class EngineClient {
 public:
  static constexpr u64 kIova = 0x100000, kPages = 16;
  static constexpr u64 kData = kIova + kPageSize;

  explicit EngineClient(const Listed& device, bool maps = true) {
    container_ = *Container::attach(backing_.fd());
    EXPECT_TRUE(container_->add_group(device));
    EXPECT_TRUE(container_->set_type(3));
    which_ = device;
    device_ = std::move(*Device::open(device));
    EXPECT_TRUE(device_->connect(container_.clone()));
    if (maps) {
      EXPECT_EQ(map(kIova, kPages), 0);
    }
  }
  ~EngineClient() {
    device_.reset();
    container_->remove_group(which_);
    container_->closed();
  }
  EngineClient(const EngineClient&) = delete;
  EngineClient& operator=(const EngineClient&) = delete;

  int map(u64 iova, u64 pages, u64 page = 0, u32 rights = 3) {
    return error_of(container_->map({iova, pages * kPageSize, address(page * kPageSize), rights}));
  }
  s64 unmap(u64 iova, u64 pages) {
    const auto done = container_->unmap({iova, pages * kPageSize, false});
    return done ? static_cast<s64>(*done) : -to_int(done.error());
  }
  [[nodiscard]] u64 address(u64 at) const { return memory_.address() + at; }
  u8* bytes(u64 iova) { return memory_.bytes_at(iova - kIova); }

  template <typename T>
  T reg(u64 offset) {
    T value{};
    for (u64 i = 0; i < sizeof(T); i += 4) {
      device_->read(0, offset + i, {reinterpret_cast<u8*>(&value) + i, 4});
    }
    return value;
  }
  void set_reg(u64 offset, u32 value) {
    device_->write(0, offset, {reinterpret_cast<const u8*>(&value), 4});
  }
  // As a client's write of 64 bytes comes.
  void submit(const Descriptor& descriptor, unsigned slot = 0) {
    const u8* const from = reinterpret_cast<const u8*>(&descriptor);
    for (u64 i = 0; i < 64; i += 4) device_->write(2, slot * 64 + i, {from + i, 4});
  }
  static Descriptor make(Opcode opcode, u64 source, u64 destination, u32 size, u32 flags = 0) {
    Descriptor d{};
    d.flags_opcode = u32{static_cast<u8>(opcode)} << 24 | kCompletionValid | kRequestCompletion;
    d.flags_opcode |= flags;
    d.completion = kIova;
    d.source = source;
    d.destination = destination;
    d.size = size;
    return d;
  }
  Completion* record(u64 iova = kIova) { return reinterpret_cast<Completion*>(bytes(iova)); }
  // Waits for it: at most some seconds.
  const Completion& wait(u64 iova = kIova) {
    const volatile u8* const status = &record(iova)->status;
    for (unsigned i = 0; *status == 0 && i < 100000; ++i) usleep(50);
    return *record(iova);
  }
  const Completion& ask(const Descriptor& descriptor) {
    memset(bytes(descriptor.completion), 0, sizeof(Completion));
    submit(descriptor);
    return wait(descriptor.completion);
  }
  u64 wait_error() {
    for (unsigned i = 0; (error() & 1) == 0 && i < 20000; ++i) usleep(50);
    return error();
  }
  u64 error(unsigned word = 0) { return reg<u64>(engine_register::kSoftwareError + 8 * word); }
  Device& device() { return *device_; }
  Container& container() { return *container_; }

 private:
  test::GuardedPages memory_{kPages};
  host::Backing backing_ = *Container::make_file("test-engine");
  sync::Ref<Container> container_;
  sync::Ref<Device> device_;
  Listed which_;
};

class EngineWorld : public BusWorld {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    BusWorld::SetUp();
  }
  void TearDown() override {
    EXPECT_EQ(host::pin_use().pages, 0u);
    BusWorld::TearDown();
  }
  static Listed make_device(unsigned n, std::string_view type = "dma-engine-1") {
    EXPECT_EQ(create(type, n), 0);
    return *find_device(uuid(n));
  }
};

}  // namespace stagetwo::vfio
