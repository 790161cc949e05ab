// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pages of a secure guest in this process's own memory, which leave several at once for a guest
// that wants them in order (uv/process_pages.cc): those nobody has asked for yet are absent with
// their own bytes due. The halves, the records and the pages are the real ones. A touch of the
// process is what the resolver does for one, bring_back(): a real one would keep the only thread
// that runs waiting.

#include <sys/mman.h>

#include <cstring>
#include <memory>

#include "host/backstop.h"
#include "host/page_owner.h"
#include "host/userfault.h"
#include "tests/sched/sched_support.h"
#include "tests/support/pages.h"
#include "uv/hypervisor.h"
#include "uv/process_pages.h"
#include "uv/ultravisor.h"

namespace stagetwo::test {

namespace sched = sync::sched;

class UvProcessWorld {
 public:
  explicit UvProcessWorld(u64 bytes_of_page = kPageSize)
      : page_bytes(bytes_of_page), pages(bytes_of_page) {
    memory = static_cast<u8*>(::mmap(nullptr, kPages * page_bytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (u64 page = 0; page < kPages; ++page) std::memset(at(page), text(page), page_bytes);
    uv::UltravisorOptions options;
    options.page_bytes = page_bytes;
    options.pool_pages = kPages + 2;
    options.cipher_runs = 4;
    options.memory = mem::SecureMemory::Want::kWhatThereIs;
    sched::expect(ultravisor.open(options, &hypervisor, &real).has_value(), "there is memory");
    guest = std::make_unique<uv::SecureGuest>(kLpid, page_bytes, &pages, &ultravisor);
    pages.set_guest(guest.get());
    guest->enable();
    const HvaRange range(hva(0), kPages * page_bytes);
    sched::expect(hypervisor.add(guest.get()) && pages.map(Gpa(0), range) &&
                      guest->add_slot(0, Gpa(0), kPages * page_bytes),
                  "plugged");
    sched::expect(ultravisor.call({uv::Call::kUvEsm, kLpid, {1, 1}}, uv::Caller::kGuest) ==
                      uv::Status::kSuccess,
                  "the guest becomes secure");
    // All of it lies sealed in the process, and nobody has wanted two pages in order.
    for (u64 i = 0; i < kPages; ++i) {
      const u64 page = (i + kPages / 2) % kPages;
      sched::expect(host::bring_back(hva(page)) == host::BringBack::kBack, "a touch is served");
    }
    for (u64 page = 0; page < kPages; ++page) std::memcpy(sealed[page], at(page), kPageSize);
  }
  virtual ~UvProcessWorld() {
    static_cast<void>(guest->svm_off());
    pages.forget(Gpa(0));
    hypervisor.remove(guest.get());
    ::munmap(memory, kPages * page_bytes);
  }

  // Whoever is done last looks at what is left. Not of the model: one thread runs at a time.
  template <typename Scenario>
  static void act(Scenario* scenario, unsigned me) {
    scenario->play(me);
    if (++scenario->done_ == Scenario::kThreads) scenario->check();
  }
  void check() {
    for (u64 page = 0; page < kPages; ++page) reads(page);
    sched::expect(ultravisor.use(kLpid).tampered == 0, "nobody tampered");
    for (u64 page = 0; page < kPages; ++page) touch(page);
    sched::expect(guest->svm_off().has_value(), "no vCPU runs");
    sched::expect(pages.frames_in_use() == 0, "no frame is forgotten");
    for (u64 page = 0; page < kPages; ++page) touch_all(page);
    expect_zeros();
  }

 protected:
  static constexpr u64 kPages = 6;
  static constexpr u32 kLpid = 3;

  [[nodiscard]] u8* at(u64 page) const { return memory + page * page_bytes; }
  [[nodiscard]] Hva hva(u64 page) const { return Hva(reinterpret_cast<std::uintptr_t>(at(page))); }
  static u8 text(u64 page) { return static_cast<u8>(0x51 + page); }
  void touch(u64 page, u64 piece = 0) const {
    const Hva at = hva(page) + piece * kPageSize;
    while (host::bring_back(at) == host::BringBack::kRetry) sync::yield_thread();
  }
  void touch_all(u64 page) const {
    for (u64 piece = 0; piece < page_bytes / kPageSize; ++piece) touch(page, piece);
  }
  void expect_zeros() const {
    const bool zeros =
        memory[0] == 0 && std::memcmp(memory, memory + 1, kPages * page_bytes - 1) == 0;
    sched::expect(zeros, "wiped");
  }
  // The guest's pages from `first` on, in order: the later ones leave ahead of being asked for.
  void wants(u64 first, u64 end, bool at_once = false) {
    for (u64 page = first; page < end; ++page) {
      auto done = uv::Status::kBusy;
      while (uv::is_transient(done)) {
        done = ultravisor.ask_page_in(kLpid, Gpa(page * page_bytes));
        sched::expect(!at_once || !uv::is_transient(done), "nobody is told to come again");
        if (uv::is_transient(done)) sync::yield_thread();
      }
      sched::expect(done == uv::Status::kSuccess, "a page that is wanted comes");
    }
  }
  void reads(u64 page) {
    u8 bytes[kPageSize];
    auto done = uv::GuestAccess::kRetry;
    while (done == uv::GuestAccess::kRetry) {
      done = ultravisor.access(kLpid, Gpa(page * page_bytes), bytes, sizeof(bytes), false);
    }
    sched::expect(done == uv::GuestAccess::kDone, "the guest has its page");
    for (const u8 byte : bytes) sched::expect(byte == text(page), "the guest reads what it wrote");
  }

  const u64 page_bytes;
  u8* memory = nullptr;
  u8 sealed[kPages][kPageSize] = {};
  uv::ProcessMemory real;
  std::unique_ptr<uv::SecureGuest> guest;  // outlives the pages, which hear the bell
  uv::ProcessPages pages;
  uv::Hypervisor hypervisor;
  uv::Ultravisor ultravisor;
  unsigned done_ = 0;
};

// The process touches a page that left with its neighbour, while the guest asks for it. Who has it
// in hand puts it, and is waited for: UV_ESM, told to come again, once gave up.
struct TouchOfThePageAhead : UvProcessWorld {
  static constexpr unsigned kThreads = 2;
  TouchOfThePageAhead() { wants(0, kAhead); }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) { me == 0 ? wants(kAhead, kAhead + 1, true) : touch(kAhead); }
  static constexpr u64 kAhead = 2;
};

// The same with all of them, in both orders.
struct TouchAgainstPagesAhead : UvProcessWorld {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      wants(0, kPages, true);
    } else {
      for (u64 page = kPages; page-- > 1;) touch(page);
    }
  }
};

