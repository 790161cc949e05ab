// SPDX-License-Identifier: Apache-2.0
#pragma once

// One page of the process and everybody who wants it: touchers, a taker, a change that gives it up,
// a fork. The records are the real ones; the owner notices when it is called twice at once, too
// often, or for bytes the client has given up.

#include <sys/mman.h>
#include <unistd.h>

#include "host/owner_table.h"
#include "tests/sched/sched_support.h"
#include "tests/support/pages.h"

namespace stagetwo::test {

class OwnersWorld : public host::PageOwner {
 public:
  OwnersWorld() {
    *page_.bytes_at(0) = 1;
    table_.begin_take();
    if (!take_once()) std::abort();  // a page that nobody wants can be taken
    table_.end_take();
  }
  virtual ~OwnersWorld() = default;

  bool take(const host::AbsentPage&, host::PageExit& exit) override {
    alone();
    const u32 now = meaning_.load();
    if (!exit.to(Hva(place_.address()))) return false;
    bytes_of_.store(now);
    taken_.fetch_add(1);
    sync::sched::note("takes the page");
    gone();
    return true;
  }
  host::BringBack bring_back(const host::AbsentPage&, host::PageEntry& entry) override {
    alone();
    sync::sched::expect(taken_.load() == back_.load() + discarded_.load() + 1,
                        "brought back without having been taken");
    sync::sched::expect(bytes_of_.load() == meaning_.load(),
                        "bytes of before the change come back");
    static_cast<void>(entry.from(Hva(place_.address())));
    back_.fetch_add(1);
    sync::sched::note("brings the page back");
    sync::sched::expect(bytes_of_.load() == meaning_.load(), "the change went on during a fill");
    gone();
    return host::BringBack::kBack;
  }
  void discard(const host::AbsentPage&) override {
    alone();
    discarded_.fetch_add(1);
    gone();
  }

 protected:
  host::PageKey key() const { return host::private_key(at()); }
  Hva at() const { return Hva(page_.address()); }
  bool take_once(u32 layout = host::OwnerTable::kAnyLayout) {
    host::PageRecord record;
    record.owner = this;
    record.at = at();
    record.hiding = host::Hiding::kProtection;
    record.prot = {true, true, false};
    return table_.take(key(), record, layout);
  }
  void touch() {
    sync::sched::note("touches the page");
    const auto outcome = table_.bring_back(key());
    sync::sched::expect(outcome == host::BringBack::kBack || outcome == host::BringBack::kNotAbsent,
                        "a touch is answered");
  }
  // An munmap and a mapping of something else, as the wrapper does it.
  void give_up() {
    host::OwnedChange change(host::page_at(at()), host::Announced::kUnmaps);
    sync::sched::note("munmap begins");
    table_.open_change(&change);
    meaning_.fetch_add(1);
    sync::sched::note("something else is mapped there");
    change.succeeded();
    table_.close_change(&change);
  }

  // One that fails and has done nothing.
  void fail_to_give_up() {
    host::OwnedChange change(host::page_at(at()), host::Announced::kUnmaps);
    table_.open_change(&change);
    table_.close_change(&change);
  }

  GuardedPages page_{1};
  GuardedPages place_{1};
  host::Footings footings_;
  host::OwnerTable table_{footings_};
  sync::Atomic<u32> meaning_{0};   // raised by the change's system call
  sync::Atomic<u32> bytes_of_{0};  // what the taken bytes mean
  sync::Atomic<u32> taken_{0}, back_{0}, discarded_{0};

 private:
  void alone() { sync::sched::expect(inside_.exchange(1) == 0, "two calls for one page at once"); }
  void gone() { inside_.store(0); }
  sync::Atomic<u32> inside_{0};
};

// Two vCPUs and the process touch a page at once.
struct ManyTouchers : OwnersWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned) {
    touch();
    sync::sched::expect(back_.load() == 1, "back when the touch returns, and once");
  }
};

// It is taken again while it is still coming back.
struct TouchersAgainstTaker : OwnersWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me != 0) {
      touch();
      return;
    }
    table_.begin_take();
    take_once();
    table_.end_take();
  }
};

// The client gives it up while it is touched and taken.
struct ChangeAgainstTouchAndTake : OwnersWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 0) {
      give_up();
    } else if (me == 1) {
      touch();
      touch();
    } else {
      table_.begin_take();
      take_once();
      table_.end_take();
    }
  }
};

