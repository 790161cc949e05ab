// SPDX-License-Identifier: Apache-2.0
#pragma once

// A thread that accesses guest memory the way a vCPU does: a cache of translations that lives from
// a fault to the next acknowledged flush, guarded accesses, a poll between blocks. What is left out
// is the processor. One that lets go accesses by restartable sections and holds only while it
// fills.

#include <atomic>

#include "host/access.h"
#include "stage2/address_space.h"
#include "sync/restartable.h"
#include "tests/support/random_source.h"

namespace stagetwo::test {

class ToyVcpu {
 public:
  static constexpr unsigned kPages = 16;

  enum class Way { kHolds, kLetsGo };
  ToyVcpu(stage2::GuestMemory& memory, u64 gpa, u64 seed, int block_length = 8,
          Way way = Way::kHolds)
      : memory_(memory),
        context_(std::move(*memory.new_context())),
        gpa_(gpa),
        random_(seed),
        block_length_(block_length),
        way_(way) {
    memory_.lines().add(line_);
  }
  ~ToyVcpu() { memory_.lines().remove(line_); }

  // Hammers until `stop`.
  void run(const std::atomic<bool>& stop) {
    u64* const section = way_ == Way::kLetsGo ? sync::restartable_section() : nullptr;
    while (!stop.load(std::memory_order_relaxed)) {
      if (section != nullptr) {
        block_letting_go(section);
      } else {
        block();
      }
    }
    if (section != nullptr) sync::forget_restartable_section(section);
    forget();
  }
  // The same stores; between two of them nothing is held.
  void block_letting_go(u64* section) {
    enter();
    line_.let_go();
    for (int i = 0; i < block_length_; ++i) {
      const unsigned page = random_.small(kPages);
      if (line_.pending() || cached_[page] == 0) {
        if (line_.hold()) forget();
        const bool there = cached_[page] != 0 || fault(page);
        line_.let_go();
        if (!there) continue;
      }
      const u64 aborted = line_.aborted();
      if (add_one(Hva(cached_[page] + 8 * random_.small(512)), line_.restart(section))) {
        ++stores;
      } else if (line_.aborted() == aborted && !line_.pending()) {
        ++faulted;
        cached_[page] = 0;
      }
    }
    if (line_.hold()) forget();
    leave();
  }
  // Some stores, then a poll.
  void block() {
    enter();
    for (int i = 0; i < block_length_; ++i) {
      const unsigned page = random_.small(kPages);
      if (cached_[page] == 0 && !fault(page)) continue;
      u64 old = 0;
      if (host::fetch_add(Hva(cached_[page] + 8 * random_.small(512)), u64{1}, &old)) {
        ++stores;
      } else {
        ++faulted;  // would be a SIGSEGV
        cached_[page] = 0;
      }
    }
    if (line_.poll()) forget();
    leave();
  }

  std::atomic<u64> stores{0};
  std::atomic<u64> faulted{0};
  std::atomic<u64> mmio{0};
  std::atomic<u64> to_user{0};

 private:
  static bool add_one(Hva at, const arch::Restart& how) {
    u64 old = 0;
    bool swapped = false;
    if (!host::load(at, &old, how)) return false;
    while (host::cmpxchg(at, &old, old + 1, &swapped, how)) {
      if (swapped) return true;
    }
    return false;
  }
  void enter() {
    if (line_.enter()) forget();
  }
  void leave() { line_.leave(); }
  void forget() {
    memory_.flushed(*context_);
    for (u64& page : cached_) page = 0;
  }
  // RUNNING on entry and on return. False: no memory there now.
  bool fault(unsigned page) {
    stage2::Fault f{};
    f.gpa = Gpa(gpa_ + page * kPageSize);
    f.access = Access::kWrite;
    if (memory_.translate(*context_, f) != stage2::Walk::Kind::kHit) {
      leave();
      const stage2::FaultOutcome outcome = memory_.handle_fault(*context_, f);
      enter();
      if (outcome == stage2::FaultOutcome::kMmio) ++mmio;
      if (outcome == stage2::FaultOutcome::kToUser) ++to_user;
      if (memory_.translate(*context_, f) != stage2::Walk::Kind::kHit) return false;
    }
    cached_[page] = f.page.raw();
    return true;
  }

  stage2::GuestMemory& memory_;
  Box<stage2::MmuContext> context_;
  u64 gpa_;
  RandomSource random_;
  int block_length_;
  Way way_;
  sync::AckLine line_;
  u64 cached_[kPages] = {};
};

}  // namespace stagetwo::test
