// SPDX-License-Identifier: Apache-2.0
#pragma once

// A VM whose guest may become secure, with a guest of a few instructions that does what a port
// tells it: once it is secure nobody can give it another program.

#include "tests/abi/kvm_client.h"

#include <signal.h>

#include <array>
#include <atomic>
#include <vector>

#include "host/mmu_notifier.h"

namespace kvm_client {

// A signal to the thread that makes it, when the first page of memory goes: whoever takes the
// memory is in the middle of it then, whatever else the machine does.
class SignalWhenItGoes final : public stagetwo::host::MmuNotifier {
 public:
  SignalWhenItGoes(int signal, const void* at, u64 bytes)
      : signal_(signal), range_(stagetwo::Hva(reinterpret_cast<u64>(at)), bytes) {
    EXPECT_TRUE(stagetwo::host::register_notifier(this));
  }
  ~SignalWhenItGoes() { stagetwo::host::unregister_notifier(this); }
  bool invalidate_range_start(const stagetwo::host::InvalidateEvent& event) override {
    if (event.range.overlaps(range_) && !sent_.exchange(true)) ::pthread_kill(thread_, signal_);
    return false;
  }
  stagetwo::host::TryStart try_invalidate_range_start(
      const stagetwo::host::InvalidateEvent& event) override {
    invalidate_range_start(event);
    return stagetwo::host::TryStart::kNotMine;
  }
  void invalidate_range_end(const stagetwo::host::InvalidateEvent&) override {}

 private:
  const pthread_t thread_ = ::pthread_self();
  const int signal_;
  const stagetwo::HvaRange range_;
  std::atomic<bool> sent_{false};
};

using Bytes = std::vector<u8>;

// The numbers and answers of POWER's documents.
inline constexpr u32 kPageIn = 0xEF00, kPageOut = 0xEF04, kInitStart = 0xEF08, kInitDone = 0xEF0C,
                     kInitAbort = 0xEF14, kEsm = 0xF110, kUvPageIn = 0xF128, kShare = 0xF130,
                     kUnshare = 0xF134, kTerminate = 0xF13C, kUnshareAll = 0xF140;
inline constexpr long kSuccess = 0, kParameter = -4, kPermission = -11, kP2 = -55, kP3 = -56,
                      kUnsupported = -67, kState = -75;

inline constexpr u64 kPage = 4096;
inline constexpr u64 kPool = 256 * kPage;

class SecureGuest : public Machine {
 protected:
  static constexpr u64 kBase = 0x1000, kBytes = 0xB000;         // slot 0
  static constexpr u64 kPlugged = 0xC000, kPlugBytes = 0x4000;  // slot 1
  static constexpr u32 kLoad = 1, kStore = 2, kCount = 3;       // what else the guest does

  void SetUp() override {
    stagetwo::abi_kvm::offer_secure_guests(kPool);
    Machine::SetUp();
    add_vcpu();
    ram_ = map(kBytes);
    ASSERT_EQ(set_slot(0, kBase, kBytes, ram_), 0);
    load_guest();
    for (u64 at = kPage; at < kBytes; ++at) ram_[at] = text(at);
  }
  void TearDown() override {
    Machine::TearDown();
    for (const auto& [at, bytes] : mapped_) ::munmap(at, bytes);
    stagetwo::abi_kvm::offer_secure_guests(0);
  }