// Two changes of the same address: what the first has unmapped is another thread's by then, who
// unmaps it, too, or fails to. It is touched meanwhile.
struct ChangeAgainstChange : OwnersWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 0) give_up();
    if (me == 1) give_up();
    if (me == 2) touch();
  }
};
struct FailureAgainstFailure : OwnersWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 0) fail_to_give_up();
    if (me == 1) fail_to_give_up();
    if (me == 2) touch();
  }
};
struct ChangeAgainstFailure : OwnersWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 0) give_up();
    if (me == 1) fail_to_give_up();
    if (me == 2) touch();
  }
};

// A system call uses the page while a taker is at it.
struct HoldAgainstTaker : OwnersWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 0) {
      const u64 id = table_.hold({host::kPrivateMemory, host::page_at(at())}, at().raw(), 0);
      sync::sched::note("holds the page");
      touch();
      host::PageRecord record;
      sync::sched::expect(!table_.find(key(), &record), "a held page was taken");
      sync::sched::expect(!table_.find(key(), &record), "a held page was taken later");
      table_.release_hold(id);
    } else if (me == 1) {
      touch();
    } else {
      table_.begin_take();
      take_once();
      table_.end_take();
    }
  }
};

// A thread comes into the engine on the page, twice. A touch of it goes through while it is there,
// and brings it back when it is not; from then on it must not go until the thread leaves.
struct FootingAgainstTaker : OwnersWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 0) {
      stand();
      stand();
    } else if (me == 1) {
      touch();
    } else {
      table_.begin_take();
      take_once();
      take_once();
      table_.end_take();
    }
  }

 protected:
  void stand() {
    host::FootingSlot* const slot =
        footings_.enter({host::packed(host::page_at(at())), 0, 0}, &hint_);
    if (!footings_.is_known(*slot)) {
      const u64 takings = footings_.wait_for_takers();
      if (is_gone()) touch();
      footings_.note_looked(*slot, takings);
    }
    sync::sched::expect(!is_gone(), "what a thread stands on is absent");
    sync::sched::expect(!is_gone(), "what a thread stands on went");
    footings_.leave(slot);
  }

 private:
  bool is_gone() {
    host::PageRecord record;
    return table_.find(key(), &record) &&
           (record.stage == host::PageStage::kAbsent || record.stage == host::PageStage::kFilling);
  }
  u32 hint_ = 0;
};

// The same before anything was ever taken.
struct FootingAgainstFirstTaker : FootingAgainstTaker {
  FootingAgainstFirstTaker() {
    touch();
    footings_.reset();
  }
};

// Two neighbours taken in one go, while one is touched and both are brought back in one go.
struct RunAgainstTouchers : host::PageOwner {
  static constexpr unsigned kThreads = 3;
  virtual ~RunAgainstTouchers() = default;
  void thread(unsigned me) {
    if (me == 0) {
      table_.begin_take();
      host::PageRecord run[2];
      for (unsigned i = 0; i < 2; ++i) {
        run[i].owner = this;
        run[i].at = at(i);
      }
      table_.take_run(host::private_key(at(0)), run, 2, host::OwnerTable::kAnyLayout);
      table_.end_take();
    } else if (me == 1) {
      for (int i = 0; i < 2; ++i) {
        const auto outcome = table_.bring_back(host::private_key(at(1)));
        sync::sched::expect(outcome != host::BringBack::kRetry, "a touch is answered");
      }
    } else {
      table_.bring_back_all({host::kPrivateMemory, HvaRange(at(0), 2 * kPageSize)});
    }
  }
  bool take(const host::AbsentPage&, host::PageExit&) override { return false; }
  void discard(const host::AbsentPage&) override { sync::sched::fail("nobody gave it up"); }
  unsigned take_run(const host::AbsentPage&, unsigned pages, host::PageExit&) override {
    for (unsigned i = 0; i < pages; ++i) {
      sync::sched::expect(with_owner_[i].exchange(1) == 0, "taken twice");
    }
    return pages;
  }
  host::BringBack bring_back(const host::AbsentPage& page, host::PageEntry&) override {
    give(page.at == at(0) ? 0 : 1);
    return host::BringBack::kBack;
  }
  unsigned bring_back_run(const host::AbsentPage&, unsigned pages, host::PageEntry&) override {
    for (unsigned i = 0; i < pages; ++i) give(i);
    return pages;
  }

 private:
  void give(unsigned i) {
    sync::sched::expect(with_owner_[i].exchange(0) == 1, "brought back twice");
  }
  Hva at(unsigned i) const { return Hva(pages_.address() + i * kPageSize); }
  GuardedPages pages_{2};
  host::Footings footings_;
  host::OwnerTable table_{footings_};
  sync::Atomic<u32> with_owner_[2];
};

