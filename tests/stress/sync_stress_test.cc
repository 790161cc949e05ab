// SPDX-License-Identifier: Apache-2.0
// The lock-free protocols with real threads on the real machine, for STAGETWO_TEST_SECONDS in all.
// Under ThreadSanitizer the plain data below also proves the orders; without it, the machine's own
// reordering is what is tried.

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "sync/ack_line.h"
#include "sync/asymmetric.h"
#include "sync/epoch.h"
#include "sync/futex.h"
#include "sync/invalidation_gate.h"
#include "sync/passage.h"
#include "sync/ref.h"
#include "sync/sequence_counter.h"
#include "tests/support/seeds.h"

namespace stagetwo::test {
namespace {

using namespace stagetwo::sync;

constexpr double kShare = 1.0 / 8;  // of the duration, for each of the cases below

void run_threads(std::vector<std::thread>& threads) {
  for (std::thread& thread : threads) thread.join();
}

// Two vCPUs translate, cache and use; one thread changes the meaning of the page under the
// protocol.
TEST(Stress, NoTranslationOutlivesItsInvalidation) {
  struct World {
    InvalidationGate gate;
    AckSet set;
    AckLine line[2];
    Atomic<u64> entry{0};
    Atomic<u64> meaning{1};  // stands for the kernel's tables
    Atomic<u32> stop{0};
    Atomic<u64> uses{0};
    u64 page[2] = {0, 0};  // plain: page[meaning & 1] may be read while meaning stands
  };
  auto world = std::make_unique<World>();
  World& w = *world;
  for (AckLine& line : w.line) w.set.add(line);
  w.page[1] = 1;

  std::vector<std::thread> threads;
  for (AckLine& line : w.line) {
    threads.emplace_back([&w, &line] {
      u64 cached = 0;
      u64 uses = 0;
      while (w.stop.load(kRelaxed) == 0) {
        const auto snapshot = w.gate.snapshot();
        const u64 found = w.meaning.load(kAcquire);
        if (line.enter()) cached = 0;
        if (!w.gate.must_retry(snapshot, 7)) {
          u64 empty = 0;
          if (w.entry.compare_exchange(empty, found) || empty == found) cached = found;
          for (int block = 0; block < 50 && cached != 0; ++block) {
            ASSERT_EQ(w.page[cached & 1], cached);
            ++uses;
            if (line.poll()) cached = 0;
          }
        }
        cached = 0;
        line.leave();
      }
      w.uses.fetch_add(uses);
    });
  }
  u64 invalidations = 0;
  for (const Deadline deadline(2 * kShare); deadline.running(); ++invalidations) {
    w.gate.begin(7, 7);
    w.set.barrier();
    w.entry.store(0);
    const u64 old = w.meaning.load(kRelaxed);
    w.page[old & 1] = ~u64{0};
    w.page[(old + 1) & 1] = old + 1;
    w.meaning.store(old + 1, kRelease);
    w.gate.end(7, 7);
    if (invalidations % 16 == 0) yield_thread();
  }
  w.stop.store(1);
  run_threads(threads);
  for (AckLine& line : w.line) w.set.remove(line);
  EXPECT_GT(w.uses.load(), 0u);
  RecordProperty("invalidations", static_cast<int>(invalidations));
}

TEST(Stress, RetiredObjectsAreNotRead) {
  struct Object {
    u64 alive = 1;
  };
  struct World {
    AckSet set;
    EpochDomain domain{set};
    AckLine line[2];
    Atomic<Object*> current{nullptr};
    Atomic<u32> stop{0};
  };
  auto world = std::make_unique<World>();
  World& w = *world;
  for (AckLine& line : w.line) w.set.add(line);
  w.current.store(new Object);
  std::vector<std::thread> threads;
  for (AckLine& line : w.line) {
    threads.emplace_back([&w, &line] {
      while (w.stop.load(kRelaxed) == 0) {
        const RunningSection section(line);
        for (int i = 0; i < 20; ++i) {
          ASSERT_EQ(w.current.load(kAcquire)->alive, 1u);
          static_cast<void>(line.poll());
        }
      }
    });
  }
  u64 retired = 0;
  for (const Deadline deadline(kShare); deadline.running(); ++retired) {
    Object* old = w.current.exchange(new Object, kAcqRel);
    w.domain.retire(old, [](void* object) {
      static_cast<Object*>(object)->alive = 0;
      delete static_cast<Object*>(object);
    });
    if (retired % 64 == 0) w.set.bump_all();
    if (retired % 16 == 0) w.domain.collect();
  }
  w.stop.store(1);
  run_threads(threads);
  w.domain.synchronize();
  for (AckLine& line : w.line) w.set.remove(line);
  delete w.current.load();
  EXPECT_GT(retired, 0u);
}

TEST(Stress, TheAsymmetricBarrierMissesNobody) {
  for (const bool membarrier : {true, false}) {
    if (membarrier) {
      static_cast<void>(asymmetric_init());
    } else {
      debug_forbid_membarrier();
    }
    Atomic<u32> flag{0}, request{0}, stop{0};
    u64 guarded = 0;  // plain: written by whoever is alone
    u64 waits = 0;
    std::thread frequent([&] {
      while (stop.load(kRelaxed) == 0) {
        store_light(flag, u32{1});
        if (request.load(kSeqCst) == 0) ++guarded;
        flag.store(0, kRelease);
      }
    });
    for (const Deadline deadline(kShare / 2); deadline.running(); ++waits) {
      request.store(1, kSeqCst);
      asymmetric_barrier();
      while (load_heavy(flag) != 0) spin_hint();
      ++guarded;
      request.store(0, kSeqCst);
      yield_thread();
    }
    stop.store(1);
    frequent.join();
    EXPECT_GT(waits, 0u);
    EXPECT_GE(guarded, waits);
  }
}

TEST(Stress, SequenceReadersSeeNoHalf) {
  SequenceCounter counter;
  Sequenced<u64> a, b;
  Atomic<u32> stop{0};
  u64 reads = 0;
  std::thread writer([&] {
    for (u64 i = 1; stop.load(kRelaxed) == 0; ++i) {
      counter.begin_write();
      a.write(i);
      b.write(i);
      counter.end_write();
    }
  });
  for (const Deadline deadline(kShare); deadline.running();) {
    const u64 s = counter.begin_read();
    const u64 x = a.read();
    const u64 y = b.read();
    if (counter.retry_read(s)) continue;
    ASSERT_EQ(x, y);
    ++reads;
  }
  stop.store(1);
  writer.join();
  EXPECT_GT(reads, 0u);
}

TEST(Stress, LocksExclude) {
  Mutex mutex(Rank::kSlots);
  SharedMutex shared(Rank::kGate);
  u64 a = 0, b = 0;
  Atomic<u32> stop{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      while (stop.load(kRelaxed) == 0) {
        if (t < 2) {
          const MutexGuard outer(mutex);
          const ExclusiveGuard inner(shared);
          ++a;
          ++b;
        } else {
          const SharedGuard guard(shared);
          ASSERT_EQ(a, b);
        }
      }
    });
  }
  for (const Deadline deadline(kShare); deadline.running();) yield_thread();
  stop.store(1);
  run_threads(threads);
  EXPECT_EQ(a, b);
  EXPECT_GT(a, 0u);
}

