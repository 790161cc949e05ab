// SPDX-License-Identifier: Apache-2.0
#pragma once

// Slots with a recording world around them, and their naive model beside them.

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "base/failpoint.h"
#include "stage2/memslots.h"
#include "tests/support/region.h"
#include "tests/support/slot_model.h"

namespace stagetwo::stage2 {

class RecordingHost final : public SlotUpdateHost {
 public:
  void close_range(HvaRange range) override {
    ++closed;
    last = range;
    log += "close ";
  }
  void zap_slot(const Slot& slot, bool) override {
    EXPECT_EQ(last, slot.hvas());
    log += "zap ";
  }
  void zap_frames(u32 address_space, GfnRange frames) override {
    EXPECT_EQ(0U, address_space);
    zapped = frames;
    log += "frames ";
  }
  void protect_pages(const Slot&, u64, const u64*, u64, bool) override { log += "protect "; }
  void slots_changed() override { log += "changed "; }
  void logging_changed(const Slot& old, const Slot& fresh, bool) override {
    EXPECT_NE(old.flags & kLogDirtyPages, fresh.flags & kLogDirtyPages);
    log += "logging ";
  }
  void generation_wraps() override {
    ++wraps;
    if (at_wrap) at_wrap();
  }
  void flush_and_wait() override {
    log += "flush ";
    if (at_flush) at_flush();
  }
  void open_range(HvaRange range) override {
    EXPECT_EQ(last, range);
    --closed;
    log += "open ";
  }
  int closed = 0;
  int wraps = 0;
  HvaRange last;
  GfnRange zapped;
  std::string log;
  std::function<void()> at_wrap;
  std::function<void()> at_flush;
};

class Binder final : public MemfdBinder {
 public:
  Result<void> bind(Slot*, const Region&) override {
    ++bound;
    return {};
  }
  void unbind(Slot*) override { --bound; }
  int bound = 0;
};

// A world of slots and its model, side by side.
struct World {
  RecordingHost host;
  Binder binder;
  test::SlotModel model;
  std::unique_ptr<Memslots> slots;

  explicit World(bool memfd = false, u32 spaces = 1) {
    model.memfd = memfd;
    model.spaces = spaces;
    SlotPolicy policy;
    policy.address_spaces = spaces;
    policy.max_gfn = model.max_gfn;
    policy.binder = memfd ? &binder : nullptr;
    slots = std::make_unique<Memslots>(&host, policy);
    EXPECT_TRUE(slots->init());
  }
  ~World() {
    failpoint::disarm();
    slots.reset();
    EXPECT_EQ(0, host.closed);
  }
  int set(const Region& region) {
    const auto done = slots->set_region(region);
    return done ? 0 : to_int(done.error());
  }
  // A call that must succeed, made to both.
  void good(const Region& region) {
    ASSERT_EQ(0, model.first_line(region));
    ASSERT_EQ(0, set(region));
    model.apply(region);
  }
  void lower_max_gfn(u64 max_gfn) {
    model.max_gfn = max_gfn;
    slots->set_max_gfn(max_gfn);
  }
  void track_writes() {
    model.tracked = true;
    slots->set_write_tracked(true);
  }
  void set_total(u64 pages) {
    model.total = pages;
    slots->debug_set_total_pages(pages);
  }
  void run_out_of_memory() {
    model.no_memory = true;
    failpoint::arm(nullptr, 1, failpoint::kForever);
  }
};

inline constexpr u64 kMiB = 1 << 20;
inline constexpr u64 kHva = 0x7f0000000000;

inline Region plain(u32 slot, u64 gpa, u64 size = 16 * 4096, u64 hva = kHva, u32 flags = 0) {
  return test::region_of(slot, gpa, size, hva, flags);
}
inline Region erase(u32 slot) {
  return plain(slot, 0, 0, 0);
}

}  // namespace stagetwo::stage2
