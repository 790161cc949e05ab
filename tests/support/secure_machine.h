// SPDX-License-Identifier: Apache-2.0
#pragma once

// A hypervisor's process, its guests and the ultravisor, in plain memory: pages that are there, are
// absent (a stand-in) or are no memory at all, and a VMM that touches them. Every address a message
// names is looked up: one of a page that the process gave up is a stale use, and is counted.

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "sync/futex.h"
#include "uv/hypervisor.h"
#include "uv/ultravisor.h"

namespace stagetwo::test {

using Bytes = std::vector<u8>;

// All memory the machine has, by address: pages of guests, and frames.
class PlainMemory final : public uv::RealMemory {
 public:
  explicit PlainMemory(u64 page_bytes) : page_bytes_(page_bytes) {}

  u64 make() {
    const std::lock_guard guard(lock_);
    auto page = std::make_unique<u64[]>(page_bytes_ / 8);
    const u64 address = reinterpret_cast<std::uintptr_t>(page.get());
    live_.emplace(address, std::move(page));
    return address;
  }
  // Its address is nobody's for long: it is kept, so that a stale use is one.
  void end(u64 address) {
    const std::lock_guard guard(lock_);
    const auto found = live_.find(address);
    std::memset(found->second.get(), 0, page_bytes_);
    dead_.push_back(std::move(found->second));
    if (dead_.size() > kRemembered) dead_.pop_front();
    live_.erase(found);
  }
  bool read(u64 address, void* to, u64 bytes) override { return copy(address, to, nullptr, bytes); }
  bool write(u64 address, const void* from, u64 bytes) override {
    return copy(address, nullptr, from, bytes);
  }
  [[nodiscard]] size_t live() {
    const std::lock_guard guard(lock_);
    return live_.size();
  }
  [[nodiscard]] u64 stale() {
    const std::lock_guard guard(lock_);
    return stale_;
  }
  [[nodiscard]] u64 page_bytes() const { return page_bytes_; }

 private:
  static constexpr size_t kRemembered = 4096;
  bool copy(u64 address, void* to, const void* from, u64 bytes) {
    const std::lock_guard guard(lock_);
    auto found = live_.upper_bound(address);
    if (found == live_.begin() || address + bytes > (--found)->first + page_bytes_) {
      ++stale_;
      return false;
    }
    auto* const at = reinterpret_cast<u8*>(found->second.get()) + (address - found->first);
    if (to != nullptr) std::memcpy(to, at, bytes);
    if (from != nullptr) std::memcpy(at, from, bytes);
    return true;
  }

  const u64 page_bytes_;
  std::mutex lock_;
  std::map<u64, std::unique_ptr<u64[]>> live_;
  std::deque<std::unique_ptr<u64[]>> dead_;
  u64 stale_ = 0;
};

// The process's view of one guest's memory.
class PlainNormalMemory final : public uv::NormalMemory {
 public:
  explicit PlainNormalMemory(PlainMemory* memory) : memory_(*memory) {}
  ~PlainNormalMemory() {
    for (const auto& [page, what] : pages_) {
      if (what.address != 0) memory_.end(what.address);
    }
  }

  // Called before a page is taken, with no lock: what a fork does meanwhile, say.
  std::function<void(Gpa)> before_take;