// vCPUs want the same pages in order: a page one asks for is on its way with another's, and may
// leave to the place that was made for it by the hand of the other.
struct ThreeWantPagesInOrder : UvProcessWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) { wants(me, kPages - 2 + me); }
};

// Keeps one page, as a swap store does.
class KeepsOnePage final : public host::PageOwner {
 public:
  bool take(const host::AbsentPage&, host::PageExit& exit) override {
    return exit.to(Hva(place_.address()));
  }
  host::BringBack bring_back(const host::AbsentPage&, host::PageEntry& entry) override {
    return entry.from_bytes(place_.bytes_at(0)) ? host::BringBack::kBack : host::BringBack::kRetry;
  }
  void discard(const host::AbsentPage&) override {}

 private:
  GuardedPages place_{1};
};

// A run whose first page does not leave, because it is swapped, begins at one for which somebody
// else has a place ready. (The place was given back while the page was on its way there, became
// another page's, and the guest ended for bytes that were not its own.)
struct RunTakesForAnother : UvProcessWorld {
  static constexpr unsigned kThreads = 2;
  RunTakesForAnother() {
    const auto kept =
        host::take_away(HvaRange(hva(0), kPageSize), &keeper, nullptr, host::Which::kAnonymous);
    sched::expect(kept && *kept == 1, "the first page is swapped");
    for (const u64 page : {u64{4}, u64{5}}) takes(page);
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) { takes(me); }
  void check() {
    for (const u64 page : {u64{0}, u64{1}, u64{4}, u64{5}}) {
      const auto* const bytes = reinterpret_cast<const u8*>(frames[page]);
      sched::expect(std::memcmp(bytes, sealed[page], kPageSize) == 0, "a frame is one page's");
      sched::expect(pages.put_back(Gpa(page * page_bytes), frames[page]), "put back");
    }
    pages.leave_none_ahead();
    UvProcessWorld::check();
  }
  void takes(u64 page) {
    auto done = uv::Taken::kBusy;
    while (done == uv::Taken::kBusy) {
      done = pages.take(Gpa(page * page_bytes), page == 0 ? 4 : 1, &frames[page]);
    }
    sched::expect(done == uv::Taken::kFrame, "it leaves");
  }
  KeepsOnePage keeper;
  u64 frames[kPages] = {};
};

