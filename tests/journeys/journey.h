// SPDX-License-Identifier: Apache-2.0
#pragma once

// The steps a request took, as the trace has them: (room, number of the step in the document).
// Rooms are counted as the documents count them: `base`, `sync`, `addr` and `pt` are furniture.

#include <set>
#include <utility>
#include <vector>

#include "base/trace.h"

namespace stagetwo::test {

using Step = std::pair<trace::Room, u64>;

struct Journey {
  std::vector<Step> steps;
  std::set<trace::Room> rooms;
};

// What was traced while `request` ran. Pre: tracing has been started.
template <typename F>
Journey journey_of(F&& request) {
  const u64 since = trace::written();
  request();
  Journey journey;
  u64 position = trace::written() - since;
  std::vector<trace::Record> records;
  trace::for_each([&](const trace::Record& record) { records.push_back(record); });
  if (position > records.size()) position = records.size();
  for (size_t i = records.size() - position; i < records.size(); ++i) {
    const trace::Record& record = records[i];
    if (record.room <= trace::Room::pt) continue;
    journey.rooms.insert(record.room);
    if (record.event == trace::Event::st_room)
      journey.steps.emplace_back(record.room, record.arg[0]);
  }
  return journey;
}

}  // namespace stagetwo::test
