// SPDX-License-Identifier: Apache-2.0
// Sixteen devices of one parent, four processes and two machines with guests, each made by fork and
// exec: random moves and
// fills against a model, maps taken away, resets, groups that leave, devices removed and made
// again, and kill -9 in the middle of it. Nobody's memory is ever another's, and in the end every
// device is free. The same of unmodified programs: tests/shim/programs/dma_storm.c; this one runs
// under sanitizers.
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "tests/stress/vfio_machine.h"
#include "tests/support/random_source.h"
#include "tests/unit/vfio/engine_world.h"

namespace stagetwo::vfio {
namespace {

constexpr unsigned kDevices = 16, kProcesses = 4, kMachines = 2;
constexpr unsigned kWorkers = kProcesses + kMachines;
constexpr const char* kSession = "STAGETWO_VFIO_STORM";  // the session of a worker's
constexpr const char* kNumber = "STAGETWO_VFIO_STORM_WORKER";
constexpr const char* kSeed = "STAGETWO_VFIO_STORM_SEED";

using Clock = std::chrono::steady_clock;

Uuid uuid_of(unsigned device) {
  return {{static_cast<u8>(device + 1), 0x57, 0x04}};
}

// One client's work on one device, and all that it does to it. Its memory's last page is a canary.
void use_device(const Listed& listed, std::mt19937_64& random, bool may_die) {
  constexpr u64 kArea = 14 * kPageSize;
  EngineClient client(listed);
  u8* const area = client.bytes(EngineClient::kData);
  std::vector<u8> model(area, area + kArea);
  const unsigned rounds = 1 + static_cast<unsigned>(random() % 30);
  for (unsigned round = 0; round < rounds; ++round) {
    const u64 size = 1 + random() % 9000, from = random() % (kArea - size);
    const u64 to = random() % (kArea - size), pattern = random();
    const bool fills = random() % 2 == 0;
    const bool overlap = !fills && (from > to ? from - to : to - from) < size;
    if (overlap) continue;
    const Descriptor d = EngineClient::make(fills ? Opcode::kFill : Opcode::kMove,
                                            fills ? pattern : EngineClient::kData + from,
                                            EngineClient::kData + to, static_cast<u32>(size));
    if (may_die && random() % 200 == 0) {
      client.submit(d);
      raise(SIGKILL);
    }
    ASSERT_EQ(client.ask(d).status, 1);
    for (u64 i = 0; i < size; ++i) {
      model[to + i] = fills ? static_cast<u8>(pattern >> (8 * (i % 8))) : model[from + i];
    }
    ASSERT_EQ(std::memcmp(area, model.data(), kArea), 0) << "round " << round;
  }
  // What is taken away, by whichever way, is reached no more.
  const unsigned way = static_cast<unsigned>(random() % 4);
  if (way == 0) {
    ASSERT_EQ(client.unmap(EngineClient::kIova, EngineClient::kPages),
              static_cast<s64>(EngineClient::kPages * kPageSize));
  } else if (way == 1) {
    client.device().reset();
  } else if (way == 2) {
    client.container().remove_group(listed);
  }
  client.submit(EngineClient::make(Opcode::kFill, random(), EngineClient::kData, 4096));
  if (way == 0 || way == 2) {
    usleep(200);
    ASSERT_EQ(std::memcmp(area, model.data(), kArea), 0) << "way " << way;
  }
}

// The devices of one worker are its own; a removal may meet one that a killed worker left.
void work(unsigned number, u64 seed, double seconds, bool may_die) {
  std::mt19937_64 random(seed);
  const auto until = Clock::now() + std::chrono::milliseconds(static_cast<u64>(seconds * 1000));
  do {
    const unsigned device =
        number +
        kWorkers * static_cast<unsigned>(random() % ((kDevices - number - 1) / kWorkers + 1));
    if (random() % 8 == 0) {
      auto removal = begin_removal(uuid_of(device));
      if (removal) finish_removal(std::move(*removal));
    }
    const int made = error_of(create_device(find_type("dma-engine-1"), uuid_of(device)));
    ASSERT_TRUE(made == 0 || made == EEXIST) << made;
    const auto listed = find_device(uuid_of(device));
    ASSERT_TRUE(listed);
    use_device(*listed, random, may_die);
  } while (Clock::now() < until && !testing::Test::HasFailure());
}

class VfioStorm : public EngineWorld {
 protected:
  void SetUp() override {
    const char* const session = std::getenv(kSession);
    if (session == nullptr) return EngineWorld::SetUp();
    worker_ = true;
    ASSERT_TRUE(host::backstop::install());
    ASSERT_TRUE(host::join_session(session));
    ASSERT_TRUE(start_bus());
  }
  void TearDown() override {
    if (!worker_) return EngineWorld::TearDown();
    EXPECT_EQ(host::pin_use().pages, 0u);
  }
  pid_t start(unsigned number, u64 seed, double seconds) {
    const pid_t child = fork();
    if (child != 0) return child;
    setenv(kSession, directory_.c_str(), 1);
    setenv(kNumber, std::to_string(number).c_str(), 1);
    setenv(kSeed, std::to_string(seed).c_str(), 1);
    setenv("STAGETWO_TEST_SECONDS", std::to_string(seconds).c_str(), 1);
    unsetenv("GTEST_OUTPUT");
    execl("/proc/self/exe", "vfio_storm",
          number < kProcesses ? "--gtest_filter=VfioStorm.AClientFindsItsMemoryAsItsModel"
                              : "--gtest_filter=VfioStorm.AMachineDrivesItsDevices",
          "--gtest_brief=1", nullptr);
    _exit(127);
  }
  bool worker_ = false;
};

u64 number(const char* name) {
  const char* const text = std::getenv(name);
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

// By itself, and as each of the storm's processes.
TEST_F(VfioStorm, AClientFindsItsMemoryAsItsModel) {
  if (worker_) {
    return work(static_cast<unsigned>(number(kNumber)), number(kSeed), test::test_seconds(), true);
  }
  work(0, test::announced_seed("vfio_storm_alone"), 0.05, false);
}

// The same: its machines. One that is killed is so wherever it stands.
TEST_F(VfioStorm, AMachineDrivesItsDevices) {
  const auto machine = static_cast<unsigned>(worker_ ? number(kNumber) : kProcesses);
  const std::string session = worker_ ? std::getenv(kSession) : directory_;
  std::mt19937_64 random(worker_ ? number(kSeed) : test::announced_seed("vfio_machine_alone"));
  const auto lives = static_cast<useconds_t>(200'000 + random() % 6'000'000);
  if (worker_) {
    std::thread([lives] {
      usleep(lives);
      raise(SIGKILL);
    }).detach();
  }
  const Clock::time_point until =
      Clock::now() +
      std::chrono::milliseconds(static_cast<u64>(worker_ ? test::test_seconds() * 1000 : 0));
  do {
    const unsigned device =
        machine +
        kWorkers * static_cast<unsigned>(random() % ((kDevices - machine - 1) / kWorkers + 1));
    const int made = error_of(create_device(find_type("dma-engine-1"), uuid_of(device)));
    ASSERT_TRUE(made == 0 || made == EEXIST) << made;
    FixedString<64> name;
    append_name(*find_device(uuid_of(device)), name);
    ASSERT_EQ(run_vfio_machine(session.c_str(), std::string(name.view())), 0);
  } while (Clock::now() < until);
}

TEST_F(VfioStorm, NobodysMemoryIsAnothersWhoeverDies) {
  const double whole = test::test_seconds(), seconds = whole < 20 ? whole / 6 : whole;
  u64 seed = test::announced_seed("vfio_storm");
  const auto until = Clock::now() + std::chrono::milliseconds(static_cast<u64>(seconds * 1000));
  const auto left = [&until] {
    return std::chrono::duration<double>(until - Clock::now()).count();
  };
  pid_t workers[kWorkers];
  for (unsigned n = 0; n < kWorkers; ++n) workers[n] = start(n, ++seed, left());
  unsigned killed = 0, running = kWorkers;
  while (running != 0) {
    int status = 0;
    const pid_t ended = waitpid(-1, &status, 0);
    ASSERT_GT(ended, 0);
    unsigned n = 0;
    while (n < kWorkers && workers[n] != ended) ++n;
    ASSERT_LT(n, kWorkers);
    const bool died = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    EXPECT_TRUE(died || status == 0) << "worker " << n << " ended with " << status;
    killed += died ? 1 : 0;
    if (died && left() > 0.1) {
      workers[n] = start(n, ++seed, left());
    } else {
      --running;
    }
  }
  std::printf("%u were killed in the middle\n", killed);
  // Every instance is to be had again, and starts afresh.
  for (unsigned device = 0; device < kDevices; ++device) {
    auto removal = begin_removal(uuid_of(device));
    if (removal) finish_removal(std::move(*removal));
  }
  EXPECT_EQ(available_instances(find_type("dma-engine-1")), 32u);
  ASSERT_EQ(error_of(create_device(find_type("dma-engine-1"), uuid_of(0))), 0);
  EngineClient again(*find_device(uuid_of(0)));
  EXPECT_EQ(again.error(), 0u);
}

}  // namespace
}  // namespace stagetwo::vfio
