// SPDX-License-Identifier: Apache-2.0
// Goal: whatever the VMM does, a secure guest that runs by KVM_RUN reads what it wrote, or nothing
// any more. Method: a vCPU that stores, loads, shares and unshares at random, compared with a
// model; a VMM beside it that reads and writes pages, puts older copies of sealed ones in place,
// reads the dirty log, plugs and unplugs memory; now and then a reset, and a new life.
#include <atomic>
#include <cstdio>
#include <shared_mutex>
#include <thread>

#include "tests/abi/secure_guest.h"
#include "tests/support/random_source.h"

namespace kvm_client {
namespace {

using stagetwo::test::RandomSource;

class SecureVmStress : public SecureGuest {
 protected:
  // Pages of slot 0: code, then those the VMM tampers with, then those the guest shares.
  static constexpr u64 kOwn = 0x2000, kOwnPages = 4;
  static constexpr u64 kMayShare = 0x6000, kMayPages = 4;
  static constexpr u64 kWords = 4;  // of each page that are used

  struct Page {
    u64 gpa = 0;
    bool shared = false;
    std::array<u32, kWords> words{};
    bool known = true;  // a plugged page's words are not, until it is written
  };

  void SetUp() override {
    SecureGuest::SetUp();
    more_ = map(kPlugBytes);
    ASSERT_EQ(set_slot(0, kBase, kBytes, ram_, KVM_MEM_LOG_DIRTY_PAGES), 0);
    ASSERT_EQ(enable(), 0);
  }

  // A new life. Nobody else is at the guest's memory.
  void begin() {
    load_guest();
    for (u64 i = 0; i < kOwnPages + kMayPages; ++i) {
      Page& page = pages_[i];
      page = {kOwn + i * kPage, false, {}, true};
      std::memset(this->page(page.gpa), 0, kPage);
    }
    for (auto& done : tampered_) done = Tamper::kNo;
    ASSERT_EQ(guest_call(kEsm, 1, 1), kSuccess);
    ++lives_;
  }

  // The guest's next step. False: it has ended.
  bool step(RandomSource& random) {
    Page& at = pages_[random.small(kOwnPages + kMayPages)];
    const auto word = random.small(kWords);
    const auto gpa = static_cast<u32>(at.gpa + word * 1000);
    const bool may_share = at.gpa >= kMayShare;
    if (may_share && random.one_in(8)) {
      const u32 number = static_cast<u32>(at.gpa / kPage);
      const long done = guest_call(at.shared ? kUnshare : kShare, number, 1);
      if (done == kRetry) return true;
      EXPECT_EQ(done, kSuccess);
      at.shared = !at.shared;
      at.words.fill(0);
      return true;
    }
    if (random.one_in(3)) {
      const auto fresh = static_cast<u32>(random.next());
      if (!try_order(kStore, gpa, fresh)) return false;
      at.words[word] = fresh;
      return true;
    }
    // What was altered before the guest begins to look at it must not be read.
    const u64 index = (at.gpa - kOwn) / kPage;
    const bool is_certain = index < kOwnPages && tampered_[index] == Tamper::kDone;
    if (!try_order(kLoad, gpa, 0)) return false;
    EXPECT_FALSE(is_certain) << "an older copy of " << std::hex << at.gpa << " was taken";
    EXPECT_EQ(said_, at.words[word]) << std::hex << gpa << " shared " << at.shared;
    ++loads_;
    return true;
  }
  bool try_order(u32 number, u32 ebx, u32 ecx) {
    const long done = give(number, ebx, ecx);
    if (done == 0) {
      std::memcpy(&said_, pio(), sizeof(said_));
      return true;
    }
    EXPECT_EQ(done, -EHWPOISON);
    EXPECT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_MEMORY_FAULT));
    const u64 index = (run_->memory_fault.gpa - kOwn) / kPage;
    EXPECT_TRUE(index < kOwnPages && tampered_[index] != Tamper::kNo)
        << std::hex << run_->memory_fault.gpa;
    ++refused_;
    return false;
  }
  // A word in plugged memory, which may not be there.
  void touch_plugged(RandomSource& random) {
    const u32 gpa = static_cast<u32>(kPlugged + random.small(4) * kPage + 16);
    ASSERT_EQ(give(kLoad, gpa, 0), 0);
    if (run_->exit_reason == KVM_EXIT_MMIO) {
      std::memset(run_->mmio.data, 0, sizeof(run_->mmio.data));
      static_cast<void>(give(0, 0, 0));  // the load ends, and says zero
    }
  }

