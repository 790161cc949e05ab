// SPDX-License-Identifier: Apache-2.0
#pragma once

// `serial`: a PCI card with one or two 16550A ports, each in a loop: what is sent is received. No
// DMA. Analogue: samples/vfio-mdev/mtty.c, with its numbers (4348:3253, 24 ports in all, a port's 8
// registers in a BAR each). Differs, where mtty.c errs: a full FIFO of 16 is full and not empty,
// the 17th byte sets the overrun and is lost; the trigger levels hold; IIR names one cause; several
// bytes in one access are several registers.
// Specification: National Semiconductor PC16550D, 8 (registers).
//
// Nothing takes time here: bytes below the trigger level are told as timed out at once.

#include "vfio/mdev.h"

namespace stagetwo::vfio {

extern const Parent kSerial;

}  // namespace stagetwo::vfio
