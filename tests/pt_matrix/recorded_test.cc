// SPDX-License-Identifier: Apache-2.0
// Old or new: every write of an operation is written down, every prefix of the writes is played
// back, and a reader of that state finds for each frame what was there before the operation or what
// is there after it, and once it is new it stays new. A table whose filling is not written yet
// holds garbage, so a link that comes before it is found.

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tests/pt_matrix/formats.h"

namespace stagetwo::pt::test {
namespace {

// The memory as it was at some moment. An entry nobody has written is garbage.
template <Format F>
struct PastMemory {
  using Word = typename F::Word;
  Arena<F>* arena;
  const std::unordered_map<const Entry<F>*, Word>* state;
  bool* met_garbage;
  std::vector<const Entry<F>*>* path;  // the entries read

  Entry<F>* entries(u64 address) const { return arena->at(address); }
  Word load(const Entry<F>* entry) const {
    path->push_back(entry);
    const auto found = state->find(entry);
    if (found != state->end()) return found->second;
    *met_garbage = true;
    return F::kNonpresent;
  }
  // A reader writes nothing.
  void store(Entry<F>*, Word) const { std::abort(); }
  Word exchange(Entry<F>*, Word) const { std::abort(); }
  bool compare_exchange(Entry<F>*, Word&, Word) const { std::abort(); }
  Word fetch_and(Entry<F>*, Word) const { std::abort(); }
  Word fetch_or(Entry<F>*, Word) const { std::abort(); }
};

template <typename R>
class PtRecorded : public ::testing::Test {
 protected:
  using TheFormat = typename R::F;
  using TheWorld = World<TheFormat, R::kRootLevel>;
  using State = std::unordered_map<const Entry<TheFormat>*, typename TheFormat::Word>;
  // What a reader can tell of a frame: address and rights; nothing; or that he met garbage.
  struct Sight {
    bool mapped = false;
    bool garbage = false;
    u64 address = 0;
    typename TheFormat::Attributes attributes{};
    friend bool operator==(const Sight&, const Sight&) = default;
  };

  // A watched frame. What a reader finds is a function of the entries on his path, so he looks
  // again only after one of them was written.
  struct Watched {
    u64 frame;
    Sight before{};
    Sight after{};
    Sight now{};
    std::vector<const Entry<TheFormat>*> path{};
    bool is_new = false;
    bool reads(const Entry<TheFormat>* entry) const { return std::ranges::count(path, entry) > 0; }
  };

  void look(const State& state, Watched& at) {
    at.now = {};
    at.path.clear();
    const PastMemory<TheFormat> memory{&world.arena, &state, &at.now.garbage, &at.path};
    const auto found = find<TheFormat>(world.root, R::kRootLevel, at.frame, 1, memory);
    if (!TheFormat::is_leaf(found.word, found.level)) return;
    at.now.mapped = true;
    at.now.address = leaf_output<TheFormat>(found.word, found.level, at.frame);
    at.now.attributes = TheFormat::attributes(found.word, found.level);
  }

  // The frames worth a look: the ends, their neighbours, and a stride that hits every table.
  static std::set<u64> frames_to_watch(u64 first, u64 frames) {
    std::set<u64> watched;
    const auto watch = [&](u64 frame) {
      if (frame < TheWorld::kLimit) watched.insert(frame);
    };
    for (const u64 end : {first, first + frames}) {
      for (u64 near = 0; near < 5; ++near) watch(end + near - 2);
    }
    const u64 stride = frames / 23 + 1;
    for (u64 offset = 0; offset < frames; offset += stride) watch(first + offset);
    return watched;
  }

  // How many prefixes of operation() show a reader of [first, first + frames) a third thing.
  template <typename Operation>
  u64 third_things(u64 first, u64 frames, Operation&& operation) {
    State state;
    world.arena.for_each_entry([&](Entry<TheFormat>* entry) { state[entry] = entry->load(); });
    std::vector<Watched> watched;
    for (const u64 frame : frames_to_watch(first, frames)) {
      look(state, watched.emplace_back(Watched{.frame = frame}));
      watched.back().before = watched.back().now;
    }

    std::vector<typename Arena<TheFormat>::Write> writes;
    world.arena.log = &writes;
    operation();
    world.arena.log = nullptr;
    writes_seen = writes.size();

    State last = state;
    for (const auto& write : writes) last[write.entry] = write.word;
    changed = 0;
    for (Watched& at : watched) {
      look(last, at);
      at.after = at.now;
      if (at.after != at.before) ++changed;
      look(state, at);
    }

    u64 wrong = 0;
    for (const auto& write : writes) {
      state[write.entry] = write.word;
      for (Watched& at : watched) {
        if (at.reads(write.entry)) look(state, at);
        if (at.now.garbage) {
          ++wrong;
        } else if (at.now == at.after) {
          at.is_new = true;
        } else if (at.now != at.before || at.is_new) {
          ++wrong;
        }
      }
    }
    return wrong;
  }

