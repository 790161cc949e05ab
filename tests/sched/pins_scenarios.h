// SPDX-License-Identifier: Apache-2.0
#pragma once

// One page of the process and everybody who has to do with its pin: pinners, a device, changes of
// the address, a taker, a fork. The tables are the real ones, and so are the kernel's calls; what
// the page means is a number in its first word.

#include <sys/mman.h>

#include "host/access.h"
#include "host/owner_table.h"
#include "host/pin_table.h"
#include "host/userfault.h"
#include "tests/sched/sched_support.h"
#include "tests/support/one_place_owner.h"
#include "tests/support/pages.h"

namespace stagetwo::test {

class PinsWorld {
 public:
  PinsWorld() { meaning() = 1; }
  virtual ~PinsWorld() = default;

 protected:
  Hva at() const { return Hva(page_.address()); }
  volatile u32& meaning() const { return *reinterpret_cast<volatile u32*>(page_.bytes_at(0)); }
  // The frame of the page, pinned once more.
  host::Frame pin() {
    host::FrameRun run;
    host::PinTable::Sink sink{&run, 1, {}};
    const auto done = table_.pin_some(host::page_at(at()), {.write = true}, &sink);
    sync::sched::expect(done.has_value() && sink.done.pages == 1, "the page can be pinned");
    sync::sched::note("has pinned the page");
    return run.first;
  }
  void unpin(host::Frame frame) { table_.unpin({frame, 1}); }
  u32 read(host::Frame frame) {
    u32 value = 0;
    sync::sched::expect(table_.transfer(frame, 0, &value, nullptr, sizeof(value)), "a pin is read");
    sync::sched::note("reads what it has pinned");
    return value;
  }
  void write(host::Frame frame, u32 value) {
    sync::sched::note("writes what it has pinned");
    sync::sched::expect(table_.transfer(frame, 0, nullptr, &value, sizeof(value)),
                        "a pin is written");
  }
  // A mapping of something else over it, as the wrapper does it; `fails`: the call is refused.
  void map_over(u32 new_meaning, bool fails = false) {
    host::PinnedChange change(host::page_at(at()), host::Announced::kUnmaps, 0);
    sync::sched::note("the change is announced");
    table_.open_change(&change);
    if (!fails) {
      ::mmap(page_.pointer(), kPageSize, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      meaning() = new_meaning;
      change.succeeded();
      sync::sched::note("another page is mapped");
    }
    table_.close_change(&change);
    sync::sched::note("the change is over");
  }
  void expect_empty() {
    const host::PinUse use = table_.use();
    sync::sched::expect(use.pages == 0 && use.stored == 0 && use.blocks == 0, "nothing is left");
  }

  GuardedPages page_{1};
  host::PinTable table_;
};

// A pin gets the page of before or of after, and stays with it.
struct PinAgainstChange : PinsWorld {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) {
    if (me == 1) {
      map_over(2);
    } else {
      use();
    }
    if (left_.fetch_add(1) == 1) expect_empty();
  }
  void use() {
    const host::Frame frame = pin();
    const u32 found = read(frame);
    sync::sched::expect(found == 1 || found == 2, "what is pinned was mapped");
    write(frame, found + 10);
    sync::sched::expect(read(frame) == found + 10, "it is one page, however it moves");
    unpin(frame);
    sync::sched::expect(found == 1 || meaning() == 12, "a page that is mapped is the client's");
  }
  sync::Atomic<u32> left_{0};
};

// Pinned before the change: the device keeps the old page, and no store of it is lost.
struct DeviceAgainstChange : PinsWorld {
  static constexpr unsigned kThreads = 2;
  DeviceAgainstChange() { frame_ = pin(); }
  void thread(unsigned me) {
    if (me == 1) {
      map_over(100);
      sync::sched::expect(meaning() == 100, "the device writes where something else is mapped");
      return;
    }
    for (u32 i = 1; i <= 3; ++i) {
      sync::sched::expect(read(frame_) == i, "a store is lost");
      write(frame_, i + 1);
    }
    sync::sched::expect(read(frame_) == 4, "the last store is lost");
  }
  host::Frame frame_{};
};

// The same for a device that has asked where the page is and takes its time.
struct SlowDeviceAgainstChange : PinsWorld {
  static constexpr unsigned kThreads = 2;
  SlowDeviceAgainstChange() { frame_ = pin(); }
  void thread(unsigned me) {
    if (me == 1) {
      map_over(100);
      sync::sched::expect(meaning() == 100, "the device writes where something else is mapped");
    } else {
      write_slowly(2);
      sync::sched::expect(read(frame_) == 2, "the store went elsewhere");
    }
    if (left_.fetch_add(1) == 1) {
      sync::sched::expect(meaning() == 100, "the device wrote where something else is mapped");
    }
  }
  void write_slowly(u32 value) {
    const sync::Passage::Ticket ticket = table_.accesses().enter();
    u64 pages = 1;
    const auto there = table_.direct(frame_, Access::kWrite, &pages);
    if (there) {
      sync::sched::point();
      sync::sched::expect(host::store(*there, value), "the page is where it is said to be");
    }
    table_.accesses().leave(ticket);
    if (!there) write(frame_, value);
  }
  host::Frame frame_{};
  sync::Atomic<u32> left_{0};
};

// The same for one that does not ask again where no page was moved since.
struct RememberingDeviceAgainstChange : PinsWorld {
  static constexpr unsigned kThreads = 2;
  RememberingDeviceAgainstChange() { frame_ = pin(); }
  void thread(unsigned me) {
    if (me == 1) {
      map_over(100);
    } else {
      for (u32 i = 2; i <= 3; ++i) {
        write_where_it_was(i);
        sync::sched::expect(read(frame_) == i, "the store went elsewhere");
      }
    }
    if (left_.fetch_add(1) == 1) {
      sync::sched::expect(meaning() == 100, "the device wrote where something else is mapped");
    }
  }
  void write_where_it_was(u32 value) {
    const sync::Passage::Ticket ticket = table_.accesses().enter();
    const u64 moves = table_.moves();
    if (!there_ || moves != moves_) {
      u64 pages = 1;
      there_ = table_.direct(frame_, Access::kWrite, &pages);
      moves_ = moves;
    }
    if (there_) {
      sync::sched::point();
      sync::sched::expect(host::store(*there_, value), "the page is where it was");
    }
    table_.accesses().leave(ticket);
    if (!there_) write(frame_, value);
  }
  host::Frame frame_{};
  std::optional<Hva> there_;  // the device's, with the next
  u64 moves_ = 0;
  sync::Atomic<u32> left_{0};
};

// A change that is refused: for client and device nothing has happened.
struct DeviceAgainstRefusedChange : PinsWorld {
  static constexpr unsigned kThreads = 3;
  DeviceAgainstRefusedChange() { frame_ = pin(); }
  void thread(unsigned me) {
    if (me == 0) {
      for (u32 i = 1; i <= 2; ++i) write(frame_, i + 1);
    } else {
      map_over(100, true);
    }
    if (left_.fetch_add(1) == 2) sync::sched::expect(meaning() == 3, "the client misses a store");
  }
  host::Frame frame_{};
  sync::Atomic<u32> left_{0};
};

// Two changes of one address, one of them refused: it must not put back what the other has taken.
struct TwoChanges : PinsWorld {
  static constexpr unsigned kThreads = 2;
  TwoChanges() { frame_ = pin(); }
  void thread(unsigned me) {
    if (me == 0) {
      map_over(0, true);
    } else {
      map_over(50);
      sync::sched::expect(meaning() == 50, "the old page is back where another one was mapped");
      sync::sched::expect(read(frame_) == 1, "the device has lost its page");
    }
  }
  host::Frame frame_{};
};

// Two pins of one page and their unpins, in any order, while the page moves.
struct TwoPinsAgainstChange : PinsWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 2) {
      map_over(2);
    } else {
      const host::Frame frame = pin();
      const u32 count = table_.pins_of(frame);
      sync::sched::expect(count == 1 || count == 2, "the count is exact");
      sync::sched::expect(read(frame) != 0, "what is pinned was mapped");
      unpin(frame);
    }
    if (left_.fetch_add(1) == 2) expect_empty();
  }
  sync::Atomic<u32> left_{0};
};

