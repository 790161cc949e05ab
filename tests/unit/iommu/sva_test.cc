// SPDX-License-Identifier: Apache-2.0
// Goal: a device works on a process's own addresses by a PASID, and follows what the process does
// to them.
#include "iommu/sva.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/failpoint.h"
#include "host/change.h"
#include "host/page_owner.h"
#include "iommu/auxiliary.h"
#include "iommu/process_space.h"
#include "tests/support/one_place_owner.h"
#include "tests/support/sanitizers.h"
#include "tests/unit/iommu/engine_world.h"

namespace stagetwo::iommu {
namespace {

class SvaTest : public EngineWorld {
 protected:
  void SetUp() override {
    EngineWorld::SetUp();
    // Tests before it have unmapped their memory without a word.
    const host::InvalidateSection all({host::kWholeAddressSpace, host::EventKind::kUnmap});
  }
  u32 bind(u32 device) {
    const auto pasid = bind_process(*context_, device);
    error_ = error_of(pasid);
    return pasid ? *pasid : 0;
  }
  void unbind(u32 device) { unbind_process(*context_, device); }
  // 0: a fault, of reason_ at fault_.
  u8 get(u32 device, u32 pasid, u64 at, bool asks = true) {
    u8 value = 0;
    const DmaAnswer done = context_->dma(device, pasid, at, 1, &value, nullptr, asks);
    reason_ = done.reason;
    fault_ = done.iova;
    return done.done == 1 ? value : u8{0};
  }
  bool put(u32 device, u32 pasid, u64 at, u8 value) {
    reason_ = context_->dma(device, pasid, at, 1, nullptr, &value, true).reason;
    return reason_ == FaultReason::kNone;
  }
  int unmap_own(u64 at, u64 bytes) {
    return host::change(at, bytes, host::EventKind::kUnmap,
                        [&] { return munmap(reinterpret_cast<void*>(at), bytes); });
  }
  int error_ = 0;
  std::atomic<FaultReason> reason_{};
  std::atomic<u64> fault_ = 0;
};

TEST_F(SvaTest, ADeviceReadsAndWritesWhatTheProcessHas) {
  const u32 pasid = bind(device_);
  ASSERT_NE(pasid, 0u);
  EXPECT_EQ(get(device_, pasid, page(1)), mark(1));
  EXPECT_TRUE(put(device_, pasid, page(1), 0x77));
  EXPECT_EQ(*memory_.bytes_at(kPageSize), 0x77);
  // All of it, over the border of pages, and nothing is pinned for it.
  u8 bytes[2 * kPageSize];
  EXPECT_EQ(context_->dma(device_, pasid, page(0) + 1, sizeof(bytes), bytes, nullptr, true).done,
            sizeof(bytes));
  EXPECT_EQ(host::pin_use().pages, 2u) << "those of the two IOASes with page tables";
  unbind(device_);
}

TEST_F(SvaTest, WithoutAPageRequestAnAbsentPageIsAFault) {
  const u32 pasid = bind(device_);
  EXPECT_EQ(get(device_, pasid, page(2), false), 0);
  EXPECT_EQ(reason_, FaultReason::kFirstNotPresent);
  EXPECT_EQ(fault_, page(2));
  EXPECT_EQ(get(device_, pasid, page(2)), mark(2));
  EXPECT_EQ(get(device_, pasid, page(2), false), mark(2)) << "it is known now";
  EXPECT_EQ(get(device_, pasid, u64{1} << 50), 0);
  EXPECT_EQ(reason_, FaultReason::kNotCanonical);
  unbind(device_);
}

TEST_F(SvaTest, WhatTheProcessUnmapsIsGoneAndWhatItMapsThereIsSeen) {
  void* const at =
      mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const u64 address = reinterpret_cast<u64>(at);
  const u32 pasid = bind(device_);
  ASSERT_TRUE(put(device_, pasid, address, 1));
  ASSERT_EQ(unmap_own(address, kPageSize), 0);
  EXPECT_EQ(get(device_, pasid, address), 0);
  EXPECT_EQ(reason_, FaultReason::kFirstNotPresent);
  ASSERT_EQ(mmap(at, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), at);
  EXPECT_FALSE(put(device_, pasid, address, 2));
  EXPECT_EQ(get(device_, pasid, address), 0);
  EXPECT_EQ(reason_, FaultReason::kNone) << "a page of zeros, which may be read";
  unbind(device_);
  munmap(at, 2 * kPageSize);
}

TEST_F(SvaTest, APageThatSomebodyHasTakenComesBackForTheDevice) {
  const u32 pasid = bind(device_);
  ASSERT_EQ(get(device_, pasid, page(2)), mark(2));
  test::OnePlaceOwner owner;
  const auto taken =
      host::take_away(HvaRange(Hva(page(2)), kPageSize), &owner, &owner, host::Which::kAnonymous);
  ASSERT_TRUE(taken);
  ASSERT_EQ(*taken, 1u);
  EXPECT_EQ(get(device_, pasid, page(2), false), 0);
  EXPECT_EQ(get(device_, pasid, page(2)), mark(2));
  unbind(device_);
}

TEST_F(SvaTest, AProcessHasOnePasidOnAllDevicesAndABindCounts) {
  const u32 other = make_vtd(0x61);
  const u32 pasid = bind(device_);
  EXPECT_EQ(bind(other), pasid);
  EXPECT_EQ(bind(device_), pasid);
  unbind(device_);
  EXPECT_EQ(get(device_, pasid, page(0)), mark(0));
  unbind(device_);
  EXPECT_EQ(get(device_, pasid, page(0)), 0);
  EXPECT_EQ(reason_, FaultReason::kPasidNotPresent);
  EXPECT_EQ(get(other, pasid, page(0)), mark(0));
  unbind(other);
  unbind(other);
  EXPECT_EQ(destroy(other), 0);
}

TEST_F(SvaTest, ItIsOneMapWithAttachedPageTables) {
  ASSERT_EQ(attach(device_, table_[0], 1), 0);
  const u32 pasid = bind(device_);
  EXPECT_EQ(pasid, 2u) << "1 is taken";
  EXPECT_EQ(attach(device_, table_[1], pasid), EBUSY);
  EXPECT_EQ(get(device_, 1, kIova), mark(0));
  EXPECT_EQ(get(device_, 1, page(0)), 0) << "the other PASID's addresses";
  EXPECT_EQ(get(device_, pasid, kIova), 0);
  EXPECT_TRUE(entry(device_, pasid).entry.is_process());
  unbind(device_);
  EXPECT_EQ(attach(device_, table_[1], pasid), 0);
  EXPECT_EQ(get(device_, pasid, kIova), mark(1));
}

// The rule of PASIDs is for what clients attach: an IOAS, whose page table is for no PASID, and the
// process's addresses stand beside each other in whatever order they come and go.
TEST_F(SvaTest, ItStandsBesideTheDevicesOwnPageTable) {
  const u32 plain = make_hwpt(ioas_[1], device_, {});
  ASSERT_EQ(attach(device_, ioas_[0]), 0);
  const u32 own = attached(device_);
  ASSERT_NE(own, table_[0]) << "one of its own";
  const u32 pasid = bind(device_);
  ASSERT_EQ(error_, 0);
  const auto both_work = [&](unsigned i) {
    EXPECT_EQ(get(device_, pasid, page(2)), mark(2));
    u8 value = 0;
    EXPECT_EQ(read(device_, kNoPasid, kIova, &value, 1).reason, FaultReason::kNone);
    EXPECT_EQ(value, mark(i));
  };
  both_work(0);
  EXPECT_EQ(replace(device_, plain), 0);
  both_work(1);
  EXPECT_EQ(attach(device_, table_[0], 9), EINVAL)
      << "a client's PASID stands beside none of those";
  detach(device_);
  EXPECT_EQ(get(device_, pasid, page(2)), mark(2));
  EXPECT_EQ(attach(device_, table_[0], 9), 0);
  EXPECT_EQ(attach(device_, ioas_[0]), EINVAL) << "nor they beside it";
  detach(device_, 9);
  EXPECT_EQ(attach(device_, ioas_[0]), 0) << "bound first";
  both_work(0);
  unbind(device_);
  EXPECT_EQ(get(device_, pasid, page(2)), 0);
  EXPECT_EQ(seen(kNoPasid), mark(0));
  EXPECT_EQ(bind(device_), pasid);
  both_work(0);
  unbind(device_);
  detach(device_);
  EXPECT_EQ(destroy(plain), 0);
}

TEST_F(SvaTest, NotEveryDeviceCan) {
  const u32 plain = make_vtd(0x62, 0), narrow = make_vtd(0x63, 8, 3);
  EXPECT_EQ(bind(plain), 0u);
  EXPECT_EQ(error_, ENODEV);
  EXPECT_EQ(bind(narrow), 0u);
  EXPECT_EQ(error_, ENODEV);
  EXPECT_EQ(bind(999), 0u);
  EXPECT_EQ(error_, ENOENT);
  EXPECT_EQ(destroy(plain), 0);
  EXPECT_EQ(destroy(narrow), 0);
}

TEST_F(SvaTest, AnEngineWorksOnItToo) {
  const u32 pasid = bind(device_);
  u8 value = 0;
  EXPECT_EQ(engine_->access(pasid, page(1), 1, &value, nullptr).reason,
            FaultReason::kFirstNotPresent);
  EXPECT_EQ(engine_->access(pasid, page(1), 1, &value, nullptr, true).done, 1u);
  EXPECT_EQ(value, mark(1));
  unbind(device_);
  EXPECT_EQ(engine_->access(pasid, page(1), 1, &value, nullptr, true).reason,
            FaultReason::kPasidNotPresent);
}

// What an engine has found once it uses again without asking: as long as all of it is there.
TEST_F(SvaTest, ACopyBetweenPagesOfTheProcessFollowsThem) {
  constexpr u64 kBytes = 8 * kPageSize;
  auto* const from = static_cast<u8*>(
      mmap(nullptr, 2 * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  u8* const to = from + kBytes;
  const u64 source = reinterpret_cast<u64>(from), target = reinterpret_cast<u64>(to);
  for (u64 i = 0; i < kBytes; ++i) from[i] = static_cast<u8>(i * 31 / 7);
  const u32 pasid = bind(device_);
  const auto without = engine_->copy(pasid, target, source, kBytes);
  EXPECT_EQ(without.answer.reason, FaultReason::kFirstNotPresent);
  EXPECT_EQ(without.answer.done, 0u);
  for (unsigned round = 0; round < 3; ++round) {
    memset(to, 0, kBytes);
    EXPECT_EQ(engine_->copy(pasid, target + 5, source, kBytes - 5, round == 0).answer.done,
              kBytes - 5);
    EXPECT_EQ(memcmp(to + 5, from, kBytes - 5), 0);
  }
  memset(to, 0, kBytes);
  ASSERT_EQ(unmap_own(target + 3 * kPageSize, kPageSize), 0);
  const auto cut = engine_->copy(pasid, target, source, kBytes, true);
  EXPECT_EQ(cut.answer.done, 3 * kPageSize);
  EXPECT_EQ(cut.answer.iova, target + 3 * kPageSize);
  EXPECT_TRUE(cut.write);
  EXPECT_EQ(memcmp(to, from, 3 * kPageSize), 0);
  EXPECT_EQ(to[4 * kPageSize], 0);
  // A page that may be read only is not written, whatever right it had.
  host::change(target, kPageSize, host::EventKind::kProtection,
               [&] { return mprotect(to, kPageSize, PROT_READ); });
  EXPECT_EQ(engine_->copy(pasid, target, source, 64, true).answer.done, 0u);
  EXPECT_EQ(engine_->copy(pasid, target + kPageSize, target, 64, true).answer.done, 64u);
  unbind(device_);
  EXPECT_EQ(engine_->copy(pasid, target + kPageSize, source, 64, true).answer.reason,
            FaultReason::kPasidNotPresent);
  unmap_own(source, 2 * kBytes);
}

// Where requests are interrupts there is no memory, even if the process has some there.
TEST_F(SvaTest, ARunOfPagesEndsWhereInterruptsBegin) {
  if (test::kAddressSanitizer) GTEST_SKIP() << "the sanitizer's shadow stands at these addresses";
  void* const wanted = reinterpret_cast<void*>(kInterruptStart - kPageSize);
  void* const at = mmap(wanted, 2 * kPageSize, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  ASSERT_EQ(at, wanted);
  const u32 pasid = bind(device_);
  ASSERT_EQ(engine_->copy(pasid, page(0), kInterruptStart - kPageSize, kPageSize, true).answer.done,
            kPageSize);
  const auto across = engine_->copy(pasid, page(0), kInterruptStart - 8, 16, true);
  EXPECT_EQ(across.answer.done, 8u);
  EXPECT_EQ(across.answer.reason, FaultReason::kInterruptRange);
  unbind(device_);
  unmap_own(kInterruptStart - kPageSize, 2 * kPageSize);
}

TEST_F(SvaTest, ARecordComesWithTheBytesWhereItsPageIsKnown) {
  const u32 pasid = bind(device_);
  const u64 words[4] = {0x0101, 2, 3, 4};
  const DmaEngine::Record record{page(2) + 64, words};
  auto* const there = reinterpret_cast<u64*>(memory_.bytes_at(2 * kPageSize + 64));
  EXPECT_EQ(engine_->post(pasid, record).reason, FaultReason::kFirstNotPresent);
  EXPECT_EQ(engine_->post(pasid, record, true).reason, FaultReason::kNone);
  EXPECT_EQ(memcmp(there, words, sizeof(words)), 0);
  for (unsigned round = 0; round < 3; ++round) {
    memset(there, 0, sizeof(words));
    const auto copied = engine_->copy(pasid, page(1), page(0), 64, round == 0, &record);
    EXPECT_EQ(copied.answer.done, 64u);
    EXPECT_EQ(copied.posted, round != 0) << "the first brings its pages one by one";
    EXPECT_EQ(memcmp(there, words, sizeof(words)) == 0, round != 0);
  }
  // Without its page the bytes come and the record does not.
  memset(there, 0, sizeof(words));
  {
    const host::InvalidateSection gone(
        {HvaRange(Hva(page(2)), kPageSize), host::EventKind::kUnmap});
    EXPECT_FALSE(engine_->copy(pasid, page(1), page(0), 64, false, &record).posted);
  }
  EXPECT_EQ(there[0], 0u);
  unbind(device_);
}

TEST_F(SvaTest, AChildOfForkDoesNotReachItsParent) {
  const u32 pasid = bind(device_);
  ASSERT_EQ(get(device_, pasid, page(0)), mark(0));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(get(device_, pasid, page(0)) == 0 && reason_ == FaultReason::kFirstUnreadable ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  unbind(device_);
}

TEST_F(SvaTest, AProcessThatEndedIsBoundNoMore) {
  const auto bind_in_child = [&](u32 device) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      auto context = *Context::attach(backing_->fd());
      _exit(bind_process(*context, device) ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  };
  bind_in_child(device_);
  EXPECT_EQ(get(device_, 1, page(0)), 0);
  EXPECT_EQ(reason_, FaultReason::kFirstUnreadable);
  EXPECT_EQ(bind(device_), 1u) << "the number is free again";
  unbind(device_);
  bind_in_child(device_);
  EXPECT_EQ(attach(device_, table_[0], 1), 0) << "for a page table, too";
  detach(device_, 1);
  const u32 other = make_vtd(0x62);
  bind_in_child(other);
  EXPECT_EQ(destroy(other), 0) << "nor is the device kept";
}

TEST_F(SvaTest, WithoutMemoryNothingIsBound) {
  failpoint::sweep([&] {
    const u32 pasid = bind(device_);
    if (pasid == 0) {
      Locked locked(*context_);
      EXPECT_EQ(locked.find_process_table(), nullptr);
    }
    unbind(device_);
  });
}

// A page table with a fault queue: who reads it maps what is asked for, or says no.
TEST_F(SvaTest, ADeviceThatAsksGoesOnWhenItIsAnswered) {
  u32 queue = 0;
  {
    Locked locked(*context_);
    auto* const made = *locked.make_fault_queue();
    queue = made->object.id;
    (*locked.find<Hwpt>(table_[0]))->fault = made;
    ++made->object.users;
  }
  ASSERT_EQ(attach(device_, table_[0], 5), 0);
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop) {
      u32 cookie = 0;
      u64 address = 0;
      {
        Locked locked(*context_);
        FaultQueue& of = **locked.find<FaultQueue>(queue);
        PageRequest* const first = of.delivered;
        if (first != nullptr) {
          locked.mark_read(of);
          cookie = first->cookie;
          address = first->address;
        }
      }
      if (cookie == 0) {
        std::this_thread::yield();
        continue;
      }
      const bool success = address == kIova + kPageSize;
      if (success) {
        EXPECT_EQ(map_at(ioas_[0], page(2), kPageSize, address), 0);
      }
      Locked locked(*context_);
      EXPECT_TRUE(locked.answer(**locked.find<FaultQueue>(queue), cookie, success));
    }
  });
  EXPECT_EQ(get(device_, 5, kIova + kPageSize), mark(2));
  EXPECT_EQ(get(device_, 5, kIova + 2 * kPageSize), 0);
  EXPECT_EQ(reason_, FaultReason::kSecondDenied);
  EXPECT_EQ(get(device_, 5, kIova + 2 * kPageSize, false), 0);
  stop = true;
  reader.join();
  // Who waits when the PASID goes is told.
  std::thread waits([&] { EXPECT_EQ(get(device_, 5, kIova + 3 * kPageSize), 0); });
  for (bool asked = false; !asked;) {
    Locked locked(*context_);
    asked = (*locked.find<FaultQueue>(queue))->delivered.get() != nullptr;
  }
  detach(device_, 5);
  waits.join();
  Locked locked(*context_);
  (*locked.find<Hwpt>(table_[0]))->fault = nullptr;
  --(*locked.find<FaultQueue>(queue))->object.users;
  locked.destroy_fault_queue(*locked.find<FaultQueue>(queue));
}

// What is unmapped under a working device is never written again: the pages that come there are
// another's.
TEST_F(SvaTest, UnderADeviceThatNeverRestsNoWriteLandsAfterTheUnmap) {
  const u32 pasid = bind(device_);
  constexpr u64 kBytes = 4 * kPageSize;
  void* const at =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const u64 address = reinterpret_cast<u64>(at);
  std::atomic<bool> stop{false};
  std::thread device([&] {  // by the tables, and as an engine that remembers
    memset(memory_.bytes_at(0), 0xdd, 2 * kPageSize);
    for (u64 i = 0; !stop; ++i) {
      put(device_, pasid, address + i % 4 * kPageSize, 0xdd);
      engine_->copy(pasid, address + i % 3 * kPageSize, page(0), 2 * kPageSize, i % 2 == 0);
    }
  });
  for (unsigned round = 0; round < 200; ++round) {
    EXPECT_EQ(unmap_own(address, kBytes), 0);
    // Nothing of it may be written now, whoever has it.
    auto* const fresh = static_cast<volatile u8*>(
        mmap(at, kBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    for (u64 i = 0; i < kBytes; i += kPageSize) EXPECT_EQ(fresh[i], 0);
    host::change(address, kBytes, host::EventKind::kUnmap, [&] {
      return mmap(at, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                  0);
    });
  }
  stop = true;
  device.join();
  unbind(device_);
  munmap(at, kBytes);
}

}  // namespace
}  // namespace stagetwo::iommu
