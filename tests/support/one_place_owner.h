// SPDX-License-Identifier: Apache-2.0
#pragma once

// The smallest owner there is: it takes whatever it is offered, and has a place for one page.

#include "host/page_owner.h"
#include "tests/support/pages.h"

namespace stagetwo::test {

class OnePlaceOwner final : public host::PageOwner {
 public:
  bool take(const host::AbsentPage&, host::PageExit& exit) override {
    return exit.to(Hva(place_.address()));
  }
  host::BringBack bring_back(const host::AbsentPage&, host::PageEntry& entry) override {
    if (loses) return host::BringBack::kLost;
    return entry.from(Hva(place_.address())) ? host::BringBack::kBack : host::BringBack::kRetry;
  }
  void discard(const host::AbsentPage&) override {}
  bool loses = false;

 private:
  GuardedPages place_{1};
};

}  // namespace stagetwo::test
