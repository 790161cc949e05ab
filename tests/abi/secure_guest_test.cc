// SPDX-License-Identifier: Apache-2.0
// A secure guest from outside: the capability, the guest's calls by VMCALL, what the client sees of
// its memory, slots, KVM_PPC_SVM_OFF.
#include "tests/abi/secure_guest.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>
#include <utility>

#include "abi/kvm/level.h"
#include "host/change.h"
#include "host/userfault.h"

namespace kvm_client {
namespace {

// ---- what is offered ----------------------------------------------------------------------------

TEST_F(SecureGuest, TheCapabilityIsOneAndNotOfAVmWithPrivateMemory) {
  EXPECT_EQ(call(device_, KVM_CHECK_EXTENSION, KVM_CAP_PPC_SECURE_GUEST), 1);
  EXPECT_EQ(call(vm_, KVM_CHECK_EXTENSION, KVM_CAP_PPC_SECURE_GUEST), 1);
  const Fd other(call(device_, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM));
  EXPECT_EQ(call(other, KVM_CHECK_EXTENSION, KVM_CAP_PPC_SECURE_GUEST), 0);
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_PPC_SECURE_GUEST;
  EXPECT_EQ(call(other, KVM_ENABLE_CAP, &cap), -EINVAL);
  EXPECT_EQ(call(other, KVM_PPC_SVM_OFF), -ENOTTY);
  cap.flags = 1;
  EXPECT_EQ(call(vm_, KVM_ENABLE_CAP, &cap), -EINVAL);
  EXPECT_EQ(enable(), 0);
  EXPECT_EQ(enable(), 0);
}

// 64 VMs of a process can have a secure guest; of the next one the capability says that it cannot.
TEST_F(SecureGuest, TheCapabilityIsZeroOfAVmThatIsOneTooMany) {
  std::vector<std::unique_ptr<Fd>> more;
  for (int n = 0; n < 63; ++n) {
    more.push_back(std::make_unique<Fd>(call(device_, KVM_CREATE_VM)));
    ASSERT_GE(*more.back(), 0);
    ASSERT_EQ(call(*more.back(), KVM_CHECK_EXTENSION, KVM_CAP_PPC_SECURE_GUEST), 1) << n;
  }
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_PPC_SECURE_GUEST;
  EXPECT_EQ(call(*more.back(), KVM_ENABLE_CAP, &cap), 0);
  const Fd last(call(device_, KVM_CREATE_VM));
  ASSERT_GE(last, 0);
  EXPECT_EQ(call(last, KVM_CHECK_EXTENSION, KVM_CAP_PPC_SECURE_GUEST), 0);
  EXPECT_EQ(call(last, KVM_ENABLE_CAP, &cap), -EINVAL);
  EXPECT_EQ(call(device_, KVM_CHECK_EXTENSION, KVM_CAP_PPC_SECURE_GUEST), 1);
}

TEST_F(SecureGuest, AGuestWhoseVmmDoesNotAllowItStaysNormal) {
  EXPECT_EQ(guest_call(kEsm, 1, 1), kPermission);
  EXPECT_EQ(guest_word(kBase + kPage), text_word(kBase + kPage));
  EXPECT_EQ(seen(kBase + kPage)[0], text(kPage));
  EXPECT_EQ(call(vm_, KVM_PPC_SVM_OFF), 0);
}

TEST_F(SecureGuest, CallsOfANormalGuestHaveTheirCodesAndChangeNothing) {
  ASSERT_EQ(enable(), 0);
  EXPECT_EQ(guest_call(kEsm, 0, 1), kP2);
  EXPECT_EQ(guest_call(kEsm, 1, 0), kP3);
  for (const u32 call : {kShare, kUnshare, kUnshareAll}) {
    EXPECT_EQ(guest_call(call, 2, 1), kPermission) << std::hex << call;
  }
  for (const u32 call : {kUvPageIn, kTerminate}) {
    EXPECT_EQ(guest_call(call, 1, 1), kPermission) << std::hex << call;
  }
  for (const u32 call : {kPageIn, kPageOut, kInitStart, kInitDone, kInitAbort}) {
    EXPECT_EQ(guest_call(call), kUnsupported) << std::hex << call;
  }
  EXPECT_EQ(guest_call(0xF200), -1000);  // no number of POWER's
  EXPECT_EQ(seen(kBase + kPage)[0], text(kPage));
}

// ---- a secure guest -----------------------------------------------------------------------------

TEST_F(SecureGuest, BecomesSecureAndTheClientSeesSealedBytesOnly) {
  const Bytes code = seen(kBase);
  become_secure();
  for (u64 gpa = kBase; gpa < kBase + kBytes; gpa += kPage) EXPECT_FALSE(is_present(page(gpa)));
  EXPECT_EQ(guest_word(kBase + 2 * kPage), text_word(kBase + 2 * kPage));
  EXPECT_FALSE(is_present(page(kBase + 2 * kPage))) << "a guest's own access moves nothing";
  const Bytes sealed = seen(kBase + 2 * kPage);
  EXPECT_LT(bytes_of_text(sealed, kBase + 2 * kPage), kPage / 20);
  // The code it runs, too, and it runs on.
  EXPECT_NE(seen(kBase), code);
  guest_stores(kBase + 2 * kPage, 0x12345678);
  EXPECT_EQ(guest_word(kBase + 2 * kPage), 0x12345678u);
  EXPECT_FALSE(is_present(page(kBase + 2 * kPage)));
  EXPECT_NE(seen(kBase + 2 * kPage), sealed);
  EXPECT_EQ(guest_word(kBase + 2 * kPage + 4), text_word(kBase + 2 * kPage + 4));
}

TEST_F(SecureGuest, ASignalEndsARunInTheMiddleOfUvEsmAndTheNextGoesOn) {
  constexpr u64 kMany = 512 * kPage;
  u8* const more = map(kMany);
  std::memset(more, 0x11, kMany);
  ASSERT_EQ(set_slot(1, 0x10000, kMany, more), 0);
  ASSERT_EQ(enable(), 0);
  alarm_in_the_guest_alone();
  give_orders({kEsm, 1, 1});
  {
    const SignalWhenItGoes kicker(SIGALRM, more, kMany);
    EXPECT_EQ(call(vcpu_, KVM_RUN), -EINTR);
  }
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_INTR));
  EXPECT_EQ(more[kMany - 1], 0x11) << "it has not come that far";
  // What is plugged now, where it has been already, is taken in with the rest.
  u8* const between = map(kPlugBytes);
  std::memset(between, 0x22, kPlugBytes);
  ASSERT_EQ(set_slot(2, kPlugged, kPlugBytes, between), 0);
  take_alarm();
  ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
  u32 said = 1;
  std::memcpy(&said, pio(), sizeof(said));
  EXPECT_EQ(said, 0U);
  EXPECT_EQ(guest_word(kBase + kPage), text_word(kBase + kPage));
  EXPECT_EQ(guest_word(kPlugged + kPage), 0x22222222u);
  EXPECT_NE(between[kPage], 0x22) << "it is the guest's";
}

