// SPDX-License-Identifier: Apache-2.0
// Random requests with random arguments on every kind of KVM descriptor, and random code in the
// guests: whatever comes, the engine answers, and everything is given back at the end.
//
// Random addresses are chosen so that an honest kernel could not harm the test either: host
// addresses of slots and pointers inside structs point into an arena or nowhere.
#include <pthread.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "abi/kvm/requests.h"
#include "base/alloc.h"
#include "tests/abi/kvm_client.h"
#include "tests/support/random_source.h"

namespace kvm_client {
namespace {

using stagetwo::abi_kvm::On;
using stagetwo::abi_kvm::Request;
using stagetwo::test::RandomSource;

constexpr size_t kArena = 64 * 4096;
constexpr size_t kBuffer = 16 * 4096;
constexpr size_t kMaxDescriptors = 12;

struct Open {
  int fd;
  std::optional<On> on;  // none: a guest_memfd
  kvm_run* run = nullptr;
};

class Fuzzer {
 public:
  explicit Fuzzer(u64 seed) : random_(seed) {
    arena_ = map(kArena);
    // The argument ends where memory ends, so that a struct can be cut off.
    buffer_ = map(kBuffer + 4096);
    EXPECT_EQ(::mprotect(buffer_ + kBuffer, 4096, PROT_NONE), 0);
    for (size_t i = 0; i < kArena; i += 8) put(arena_ + i, random_.next());
  }
  ~Fuzzer() {
    while (!open_.empty()) close_one(open_.size() - 1);
    ::munmap(arena_, kArena);
    ::munmap(buffer_, kBuffer + 4096);
  }

  void step() {
    if (open_.empty() || (open_.size() < kMaxDescriptors && random_.one_in(40))) {
      const int fd = open_kvm();
      if (fd >= 0) open_.push_back({fd, On::kDevice});
      return;
    }
    const size_t index = random_.below(open_.size());
    if (random_.one_in(200)) return close_one(index);
    request_on(open_[index]);
    drain();
  }
  [[nodiscard]] u64 done() const { return done_.load(); }

 private:
  static u8* map(size_t size) {
    void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(at, MAP_FAILED);
    return static_cast<u8*>(at);
  }
  static void put(u8* at, u64 value) { std::memcpy(at, &value, sizeof(value)); }

  void close_one(size_t index) {
    if (open_[index].run != nullptr) ::munmap(open_[index].run, 3 * 4096);
    close_fd(open_[index].fd);
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  u64 interesting() {
    static constexpr std::array<u64, 20> kValues = {0,
                                                    1,
                                                    2,
                                                    3,
                                                    8,
                                                    16,
                                                    63,
                                                    64,
                                                    255,
                                                    256,
                                                    4095,
                                                    4096,
                                                    0x1000,
                                                    0x8000,
                                                    0xfee00000,
                                                    0xfec00000,
                                                    0x7fffffff,
                                                    0xffffffff,
                                                    0x8000000000000000,
                                                    ~u64{0}};
    switch (random_.small(5)) {
      case 0:
        return random_.next();
      case 1:
        return random_.next() & 0xffff;
      case 2:
        return u64{1} << random_.small(64);
      case 3:
        return reinterpret_cast<u64>(arena_) + (random_.below(kArena) & ~u64{4095});
      default:
        return kValues[random_.below(kValues.size())];
    }
  }

  // Words that are small, special or arbitrary; small ones most often, or nothing gets far.
  void fill(u8* at, size_t size) {
    const bool sparse = random_.one_in(2);
    for (size_t i = 0; i + 4 <= size; i += 4) {
      u32 word = 0;
      if (!sparse || random_.one_in(8)) {
        word = static_cast<u32>(random_.one_in(3) ? interesting() : random_.below(64));
      }
      std::memcpy(at + i, &word, sizeof(word));
      if (i % 8 == 4 && random_.one_in(6)) put(at + i - 4, interesting());
    }
  }

  // Host addresses of slots: the arena or nothing that is mapped.
  void tame_region(u8* at) {
    kvm_userspace_memory_region region;
    std::memcpy(&region, at, sizeof(region));
    region.slot = random_.small(6);
    if (random_.one_in(4)) region.slot = static_cast<u32>(interesting());
    if (!random_.one_in(8)) region.guest_phys_addr = random_.below(64) * 4096;
    region.memory_size = random_.below(kArena / 4096) * 4096;
    if (random_.one_in(8)) region.memory_size = interesting();
    region.userspace_addr = reinterpret_cast<u64>(arena_);
    if (region.memory_size > kArena) region.userspace_addr = 0x10000;
    std::memcpy(at, &region, sizeof(region));
  }

  // Most often a file that is open, somewhere near its beginning.
  void tame_file(u8* at) {
    kvm_userspace_memory_region2 region;
    std::memcpy(&region, at, sizeof(region));
    if (random_.one_in(2)) region.flags |= KVM_MEM_GUEST_MEMFD;
    region.guest_memfd_offset = random_.below(8) * 4096;
    const Open& any = open_[random_.below(open_.size())];
    if (!random_.one_in(8)) region.guest_memfd = static_cast<u32>(any.fd);
    std::memcpy(at, &region, sizeof(region));
  }

  u64 argument(const Request& request) {
    switch (random_.small(12)) {
      case 0:
        return 0;
      case 1:
        return kBadPointer;
      case 2:
        return ~u64{0} - random_.below(4096);
      case 3:
        return random_.below(8);
      default:
        break;
    }
    const size_t size = _IOC_SIZE(request.number);
    size_t room = std::min(kBuffer, size + random_.below(4) * 4096 + 64);
    if (random_.one_in(16)) room = std::min(kBuffer, std::max<size_t>(size, 8) - 4);
    u8* const at = buffer_ + kBuffer - room;
    fill(at, std::min<size_t>(room, 4096));
    if (request.number == KVM_SET_USER_MEMORY_REGION ||
        request.number == KVM_SET_USER_MEMORY_REGION2) {
      room = std::max(room, sizeof(kvm_userspace_memory_region));
      tame_region(buffer_ + kBuffer - room);
      if (request.number == KVM_SET_USER_MEMORY_REGION2 &&
          room >= sizeof(kvm_userspace_memory_region2)) {
        tame_file(buffer_ + kBuffer - room);
      }
      return reinterpret_cast<u64>(buffer_ + kBuffer - room);
    }
    return reinterpret_cast<u64>(at);
  }

  void request_on(Open& target) {
    const auto all = stagetwo::abi_kvm::requests();
    Request request = all[random_.below(all.size())];
    if (random_.one_in(10)) request.number = static_cast<u32>(random_.next());
    if (random_.one_in(10)) request.number = 0xae00 | static_cast<u32>(random_.below(256));
    // The mask is what ends a guest that spins.
    if (request.number == KVM_SET_SIGNAL_MASK) return;
    u64 arg = argument(request);
    if (request.number == KVM_RUN) arg = random_.one_in(20) ? 1 : 0;
    if (target.run != nullptr && request.number == KVM_RUN) prepare_run(*target.run);
    const long result = call(target.fd, request.number, arg);
    done_.fetch_add(1);
    if (result < 0) return;
    adopt(target, request.number, result);
  }

  void prepare_run(kvm_run& run) {
    run.immediate_exit = random_.one_in(3);
    run.request_interrupt_window = random_.one_in(4);
    if (random_.one_in(4)) run.kvm_valid_regs = random_.below(16);
    if (random_.one_in(4)) {
      run.kvm_dirty_regs = random_.below(9);
      fill(reinterpret_cast<u8*>(&run.s), sizeof(kvm_sync_regs) & ~size_t{7});
    }
    if (random_.one_in(3)) fill(reinterpret_cast<u8*>(&run) + 32, 256);
    if (random_.one_in(3)) run.cr8 = random_.below(20);
  }

  // A request that made a descriptor.
  void adopt(const Open& target, u32 number, long fd) {
    const bool vm = target.on == On::kDevice && number == KVM_CREATE_VM;
    const bool vcpu = target.on == On::kVm && number == KVM_CREATE_VCPU;
    const bool stats = target.on != On::kDevice && number == KVM_GET_STATS_FD;
    const bool file = target.on == On::kVm && number == KVM_CREATE_GUEST_MEMFD;
    if (!vm && !vcpu && !stats && !file) return;
    const int made = static_cast<int>(fd);
    if (stats || open_.size() >= kMaxDescriptors) return close_fd(made);
    open_.push_back({made, file ? std::nullopt : std::optional(vm ? On::kVm : On::kVcpu)});
    if (!vcpu) return;
    struct {
      u32 length = 8;
      u8 set[8] = {};
    } __attribute__((packed)) mask;
    EXPECT_EQ(call(made, KVM_SET_SIGNAL_MASK, &mask), 0);
    void* area = ::mmap(nullptr, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, made, 0);
    if (area != MAP_FAILED) open_.back().run = static_cast<kvm_run*>(area);
  }

  static void drain() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    const timespec none{};
    while (sigtimedwait(&set, nullptr, &none) == SIGUSR1) {
    }
  }

