// SPDX-License-Identifier: Apache-2.0
// The dma-engine as a client sees it: descriptors, completion records, errors, the ring, commands.
#include "vfio/dma_engine.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "sync/atomic.h"
#include "tests/unit/vfio/engine_world.h"

namespace stagetwo::vfio {
namespace {

constexpr u64 kIova = EngineClient::kIova, kData = EngineClient::kData;
constexpr u64 kBehind = kIova + EngineClient::kPages * kPageSize;

u8 status_of(Status status, bool write = false) {
  return static_cast<u8>(static_cast<u8>(status) | (write ? kFaultWasWrite : 0));
}

class DmaEngineTest : public EngineWorld {
 protected:
  void SetUp() override {
    EngineWorld::SetUp();
    client_.emplace(make_device(1));
    for (u64 i = 0; i < 3 * kPageSize; ++i) client_->bytes(kData)[i] = static_cast<u8>(i * 7 + 1);
  }
  void TearDown() override {
    client_.reset();
    EXPECT_EQ(remove(1), 0);
    EngineWorld::TearDown();
  }
  u8 status(const Descriptor& d) { return client_->ask(d).status; }
  static Descriptor move(u64 from, u64 to, u32 size, u32 flags = 0) {
    return EngineClient::make(Opcode::kMove, from, to, size, flags);
  }
  void ring_bell() { client_->set_reg(QueueDevice::kDoorbell, 1); }

