// SPDX-License-Identifier: Apache-2.0
// Private memory as a client sees it: guest_memfd, its slots, attributes, and the exits that ask
// for a conversion. Line by line as the checks of private memory are numbered.
#include "abi/kvm/guest_memfd.h"

#include <sched.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <thread>
#include <vector>

#include "abi/kvm/level.h"
#include "base/sys.h"
#include "host/kept_fd.h"
#include "host/shared_objects.h"
#include "tests/abi/private_machine.h"

namespace kvm_client {
namespace {

class Private : public PrivateMachine {};

// --- capabilities and creation ---

TEST_F(Private, IsOffered) {
  EXPECT_EQ(call(device_, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES), 3);
  EXPECT_EQ(call(device_, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD), 1);
  EXPECT_EQ(call(vm_, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD), 1);
  EXPECT_EQ(call(device_, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES), 8);
  EXPECT_EQ(call(vm_, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES), 8);
  EXPECT_EQ(call(device_, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_FAULT_INFO), 1);
  const Fd plain(call(device_, KVM_CREATE_VM));
  EXPECT_EQ(call(plain, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD), 0);
  EXPECT_EQ(call(plain, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES), 0);
  for (const u64 type : {2U, 3U, 4U, 5U, 32U}) {
    EXPECT_EQ(call(device_, KVM_CREATE_VM, type), -EINVAL) << type;
  }
}

TEST_F(Private, CreationChecksFlagsThenSize) {
  for (const s64 size : {s64{0}, s64{1}, s64{4097}, s64{-4096}}) {
    EXPECT_EQ(create(static_cast<u64>(size)), -EINVAL) << size;
  }
  for (const u64 size : {u64{4096}, u64{1} << 62, (u64{1} << 63) - 4096}) {
    EXPECT_GE(Fd(create(size)), 0) << size;
  }
  EXPECT_EQ(call(vm_, KVM_CREATE_GUEST_MEMFD, kBadPointer), -EFAULT);
}

TEST_F(Private, WithLinux612EveryFlagIsRefused) {
  if (on_oracle()) GTEST_SKIP() << "oracle: a kernel has one ABI level, this test sets it";
  const Fd plain(call(device_, KVM_CREATE_VM));
  for (u64 flag = 1; flag != 0; flag <<= 1) {
    EXPECT_EQ(create(kPage, flag), -EINVAL) << flag;
    EXPECT_EQ(create_in(plain, kPage, flag), -EINVAL) << flag;
  }
  EXPECT_EQ(call(device_, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS), 0);
}

TEST_F(Private, WithLinux618FilesMayBeMappable) {
  if (on_oracle()) GTEST_SKIP() << "oracle: a kernel has one ABI level, this test sets it";
  ASSERT_TRUE(stagetwo::abi_kvm::set_level("6.18"));
  const Fd plain(call(device_, KVM_CREATE_VM));
  EXPECT_EQ(call(plain, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD), 1);
  EXPECT_EQ(call(plain, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES), 0);
  EXPECT_EQ(call(plain, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS), 3);
  EXPECT_EQ(call(vm_, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS), 1);
  for (u64 flags = 0; flags < 4; ++flags) EXPECT_GE(Fd(create_in(plain, kPage, flags)), 0) << flags;
  EXPECT_EQ(create_in(plain, kPage, 4), -EINVAL);
  EXPECT_EQ(create_in(plain, kPage, u64{1} << 63), -EINVAL);
  EXPECT_GE(Fd(create(kPage, 1)), 0);
  EXPECT_EQ(create(kPage, 2), -EINVAL);
  EXPECT_FALSE(stagetwo::abi_kvm::set_level("6.13"));
  ASSERT_TRUE(stagetwo::abi_kvm::set_level("6.12"));
}

// --- slots ---

TEST_F(Private, ADefaultVmRefusesTheFlagAndPrivateAttributes) {
  const Fd plain(call(device_, KVM_CREATE_VM));
  const Fd file(create_in(plain, kPage));
  EXPECT_GE(file, 0);  // of no use, and not refused
  kvm_userspace_memory_region2 r = region(0, 0, 1, 0);
  r.guest_memfd = static_cast<u32>(static_cast<int>(file));
  EXPECT_EQ(call(plain, KVM_SET_USER_MEMORY_REGION2, &r), -EINVAL);
  kvm_memory_attributes asked{};
  asked.size = kPage;
  EXPECT_EQ(call(plain, KVM_SET_MEMORY_ATTRIBUTES, &asked), 0);
  asked.attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
  EXPECT_EQ(call(plain, KVM_SET_MEMORY_ATTRIBUTES, &asked), -EINVAL);
}

TEST_F(Private, RefusalsOfABindingInTheirOrder) {
  auto r = region(2, 0x20000, 2, 0);
  r.guest_memfd_offset = 1;
  EXPECT_EQ(set(r), -EINVAL);
  r = region(2, 0x20000, 2, 0);
  r.guest_memfd_offset = ~u64{0} - kPage + 1;
  EXPECT_EQ(set(r), -EINVAL);
  r = region(2, 0x20000, 2, 0);
  r.guest_memfd = 99999;
  EXPECT_EQ(set(r), -EBADF);
  for (const int other : {int{device_}, int{vm_}, int{vcpu_}}) {
    r.guest_memfd = static_cast<u32>(other);
    EXPECT_EQ(set(r), -EINVAL);
  }
  const Fd vm2(call(device_, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM));
  const Fd foreign(create_in(vm2, 8 * kPage));
  r.guest_memfd = static_cast<u32>(static_cast<int>(foreign));
  EXPECT_EQ(set(r), -EINVAL);
  EXPECT_EQ(set(region(2, 0x20000, 2, kFilePages - 1)), -EINVAL);  // beyond the end
  r = region(2, 0x20000, 2, 0);
  r.flags |= KVM_MEM_LOG_DIRTY_PAGES;
  EXPECT_EQ(set(r), -EINVAL);
  r.flags = KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY;
  EXPECT_EQ(set(r), -EINVAL);
  // The place in the guest is looked at before the file is.
  r = region(2, kPrivateGpa, 1, 0);
  r.guest_memfd = 99999;
  EXPECT_EQ(set(r), -EEXIST);
}

TEST_F(Private, BindingTwiceIsEinvalAndWithOverlappingFramesEexist) {
  EXPECT_EQ(set_file(2, 0x20000, 4, 2), -EINVAL);
  EXPECT_EQ(set_file(2, kPrivateGpa + kPage, 4, 2), -EEXIST);
  ASSERT_EQ(set_file(1, kPrivateGpa, 0, 0), 0);
  EXPECT_EQ(set_file(2, 0x20000, 4, 2), 0);
  EXPECT_EQ(set_file(3, 0x30000, 2, 0), 0);
  EXPECT_EQ(set_file(1, kPrivateGpa, 2, 1), -EINVAL);
}

TEST_F(Private, ASlotWithAFileNeverChanges) {
  EXPECT_EQ(set_file(1, kPrivateGpa, kFilePages, 0), -EINVAL);
  auto r = region(1, 0x20000, kFilePages, 0);
  EXPECT_EQ(set(r), -EINVAL);
  r.flags = 0;
  EXPECT_EQ(set(r), -EINVAL);
  EXPECT_EQ(set_file(1, kPrivateGpa, 0, 0), 0);
}

TEST_F(Private, AnAddressWithoutAMappingWillDo) {
  auto r = region(2, 0x20000, 1, 0);
  ASSERT_EQ(set_file(1, kPrivateGpa, 0, 0), 0);
  r.userspace_addr = 0;
  EXPECT_EQ(set(r), 0);
}

TEST_F(Private, FileVmAndSlotGoInAnyOrder) {
  std::array<int, 3> order{0, 1, 2};
  do {
    Fd vm(call(device_, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM));
    Fd file(create_in(vm, 2 * kPage));
    kvm_userspace_memory_region2 r = region(0, 0, 2, 0);
    r.guest_memfd = static_cast<u32>(static_cast<int>(file));
    ASSERT_EQ(call(vm, KVM_SET_USER_MEMORY_REGION2, &r), 0);
    for (const int what : order) {
      if (what == 0) file.close();
      if (what == 1) vm.close();
      r.memory_size = 0;
      if (what == 2 && vm >= 0) {
        EXPECT_EQ(call(vm, KVM_SET_USER_MEMORY_REGION2, &r), 0);
      }
      if (file >= 0) {
        EXPECT_EQ(fallocate_fd(file, kPunch, 0, 2 * kPage), 0);
        EXPECT_EQ(fallocate_fd(file, kKeep, 0, 2 * kPage), 0);
      }
    }
  } while (std::next_permutation(order.begin(), order.end()));
}

// A VMM may make files for as long as it runs: what is known of them goes with them.
TEST_F(Private, NothingIsKnownOfAFileThatIsGone) {
  if (on_oracle()) GTEST_SKIP() << "oracle: it is the engine's own knowledge";
  Fd file(create(kPage));
  struct ::stat behind{};
  ASSERT_EQ(::fstat(file, &behind), 0);
  EXPECT_NE(stagetwo::host::object_behind(behind.st_dev, behind.st_ino), 0U);
  file.close();
  EXPECT_EQ(stagetwo::host::object_behind(behind.st_dev, behind.st_ino), 0U);
}

// --- attributes and faults ---

TEST_F(Private, AttributesAreRefusedInTheKernelsOrder) {
  EXPECT_EQ(attributes(0, kPage, 0, 1), -EINVAL);
  EXPECT_EQ(attributes(0, kPage, 1), -EINVAL);
  EXPECT_EQ(attributes(0, 0, 8), -EINVAL);
  EXPECT_EQ(attributes(~u64{0} - kPage + 1, 2 * kPage, 8), -EINVAL);
  EXPECT_EQ(attributes(1, kPage, 8), -EINVAL);
  EXPECT_EQ(attributes(0, kPage + 1, 8), -EINVAL);
  EXPECT_EQ(call(vm_, KVM_SET_MEMORY_ATTRIBUTES, kBadPointer), -EFAULT);
  EXPECT_EQ(attributes(u64{1} << 40, u64{1} << 40, 8), 0);  // a tebibyte without slots
}

TEST_F(Private, AFreshVmIsAllShared) {
  host_word(0) = 0x1234;
  EXPECT_EQ(guest_load(kPrivateGpa), 0x1234);
  ASSERT_EQ(make_private(0x6000), 0);
  expect_memory_fault(0x6004, KVM_MEMORY_EXIT_FLAG_PRIVATE);  // no slot
  ASSERT_EQ(make_private(0x2000), 0);
  expect_memory_fault(0x2000, KVM_MEMORY_EXIT_FLAG_PRIVATE);  // a slot without a file
  ASSERT_EQ(make_shared(0x2000), 0);
  EXPECT_EQ(guest_load(0x2000), 0);
}

TEST_F(Private, TheHostSeesSharedPagesOnlyAndTheGuestWhatTheAttributeSays) {
  host_word(1) = 0x1111;
  ASSERT_EQ(make_private(kPrivateGpa + kPage), 0);
  EXPECT_EQ(guest_load(kPrivateGpa + kPage), 0);
  EXPECT_TRUE(guest_store(kPrivateGpa + kPage, 0x2222));
  EXPECT_EQ(host_word(1), 0x1111);
  EXPECT_EQ(guest_load(kPrivateGpa + kPage), 0x2222);
  ASSERT_EQ(make_shared(kPrivateGpa + kPage), 0);
  EXPECT_EQ(guest_load(kPrivateGpa + kPage), 0x1111);
}

TEST_F(Private, AClosedFileIsEfaultWithTheExit) {
  ASSERT_EQ(make_private(kPrivateGpa), 0);
  EXPECT_TRUE(guest_store(kPrivateGpa, 7));
  file_.close();
  expect_memory_fault(kPrivateGpa, KVM_MEMORY_EXIT_FLAG_PRIVATE);
  ASSERT_EQ(make_shared(kPrivateGpa), 0);
  EXPECT_EQ(guest_load(kPrivateGpa), 0);
}

TEST_F(Private, APunchedPageIsZero) {
  ASSERT_EQ(make_private(kPrivateGpa, kFilePages), 0);
  for (u64 page = 0; page < kFilePages; ++page) {
    EXPECT_TRUE(guest_store(kPrivateGpa + page * kPage, static_cast<u16>(page + 1)));
  }
  EXPECT_EQ(fallocate_fd(file_, kPunch, 2 * kPage, 3 * kPage), 0);
  for (u64 page = 0; page < kFilePages; ++page) {
    const bool gone = page >= 2 && page < 5;
    EXPECT_EQ(guest_load(kPrivateGpa + page * kPage), gone ? 0 : static_cast<int>(page + 1));
  }
}

TEST_F(Private, AChildPunchesTheSamePagesAndItsVmIsEio) {
  ASSERT_EQ(make_private(kPrivateGpa), 0);
  EXPECT_TRUE(guest_store(kPrivateGpa, 0x4242));
  const pid_t child = ::fork();
  if (child == 0) {
    if (!on_oracle()) stagetwo::host::descriptors_after_fork_child();
    kvm_memory_attributes asked{};
    asked.size = kPage;
    const bool refused = call(vm_, KVM_SET_MEMORY_ATTRIBUTES, &asked) == -EIO;
    ::_exit(fallocate_fd(file_, kPunch, 0, kPage) == 0 && refused ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(guest_load(kPrivateGpa), 0);
}

int open_pages_files() {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string name = std::filesystem::read_symlink(entry.path(), gone).string();
    found += name.find("stagetwo:pages:kvm-gmem") != std::string::npos ? 1 : 0;
  }
  return found;
}

// Else the pages would outlive the VMM for as long as the child lives.
TEST_F(Private, AChildThatClosesItsCopyLetsGoOfThePages) {
  if (on_oracle()) GTEST_SKIP() << "oracle: it is the engine's own file";
  const pid_t child = ::fork();
  if (child == 0) {
    stagetwo::host::kept_fds_after_fork_child();
    stagetwo::host::descriptors_after_fork_child();
    const int before = open_pages_files();
    file_.close();
    ::_exit(before == 1 && open_pages_files() == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(open_pages_files(), 1);
}

// A process that holds the file and does nothing else, until it is let go.
class Holder {
 public:
  Holder() {
    EXPECT_EQ(::pipe(ends_), 0);
    child_ = ::fork();
    if (child_ != 0) return;
    char byte = 0;
    ::close(ends_[1]);
    static_cast<void>(::read(ends_[0], &byte, 1));
    ::_exit(0);
  }
  void let_go() {
    ::close(ends_[1]);
    ::close(ends_[0]);
    int status = -1;
    EXPECT_EQ(::waitpid(child_, &status, 0), child_);
  }

 private:
  int ends_[2] = {-1, -1};
  pid_t child_ = -1;
};

TEST_F(Private, AFileThatAChildHoldsIsThereUntilTheChildEnds) {
  ASSERT_EQ(make_private(kPrivateGpa), 0);
  EXPECT_TRUE(guest_store(kPrivateGpa, 0x4242));
  Holder holder;
  file_.close();
  EXPECT_EQ(guest_load(kPrivateGpa), 0x4242);
  holder.let_go();
  expect_memory_fault(kPrivateGpa, KVM_MEMORY_EXIT_FLAG_PRIVATE);
}

TEST_F(Private, AVcpuInItsGuestHearsOfTheLastHolder) {
  const u8 loop[] = {0x8b, 0x07, 0xeb, 0xfc};  // ax = [bx], again
  std::memcpy(memory_ + 0x40, loop, sizeof(loop));
  ASSERT_EQ(make_private(kPrivateGpa), 0);
  Holder holder;
  file_.close();
  std::thread guest([this] {
    EXPECT_EQ(run(0x1040, 0, kPrivateGpa), -EFAULT);
    EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_MEMORY_FAULT});
  });
  ::usleep(20'000);
  holder.let_go();
  guest.join();
}

TEST_F(Private, ASharedPageWithoutAMappingIsABareEfault) {
  EXPECT_EQ(guest_load(0x1100), 0);
  ASSERT_EQ(::munmap(shared_ + kPage, kPage), 0);
  EXPECT_EQ(run(0x1000, 0, kPrivateGpa + kPage), -EFAULT);
  EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_UNKNOWN});
}

TEST_F(Private, PreFaultingMakesPrivatePages) {
  ASSERT_EQ(make_private(kPrivateGpa, kFilePages), 0);
  kvm_pre_fault_memory range{};
  range.gpa = kPrivateGpa;
  range.size = (kFilePages + 1) * kPage;
  EXPECT_EQ(call(vcpu_, KVM_PRE_FAULT_MEMORY, &range), 0);
  EXPECT_EQ(range.size, kPage);
  EXPECT_EQ(call(vcpu_, KVM_PRE_FAULT_MEMORY, &range), -ENOENT);
}

// As if the guest had asked for the page: the exit says what is to be arranged.
TEST_F(Private, PreFaultingWhatIsTheVmmsToArrangeShowsTheExit) {
  const auto expect_exit = [&](u64 gpa, u64 pages, long answer) {
    run_->exit_reason = KVM_EXIT_HLT;
    run_->memory_fault = {};
    kvm_pre_fault_memory range{};
    range.gpa = gpa - (pages - 1) * kPage;
    range.size = pages * kPage;
    EXPECT_EQ(call(vcpu_, KVM_PRE_FAULT_MEMORY, &range), answer);
    EXPECT_EQ(range.gpa, gpa);
    expect_memory_fault_shown(gpa, KVM_MEMORY_EXIT_FLAG_PRIVATE);
  };
  ASSERT_EQ(make_private(0x20000), 0);
  expect_exit(0x20000, 1, -EFAULT);  // no slot
  ASSERT_EQ(make_private(0x2000), 0);
  expect_exit(0x2000, 1, -EFAULT);  // a slot without a file
  expect_exit(0x2000, 2, 0);        // any progress is success; the exit is there all the same
  ASSERT_EQ(make_private(kPrivateGpa), 0);
  file_.close();
  expect_exit(kPrivateGpa, 1, -EFAULT);
}

// --- the hypercall ---

TEST_F(Private, MapGpaRangeAsksTheClientAndItsAnswerIsTheGuests) {
  const u64 start = kPrivateGpa;
  EXPECT_EQ(run(0x1020, 12, start, 1, 0), 0);
  EXPECT_EQ(regs().rax & 0xffffffff, 0xfffffc18);  // not enabled: -KVM_ENOSYS
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_EXIT_HYPERCALL;
  cap.args[0] = u64{1} << 12;
  ASSERT_EQ(call(vm_, KVM_ENABLE_CAP, &cap), 0);
  EXPECT_EQ(run(0x1020, 12, start + 1, 1, 0), 0);
  EXPECT_EQ(regs().rax & 0xffffffff, 0xffffffea);  // -EINVAL
  EXPECT_EQ(run(0x1020, 12, start, 0, 0), 0);
  EXPECT_EQ(regs().rax & 0xffffffff, 0xffffffea);
  for (const u64 rip : {0x1020U, 0x1030U}) {
    run_->hypercall.ret = 0x5a5a;
    EXPECT_EQ(run(rip, 12, start, 2, 1 << 4), 0);
    // The other vendor's instruction is rewritten and comes back as the right one.
    ASSERT_EQ(run_->exit_reason, u32{KVM_EXIT_HYPERCALL}) << rip;
    EXPECT_EQ(run_->hypercall.nr, 12U);
    EXPECT_EQ(run_->hypercall.args[0], start);
    EXPECT_EQ(run_->hypercall.args[1], 2U);
    EXPECT_EQ(run_->hypercall.args[2], u64{1} << 4);
    if (!on_oracle()) {
      EXPECT_EQ(run_->hypercall.ret, 0x5a5aU);  // Linux 6.12 writes none
    }
    run_->hypercall.ret = 77;
    EXPECT_EQ(call(vcpu_, KVM_RUN), 0);
    EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_HLT});
    EXPECT_EQ(regs().rax, 77U);
  }
  if (on_oracle()) return;
  ASSERT_TRUE(stagetwo::abi_kvm::set_level("6.18"));
  EXPECT_EQ(run(0x1020, 12, start, 2, 1 << 4), 0);
  EXPECT_EQ(run_->hypercall.ret, 0U);
  ASSERT_TRUE(stagetwo::abi_kvm::set_level("6.12"));
}