TEST(Stress, WaitersOfAPassageWaitForEverybody) {
  struct World {
    Passage passage;
    Atomic<u64*> current{nullptr};
    Atomic<u32> stop{0};
  };
  auto world = std::make_unique<World>();
  World& w = *world;
  w.current.store(new u64(1));
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&w] {
      while (w.stop.load(kRelaxed) == 0) {
        const Passage::Ticket ticket = w.passage.enter();
        ASSERT_EQ(*w.current.load(), 1u);
        w.passage.leave(ticket);
      }
    });
  }
  u64 waits = 0;
  for (const Deadline deadline(kShare); deadline.running(); ++waits) {
    u64* old = w.current.exchange(new u64(1));
    w.passage.wait();
    *old = 0;
    delete old;
  }
  w.stop.store(1);
  run_threads(threads);
  delete w.current.load();
  EXPECT_GT(waits, 0u);
}

TEST(Stress, ReferencesEndOnce) {
  struct Counted : RefCounted {
    explicit Counted(Atomic<u32>& n) : ended(n) {}
    ~Counted() override { ended.fetch_add(1); }
    Atomic<u32>& ended;
  };
  u32 rounds = 0;
  Atomic<u32> ended{0};
  for (const Deadline deadline(kShare); deadline.running(); ++rounds) {
    Ref<Counted> first = std::move(*Ref<Counted>::make("stress", ended));
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([mine = first.clone()]() mutable {
        for (int i = 0; i < 100; ++i) static_cast<void>(mine.clone());
        mine.reset();
      });
    }
    first.reset();
    run_threads(threads);
    ASSERT_EQ(ended.load(), rounds + 1);
  }
}

}  // namespace
}  // namespace stagetwo::test
