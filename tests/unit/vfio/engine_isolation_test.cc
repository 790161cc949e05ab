// SPDX-License-Identifier: Apache-2.0
// Isolation between clients of the dma-engine: those cases of the matrix in
// docs/support-matrix-vfio.md that need descriptors. The others: isolation_test.cc.
#include <sys/eventfd.h>
#include <unistd.h>

#include <random>

#include "tests/support/random_source.h"
#include "tests/unit/vfio/engine_world.h"

namespace stagetwo::vfio {
namespace {

constexpr u64 kIova = EngineClient::kIova, kData = EngineClient::kData;
constexpr u64 kBehind = kIova + EngineClient::kPages * kPageSize;

class EngineIsolation : public EngineWorld {
 protected:
  void SetUp() override {
    EngineWorld::SetUp();
    a_.emplace(make_device(1));
    b_.emplace(make_device(2));
    for (EngineClient* client : {&*a_, &*b_}) {  // its PASID is told by the first descriptor
      ASSERT_EQ(client->ask(EngineClient::make(Opcode::kNoop, 0, 0, 0)).status, 1);
    }
  }
  void TearDown() override {
    a_.reset();
    b_.reset();
    EngineWorld::TearDown();
  }
  static u32 pasid(EngineClient& client) { return client.reg<u32>(QueueDevice::kPasid); }
  static Descriptor move(u64 from, u64 to, u32 size, u32 flags = 0) {
    return EngineClient::make(Opcode::kMove, from, to, size, flags);
  }

