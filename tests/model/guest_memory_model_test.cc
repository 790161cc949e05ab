// SPDX-License-Identifier: Apache-2.0
// Random operations on one VM's memory, with real pages behind it, against what a client knows: its
// slots, the bytes it wrote, which pages it took away, which it must find in the log.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdio>
#include <map>
#include <set>

#include "base/failpoint.h"
#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "stage2/address_space.h"
#include "tests/model/model_time.h"
#include "tests/support/pages.h"
#include "tests/support/random_source.h"

namespace stagetwo::stage2 {
namespace {

constexpr u64 kPages = 1024 + 64;  // of the client's memory
constexpr u64 kSlots = 4;

// What a host page is to the client.
enum class Right { kNone, kRead, kAll };
struct HostPage {
  u64 value = 0;  // of its second word
  Right right = Right::kAll;
};

class MemoryModel {
 public:
  explicit MemoryModel(u64 seed) : random_(seed), bitmap_(kPages / 32768 + 1) {
    memory_ = std::move(*GuestMemory::create(SlotPolicy{}));
    for (u64 i = 0; i < 2; ++i) contexts_[i] = std::move(*memory_->new_context());
    memory_->lines().add(line_);
  }
  ~MemoryModel() {
    failpoint::disarm();
    memory_->lines().remove(line_);
  }
  void step();
  void check_world() { memory_->check_world(); }
  u64 accesses = 0;
  u64 refused = 0;

 private:
  struct NaiveSlot {
    u64 gpa = 0;
    u64 pages = 0;
    u64 first = 0;  // of the client's pages
    u32 flags = 0;
    std::set<u64> stored;   // pages of the slot, since the last harvest
    std::set<u64> tracked;  // pages of the slot
  };
  struct Target {
    NaiveSlot* slot;  // null: nobody's
    u64 gpa;
    u64 page;  // of the slot
  };

  u64 address(u64 page) const { return client_.address() + page * kPageSize; }
  NaiveSlot* slot_at(u64 gpa);
  Target some_target();
  FaultOutcome translate(Target target, Access access, Fault* fault);
  FaultOutcome expected(const Target& target, Access access);
  void guest_access();
  void own_access();
  void prefault();
  void change_client_pages();
  void set_slot();
  void flip_flags();
  void remove_slot();
  void harvest();
  void track();
  void without_memory();
  void age();
  int region(u32 id, const NaiveSlot& slot, u64 size);
  void note_store(const Target& target, u64 value);

