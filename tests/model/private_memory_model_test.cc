// SPDX-License-Identifier: Apache-2.0
// Random files, slots, conversions, punches and accesses on three VMs, with real pages behind them,
// against what their client knows: who is bound where, what is private, and the contents of each
// half of each page.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <memory>

#include "base/failpoint.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "stage2/address_space.h"
#include "tests/model/model_time.h"
#include "tests/support/pages.h"
#include "tests/support/random_source.h"
#include "tests/support/region.h"

namespace stagetwo::stage2 {
namespace {

constexpr u64 kFrames = 64;  // of a VM, and of its client's memory: frame n is page n
constexpr u64 kFilePages = 24;
constexpr u32 kSlots = 6;
constexpr unsigned kVms = 3;
constexpr unsigned kFiles = 2;  // of a VM, at a time

struct ModelFile {
  std::unique_ptr<mem::GuestMemfd> object;
  int fd = -1;
  sync::KeptNumber number{sync::KeptNumber::kNone};
  std::array<u64, kFilePages> words{};
};

struct NaiveSlot {
  u64 gfn = 0;
  u64 pages = 0;
  ModelFile* file = nullptr;  // null: none, or it was closed
  bool had_file = false;
  u64 first = 0;
};

// One VM, its files, and what is known of both.
class ModelVm {
 public:
  explicit ModelVm(test::RandomSource& random) : random_(random) {
    SlotPolicy policy;
    policy.private_memory = policy.guest_memfd = true;
    memory_ = std::move(*GuestMemory::create(policy));
    context_ = std::move(*memory_->new_context());
    memory_->lines().add(line_);
    memory_->set_slot_zap_all(random_.one_in(2));
  }
  ~ModelVm() {
    failpoint::disarm();
    // In any order: files first, or the slots that are bound to them.
    const bool slots_first = random_.one_in(2);
    if (slots_first) remove_all_slots();
    for (ModelFile& file : files_) close_file(file);
    if (!slots_first && random_.one_in(2)) remove_all_slots();
    memory_->lines().remove(line_);
    context_.reset();
  }
  void step() {
    const u64 dice = random_.below(100);
    if (dice < 50) return access();
    if (dice < 60) return convert();
    if (dice < 70) return punch();
    if (dice < 80) return set_slot();
    if (dice < 84) return remove_slot();
    if (dice < 87) return open_file();
    if (dice < 89) return close_file(files_[random_.below(kFiles)]);
    if (dice < 92) return allocate();
    if (dice < 97) return discard_shared();
    without_memory();
  }
  void check_world() { memory_->check_world(); }
  u64 accesses = 0;
  u64 refused = 0;

 private:
  NaiveSlot* slot_at(u64 gfn) {
    for (auto& [id, slot] : slots_) {
      if (gfn >= slot.gfn && gfn < slot.gfn + slot.pages) return &slot;
    }
    return nullptr;
  }
  u64 address(u64 frame) const { return client_.address() + frame * kPageSize; }

  // --- accesses ---

