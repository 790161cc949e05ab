// SPDX-License-Identifier: Apache-2.0
// Dirty rings as a client sees them: enabling, mapping, filling, resetting.
#include "tests/abi/kvm_client.h"

namespace kvm_client {
namespace {

constexpr u32 kBytes = 4096;
constexpr u32 kEntries = kBytes / sizeof(kvm_dirty_gfn);
constexpr u32 kSoftLimit = kEntries - 64;
constexpr u64 kLogged = 0x20000;
constexpr u32 kPages = 200;
constexpr u32 kSlot = 1;

// The client's mmap of a descriptor: what the shim lets through.
void* map(int fd, u64 size, int prot, int flags, u64 offset, int* error) {
  *error = 0;
  if (!on_oracle()) {
    auto ref = stagetwo::host::find(fd);
    const auto allowed = ref->check_mmap({size, prot, flags, static_cast<off_t>(offset)});
    if (!allowed) {
      *error = stagetwo::to_int(allowed.error());
      return MAP_FAILED;
    }
  }
  void* at = ::mmap(nullptr, size, prot, flags, fd, static_cast<off_t>(offset));
  if (at == MAP_FAILED) *error = errno;
  return at;
}

class Rings : public Machine {
 protected:
  void TearDown() override {
    if (ring_ != nullptr) ::munmap(ring_, kBytes);
    if (logged_ != nullptr) ::munmap(logged_, kPages * 4096);
    Machine::TearDown();
  }
  long enable(u64 bytes, u32 cap = KVM_CAP_DIRTY_LOG_RING, u32 flags = 0) {
    kvm_enable_cap request{};
    request.cap = cap;
    request.flags = flags;
    request.args[0] = bytes;
    return call(vm_, KVM_ENABLE_CAP, &request);
  }
  // A vCPU with a ring, code at 0x1000, a logging slot of kPages at kLogged.
  void start() {
    ASSERT_EQ(enable(kBytes), 0);
    add_memory();
    add_vcpu();
    int error = 0;
    void* at = map(vcpu_, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, 64 * 4096, &error);
    ASSERT_EQ(error, 0);
    ring_ = static_cast<kvm_dirty_gfn*>(at);
    logged_ = static_cast<u8*>(
        ::mmap(nullptr, kPages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(logged_, MAP_FAILED);
    kvm_userspace_memory_region region{};
    region.slot = kSlot;
    region.flags = KVM_MEM_LOG_DIRTY_PAGES;
    region.guest_phys_addr = kLogged;
    region.memory_size = kPages * 4096;
    region.userspace_addr = reinterpret_cast<u64>(logged_);
    ASSERT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION, &region), 0);
    load_code({
        0xb8, 0x00, 0x20,        // mov ax, 0x2000
        0x8e, 0xd8,              // next: mov ds, ax
        0xfe, 0x06, 0x00, 0x00,  // inc byte [0]
        0x05, 0x00, 0x01,        // add ax, 0x100
        0x39, 0xd8,              // cmp ax, bx
        0x72, 0xf3,              // jb next
        0xf4,                    // hlt
    });
  }
  // Points the guest at its beginning: it increments the first byte of the first `pages` pages.
  void touch(u32 pages) {
    kvm_regs r = regs();
    r.rip = 0x1000;
    r.rbx = 0x2000 + pages * 0x100;
    ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &r), 0);
  }
  u32 run() {
    EXPECT_EQ(call(vcpu_, KVM_RUN), 0);
    return run_->exit_reason;
  }
  static u32 flags_of(const kvm_dirty_gfn& entry) {
    return __atomic_load_n(&entry.flags, __ATOMIC_ACQUIRE);
  }
  u32 dirty_entries() {
    u32 count = 0;
    for (u32 i = 0; i < kEntries; ++i) count += flags_of(ring_[i]) == KVM_DIRTY_GFN_F_DIRTY;
    return count;
  }
  u32 collect(u32 limit = ~0U) {
    u32 count = 0;
    for (; count < limit; ++count, ++next_) {
      kvm_dirty_gfn& entry = ring_[next_ % kEntries];
      if (flags_of(entry) != KVM_DIRTY_GFN_F_DIRTY) break;
      EXPECT_EQ(entry.slot, kSlot);
      EXPECT_LT(entry.offset, kPages);
      seen_[entry.offset]++;
      __atomic_store_n(&entry.flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
    }
    return count;
  }
  long reset() { return call(vm_, KVM_RESET_DIRTY_RINGS); }
  kvm_dirty_gfn* ring_ = nullptr;
  u8* logged_ = nullptr;
  u32 next_ = 0;
  u32 seen_[kPages] = {};
};

// What stands in the ring at every moment. A kernel that emulates many instructions between two
// looks at the ring overruns it, and pushes pages twice: of its rings only the interface is
// compared.
class ExactRings : public Rings {
 protected:
  void SetUp() override {
    if (on_oracle()) GTEST_SKIP() << "a kernel that emulates overruns the ring and repeats pages";
    Rings::SetUp();
  }
};

constexpr u32 kHlt = KVM_EXIT_HLT;
constexpr u32 kFull = KVM_EXIT_DIRTY_RING_FULL;

TEST_F(Rings, LargestSizeIsTheValueOfTheCapability) {
  for (const int fd : {static_cast<int>(device_), static_cast<int>(vm_)}) {
    EXPECT_EQ(call(fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING), 1 << 20);
    EXPECT_EQ(call(fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_ACQ_REL), 1 << 20);
    EXPECT_EQ(call(fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP), 0);
  }
}
TEST_F(Rings, SizeIsAPowerOfTwoThatHoldsTheReserve) {
  EXPECT_EQ(enable(0), -EINVAL);
  EXPECT_EQ(enable(2048), -EINVAL);
  EXPECT_EQ(enable(12288), -EINVAL);
  EXPECT_EQ(enable(1 << 21), -E2BIG);
  EXPECT_EQ(enable(4096, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP), -EINVAL);
  EXPECT_EQ(enable(4096), 0);
}
TEST_F(Rings, LargestSizeIsAccepted) {
  EXPECT_EQ(enable(1 << 20, KVM_CAP_DIRTY_LOG_RING_ACQ_REL), 0);
}
TEST_F(Rings, AreEnabledOnce) {
  ASSERT_EQ(enable(4096), 0);
  EXPECT_EQ(enable(4096), -EINVAL);
  EXPECT_EQ(enable(4096, KVM_CAP_DIRTY_LOG_RING_ACQ_REL), -EINVAL);
  EXPECT_EQ(enable(1 << 21), -E2BIG) << "the size is looked at first";
}
TEST_F(Rings, AreEnabledBeforeTheFirstVcpu) {
  add_vcpu();
  EXPECT_EQ(enable(4096), -EINVAL);
  EXPECT_EQ(enable(1 << 21), -E2BIG);
}
TEST_F(Rings, FlagsAreNotLookedAt) {
  EXPECT_EQ(enable(4096, KVM_CAP_DIRTY_LOG_RING, 1), 0);
}
TEST_F(Rings, ResetWithoutRingsIsEinval) {
  EXPECT_EQ(reset(), -EINVAL);
}
TEST_F(Rings, ResetWithoutAVcpuTakesNothing) {
  ASSERT_EQ(enable(4096), 0);
  EXPECT_EQ(reset(), 0);
}

TEST_F(Rings, MappingIsSharedAndWithoutCode) {
  ASSERT_EQ(enable(8192), 0);
  add_vcpu();
  constexpr u64 kAt = 64 * 4096;
  constexpr int kRw = PROT_READ | PROT_WRITE;
  int error = 0;
  EXPECT_EQ(map(vcpu_, 8192, kRw, MAP_PRIVATE, kAt, &error), MAP_FAILED);
  EXPECT_EQ(error, EINVAL);
  EXPECT_EQ(map(vcpu_, 4096, PROT_READ, MAP_PRIVATE, kAt + 4096, &error), MAP_FAILED);
  EXPECT_EQ(error, EINVAL);
  EXPECT_EQ(map(vcpu_, 8192, kRw | PROT_EXEC, MAP_SHARED, kAt, &error), MAP_FAILED);
  EXPECT_TRUE(error == EINVAL || (on_oracle() && error == EPERM)) << error;
  // The kernel looks at the first and the last page.
  EXPECT_EQ(map(vcpu_, 4096 * 3, kRw, MAP_PRIVATE, kAt - 4096, &error), MAP_FAILED);
  EXPECT_EQ(error, EINVAL);
  void* beyond = map(vcpu_, 4096, kRw, MAP_PRIVATE, kAt + 8192, &error);
  EXPECT_NE(beyond, MAP_FAILED) << "no page of the ring; touching it is a SIGBUS";
  ::munmap(beyond, 4096);
  void* shared = map(vcpu_, 8192, kRw, MAP_SHARED, kAt, &error);
  ASSERT_NE(shared, MAP_FAILED);
  const auto* entries = static_cast<const kvm_dirty_gfn*>(shared);
  for (u32 i = 0; i < 8192 / sizeof(kvm_dirty_gfn); ++i) ASSERT_EQ(entries[i].flags, 0U);
  ::munmap(shared, 8192);
}
TEST_F(Rings, PrivateMappingIsAllowedWithoutARing) {
  add_vcpu();
  int error = 0;
  void* at = map(vcpu_, 4096, PROT_READ, MAP_PRIVATE, 64 * 4096, &error);
  ASSERT_NE(at, MAP_FAILED);
  ::munmap(at, 4096);
}
TEST_F(Rings, MmapSizeIsTheRunAreaAlone) {
  ASSERT_EQ(enable(4096), 0);
  EXPECT_EQ(call(device_, KVM_GET_VCPU_MMAP_SIZE), 3 * 4096);
}

TEST_F(Rings, BitmapRequestsAreEnxio) {
  start();
  u64 bitmap[kPages / 64 + 1];
  kvm_dirty_log log{};
  log.slot = kSlot;
  log.dirty_bitmap = bitmap;
  EXPECT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), -ENXIO);
  log.slot = ~0U;
  EXPECT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), -ENXIO) << "before the slot is looked at";
  kvm_clear_dirty_log clear{};
  clear.slot = kSlot;
  clear.num_pages = 64;
  clear.dirty_bitmap = bitmap;
  EXPECT_EQ(call(vm_, KVM_CLEAR_DIRTY_LOG, &clear), -ENXIO);
}

