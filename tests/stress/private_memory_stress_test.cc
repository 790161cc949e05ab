// SPDX-License-Identifier: Apache-2.0
// Private memory with everything at once: four vCPUs over pages that are punched, converted and
// unbound beside them. As long as STAGETWO_TEST_SECONDS says.
#include <atomic>
#include <thread>
#include <vector>

#include "tests/support/private_fixture.h"
#include "tests/support/private_swap.h"
#include "tests/support/random_source.h"
#include "tests/support/seeds.h"

namespace stagetwo::stage2 {
namespace {

constexpr unsigned kVcpus = 4;

// A thread that accesses memory as vcpu does, a poll after each.
class Vcpu {
 public:
  explicit Vcpu(GuestMemory& memory) : memory_(memory), context_(std::move(*memory.new_context())) {
    memory_.lines().add(line_);
  }
  ~Vcpu() { memory_.lines().remove(line_); }

  // fn(host address) with a translation; false: there is no memory.
  template <typename F>
  bool access(u64 gpa, Access access, F&& fn) {
    for (;;) {
      Fault fault;
      fault.gpa = Gpa(gpa);
      fault.access = access;
      if (line_.enter()) memory_.flushed(*context_);
      const bool hit = memory_.translate(*context_, fault) == Walk::Kind::kHit;
      const bool done = hit && fn(fault.page);
      line_.leave();
      if (done) return true;
      if (hit) continue;
      const FaultOutcome outcome = memory_.handle_fault(*context_, fault);
      if (outcome != FaultOutcome::kFixed && outcome != FaultOutcome::kSpurious &&
          outcome != FaultOutcome::kRetry) {
        return false;
      }
    }
  }
  u64 load(u64 gpa) {
    u64 value = ~u64{0};
    static_cast<void>(
        access(gpa, Access::kRead, [&](Hva page) { return host::load(page, &value); }));
    return value;
  }
  void store(u64 gpa, u64 value) {
    EXPECT_TRUE(access(gpa, Access::kWrite, [&](Hva page) { return host::store(page, value); }));
  }