  uv::Taken take(Gpa page, u64 /*alike*/, u64* frame) override {
    if (before_take) before_take(page);
    const std::lock_guard guard(lock_);
    Page& what = pages_[page.raw()];
    if (what.hole) return uv::Taken::kHole;
    if (what.pinned) return uv::Taken::kBusy;
    what.absent = true;
    if (what.address == 0) return uv::Taken::kUntouched;
    *frame = what.address;
    what.address = 0;
    return uv::Taken::kFrame;
  }
  // Pages that were never touched go together, if the test says so: nobody sees each of them leave.
  bool takes_runs = false;
  bool take_untouched(Gpa first, u64 pages) override {
    const std::lock_guard guard(lock_);
    for (u64 i = 0; i < pages; ++i) {
      const Page& what = pages_[first.raw() + i * memory_.page_bytes()];
      const bool is_nothing = what.address == 0 && !what.absent && !what.hole && !what.pinned;
      if (!takes_runs || !is_nothing) return false;
    }
    for (u64 i = 0; i < pages; ++i) pages_[first.raw() + i * memory_.page_bytes()].absent = true;
    return true;
  }
  u64 new_frame() override {
    if (failing_frames_ > 0 && --failing_frames_ == 0) return 0;
    return memory_.make();
  }
  bool put_back(Gpa page, u64 frame) override {
    const std::lock_guard guard(lock_);
    Page& what = pages_[page.raw()];
    if (what.hole) return false;
    set(what, frame);
    return true;
  }
  bool has_places(Gpa first, u64 bytes) override {
    const std::lock_guard guard(lock_);
    for (u64 at = 0; at < bytes; at += memory_.page_bytes()) {
      if (pages_[first.raw() + at].hole) return false;
    }
    return true;
  }
  void drop_frame(u64 frame) override {
    if (frame != 0) memory_.end(frame);
  }
  // Called before a page's contents are thrown away, with no lock.
  std::function<void(Gpa)> before_discard;
  void discard(Gpa page) override {
    if (before_discard) before_discard(page);
    const std::lock_guard guard(lock_);
    Page& what = pages_[page.raw()];
    set(what, 0);
  }
  void moved(Gpa from, Gpa to, u64 bytes) override {
    const std::lock_guard guard(lock_);
    std::map<u64, Page> elsewhere;
    for (u64 at = 0; at < bytes; at += memory_.page_bytes()) {
      const auto found = pages_.find(from.raw() + at);
      if (found == pages_.end()) continue;
      elsewhere[to.raw() + at] = found->second;
      pages_.erase(found);
    }
    for (const auto& [page, what] : elsewhere) pages_[page] = what;
  }
  u64 address_of(Gpa page) override {
    const std::lock_guard guard(lock_);
    Page& what = pages_[page.raw()];
    if (what.hole) return 0;
    if (what.address == 0) set(what, memory_.make());
    return what.address;
  }

  // ---- the VMM ---------------------------------------------------------------------------------
  // Its own load or store. False: a bus error.
  bool touch(uv::SecureGuest* guest, Gpa at, void* to, const void* from, u64 bytes) {
    const u64 size = memory_.page_bytes();
    const Gpa page(at.raw() & ~(size - 1));
    for (;;) {
      {
        const std::lock_guard guard(lock_);
        Page& what = pages_[page.raw()];
        if (what.hole) return false;
        if (!what.absent) {
          if (what.address == 0) set(what, memory_.make());
          const u64 address = what.address + (at - page);
          return to != nullptr ? memory_.read(address, to, bytes)
                               : memory_.write(address, from, bytes);
        }
      }
      u64 frame = 0;
      switch (guest->touch_begin(page, &frame)) {
        case uv::SecureGuest::Touch::kAgain:
        case uv::SecureGuest::Touch::kNoStandIn:
          sync::yield_thread();
          continue;
        case uv::SecureGuest::Touch::kRefused:
          return false;
        case uv::SecureGuest::Touch::kFrame: {
          bool put = false;
          {
            const std::lock_guard guard(lock_);
            Page& what = pages_[page.raw()];
            put = !what.hole;
            if (put) set(what, frame);
          }
          guest->touch_end(page, frame, put);
        }
      }
    }
  }
  // munmap, and a fresh mapping in its place unless it is to stay a hole.
  void unmap(uv::SecureGuest* guest, Gpa page, bool stays_hole) {
    guest->unmap_begin(page, memory_.page_bytes());
    {
      const std::lock_guard guard(lock_);
      Page& what = pages_[page.raw()];
      set(what, 0);
      what.hole = stays_hole;
    }
    guest->unmap_end();
  }
  void set_hole(Gpa page, bool hole) { pages_[page.raw()].hole = hole; }
  void pin(Gpa page, bool pinned) {
    const std::lock_guard guard(lock_);
    pages_[page.raw()].pinned = pinned;
  }
  void fail_frame(unsigned nth) { failing_frames_ = nth; }
  [[nodiscard]] bool is_absent(Gpa page) {
    const std::lock_guard guard(lock_);
    return pages_[page.raw()].absent;
  }

