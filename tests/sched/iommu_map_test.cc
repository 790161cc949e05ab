// SPDX-License-Identifier: Apache-2.0
// A map gives the lock back while it pins: what others do meanwhile comes before or behind it as a
// whole (src/iommu/map.cc). Pages and tables are real.
#include <cerrno>
#include <optional>

#include "host/backstop.h"
#include "host/pin.h"
#include "iommu/locked.h"
#include "tests/sched/sched_support.h"
#include "tests/support/pages.h"

namespace stagetwo::test {
namespace {

using iommu::Context;
using iommu::Locked;

class MapsWorld {
 public:
  static constexpr u64 kIova = u64{1} << 24;
  static constexpr u64 kPages = 2;
  MapsWorld() {
    static_cast<void>(host::backstop::install());
    backing_.emplace(*Context::make_file("test-iommufd"));
    context_ = *Context::attach(backing_->fd());
    Locked locked(*context_);
    ioas_ = (*locked.make_ioas())->object.id;
    for (u32& device : devices_) {
      iommu::Device* const made = *locked.make_device(false, false, 0);
      device = made->object.id;
    }
  }
  virtual ~MapsWorld() = default;

 protected:
  int map() {
    iommu::MapRequest request{true, kIova, kPages * kPageSize, iommu::kMayRead | iommu::kMayWrite};
    const auto done = context_->map(ioas_, pages_.address(), &request);
    return done ? 0 : to_int(done.error());
  }
  int unmap() {
    u64 bytes = 0;
    const auto done = context_->unmap(ioas_, kIova, kIova + kPages * kPageSize - 1, &bytes);
    return done ? 0 : to_int(done.error());
  }
  bool attach(unsigned which) {
    Locked locked(*context_);
    u32 id = ioas_;
    return locked.attach(**locked.find<iommu::Device>(devices_[which]), &id).has_value();
  }
  void detach(unsigned which) {
    Locked locked(*context_);
    locked.detach(**locked.find<iommu::Device>(devices_[which]));
  }
  // Is it there, in every domain, whole, and pinned exactly so? Then it is taken away.
  bool is_there() {
    bool there = false;
    {
      Locked locked(*context_);
      const iommu::Ioas& ioas = **locked.find<iommu::Ioas>(ioas_);
      there = locked.areas(ioas).first() != nullptr;
      bool domains = false;
      for (const iommu::Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
        domains = true;
        for (u64 i = 0; i < kPages; ++i) {
          const bool found =
              iommu::translate(locked.arena(), hwpt->domain, kIova + i * kPageSize).has_value();
          sync::sched::expect(found == there, "tables and areas say the same");
        }
      }
      const u64 pins = host::pin_use().pages;
      sync::sched::expect(pins == (there && domains ? kPages : 0), "pins are exact");
      sync::sched::expect(ioas.object.users == 0 || domains, "no map is left behind");
    }
    sync::sched::expect(unmap() == 0, "what is there can be taken away");
    for (unsigned i = 0; i < 2; ++i) detach(i);
    sync::sched::expect(host::pin_use().pages == 0, "nothing stays pinned");
    return there;
  }

  GuardedPages pages_{kPages};
  std::optional<host::Backing> backing_;
  Box<Context> context_;
  u32 ioas_ = 0;
  u32 devices_[2] = {};
  sync::Atomic<u32> done_;
};

struct MapAgainstUnmap : MapsWorld {
  static constexpr unsigned kThreads = 2;
  MapAgainstUnmap() { static_cast<void>(attach(0)); }
  void thread(unsigned me) {
    if (me == 0) {
      sync::sched::expect(map() == 0, "nothing refuses the map");
    } else {
      const int error = unmap();
      sync::sched::expect(error == 0 || error == EBUSY, "the kernel's answers");
    }
    if (done_.fetch_add(1) == 1) static_cast<void>(is_there());
  }
};
TEST(IommuMap, AnUnmapComesBeforeOrBehindIt) {
  expect_holds<MapAgainstUnmap>(150);
}

struct MapAgainstMap : MapsWorld {
  static constexpr unsigned kThreads = 2;
  sync::Atomic<u32> won;
  MapAgainstMap() { static_cast<void>(attach(0)); }
  void thread(unsigned) {
    const int error = map();
    sync::sched::expect(error == 0 || error == EEXIST, "the kernel's answers");
    if (error == 0) won.fetch_add(1);
    if (done_.fetch_add(1) != 1) return;
    sync::sched::expect(won.load() == 1, "one of two has the place");
    sync::sched::expect(is_there(), "it is there");
  }
};
TEST(IommuMap, OfTwoAtOnePlaceOneIs) {
  expect_holds<MapAgainstMap>(150);
}

// The first domain goes while another comes.
struct MapAgainstDomains : MapsWorld {
  static constexpr unsigned kThreads = 3;
  MapAgainstDomains() { static_cast<void>(attach(0)); }
  void thread(unsigned me) {
    if (me == 0) sync::sched::expect(map() == 0, "nothing refuses the map");
    if (me == 1) detach(0);
    if (me == 2) sync::sched::expect(attach(1), "nothing refuses the attach");
    if (done_.fetch_add(1) == 2) sync::sched::expect(is_there(), "it is there");
  }
};
TEST(IommuMap, EveryDomainThereIsHasIt) {
  expect_holds<MapAgainstDomains>(200);
}

// An access goes to another IOAS while somebody pins by it, and whoever asks finds every pin where
// it was made.
struct PinsAgainstChange : MapsWorld, iommu::AccessClient {
  static constexpr unsigned kThreads = 2;
  PinsAgainstChange() {
    static_cast<void>(map());
    Locked locked(*context_);
    iommu::Ioas* const mine = *locked.find<iommu::Ioas>(ioas_);
    access_ = (*locked.make_access(mine, true, this))->object.id;
    other_ = (*locked.make_ioas())->object.id;
  }
  void unmap(u64, u64) override {
    const sync::MutexGuard guard(lock_);
    let_go();
  }
  void let_go() TA_REQ(lock_) {
    Locked locked(*context_);
    for (; pins_ != 0; --pins_) {
      locked.unpin(**locked.find<iommu::Access>(access_), kIova, kPageSize);
    }
  }
  void thread(unsigned me) {
    if (me == 0) {
      const auto done = context_->change_ioas(access_, other_);
      sync::sched::expect(done.has_value(), "nothing refuses the change");
    } else {
      for (int i = 0; i < 2; ++i) {
        const sync::MutexGuard guard(lock_);
        Locked locked(*context_);
        u64 frame = 0;
        auto& access = **locked.find<iommu::Access>(access_);
        const auto done = locked.pin(access, kIova, kPageSize, true, &frame);
        sync::sched::expect(done || to_int(done.error()) == ENOENT, "the kernel's answers");
        if (done) ++pins_;
      }
    }
    if (done_.fetch_add(1) != 1) return;
    sync::sched::expect(host::pin_use().pages == 0, "it holds nothing of the one it left");
    context_->destroy_access(access_);
    sync::sched::expect(MapsWorld::unmap() == 0, "nor is anything in the way");
    Locked locked(*context_);
    for (const u32 id : {ioas_, other_}) {
      sync::sched::expect(locked.destroy(id).has_value(), "and nobody leans on either");
    }
  }
  sync::Mutex lock_{sync::Rank::kDevice};
  u32 pins_ TA_GUARDED(lock_) = 0;
  u32 access_ = 0, other_ = 0;
};
TEST(IommuAccess, APinIsLetGoOfWhereItWasMade) {
  expect_holds<PinsAgainstChange>(150);
}

}  // namespace
}  // namespace stagetwo::test
