// SPDX-License-Identifier: Apache-2.0
#pragma once

// Idle page tracking of the memory that somebody borrows: which pages has nobody used since they
// were marked? Analogue: /sys/kernel/mm/page_idle/bitmap (kernel file: page_idle.c). Differs: only
// users behind the bell count (a guest, a mirror), because the process's own accessed bits are the
// kernel's; and frames are not the machine's.
//
// Frame numbers: page `hva >> 12` of this process is frame kFirstFrame + (hva >> 12). That is far
// above any real frame, never 0, needs no table, and the same for every file that shows it; two
// mappings of one page are two frames. Of a huge page only the first frame can be idle, as there.
//
// I1: a frame is idle when it was marked and no subscriber has said young since.
// Locking: one leaf lock around the marks; subscribers are asked without it.

#include "addr/addr.h"
#include "base/types.h"

namespace stagetwo::host::page_idle {

inline constexpr u64 kFirstFrame = u64{1} << 44;
inline constexpr u64 kEndFrame = kFirstFrame + (u64{1} << 35);  // of 47-bit addresses
static_assert(kFirstFrame % 64 == 0 && kEndFrame % 64 == 0, "a word is all ours or not at all");

constexpr u64 frame_of(Hva page) {
  return kFirstFrame + (page.raw() >> kPageShift);
}

// 64 frames from `first`, a multiple of 64 in [kFirstFrame, kEndFrame); bit n is frame first + n.
[[nodiscard]] u64 read_word(u64 first);
// Marks the frames of the set bits idle: their users' accessed bits are cleared. Pages nobody
// borrows are left alone, and so is one for whose mark there is no memory: it then looks used.
void write_word(u64 first, u64 bits);

// Somebody else has asked who was young and made all old: bit n of `bits` stands for page n of the
// range. What was used is not idle.
void note_young(HvaRange range, const u64* bits);

void after_fork_child();

}  // namespace stagetwo::host::page_idle