  test::RandomSource random_;
  test::GuardedPages client_{kPages};
  test::GuardedPages bitmap_;
  HostPage pages_[kPages];
  std::map<u32, NaiveSlot> slots_;
  Box<GuestMemory> memory_;
  Box<MmuContext> contexts_[2];
  sync::AckLine line_;
  bool manual_ = false;
};

MemoryModel::NaiveSlot* MemoryModel::slot_at(u64 gpa) {
  for (auto& [id, slot] : slots_) {
    if (gpa >= slot.gpa && gpa < slot.gpa + slot.pages * kPageSize) return &slot;
  }
  return nullptr;
}

MemoryModel::Target MemoryModel::some_target() {
  u64 gpa = random_.below(4096) * kPageSize;
  if (!slots_.empty() && !random_.one_in(12)) {
    const auto at =
        std::next(slots_.begin(), static_cast<std::ptrdiff_t>(random_.below(slots_.size())));
    // Often the same few pages, so that one meets what another left.
    const u64 page = random_.one_in(3) ? random_.below(at->second.pages)
                                       : random_.below(std::min<u64>(at->second.pages, 5));
    gpa = at->second.gpa + page * kPageSize;
  }
  NaiveSlot* slot = slot_at(gpa);
  return {slot, gpa, slot == nullptr ? 0 : (gpa - slot->gpa) / kPageSize};
}

// What the client's own knowledge says of an access.
FaultOutcome MemoryModel::expected(const Target& target, Access access) {
  if (target.slot == nullptr) return FaultOutcome::kMmio;
  const bool write = access == Access::kWrite;
  if (write && (target.slot->flags & kReadonly) != 0) return FaultOutcome::kMmio;
  if (write && target.slot->tracked.contains(target.page)) return FaultOutcome::kEmulate;
  const Right right = pages_[target.slot->first + target.page].right;
  if (right == Right::kNone || (write && right == Right::kRead)) return FaultOutcome::kToUser;
  return FaultOutcome::kFixed;
}

// As a vCPU: until there is a translation or there is none to be had. RUNNING on return.
FaultOutcome MemoryModel::translate(Target target, Access access, Fault* fault) {
  MmuContext& context = *contexts_[random_.below(2)];
  for (int attempt = 0; attempt < 4; ++attempt) {
    *fault = {};
    fault->gpa = Gpa(target.gpa);
    fault->access = access;
    if (line_.enter() || random_.one_in(64)) {
      for (auto& each : contexts_) memory_->flushed(*each);
    }
    const Walk::Kind found = memory_->translate(context, *fault);
    if (found == Walk::Kind::kHit) return FaultOutcome::kFixed;
    line_.leave();
    const FaultOutcome outcome =
        found == Walk::Kind::kMmio ? FaultOutcome::kMmio : memory_->handle_fault(context, *fault);
    if (outcome != FaultOutcome::kFixed && outcome != FaultOutcome::kSpurious &&
        outcome != FaultOutcome::kRetry) {
      static_cast<void>(line_.enter());
      for (auto& each : contexts_) memory_->flushed(*each);
      return outcome;
    }
  }
  static_cast<void>(line_.enter());
  return FaultOutcome::kRetry;
}

void MemoryModel::note_store(const Target& target, u64 value) {
  pages_[target.slot->first + target.page].value = value;
  if ((target.slot->flags & kLogDirtyPages) != 0) target.slot->stored.insert(target.page);
}

void MemoryModel::guest_access() {
  static constexpr Access kKinds[] = {Access::kRead, Access::kWrite, Access::kExec};
  ++accesses;
  const Target target = some_target();
  const Access access = kKinds[random_.below(3)];
  Fault fault;
  const FaultOutcome outcome = translate(target, access, &fault);
  EXPECT_EQ(outcome, expected(target, access))
      << "gpa " << std::hex << target.gpa << " access " << static_cast<int>(access);
  if (outcome == FaultOutcome::kFixed && target.slot != nullptr) {
    const u64 page = target.slot->first + target.page;
    EXPECT_EQ(fault.page.raw(), address(page));
    u64 value = 0;
    if (access == Access::kWrite) {
      value = random_.next();
      EXPECT_TRUE(host::store(fault.page + 8, value));
      note_store(target, value);
    } else {
      EXPECT_TRUE(host::load(fault.page + 8, &value));
      EXPECT_EQ(value, pages_[page].value);
    }
  }
  line_.leave();
}

void MemoryModel::own_access() {
  const Target target = some_target();
  u64 value = random_.next();
  const Gpa at(target.gpa + 8);
  if (random_.one_in(2)) {
    const FaultOutcome outcome = memory_->read(at, &value, sizeof(value));
    EXPECT_EQ(outcome, expected(target, Access::kRead));
    if (outcome != FaultOutcome::kFixed || target.slot == nullptr) return;
    EXPECT_EQ(value, pages_[target.slot->first + target.page].value);
    return;
  }
  FaultOutcome wanted = expected(target, Access::kWrite);
  if (wanted == FaultOutcome::kEmulate) {
    // KVM's own store to a tracked page is one.
    const Right right = pages_[target.slot->first + target.page].right;
    wanted = right == Right::kAll ? FaultOutcome::kFixed : FaultOutcome::kToUser;
  }
  EXPECT_EQ(memory_->write(at, &value, sizeof(value)), wanted);
  if (wanted == FaultOutcome::kFixed) note_store(target, value);
}

void MemoryModel::prefault() {
  const Target target = some_target();
  Fault fault;
  fault.gpa = Gpa(target.gpa);
  fault.prefetch = true;
  static_cast<void>(memory_->handle_fault(*contexts_[0], fault));
}

// The client unmaps, forgets, protects; the bell rings for what is lost.
void MemoryModel::change_client_pages() {
  const u64 first = random_.below(kPages);
  const u64 count =
      1 + random_.below(std::min<u64>(kPages - first, random_.one_in(4) ? kPages : 8));
  void* at = reinterpret_cast<void*>(address(first));
  const u64 bytes = count * kPageSize;
  const u64 what = random_.below(4);
  const auto kind = what == 0   ? host::EventKind::kUnmap
                    : what == 1 ? host::EventKind::kClear
                                : host::EventKind::kProtection;
  const Right right = what < 2 || what == 3 ? Right::kAll
                      : random_.one_in(2)   ? Right::kRead
                                            : Right::kNone;
  host::change(address(first), bytes, kind, [&] {
    if (what == 0) {
      mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    } else if (what == 1) {
      mprotect(at, bytes, PROT_READ | PROT_WRITE);
      madvise(at, bytes, MADV_DONTNEED);
    } else {
      mprotect(at, bytes,
               right == Right::kAll    ? PROT_READ | PROT_WRITE
               : right == Right::kRead ? PROT_READ
                                       : PROT_NONE);
    }
  });
  for (u64 page = first; page < first + count; ++page) {
    if (what < 2) pages_[page].value = 0;
    pages_[page].right = right;
  }
}

int MemoryModel::region(u32 id, const NaiveSlot& slot, u64 size) {
  Region asked;
  asked.slot = id;
  asked.flags = slot.flags;
  asked.gpa = slot.gpa;
  asked.size = size;
  asked.hva = address(slot.first);
  memory_->set_slot_zap_all(random_.one_in(2));
  const auto done = memory_->slots().set_region(asked);
  return done ? 0 : to_int(done.error());
}

// Makes a slot, or moves the one of that number.
void MemoryModel::set_slot() {
  const u32 id = static_cast<u32>(random_.below(kSlots));
  NaiveSlot slot;
  const auto old = slots_.find(id);
  if (old != slots_.end()) slot = old->second;
  slot.gpa = random_.below(8) * (512 * kPageSize) + random_.below(2) * 5 * kPageSize;
  if (old == slots_.end()) {
    slot.first = random_.one_in(2) ? random_.below(512) : 0;
    slot.pages = 1 + (random_.one_in(2) ? random_.below(8) : random_.below(kPages - slot.first));
    slot.flags = (random_.one_in(6) ? kReadonly : 0) | (random_.one_in(3) ? kLogDirtyPages : 0);
  }
  bool overlaps = false;
  for (const auto& [other_id, other] : slots_) {
    if (other_id == id) continue;
    overlaps |= slot.gpa < other.gpa + other.pages * kPageSize &&
                other.gpa < slot.gpa + slot.pages * kPageSize;
  }
  EXPECT_EQ(region(id, slot, slot.pages * kPageSize), overlaps ? EEXIST : 0);
  if (overlaps) return;
  if (old != slots_.end() && old->second.gpa != slot.gpa) slot.tracked.clear();
  slots_[id] = slot;
}

void MemoryModel::flip_flags() {
  const auto at = slots_.find(static_cast<u32>(random_.below(kSlots)));
  if (at == slots_.end()) return;
  at->second.flags ^= kLogDirtyPages;
  EXPECT_EQ(region(at->first, at->second, at->second.pages * kPageSize), 0);
  at->second.stored.clear();
}

void MemoryModel::remove_slot() {
  const auto at = slots_.find(static_cast<u32>(random_.below(kSlots)));
  if (at == slots_.end()) return;
  NaiveSlot gone = at->second;
  gone.flags = 0;
  EXPECT_EQ(region(at->first, gone, 0), 0);
  slots_.erase(at);
}

// A harvest names every page stored to since the one before; by GET alone or by GET and CLEAR.
void MemoryModel::harvest() {
  const auto at = slots_.find(static_cast<u32>(random_.below(kSlots)));
  if (at == slots_.end()) return;
  NaiveSlot& slot = at->second;
  if (random_.one_in(16)) {
    manual_ = !manual_;
    memory_->slots().set_dirty_protect({.manual = manual_});
  }
  const Hva to(bitmap_.address());
  const bool logged = (slot.flags & kLogDirtyPages) != 0;
  ASSERT_EQ(memory_->slots().get_dirty_log(at->first, to).has_value(), logged);
  if (!logged) return;
  const auto* words = static_cast<const u64*>(bitmap_.pointer());
  for (const u64 page : slot.stored) {
    EXPECT_NE(words[page / 64] >> page % 64 & 1, 0U) << "page " << page;
  }
  if (manual_) {
    const u64 first = random_.below(slot.pages) & ~u64{63};
    const u64 count = slot.pages - first;
    for (u64 i = 0; i < count; i += 64) {
      static_cast<u64*>(bitmap_.pointer())[i / 64] = words[(first + i) / 64];
    }
    ASSERT_TRUE(memory_->slots().clear_dirty_log(at->first, first, static_cast<u32>(count), to));
    std::erase_if(slot.stored, [first](u64 page) { return page >= first; });
  } else {
    slot.stored.clear();
  }
}

void MemoryModel::track() {
  const Target target = some_target();
  if (target.slot == nullptr) return;
  const Gfn gfn(target.gpa / kPageSize);
  if (target.slot->tracked.erase(target.page) != 0) {
    EXPECT_TRUE(memory_->slots().untrack_writes(0, gfn));
  } else if (memory_->slots().track_writes(0, gfn)) {
    target.slot->tracked.insert(target.page);
  }
}

// A fault that is refused memory says so or does without, and leaves the world whole.
void MemoryModel::without_memory() {
  const Target target = some_target();
  Fault fault;
  failpoint::arm(nullptr, 1 + random_.below(4), 1 + random_.below(40));
  const FaultOutcome outcome = translate(target, Access::kRead, &fault);
  failpoint::disarm();
  line_.leave();
  refused += outcome == FaultOutcome::kNoMemory;
  if (outcome != FaultOutcome::kNoMemory) {
    EXPECT_EQ(outcome, expected(target, Access::kRead));
  }
  EXPECT_EQ(translate(target, Access::kRead, &fault), expected(target, Access::kRead));
  line_.leave();
}

// A page is old once its bits are taken, and young once a guest has used it.
void MemoryModel::age() {
  const Target target = some_target();
  if (target.slot == nullptr) return;
  const HvaRange page(Hva(address(target.slot->first + target.page)), kPageSize);
  static_cast<void>(random_.one_in(2) ? host::clear_young(page) : host::clear_flush_young(page));
  EXPECT_FALSE(host::test_young(page));
  Fault fault;
  const FaultOutcome outcome = translate(target, Access::kRead, &fault);
  line_.leave();
  EXPECT_EQ(host::test_young(page), outcome == FaultOutcome::kFixed);
}

void MemoryModel::step() {
  const u64 dice = random_.below(100);
  if (slots_.empty() || dice < 5) {
    set_slot();
  } else if (dice < 62) {
    guest_access();
  } else if (dice < 70) {
    own_access();
  } else if (dice < 72) {
    prefault();
  } else if (dice < 80) {
    change_client_pages();
  } else if (dice < 83) {
    remove_slot();
  } else if (dice < 87) {
    flip_flags();
  } else if (dice < 93) {
    harvest();
  } else if (dice < 95) {
    track();
  } else if (dice < 96) {
    age();
  } else if (dice < 98) {
    without_memory();
  } else {
    // Numbers of the slots' sets go round; they never go back.
    const u64 near = (memory_->slots().generation() | kMmioGenerationMask) - 5;
    if (near > memory_->slots().generation()) memory_->slots().debug_set_generation(near);
  }
}

TEST(GuestMemoryModel, AVmsMemoryIsWhatItsClientKnowsItToBe) {
  constexpr u64 kStepsOfALife = 5'000;
  ASSERT_TRUE(host::backstop::install());
  const u64 seed = test::announced_seed("GuestMemoryModel");
  test::ModelTime time(1);
  u64 accesses = 0;
  u64 refused = 0;
  bool more = true;
  static_cast<void>(GuestMemory::create(SlotPolicy{}));  // the bell's roster stays
  for (u64 life = 0; more; ++life) {
    const s64 before = alloc_use().bytes;
    {
      MemoryModel model(seed + life);
      for (u64 step = 0; step < kStepsOfALife && (more = time.another()); ++step) {
        model.step();
        model.check_world();
        if (HasFailure()) {
          std::printf("life %llu, step %llu\n", static_cast<unsigned long long>(life),
                      static_cast<unsigned long long>(step));
          return;
        }
      }
      accesses += model.accesses;
      refused += model.refused;
    }
    ASSERT_EQ(alloc_use().bytes, before) << "something is left of life " << life;
  }
  std::printf("%llu steps, %llu guest accesses, %llu refused for want of memory\n",
              static_cast<unsigned long long>(time.steps()),
              static_cast<unsigned long long>(accesses), static_cast<unsigned long long>(refused));
}

}  // namespace
}  // namespace stagetwo::stage2