TEST_F(ExactRings, PageIsReportedOnceUntilItIsReset) {
  start();
  for (int round = 0; round < 3; ++round) {
    touch(10);
    ASSERT_EQ(run(), kHlt);
    EXPECT_EQ(dirty_entries(), 10U);
  }
  ASSERT_EQ(collect(), 10U);
  ASSERT_EQ(reset(), 10);
  touch(4);
  ASSERT_EQ(run(), kHlt);
  EXPECT_EQ(collect(), 4U);
  for (u32 page = 0; page < 10; ++page) {
    EXPECT_EQ(seen_[page], page < 4 ? 2U : 1U);
    EXPECT_EQ(logged_[page * 4096], page < 4 ? 4 : 3);
  }
}

TEST_F(ExactRings, FullRingEndsTheRunUntilItIsReset) {
  start();
  touch(kPages);
  ASSERT_EQ(run(), kFull);
  EXPECT_EQ(dirty_entries(), kSoftLimit);
  const u32 first = dirty_entries();
  const u64 rip = regs().rip;
  for (int again = 0; again < 3; ++again) {
    ASSERT_EQ(run(), kFull);
    EXPECT_EQ(regs().rip, rip) << "not one instruction was run";
    EXPECT_EQ(dirty_entries(), first);
  }
  EXPECT_EQ(reset(), 0) << "nothing was collected";
  ASSERT_EQ(run(), kFull);
  ASSERT_EQ(collect(), first);
  ASSERT_EQ(run(), kFull) << "collected is not reset";
  ASSERT_EQ(reset(), static_cast<long>(first));
  ASSERT_EQ(run(), kHlt);
  collect();
  for (u32 page = 0; page < kPages; ++page) {
    EXPECT_EQ(seen_[page], 1U) << page;
    EXPECT_EQ(logged_[page * 4096], 1) << page;
  }
}

