// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where pinned pages stand when the client's address no longer means them, and the engine's own
// mappings of shared memory. Not for other rooms: see host/pin.h.
//
// Windows are 2 MiB of address space without memory, aligned, kept back from mlockall and dumps;
// a page of a window is either nothing (PROT_NONE) or a kept page. They are reserved when the first
// page of a block is pinned, so that keeping a page later needs none.
// Locking: none but the leaf lock of the free windows. Context: may sleep in the kernel.

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "base/vec.h"
#include "host/process_map.h"
#include "sync/mutex.h"

namespace stagetwo::host::pin_store {

inline constexpr u64 kWindowBytes = u64{2} << 20;

class Windows {
 public:
  [[nodiscard]] Result<Hva> take();
  void give(Hva window);

 private:
  Result<void> make_more();

  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<Hva> free_ TA_GUARDED(lock_){"host.pin_windows"};
  u64 made_ TA_GUARDED(lock_) = 0;
};

// The pages themselves go, the client's mapping stays and is empty. False: this memory cannot.
[[nodiscard]] bool move_in(Hva page, Hva place, u64 bytes);
// Copies them; the client's memory is as before. Failure: EFAULT (nobody can read them), ENOMEM.
[[nodiscard]] Result<void> copy_in(Hva page, Hva place, u64 bytes);
// Back to where the client's mapping is still: undoes move_in.
void move_back(Hva place, Hva page, u64 bytes);
// The pages are the pinners' alone: readable, writable, no child's. False: not so.
[[nodiscard]] bool settle(Hva place, u64 bytes);
// They are nobody's any more; the places are nothing again.
void drop(Hva place, u64 bytes);

// Another mapping of the file pages at `page`. `writable` is what came of it.
struct Alias {
  Hva at;
  u64 bytes = 0;
  bool writable = false;
  bool opened = false;  // by a second open
};
[[nodiscard]] Result<Alias> make_alias(const Mapping& mapping, Hva page, u64 bytes,
                                       bool second_open);
void drop_alias(const Alias& alias);

// The client's own page at `page`, whatever its rights: through /proc/self/mem.
[[nodiscard]] bool read_behind(Hva at, void* to, size_t size);
[[nodiscard]] bool write_behind(Hva at, const void* from, size_t size);

// For tests: every page is copied, none is moved.
void debug_copy_only(bool only);

}  // namespace stagetwo::host::pin_store
