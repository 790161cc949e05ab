// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keeps the frames of a VM that a test says, each at a page of its own.

#include <map>

#include "stage2/frame_keeper.h"

namespace stagetwo::test {

class ToyKeeper final : public stage2::FrameKeeper {
 public:
  Where find(Gfn gfn, Hva* page) override {
    ++asked;
    const auto found = kept.find(gfn.raw());
    const Where where = found != kept.end() ? found->second.first : Where::kProcess;
    if (found != kept.end()) *page = found->second.second;
    return where;
  }
  stage2::FaultOutcome bring(Gfn gfn) override {
    ++brought;
    kept[gfn.raw()] = brings;
    return says;
  }
  bool keeps() override { return !kept.empty(); }

  std::map<u64, std::pair<Where, Hva>> kept;
  std::pair<Where, Hva> brings{Where::kProcess, Hva()};
  stage2::FaultOutcome says = stage2::FaultOutcome::kRetry;
  u64 asked = 0, brought = 0;
};

}  // namespace stagetwo::test