// A VMM that stops all vCPUs gets the one in UV_ESM back, and has to get the others: theirs is a
// walk through tables that nobody brings meanwhile, or the next instruction.
TEST_F(SecureGuest, ASignalEndsTheRunOfAnotherVcpuWhileUvEsmRests) {
  constexpr u64 kMany = 512 * kPage, kTable = 0x6000;
  for (const bool pages : {false, true}) {
    SCOPED_TRACE(pages ? "with page tables" : "without");
    u8* const more = map(kMany);
    std::memset(more, 0x11, kMany);
    ASSERT_EQ(set_slot(1, 0x10000, kMany, more), 0);
    ASSERT_EQ(enable(), 0);
    Fd first = std::move(vcpu_);
    kvm_run* const run = run_;
    kvm_sregs sregs{};
    ASSERT_EQ(call(first, KVM_GET_SREGS, &sregs), 0);
    add_vcpu(pages ? 2 : 1);
    const Fd other = std::move(vcpu_);
    const kvm_run* const other_run = run_;
    vcpu_ = std::move(first);
    run_ = run;
    const u32 all_of_it = 0x83;  // four MiB from 0 on, writable
    std::memcpy(page(kTable), &all_of_it, sizeof(all_of_it));
    if (pages) {
      sregs.cr0 |= 0x80000001;
      sregs.cr3 = kTable;
      sregs.cr4 |= 0x10;
    }
    ASSERT_EQ(call(other, KVM_SET_SREGS, &sregs), 0);
    kvm_regs start{};
    start.rip = kBase;
    start.rflags = 2;
    ASSERT_EQ(call(other, KVM_SET_REGS, &start), 0);
    alarm_in_the_guest_alone();
    listen(other);
    give_orders({kEsm, 1, 1});
    {
      const SignalWhenItGoes kicker(SIGALRM, more, kMany);
      ASSERT_EQ(call(vcpu_, KVM_RUN), -EINTR);
    }
    const timespec now{};
    EXPECT_EQ(::sigtimedwait(&alarm_, nullptr, &now), SIGALRM);
    std::thread kicker([me = ::pthread_self()] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ::pthread_kill(me, SIGALRM);
    });
    EXPECT_EQ(call(other, KVM_RUN), -EINTR);
    kicker.join();
    take_alarm();
    ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
    u32 said = 1;
    std::memcpy(&said, pio(), sizeof(said));
    EXPECT_EQ(said, 0U);
    EXPECT_EQ(call(other, KVM_RUN), 0) << "it goes on, and asks for its orders";
    EXPECT_EQ(other_run->exit_reason, static_cast<u32>(KVM_EXIT_IO));
    ASSERT_EQ(call(vm_, KVM_PPC_SVM_OFF), 0);
    ASSERT_EQ(set_slot(1, 0x10000, 0, more), 0);
    load_guest();
  }
}

