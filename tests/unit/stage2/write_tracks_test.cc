// SPDX-License-Identifier: Apache-2.0
// Goal: a tracked frame is known as such, forbids the huge mappings that would cover it and no
// others, and is forgotten with its slot. Method: against counts kept in a map.
#include "stage2/write_tracks.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "stage2/memslots.h"
#include "tests/support/random_source.h"

namespace stagetwo::stage2 {
namespace {

TEST(WriteTracks, CountsOfEveryLevelAreThoseOfTheFrames) {
  constexpr u64 kFirst = 0x3fe00 - 7;  // crosses a border of every level
  constexpr u64 kPages = 2 * 512 + 20;
  test::RandomSource random(test::announced_seed("WriteTracks"));
  WriteTracks* tracks = *WriteTracks::create({Gfn(kFirst), kPages});
  std::map<u64, u32> model;
  const auto below = [&](u64 gfn, unsigned shift) {
    const auto from = model.lower_bound(gfn >> shift << shift);
    return from != model.end() && from->first >> shift == gfn >> shift;
  };
  for (int round = 0; round < 20'000; ++round) {
    const u64 gfn = kFirst + random.below(kPages);
    if (random.one_in(2)) {
      ASSERT_EQ(model[gfn]++ == 0, *tracks->add(Gfn(gfn)));
    } else if (model.contains(gfn)) {
      const bool last = --model[gfn] == 0;
      ASSERT_EQ(last, tracks->remove(Gfn(gfn)));
      if (last) model.erase(gfn);
    }
    const u64 other = kFirst + random.below(kPages);
    ASSERT_EQ(model.contains(other), tracks->is_tracked(Gfn(other)));
    ASSERT_EQ(!below(other, 9), tracks->permits(2, Gfn(other)));
    ASSERT_EQ(!below(other, 18), tracks->permits(3, Gfn(other)));
    ASSERT_EQ(model.size(), tracks->total());
  }
  WriteTracks::destroy(tracks);
}

TEST(WriteTracks, ACounterThatIsFullRefusesTheNext) {
  WriteTracks* tracks = *WriteTracks::create({Gfn(0), 1});
  for (int i = 0; i < 0xffff; ++i) ASSERT_TRUE(tracks->add(Gfn(0)));
  EXPECT_EQ(EOVERFLOW, to_int(tracks->add(Gfn(0)).error()));
  EXPECT_FALSE(tracks->remove(Gfn(0)));
  WriteTracks::destroy(tracks);
}

TEST(MaxLevel, IsAsLargeAsSlotAndAlignmentAllow) {
  const u64 hva = u64{1} << 40;
  Slot slot{.base_gfn = Gfn(0x40000), .page_count = 0x40000 + 0x300, .hva = Hva(hva)};
  EXPECT_EQ(3U, slot.max_level(Gfn(0x40000)));
  EXPECT_EQ(3U, slot.max_level(Gfn(0x7ffff)));
  EXPECT_EQ(2U, slot.max_level(Gfn(0x80000)));
  EXPECT_EQ(1U, slot.max_level(Gfn(0x80200)));  // its 2 MiB are not all in the slot
  slot.hva = Hva(hva + (u64{2} << 20));
  EXPECT_EQ(2U, slot.max_level(Gfn(0x40000)));  // aligned alike up to 2 MiB
  slot.hva = Hva(hva + 0x1000);
  EXPECT_EQ(1U, slot.max_level(Gfn(0x40000)));
  slot.hva = Hva(hva);
  slot.flags = kLogDirtyPages;
  EXPECT_EQ(1U, slot.max_level(Gfn(0x40000)));
}

TEST(MaxLevel, ATrackedFrameForbidsWhatWouldCoverIt) {
  Slot slot{.base_gfn = Gfn(0), .page_count = 0x80000, .hva = Hva(u64{1} << 40)};
  slot.tracks.set(*WriteTracks::create(slot.gfns()));
  ASSERT_TRUE(slot.tracks.get()->add(Gfn(0x40203)));
  EXPECT_EQ(1U, slot.max_level(Gfn(0x40200)));
  EXPECT_EQ(2U, slot.max_level(Gfn(0x40400)));
  EXPECT_EQ(3U, slot.max_level(Gfn(0)));
  WriteTracks::destroy(slot.tracks.get());
}

// What tracking asks of the world around the slots.
class RecordingHost final : public SlotUpdateHost {
 public:
  void close_range(HvaRange range) override {
    closed = range;
    log += "close ";
  }
  void zap_slot(const Slot&, bool) override {}
  void zap_frames(u32, GfnRange frames) override {
    EXPECT_TRUE(slots->tracks_writes());  // counted before the zap: I2
    zapped = frames;
    log += "zap ";
  }
  void protect_pages(const Slot&, u64, const u64*, u64, bool) override {}
  void slots_changed() override {}
  void logging_changed(const Slot&, const Slot&, bool) override {}
  void flush_and_wait() override { log += "flush "; }
  void open_range(HvaRange range) override {
    EXPECT_EQ(closed, range);
    log += "open ";
  }
  void generation_wraps() override {}
  Memslots* slots = nullptr;
  HvaRange closed;
  GfnRange zapped;
  std::string log;
};

class TrackedSlots : public testing::Test {
 protected:
  void SetUp() override {
    slots_ = std::make_unique<Memslots>(&host_, SlotPolicy{});
    ASSERT_TRUE(slots_->init());
    host_.slots = slots_.get();
    ASSERT_EQ(0, set(16 * 4096));
  }
  int set(u64 size, u64 gpa = 0, u32 flags = 0) {
    Region region;
    region.size = size;
    region.gpa = gpa;
    region.flags = flags;
    region.hva = 0x10000000;
    const auto done = slots_->set_region(region);
    host_.log.clear();
    return done ? 0 : to_int(done.error());
  }
  bool tracked(u64 gfn) {
    const Memslots::Reader reader(*slots_);
    const Slot* slot = reader.find(0, Gfn(gfn));
    return slot != nullptr && slot->is_write_tracked(Gfn(gfn));
  }
  RecordingHost host_;
  std::unique_ptr<Memslots> slots_;
};

TEST_F(TrackedSlots, TheFirstTrackTakesTheFramesTranslationsAway) {
  EXPECT_FALSE(slots_->tracks_writes());
  ASSERT_TRUE(slots_->track_writes(0, Gfn(5)));
  EXPECT_EQ("close zap flush open ", host_.log);
  EXPECT_EQ((HvaRange{Hva(0x10005000), 4096}), host_.closed);
  EXPECT_EQ((GfnRange{Gfn(5), 1}), host_.zapped);
  EXPECT_TRUE(tracked(5));
  EXPECT_FALSE(tracked(6));
  host_.log.clear();
  ASSERT_TRUE(slots_->track_writes(0, Gfn(5)));
  EXPECT_EQ("", host_.log);  // nobody can have one
  ASSERT_TRUE(slots_->untrack_writes(0, Gfn(5)));
  EXPECT_TRUE(tracked(5));
  ASSERT_TRUE(slots_->untrack_writes(0, Gfn(5)));
  EXPECT_FALSE(tracked(5));
  EXPECT_FALSE(slots_->tracks_writes());
}

TEST_F(TrackedSlots, RefusalsChangeNothing) {
  EXPECT_EQ(EINVAL, to_int(slots_->track_writes(0, Gfn(16)).error()));
  EXPECT_EQ(EINVAL, to_int(slots_->track_writes(1, Gfn(5)).error()));
  EXPECT_EQ(EINVAL, to_int(slots_->untrack_writes(0, Gfn(5)).error()));
  const AllocUse before = alloc_use();
  const u64 refused = failpoint::sweep([&] {
    const auto done = slots_->track_writes(0, Gfn(5));
    if (!done) {
      EXPECT_EQ(ENOMEM, to_int(done.error()));
      EXPECT_EQ(before.blocks, alloc_use().blocks);
      EXPECT_FALSE(slots_->tracks_writes());
    }
  });
  EXPECT_EQ(2U, refused);
}

TEST_F(TrackedSlots, TracksStayWithAChangeOfFlagsAndGoWithTheSlot) {
  ASSERT_TRUE(slots_->track_writes(0, Gfn(5)));
  ASSERT_EQ(0, set(16 * 4096, 0, kLogDirtyPages));
  EXPECT_TRUE(tracked(5));
  ASSERT_EQ(0, set(16 * 4096, 0x100000));
  EXPECT_FALSE(tracked(0x105));
  EXPECT_FALSE(slots_->tracks_writes());
  ASSERT_TRUE(slots_->track_writes(0, Gfn(0x105)));
  ASSERT_EQ(0, set(0));
  EXPECT_FALSE(slots_->tracks_writes());
}

TEST_F(TrackedSlots, ASlotUnderAnExternalTrackerDoesNotMove) {
  slots_->set_write_tracked(true);
  EXPECT_EQ(EINVAL, set(16 * 4096, 0x100000));
  slots_->set_write_tracked(false);
  EXPECT_EQ(0, set(16 * 4096, 0x100000));
}

}  // namespace
}  // namespace stagetwo::stage2