 private:
  struct Page {
    u64 address = 0;  // 0: never touched
    bool absent = false;
    bool hole = false;
    bool pinned = false;
  };
  void set(Page& what, u64 address) {
    if (what.address != 0) memory_.end(what.address);
    what.address = address;
    what.absent = false;
  }

  PlainMemory& memory_;
  std::mutex lock_;
  std::map<u64, Page> pages_;
  unsigned failing_frames_ = 0;
};

// A wire between the halves: counts, and refuses what a test tells it to. Messages go as bytes.
class Wire final : public uv::Port {
 public:
  uv::Port* to = nullptr;

  uv::Status call(const uv::Message& message, uv::Caller caller) override {
    Bytes bytes(sizeof(message));
    std::memcpy(bytes.data(), &message, sizeof(message));
    uv::Message arrived;
    std::memcpy(&arrived, bytes.data(), sizeof(arrived));
    {
      const std::lock_guard guard(lock_);
      ++counts_[arrived.call];
      if (agrees_) return uv::Status::kSuccess;
      if (arrived.call == refused_ && --left_ == 0) return refusal_;
    }
    if (watch_) watch_();
    if (arrived.call == awaited_) std::exchange(before_, [] {})();
    const uv::Status answer = to->call(arrived, caller);
    if (arrived.call == answered_) std::exchange(after_, [] {})();
    return answer;
  }
  // Done with every message. Pre: no message is under way.
  void watch(std::function<void()> what) { watch_ = std::move(what); }
  // Done when the first message of this call has been answered, and nobody has read it yet. Pre: no
  // message is under way.
  void after(uv::Call call, std::function<void()> what) {
    answered_ = call;
    after_ = std::move(what);
  }
  // Done when the first message of this call is under way. Pre: no message is.
  void before(uv::Call call, std::function<void()> what) {
    awaited_ = call;
    before_ = std::move(what);
  }
  // The nth message of this call from now on is answered so, and does not arrive.
  void refuse(uv::Call call, unsigned nth, uv::Status status) {
    const std::lock_guard guard(lock_);
    refused_ = call;
    left_ = nth;
    refusal_ = status;
  }
  // Every message is answered with success and does not arrive: the other half agrees to all.
  void agree(bool on) {
    const std::lock_guard guard(lock_);
    agrees_ = on;
  }
  [[nodiscard]] u64 count(uv::Call call) {
    const std::lock_guard guard(lock_);
    return counts_[call];
  }

 private:
  std::mutex lock_;
  std::map<uv::Call, u64> counts_;
  uv::Call awaited_{}, answered_{};
  std::function<void()> before_, after_, watch_;
  uv::Call refused_{};
  unsigned left_ = 0;
  bool agrees_ = false;
  uv::Status refusal_{};
};

struct SecureMachine {
  static constexpr u32 kLpid = 7;

  explicit SecureMachine(u64 page = 4096, u32 pool_pages = 64, bool evicts = true,
                         u32 cipher_runs = 8, u64 esm_pages = ~u64{0})
      : page_bytes(page), memory(page), normal(&memory), guest(kLpid, page, &normal, &to_uv) {
    to_uv.to = &ultravisor;
    to_hv.to = &hypervisor;
    uv::UltravisorOptions options;
    options.page_bytes = page;
    options.pool_pages = pool_pages;
    options.memory = mem::SecureMemory::Want::kWhatThereIs;
    options.evicts = evicts;
    options.cipher_runs = cipher_runs;
    options.esm_pages = esm_pages;
    opened =
        ultravisor.open(options, &to_hv, &memory).has_value() && hypervisor.add(&guest).has_value();
    guest.enable();
  }
  ~SecureMachine() {
    static_cast<void>(guest.svm_off());
    hypervisor.remove(&guest);
  }