TEST_F(SecureGuest, CallsOfASecureGuestHaveTheirCodes) {
  become_secure();
  EXPECT_EQ(guest_call(kEsm, 1, 1), kSuccess);
  for (const u32 call : {kPageIn, kPageOut, kInitStart, kInitDone}) {
    EXPECT_EQ(guest_call(call), kUnsupported) << "not the ultravisor: " << std::hex << call;
  }
  EXPECT_EQ(guest_call(kInitAbort), kState);
  EXPECT_EQ(guest_call(kShare, 0x100, 1), kParameter);
  EXPECT_EQ(guest_call(kShare, 3, 0x100), kP2);
  EXPECT_EQ(guest_call(kShare, 3, 0), kP2);
  EXPECT_EQ(guest_call(kTerminate, 1), kPermission);
  EXPECT_EQ(guest_word(kBase + kPage), text_word(kBase + kPage));
}

TEST_F(SecureGuest, ASharedPageIsOneForBothAndAnUnsharedOneTheGuests) {
  become_secure();
  constexpr u64 kAt = 0x4000;
  EXPECT_EQ(guest_call(kShare, kAt / kPage, 2), kSuccess);
  EXPECT_EQ(seen(kAt), Bytes(kPage)) << "sharing publishes nothing";
  guest_stores(kAt + 8, 0xabcd);
  EXPECT_EQ(host_word(kAt + 8), 0xabcdu);
  std::memcpy(page(kAt + kPage), "hello", 6);
  EXPECT_EQ(guest_word(kAt + kPage), 0x6c6c6568u);
  EXPECT_EQ(guest_call(kUnshare, kAt / kPage, 1), kSuccess);
  EXPECT_EQ(guest_word(kAt + 8), 0u) << "unsharing imports nothing";
  guest_stores(kAt + 8, 0x1111);
  EXPECT_NE(host_word(kAt + 8), 0x1111u);
  EXPECT_EQ(guest_call(kUnshareAll), kSuccess);
  EXPECT_EQ(guest_word(kAt + kPage), 0u);
}

TEST_F(SecureGuest, ASystemCallOfTheClientSeesSealedBytes) {
  become_secure();
  if (!stagetwo::host::userfault::serves_kernel()) GTEST_SKIP() << "userfaultfd serves user mode";
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  ASSERT_EQ(::write(ends[1], page(0x3000), kPage), static_cast<ssize_t>(kPage));
  Bytes got(kPage);
  ASSERT_EQ(::read(ends[0], got.data(), kPage), static_cast<ssize_t>(kPage));
  ::close(ends[0]);
  ::close(ends[1]);
  EXPECT_LT(bytes_of_text(got, 0x3000), kPage / 20);
  EXPECT_EQ(guest_word(0x3000), text_word(0x3000));
}