  FaultOutcome translate(u64 gfn, Access access, Fault* fault) {
    for (;;) {
      *fault = {};
      fault->gpa = Gpa(gfn * kPageSize);
      fault->access = access;
      if (line_.enter() || random_.one_in(64)) memory_->flushed(*context_);
      const Walk::Kind found = memory_->translate(*context_, *fault);
      if (found == Walk::Kind::kHit) return FaultOutcome::kFixed;  // in the section
      line_.leave();
      if (found == Walk::Kind::kMmio) return FaultOutcome::kMmio;
      const FaultOutcome outcome = memory_->handle_fault(*context_, *fault);
      if (outcome != FaultOutcome::kFixed && outcome != FaultOutcome::kSpurious &&
          outcome != FaultOutcome::kRetry) {
        return outcome;
      }
    }
  }
  // The word the client knows of, or why there is none.
  u64* known(u64 gfn, FaultOutcome* outcome) {
    NaiveSlot* slot = slot_at(gfn);
    *outcome = FaultOutcome::kFixed;
    if (slot == nullptr) {
      *outcome = private_[gfn] ? FaultOutcome::kMemoryFault : FaultOutcome::kMmio;
      return nullptr;
    }
    if (!private_[gfn]) return &shared_[gfn];
    if (slot->file == nullptr) {
      *outcome = FaultOutcome::kMemoryFault;
      return nullptr;
    }
    return &slot->file->words[slot->first + (gfn - slot->gfn)];
  }
  void access() {
    u64 gfn = random_.below(kFrames);
    if (!slots_.empty() && !random_.one_in(8)) {  // mostly where something is
      const auto at =
          std::next(slots_.begin(), static_cast<std::ptrdiff_t>(random_.below(slots_.size())));
      gfn = at->second.gfn + random_.below(at->second.pages);
    }
    const Access access = random_.one_in(2) ? Access::kWrite : Access::kRead;
    FaultOutcome expected = FaultOutcome::kFixed;
    u64* const word = known(gfn, &expected);
    Fault fault;
    const FaultOutcome outcome = translate(gfn, access, &fault);
    // A frame that was looked at as "no slot" while it was shared stays the VMM's until a slot
    // changes, as the kernel's cached entry does.
    const bool cached = expected == FaultOutcome::kMemoryFault && outcome == FaultOutcome::kMmio &&
                        slot_at(gfn) == nullptr;
    ASSERT_TRUE(cached || expected == outcome)
        << "frame " << gfn << ": " << static_cast<int>(outcome);
    EXPECT_EQ(outcome == FaultOutcome::kMemoryFault ? EFAULT : 0, fault.error);
    if (outcome != FaultOutcome::kFixed) return;
    ++accesses;
    u64 value = ~u64{0};
    EXPECT_TRUE(host::load(fault.page, &value));
    EXPECT_EQ(*word, value) << "frame " << gfn << (private_[gfn] ? " private" : " shared");
    if (access == Access::kWrite) {
      *word = random_.next();
      EXPECT_TRUE(host::store(fault.page, *word));
    }
    line_.leave();
  }
  // The client's own: a page of its memory goes, or is written.
  void discard_shared() {
    const u64 gfn = random_.below(kFrames);
    if (random_.one_in(2)) {
      shared_[gfn] = random_.next();
      EXPECT_TRUE(host::store(Hva(address(gfn)), shared_[gfn]));
      return;
    }
    const u64 count = 1 + random_.below(kFrames - gfn);
    host::change(address(gfn), count * kPageSize, host::EventKind::kClear, [&] {
      EXPECT_EQ(0,
                ::madvise(reinterpret_cast<void*>(address(gfn)), count * kPageSize, MADV_DONTNEED));
    });
    for (u64 i = 0; i < count; ++i) shared_[gfn + i] = 0;
  }

  // --- attributes ---

  void convert() {
    const u64 first = random_.below(kFrames);
    const u64 count = 1 + random_.below(kFrames - first);
    const bool to_private = random_.one_in(2);
    const auto done =
        memory_->private_memory().set_attributes(GfnRange(Gfn(first), count), to_private);
    if (!done) {
      EXPECT_EQ(ENOMEM, to_int(done.error()));
      ++refused;
      return;
    }
    for (u64 i = 0; i < count; ++i) private_[first + i] = to_private;
  }

  // --- files and slots ---