  void vmm(RandomSource& random) {
    Bytes copy(kPage);
    const std::shared_lock alive(life_);
    switch (random.small(5)) {
      case 0:
      case 1:
        copy = seen(kOwn + random.small(kOwnPages + kMayPages) * kPage);
        break;
      case 2:
        plug(random);
        break;
      case 3: {
        u64 bits = 0;
        kvm_dirty_log log{};
        log.dirty_bitmap = &bits;
        EXPECT_EQ(call(vm_, KVM_GET_DIRTY_LOG, &log), 0);
        break;
      }
      default:
        if (random.one_in(4)) tamper(random);
        break;
    }
  }
  void plug(RandomSource& random) {
    if (!is_plugged_ && random.one_in(2)) std::memset(more_, 0x5a, kPage);
    if (set_slot(1, kPlugged, is_plugged_ ? 0 : kPlugBytes, more_) == 0) {
      is_plugged_ = !is_plugged_;
    }
  }
  void tamper(RandomSource& random) {
    const u64 index = random.small(kOwnPages);
    u8* const at = page(kOwn + index * kPage);
    const Bytes old = seen(kOwn + index * kPage);
    ::usleep(static_cast<unsigned>(random.small(2000)));
    if (seen(kOwn + index * kPage) == old) return;
    tampered_[index] = Tamper::kPerhaps;
    std::memcpy(at, old.data(), kPage);
    tampered_[index] = Tamper::kDone;
  }

  static constexpr long kRetry = -5;
  enum class Tamper : u8 { kNo, kPerhaps, kDone };
  std::array<Page, kOwnPages + kMayPages> pages_{};
  std::array<std::atomic<Tamper>, kOwnPages> tampered_{};
  std::shared_mutex life_;  // alone: a reset
  u8* more_ = nullptr;
  bool is_plugged_ = false;
  u32 said_ = 0;
  u64 loads_ = 0, lives_ = 0, refused_ = 0;
};

TEST_F(SecureVmStress, AGuestThatRunsReadsWhatItWroteOrNothing) {
  RandomSource random(stagetwo::test::announced_seed("secure_vm_stress"));
  ASSERT_NO_FATAL_FAILURE(begin());
  std::atomic<bool> over{false};
  std::thread beside([&, seed = random.next()] {
    RandomSource own(seed);
    while (!over) {
      vmm(own);
      ::usleep(static_cast<unsigned>(own.small(100)));
    }
  });
  for (const stagetwo::test::Deadline deadline; deadline.running() && !HasFailure();) {
    const bool lives = step(random);
    if (lives && random.one_in(20)) touch_plugged(random);
    if (lives && !random.one_in(3000)) continue;
    const std::unique_lock alone(life_);
    ASSERT_EQ(call(vm_, KVM_PPC_SVM_OFF), 0);
    ASSERT_NO_FATAL_FAILURE(begin());
  }
  over = true;
  beside.join();
  std::printf("%llu lives, %llu loads, %llu altered pages refused\n",
              static_cast<unsigned long long>(lives_), static_cast<unsigned long long>(loads_),
              static_cast<unsigned long long>(refused_));
  EXPECT_GT(loads_, 100u);
}

}  // namespace
}  // namespace kvm_client