TEST_F(ExactRings, ImmediateExitComesBeforeTheFullRing) {
  start();
  touch(kPages);
  ASSERT_EQ(run(), kFull);
  run_->immediate_exit = 1;
  EXPECT_EQ(call(vcpu_, KVM_RUN), -EINTR);
}

TEST_F(ExactRings, ResetTakesWhatWasCollectedInOrder) {
  start();
  touch(20);
  ASSERT_EQ(run(), kHlt);
  ASSERT_EQ(collect(7), 7U);
  EXPECT_EQ(reset(), 7);
  EXPECT_EQ(reset(), 0);
  touch(20);
  ASSERT_EQ(run(), kHlt);
  EXPECT_EQ(collect(), 13U + 7U) << "the seven are protected again, the others were never taken";
}

// A repeated instruction that dirties page after page is left in its middle and goes on there.
TEST_F(ExactRings, FullRingInterruptsARepeatedInstruction) {
  start();
  constexpr u32 kBefore = kSoftLimit - 2;
  touch(kBefore);
  ASSERT_EQ(run(), kHlt);
  const u8 code[] = {
      0xb8, 0x00, 0xe0,  // mov ax, 0xe000: page 192 of the slot
      0x8e, 0xc0,        // mov es, ax
      0x31, 0xff,        // xor di, di
      0xb9, 0x00, 0x80,  // mov cx, 0x8000: eight pages
      0xb0, 0x07,        // mov al, 7
      0xf3, 0xaa,        // rep stosb
      0xf4,              // hlt
  };
  std::memcpy(memory_ + 0x100, code, sizeof(code));
  kvm_regs r = regs();
  r.rip = 0x1100;
  ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &r), 0);
  ASSERT_EQ(run(), kFull);
  EXPECT_EQ(dirty_entries(), kSoftLimit);
  EXPECT_EQ(regs().rip, 0x110cU) << "at the repeated instruction";
  const u32 first = collect();
  ASSERT_EQ(reset(), static_cast<long>(first));
  ASSERT_EQ(run(), kHlt);
  collect();
  for (u32 page = 192; page < kPages; ++page) {
    // Page 193 was begun before the reset and finished behind it.
    EXPECT_EQ(seen_[page], page == 193 ? 2U : 1U) << page;
    for (u32 i = 0; i < 4096; ++i) ASSERT_EQ(logged_[page * 4096 + i], 7) << page << '+' << i;
  }
}

