// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a stage-2 table should hold, known without tables: leaves by their first frame. A leaf that
// stands in the way of another is split into equal parts or taken away; there is nothing else.

#include <map>

#include "base/types.h"

namespace stagetwo::test {

inline constexpr u64 frames_of_level(unsigned level) {
  return u64{1} << (9 * (level - 1));
}

struct NaiveLeaf {
  unsigned level = 1;
  bool young = false;
};

class NaiveTable {
 public:
  using Leaves = std::map<u64, NaiveLeaf>;

  [[nodiscard]] const Leaves& leaves() const { return leaves_; }
  // The first frame of the leaf that covers `frame`, or end().
  [[nodiscard]] Leaves::iterator covering(u64 frame) {
    auto at = leaves_.upper_bound(frame);
    if (at == leaves_.begin()) return leaves_.end();
    --at;
    return frame < at->first + frames_of_level(at->second.level) ? at : leaves_.end();
  }
  // Is there a leaf that has a frame of [first, first + frames)? The first such, or end().
  [[nodiscard]] Leaves::iterator first_in(u64 first, u64 frames) {
    const auto covers = covering(first);
    if (covers != leaves_.end()) return covers;
    const auto next = leaves_.lower_bound(first);
    return next != leaves_.end() && next->first < first + frames ? next : leaves_.end();
  }
  // Whole leaves go, also those that are in the range in part.
  void remove(u64 first, u64 frames) {
    for (auto at = first_in(first, frames); at != leaves_.end(); at = first_in(first, frames)) {
      leaves_.erase(at);
    }
  }
  // Equal parts until a leaf of `level` covers the frame.
  void split(u64 frame, unsigned level) {
    for (auto at = covering(frame); at != leaves_.end() && at->second.level > level;
         at = covering(frame)) {
      const auto [first, leaf] = *at;
      leaves_.erase(at);
      const u64 part = frames_of_level(leaf.level - 1);
      for (u64 i = 0; i < 512; ++i) leaves_[first + i * part] = {leaf.level - 1, leaf.young};
    }
  }
  // A leaf of `level` now covers the frame, and no other leaf has a frame of it.
  NaiveLeaf& map(u64 frame, unsigned level) {
    split(frame, level);
    const auto old = covering(frame);
    if (old != leaves_.end() && old->second.level == level) return old->second;
    const u64 first = frame & ~(frames_of_level(level) - 1);
    remove(first, frames_of_level(level));
    return leaves_[first] = {level, false};
  }
  template <typename F>
  void for_each_in(u64 first, u64 frames, F&& visit) {
    for (auto at = first_in(first, frames); at != leaves_.end() && at->first < first + frames;
         ++at) {
      visit(at->second);
    }
  }
  void clear() { leaves_.clear(); }

 private:
  Leaves leaves_;
};

}  // namespace stagetwo::test