// --- beside each other ---

// An access over two pages that one call converts meets one half, whichever.
class TwoPages : public PrivateMachine {
 protected:
  static constexpr u64 kBoth = 2;  // pages
  static constexpr u64 kAcross = kPrivateGpa + kPage - 2;

  u16 shared_word(u64 offset) const {
    u16 word = 0;
    std::memcpy(&word, const_cast<const u8*>(shared_) + offset, sizeof(word));
    return word;
  }
  // Runs `code` from 0x1040 beside changed(private?) after each conversion, and ends it by a fault.
  template <typename F>
  void convert_beside(const std::vector<u8>& code, F&& changed) {
    std::memcpy(memory_ + 0x40, code.data(), code.size());
    std::thread guest([this] {
      EXPECT_EQ(run(0x1040, 0, kAcross), -EFAULT);
      EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_MEMORY_FAULT}) << "12 would be a mixed access";
    });
    const u64 until = stagetwo::sys::monotonic_ns() + 500'000'000;
    while (stagetwo::sys::monotonic_ns() < until) {
      ASSERT_EQ(make_shared(kPrivateGpa, kBoth), 0);
      ASSERT_EQ(make_private(kPrivateGpa, kBoth), 0);
      changed();
    }
    file_.close();
    guest.join();
  }
};