TEST_F(SecureGuest, AnAlteredPageEndsTheGuestAndSaysWhere) {
  become_secure();
  page(0x5000)[77] ^= 1;
  EXPECT_EQ(give(kLoad, 0x5000, 0), -EHWPOISON);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_MEMORY_FAULT));
  EXPECT_EQ(run_->memory_fault.gpa, 0x5000u);
  EXPECT_EQ(run_->memory_fault.size, kPage);
  // For good: not even what nobody touched.
  EXPECT_EQ(call(vcpu_, KVM_RUN), -EHWPOISON);
  EXPECT_EQ(call(vm_, KVM_PPC_SVM_OFF), 0);
}

TEST_F(SecureGuest, AnOlderCopyEndsTheGuest) {
  become_secure();
  const Bytes old = seen(0x5000);
  guest_stores(0x5000, 7);
  ASSERT_NE(seen(0x5000), old);
  std::memcpy(page(0x5000), old.data(), kPage);
  EXPECT_EQ(give(kLoad, 0x5000, 0), -EHWPOISON);
  EXPECT_EQ(run_->memory_fault.gpa, 0x5000u);
}

// ---- reset --------------------------------------------------------------------------------------

TEST_F(SecureGuest, SvmOffWipesAndTheGuestMayBecomeSecureAgain) {
  become_secure();
  EXPECT_EQ(guest_call(kShare, 4, 1), kSuccess);
  guest_stores(0x4000, 5);
  static_cast<void>(seen(0x6000));
  EXPECT_EQ(call(vm_, KVM_PPC_SVM_OFF), 0);
  EXPECT_EQ(call(vm_, KVM_PPC_SVM_OFF), 0) << "no more to do";
  EXPECT_EQ(Bytes(ram_, ram_ + kBytes), Bytes(kBytes));
  // The order that waited for its answer is done with; a new program.
  load_guest();
  run_->immediate_exit = 0;
  ram_[3 * kPage] = 9;
  EXPECT_EQ(guest_word(kBase + 3 * kPage), 9u);
  EXPECT_EQ(guest_call(kEsm, 1, 1), kSuccess);
  EXPECT_EQ(guest_word(kBase + 3 * kPage), 9u);
  EXPECT_NE(host_word(kBase + 3 * kPage), 9u);
}

TEST_F(SecureGuest, SvmOffIsBusyWhileAVcpuRuns) {
  become_secure();
  ASSERT_EQ(guest_call(kShare, 4, 1), kSuccess);
  std::thread runner([&] { static_cast<void>(give(kCount, 0x4000, 0)); });
  const auto* const counter = reinterpret_cast<const volatile u32*>(page(0x4000));
  while (*counter == 0) ::usleep(100);
  EXPECT_EQ(call(vm_, KVM_PPC_SVM_OFF), -EBUSY);
  page(0x4000)[4] = 1;  // enough
  runner.join();
  EXPECT_EQ(call(vm_, KVM_PPC_SVM_OFF), 0);
}

// ---- memory that comes and goes ----------------------------------------------------------------

TEST_F(SecureGuest, PluggedMemoryIsTheGuestsAndZeros) {
  become_secure();
  u8* const more = map(kPlugBytes);
  std::memset(more, 0x5a, kPlugBytes);
  ASSERT_EQ(set_slot(1, kPlugged, kPlugBytes, more), 0);
  EXPECT_FALSE(is_present(more));
  EXPECT_EQ(guest_word(kPlugged), 0u);
  guest_stores(kPlugged + kPage, 0x600d);
  u32 word = 0;
  std::memcpy(&word, more + kPage, sizeof(word));
  EXPECT_NE(word, 0x600du);
  EXPECT_EQ(guest_word(kPlugged + kPage), 0x600du);
  // Unplugged: an access is the client's to answer, and nothing of it is left in the client's.
  ASSERT_EQ(set_slot(1, kPlugged, 0, more), 0);
  EXPECT_EQ(Bytes(more, more + kPlugBytes), Bytes(kPlugBytes));
  EXPECT_EQ(give(kLoad, kPlugged, 0), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_MMIO));
  EXPECT_EQ(run_->mmio.phys_addr, kPlugged);
  // And once more.
  ASSERT_EQ(set_slot(1, kPlugged, kPlugBytes, more), 0);
  EXPECT_EQ(give(0, 0, 0), 0);
  EXPECT_EQ(guest_word(kPlugged + kPage), 0u);
}