  std::optional<EngineClient> client_;
};

TEST_F(DmaEngineTest, MovesWhateverTheSizeAndWhereverItBegins) {
  for (const u32 size : {1u, 64u, 300u, 4096u, 4097u, 12288u}) {
    const u64 to = kIova + 8 * kPageSize + size % 100;
    memset(client_->bytes(kIova + 8 * kPageSize), 0, 4 * kPageSize);
    const Completion& done = client_->ask(move(kData, to, size));
    EXPECT_EQ(done.status, status_of(Status::kSuccess));
    EXPECT_EQ(done.bytes, size);
    EXPECT_EQ(memcmp(client_->bytes(to), client_->bytes(kData), size), 0);
    EXPECT_EQ(client_->bytes(to)[size], 0);
  }
}

TEST_F(DmaEngineTest, FillsComparesAndSums) {
  const u64 to = kIova + 8 * kPageSize;
  EXPECT_EQ(status(EngineClient::make(Opcode::kFill, 0x1122334455667788, to, 5001)), 1);
  for (unsigned i = 0; i < 5001; ++i) {
    ASSERT_EQ(client_->bytes(to)[i], 0x11 * (8 - i % 8)) << i;
  }
  EXPECT_EQ(client_->bytes(to)[5001], 0);
  ASSERT_EQ(status(move(kData, to, 9000)), 1);
  const Descriptor compare = EngineClient::make(Opcode::kCompare, kData, to, 9000);
  EXPECT_EQ(client_->ask(compare).result, 0);
  EXPECT_EQ(client_->record()->bytes, 9000u);
  client_->bytes(to)[5000] ^= 1;
  EXPECT_EQ(client_->ask(compare).result, 1);
  EXPECT_EQ(client_->record()->bytes, 5000u);
  memcpy(client_->bytes(to), "123456789", 9);
  EXPECT_EQ(client_->ask(EngineClient::make(Opcode::kSum, to, 0, 9)).special[0], 0xe3069283u)
      << "the check value of CRC-32C";
}

TEST_F(DmaEngineTest, AFaultStopsWithTheAddressTheBytesAndTheDirection) {
  const Completion& write = client_->ask(move(kData, kBehind - 100, 5000));
  EXPECT_EQ(write.status, status_of(Status::kPageFault, true));
  EXPECT_EQ(write.bytes, 100u);
  EXPECT_EQ(write.fault_address, kBehind);
  EXPECT_EQ(write.fault_info, static_cast<u8>(iommu::FaultReason::kSecondDenied));
  EXPECT_EQ(memcmp(client_->bytes(kBehind - 100), client_->bytes(kData), 100), 0);
  const Completion& read = client_->ask(move(kBehind - 64, kData, 65));
  EXPECT_EQ(read.status, status_of(Status::kPageFault));
  EXPECT_EQ(read.bytes, 64u);
  EXPECT_EQ(client_->ask(EngineClient::make(Opcode::kFill, 0, kBehind - 8, 16)).status,
            status_of(Status::kPageFault, true));
  EXPECT_EQ(client_->ask(EngineClient::make(Opcode::kCompare, kData, kBehind, 16)).fault_address,
            kBehind);
  EXPECT_EQ(client_->ask(move(kData, kBehind, 8, kBlockOnFault)).status,
            status_of(Status::kPageRefused, true))
      << "nobody takes page requests of a container";
}

// Whatever the operation: how far it came, where it ended, and that it was no write.
TEST_F(DmaEngineTest, EachOperationTellsOfItsFault) {
  const auto told = [&](const Descriptor& d, u32 bytes, bool write = false) {
    const Completion done = client_->ask(d);
    EXPECT_EQ(done.status, status_of(Status::kPageFault, write));
    EXPECT_EQ(done.fault_address, kBehind);
    EXPECT_EQ(done.bytes, bytes);
  };
  told(EngineClient::make(Opcode::kFill, 7, kBehind - 5000, 9000), 5000, true);
  told(EngineClient::make(Opcode::kSum, kBehind - 8192, 0, 9000), 8192);
  memset(client_->bytes(kBehind - kPageSize), 1, kPageSize);
  memset(client_->bytes(kData), 1, kPageSize);
  told(EngineClient::make(Opcode::kCompare, kBehind - kPageSize, kData, 5000), kPageSize);
  told(EngineClient::make(Opcode::kCompare, kData, kBehind - kPageSize, 5000), kPageSize);
  const Completion& batch = client_->ask(EngineClient::make(Opcode::kBatch, kBehind, 0, 2));
  EXPECT_EQ(batch.status, status_of(Status::kBatchFault));
  EXPECT_EQ(batch.fault_address, kBehind);
  EXPECT_EQ(batch.bytes, 0u) << "descriptors";
}

TEST_F(DmaEngineTest, ASumGoesOnFromItsSeed) {
  u8* const to = client_->bytes(kIova + 8 * kPageSize);
  const u64 at = kIova + 8 * kPageSize;
  memcpy(to, "123456789", 9);
  Descriptor rest = EngineClient::make(Opcode::kSum, at + 4, 0, 5);
  rest.operation[0] = client_->ask(EngineClient::make(Opcode::kSum, at, 0, 4)).special[0];
  EXPECT_EQ(client_->ask(rest).special[0], 0xe3069283u);
}

// Without a record asked for there is one of a failure only; without a place for it a report.
TEST_F(DmaEngineTest, AFailureIsToldWhetherARecordWasAskedForOrNot) {
  const u64 other = kIova + 64, behind = kIova + 128;
  Descriptor quiet = move(kData, kIova + 8 * kPageSize, 8);
  quiet.flags_opcode &= ~u32{kRequestCompletion};
  quiet.completion = other;
  memset(client_->record(other), 0, sizeof(Completion));
  client_->submit(quiet);
  Descriptor next = EngineClient::make(Opcode::kNoop, 0, 0, 0);
  next.completion = behind;
  EXPECT_EQ(client_->ask(next).status, 1);
  EXPECT_EQ(client_->record(other)->status, 0);
  quiet.source = kBehind;
  EXPECT_EQ(client_->ask(quiet).status, status_of(Status::kPageFault));
  quiet.flags_opcode &= ~u32{kCompletionValid};
  client_->submit(quiet);
  EXPECT_EQ(client_->wait_error() >> 8 & 0xff, u64{static_cast<u8>(Status::kPageFault)});
  EXPECT_EQ(client_->error(2), kBehind);
  client_->set_reg(engine_register::kSoftwareError, 1);
  Descriptor askew = move(kData, kIova + 8 * kPageSize, 8);
  askew.completion = other + 8;
  client_->submit(askew);
  EXPECT_EQ(client_->wait_error() >> 8 & 0xff, u64{static_cast<u8>(Status::kCompletionMisaligned)});
  EXPECT_EQ(client_->error(2), other + 8);
}

// 512 KiB and a little: several pieces, at offsets of their own, over the border of a block.
TEST_F(DmaEngineTest, LongMovesArriveWholeAndTheirRecordLast) {
  constexpr u64 kLong = (512 << 10) + 100, kAt = u64{1} << 30;
  test::GuardedPages memory(kLong / kPageSize * 2 + 4);
  const u64 bytes = kLong / kPageSize * 2 * kPageSize + 4 * kPageSize;
  ASSERT_TRUE(client_->container().map({kAt, bytes, memory.address(), 3}));
  u8* const from = memory.bytes_at(0);
  for (u64 i = 0; i < kLong; ++i) from[i] = static_cast<u8>(i * 2654435761u >> 13);
  for (const u64 offset : {u64{0}, u64{8}, u64{3001}}) {
    const u64 to = kLong / kPageSize * kPageSize + 2 * kPageSize + offset;
    const u32 size = static_cast<u32>(kLong - offset);
    memset(memory.bytes_at(to), 0, size);
    ASSERT_EQ(status(move(kAt, kAt + to, size)), 1);
    EXPECT_EQ(client_->record()->bytes, size);
    EXPECT_EQ(memcmp(memory.bytes_at(to), from, size), 0);
  }
  ASSERT_EQ(client_->unmap(kAt, bytes / kPageSize), static_cast<s64>(bytes));
  EXPECT_EQ(status(move(kAt, kIova + 8 * kPageSize, 64)), status_of(Status::kPageFault));
}

TEST_F(DmaEngineTest, RefusesWhatIsNoDescriptor) {
  const u64 to = kIova + 8 * kPageSize;
  EXPECT_EQ(status(EngineClient::make(Opcode{9}, kData, to, 1)), status_of(Status::kBadOpcode));
  EXPECT_EQ(status(move(kData, to, 1, 0x200)), status_of(Status::kBadFlags));
  EXPECT_EQ(client_->record()->special[0], 0x200u);
  Descriptor reserved = move(kData, to, 1);
  reserved.reserved = 1;
  EXPECT_EQ(status(reserved), status_of(Status::kReservedSet));
  EXPECT_EQ(status(move(kData, to, 0)), status_of(Status::kBadSize));
  EXPECT_EQ(status(move(kData, to, 0x80000001)), status_of(Status::kBadSize));
  EXPECT_EQ(status(move(kData, kData + 10, 11)), status_of(Status::kOverlap));
  EXPECT_EQ(status(EngineClient::make(Opcode::kBatch, kData, 0, 1)), status_of(Status::kBadCount));
  EXPECT_EQ(status(EngineClient::make(Opcode::kBatch, kData + 8, 0, 2)),
            status_of(Status::kListMisaligned));
  Descriptor interrupt = move(kData, to, 1, kRequestInterrupt);
  interrupt.interrupt = kEngineVectors;
  EXPECT_EQ(status(interrupt), status_of(Status::kBadInterrupt));
}

TEST_F(DmaEngineTest, ABatchIsRunToItsEndOrToAFenceBehindAFailure) {
  auto* const list = reinterpret_cast<Descriptor*>(client_->bytes(kIova + 4 * kPageSize));
  const u64 at = kIova + 4 * kPageSize, to = kIova + 8 * kPageSize;
  for (unsigned i = 0; i < 40; ++i) {
    list[i] = move(kData + i, to + i, 1);
    list[i].completion = kIova + 64 + 32 * i;
  }
  const Completion& done = client_->ask(EngineClient::make(Opcode::kBatch, at, 0, 40));
  EXPECT_EQ(done.status, status_of(Status::kSuccess));
  EXPECT_EQ(done.bytes, 40u);
  EXPECT_EQ(memcmp(client_->bytes(to), client_->bytes(kData), 40), 0);
  EXPECT_EQ(client_->record(kIova + 64 + 32 * 39)->status, 1);
  list[3].source = kBehind;
  EXPECT_EQ(client_->ask(EngineClient::make(Opcode::kBatch, at, 0, 40)).bytes, 40u);
  EXPECT_EQ(client_->record()->status, status_of(Status::kBatchFailed));
  list[5].flags_opcode |= kFence;
  EXPECT_EQ(client_->ask(EngineClient::make(Opcode::kBatch, at, 0, 40)).bytes, 5u);
  EXPECT_EQ(client_->ask(EngineClient::make(Opcode::kBatch, kBehind - 64, 0, 2)).status,
            status_of(Status::kBatchFault));
  list[0] = EngineClient::make(Opcode::kBatch, at, 0, 2);
  list[0].completion = kIova + 64;
  EXPECT_EQ(client_->ask(EngineClient::make(Opcode::kBatch, at, 0, 2)).bytes, 2u);
  EXPECT_EQ(client_->record(kIova + 64)->status, status_of(Status::kBadOpcode)) << "in a batch";
}

TEST_F(DmaEngineTest, TheRingTakesWhatStandsInItsMemory) {
  constexpr u32 kCount = 3000;  // around it almost three times
  u32 tail = 0, head = 0;
  const u64 to = kIova + 8 * kPageSize;
  for (u32 sent = 0; sent < kCount; ++sent) {
    Descriptor d = move(kData + sent % 256, to + sent % 256, 1);
    if (sent + 1 != kCount) d.flags_opcode &= ~u32{kRequestCompletion};
    const u64 place = kRingAt + sent % kRingSlots * 64;
    const u8* const from = reinterpret_cast<const u8*>(&d);
    for (u64 i = 0; i < 64; i += 4) client_->device().write(4, place + i, {from + i, 4});
    ++tail;
    client_->device().write(4, 0, {reinterpret_cast<const u8*>(&tail), 4});
    do {
      client_->device().read(4, 4, {reinterpret_cast<u8*>(&head), 4});
    } while (tail - head == kRingSlots);
    u32 asleep = 0;
    client_->device().read(4, 8, {reinterpret_cast<u8*>(&asleep), 4});
    if (asleep != 0 || sent == 0) ring_bell();
  }
  EXPECT_EQ(client_->wait().status, 1);
  EXPECT_EQ(memcmp(client_->bytes(to), client_->bytes(kData), 256), 0);
  tail += kRingSlots + 1;
  client_->device().write(4, 0, {reinterpret_cast<const u8*>(&tail), 4});
  ring_bell();
  EXPECT_EQ(client_->wait_error() >> 8 & 0xff, u64{static_cast<u8>(Status::kBadCount)});
}

// Moves that come together, and among them what is none, what faults and what wants an interrupt:
// each is told of as if it had come alone, and what stands behind it is done.
TEST_F(DmaEngineTest, OfMovesThatComeTogetherEachIsToldOfAsIfAlone) {
  constexpr u32 kCount = 40;
  const u64 to = kIova + 8 * kPageSize;
  ASSERT_EQ(status(move(kData, to, 2 * kPageSize)), 1) << "known from now on";
  const int bell = eventfd(0, EFD_NONBLOCK);
  ASSERT_TRUE(client_->device().set_irqs({IrqSet::kEventfds | IrqSet::kTrigger,
                                          kMsixIndex,
                                          1,
                                          1,
                                          {reinterpret_cast<const u8*>(&bell), sizeof(bell)}}));
  u32 tail = 0;
  for (unsigned round = 0; round < 20; ++round) {
    memset(client_->bytes(to), 0, kCount * 128);
    memset(client_->record(), 0, kPageSize);
    for (u32 i = 0; i < kCount; ++i, ++tail) {
      Descriptor d = move(kData + i, to + i * u64{128}, 100);
      if (i == 5) d.source = kBehind - 60;
      if (i == 9) d = EngineClient::make(Opcode::kFill, 0x0101010101010101, to + i * u64{128}, 100);
      if (i == 20) d.destination = kBehind;
      if (i == 30) d.flags_opcode |= kRequestInterrupt;
      d.interrupt = i == 30;
      d.completion = kIova + i * sizeof(Completion);
      const u8* const from = reinterpret_cast<const u8*>(&d);
      const u64 place = kRingAt + tail % kRingSlots * 64;
      for (u64 at = 0; at < 64; at += 4) client_->device().write(4, place + at, {from + at, 4});
    }
    client_->device().write(4, 0, {reinterpret_cast<const u8*>(&tail), 4});
    ring_bell();
    for (u32 i = 0; i < kCount; ++i) {
      const Completion& done = client_->wait(kIova + i * sizeof(Completion));
      const bool reads = i == 5, writes = i == 20;
      ASSERT_EQ(done.status, reads || writes ? status_of(Status::kPageFault, writes) : 1) << i;
      EXPECT_EQ(done.bytes, reads ? 60u : (writes ? 0u : 100u)) << i;
      EXPECT_EQ(done.fault_address, reads || writes ? kBehind : 0u) << i;
      if (reads || writes) continue;
      const u8* const there = client_->bytes(to + i * u64{128});
      const u8 ones[1] = {1};
      EXPECT_EQ(memcmp(there, i == 9 ? ones : client_->bytes(kData + i), i == 9 ? 1 : 100), 0) << i;
      EXPECT_EQ(there[100], 0);
    }
  }
  u64 rings = 0;
  for (unsigned i = 0; ::read(bell, &rings, 8) != 8 && i < 10000; ++i) usleep(100);
  EXPECT_GE(rings, 1u);
  close(bell);
}

TEST_F(DmaEngineTest, InterruptsTellOfCompletionsAndOfErrors) {
  const int bells[2] = {eventfd(0, 0), eventfd(0, EFD_NONBLOCK)};
  const auto* const fds = reinterpret_cast<const u8*>(bells);
  ASSERT_TRUE(client_->device().set_irqs(
      {IrqSet::kEventfds | IrqSet::kTrigger, kMsixIndex, 0, 2, {fds, sizeof(bells)}}));
  Descriptor d = move(kData, kIova + 8 * kPageSize, 64, kRequestInterrupt);
  d.interrupt = 1;
  ASSERT_EQ(status(d), 1);
  u64 rings = 0;
  for (unsigned i = 0; ::read(bells[1], &rings, 8) != 8 && i < 10000; ++i) usleep(100);
  EXPECT_EQ(rings, 1u);
  d.completion = kBehind;  // no record can be written there
  client_->submit(d);
  EXPECT_EQ(::read(bells[0], &rings, 8), 8);
  EXPECT_EQ(client_->error() >> 8 & 0xff, u64{static_cast<u8>(Status::kCompletionFault)});
  EXPECT_EQ(client_->error() >> 32 & 0xff, u64{static_cast<u8>(Opcode::kMove)});
  EXPECT_EQ(client_->error(2), kBehind);
  EXPECT_EQ(client_->error() >> 40, client_->reg<u32>(QueueDevice::kPasid));
  EXPECT_EQ(client_->reg<u32>(engine_register::kIntCause), 1u);
  client_->set_reg(engine_register::kIntCause, 1);
  client_->set_reg(engine_register::kSoftwareError, 1);
  EXPECT_EQ(client_->error(), 0u);
  EXPECT_EQ(client_->reg<u32>(engine_register::kIntCause), 0u);
  close(bells[0]);
  close(bells[1]);
}

TEST_F(DmaEngineTest, ADrainIsOverWhenAllIsDoneAndAnAbortDropsIt) {
  const Descriptor d = move(kData, kIova + 8 * kPageSize, 64);
  memset(client_->record(), 0, sizeof(Completion));
  client_->submit(d);
  client_->set_reg(engine_register::kCommand, 11 << 20);  // of the PASID
  while (client_->reg<u32>(engine_register::kCommandStatus) != 0) usleep(50);
  EXPECT_EQ(client_->record()->status, 1);
  for (unsigned round = 0; round < 200; ++round) {
    client_->submit(move(kData, kIova + 8 * kPageSize, 7 * kPageSize));
    client_->set_reg(engine_register::kCommand, 12 << 20);
    memset(client_->bytes(kIova + 8 * kPageSize), 0x5c, 64);
    memset(client_->record(), 0, sizeof(Completion));
    if (round % 50 == 0) usleep(500);
    EXPECT_EQ(client_->bytes(kIova + 8 * kPageSize)[0], 0x5c);
    EXPECT_EQ(client_->record()->status, 0);
  }
  EXPECT_EQ(status(d), 1);
  client_->set_reg(engine_register::kCommand, 31 << 20);
  EXPECT_EQ(client_->reg<u32>(engine_register::kCommandStatus), 1u) << "no such command";
}

TEST_F(DmaEngineTest, AResetForgetsEverythingAndTheNextOpenBeginsAfresh) {
  client_->submit(EngineClient::make(Opcode::kNoop, 0, 0, 0));
  client_->wait();
  Descriptor d = move(kData, kData + kPageSize, 8);
  d.completion = kBehind;
  client_->submit(d);
  ASSERT_NE(client_->wait_error(), 0u);
  client_->device().reset();
  EXPECT_EQ(client_->error(), 0u);
  client_->submit(d);
  ASSERT_NE(client_->wait_error(), 0u);
  client_.reset();
  client_.emplace(*find_device(uuid(1)));
  EXPECT_EQ(client_->error(), 0u);
  EXPECT_EQ(status(move(kData, kIova + 8 * kPageSize, 64)), 1);
}

TEST_F(DmaEngineTest, AQueueThatIsFullSaysSo) {
  auto* const list = reinterpret_cast<Descriptor*>(client_->bytes(kIova + 4 * kPageSize));
  for (unsigned i = 0; i < 64; ++i) {
    list[i] = EngineClient::make(Opcode::kFill, 0, kIova + 5 * kPageSize, 11 * kPageSize);
  }
  const Descriptor batch = EngineClient::make(Opcode::kBatch, kIova + 4 * kPageSize, 0, 64);
  for (unsigned i = 0; i < 1000 && client_->error() == 0; ++i) client_->submit(batch, i % 64);
  EXPECT_EQ(client_->error() >> 8 & 0xff, u64{static_cast<u8>(Status::kQueueFull)});
}

// SVA: pointers as they are.
TEST_F(DmaEngineTest, AProcessSharesItsAddressesByPageRequests) {
  EngineClient sva(make_device(2, "dma-engine-sva"), false);
  const size_t size = 8 * kPageSize;
  auto* const from = static_cast<u8*>(
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  auto* const to = static_cast<u8*>(
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (size_t i = 0; i < size; ++i) from[i] = static_cast<u8>(i % 251);
  Completion done{};
  Completion* const record = new (from + size - 64) Completion{};  // aligned
  const auto address = [](const void* at) { return reinterpret_cast<u64>(at); };
  const auto ask = [&](u64 source, u64 destination, u32 bytes, u32 flags) {
    *record = {};
    Descriptor d = move(source, destination, bytes, flags);
    d.completion = address(record);
    sva.submit(d);
    for (unsigned i = 0; *const_cast<volatile u8*>(&record->status) == 0 && i < 100000; ++i) {
      usleep(50);
    }
    done = *record;
    return done.status;
  };
  EXPECT_EQ(ask(address(from), address(to), 3 * kPageSize, 0),
            status_of(Status::kPageFault, true) & 0x7f)
      << "the device has seen neither page yet, and does not block";
  EXPECT_EQ(ask(address(from), address(to), 3 * kPageSize + 5, kBlockOnFault), 1);
  EXPECT_EQ(memcmp(from, to, 3 * kPageSize + 5), 0);
  munmap(to + kPageSize, kPageSize);
  // Without the shim nobody announces the munmap: the guarded access finds it.
  EXPECT_EQ(ask(address(from), address(to), 3 * kPageSize, kBlockOnFault),
            status_of(Status::kPageRefused, true));
  EXPECT_EQ(done.bytes, kPageSize);
  EXPECT_EQ(done.fault_address, address(to) + kPageSize);
  munmap(from, size);
  munmap(to, size);
}

// Nobody waits for a record that cannot be written without being told why; and once there is memory
// the same device works.
TEST_F(DmaEngineTest, AProcessThatCannotBeBoundIsTold) {
  EngineClient sva(make_device(2, "dma-engine-sva"), false);
  Descriptor d = EngineClient::make(Opcode::kFill, 0x7777777777777777, sva.address(kPageSize), 64,
                                    kBlockOnFault);
  d.completion = sva.address(0);
  failpoint::arm("iommu.process", 1, failpoint::kForever);
  sva.submit(d);
  const u64 error = sva.wait_error();
  failpoint::disarm();
  EXPECT_EQ(error >> 8 & 0xff, u64{static_cast<u8>(Status::kNotBound)});
  EXPECT_EQ(error >> 32 & 0xff, u64{static_cast<u8>(Opcode::kFill)});
  EXPECT_EQ(error >> 40, 0u) << "no PASID";
  EXPECT_EQ(sva.error(2), u64{ENOMEM});
  EXPECT_EQ(sva.record()->status, 0);
  sva.set_reg(engine_register::kSoftwareError, 1);
  sva.submit(d);
  EXPECT_EQ(sva.wait().status, static_cast<u8>(Status::kSuccess));
  EXPECT_EQ(sva.error(), 0u);
}

}  // namespace
}  // namespace stagetwo::vfio