  // An operation that has to change what a reader finds, or must not.
  template <typename Operation>
  void expect_old_or_new(u64 first, u64 frames, bool changes, Operation&& operation) {
    EXPECT_EQ(third_things(first, frames, operation), 0U);
    EXPECT_GT(writes_seen, 0U) << "the operation did nothing";
    EXPECT_EQ(changed > 0, changes);
  }

  TheWorld world;
  u64 writes_seen = 0;
  u64 changed = 0;
};

TYPED_TEST_SUITE(PtRecorded, Rows, RowNames);

TYPED_TEST(PtRecorded, Map) {
  using F = typename TypeParam::F;
  // One leaf of every size, then a range that needs small and large ones.
  for (const LeafSize size : leaf_sizes<F>(TypeParam::kRootLevel)) {
    const u64 frames = leaf_frames<F>(size);
    const u64 first = frames * 2 <= this->world.kLimit ? frames : 0;
    this->expect_old_or_new(first, frames, true, [&] {
      ASSERT_EQ(this->world.map(first, frames, kTarget<F>, writable<F>()), Errno{0});
    });
    this->world.unmap(0, this->world.kLimit);
  }
  const u64 span = TypeParam::kRootLevel == 1 ? 64 : span_of<F>(2);
  this->expect_old_or_new(span - 3, span + 7, true, [&] {
    const u64 address = kTarget<F> + ((span - 3) << F::kGranuleLg2);
    ASSERT_EQ(this->world.map(span - 3, span + 7, address, read_only<F>()), Errno{0});
  });
}

TYPED_TEST(PtRecorded, MapOverAnEmptyTable) {
  using F = typename TypeParam::F;
  if (TypeParam::kRootLevel < 2 || !F::can_be_leaf(2)) return;
  const u64 frames = span_of<F>(2);
  ASSERT_EQ(this->world.map(frames, 2, kTarget<F>, writable<F>(), 1), Errno{0});
  this->world.unmap(frames, 2);
  this->expect_old_or_new(frames, frames, true, [&] {
    ASSERT_EQ(this->world.map(frames, frames, kTarget<F>, writable<F>()), Errno{0});
  });
}

TYPED_TEST(PtRecorded, AMapThatIsRefusedWritesNothing) {
  using F = typename TypeParam::F;
  const u64 first = TypeParam::kRootLevel == 1 ? 10 : span_of<F>(2) - 4;
  ASSERT_EQ(this->world.map(first + 8, 1, kTarget<F>, read_only<F>()), Errno{0});
  this->third_things(first, 9, [&] {
    EXPECT_EQ(this->world.map(first, 9, kTarget<F>, writable<F>(), 1), Errno{EADDRINUSE});
  });
  EXPECT_EQ(this->writes_seen, 0U);
}

TYPED_TEST(PtRecorded, Zap) {
  using F = typename TypeParam::F;
  // Small leaves, which go with their table or one by one; and every size of leaf.
  const u64 span = TypeParam::kRootLevel == 1 ? 64 : span_of<F>(2);
  for (const u64 first : {span, span - 5}) {
    for (const u64 frames : {span, u64{10}}) {
      ASSERT_EQ(this->world.map(first, frames, kTarget<F>, writable<F>(), 1), Errno{0});
      this->expect_old_or_new(first, frames, true,
                              [&] { EXPECT_EQ(this->world.unmap(first, frames), frames); });
    }
  }
  for (const LeafSize size : leaf_sizes<F>(TypeParam::kRootLevel)) {
    const u64 frames = leaf_frames<F>(size);
    const u64 first = frames * 2 <= this->world.kLimit ? frames : 0;
    ASSERT_EQ(this->world.map(first, frames, kTarget<F>, writable<F>()), Errno{0});
    this->expect_old_or_new(first, frames, true,
                            [&] { EXPECT_EQ(this->world.unmap(first, frames), frames); });
  }
}

TYPED_TEST(PtRecorded, ZapOfTheWholeTree) {
  using F = typename TypeParam::F;
  if (TypeParam::kRootLevel < 2) return;
  const u64 span = span_of<F>(2);
  ASSERT_EQ(this->world.map(span - 2, span + 5, kTarget<F>, writable<F>(), 1), Errno{0});
  this->expect_old_or_new(span - 2, span + 5, true,
                          [&] { this->world.unmap(0, this->world.kLimit); });
}

TYPED_TEST(PtRecorded, Split) {
  using F = typename TypeParam::F;
  for (const LeafSize size : leaf_sizes<F>(TypeParam::kRootLevel)) {
    const u64 frames = leaf_frames<F>(size);
    const u64 first = frames * 2 <= this->world.kLimit ? frames : 0;
    for (unsigned target = 1; target <= size.level; ++target) {
      if (target == size.level && size.contig_lg2 == 0) continue;
      for (const bool write : {false, true}) {
        const auto attributes = write ? writable<F>() : read_only<F>();
        ASSERT_EQ(this->world.map(first, frames, kTarget<F>, attributes), Errno{0});
        this->expect_old_or_new(first, frames, false, [&] {
          ASSERT_TRUE(this->world.mapper.split(first + frames / 2, target));
        });
        this->world.unmap(first, frames);
      }
    }
  }
}

TYPED_TEST(PtRecorded, Collapse) {
  using F = typename TypeParam::F;
  for (unsigned level = 2; level <= TypeParam::kRootLevel; ++level) {
    if (!F::can_be_leaf(level)) continue;
    const u64 frames = span_of<F>(level);
    const u64 first = frames * 2 <= this->world.kLimit ? frames : 0;
    ASSERT_EQ(this->world.map(first, frames, kTarget<F>, writable<F>()), Errno{0});
    ASSERT_TRUE(this->world.mapper.split(first, level - 1));
    this->expect_old_or_new(first, frames, false,
                            [&] { ASSERT_TRUE(this->world.collapse(first, level)); });
    this->world.unmap(first, frames);
  }
}

// The judge is judged: orders that are wrong, and are found to be.

TYPED_TEST(PtRecorded, ATableThatIsLinkedBeforeItIsFilledIsFound) {
  using F = typename TypeParam::F;
  if (TypeParam::kRootLevel < 2 || !F::can_be_leaf(2)) return;
  const u64 frames = span_of<F>(2);
  ASSERT_EQ(this->world.map(frames, frames, kTarget<F>, writable<F>()), Errno{0});
  const u64 wrong = this->third_things(frames, frames, [&] {
    ArenaMemory<F> memory{&this->world.arena};
    const auto leaf = find<F>(this->world.root, TypeParam::kRootLevel, frames, 2, memory);
    Entry<F>* table = this->world.arena.allocate(1);
    memory.store(leaf.entry, F::make_table(this->world.arena.address_of(table), 2));
    fill_split<F>(table, leaf.word, 2, memory);
  });
  EXPECT_GT(wrong, 0U);
  EXPECT_EQ(this->changed, 0U) << "though the end is the same";
}

TYPED_TEST(PtRecorded, ALeafThatIsTakenAwayBeforeItsTableIsLinkedIsFound) {
  using F = typename TypeParam::F;
  if (TypeParam::kRootLevel < 2 || !F::can_be_leaf(2)) return;
  const u64 frames = span_of<F>(2);
  ASSERT_EQ(this->world.map(frames, frames, kTarget<F>, writable<F>()), Errno{0});
  EXPECT_GT(this->third_things(frames, frames,
                               [&] {
                                 this->world.unmap(frames, frames);
                                 ASSERT_EQ(
                                     this->world.map(frames, frames, kTarget<F>, writable<F>(), 1),
                                     Errno{0});
                               }),
            0U);
}

TYPED_TEST(PtRecorded, ATableThatIsNotClearedBeforeItIsLinkedIsFound) {
  using F = typename TypeParam::F;
  if (TypeParam::kRootLevel < 2) return;
  const u64 frames = span_of<F>(2);
  // A neighbour's mapping makes the tables above.
  ASSERT_EQ(this->world.map(2 * frames, 1, kTarget<F>, read_only<F>(), 1), Errno{0});
  const u64 wrong = this->third_things(frames, frames, [&] {
    ArenaMemory<F> memory{&this->world.arena};
    auto* log = std::exchange(this->world.arena.log, nullptr);  // so its clearing is not seen
    Entry<F>* table = this->world.arena.allocate(1);
    this->world.arena.log = log;
    const auto hole = find<F>(this->world.root, TypeParam::kRootLevel, frames, 2, memory);
    memory.store(hole.entry, F::make_table(this->world.arena.address_of(table), 2));
  });
  EXPECT_GT(wrong, 0U);
}

}  // namespace
}  // namespace stagetwo::pt::test