// A page of a file: a hole that is refused, while the page's only mapping goes. Who unmaps it waits
// for the page, so that the hole's end must not leave it to him.
struct FailedPunchAgainstUnmap : host::PageOwner {
  static constexpr unsigned kThreads = 3;
  FailedPunchAgainstUnmap() {
    const int file = ::memfd_create("sched", MFD_CLOEXEC);
    if (file < 0 || ::ftruncate(file, kPageSize) != 0) std::abort();
    page_ = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    ::close(file);
    *static_cast<u8*>(page_) = 1;
    host::PageRecord record;
    record.owner = this;
    record.at = at();
    record.hiding = host::Hiding::kProtection;
    table_.begin_take();
    const auto views = table_.note_views(kObject, *host::shown_mapping_at(at()));
    if (!views || !table_.take(kKey, record, *views)) std::abort();
    table_.end_take();
  }
  virtual ~FailedPunchAgainstUnmap() { ::munmap(page_, kPageSize); }
  void thread(unsigned me) {
    if (me == 0) {
      host::OwnedChange hole({kObject, HvaRange(Hva(), kPageSize)}, host::Announced::kPunches);
      table_.open_change(&hole);
      sync::sched::note("the hole is refused");
      table_.close_change(&hole);
    } else if (me == 1) {
      host::OwnedChange unmap(host::page_at(at()), host::Announced::kUnmaps);
      table_.open_change(&unmap);
      host::PageRecord record;
      sync::sched::expect(!table_.find(kKey, &record), "the file's page is not back");
      table_.close_change(&unmap);
    } else {
      static_cast<void>(table_.bring_back(kKey));
    }
  }
  bool take(const host::AbsentPage&, host::PageExit& exit) override {
    return exit.to(Hva(place_.address()));
  }
  host::BringBack bring_back(const host::AbsentPage&, host::PageEntry& entry) override {
    sync::sched::expect(entry.from(Hva(place_.address())), "the page has a place");
    return host::BringBack::kBack;
  }
  void discard(const host::AbsentPage&) override { sync::sched::fail("the hole was refused"); }

 private:
  static constexpr u64 kObject = 7;
  static constexpr host::PageKey kKey{kObject, 0};
  Hva at() const { return Hva(reinterpret_cast<u64>(page_)); }
  void* page_ = nullptr;
  GuardedPages place_{1};
  host::Footings footings_;
  host::OwnerTable table_{footings_};
};

// A taker asks for the views of a file while one more is made, which a later taker has noted: what
// the first one found before does not stand in its place.
struct ViewsAgainstMapping {
  static constexpr unsigned kThreads = 2;
  ViewsAgainstMapping() : file_(::memfd_create("sched", MFD_CLOEXEC)) {
    if (file_ < 0 || ::ftruncate(file_, kPageSize) != 0) std::abort();
    first_ = map();
    mapping_ = *host::shown_mapping_at(at(first_));
  }
  ~ViewsAgainstMapping() {
    ::munmap(first_, kPageSize);
    ::munmap(made_, kPageSize);
    ::close(file_);
  }
  void thread(unsigned me) {
    if (me == 1) {
      sync::sched::point();
      made_ = map(kLow);
      table_.view_made(kObject, host::page_at(at(made_)), 0);
    }
    static_cast<void>(table_.note_views(kObject, mapping_));
    const bool last = done_.fetch_add(1) == 1;
    sync::sched::expect(!last || table_.key_of(at(made_)) == kKey, "the new view is forgotten");
  }

 private:
  static constexpr u64 kObject = 7;
  static constexpr host::PageKey kKey{kObject, 0};
  static constexpr u64 kLow = 0x10000000;  // who looks for views is past it soon
  static Hva at(void* view) { return Hva(reinterpret_cast<u64>(view)); }
  void* map(u64 there = 0) {
    void* const view = ::mmap(reinterpret_cast<void*>(there), kPageSize, PROT_READ | PROT_WRITE,
                              MAP_SHARED, file_, 0);
    if (view == MAP_FAILED) std::abort();
    return view;
  }
  int file_;
  void* first_ = nullptr;
  void* made_ = nullptr;
  host::Mapping mapping_;
  sync::Atomic<u32> done_{0};
  host::Footings footings_;
  host::OwnerTable table_{footings_};
};

// A fork of one thread, a taker and a toucher.
struct ForkAgainstTaker : OwnersWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 0) {
      table_.before_fork();
      host::PageRecord record;
      sync::sched::expect(!table_.find(key(), &record), "the child would miss the page");
      table_.after_fork_parent();
    } else if (me == 1) {
      touch();
    } else {
      table_.begin_take();
      take_once();
      table_.end_take();
    }
  }
};

}  // namespace stagetwo::test
