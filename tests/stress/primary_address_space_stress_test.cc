// SPDX-License-Identifier: Apache-2.0
// Goal: whatever the process does to its addresses, nobody who borrowed them reads or writes an old
// meaning: two VMs with a vCPU each, a device with private memory and one with coherent memory, and
// the process itself agree with a naive model of every byte. Method: a thread that maps, unmaps,
// moves, protects and discards pages under both slots, beside the same calls on memory that nobody
// borrows, which say what has to come of each; what is unmapped is poisoned where it can still be
// reached, and looked at again much later.
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "host/userfault.h"
#include "mirror/mirror.h"
#include "stage2/address_space.h"
#include "tests/stress/address_space_model.h"
#include "tests/stress/address_space_mutator.h"
#include "tests/support/region.h"

namespace stagetwo::test {
namespace {

// Somebody who reads and writes pages at the process's addresses.
class Subscriber {
 public:
  Subscriber(AddressSpaceModel& model, unsigned id, u64 seed)
      : model_(model), id_(id), random_(seed + id) {}
  virtual ~Subscriber() = default;

  void run(const std::atomic<bool>& stop) {
    while (!stop.load(std::memory_order_relaxed)) round();
    quit();
  }
  u64 reads = 0;
  u64 writes = 0;
  u64 refusals = 0;

 protected:
  virtual void round() = 0;
  virtual void quit() {}

  AddressSpaceModel& model_;
  unsigned id_;
  RandomSource random_;
};

// A cache of translations that lives from a fault to the next acknowledged flush.
class Vcpu final : public Subscriber {
 public:
  Vcpu(AddressSpaceModel& model, unsigned id, u64 seed, std::vector<u64> gpas)
      : Subscriber(model, id, seed),
        memory_(std::move(*stage2::GuestMemory::create(stage2::SlotPolicy{}))),
        gpas_(std::move(gpas)) {
    for (u32 slot = 0; slot < gpas_.size(); ++slot) {
      stage2::Region region =
          test::region_of(slot, gpas_[slot], kModelPages * kPageSize, model.page_at(0).raw());
      EXPECT_TRUE(memory_->slots().set_region(region));
    }
    context_ = std::move(*memory_->new_context());
    memory_->lines().add(line_);
  }
  ~Vcpu() override {
    memory_->lines().remove(line_);
    memory_->check_world();
  }

  // Alone: the whole page, or nothing.
  bool read_page(unsigned page, u64* words) {
    quit();
    enter();
    const Hva* at = translation(page, Access::kRead);
    const bool read = at != nullptr && host::copy_from(words, *at, kPageSize) == kPageSize;
    line_.leave();
    return read;
  }

 private:
  struct Cached {
    Hva at;
    bool writable = false;
  };

  void round() override {
    enter();
    for (int i = 0; i < 8; ++i) access();
    if (line_.poll()) forget();
    line_.leave();
  }
  void quit() override { forget(); }

  void access() {
    const unsigned page = random_.small(kModelPages);
    const unsigned word = random_.small(kModelWords);
    if (model_.writer_of(page) == id_ && random_.one_in(2)) return write(page, word);
    WordRead read(model_, page, word);
    const Hva* at = translation(page, Access::kRead);
    u64 value = 0;
    if (at != nullptr && !host::load(*at + 8 * word, &value)) return model_.stale_translation(page);
    if (lost_) return;
    read.finish(at != nullptr, value);
    ++(at != nullptr ? reads : refusals);
  }
  void write(unsigned page, unsigned word) {
    WordsWrite write(model_, page, id_, word, 1);
    if (!write.may_write()) return;
    const Hva* at = translation(page, Access::kWrite);
    if (at != nullptr && !host::store(*at + 8 * word, write.value())) {
      return model_.stale_translation(page);
    }
    if (lost_) return;
    write.finish(at != nullptr);
    ++(at != nullptr ? writes : refusals);
  }

