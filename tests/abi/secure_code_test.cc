// SPDX-License-Identifier: Apache-2.0
// Where a secure guest's code stands in the process: in the pool while its page is secure, decoded
// while a vCPU runs it, and nowhere else, nor longer.
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>

#include "tests/abi/secure_guest.h"

namespace kvm_client {
namespace {

// The code has a word that comes into no register: the displacement of a NOP. It is this test's to
// know, too, so it is nowhere as it is.
constexpr u32 kHidden = 0x5aa55aa5;

// How it stands in memory.
struct Copies {
  u64 as_bytes = 0;  // the instruction's
  u64 decoded = 0;   // the word by itself, 64 bits wide
  u64 loose = 0;     // mappings with either that may be swapped, dumped, or a child's
};

// It reads all there is of this process, so what a sanitizer keeps from others, too.
#define ST_READS_ALL __attribute__((no_sanitize("address", "thread")))

ST_READS_ALL void count_in(u64 start, u64 end, u32 veiled, Copies* copies) {
  const auto* const at = reinterpret_cast<const u8*>(start);
  const u64 size = end - start;
  const u8 first = static_cast<u8>(veiled ^ kHidden);
  const auto word = [&](u64 i) ST_READS_ALL {
    return u32{at[i]} | u32{at[i + 1]} << 8 | u32{at[i + 2]} << 16 | u32{at[i + 3]} << 24;
  };
  for (u64 i = 4; i + 8 <= size; ++i) {
    if (at[i] != first || (word(i) ^ kHidden) != veiled) continue;
    copies->as_bytes += word(i - 4) == 0x801f0f67;
    copies->decoded += word(i + 4) == 0;
  }
}

class SecureCode : public SecureGuest {
 protected:
  static constexpr u64 kFirst = 0x4000, kSecond = 0x5000, kShared = 0x8000;

  // kFirst: nop dword [eax + word]; jmp kSecond. kSecond: inc dword [bx]; cmp dword [bx + 4], 0;
  // je kSecond; mov dx, 0x10; out dx, eax; jmp kSecond.
  void SetUp() override {
    SecureGuest::SetUp();
    const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
    veiled_ = (static_cast<u32>(now) * 2654435761U | 0x40000001U) & 0x7fffffffU;
    const u32 word = veiled_ ^ kHidden;
    u8 first[11] = {0x67, 0x0f, 0x1f, 0x80, 0, 0, 0, 0, 0xe9, 0xf5, 0x0f};
    std::memcpy(first + 4, &word, sizeof(word));
    std::memcpy(page(kFirst), first, sizeof(first));
    std::memset(first, 0, sizeof(first));
    static constexpr u8 kLoop[] = {0x66, 0xff, 0x07, 0x66, 0x83, 0x7f, 0x04, 0x00, 0x74,
                                   0xf6, 0xba, 0x10, 0x00, 0x66, 0xef, 0xeb, 0xef};
    std::memcpy(page(kSecond), kLoop, sizeof(kLoop));
  }
  void goes_to(u64 rip) {
    kvm_regs regs{};
    ASSERT_EQ(call(vcpu_, KVM_GET_REGS, &regs), 0);
    regs.rip = rip;
    regs.rbx = kShared;
    ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &regs), 0);
  }
  // In the pages that the process has, but those of the guest: looking at one would seal it.
  [[nodiscard]] Copies copies() const {
    Copies found;
    u64 start = 0, end = 0, before = 0;
    std::ifstream maps("/proc/self/smaps");
    for (std::string line; std::getline(maps, line);) {
      if (line[0] < 'A' || line[0] > 'Z') {
        start = end = 0;
        const bool is_ours = line.find('/') == line.npos || line.find("stagetwo:") != line.npos ||
                             line.find("secretmem") != line.npos;
        const bool readable = line.find(" r") != line.npos && line.find("[v") == line.npos;
        if (!is_ours || !readable) continue;
        start = std::stoull(line, nullptr, 16);
        end = std::stoull(line.substr(line.find('-') + 1), nullptr, 16);
        before = found.as_bytes + found.decoded;
        count_pages(start, end, &found);
      } else if (line.starts_with("VmFlags:") && found.as_bytes + found.decoded != before) {
        for (const char* const flag : {" lo", " dd", " dc"}) {
          found.loose += line.find(flag) == line.npos;
        }
        before = found.as_bytes + found.decoded;
      }
    }
    return found;
  }
  void count_pages(u64 start, u64 end, Copies* found) const {
    if (end - start > u64{32} << 20) return;
    std::vector<unsigned char> there((end - start) / kPage);
    if (::mincore(reinterpret_cast<void*>(start), end - start, there.data()) != 0) return;
    const auto guests = reinterpret_cast<u64>(ram_);
    for (u64 at = start; at < end; at += kPage) {
      if (at >= guests && at < guests + kBytes) continue;
      if ((there[(at - start) / kPage] & 1) != 0) count_in(at, at + kPage, veiled_, found);
    }
  }
  u32 count() const {
    return std::atomic_ref(*reinterpret_cast<u32*>(page(kShared))).load(std::memory_order_relaxed);
  }
  void stop() { std::atomic_ref(*reinterpret_cast<u32*>(page(kShared) + 4)).store(1); }

