// SPDX-License-Identifier: Apache-2.0
// Private memory under the scheduler: a conversion, a punch, an unbinding and a release, each
// against a fault, and two conversions against each other. A translation says of which half it is;
// when a call that takes a half away has returned, nobody uses one of it.
#include <fcntl.h>

#include "base/sys.h"
#include "host/backstop.h"
#include "stage2/file_pages.h"
#include "stage2/private_memory.h"
#include "tests/sched/stage2_scenarios.h"

namespace stagetwo::test {
namespace {

constexpr unsigned kRuns = 300;

// A VM whose one page has both halves, and a file with a second page that a listener is bound to.
struct PrivateSmallVm : mem::ObjectObserver {
  GuardedPages pages{2};
  int fd = *sys::memfd_create("sched", MFD_CLOEXEC);
  sync::Passage users;
  sync::KeptNumber number{fd, users};
  mem::GuestMemfd object{2 * kPageSize, number};
  Box<stage2::GuestMemory> memory;
  AckLine line;
  Box<stage2::MmuContext> context;
  mem::Binding second;
  // Outside the model: one thread runs at a time.
  int holders[2] = {};     // of a translation, by half: 1 is private
  bool forbidden[2] = {};  // nobody may use this half any more

  explicit PrivateSmallVm(bool begins_private = false) {
    static_cast<void>(sys::ftruncate(fd, 2 * kPageSize));
    stage2::SlotPolicy policy;
    policy.private_memory = policy.guest_memfd = true;
    memory = std::move(*stage2::GuestMemory::create(policy));
    memory->set_slot_zap_all(false);
    static_cast<void>(set(kPageSize));
    static_cast<void>(object.bind(kPageSize, kPageSize, *this, &second));
    const GfnRange frame(gpa_to_gfn(Gpa(kGpa)), 1);
    if (begins_private) {
      static_cast<void>(memory->private_memory().set_attributes(frame, true));
    }
    memory->lines().add(line);
    context = std::move(*memory->new_context());
  }
  virtual ~PrivateSmallVm() {
    memory->lines().remove(line);
    context.reset();
    object.release();
    mem::GuestMemfd::unbind(&second);
    memory.reset();
    static_cast<void>(sys::close(fd));
  }
  bool set(u64 size) {
    stage2::Region region;
    region.flags = stage2::kGuestMemfd;
    region.gpa = kGpa;
    region.size = size;
    region.hva = pages.address();
    region.file = &object;
    return memory->slots().set_region(region).has_value();
  }
  void convert(bool to_private) {
    const GfnRange frame(gpa_to_gfn(Gpa(kGpa)), 1);
    sched::expect(memory->private_memory().set_attributes(frame, to_private).has_value(), "memory");
  }
  // The listener's page comes after the VM's: what must have let go has.
  void going(mem::PageRange) override {
    sched::expect(holders[1] == 0, "a page goes while somebody holds a translation of it");
    forbidden[1] = true;
    sched::point();
  }
  void gone(mem::PageRange) override { forbidden[1] = false; }

  virtual void after() {}

