// SPDX-License-Identifier: Apache-2.0
#include "vfio/pci_functions.h"

#include "base/directory_names.h"
#include "vfio/pci_config.h"

namespace stagetwo::vfio {
namespace {

constexpr std::string_view kRoot = "devices/pcifffe:00";
constexpr std::string_view kDriver = "bus/pci/drivers/vfio-pci";
constexpr unsigned kNumberAt = 15;  // in the name of a slot
// Where the first BAR of the first function would be in the machine's memory.
constexpr u64 kFirstAddress = 0xfffe00000000;
// IORESOURCE_MEM, _SIZEALIGN and _MEM_64, and the BAR's own bits.
constexpr u64 kMemoryFlags = 0x00040200, kWideFlags = 0x00100004, kIoFlags = 0x00040101;
constexpr unsigned kResources = 13;

using Line = FixedString<64>;

Path name_of(const Listed& function) {
  FixedString<16> name;
  append_address(function, name);
  return Path(name.view());
}

struct Places {
  explicit Places(const Listed& function)
      : name(name_of(function)),
        folder(Path(kRoot).append("/").append(name.view())),
        group(numbered("kernel/iommu_groups/", function.group())),
        node(folder.below("/vfio-dev/").append(numbered("vfio", function.number()).view())),
        of_bus(Path("bus/pci/devices/").append(name.view())),
        of_driver(Path(kDriver).append("/").append(name.view())),
        of_group(group.below("/devices/").append(name.view())) {}
  Path name, folder, group, node;
  Path of_bus, of_driver, of_group;  // links to the folder
};

void hex_file(const Tree& tree, const Path& path, u64 value, unsigned digits) {
  Line line;
  line.append_hex(value, digits).append_char('\n');
  tree.file(path, line.view(), 0444);
}

void write_resources(const Tree& tree, const Places& at, const PciIdentity& identity, u32 number) {
  FixedString<kResources * sizeof(Line)> text;
  u64 address = kFirstAddress + (u64{number} << 20);
  for (unsigned i = 0; i < kResources; ++i) {
    const PciBar bar = i < 6 ? identity.bars[i] : PciBar{};
    const u64 flags = bar.size == 0 ? 0
                      : bar.io      ? kIoFlags
                                    : kMemoryFlags | (bar.wide ? kWideFlags : 0);
    const u64 start = bar.size == 0 ? 0 : address;
    const u64 last = bar.size == 0 ? 0 : address + bar.size - 1;
    text.append_hex(start, 16).append_char(' ').append_hex(last, 16).append_char(' ');
    text.append_hex(flags, 16).append_char('\n');
    address += bar.size;
  }
  tree.file(at.folder.below("/resource"), text.view(), 0444);
}

void append_upper(TextWriter& text, u32 value, unsigned digits) {
  FixedString<16> small;
  small.append_digits(value, 16, digits);
  for (const char c : small.view()) text.append_char(c >= 'a' ? static_cast<char>(c - 32) : c);
}

void append_modalias(TextWriter& text, const PciIdentity& identity) {
  const auto upper = [&text](std::string_view key, u32 value, unsigned digits) {
    append_upper(text.append(key), value, digits);
  };
  upper("pci:v", identity.vendor, 8);
  upper("d", identity.device, 8);
  upper("sv", identity.sub_vendor, 8);
  upper("sd", identity.sub_device, 8);
  upper("bc", identity.class_code >> 16, 2);
  upper("sc", identity.class_code >> 8 & 0xff, 2);
  upper("i", identity.class_code & 0xff, 2);
  text.append_char('\n');
}

// What the kernel tells of it to who manages devices. Analogue: pci_uevent.
void write_uevent(const Tree& tree, const Places& at, const PciIdentity& identity) {
  FixedString<256> text;
  text.append("DRIVER=vfio-pci\nPCI_CLASS=");
  append_upper(text, identity.class_code, 4);
  append_upper(text.append("\nPCI_ID="), identity.vendor, 4);
  append_upper(text.append_char(':'), identity.device, 4);
  append_upper(text.append("\nPCI_SUBSYS_ID="), identity.sub_vendor, 4);
  append_upper(text.append_char(':'), identity.sub_device, 4);
  text.append("\nPCI_SLOT_NAME=").append(at.name.view()).append("\nMODALIAS=");
  append_modalias(text, identity);
  tree.file(at.folder.below("/uevent"), text.view(), 0444);
}

constexpr size_t kConfigBytes = 4096;  // of a function of PCI Express

// As it is when the function starts; then show_config().
void write_config(const Tree& tree, const Path& path, const PciIdentity& identity) {
  PciConfig config;
  config.start(identity);
  char bytes[kConfigBytes] = {};
  config.read(0, {reinterpret_cast<u8*>(bytes), PciConfig::kBytes});
  tree.file(path, {bytes, sizeof(bytes)}, 0644);
}

void write_attributes(const Tree& tree, const Places& at, const PciIdentity& identity, u32 number) {
  const auto path = [&at](std::string_view file) { return at.folder.below(file); };
  hex_file(tree, path("/vendor"), identity.vendor, 4);
  hex_file(tree, path("/device"), identity.device, 4);
  hex_file(tree, path("/subsystem_vendor"), identity.sub_vendor, 4);
  hex_file(tree, path("/subsystem_device"), identity.sub_device, 4);
  hex_file(tree, path("/class"), identity.class_code, 6);
  hex_file(tree, path("/revision"), identity.revision, 2);
  tree.file(path("/irq"), "0\n", 0444);
  tree.file(path("/numa_node"), "-1\n", 0444);
  tree.file(path("/enable"), "0\n", 0444);
  tree.file(path("/driver_override"), "(null)\n", 0444);
  write_resources(tree, at, identity, number);
  FixedString<96> alias;
  append_modalias(alias, identity);
  tree.file(path("/modalias"), alias.view(), 0444);
  write_uevent(tree, at, identity);
  add_power(tree, at.folder);
  write_config(tree, path("/config"), identity);
}

// The machine's folder `below` once more, as links with `prefix` in front of their names, or with
// the text of the links there. Also: where those lead to.
void link_machines(const Tree& tree, std::string_view below, bool links) {
  FixedString<64> machines;
  machines.append("/sys/").append(below);
  const auto folder = sys::openat(AT_FDCWD, machines.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (!folder) return;
  DirectoryNames names(*folder);
  while (const char* const name = names.next()) {
    if (name[0] == '.') continue;
    const Path path = Path(below).append("/").append(name);
    char text[256];
    const long size =
        links ? sys::call(SYS_readlinkat, *folder, sys::arg(name), sys::arg(text), sizeof(text))
              : 0;
    if (size <= 0) {
      tree.link(path, Path(machines.view()).append("/").append(name));
      continue;
    }
    const std::string_view target(text, static_cast<size_t>(size));
    tree.link(path, Path(target));
    // "../../../devices/pci0000:00/…"
    constexpr std::string_view kDevices = "/devices/";
    const size_t at = target.find(kDevices);
    if (at == std::string_view::npos) continue;
    const std::string_view root = target.substr(at + kDevices.size());
    const Path first = Path("devices/").append(root.substr(0, root.find('/')));
    tree.link(first, Path("/sys/").append(first.view()));
  }
  static_cast<void>(sys::close(*folder));
}

}  // namespace

Uuid function_uuid(unsigned number) {
  Uuid uuid{{'P', 'C', 'I'}};
  uuid.bytes[kNumberAt] = static_cast<u8>(number);
  return uuid;
}

void append_address(const Listed& function, TextWriter& out) {
  out.append("fffe:00:04.").append_int(function.uuid.bytes[kNumberAt]);
}

void show_config(const Listed& function, Model& model) {
  const Tree tree;
  if (!tree) return;
  char bytes[kConfigBytes];
  for (size_t at = 0; at < sizeof(bytes); at += sizeof(u32)) {
    model.read(kConfigRegion, at, {reinterpret_cast<u8*>(bytes) + at, sizeof(u32)});
  }
  tree.update(Places(function).folder.below("/config"), {bytes, sizeof(bytes)});
}

void add_function(const Tree& tree, const Listed& function) {
  const Places at(function);
  const PciIdentity& identity = *function.type.parent->function;
  tree.folder("bus/pci/devices");
  tree.folder("module/vfio");
  tree.folder("module/vfio_pci");
  tree.folder("devices");
  tree.folder(kDriver);
  link_machines(tree, "bus/pci/devices", true);
  link_machines(tree, "bus/pci/drivers", false);
  add_node(tree, at.node, function.number());
  write_attributes(tree, at, identity, function.uuid.bytes[kNumberAt]);
  tree.link(at.folder.below("/subsystem"), Path("../../../bus/pci"));
  tree.link(at.folder.below("/driver"), Path("../../../").append(kDriver));
  tree.link(at.folder.below("/iommu_group"), Path("../../../").append(at.group.view()));
  add_group(tree, at.group, "DMA-FQ\n", "0x00000000fee00000 0x00000000feefffff msi\n");
  tree.link(at.of_group, Path("../../../../").append(at.folder.view()));
  tree.link(at.of_driver, Path("../../../../").append(at.folder.view()));
  tree.link(at.of_bus, Path("../../../").append(at.folder.view()));
}

void remove_function(const Tree& tree, const Listed& function) {
  const Places at(function);
  for (const Path* link : {&at.of_bus, &at.of_driver, &at.of_group}) tree.remove(*link);
  tree.remove_folder(at.group);
}

}  // namespace stagetwo::vfio
