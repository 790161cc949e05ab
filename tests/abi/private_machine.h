// SPDX-License-Identifier: Apache-2.0
#pragma once

// A software-protected VM with one vCPU and a slot that has a guest_memfd, for tests of private
// memory as a client sees it.

#include "tests/abi/kvm_client.h"

namespace kvm_client {

inline constexpr int kKeep = FALLOC_FL_KEEP_SIZE;
inline constexpr int kPunch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
inline constexpr u64 kPage = 4096;
inline constexpr u64 kPrivateGpa = 0x8000;
inline constexpr u64 kFilePages = 8;

inline long fallocate_fd(int fd, int mode, u64 offset, u64 size) {
  if (on_oracle()) {
    const int done = ::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(size));
    return done < 0 ? -errno : done;
  }
  stagetwo::host::EngineSection section(stagetwo::host::Touches::kNothing);
  auto ref = stagetwo::host::find(fd);
  const auto done = ref->fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(size));
  ref.reset();
  section.leave();
  return done ? 0 : -static_cast<long>(stagetwo::to_int(done.error()));
}

// A vCPU of a software-protected VM: plain code at 0x1000, eight pages of a file at 0x8000.
class PrivateMachine : public Machine {
 protected:
  void SetUp() override {
    device_ = Fd(open_kvm());
    ASSERT_GE(device_, 0) << "no /dev/kvm here";
    const long types = call(device_, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);
    if (on_oracle() && (types >> KVM_X86_SW_PROTECTED_VM & 1) == 0) {
      GTEST_SKIP() << "oracle: this machine's KVM has no KVM_X86_SW_PROTECTED_VM";
    }
    vm_ = Fd(call(device_, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM));
    ASSERT_GE(vm_, 0);
    add_memory();
    shared_ = static_cast<u8*>(::mmap(nullptr, kFilePages * kPage, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    file_ = Fd(create(kFilePages * kPage));
    ASSERT_GE(file_, 0);
    ASSERT_EQ(0, set_file(1, kPrivateGpa, kFilePages, 0));
    add_vcpu();
    write_code();
  }
  void TearDown() override {
    file_.close();
    Machine::TearDown();
    if (shared_ != nullptr) ::munmap(shared_, kFilePages * kPage);
  }

  long create(u64 size, u64 flags = 0) { return create_in(vm_, size, flags); }
  static long create_in(int vm, u64 size, u64 flags = 0) {
    kvm_create_guest_memfd asked{};
    asked.size = size;
    asked.flags = flags;
    return call(vm, KVM_CREATE_GUEST_MEMFD, &asked);
  }
  kvm_userspace_memory_region2 region(u32 slot, u64 gpa, u64 pages, u64 first_page) {
    kvm_userspace_memory_region2 r{};
    r.slot = slot;
    r.flags = KVM_MEM_GUEST_MEMFD;
    r.guest_phys_addr = gpa;
    r.memory_size = pages * kPage;
    r.userspace_addr = reinterpret_cast<u64>(shared_);
    r.guest_memfd_offset = first_page * kPage;
    r.guest_memfd = static_cast<u32>(static_cast<int>(file_));
    return r;
  }
  long set(kvm_userspace_memory_region2 r) { return call(vm_, KVM_SET_USER_MEMORY_REGION2, &r); }
  long set_file(u32 slot, u64 gpa, u64 pages, u64 first_page) {
    return set(region(slot, gpa, pages, first_page));
  }
  long attributes(u64 gpa, u64 size, u64 attributes, u64 flags = 0) {
    kvm_memory_attributes asked{};
    asked.address = gpa;
    asked.size = size;
    asked.attributes = attributes;
    asked.flags = flags;
    return call(vm_, KVM_SET_MEMORY_ATTRIBUTES, &asked);
  }
  long make_private(u64 gpa, u64 pages = 1) {
    return attributes(gpa, pages * kPage, KVM_MEMORY_ATTRIBUTE_PRIVATE);
  }
  long make_shared(u64 gpa, u64 pages = 1) { return attributes(gpa, pages * kPage, 0); }

  // 0x1000: ax = [bx]; hlt    0x1010: [bx] = ax; hlt    0x1020: vmcall; hlt   0x1030: vmmcall; hlt
  void write_code() {
    const u8 load[] = {0x8b, 0x07, 0xf4};
    const u8 store[] = {0x89, 0x07, 0xf4};
    const u8 vmcall[] = {0x0f, 0x01, 0xc1, 0xf4};
    const u8 vmmcall[] = {0x0f, 0x01, 0xd9, 0xf4};
    std::memcpy(memory_, load, sizeof(load));
    std::memcpy(memory_ + 0x10, store, sizeof(store));
    std::memcpy(memory_ + 0x20, vmcall, sizeof(vmcall));
    std::memcpy(memory_ + 0x30, vmmcall, sizeof(vmmcall));
    kvm_sregs sregs{};
    ASSERT_EQ(call(vcpu_, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    ASSERT_EQ(call(vcpu_, KVM_SET_SREGS, &sregs), 0);
  }
  long run(u64 rip, u64 rax, u64 rbx, u64 rcx = 0, u64 rdx = 0) {
    kvm_regs r{};
    r.rip = rip;
    r.rflags = 2;
    r.rax = rax;
    r.rbx = rbx;
    r.rcx = rcx;
    r.rdx = rdx;
    EXPECT_EQ(call(vcpu_, KVM_SET_REGS, &r), 0);
    return call(vcpu_, KVM_RUN);
  }
  // What the guest finds there; -1: it did not come to its hlt.
  int guest_load(u64 gpa) {
    const long done = run(0x1000, 0, gpa);
    if (done != 0 || run_->exit_reason != KVM_EXIT_HLT) return -1;
    return static_cast<int>(regs().rax & 0xffff);
  }
  bool guest_store(u64 gpa, u16 value) {
    return run(0x1010, value, gpa) == 0 && run_->exit_reason == KVM_EXIT_HLT;
  }
  void expect_memory_fault(u64 gpa, u64 flags) {
    EXPECT_EQ(run(0x1000, 0, gpa), -EFAULT);
    expect_memory_fault_shown(gpa, flags);
  }
  void expect_memory_fault_shown(u64 gpa, u64 flags) {
    EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_MEMORY_FAULT});
    EXPECT_EQ(run_->memory_fault.flags, flags);
    EXPECT_EQ(run_->memory_fault.gpa, gpa & ~(kPage - 1));
    EXPECT_EQ(run_->memory_fault.size, kPage);
  }
  u16& host_word(u64 page) { return *reinterpret_cast<u16*>(shared_ + page * kPage); }

  Fd file_;
  u8* shared_ = nullptr;
};

}  // namespace kvm_client