  void guest_access() {
    for (int tries = 0; tries < 6; ++tries) {
      Fault fault{};
      fault.gpa = Gpa(kGpa);
      fault.access = Access::kWrite;
      if (line.enter()) memory->flushed(*context);
      const bool hit = memory->translate(*context, fault) == stage2::Walk::Kind::kHit;
      if (hit) {
        const int half = fault.page.raw() == pages.address() ? 0 : 1;
        ++holders[half];
        for (int block = 0; block < 3 && !line.pending(); ++block) {
          sched::point();
          sched::expect(!forbidden[half], "a translation of a half that was left is used");
        }
        --holders[half];
      }
      line.leave();
      if (hit) return;
      const FaultOutcome outcome = memory->handle_fault(*context, fault);
      if (outcome != FaultOutcome::kFixed && outcome != FaultOutcome::kSpurious &&
          outcome != FaultOutcome::kRetry) {
        return;
      }
    }
  }
};

struct ConversionAgainstFault : PrivateSmallVm {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) {
    if (me == 0) {
      guest_access();
      guest_access();
    } else {
      convert(true);
      forbidden[0] = true;
      sched::expect(holders[0] == 0, "converted while somebody holds the shared page");
    }
  }
};

struct ConversionBackAgainstFault : PrivateSmallVm {
  static constexpr unsigned kThreads = 2;
  ConversionBackAgainstFault() : PrivateSmallVm(true) {}
  void thread(unsigned me) {
    if (me == 0) return guest_access();
    convert(false);
    forbidden[1] = true;
    sched::expect(holders[1] == 0, "converted while somebody holds the private page");
  }
};

struct PunchAgainstFault : PrivateSmallVm {
  static constexpr unsigned kThreads = 2;
  PunchAgainstFault() : PrivateSmallVm(true) {}
  void thread(unsigned me) {
    if (me == 0) return guest_access();
    sched::expect(
        object.fallocate(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 2 * kPageSize).has_value(),
        "punched");
  }
};

struct UnbindAgainstFault : PrivateSmallVm {
  static constexpr unsigned kThreads = 2;
  UnbindAgainstFault() : PrivateSmallVm(true) {}
  void thread(unsigned me) {
    if (me == 0) return guest_access();
    sched::expect(set(0), "the slot goes");
    forbidden[0] = forbidden[1] = true;
    sched::expect(holders[1] == 0, "unbound while somebody holds the page");
  }
  void after() override { EXPECT_EQ(1U, object.binding_count()); }  // the listener's
};

struct ReleaseAgainstFault : PrivateSmallVm {
  static constexpr unsigned kThreads = 2;
  ReleaseAgainstFault() : PrivateSmallVm(true) {}
  void thread(unsigned me) {
    if (me == 0) return guest_access();
    memory->slots().between_updates([this] { object.release(); });
    forbidden[1] = true;
  }
};

struct TwoConversions : PrivateSmallVm {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 0) return guest_access();
    convert(me == 1);
  }
  // The entry, if there is one, is of the half that the attribute names.
  void after() override {
    Fault fault{};
    fault.gpa = Gpa(kGpa);
    if (line.enter()) memory->flushed(*context);
    const bool hit = memory->translate(*context, fault) == stage2::Walk::Kind::kHit;
    line.leave();
    const bool is_private = memory->private_memory().attributes().is_private(fault.gfn);
    EXPECT_TRUE(!hit || (fault.page.raw() != pages.address()) == is_private);
  }
};

template <typename Scenario>
void holds_in_every_schedule() {
  const unsigned seeds = seed_is_fixed() ? 1 : kRuns;
  for (unsigned i = 0; i < seeds; ++i) {
    const std::uint64_t chosen = seed_is_fixed() ? seed() : i + 1;
    auto scenario = std::make_unique<Scenario>();
    const auto outcome = sync::sched::run({.seed = chosen}, Scenario::kThreads,
                                          [&](unsigned index) { scenario->thread(index); });
    if (!outcome.finished()) static_cast<void>(scenario.release());  // its threads sleep for ever
    ASSERT_TRUE(outcome.finished()) << "STAGETWO_SEED=" << chosen << ": " << outcome.why;
    scenario->memory->check_world();
    scenario->after();
    ASSERT_FALSE(testing::Test::HasFailure()) << "STAGETWO_SEED=" << chosen;
  }
}

TEST(PrivateMemorySchedules, ConversionAgainstFault) {
  ASSERT_TRUE(host::backstop::install());
  holds_in_every_schedule<ConversionAgainstFault>();
  holds_in_every_schedule<ConversionBackAgainstFault>();
}
TEST(PrivateMemorySchedules, PunchAgainstFault) {
  ASSERT_TRUE(host::backstop::install());
  holds_in_every_schedule<PunchAgainstFault>();
}
TEST(PrivateMemorySchedules, UnbindAgainstFault) {
  ASSERT_TRUE(host::backstop::install());
  holds_in_every_schedule<UnbindAgainstFault>();
  holds_in_every_schedule<ReleaseAgainstFault>();
}
TEST(PrivateMemorySchedules, TwoConversions) {
  ASSERT_TRUE(host::backstop::install());
  holds_in_every_schedule<TwoConversions>();
}

}  // namespace
}  // namespace stagetwo::test
