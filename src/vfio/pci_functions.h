// SPDX-License-Identifier: Apache-2.0
#pragma once

// PCI functions of the session: which there are, and how sysfs shows them. They stand in a PCI
// domain of their own, fffe, which no machine's firmware gives away, one behind the other at device
// 4 of bus 0, and are bound to vfio-pci from the beginning.
//
// /sys/bus/pci/devices and /sys/bus/pci/drivers of the tree name the machine's own, too: links with
// the text of the machine's, which lead out of the tree. Analogue: drivers/pci/pci-sysfs.c.
// Not for other rooms but its names; what to do with them is in vfio/bus.h.

#include "vfio/bus.h"
#include "vfio/tree_files.h"

namespace stagetwo::vfio {

[[nodiscard]] Uuid function_uuid(unsigned number);
// "fffe:00:04.0"
void append_address(const Listed& function, TextWriter& out);

// Its `config` in sysfs reads as the model's region does. Pre: the slot's lock.
void show_config(const Listed& function, Model& model);

void add_function(const Tree& tree, const Listed& function);
void remove_function(const Tree& tree, const Listed& function);

}  // namespace stagetwo::vfio
