// SPDX-License-Identifier: Apache-2.0
#pragma once

// A device's mirror and a change of what it mirrors, with the real fault, the real device lock and
// the real bell. An entry leads to the process's address, so an old one shows only while the range
// changes: then nobody may have one that can be used.

#include "host/change.h"
#include "tests/sched/sched_support.h"
#include "tests/support/mirror_access.h"
#include "tests/support/pages.h"

namespace stagetwo::test {

struct MirrorWorld {
  GuardedPages pages{1};
  Box<mirror::Mirror> device = std::move(*mirror::Mirror::open(0));
  bool changing = false;  // outside the model: one thread runs at a time

  [[nodiscard]] Hva page() const { return Hva(pages.address()); }
  // As a device that copies: under the lock, by its entry.
  void use() {
    mirror::MirrorTestAccess::use(*device, page(), [this] {
      sync::sched::point();
      sync::sched::note("follows its entry");
      sync::sched::expect(!changing, "a device follows an entry while the range changes");
    });
  }
  void fault() {
    sync::sched::note("the device faults");
    static_cast<void>(mirror::MirrorTestAccess::fault_once(*device, page(), [] {
      sync::sched::note("has looked the page up");
      sync::sched::point();
    }));
  }
  void change() {
    host::change(pages.address(), kPageSize, host::EventKind::kUnmap, [this] {
      changing = true;
      sync::sched::note("the system call begins");
      sync::sched::point();
      sync::sched::point();
      sync::sched::note("... and ends: another page now");
      changing = false;
    });
  }
};

// A fault of the device against an munmap and a mapping of something else.
struct MirrorFaultAgainstChange : MirrorWorld {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) {
    if (me == 1) return change();
    fault();
    use();
  }
};

// Two changes in a row or at once, and a device that was there before.
struct MirrorAgainstTwoChanges : MirrorWorld {
  static constexpr unsigned kThreads = 3;
  MirrorAgainstTwoChanges() { fault(); }
  void thread(unsigned me) {
    if (me != 0) return change();
    for (int i = 0; i < 2; ++i) {
      use();
      fault();
    }
    use();
  }
};

}  // namespace stagetwo::test