TEST_F(SecureGuest, ASlotThatASecureGuestCannotHaveIsRefused) {
  become_secure();
  EXPECT_EQ(set_slot(1, kPlugged, kPlugBytes, ram_), -EINVAL) << "the same memory twice";
  u8* const more = map(kPlugBytes + kPage);
  mapped_.back().second = kPlugBytes;
  ASSERT_EQ(::munmap(more + kPlugBytes, kPage), 0);
  EXPECT_EQ(set_slot(1, kPlugged, kPlugBytes, more + kPage), -EINVAL) << "not all of it is mapped";
  ASSERT_EQ(set_slot(1, kPlugged, kPlugBytes, more), 0) << "nothing is left of the refused one";
  EXPECT_EQ(guest_word(kPlugged), 0u);
  EXPECT_EQ(guest_word(kBase + kPage), text_word(kBase + kPage));
}

// A slot that moves is looked at as the kernel looks at it: not at what is mapped there.
TEST_F(SecureGuest, ASlotThatMovesIsThereAndZerosAlsoWhereAPageIsNotMappedAnyMore) {
  become_secure();
  constexpr u64 kTwo = 2 * kPage;
  u8* const more = map(kTwo);
  ASSERT_EQ(set_slot(1, kPlugged, kTwo, more), 0);
  guest_stores(kPlugged + kPage, 0x600d);
  ASSERT_EQ(guest_call(kShare, kPlugged / kPage, 1), kSuccess);
  u8* const hole = more + kPage;
  EXPECT_EQ(
      stagetwo::host::change(reinterpret_cast<u64>(hole), kPage, stagetwo::host::EventKind::kUnmap,
                             [&] { return ::munmap(hole, kPage); }),
      0);
  // By a page: the old place and the new one overlap. Then to one that is elsewhere.
  for (const u64 to : {kPlugged + kPage, kPlugged, kPlugged + kTwo}) {
    ASSERT_EQ(set_slot(1, to, kTwo, more), 0) << std::hex << to;
    for (u64 gpa = to; gpa < to + kTwo; gpa += kPage) {
      EXPECT_EQ(guest_word(gpa), 0u) << std::hex << gpa;
      guest_stores(gpa, 0x600d);
      EXPECT_EQ(guest_word(gpa), 0x600du) << std::hex << gpa;
    }
    u32 seen = 0;
    std::memcpy(&seen, more, sizeof(seen));
    EXPECT_NE(seen, 0x600du);
  }
  EXPECT_EQ(give(kLoad, kPlugged, 0), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_MMIO)) << "nothing is at the old place";
  EXPECT_EQ(give(0, 0, 0), 0);
  EXPECT_EQ(guest_word(kBase + kPage), text_word(kBase + kPage));
  ASSERT_EQ(set_slot(1, kPlugged, 0, more), 0);
  EXPECT_EQ(Bytes(more, more + kPage), Bytes(kPage));
}

// The ultravisor has no more; before the capability is enabled it is that which is refused.
TEST_F(SecureGuest, TheSlotAfterTheFiveHundredAndTwelfthIsRefused) {
  constexpr u64 kFar = u64{1} << 24;
  u8* const more = map(512 * kPage);
  const auto plug = [&](u32 nth) {
    const u64 offset = u64{nth} * kPage;
    return set_slot(nth + 1, kFar + 2 * offset, kPage, more + offset);
  };
  for (u32 nth = 0; nth < 512; ++nth) ASSERT_EQ(plug(nth), 0) << nth;
  EXPECT_EQ(enable(), -EINVAL);
  ASSERT_EQ(set_slot(512, 0, 0, more), 0);
  ASSERT_EQ(enable(), 0);
  EXPECT_EQ(plug(511), -EINVAL);
  EXPECT_EQ(guest_call(kEsm, 1, 1), kSuccess);
  EXPECT_EQ(plug(511), -EINVAL);
  EXPECT_EQ(set_slot(1, kFar + kPage, kPage, more), 0) << "none is free, and one moves";
}

TEST_F(SecureGuest, AMoveThatIsRefusedLeavesTheSlotWhereItIs) {
  become_secure();
  u8* const more = map(kPlugBytes);
  ASSERT_EQ(set_slot(1, kPlugged, kPlugBytes, more), 0);
  guest_stores(kPlugged, 0x600d);
  EXPECT_EQ(set_slot(1, kBase + kPage, kPlugBytes, more), -EEXIST);
  EXPECT_EQ(guest_word(kPlugged), 0x600du);
  EXPECT_FALSE(is_present(more));
  EXPECT_EQ(set_slot(1, kPlugged, 0, more), 0);
}

