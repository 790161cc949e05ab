// SPDX-License-Identifier: Apache-2.0
#pragma once

// A store of the client's to memory it may not write: what would it have written, and the processor
// as it is after it. Loads of such memory are the processor's own.
//
// Known: moves from registers and immediates, MOVBE, POP, SETcc, MOVNTI, MOVDIR64B, moves of vector
// registers (abi/vfio/vector_store.h), STOS and MOVS with REP, exchanges, CMPXCHG, single bits, and
// the arithmetic that reads, changes and writes (a LOCK is not more than each part of it). Not
// known: shifts, MMX, MASKMOVDQU, CMPXCHG16B, x87, VMASKMOV, scatters, ENQCMD, and what goes by FS
// or GS.
//
// Context: a signal handler, in a section of the engine. No state, no lock.

#include <ucontext.h>

#include <span>

#include "addr/addr.h"
#include "base/types.h"

namespace stagetwo::abi_vfio {

// Told each store, whole: up to 64 bytes; of one with a mask each run of bytes that it lets
// through.
using StoreSink = void (*)(void* who, Hva at, std::span<const u8> bytes);

// False: it is none that is known, or it is not all in `trapped`; then nothing has changed. A
// string store that leaves `trapped` has been done up to there and is to be met again.
[[nodiscard]] bool emulate_store(ucontext_t* context, HvaRange trapped, StoreSink sink, void* who);

}  // namespace stagetwo::abi_vfio