 private:
  GuestMemory& memory_;
  Box<MmuContext> context_;
  sync::AckLine line_;
};

class PrivateStress : public PrivateVm {
 protected:
  void SetUp() override {
    PrivateVm::SetUp();
    ASSERT_EQ(0, bind(0, kGpa, kFilePages, pages_.address(), file_));
  }
};

// A page is stored to and punched, again and again, while four vCPUs read it: who begins to read
// after a punch returned finds nothing of before.
TEST_F(PrivateStress, NoVcpuReadsAStaleValueAfterAPunch) {
  constexpr u64 kMostRounds = 100'000;
  ASSERT_EQ(0, convert(kGpa, 1, true));
  std::atomic<u64> gone{0};  // values up to this were punched
  std::atomic<bool> stop{false};
  std::atomic<u64> reads{0};
  std::vector<std::thread> readers;
  for (unsigned i = 0; i < kVcpus; ++i) {
    readers.emplace_back([&] {
      Vcpu vcpu(*memory_);
      while (!stop.load()) {
        const u64 floor = gone.load();
        const u64 value = vcpu.load(kGpa);
        EXPECT_TRUE(value == 0 || value > floor) << value << " after " << floor;
        reads.fetch_add(1);
      }
    });
  }
  Vcpu writer(*memory_);
  const test::Deadline deadline(0.5);
  u64 round = 0;
  while (round < kMostRounds && deadline.running()) {
    ++round;
    writer.store(kGpa, round);
    ASSERT_EQ(0, file_.punch(0, 1));
    gone = round;
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  std::printf("%llu rounds, %llu reads\n", static_cast<unsigned long long>(round),
              static_cast<unsigned long long>(reads.load()));
}

// Four vCPUs convert their own pages, beside each other, and find in each half what they left
// there.
TEST_F(PrivateStress, ConversionsBesideEachOtherLoseNoPage) {
  const test::Deadline deadline(0.5);
  std::atomic<u64> conversions{0};
  std::vector<std::thread> threads;
  for (unsigned me = 0; me < kVcpus; ++me) {
    threads.emplace_back([&, me] {
      Vcpu vcpu(*memory_);
      const u64 gpa = kGpa + me * 2 * kPageSize;
      u64 shared = 0;
      u64 hidden = 0;
      for (u64 round = 1; round <= 500 || deadline.running(); ++round) {
        EXPECT_EQ(shared, vcpu.load(gpa));
        vcpu.store(gpa, shared = round * 2);
        EXPECT_EQ(0, convert(gpa, 1, true));
        EXPECT_EQ(hidden, vcpu.load(gpa));
        vcpu.store(gpa, hidden = round * 2 + 1);
        EXPECT_EQ(0, convert(gpa, 1, false));
        conversions.fetch_add(2);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(conversions.load(), 4000U);
  std::printf("%llu conversions\n", static_cast<unsigned long long>(conversions.load()));
}

// Slots are bound and unbound beside punches and faults: every begin has its end, or the VM's own
// check at its end fails, and who found a page found it of this file.
TEST_F(PrivateStress, PunchesUnbindingsAndFaultsKeepTheirBalance) {
  ASSERT_EQ(0, convert(kGpa, kFilePages, true));
  const test::Deadline deadline(0.3);
  std::atomic<bool> stop{false};
  std::thread puncher([&] {
    while (!stop.load()) EXPECT_EQ(0, file_.punch(0, kFilePages));
  });
  std::thread reader([&] {
    Vcpu vcpu(*memory_);
    while (!stop.load()) {
      const u64 value = vcpu.load(kGpa);
      EXPECT_TRUE(value == 0 || value == ~u64{0}) << value;
    }
  });
  u64 rounds = 0;
  for (; rounds < 100'000 && deadline.running(); ++rounds) {
    ASSERT_EQ(0, slot(0, kGpa, 0, 0));
    ASSERT_EQ(0, bind(0, kGpa, kFilePages, pages_.address(), file_));
  }
  stop = true;
  puncher.join();
  reader.join();
  std::printf("%llu rounds\n", static_cast<unsigned long long>(rounds));
}

// Private pages are taken all the time while four vCPUs count in them, and one of them is punched:
// no count is lost, and what was punched is zero.
TEST_F(PrivateVm, PagesThatLeaveAllTheTimeLoseNoStore) {
  mem::PageStore store;
  test::TestSwap swap(store);
  swap.use_file();
  ASSERT_TRUE(mem::private_pages::open(&swap));
  ASSERT_EQ(0, bind(0, kGpa, kFilePages, pages_.address(), file_));
  ASSERT_EQ(0, convert(kGpa, kFilePages, true));
  Fault found;
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite, &found));
  const HvaRange all(page_floor(found.page), kFilePages * kPageSize);
  std::atomic<bool> stop{false};
  const u64 seed = test::announced_seed("private pages under a limit");
  std::thread taker([&] {
    test::RandomSource random(seed);
    while (!stop.load()) {
      const u64 first = random.below(kFilePages);
      const u64 pages = 1 + random.below(kFilePages - first);
      const Hva at = all.start() + (first << kPageShift);
      EXPECT_EQ(0, swap.take(HvaRange(at, pages << kPageShift)).refusal);
    }
  });
  const test::Deadline deadline(0.5);
  std::vector<std::thread> threads;
  std::atomic<u64> counted{0};
  for (unsigned me = 0; me < kVcpus; ++me) {
    threads.emplace_back([&, me] {
      test::RandomSource random(seed + 1 + me);
      Vcpu vcpu(*memory_);
      u64 mine[kFilePages] = {};
      while (deadline.running() || swap.back < 100) {
        const u64 page = random.below(kFilePages - 1);
        u64 value = 0;
        ASSERT_TRUE(vcpu.access(kGpa + page * kPageSize, Access::kWrite, [&](Hva at) {
          const Hva word = page_floor(at) + me * 64;
          return host::load(word, &value) && host::store(word, value + 1);
        }));
        ASSERT_EQ(mine[page], value) << page << ", seed " << seed;
        ++mine[page];
        if (me == 0 && random.below(16) == 0) {
          vcpu.store(kGpa + (kFilePages - 1) * kPageSize, 1);
          ASSERT_EQ(0, file_.punch(kFilePages - 1, 1));
          ASSERT_EQ(0U, vcpu.load(kGpa + (kFilePages - 1) * kPageSize)) << "seed " << seed;
        }
      }
      for (const u64 one : mine) counted.fetch_add(one);
    });
  }
  for (std::thread& thread : threads) thread.join();
  stop = true;
  taker.join();
  std::printf("%llu stores, %llu pages back\n", static_cast<unsigned long long>(counted.load()),
              static_cast<unsigned long long>(swap.back.load()));
  ASSERT_EQ(0, slot(0, kGpa, 0, 0));
  file_.object.release();
  mem::private_pages::close();
}

}  // namespace
}  // namespace stagetwo::stage2