// The last unpin while a change has the page in its hands.
struct UnpinAgainstChange : PinsWorld {
  static constexpr unsigned kThreads = 2;
  UnpinAgainstChange() { frame_ = pin(); }
  void thread(unsigned me) {
    if (me == 0) {
      unpin(frame_);
    } else {
      map_over(2);
    }
    if (left_.fetch_add(1) == 1) expect_empty();
  }
  host::Frame frame_{};
  sync::Atomic<u32> left_{0};
};

// An owner wants the page while it is pinned. Both sides ask the process's own tables, which live
// from one schedule to the next: whatever happens, the page is back and unpinned at the end.
struct PinAgainstTaker {
  static constexpr unsigned kThreads = 2;
  virtual ~PinAgainstTaker() = default;
  void thread(unsigned me) {
    if (me == 0) {
      use();
    } else {
      const auto taken = host::take_away(range(), owner_, owner_, host::Which::kAnonymous);
      sync::sched::expect(taken.has_value(), "a page that stays is no failure");
    }
    if (left_.fetch_add(1) == 1) {
      host::bring_back_range(range());
      sync::sched::expect(meaning() == 2, "the client misses the device's store");
    }
  }
  void use() {
    host::FrameRun run;
    const auto done = host::pin_pages(range(), {.write = true}, &run, 1);
    sync::sched::expect(done.has_value() && done->pages == 1, "the page can be pinned");
    sync::sched::expect(!is_with_owner(), "a page is pinned and with an owner");
    u32 value = 0;
    sync::sched::expect(host::read_frame(run.first, 0, &value, 4) && value == 1, "other bytes");
    value = 2;
    sync::sched::expect(host::write_frame(run.first, 0, &value, 4), "a pin is written");
    sync::sched::expect(!is_with_owner(), "a pinned page was taken");
    host::unpin_pages(run);
  }

 protected:
  HvaRange range() const { return HvaRange(Hva(page_->address()), kPageSize); }
  volatile u32& meaning() const { return *reinterpret_cast<volatile u32*>(page_->bytes_at(0)); }
  bool is_with_owner() const {
    host::PageRecord record;
    host::OwnerTable* table = host::owner_table();
    return table != nullptr && table->find(host::private_key(range().start()), &record);
  }
  // Kept by a schedule that failed, as its threads are.
  GuardedPages* page_ = new GuardedPages(1);
  OnePlaceOwner* owner_ = new OnePlaceOwner;
  sync::Atomic<u32> left_{0};

 public:
  PinAgainstTaker() {
    host::userfault::debug_deny(true);  // no thread but the scheduled ones
    meaning() = 1;
  }
};

// A fork between the moving of a page and the system call would miss the page.
struct ForkAgainstChange : PinsWorld {
  static constexpr unsigned kThreads = 2;
  ForkAgainstChange() { frame_ = pin(); }
  void thread(unsigned me) {
    if (me == 0) {
      table_.before_fork();
      sync::sched::expect(meaning() == 1, "the child finds an empty page");
      table_.after_fork_parent();
    } else {
      map_over(0, true);
    }
  }
  host::Frame frame_{};
};

}  // namespace stagetwo::test