  RandomSource random_;
  u8* arena_ = nullptr;
  u8* buffer_ = nullptr;
  std::vector<Open> open_;
  std::atomic<u64> done_{0};
};

TEST(KvmIoctlFuzz, EveryRequestIsAnsweredAndEverythingIsGivenBack) {
  if (on_oracle()) GTEST_SKIP() << "oracle: random requests may harm a kernel somebody needs";
  const u64 seed = stagetwo::test::announced_seed("KvmIoctlFuzz");
  sigset_t block;
  sigemptyset(&block);
  sigaddset(&block, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &block, nullptr);
  {  // whatever is made once a process
    const Fd device(open_kvm());
    const Fd vm(call(device, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM));
    kvm_create_guest_memfd page{};
    page.size = 4096;
    const Fd file(call(vm, KVM_CREATE_GUEST_MEMFD, &page));
    ASSERT_GE(file, 0);
  }
  const auto before = stagetwo::alloc_use();
  u64 requests = 0;
  {
    Fuzzer fuzzer(seed);
    std::atomic<bool> finished{false};
    const pthread_t worker = pthread_self();
    std::thread bell([&] {
      u64 last = ~u64{0};
      for (int still = 0; !finished;) {
        usleep(2000);
        if (!finished) pthread_kill(worker, SIGUSR1);
        still = fuzzer.done() == last ? still + 1 : 0;
        last = fuzzer.done();
        if (still > 15000) std::abort();  // half a minute without an answer
      }
    });
    for (const stagetwo::test::Deadline deadline; deadline.running();)
      for (int i = 0; i < 64; ++i) fuzzer.step();
    requests = fuzzer.done();
    finished = true;
    bell.join();
  }
  EXPECT_EQ(stagetwo::host::descriptor_counts().live, 0U);
  // What is left is places in the table of descriptors: each of its chains keeps as many as it once
  // needed at the same time, and on the average that is no more than one beside the first.
  constexpr stagetwo::s64 kChains = 256, kPlaceBytes = 112;
  const auto after = stagetwo::alloc_use();
  const stagetwo::s64 places = after.blocks - before.blocks;
  EXPECT_LE(places, kChains);
  EXPECT_EQ(after.bytes - before.bytes, places * kPlaceBytes);
  std::printf("%llu requests\n", static_cast<unsigned long long>(requests));
}

}  // namespace
}  // namespace kvm_client
