// SPDX-License-Identifier: Apache-2.0
// How to write a mediated device: a postman. Its client writes an address to a register, and the
// device delivers a letter there and rings. What it needs for that is below, between the two lines:
// configuration space, bounds, interrupts and an address space of its own per client come with it.
//
// The rest is two clients, each with a container: the same address means different memory to them.
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "host/backstop.h"
#include "vfio/container.h"
#include "vfio/device.h"
#include "vfio/dma.h"
#include "vfio/interrupts.h"
#include "vfio/pci_config.h"

using namespace stagetwo;        // NOLINT: an example
using namespace stagetwo::vfio;  // NOLINT

// ------------------------------------------------------------------------------------------------
// BAR 0: 0 where to (8 bytes; the high half delivers), 8 how many were delivered, 12 the last
// fault.

static constexpr PciIdentity kPostman{.vendor = 0x1af4,
                                      .device = 0x57a6,
                                      .sub_vendor = 0,
                                      .sub_device = 0,
                                      .class_code = 0xff0000,
                                      .revision = 1,
                                      .interrupt_pin = 1,
                                      .bars = {{4096, false}}};

struct State {  // shared by all processes, zero in a new device
  PciConfig config;
  u32 started, to_low, delivered, fault;
};

class Postman final : public Model {
 public:
  explicit Postman(const ModelContext& context)
      : state_(*reinterpret_cast<State*>(context.state.data())), context_(context) {
    shape_.regions[0].size = 4096;
    shape_.regions[kConfigRegion].size = PciConfig::kBytes;
    shape_.vectors[kMsiIndex] = 1;
    if (state_.started == 0) reset();
  }
  [[nodiscard]] const Shape& shape() const override { return shape_; }
  void read(unsigned region, u64 offset, std::span<u8> to) override {
    if (region == kConfigRegion) return state_.config.read(offset, to);
    const u32 value = offset == 8 ? state_.delivered : offset == 12 ? state_.fault : 0;
    std::memcpy(to.data(), &value, to.size());
  }
  void write(unsigned region, u64 offset, std::span<const u8> from) override {
    if (region == kConfigRegion) return state_.config.write(kPostman, offset, from);
    u32 value = 0;
    std::memcpy(&value, from.data(), from.size());
    if (offset == 0) state_.to_low = value;
    if (offset == 4) deliver(u64{value} << 32 | state_.to_low);
  }
  void reset() override {
    state_ = {};
    state_.config.start(kPostman);
    state_.started = 1;
  }

 private:
  void deliver(u64 to) {
    static constexpr char kLetter[] = "hello from a device";
    const auto answer = context_.dma.write(to, kLetter, sizeof(kLetter));
    state_.fault = static_cast<u32>(answer.reason);
    state_.delivered += answer.done == sizeof(kLetter);
    context_.interrupts.raise(0);
  }

  State& state_;
  ModelContext context_;
  Shape shape_;
};

static constexpr Type kTypes[] = {{"rural", "A postman", 1}};
static constexpr Parent kOffice{
    .name = "post",
    .description = "Delivers letters.\n",
    .units = 4,
    .counting = Counting::kCore,
    .source = 0x57,   // its requests carry a PASID each client has
    .pasid_bits = 8,  // for itself, and the IOMMU keeps them apart
    .types = kTypes,
    .make = [](const Type&, const ModelContext& context) -> Result<Box<Model>> {
      return make_box<Postman>("example.postman", context);
    }};
// ------------------------------------------------------------------------------------------------

template <typename T>
static T must(Result<T> result, const char* what) {
  if (result) {
    if constexpr (!std::is_void_v<T>)
      return std::move(*result);
    else
      return;
  }
  std::fprintf(stderr, "%s: %s\n", what, std::strerror(to_int(result.error())));
  std::exit(1);
}

struct Client {
  Client(const char* its_name, const char* uuid) : name(its_name) {
    const Uuid own = must(parse_uuid(uuid), "uuid");
    must(create_device(find_type("post-rural"), own), "create");
    const Listed listed = *find_device(own);
    container = must(Container::attach(backing.fd()), "container");
    must(container->add_group(listed), "group");
    must(container->set_type(3), "type");
    device = must(Device::open(listed), "open");
    must(device->connect(container.clone()), "connect");
    const auto* const fd = reinterpret_cast<const u8*>(&bell);
    must(device->set_irqs({IrqSet::kEventfds | IrqSet::kTrigger, kMsiIndex, 0, 1, {fd, 4}}), "irq");
    memory = static_cast<char*>(
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  void map(u64 iova) {
    must(container->map({iova, 4096, reinterpret_cast<u64>(memory), 3}), "map");
  }
  void ask(u64 iova) {
    const u32 halves[] = {static_cast<u32>(iova), static_cast<u32>(iova >> 32)};
    for (unsigned i = 0; i < 2; ++i) {
      device->write(0, 4 * i, {reinterpret_cast<const u8*>(&halves[i]), 4});
    }
    u64 rings = 0;
    u32 fault = 0;
    if (read(bell, &rings, sizeof(rings)) != sizeof(rings)) std::exit(1);
    device->read(0, 12, {reinterpret_cast<u8*>(&fault), 4});
    std::printf("%-6s asked for 0x%llx: fault 0x%02x, its memory says \"%s\"\n", name,
                static_cast<unsigned long long>(iova), fault, memory);
  }

  const char* name;
  host::Backing backing = must(Container::make_file("example"), "file");
  sync::Ref<Container> container;
  sync::Ref<Device> device;
  int bell = eventfd(0, 0);
  char* memory;
};

int main() {
  must(host::backstop::install(), "backstop");
  must(register_parent(kOffice), "register");
  must(start_bus(), "bus");
  Client alice("alice", "00000000-0000-0000-0000-0000000000a1");
  Client bob("bob", "00000000-0000-0000-0000-0000000000b0");
  std::printf("post   has %u left\n", available_instances(find_type("post-rural")));
  alice.map(0x100000);
  alice.ask(0x100000);
  bob.ask(0x100000);  // mapped by alice: nothing of bob's, and not reached
  bob.map(0x100000);
  bob.ask(0x100000);
  return 0;
}