  static u8 text(u64 at) { return static_cast<u8>("what the guest keeps to itself "[at % 31]); }
  // With room above it, which the kernel prefers: into a hole that a test makes nothing of the
  // engine's comes, which under a sanitizer does not choose its places.
  u8* map(u64 bytes) {
    constexpr u64 kRoom = u64{4} << 20;
    void* const all = ::mmap(nullptr, bytes + kRoom, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    auto* const at = static_cast<u8*>(all);
    EXPECT_EQ(::munmap(at + bytes, kRoom), 0);
    mapped_.emplace_back(at, bytes);
    return at;
  }
  long set_slot(u32 slot, u64 gpa, u64 bytes, const void* at, u32 flags = 0) {
    kvm_userspace_memory_region region{};
    region.slot = slot;
    region.flags = flags;
    region.guest_phys_addr = gpa;
    region.memory_size = bytes;
    region.userspace_addr = reinterpret_cast<u64>(at);
    return call(vm_, KVM_SET_USER_MEMORY_REGION, &region);
  }
  long enable() {
    kvm_enable_cap cap{};
    cap.cap = KVM_CAP_PPC_SECURE_GUEST;
    return call(vm_, KVM_ENABLE_CAP, &cap);
  }

  // start: number, EBX and ECX from port 0x10; does it; EAX to port 0x10; again.
  void load_guest() {
    static constexpr u8 kCode[] = {
        0xba, 0x10, 0x00,        // start: mov dx, 0x10
        0x66, 0xed,              // in eax, dx
        0x66, 0x89, 0xc6,        // mov esi, eax
        0x66, 0xed,              // in eax, dx
        0x66, 0x89, 0xc3,        // mov ebx, eax
        0x66, 0xed,              // in eax, dx
        0x66, 0x89, 0xc1,        // mov ecx, eax
        0x66, 0x89, 0xf0,        // mov eax, esi
        0x3c, 0x01, 0x74, 0x0d,  // cmp al, 1; je load
        0x3c, 0x02, 0x74, 0x0e,  // cmp al, 2; je store
        0x3c, 0x03, 0x74, 0x14,  // cmp al, 3; je spin
        0x0f, 0x01, 0xc1,        // vmcall
        0xeb, 0x08,              // jmp out
        0x66, 0x8b, 0x07,        // load: mov eax, [bx]
        0xeb, 0x03,              // jmp out
        0x66, 0x89, 0x0f,        // store: mov [bx], ecx
        0xba, 0x10, 0x00,        // out: mov dx, 0x10
        0x66, 0xef,              // out dx, eax
        0xeb, 0xcb,              // jmp start
        0x66, 0xff, 0x07,        // spin: inc dword [bx]
        0x66, 0x83, 0x7f, 0x04,  // cmp dword [bx + 4], 0
        0x00, 0x74, 0xf6,        // je spin
        0xeb, 0xed,              // jmp out
    };
    std::memcpy(ram_, kCode, sizeof(kCode));
    kvm_sregs sregs{};
    ASSERT_EQ(call(vcpu_, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = sregs.ds.base = 0;
    sregs.cs.selector = sregs.ds.selector = 0;
    ASSERT_EQ(call(vcpu_, KVM_SET_SREGS, &sregs), 0);
    kvm_regs start{};
    start.rip = kBase;
    start.rflags = 2;
    ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &start), 0);
  }
  // Hands the guest its orders. KVM_RUN's answer of the run that ends without an order.
  long give(u32 number, u32 ebx, u32 ecx) {
    const std::array<u32, 3> order{number, ebx, ecx};
    for (size_t given = 0;;) {
      const long done = call(vcpu_, KVM_RUN);
      if (done != 0) return done;
      if (run_->exit_reason != KVM_EXIT_IO) return 0;
      if (run_->io.direction == KVM_EXIT_IO_OUT) return 0;
      if (given == order.size()) return 0;
      std::memcpy(pio(), &order[given++], sizeof(u32));
    }
  }
  // The orders alone: the run that carries them out is still to come.
  void give_orders(std::array<u32, 3> orders) {
    for (const u32 order : orders) {
      ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
      std::memcpy(pio(), &order, sizeof(order));
    }
  }
  // SIGALRM waits for a KVM_RUN, which ends with it, until it is taken.
  void alarm_in_the_guest_alone() {
    sigemptyset(&alarm_);
    sigaddset(&alarm_, SIGALRM);
    ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &alarm_, &mask_before_), 0);
    listen(vcpu_);
  }
  static void listen(int vcpu) {
    struct {
      u32 length = 8;
      u8 set[8] = {};
    } __attribute__((packed)) open;
    ASSERT_EQ(call(vcpu, KVM_SET_SIGNAL_MASK, &open), 0);
  }
  void take_alarm() {
    const timespec now{};
    EXPECT_EQ(::sigtimedwait(&alarm_, nullptr, &now), SIGALRM);
    ASSERT_EQ(::pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr), 0);
  }
  // What the guest says then.
  u32 ask(u32 number, u32 ebx = 0, u32 ecx = 0) {
    EXPECT_EQ(give(number, ebx, ecx), 0);
    EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_IO));
    u32 said = 0;
    std::memcpy(&said, pio(), sizeof(said));
    return said;
  }
  long guest_call(u32 number, u32 ebx = 0, u32 ecx = 0) {
    return static_cast<stagetwo::s32>(ask(number, ebx, ecx));
  }
  u32 guest_word(u64 gpa) { return ask(kLoad, static_cast<u32>(gpa)); }
  void guest_stores(u64 gpa, u32 word) { ask(kStore, static_cast<u32>(gpa), word); }
  void become_secure() {
    ASSERT_EQ(enable(), 0);
    ASSERT_EQ(guest_call(kEsm, 1, 1), kSuccess);
  }

  u32 host_word(u64 gpa) const {
    u32 word = 0;
    std::memcpy(&word, ram_ + (gpa - kBase), sizeof(word));
    return word;
  }
  static u32 text_word(u64 gpa) {
    u8 bytes[4];
    for (u64 i = 0; i < 4; ++i) bytes[i] = text(gpa - kBase + i);
    u32 word = 0;
    std::memcpy(&word, bytes, sizeof(word));
    return word;
  }
  // Has the process a page there, without touching it?
  static bool is_present(const u8* at) {
    unsigned char there = 0;
    EXPECT_EQ(::mincore(const_cast<u8*>(at), kPage, &there), 0);
    return (there & 1) != 0;
  }
  u8* page(u64 gpa) const { return ram_ + (gpa - kBase); }
  Bytes seen(u64 gpa) const { return Bytes(page(gpa), page(gpa) + kPage); }
  static u64 bytes_of_text(const Bytes& bytes, u64 gpa) {
    u64 equal = 0;
    for (u64 i = 0; i < bytes.size(); ++i) equal += bytes[i] == text(gpa - kBase + i);
    return equal;
  }

  u8* ram_ = nullptr;
  std::vector<std::pair<void*, u64>> mapped_;
  sigset_t alarm_{};
  sigset_t mask_before_{};
};

}  // namespace kvm_client