  [[nodiscard]] Gpa gpa(u64 page) const { return Gpa(page * page_bytes); }
  // A guest with one slot of `pages` pages, whose contents are text(page).
  void plug(u32 id, u64 first, u64 pages) {
    static_cast<void>(guest.add_slot(id, gpa(first), pages * page_bytes).has_value());
  }
  [[nodiscard]] Bytes text(u64 page, u64 turn = 0) const {
    constexpr u64 kPeriod = 43;
    Bytes bytes(page_bytes);
    for (u64 i = 0; i < kPeriod; ++i) {
      const char letter = "a secret of the guest's own, page by page. "[(i + page) % kPeriod];
      bytes[i] = static_cast<u8>(static_cast<u64>(letter) + turn);
    }
    for (u64 i = kPeriod; i < page_bytes; i *= 2) {
      std::memcpy(&bytes[i], &bytes[0], std::min(i, page_bytes - i));
    }
    return bytes;
  }
  void vmm_fill(u64 first, u64 pages) {
    for (u64 page = first; page < first + pages; ++page) vmm_write(page, text(page));
  }

  bool vmm_write(u64 page, const Bytes& bytes) {
    return normal.touch(&guest, gpa(page), nullptr, bytes.data(), bytes.size());
  }
  // Empty: a bus error.
  Bytes vmm_read(u64 page) {
    Bytes bytes(page_bytes);
    return normal.touch(&guest, gpa(page), bytes.data(), nullptr, bytes.size()) ? bytes : Bytes();
  }
  uv::GuestAccess guest_write(u64 page, const Bytes& bytes) {
    Bytes copy = bytes;
    return ultravisor.access(kLpid, gpa(page), copy.data(), copy.size(), true);
  }
  uv::GuestAccess guest_read(u64 page, Bytes* bytes) {
    bytes->assign(page_bytes, 0xcc);
    return ultravisor.access(kLpid, gpa(page), bytes->data(), bytes->size(), false);
  }
  Bytes guest_bytes(u64 page) {
    Bytes bytes;
    return guest_read(page, &bytes) == uv::GuestAccess::kDone ? bytes : Bytes();
  }

  // The guest's call, the hypervisor's, the ultravisor's: what the wire says of the caller.
  uv::Status guest_call(uv::Call call, u64 a = 0, u64 b = 0,
                        uv::Caller who = uv::Caller::kSecureGuest) {
    return ultravisor.call({call, kLpid, {a, b}}, who);
  }
  uv::Status esm() { return guest_call(uv::Call::kUvEsm, 1, 1, uv::Caller::kGuest); }
  uv::Status h_svm(uv::Call call, u64 a = 0, u64 b = 0, u64 c = 0,
                   uv::Caller who = uv::Caller::kUltravisor) {
    return hypervisor.call({call, kLpid, {a, b, c}}, who);
  }
  uv::Status h_page_in(u64 page, u64 flags = 0) {
    return h_svm(uv::Call::kHSvmPageIn, page * page_bytes, flags, uv::order_of(page_bytes));
  }
  uv::Status h_page_out(u64 page) {
    return h_svm(uv::Call::kHSvmPageOut, page * page_bytes, 0, uv::order_of(page_bytes));
  }
  uv::Status uv_call(uv::Call call, u64 a = 0, u64 b = 0, u64 c = 0, u64 d = 0,
                     uv::Caller who = uv::Caller::kHypervisor) {
    return ultravisor.call({call, kLpid, {kLpid, a, b, c, d}}, who);
  }
  uv::PageState hv_page(u64 page) { return guest.page(gpa(page)); }
  uv::PageState uv_page(u64 page) { return ultravisor.page(kLpid, gpa(page)); }

  u64 page_bytes;
  PlainMemory memory;
  PlainNormalMemory normal;
  Wire to_uv, to_hv;
  uv::Hypervisor hypervisor;
  uv::Ultravisor ultravisor;
  uv::SecureGuest guest;
  bool opened = false;
};

}  // namespace stagetwo::test
