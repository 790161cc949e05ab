// SPDX-License-Identifier: Apache-2.0
#include "host/shared_objects.h"

#include <sys/stat.h>

#include "base/hash_map.h"
#include "base/process_page.h"
#include "base/sys.h"
#include "host/process_map.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::host {
namespace {

struct KnownFile {
  u64 device;
  u64 inode;
  friend bool operator==(KnownFile, KnownFile) = default;
  [[nodiscard]] u64 hash() const { return hash_u64(inode ^ hash_u64(device)); }
};

struct Known {
  u64 id = 0;
  u32 fork_turn = 0;
  u32 others = 0;     // how often it was given away
  KnownFile pages{};  // inode 0: its own
};

// A client that makes files for ever must not fill us: what comes later is not known. Of ours the
// end is seen, so there is room for them.
constexpr size_t kMostKnown = 1 << 16;
constexpr size_t kMostOfClients = kMostKnown / 2;

struct Objects {
  sync::Mutex lock{sync::Rank::kLeaf};
  HashMap<KnownFile, Known> known TA_GUARDED(lock){"host.shared_objects"};
  u64 last_id TA_GUARDED(lock) = 0;
  u32 stamp = 0;
};

// Made with the first object, never destroyed; a child makes its own.
constinit sync::Atomic<Objects*> the_objects{nullptr};
// Raised before and after each fork.
constinit sync::Atomic<u32> fork_turn{0};

Objects* objects() {
  Objects* here = the_objects.load(sync::kAcquire);
  return here != nullptr && here->stamp == process_stamp() ? here : nullptr;
}

Objects* make_objects() {
  if (Objects* here = objects()) return here;
  const auto fresh = make<Objects>("host.shared_objects");
  if (!fresh) return nullptr;
  (*fresh)->stamp = process_stamp();
  Objects* seen = nullptr;
  if (!the_objects.compare_exchange(seen, *fresh)) destroy(*fresh);
  return objects();
}

void note_made(KnownFile file, size_t most, KnownFile pages = {}) {
  Objects* all = make_objects();
  if (all == nullptr) return;
  const sync::MutexGuard guard(all->lock);
  // The number of a file that is gone may be used again: the newer one counts.
  if (Known* old = all->known.find(file)) {
    *old = {++all->last_id, fork_turn.load(sync::kRelaxed), 0, pages};
  } else if (all->known.size() < most) {
    const Known fresh{++all->last_id, fork_turn.load(sync::kRelaxed), 0, pages};
    static_cast<void>(all->known.insert(file, fresh));  // else it is not known
  }
}

bool file_behind(int fd, KnownFile* out) {
  struct ::stat behind{};
  if (!sys::fstat(fd, &behind) || !S_ISREG(behind.st_mode) || behind.st_nlink != 0) return false;
  *out = {behind.st_dev, behind.st_ino};
  return true;
}

u64 id_of(KnownFile file, bool alone) {
  Objects* all = objects();
  if (all == nullptr) return 0;
  const sync::MutexGuard guard(all->lock);
  const Known* known = all->known.find(file);
  if (known == nullptr) return 0;
  if (alone && (known->others != 0 || known->fork_turn != fork_turn.load(sync::kRelaxed))) return 0;
  return known->id;
}

}  // namespace

void shared_file_made(int fd, int pages) {
  KnownFile file;
  KnownFile beneath{};
  if (!file_behind(fd, &file)) return;
  const size_t most = pages >= 0 ? kMostKnown : kMostOfClients;
  if (pages >= 0 && file_behind(pages, &beneath) && beneath != file) note_made(beneath, most);
  note_made(file, most, beneath == file ? KnownFile{} : beneath);
}

void shared_memory_mapped(Hva at) {
  const auto mapping = shown_mapping_at(at);
  if (mapping && mapping->shared && mapping->file_backed) {
    note_made({mapping->device, mapping->inode}, kMostOfClients);
  }
}

void shared_file_gone(int fd) {
  Objects* all = objects();
  KnownFile file;
  if (all == nullptr || !file_behind(fd, &file)) return;
  const sync::MutexGuard guard(all->lock);
  const Known* const known = all->known.find(file);
  if (known == nullptr) return;
  const KnownFile pages = known->pages;
  static_cast<void>(all->known.erase(file));
  if (pages.inode != 0) static_cast<void>(all->known.erase(pages));
}

u64 shared_file_escapes(int fd, GivenTo to) {
  Objects* all = objects();
  KnownFile file;
  if (all == nullptr || !file_behind(fd, &file)) return 0;
  const sync::MutexGuard guard(all->lock);
  Known* const known = all->known.find(file);
  if (known == nullptr || (known->pages.inode != 0 && to == GivenTo::kProgram)) return 0;
  ++known->others;
  if (known->pages.inode == 0) return known->id;
  if (Known* const pages = all->known.find(known->pages)) ++pages->others;
  return known->id;
}

void shared_file_returns(u64 object) {
  Objects* all = objects();
  if (all == nullptr) return;
  const sync::MutexGuard guard(all->lock);
  HashMap<KnownFile, Known>* const files = &all->known;  // the analysis sees no lock in the loop
  files->for_each([&](const KnownFile&, Known& known) {
    if (known.id != object) return;
    --known.others;
    Known* const pages = known.pages.inode == 0 ? nullptr : files->find(known.pages);
    if (pages != nullptr) --pages->others;
  });
}

bool any_shared_objects() {
  Objects* all = objects();
  if (all == nullptr) return false;
  const sync::MutexGuard guard(all->lock);
  return all->known.size() != 0;
}

u64 alone_with(u64 device, u64 inode) {
  return id_of({device, inode}, true);
}
u64 object_behind(u64 device, u64 inode) {
  return id_of({device, inode}, false);
}
u64 object_behind(int fd) {
  KnownFile file;
  return objects() != nullptr && file_behind(fd, &file) ? id_of(file, false) : 0;
}

void shared_objects_fork_turn() {
  fork_turn.fetch_add(1, sync::kRelaxed);
}

void shared_objects_after_fork_child() {
  the_objects.store(nullptr, sync::kRelaxed);
}

}  // namespace stagetwo::host
