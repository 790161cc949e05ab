// SPDX-License-Identifier: Apache-2.0
#pragma once

// A KVM program's view of the interface, on one of two systems: the engine's descriptors, or, with
// STAGETWO_ORACLE=1, the machine's own /dev/kvm. Calls answer as system calls do: >= 0 or -errno.

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "abi/kvm/kvm.h"
#include "abi/kvm/uapi.h"
#include "host/backstop.h"
#include "host/descriptor.h"
#include "host/run_section.h"

namespace kvm_client {

using stagetwo::s64;
using stagetwo::u16;
using stagetwo::u32;
using stagetwo::u64;
using stagetwo::u8;

inline bool on_oracle() {
  const char* wish = std::getenv("STAGETWO_ORACLE");
  return wish != nullptr && wish[0] == '1';
}

inline int open_kvm(int flags = O_RDWR | O_CLOEXEC) {
  if (on_oracle()) return ::open("/dev/kvm", flags);
  [[maybe_unused]] static const bool installed = [] {
    return static_cast<bool>(stagetwo::host::backstop::install());
  }();
  const auto fd = stagetwo::abi_kvm::open_device(flags);
  return fd ? *fd : -stagetwo::to_int(fd.error());
}

inline long call(int fd, unsigned long request, unsigned long arg = 0) {
  if (on_oracle()) {
    const int done = ::ioctl(fd, request, arg);
    return done < 0 ? -errno : done;
  }
  stagetwo::host::EngineSection section;
  auto ref = stagetwo::host::find(fd);
  if (!ref) return -ENOTTY;
  const long done = ref.foreign() ? -EIO : ref->ioctl(fd, request, arg);
  ref.reset();
  section.leave();
  return done;
}
template <typename T>
long call(int fd, unsigned long request, T* arg) {
  return call(fd, request, reinterpret_cast<unsigned long>(arg));
}

inline void close_fd(int fd) {
  if (on_oracle()) {
    ::close(fd);
    return;
  }
  stagetwo::host::CloseWatch watch(fd);
  ::close(fd);
  watch.closed();
}

// Owns a descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(long fd) : fd_(static_cast<int>(fd)) {}
  Fd(Fd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { close(); }
  operator int() const { return fd_; }
  void close() {
    if (fd_ >= 0) close_fd(fd_);
    fd_ = -1;
  }

 private:
  int fd_ = -1;
};

// The front of the structs that end in an array (kvm_msrs, kvm_cpuid2), with the array beside it.
template <typename Entry, u32 kRoom>
struct Table {
  u32 count = kRoom;
  u32 pad = 0;
  Entry entry[kRoom]{};
};

// An address nobody may use.
inline constexpr unsigned long kBadPointer = 8;

// One device, one VM, one vCPU with its run page, one page of real-mode code at 0x1000.
class Machine : public testing::Test {
 protected:
  void SetUp() override {
    device_ = Fd(open_kvm());
    ASSERT_GE(device_, 0) << "no /dev/kvm here";
    vm_ = Fd(call(device_, KVM_CREATE_VM));
    ASSERT_GE(vm_, 0);
  }
  void TearDown() override {
    if (run_ != nullptr) ::munmap(run_, 3 * 4096);
    vcpu_.close();
    vm_.close();
    device_.close();
    if (memory_ != nullptr) ::munmap(memory_, kMemory);
  }

  void add_vcpu(u32 id = 0) {
    vcpu_ = Fd(call(vm_, KVM_CREATE_VCPU, id));
    ASSERT_GE(vcpu_, 0);
    void* area = ::mmap(nullptr, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_, 0);
    ASSERT_NE(area, MAP_FAILED);
    run_ = static_cast<kvm_run*>(area);
  }

  void add_memory(u64 gpa = 0x1000) {
    memory_ = static_cast<u8*>(
        ::mmap(nullptr, kMemory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory_, MAP_FAILED);
    kvm_userspace_memory_region region{};
    region.guest_phys_addr = gpa;
    region.memory_size = kMemory;
    region.userspace_addr = reinterpret_cast<u64>(memory_);
    ASSERT_EQ(call(vm_, KVM_SET_USER_MEMORY_REGION, &region), 0);
  }

  // Real mode, CS base 0, at 0x1000.
  template <size_t N>
  void load_code(const u8 (&code)[N]) {
    std::memcpy(memory_, code, N);
    kvm_sregs sregs{};
    ASSERT_EQ(call(vcpu_, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    ASSERT_EQ(call(vcpu_, KVM_SET_SREGS, &sregs), 0);
    kvm_regs regs{};
    regs.rip = 0x1000;
    regs.rflags = 2;
    ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &regs), 0);
  }

  kvm_regs regs() {
    kvm_regs out{};
    EXPECT_EQ(call(vcpu_, KVM_GET_REGS, &out), 0);
    return out;
  }
  u8* pio() { return reinterpret_cast<u8*>(run_) + run_->io.data_offset; }

  static constexpr size_t kMemory = 0x4000;
  Fd device_, vm_, vcpu_;
  kvm_run* run_ = nullptr;
  u8* memory_ = nullptr;
};

}  // namespace kvm_client