TEST_F(Rings, EachVcpuHasItsOwn) {
  start();
  Fd second(call(vm_, KVM_CREATE_VCPU, 1));
  ASSERT_GE(second, 0);
  int error = 0;
  void* at = map(second, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, 64 * 4096, &error);
  ASSERT_EQ(error, 0);
  touch(3);
  ASSERT_EQ(run(), kHlt);
  const auto* other = static_cast<const kvm_dirty_gfn*>(at);
  EXPECT_EQ(other[0].flags, 0U);
  EXPECT_EQ(collect(), 3U);
  EXPECT_EQ(reset(), 3);
  ::munmap(at, kBytes);
}

// A kernel goes round for as long as it finds RESET.
TEST_F(ExactRings, WhatAClientScribblesHarmsNobody) {
  start();
  touch(5);
  ASSERT_EQ(run(), kHlt);
  for (u32 i = 0; i < kEntries; ++i) {
    ring_[i].slot = 0xffffffff;
    ring_[i].offset = ~0ULL - i;
    __atomic_store_n(&ring_[i].flags, 3, __ATOMIC_RELEASE);
  }
  EXPECT_EQ(reset(), 5);
  EXPECT_EQ(reset(), 0);
  touch(kPages);
  ASSERT_EQ(run(), kFull);
}

}  // namespace
}  // namespace kvm_client
