// SPDX-License-Identifier: Apache-2.0
#pragma once

// Everybody who uses a range of host addresses, in pieces: what is done with each may take
// mmu_lock, yield it, and wait for read sections, so it stands outside any read section of the
// slots. Analogue: kvm_for_each_memslot_in_hva_range (kernel file: kvm_main.c).

#include "stage2/memslots.h"

namespace stagetwo::stage2 {

// fn(address_space, frames) -> bool for each; was one of the answers yes? All are asked.
template <typename F>
bool any_user(const Memslots& slots, HvaRange range, F&& fn) {
  constexpr size_t kPiece = 32;
  Memslots::Users users[kPiece];
  Memslots::UserCursor cursor;
  size_t found = 0;
  bool any = false;
  do {
    {
      const Memslots::Reader section(slots);
      found = section.find_users(range, &cursor, users, kPiece);
    }
    for (size_t i = 0; i < found; ++i) any |= fn(users[i].address_space, users[i].frames);
  } while (found == kPiece);
  return any;
}

}  // namespace stagetwo::stage2