TEST_F(TwoPages, ALoadOverBothIsOfOneHalf) {
  ASSERT_EQ(make_private(kPrivateGpa, kBoth), 0);
  ASSERT_TRUE(guest_store(kAcross, 0x1111));
  ASSERT_TRUE(guest_store(kAcross + 2, 0x1111));
  std::memset(shared_ + kPage - 2, 0x22, 4);
  convert_beside({0x66, 0x8b, 0x07,        // again: eax = [bx]
                  0x66, 0x89, 0xc2,        // edx = eax
                  0x66, 0xc1, 0xea, 0x10,  // edx >>= 16
                  0x39, 0xc2,              // dx = ax?
                  0x74, 0xf2,              // again
                  0xf4},
                 [] {});
}

TEST_F(TwoPages, AStoreOverBothIsIntoOneHalf) {
  ASSERT_EQ(make_private(kPrivateGpa, kBoth), 0);
  int torn = 0;
  convert_beside({0x41,                    // again: ++cx
                  0x66, 0x89, 0xc8,        // eax = ecx
                  0x66, 0xc1, 0xe0, 0x10,  // eax <<= 16
                  0x89, 0xc8,              // ax = cx
                  0x66, 0x89, 0x07,        // [bx] = eax
                  0xeb, 0xf1},             // again
                 [&] { torn += shared_word(kPage - 2) != shared_word(kPage) ? 1 : 0; });
  EXPECT_EQ(torn, 0);
}