  void enter() {
    if (line_.enter()) forget();
  }
  void forget() {
    memory_->flushed(*context_);
    for (auto& slot : cached_) {
      for (Cached& page : slot) page = {};
    }
  }
  // RUNNING on entry and on return. Null: no memory for this access, or lost_.
  const Hva* translation(unsigned page, Access access) {
    const auto slot = static_cast<unsigned>(random_.small(static_cast<unsigned>(gpas_.size())));
    Cached& cached = cached_[slot][page];
    lost_ = false;
    if (cached.at != Hva() && (cached.writable || access == Access::kRead)) return &cached.at;
    for (int tries = 0; tries < 1000; ++tries) {
      stage2::Fault f{};
      f.gpa = Gpa(gpas_[slot] + page * kPageSize);
      f.access = access;
      if (memory_->translate(*context_, f) == stage2::Walk::Kind::kHit) {
        cached = {f.page, f.writable};
        return &cached.at;
      }
      line_.leave();
      const stage2::FaultOutcome outcome = memory_->handle_fault(*context_, f);
      if (outcome == stage2::FaultOutcome::kRetry) std::this_thread::yield();
      enter();
      if (outcome == stage2::FaultOutcome::kToUser) return nullptr;
      if (outcome == stage2::FaultOutcome::kMmio || outcome == stage2::FaultOutcome::kNoMemory) {
        ADD_FAILURE() << "outcome " << static_cast<int>(outcome) << " of page " << page;
        return nullptr;
      }
    }
    lost_ = true;
    model_.lost_race();
    return nullptr;
  }

  bool lost_ = false;  // the last translation: somebody was always faster
  Box<stage2::GuestMemory> memory_;
  std::vector<u64> gpas_;
  Box<stage2::MmuContext> context_;
  sync::AckLine line_;
  Cached cached_[2][kModelPages];
};

// Reads and writes whole pages, and takes some away for a while.
class Device final : public Subscriber {
 public:
  Device(AddressSpaceModel& model, unsigned id, u64 seed, unsigned unit)
      : Subscriber(model, id, seed), mirror_(std::move(*mirror::Mirror::open(unit))) {}

  u64 moved = 0;

  bool read_page(unsigned page, u64* words) {
    mirror::Transfer done;
    return mirror_->read(model_.page_at(page), 1, reinterpret_cast<u8*>(words), &done).has_value();
  }

 private:
  void round() override {
    const unsigned page = random_.small(kModelPages);
    if (random_.one_in(16)) return move(page);
    if (model_.writer_of(page) == id_ && random_.one_in(2)) return write(page);
    read(page);
  }
  void read(unsigned page) {
    PageRead read(model_, page);
    mirror::Transfer done;
    const auto result =
        mirror_->read(model_.page_at(page), 1, reinterpret_cast<u8*>(words_), &done);
    if (!result && to_int(result.error()) == EBUSY) return model_.lost_race();
    read.finish(result.has_value(), words_);
    ++(result ? reads : refusals);
  }
  void write(unsigned page) {
    WordsWrite write(model_, page, id_, 0, kModelWords);
    if (!write.may_write()) return;
    for (unsigned i = 0; i < kModelWords; ++i) words_[i] = write.value(i);
    mirror::Transfer done;
    const auto result =
        mirror_->write(model_.page_at(page), 1, reinterpret_cast<const u8*>(words_), &done);
    if (!result && to_int(result.error()) == EBUSY) return model_.lost_race();
    write.finish(result.has_value());
    ++(result ? writes : refusals);
  }
  // Refused where a page cannot move: the bytes are the same in any case.
  void move(unsigned page) {
    const unsigned count = 1 + random_.small(std::min(8U, kModelPages - page));
    const HvaRange range(model_.page_at(page), count * kPageSize);
    switch (random_.small(4)) {
      case 0:
        static_cast<void>(mirror_->migrate_to_system(range));
        break;
      case 1:
        static_cast<void>(mirror_->make_exclusive(range));
        break;
      default:
        static_cast<void>(mirror_->migrate_to_device(range));
    }
    ++moved;
  }