// The kernel refuses no slot for that; a page that has left for one page of the guest cannot leave
// for another, and the guest is told.
TEST_F(SecureGuest, OfTwoSlotsOfOneMemoryTheGuestIsToldThatItCannotBecomeSecure) {
  constexpr u64 kHalf = kPlugBytes / 2;
  ASSERT_EQ(set_slot(1, kPlugged, kHalf, ram_ + kPage), 0);
  ASSERT_EQ(enable(), 0);
  ASSERT_EQ(set_slot(2, kPlugged + kHalf, kHalf, ram_ + kPage), 0);
  const auto is_as_it_was = [&] {
    const u64 first = kBase + kPage;
    for (const u64 gpa : {first, kPlugged, kPlugged + kHalf}) {
      EXPECT_EQ(guest_word(gpa), text_word(first)) << std::hex << gpa;
    }
    EXPECT_EQ(seen(first)[0], text(kPage));
  };
  EXPECT_EQ(guest_call(kEsm, 1, 1), kParameter);
  is_as_it_was();
  ASSERT_EQ(set_slot(2, kPlugged + kHalf, 0, ram_), 0);
  EXPECT_EQ(guest_call(kEsm, 1, 1), kParameter);
  ASSERT_EQ(set_slot(1, kPlugged, 0, ram_), 0);
  EXPECT_EQ(guest_call(kEsm, 1, 1), kSuccess);
  EXPECT_EQ(guest_word(kBase + kPage), text_word(kBase + kPage));
  EXPECT_FALSE(is_present(page(kBase + kPage)));
}

TEST_F(SecureGuest, WhatWasTwoSlotsMemoryIsTheOthersWhenOneGoes) {
  constexpr u64 kHalf = kPlugBytes / 2;
  u8* const more = map(kHalf);
  std::memset(more, 0x11, kHalf);
  ASSERT_EQ(set_slot(1, kPlugged, kHalf, more), 0);
  ASSERT_EQ(set_slot(2, kPlugged + kHalf, kHalf, more), 0);
  ASSERT_EQ(set_slot(1, kPlugged, 0, more), 0);
  become_secure();
  EXPECT_EQ(guest_word(kPlugged + kHalf), 0x11111111u);
  EXPECT_FALSE(is_present(more));
  EXPECT_NE(Bytes(more, more + kPage), Bytes(kPage, 0x11));
  EXPECT_EQ(guest_word(kPlugged + kHalf), 0x11111111u);
}

// Linux 6.18 has files for VMs of every type.
TEST_F(SecureGuest, ASlotWithAGuestMemfdIsNotASecureGuests) {
  ASSERT_TRUE(stagetwo::abi_kvm::set_level("6.18"));
  const Fd vm(call(device_, KVM_CREATE_VM));
  EXPECT_TRUE(stagetwo::abi_kvm::set_level("6.12"));
  kvm_create_guest_memfd size{};
  size.size = kPlugBytes;
  const Fd file(call(vm, KVM_CREATE_GUEST_MEMFD, &size));
  ASSERT_GE(file, 0);
  kvm_userspace_memory_region2 region{};
  region.flags = KVM_MEM_GUEST_MEMFD;
  region.guest_phys_addr = kPlugged;
  region.memory_size = kPlugBytes;
  region.userspace_addr = reinterpret_cast<u64>(map(kPlugBytes));
  region.guest_memfd = static_cast<u32>(static_cast<int>(file));
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_PPC_SECURE_GUEST;
  EXPECT_EQ(call(vm, KVM_SET_USER_MEMORY_REGION2, &region), 0);
  EXPECT_EQ(call(vm, KVM_ENABLE_CAP, &cap), -EINVAL);
  region.memory_size = 0;
  EXPECT_EQ(call(vm, KVM_SET_USER_MEMORY_REGION2, &region), 0);
  EXPECT_EQ(call(vm, KVM_ENABLE_CAP, &cap), 0);
  region.memory_size = kPlugBytes;
  EXPECT_EQ(call(vm, KVM_SET_USER_MEMORY_REGION2, &region), -EINVAL);
}