  void open_file() {
    ModelFile& file = files_[random_.below(kFiles)];
    if (file.object) return;
    file.object = std::make_unique<mem::GuestMemfd>(kFilePages * kPageSize, file.number);
    file.fd = *sys::memfd_create("model", MFD_CLOEXEC);
    file.number.exchange(file.fd);
    ASSERT_TRUE(sys::ftruncate(file.fd, kFilePages * kPageSize));
    file.words = {};
  }
  void close_file(ModelFile& file) {
    if (!file.object) return;
    static_cast<void>(sys::close(file.fd));
    memory_->slots().between_updates([&file] { file.object->release(); });
    file.object.reset();
    for (auto& [id, slot] : slots_) {
      if (slot.file == &file) slot.file = nullptr;
    }
  }
  void punch() {
    ModelFile& file = files_[random_.below(kFiles)];
    if (!file.object) return;
    const u64 first = random_.below(kFilePages);
    const u64 count = 1 + random_.below(kFilePages);  // also beyond the end
    ASSERT_TRUE(file.object->fallocate(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
                                       first * kPageSize, count * kPageSize));
    for (u64 i = first; i < std::min(first + count, kFilePages); ++i) file.words[i] = 0;
  }
  void allocate() {
    ModelFile& file = files_[random_.below(kFiles)];
    if (!file.object) return;
    const u64 first = random_.below(kFilePages);
    const u64 count = 1 + random_.below(kFilePages);
    const bool fits = first + count <= kFilePages;
    const auto done =
        file.object->fallocate(FALLOC_FL_KEEP_SIZE, first * kPageSize, count * kPageSize);
    EXPECT_EQ(fits, done.has_value());
  }
  bool is_bound(const ModelFile& file, u64 first, u64 pages) const {
    for (const auto& [id, slot] : slots_) {
      if (slot.file == &file && first < slot.first + slot.pages && slot.first < first + pages) {
        return true;
      }
    }
    return false;
  }
  // 0 or the errno the client's knowledge calls for. Pre: the region asks for a new slot.
  int verdict(const Region& region, const ModelFile* file, u64 pages) const {
    const u64 gfn = region.gpa / kPageSize;
    for (const auto& [id, slot] : slots_) {
      if (gfn < slot.gfn + slot.pages && slot.gfn < gfn + pages) return EEXIST;
    }
    if ((region.flags & kGuestMemfd) == 0) return 0;
    if (file == nullptr) return EBADF;
    const u64 first = region.memfd_offset / kPageSize;
    return first + pages > kFilePages || is_bound(*file, first, pages) ? EINVAL : 0;
  }
  void set_slot() {
    const u32 id = random_.small(kSlots);
    if (slots_.contains(id)) return;
    const u64 gfn = random_.below(kFrames);
    const u64 pages = 1 + random_.below(std::min<u64>(kFrames - gfn, 20));
    ModelFile& file = files_[random_.below(kFiles)];
    Region region = test::region_of(id, gfn * kPageSize, pages * kPageSize, address(gfn));
    ModelFile* const bound = file.object ? &file : nullptr;
    if (!random_.one_in(4)) {
      region.flags = kGuestMemfd;
      region.memfd_offset = random_.below(kFilePages) * kPageSize;
      region.file = file.object.get();
    }
    const int expected = verdict(region, bound, pages);
    const auto done = memory_->slots().set_region(region);
    const int error = done ? 0 : to_int(done.error());
    if (error == ENOMEM) {
      ++refused;
      return;
    }
    ASSERT_EQ(expected, error);
    if (error != 0) return;
    const bool with_file = (region.flags & kGuestMemfd) != 0;
    slots_[id] = {gfn, pages, with_file ? bound : nullptr, with_file,
                  region.memfd_offset / kPageSize};
  }
  void remove(u32 id) {
    Region region;
    region.slot = id;
    const auto done = memory_->slots().set_region(region);
    if (!done) {
      EXPECT_EQ(slots_.contains(id) ? ENOMEM : EINVAL, to_int(done.error()));
      return;
    }
    slots_.erase(id);
  }
  void remove_slot() { remove(random_.small(kSlots)); }
  void remove_all_slots() {
    while (!slots_.empty()) remove(slots_.begin()->first);
  }
  void without_memory() {
    failpoint::arm(nullptr, 1 + random_.below(4), 1);
    switch (random_.below(3)) {
      case 0:
        convert();
        break;
      case 1:
        set_slot();
        break;
      default:
        remove_slot();
        break;
    }
    failpoint::disarm();
  }

  test::RandomSource& random_;
  test::GuardedPages client_{kFrames};
  std::array<u64, kFrames> shared_{};
  std::array<bool, kFrames> private_{};
  std::array<ModelFile, kFiles> files_{};
  std::map<u32, NaiveSlot> slots_;
  Box<GuestMemory> memory_;
  Box<MmuContext> context_;
  sync::AckLine line_;
};

TEST(PrivateMemoryModel, EachHalfIsWhatItsClientKnowsItToBe) {
  constexpr u64 kStepsOfALife = 5'000;
  ASSERT_TRUE(host::backstop::install());
  test::RandomSource random(test::announced_seed("PrivateMemoryModel"));
  test::ModelTime time(1);
  u64 accesses = 0;
  u64 refused = 0;
  bool more = true;
  static_cast<void>(GuestMemory::create(SlotPolicy{}));  // the bell's roster stays
  for (u64 life = 0; more; ++life) {
    const s64 before = alloc_use().bytes;
    {
      std::array<std::unique_ptr<ModelVm>, kVms> vms;
      for (auto& vm : vms) vm = std::make_unique<ModelVm>(random);
      for (u64 step = 0; step < kStepsOfALife && (more = time.another()); ++step) {
        ModelVm& vm = *vms[random.below(kVms)];
        vm.step();
        vm.check_world();
        if (testing::Test::HasFailure()) {
          std::printf("life %llu, step %llu\n", static_cast<unsigned long long>(life),
                      static_cast<unsigned long long>(step));
          return;
        }
      }
      for (auto& vm : vms) {
        accesses += vm->accesses;
        refused += vm->refused;
      }
    }
    ASSERT_EQ(alloc_use().bytes, before) << "something is left of life " << life;
  }
  std::printf("%llu steps, %llu guest accesses, %llu refused for want of memory\n",
              static_cast<unsigned long long>(time.steps()),
              static_cast<unsigned long long>(accesses), static_cast<unsigned long long>(refused));
}

}  // namespace
}  // namespace stagetwo::stage2
