// SPDX-License-Identifier: Apache-2.0
// Page tables under every schedule: a child is complete before it is linked, makers of the same
// table agree on one, and a split loses no bit that is set meanwhile. The tables are tiny, two
// entries each, and hold garbage until they are cleared.

#include "pt/fmt/stage2.h"
#include "pt/map.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

struct Tiny : pt::Stage2 {
  static constexpr unsigned kIndexBits = 1;
  static constexpr unsigned kMaxLevel = 3;
  static constexpr unsigned index_bits(unsigned) { return kIndexBits; }
  static constexpr bool can_be_leaf(unsigned level) { return level <= 2; }
};
static_assert(pt::Format<Tiny>);

constexpr u64 kTarget = 0x10000, kGarbage = 0xbad0000;
constexpr Tiny::Attributes kWritable{.write = true, .host_writable = true, .mmu_writable = true};

// A few tables, given out in turn.
class Tables {
 public:
  pt::Entry<Tiny>* allocate(unsigned) {
    Table& table = tables_[given_.fetch_add(1, sync::kRelaxed)];
    for (auto& entry : table.entries) entry.store(Tiny::kNonpresent, sync::kRelaxed);
    return table.entries;
  }
  void free(pt::Entry<Tiny>*, unsigned) { returned_.fetch_add(1, sync::kRelaxed); }
  static u64 address_of(pt::Entry<Tiny>* entries) { return reinterpret_cast<u64>(entries); }
  // Nothing is taken out here.
  pt::GatherNode* node_of(pt::Entry<Tiny>*) { return &unused_; }

  // How many are linked.
  [[nodiscard]] u64 count() const { return given_.load() - returned_.load(); }

 private:
  struct alignas(4096) Table {
    pt::Entry<Tiny> entries[2] = {pt::Entry<Tiny>(Tiny::make_leaf(kGarbage, 1, {})),
                                  pt::Entry<Tiny>(Tiny::make_leaf(kGarbage, 1, {}))};
  };
  Table tables_[8];
  sync::Atomic<u64> given_{0};     // written by who takes one
  sync::Atomic<u64> returned_{0};  // written by who gives one back
  pt::GatherNode unused_;
};

struct Tree {
  template <typename M = pt::DirectMemory<u64>>
  auto mapper() {
    return pt::Mapper<Tiny, Tables, M>(root, 3, tables, M{});
  }
  template <typename M = pt::DirectMemory<u64>>
  auto find(u64 frame) {
    return pt::find<Tiny>(root, 3, frame, 1, M{});
  }
  Tables tables;
  pt::Entry<Tiny> root[2];
};

// O6: one thread maps, another looks.
template <typename M>
struct MapAgainstWalk : Tree {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned index) {
    if (index == 0) {
      pt::Gather gather;
      sync::sched::expect(mapper<M>().map(3, 1, kTarget, kWritable, gather).has_value(), "refused");
      gather.flushed();
      return;
    }
    for (unsigned i = 0; i < 2; ++i) {
      for (const u64 frame : {u64{3}, u64{2}}) {
        const auto found = find<M>(frame);
        const bool nothing = found.word == Tiny::kNonpresent;
        const bool mapped = frame == 3 && Tiny::output(found.word) == kTarget;
        sync::sched::expect(nothing || mapped, "a reader met a table before it was cleared");
      }
    }
  }
};
// Twins: the write that links does not release; the read that follows does not acquire.
struct RelaxedWriter : pt::DirectMemory<u64> {
  static bool compare_exchange(pt::Entry<Tiny>* entry, u64& expected, u64 word) {
    return entry->compare_exchange(expected, word, sync::kRelaxed);
  }
};
struct RelaxedReader : pt::DirectMemory<u64> {
  static u64 load(const pt::Entry<Tiny>* entry) { return entry->load(sync::kRelaxed); }
};

TEST(SchedPt, ATableIsClearedBeforeItIsLinked) {
  expect_holds<MapAgainstWalk<pt::DirectMemory<u64>>>();
}
TEST(SchedPt, ALinkThatDoesNotReleaseIsFound) {
  expect_found<MapAgainstWalk<RelaxedWriter>>();
}
TEST(SchedPt, AWalkThatDoesNotAcquireIsFound) {
  expect_found<MapAgainstWalk<RelaxedReader>>();
}

// Two threads map neighbours: both need the same tables.
template <typename M>
struct MapAgainstMap : Tree {
  static constexpr unsigned kThreads = 2;
  sync::Atomic<u64> done{0};
  void thread(unsigned index) {
    pt::Gather gather;
    const u64 frame = 2 + index;
    sync::sched::expect(
        mapper<M>().map(frame, 1, kTarget + index * 0x1000, kWritable, gather, 1).has_value(),
        "refused");
    gather.flushed();
    if (done.fetch_add(1) == 0) return;
    for (const u64 each : {u64{0}, u64{1}}) {
      const auto found = find<M>(2 + each);
      sync::sched::expect(Tiny::output(found.word) == kTarget + each * 0x1000, "a mapping is lost");
    }
    sync::sched::expect(tables.count() == 2, "the loser's tables are given back");
  }
};
// Twin: a link that does not look.
struct BlindLink : pt::DirectMemory<u64> {
  static bool compare_exchange(pt::Entry<Tiny>* entry, u64&, u64 word) {
    entry->store(word, sync::kRelease);
    return true;
  }
};

TEST(SchedPt, MakersOfOneTableAgree) {
  expect_holds<MapAgainstMap<pt::DirectMemory<u64>>>();
}
TEST(SchedPt, ALinkThatDoesNotCompareIsFound) {
  expect_found<MapAgainstMap<BlindLink>>();
}

// One thread splits a leaf, another writes through it and says so.
template <typename M>
struct SplitAgainstWrite : Tree {
  static constexpr unsigned kThreads = 2;
  sync::Atomic<u64> done{0};
  SplitAgainstWrite() {
    pt::Gather gather;
    (void)mapper().map(2, 2, kTarget, kWritable, gather);
    gather.flushed();
  }
  void thread(unsigned index) {
    if (index == 0) {
      sync::sched::expect(mapper<M>().split(2, 1).has_value(), "refused");
    } else {
      for (;;) {
        auto found = find(3);
        sync::sched::expect(Tiny::is_leaf(found.word), "a page vanished while its leaf was split");
        if (found.entry->compare_exchange(found.word, Tiny::written(found.word))) break;
      }
    }
    if (done.fetch_add(1) == 0) return;
    const auto found = find(3);
    sync::sched::expect(found.level == 1 && Tiny::output(found.word) == kTarget + 0x1000, "split");
    sync::sched::expect(Tiny::is_dirty(found.word), "a dirty bit is lost");
  }
};

TEST(SchedPt, ASplitLosesNoDirtyBit) {
  expect_holds<SplitAgainstWrite<pt::DirectMemory<u64>>>();
}
TEST(SchedPt, ASplitThatDoesNotCompareIsFound) {
  expect_found<SplitAgainstWrite<BlindLink>>();
}

}  // namespace
}  // namespace stagetwo::test