// As the kernel moves anonymous memory only to a device's (migrate_vma): the guest is told, and
// goes on as it was.
TEST_F(SecureGuest, AGuestWithSharedMemoryIsToldThatItCannotBecomeSecure) {
  const Fd file(::memfd_create("slot", 0));
  ASSERT_EQ(::ftruncate(file, static_cast<off_t>(kPlugBytes)), 0);
  void* const shared = ::mmap(nullptr, kPlugBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ASSERT_NE(shared, MAP_FAILED);
  mapped_.emplace_back(shared, kPlugBytes);
  std::memset(shared, 0x11, kPlugBytes);
  ASSERT_EQ(set_slot(1, kPlugged, kPlugBytes, shared), 0);
  ASSERT_EQ(enable(), 0);
  EXPECT_EQ(guest_call(kEsm, 1, 1), kParameter);
  EXPECT_EQ(guest_word(kPlugged), 0x11111111u);
  EXPECT_EQ(guest_word(kBase + kPage), text_word(kBase + kPage));
  EXPECT_EQ(seen(kBase + kPage)[0], text(kPage));
  ASSERT_EQ(set_slot(1, kPlugged, 0, shared), 0);
  EXPECT_EQ(guest_call(kEsm, 1, 1), kSuccess);
}

TEST_F(SecureGuest, TheDirtyLogKnowsSharedPagesAndShowsNothingInClear) {
  ASSERT_EQ(set_slot(0, kBase, kBytes, ram_, KVM_MEM_LOG_DIRTY_PAGES), 0);
  become_secure();
  ASSERT_EQ(guest_call(kShare, 4, 2), kSuccess);
  u64 bits = 0;
  kvm_dirty_log log{};
  log.dirty_bitmap = &bits;
  ASSERT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), 0);
  guest_stores(0x4000, 1);  // shared
  guest_stores(0x6000, 1);  // secure
  EXPECT_EQ(guest_word(0x5000), 0u);
  ASSERT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), 0);
  EXPECT_NE(bits & (1U << 3), 0u);
  EXPECT_EQ(bits & (1U << 4), 0u);
  EXPECT_FALSE(is_present(page(0x6000))) << "nobody looked";
  EXPECT_FALSE(is_present(page(0x7000)));
  EXPECT_LT(bytes_of_text(seen(0x6000), 0x6000), kPage / 20);
  EXPECT_EQ(guest_word(0x6000), 1u);
  // The right to write is taken back and given again.
  guest_stores(0x4000, 2);
  ASSERT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), 0);
  EXPECT_NE(bits & (1U << 3), 0u);
  ASSERT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), 0);
  EXPECT_EQ(bits, 0u);
}

// In a process of its own: the pool is made once.
TEST_F(SecureGuest, WhereLittleMemoryMayBeLockedThePoolIsSmallAndWhereNoneMayItIsNotOffered) {
  const auto answer_under = [&](u64 limit) {
    const pid_t child = ::fork();
    if (child == 0) {
      const rlimit little{limit, limit};
      if (::setrlimit(RLIMIT_MEMLOCK, &little) != 0 || ::setresuid(65534, 65534, 65534) != 0)
        _exit(9);
      stagetwo::abi_kvm::offer_secure_guests(u64{1} << 30);
      const int kvm = open_kvm();
      _exit(static_cast<int>(call(kvm, KVM_CHECK_EXTENSION, KVM_CAP_PPC_SECURE_GUEST)));
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status));
    return WEXITSTATUS(status);
  };
  if (::geteuid() != 0) GTEST_SKIP() << "needs root (another user's limit)";
  EXPECT_EQ(answer_under(u64{8} << 20), 1);
  EXPECT_EQ(answer_under(0), 0);
}

TEST_F(SecureGuest, ManyGuestsInTurnLeaveThePoolFull) {
  for (int turn = 0; turn < 70; ++turn) {
    const Fd vm(call(device_, KVM_CREATE_VM));
    ASSERT_GE(vm, 0);
    kvm_enable_cap cap{};
    cap.cap = KVM_CAP_PPC_SECURE_GUEST;
    ASSERT_EQ(call(vm, KVM_ENABLE_CAP, &cap), 0) << turn;
  }
  become_secure();
  EXPECT_EQ(guest_word(kBase + kPage), text_word(kBase + kPage));
}

}  // namespace
}  // namespace kvm_client