  std::optional<EngineClient> a_, b_;
};

TEST_F(EngineIsolation, I2WhatOnlyAnotherHasMappedIsNotMoved) {
  ASSERT_EQ(b_->map(2 * kIova, 1, 3), 0);
  u8* const others = b_->bytes(kIova + 3 * kPageSize);
  memset(others, 0x77, kPageSize);
  for (const bool write : {false, true}) {
    const Completion& done =
        a_->ask(write ? move(kData, 2 * kIova + 8, 64) : move(2 * kIova + 8, kData, 64));
    EXPECT_EQ(done.status, write ? 0x83 : 0x03);
    EXPECT_EQ(done.bytes, 0u);
    EXPECT_EQ(done.fault_address, 2 * kIova + 8);
    EXPECT_EQ(a_->bytes(kData)[0], 0);
  }
  EXPECT_EQ(others[0], 0x77);
  EXPECT_EQ(memcmp(others, others + 1, kPageSize - 1), 0);
  EXPECT_EQ(b_->error(), 0u) << "it hears nothing of it";
}

TEST_F(EngineIsolation, I3ADescriptorThatNamesAnothersPasidIsTreatedAsItsOwners) {
  ASSERT_NE(pasid(*a_), pasid(*b_));
  ASSERT_EQ(b_->map(2 * kIova, 1, 3), 0);
  b_->bytes(kIova + 3 * kPageSize)[0] = 0x77;
  Descriptor d = move(2 * kIova, kData, 64);
  d.pasid = pasid(*b_);
  const Completion& done = a_->ask(d);
  EXPECT_EQ(done.status, 3);
  EXPECT_EQ(done.bytes, 0u);
  EXPECT_EQ(done.fault_address, 2 * kIova);
  EXPECT_EQ(a_->bytes(kData)[0], 0);
  EXPECT_EQ(b_->ask(move(2 * kIova, kData, 64)).status, 1) << "whose it is reaches it";
  a_->set_reg(QueueDevice::kPasid, pasid(*b_));
  a_->submit(d);
  EXPECT_NE(a_->wait_error(), 0u) << "not even its completion record can be written";
  EXPECT_EQ(a_->bytes(kData)[0], 0);
}

TEST_F(EngineIsolation, I19WhoHasAnEngineOpenHearsThatItIsToGo) {
  const int bell = eventfd(0, EFD_NONBLOCK);
  const u32 number = static_cast<u32>(bell);
  ASSERT_TRUE(a_->device().set_irqs({IrqSet::kEventfds | IrqSet::kTrigger,
                                     kRequestIndex,
                                     0,
                                     1,
                                     {reinterpret_cast<const u8*>(&number), sizeof(number)}}));
  auto removal = begin_removal(uuid(1));
  ASSERT_TRUE(removal);
  u64 rings = 0;
  for (int i = 0; i < 500 && ::read(bell, &rings, sizeof(rings)) < 0; ++i) usleep(10'000);
  EXPECT_EQ(rings, 1u);
  a_.reset();
  finish_removal(std::move(*removal));
  EXPECT_FALSE(find_device(uuid(1)));
  close(bell);
}

TEST_F(EngineIsolation, I4WhatMayBeReadIsNotWrittenAndTheRecordSaysThatItWasAWrite) {
  EngineClient a(make_device(0));
  constexpr u64 kReadable = EngineClient::kIova + (EngineClient::kPages + 1) * kPageSize;
  ASSERT_EQ(a.map(kReadable, 1, 2, iommu::kMayRead), 0);
  u8* const page = a.bytes(EngineClient::kIova + 2 * kPageSize);
  page[0] = 7;
  const Completion& done =
      a.ask(EngineClient::make(Opcode::kMove, EngineClient::kData, kReadable, 64));
  EXPECT_EQ(done.status, 0x83);
  EXPECT_EQ(done.fault_info, 0x79);
  EXPECT_EQ(done.bytes, 0u);
  EXPECT_EQ(done.fault_address, kReadable);
  EXPECT_EQ(page[0], 7);
  EXPECT_EQ(a.ask(EngineClient::make(Opcode::kMove, kReadable, EngineClient::kData, 64)).status, 1);
  EXPECT_EQ(a.bytes(EngineClient::kData)[0], 7);
}

TEST_F(EngineIsolation, I16WithoutAPlaceForItsRecordNothingIsWrittenAndItsOwnerIsTold) {
  int bells[2];
  for (EngineClient* client : {&*a_, &*b_}) {
    int& bell = bells[client == &*b_] = eventfd(0, EFD_NONBLOCK);
    ASSERT_TRUE(client->device().set_irqs({IrqSet::kEventfds | IrqSet::kTrigger,
                                           kMsixIndex,
                                           0,
                                           1,
                                           {reinterpret_cast<const u8*>(&bell), sizeof(bell)}}));
    memset(client->bytes(kIova), 0x66, EngineClient::kPages * kPageSize);
  }
  Descriptor d = move(kBehind, kData, 64);
  d.completion = kBehind + 32;
  a_->submit(d);
  const u64 error = a_->wait_error();
  EXPECT_EQ(error >> 8 & 0xff, u64{static_cast<u8>(Status::kCompletionFault)});
  EXPECT_EQ(error >> 40 & 0xfffff, pasid(*a_));
  EXPECT_EQ(a_->error(2), kBehind + 32) << "the record's address";
  u64 rings = 0;
  for (unsigned i = 0; ::read(bells[0], &rings, 8) != 8 && i < 10'000; ++i) usleep(100);
  EXPECT_EQ(rings, 1u);
  for (EngineClient* client : {&*a_, &*b_}) {
    const u8* const all = client->bytes(kIova);
    EXPECT_EQ(all[0], 0x66);
    EXPECT_EQ(memcmp(all, all + 1, EngineClient::kPages * kPageSize - 1), 0);
  }
  d.completion = kIova + 8;
  a_->set_reg(engine_register::kSoftwareError, 1);
  a_->submit(d);
  EXPECT_EQ(a_->wait_error() >> 8 & 0xff, u64{static_cast<u8>(Status::kCompletionMisaligned)});
  EXPECT_EQ(b_->error(), 0u);
  EXPECT_EQ(b_->ask(move(kData, kData + 4096, 64)).status, 1);
  EXPECT_EQ(::read(bells[1], &rings, 8), -1) << "b's bell is its own";
  for (const int bell : bells) close(bell);
}

// A container's page table with a fault queue, as an iommufd's may have one.
class PageRequests : public EngineIsolation {
 protected:
  struct Asked {
    u32 cookie = 0, pasid = 0, rights = 0;
    u64 address = 0;
  };
  class Queue {
   public:
    Queue(EngineClient& client, const Listed& device) : context_(client.container().context()) {
      const auto tag = client.container().tag_of(device);
      iommu::Locked locked(context_);
      auto& requester = **locked.find<iommu::Device>(tag->device);
      auto& table = *iommu::Locked::find_attachment(requester, tag->pasid)->hwpt;
      auto* const made = *locked.make_fault_queue();
      table_ = table.object.id;
      id_ = made->object.id;
      table.fault = made;
      ++made->object.users;
    }
    ~Queue() {
      iommu::Locked locked(context_);
      (*locked.find<iommu::Hwpt>(table_))->fault = nullptr;
      --queue(locked).object.users;
      locked.destroy_fault_queue(&queue(locked));
    }
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;
    // The next that nobody has read; cookie 0: none.
    Asked read() {
      iommu::Locked locked(context_);
      const iommu::PageRequest* const first = queue(locked).delivered;
      if (first == nullptr) return {};
      locked.mark_read(queue(locked));
      return {first->cookie, first->pasid, first->rights, first->address};
    }
    Asked await() {
      for (;;) {
        if (const Asked asked = read(); asked.cookie != 0) return asked;
        usleep(50);
      }
    }
    void answer(u32 cookie, bool success) {
      iommu::Locked locked(context_);
      EXPECT_TRUE(locked.answer(queue(locked), cookie, success));
    }

   private:
    iommu::FaultQueue& queue(iommu::Locked& locked) {
      return **locked.find<iommu::FaultQueue>(id_);
    }
    iommu::Context& context_;
    u32 table_ = 0, id_ = 0;
  };
};

TEST_F(PageRequests, I14AFaultIsReportedToItsOwnClientOnlyWithTheRightPasid) {
  Queue of_a(*a_, *find_device(uuid(1))), of_b(*b_, *find_device(uuid(2)));
  const u64 seed = test::announced_seed("I14");
  std::mt19937_64 random(seed);
  for (unsigned i = 0; i < 1000; ++i) {
    const bool first = random() % 2 != 0, write = random() % 2 != 0;
    EngineClient& client = first ? *a_ : *b_;
    const u64 bad = kBehind + random() % 64 * kPageSize;
    memset(client.record(), 0, sizeof(Completion));
    client.submit(move(write ? kData : bad, write ? bad : kData, 8, kBlockOnFault));
    const Asked asked = (first ? of_a : of_b).await();
    EXPECT_EQ((first ? of_b : of_a).read().cookie, 0u) << "seed " << seed;
    EXPECT_EQ(asked.pasid, pasid(client));
    EXPECT_EQ(asked.address, bad);
    EXPECT_EQ(asked.rights, write ? u32{iommu::kMayWrite} : u32{iommu::kMayRead});
    (first ? of_a : of_b).answer(asked.cookie, false);
    EXPECT_EQ(client.wait().status, write ? 0x84 : 4);
  }
}

TEST_F(PageRequests, I15APageRequestIsAnsweredOrTheDescriptorFails) {
  Queue of_a(*a_, *find_device(uuid(1)));
  const Descriptor d = move(kData, kBehind, 64, kBlockOnFault);
  memset(a_->record(), 0, sizeof(Completion));
  a_->bytes(kData)[5] = 0x21;
  a_->submit(d);
  of_a.answer(of_a.await().cookie, false);
  EXPECT_EQ(a_->wait().status, 0x84);
  EXPECT_EQ(a_->record()->fault_address, kBehind);
  memset(a_->record(), 0, sizeof(Completion));
  a_->submit(d);
  const Asked asked = of_a.await();
  ASSERT_EQ(a_->map(kBehind, 1, 7), 0);
  of_a.answer(asked.cookie, true);
  EXPECT_EQ(a_->wait().status, 1);
  EXPECT_EQ(a_->bytes(kIova + 7 * kPageSize)[5], 0x21);
  EXPECT_EQ(a_->unmap(kBehind, 1), s64{kPageSize});
  // Nobody answers: a reset does not wait for it, nor does the last close.
  a_->submit(d);
  of_a.await();
  a_->device().reset();
  EXPECT_EQ(a_->ask(move(kData, kData + 4096, 8)).status, 1);
  a_->submit(d);
  EXPECT_NE(of_a.await().cookie, 0u);
}

}  // namespace
}  // namespace stagetwo::vfio