  Box<mirror::Mirror> mirror_;
  u64 words_[kModelWords];
};

// Every subscriber has the process's bytes, and those are the model's.
template <typename Readers>
void compare_at_rest(AddressSpaceModel& model, Readers&& read_by_all) {
  std::vector<u64> mine(kModelWords);
  for (unsigned page = 0; page < kModelPages; ++page) {
    PageRead read(model, page);
    const bool readable = host::copy_from(mine.data(), model.page_at(page), kPageSize) == kPageSize;
    read.finish(readable, mine.data());
    read_by_all(page, readable, mine);
  }
}

class PrimaryAddressSpaceStress : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(host::backstop::install()); }
  void TearDown() override { host::userfault::debug_deny(false); }
  static void run(const Deadline& deadline);
};

void PrimaryAddressSpaceStress::run(const Deadline& deadline) {
  const u64 seed = announced_seed("PrimaryAddressSpaceStress");
  AddressSpaceModel model;
  Mutator mutator(model, seed);
  std::atomic<bool> stop{false};
  {
    Vcpu one(model, 0, seed, {0x100000, 0x4000000});
    Vcpu two(model, 1, seed, {0x200000});
    Device far(model, 2, seed, 0);
    Device near(model, 3, seed, 2);
    Subscriber* subscribers[] = {&one, &two, &far, &near};
    std::vector<std::thread> threads;
    for (Subscriber* each : subscribers) threads.emplace_back([each, &stop] { each->run(stop); });
    while (deadline.running() && !testing::Test::HasFailure()) mutator.step();
    stop = true;
    for (std::thread& thread : threads) thread.join();
    if (testing::Test::HasFailure()) mutator.print_calls();
    std::vector<u64> theirs(kModelWords);
    compare_at_rest(model, [&](unsigned page, bool readable, const std::vector<u64>& mine) {
      const auto agrees = [&](const char* who, bool read) {
        EXPECT_EQ(readable, read) << who << ", page " << page;
        EXPECT_TRUE(!read || theirs == mine) << who << " has other bytes in page " << page;
      };
      agrees("first vCPU", one.read_page(page, theirs.data()));
      agrees("second vCPU", two.read_page(page, theirs.data()));
      agrees("private device", far.read_page(page, theirs.data()));
      agrees("coherent device", near.read_page(page, theirs.data()));
    });
    std::printf("%llu changes, of them %llu moves and %llu refused, %llu lost races;",
                static_cast<unsigned long long>(mutator.steps),
                static_cast<unsigned long long>(mutator.moved),
                static_cast<unsigned long long>(mutator.refused),
                static_cast<unsigned long long>(model.lost_races()));
    for (const Subscriber* each : subscribers) {
      std::printf(" %llu/%llu/%llu", static_cast<unsigned long long>(each->reads),
                  static_cast<unsigned long long>(each->writes),
                  static_cast<unsigned long long>(each->refusals));
      EXPECT_GT(each->reads, 0U);
      EXPECT_GT(each->writes, 0U);
    }
    std::printf(" reads/writes/refusals, %llu/%llu moves\n",
                static_cast<unsigned long long>(far.moved),
                static_cast<unsigned long long>(near.moved));
  }
  mutator.check_all_poison();
  EXPECT_GT(mutator.moved, 0U);
  EXPECT_GT(mutator.refused, 0U);
}

TEST_F(PrimaryAddressSpaceStress, FourSubscribersAgreeWithAModelOfEveryByte) {
  run(Deadline());
}

// Pages that are with a device hide behind PROT_NONE.
TEST_F(PrimaryAddressSpaceStress, TheyDoWhereUserfaultfdIsDenied) {
  host::userfault::debug_deny(true);
  run(Deadline(0.2));
}

}  // namespace
}  // namespace stagetwo::test