  // Secure, and its vCPU in one long KVM_RUN by now: it counts until stop().
  void becomes_secure_and_runs() {
    ASSERT_NO_FATAL_FAILURE(become_secure());
    ASSERT_EQ(guest_call(kShare, kShared / kPage, 1), kSuccess);
    goes_to(kFirst);
    runner_ = std::thread([this] {
      EXPECT_EQ(call(vcpu_, KVM_RUN), 0);
      is_over_ = true;
    });
    runs_on();
  }
  void runs_on() const {
    for (const u32 then = count(); count() - then < 1000 && !is_over_;) ::sched_yield();
  }
  void ends_now() {
    EXPECT_FALSE(is_over_) << "the same KVM_RUN";
    stop();
    runner_.join();
  }

  std::thread runner_;
  std::atomic<bool> is_over_{false};
  u32 veiled_ = 0;
};

TEST_F(SecureCode, StandsDecodedOnlyWhileItsVcpuRuns) {
  ASSERT_NO_FATAL_FAILURE(become_secure());
  ASSERT_EQ(guest_call(kShare, kShared / kPage, 1), kSuccess);
  stop();
  goes_to(kFirst);
  ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
  Copies found = copies();
  EXPECT_EQ(found.decoded, 0U);
  EXPECT_EQ(found.as_bytes, 1U) << "in the pool";
  // It is sealed then.
  static_cast<void>(seen(kFirst));
  found = copies();
  EXPECT_EQ(found.decoded + found.as_bytes, 0U);
}

// The page leaves while the vCPU is in one long KVM_RUN, elsewhere by now.
TEST_F(SecureCode, OfAPageThatIsSealedGoesWhileTheVcpuRunsOn) {
  ASSERT_NO_FATAL_FAILURE(becomes_secure_and_runs());
  const Copies before = copies();
  EXPECT_GT(before.decoded, 0U) << "what is looked for afterwards";
  EXPECT_GT(before.as_bytes, 1U) << "in the pool, and with what was decoded";
  EXPECT_EQ(before.loose, 0U);
  static_cast<void>(seen(kFirst));
  Copies after = copies();
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  // The vCPU looks at the end of its block, and its thread may not be running just now.
  while (after.decoded + after.as_bytes != 0 && std::chrono::steady_clock::now() < until) {
    after = copies();
  }
  EXPECT_EQ(after.decoded, 0U);
  EXPECT_EQ(after.as_bytes, 0U);
  runs_on();
  ends_now();
}

// A page that is no code leaves, and what is decoded stays: it would all be decoded again.
TEST_F(SecureCode, StaysWhenAPageWithoutCodeIsSealed) {
  ASSERT_NO_FATAL_FAILURE(becomes_secure_and_runs());
  const Copies before = copies();
  EXPECT_GT(before.decoded, 0U);
  for (const u64 data : {0x6000UL, 0x7000UL, 0x9000UL}) {
    EXPECT_LT(bytes_of_text(seen(data), data), kPage / 50);
    runs_on();
  }
  EXPECT_EQ(copies().decoded, before.decoded) << "of the first page, which is not run again";
  static_cast<void>(seen(kFirst));
  runs_on();
  EXPECT_EQ(copies().decoded, 0U);
  ends_now();
}

// What an instruction that is not executed here is, the VMM of a normal guest is told.
TEST_F(SecureCode, IsNotToldWithAnInstructionThatTheEngineDoesNotKnow) {
  static constexpr u8 kX87[] = {0xd9, 0xe8};  // fld1
  std::memcpy(page(kFirst), kX87, sizeof(kX87));
  std::memcpy(page(kSecond), kX87, sizeof(kX87));
  goes_to(kSecond);
  ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_INTERNAL_ERROR));
  EXPECT_EQ(run_->internal.ndata, 8U);
  goes_to(kBase);
  ASSERT_NO_FATAL_FAILURE(become_secure());
  goes_to(kFirst);
  ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_INTERNAL_ERROR));
  EXPECT_EQ(run_->internal.ndata, 6U);
}

// In a process of its own: the pool is made once. Where little may be locked many vCPUs run, each
// with less room for decoded code.
TEST_F(SecureCode, ManyVcpusRunWhereLittleMemoryMayBeLocked) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root (another user's limit)";
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit little{u64{2} << 20, u64{2} << 20};
    if (::setrlimit(RLIMIT_MEMLOCK, &little) != 0 || ::setresuid(65534, 65534, 65534) != 0)
      _exit(9);
    stagetwo::abi_kvm::offer_secure_guests(u64{1} << 30);
    const int kvm = open_kvm();
    const Fd vm(call(kvm, KVM_CREATE_VM));
    void* const ram =
        ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    std::memset(ram, 0xf4, kPage);  // hlt
    kvm_userspace_memory_region region{};
    region.guest_phys_addr = 0xfffff000;  // where a processor begins
    region.memory_size = kPage;
    region.userspace_addr = reinterpret_cast<u64>(ram);
    if (call(vm, KVM_SET_USER_MEMORY_REGION, &region) != 0) _exit(8);
    int ran = 0;
    for (unsigned n = 0; n < 16; ++n) {
      const int vcpu = static_cast<int>(call(vm, KVM_CREATE_VCPU, n));
      ran += call(vcpu, KVM_RUN) == 0;
    }
    _exit(ran);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 16);
}

}  // namespace
}  // namespace kvm_client