// What left ahead is the ultravisor's to put something else at: it wants it out again at once.
struct PageOutAgainstPagesAhead : UvProcessWorld {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      wants(0, kPages);
    } else {
      for (u64 page = 1; page < kPages; ++page) {
        static_cast<void>(ultravisor.ask_page_out(kLpid, Gpa(page * page_bytes)));
      }
    }
  }
};

// A page of sixteen of the process's, whose pieces are touched while it is wanted in and out.
struct TouchesOfPieces : UvProcessWorld {
  static constexpr unsigned kThreads = 4;
  TouchesOfPieces() : UvProcessWorld(16 * kPageSize) {}
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) wants(0, 2);
    if (me == 1) static_cast<void>(ultravisor.ask_page_out(kLpid, Gpa(0)));
    if (me >= 2) {
      for (const u64 piece : {u64{3}, u64{15}, u64{0}}) touch(0, (piece + me) % 16);
    }
  }
};

// A reset while pages are ahead: their bytes are put back, and then wiped.
struct ResetAgainstPagesAhead : UvProcessWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      for (u64 page = 0; page < kPages; ++page) {
        static_cast<void>(ultravisor.ask_page_in(kLpid, Gpa(page * page_bytes)));
      }
    } else if (me == 1) {
      sched::expect(guest->svm_off().has_value(), "no vCPU runs");
    } else {
      touch(3);
      touch(2);
    }
  }
  void check() {
    for (u64 page = 0; page < kPages; ++page) touch_all(page);
    expect_zeros();
    sched::expect(pages.frames_in_use() == 0, "no frame is forgotten");
  }
};

// A7-7: the process stores into a page that is becoming the guest's (a page merged with another's
// by KSM changed under the ultravisor). It leaves the process before it is read: what was stored
// before is the guest's, and what is stored later is stored into sealed bytes, and found.
struct StoresAgainstEsm : UvProcessWorld {
  static constexpr unsigned kThreads = 2;
  StoresAgainstEsm() {
    sched::expect(guest->svm_off().has_value(), "no vCPU runs");
    for (u64 page = 0; page < kPages; ++page) touch(page);
    ::madvise(memory, kPages * page_bytes, MADV_MERGEABLE);  // all are alike: zeros
  }
  void thread(unsigned me) { act(this, me); }
  void play(unsigned me) {
    if (me == 0) {
      const auto done = ultravisor.call({uv::Call::kUvEsm, kLpid, {1, 1}}, uv::Caller::kGuest);
      sched::expect(done == uv::Status::kSuccess || ends(), "the guest becomes secure");
      is_over = true;
    } else {
      while (!is_over) {
        sched::point();
        // Nobody else runs between the look and the store.
        if (is_there(0)) at(0)[kPageSize / 2] = ++last;
      }
    }
  }
  void check() {
    u8 byte = 0;
    const Gpa middle(kPageSize / 2);
    auto done = uv::GuestAccess::kRetry;
    while (done == uv::GuestAccess::kRetry) {
      done = ultravisor.access(kLpid, middle, &byte, 1, false);
    }
    sched::expect(done == uv::GuestAccess::kDone ? byte == last : ends(), "no store is lost");
  }
  [[nodiscard]] bool is_there(u64 page) const {
    u8 resident = 0;
    return ::mincore(at(page), kPageSize, &resident) == 0 && (resident & 1) != 0;
  }
  [[nodiscard]] bool ends() { return ultravisor.use(kLpid).tampered != 0; }
  u8 last = 0;
  bool is_over = false;
};

}  // namespace stagetwo::test
