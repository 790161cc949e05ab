// SPDX-License-Identifier: Apache-2.0
// Goal: a secure guest's memory listens to the bell as every subscriber does (R1 to R13): what
// stands for a translation is the frame of a shared page, by which both sides use it.
#include "tests/support/notifier_contract.h"

#include <sys/mman.h>

#include <functional>

#include "host/backstop.h"
#include "uv/hypervisor.h"
#include "uv/process_pages.h"
#include "uv/ultravisor.h"

namespace stagetwo::uv {
namespace {

// What happens on the way between the halves, and while a frame is in use.
class Wire final : public Port {
 public:
  Status call(const Message& message, Caller caller) override {
    ++calls;
    if (message.call == Call::kUvPageIn && before_page_in) before_page_in();
    return to->call(message, caller);
  }
  Port* to = nullptr;
  std::function<void()> before_page_in;
  std::atomic<u64> calls{0};
};
class SlowMemory final : public RealMemory {
 public:
  bool read(u64 address, void* to, u64 bytes) override {
    if (during) during();
    return memory_.read(address, to, bytes);
  }
  bool write(u64 address, const void* from, u64 bytes) override {
    return memory_.write(address, from, bytes);
  }
  std::function<void()> during;

 private:
  ProcessMemory memory_;
};

struct SharedPageOfAGuest {
  SharedPageOfAGuest() {
    EXPECT_TRUE(host::backstop::install().has_value());
    page_ = map();
    other_ = map();
    to_uv_.to = &ultravisor_;
    to_hv_.to = &hypervisor_;
    UltravisorOptions options;
    options.pool_pages = 2;
    options.memory = mem::SecureMemory::Want::kWhatThereIs;
    EXPECT_TRUE(ultravisor_.open(options, &to_hv_, &memory_).has_value());
    pages_.set_guest(&guest_);
    guest_.enable();
    EXPECT_TRUE(hypervisor_.add(&guest_).has_value());
    EXPECT_TRUE(pages_.map(Gpa(0), mine()).has_value());
    EXPECT_TRUE(guest_.add_slot(0, Gpa(0), kPageSize).has_value());
    // Nothing is taken from the process, whatever changes around it: its one page is shared as it
    // is.
    EXPECT_EQ(ultravisor_.esm_begin(kLpid), Status::kSuccess);
    EXPECT_EQ(ultravisor_.ask_share(kLpid, Gpa(0)), Status::kSuccess);
    EXPECT_EQ(ultravisor_.esm_finish(kLpid), Status::kSuccess);
  }
  ~SharedPageOfAGuest() {
    EXPECT_TRUE(guest_.svm_off().has_value());
    hypervisor_.remove(&guest_);
  }
  SharedPageOfAGuest(const SharedPageOfAGuest&) = delete;
  SharedPageOfAGuest& operator=(const SharedPageOfAGuest&) = delete;

  HvaRange mine() { return {hva(page_), kPageSize}; }
  HvaRange foreign() { return {hva(other_), kPageSize}; }
  bool may_use(Hva) {
    for (;;) {
      const GuestAccess done = access();
      if (done != GuestAccess::kRetry) return done == GuestAccess::kDone;
    }
  }
  bool may_use_now(Hva) { return access() == GuestAccess::kDone; }
  // The hypervisor looks the frame up and names it: that is the message.
  template <typename F>
  bool use_with(Hva, F between) {
    to_uv_.before_page_in = between;
    const Status done = hypervisor_.call({Call::kReflectedFault, kLpid, {0}}, Caller::kUltravisor);
    to_uv_.before_page_in = nullptr;
    return done == Status::kSuccess;
  }
  template <typename F>
  void hold(Hva at, F during) {
    EXPECT_TRUE(may_use(at));
    memory_.during = [&, once = true]() mutable {
      if (std::exchange(once, false)) during();
    };
    EXPECT_TRUE(may_use(at));
    memory_.during = nullptr;
  }
  bool still_holds(Hva) {
    const u64 before = to_hv_.calls;
    return access() == GuestAccess::kDone && to_hv_.calls == before;
  }
  const void* cookie() { return &pages_; }

 private:
  static constexpr u32 kLpid = 5;
  static void* map() {
    return ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  static Hva hva(const void* at) { return Hva(reinterpret_cast<std::uintptr_t>(at)); }
  GuestAccess access() {
    u8 byte = 0;
    return ultravisor_.access(kLpid, Gpa(0), &byte, 1, false);
  }

  void* page_ = nullptr;  // both stay mapped: what rings is the test
  void* other_ = nullptr;
  SlowMemory memory_;
  Wire to_uv_, to_hv_;
  Hypervisor hypervisor_;
  Ultravisor ultravisor_;
  SecureGuest guest_{kLpid, kPageSize, &pages_, &to_uv_};
  ProcessPages pages_;  // ends first: the bell may ring until then
};

}  // namespace
}  // namespace stagetwo::uv

namespace stagetwo::test {
// The ear of ProcessPages.
INSTANTIATE_TYPED_TEST_SUITE_P(SecurePages, NotifierContract, uv::SharedPageOfAGuest);
INSTANTIATE_TYPED_TEST_SUITE_P(SecurePages, NotifierContractOfTakers, uv::SharedPageOfAGuest);
}  // namespace stagetwo::test