// Rounds until `seconds` are over: a stress test's length where it has one.
u64 rounds(u64 most) {
  const char* const wish = std::getenv("STAGETWO_TEST_SECONDS");
  const u64 seconds = wish != nullptr ? std::strtoull(wish, nullptr, 10) : 1;
  return std::max<u64>(1, most * std::min<u64>(seconds, 60) / 60);
}

// A punch in a loop while another thread unbinds and binds: every begin has its end, or the VM's
// own check at its end fails.
TEST_F(Private, PunchesAndUnbindingsKeepTheirBalance) {
  std::atomic<bool> stop{false};
  std::thread puncher([&] {
    while (!stop.load()) EXPECT_EQ(fallocate_fd(file_, kPunch, 0, kFilePages * kPage), 0);
  });
  const u64 last = rounds(100'000);
  for (u64 round = 0; round < last; ++round) {
    ASSERT_EQ(set_file(1, kPrivateGpa, 0, 0), 0);
    ASSERT_EQ(set_file(1, kPrivateGpa, kFilePages, 0), 0);
  }
  stop = true;
  puncher.join();
  ASSERT_EQ(make_private(kPrivateGpa), 0);
  EXPECT_EQ(guest_load(kPrivateGpa), 0);
}

// A page is punched again and again under a guest that reads it: never an old value.
TEST_F(Private, NoStaleValueAfterAPunch) {
  ASSERT_EQ(make_private(kPrivateGpa), 0);
  const u64 last = rounds(100'000);
  for (u64 round = 1; round <= last; ++round) {
    ASSERT_TRUE(guest_store(kPrivateGpa, static_cast<u16>(round | 1)));
    ASSERT_EQ(fallocate_fd(file_, kPunch, 0, kPage), 0);
    ASSERT_EQ(guest_load(kPrivateGpa), 0) << round;
  }
}

// The same by a process that tells nobody, while the guest never leaves: it reads the page, reports
// what it read and counts; where it read zero it writes something new. A turn that began after
// fallocate() returned reports nothing older.
TEST_F(Private, APunchByAChildIsOverForARunningVcpuWhenItReturns) {
  constexpr u64 kReport = 0x7000;
  const u8 code[] = {0x8b, 0x07,              // again: ax = [bx]
                     0x89, 0x04, 0x41,        // [si] = ax; ++cx
                     0x89, 0x4c, 0x02,        // [si + 2] = cx
                     0x85, 0xc0, 0x75, 0xf4,  // ax != 0: again
                     0x42, 0x89, 0x17,        // ++dx; [bx] = dx
                     0xeb, 0xef};
  std::memcpy(memory_ + 0x40, code, sizeof(code));
  auto* const report = static_cast<volatile u16*>(
      ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  kvm_userspace_memory_region2 slot = region(2, kReport, 1, 0);
  slot.flags = 0;
  slot.userspace_addr = reinterpret_cast<u64>(report);
  ASSERT_EQ(set(slot), 0);
  ASSERT_EQ(make_private(kPrivateGpa), 0);
  kvm_regs r{};
  r.rip = 0x1040;
  r.rflags = 2;
  r.rbx = kPrivateGpa;
  r.rsi = kReport;
  ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &r), 0);
  std::thread guest([this] { EXPECT_EQ(call(vcpu_, KVM_RUN), -EFAULT); });
  const u64 last = rounds(6'000);
  const pid_t child = ::fork();
  if (child == 0) {
    if (!on_oracle()) stagetwo::host::descriptors_after_fork_child();
    u64 stale = 0;
    for (u64 round = 0; round < last; ++round) {
      while (report[0] == 0) ::sched_yield();
      const u16 before = report[0];
      if (fallocate_fd(file_, kPunch, 0, kPage) != 0) ::_exit(2);
      const u16 turn = report[1];  // this one may have begun before, the next but one has not
      while (static_cast<u16>(report[1] - turn) < 2) ::sched_yield();
      if (report[0] == before) ++stale;
    }
    ::_exit(stale == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  file_.close();
  guest.join();
  ::munmap(const_cast<u16*>(report), kPage);
}

}  // namespace
}  // namespace kvm_client
