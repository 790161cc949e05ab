// SPDX-License-Identifier: Apache-2.0
#pragma once

// examples/vfio_vmm.c in this process: its guest drives the dma-engine of that name in `session`
// for three moves. Answers what its main() does; what is wrong there ends the process.

#include <string>

int run_vfio_machine(const char* session, const std::string& uuid);
