// SPDX-License-Identifier: Apache-2.0
// Goal: a device that reaches memory by IOVA beside a secure guest. What it maps and pins is sealed
// first; a page it has pinned cannot become secure, and the guest is told to come again; what it
// writes there ends the guest; what the guest shares is one page for both.
#include "host/pin.h"
#include "tests/support/process_guest.h"
#include "vfio/container.h"
#include "vfio/dma.h"
#include "vfio/serial.h"

namespace stagetwo::uv {
namespace {

// A container with two groups: one whose maps are pinned when they are made, and one whose driver
// asks for pins (the external domain).
class SecureBesideDma : public ProcessGuest {
 protected:
  static constexpr u64 kIova = 0x100000;
  static constexpr u32 kExternal = 0, kIsolated = 4;

  void SetUp() override {
    ProcessGuest::SetUp();
    if (IsSkipped()) return;
    backing_.emplace(*vfio::Container::make_file("test-container"));
    container_ = *vfio::Container::attach(backing_->fd());
  }
  void TearDown() override {
    if (container_) {
      dma_.reset();
      container_->remove_group(group());
      container_->closed();
      container_.reset();
      EXPECT_EQ(host::pin_use().pages, 0u);
    }
    ProcessGuest::TearDown();
  }
  [[nodiscard]] vfio::Listed group() const {
    static vfio::Parent isolated = vfio::kSerial;
    isolated.source = 0x100;
    isolated.pasid_bits = 8;
    const vfio::Parent* const parent = slot_ == kIsolated ? &isolated : &vfio::kSerial;
    return {slot_, slot_ + 100, {}, {parent, 0}, false};
  }
  void connect(u32 slot) {
    slot_ = slot;
    ASSERT_TRUE(container_->add_group(group()).has_value());
    ASSERT_TRUE(container_->set_type(static_cast<u64>(vfio::IommuType::kType1v2)).has_value());
    dma_ = std::make_unique<vfio::Dma>();
    ASSERT_TRUE(dma_->connect(container_.clone(), group()).has_value());
  }
  // All of the guest's memory, page n at kIova + n pages.
  void map_all() {
    ASSERT_TRUE(container_->map({kIova, kPages * kPageSize, hva(0).raw(), kBoth}).has_value());
  }
  void unmap_all() { ASSERT_TRUE(container_->unmap({0, 0, true}).has_value()); }
  static u64 iova(u64 page) { return kIova + page * kPageSize; }
  Bytes read(u64 page) {
    Bytes bytes(kPageSize);
    return dma_->read(iova(page), bytes.data(), kPageSize).done == kPageSize ? bytes : Bytes();
  }
  bool write(u64 page, const Bytes& bytes) {
    return dma_->write(iova(page), bytes.data(), kPageSize).done == kPageSize;
  }
  // One access of the guest, that may be told to come again.
  GuestAccess touch(u64 page) {
    u8 byte = 0;
    return ultravisor.access(kLpid, Gpa(page * kPageSize), &byte, 1, false);
  }
  PageState state(u64 page) { return guest->page(Gpa(page * kPageSize)); }

  static constexpr u32 kBoth = iommu::kMayRead | iommu::kMayWrite;
  u32 slot_ = kExternal;
  std::optional<host::Backing> backing_;
  sync::Ref<vfio::Container> container_;
  std::unique_ptr<vfio::Dma> dma_;
};

TEST_F(SecureBesideDma, WhatIsMappedIsSealedAndNotTheGuestsWhileItIsPinned) {
  become_secure();
  connect(kIsolated);
  ASSERT_TRUE(container_->map({iova(3), 2 * kPageSize, hva(3).raw(), kBoth}).has_value());
  EXPECT_EQ(host::pin_use().pages, 2u);
  for (const u64 page : {u64{3}, u64{4}}) {
    EXPECT_EQ(state(page), PageState::kPagedOut);
    const Bytes sealed = read(page);
    ASSERT_EQ(sealed.size(), kPageSize);
    EXPECT_LT(equal_bytes(sealed, text(page)), kPageSize / 50);
    EXPECT_EQ(sealed, seen(page)) << "one page for the device and for the process";
    EXPECT_EQ(ultravisor.ask_page_in(kLpid, Gpa(page * kPageSize)), Status::kBusy);
    EXPECT_EQ(touch(page), GuestAccess::kRetry);
    EXPECT_EQ(read(page), sealed) << "the guest's wish changed nothing";
  }
  EXPECT_EQ(state(5), PageState::kSecure) << "the others are the guest's";
  EXPECT_EQ(guest_bytes(5), text(5));
  unmap_all();
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
  EXPECT_EQ(read(3), Bytes()) << "not mapped any more";
}

TEST_F(SecureBesideDma, MemoryThatADeviceHasPinnedDoesNotBecomeSecure) {
  connect(kIsolated);
  map_all();
  EXPECT_EQ(guest_call(Call::kUvEsm, 1, 1, Caller::kGuest), Status::kParameter);
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(read(page), text(page)) << page;
  unmap_all();
  become_secure();
  EXPECT_EQ(guest_bytes(3), text(3));
}

TEST_F(SecureBesideDma, WhatItWritesIntoASealedPageEndsTheGuest) {
  become_secure();
  connect(kIsolated);
  map_all();
  ASSERT_TRUE(write(3, text(9)));
  unmap_all();
  EXPECT_EQ(guest_bytes(3), Bytes());
  EXPECT_EQ(ultravisor.state(kLpid), SvmState::kStopped);
  EXPECT_EQ(ultravisor.use(kLpid).tampered_gpa, 3 * kPageSize);
}

// The flow of a bounce buffer: all is mapped for the device, and the guest shares what it may use.
TEST_F(SecureBesideDma, APinnedPageThatTheGuestSharesIsOnePageForBoth) {
  become_secure();
  connect(kIsolated);
  ASSERT_TRUE(container_->map({iova(5), kPageSize, hva(5).raw(), kBoth}).has_value());
  ASSERT_EQ(guest_call(Call::kUvSharePage, 5, 1), Status::kSuccess);
  EXPECT_EQ(read(5), Bytes(kPageSize)) << "sharing publishes nothing";
  ASSERT_TRUE(write(5, text(9)));
  EXPECT_EQ(guest_bytes(5), text(9));
  EXPECT_EQ(seen(5), text(9));
  u8 fresh = 0x77;
  ASSERT_EQ(ultravisor.access(kLpid, Gpa(5 * kPageSize), &fresh, 1, true), GuestAccess::kDone);
  EXPECT_EQ(read(5)[0], 0x77);
  // The device has it still: it cannot be the guest's alone yet, and stays what it is.
  EXPECT_EQ(guest_call(Call::kUvUnsharePage, 5, 1), Status::kRetry);
  EXPECT_EQ(guest_bytes(5)[0], 0x77);
  EXPECT_EQ(read(5)[0], 0x77);
  unmap_all();
  ASSERT_EQ(guest_call(Call::kUvUnsharePage, 5, 1), Status::kSuccess);
  EXPECT_EQ(guest_bytes(5), Bytes(kPageSize));
}

TEST_F(SecureBesideDma, AResetWipesWhatIsPinned) {
  become_secure();
  connect(kIsolated);
  map_all();
  ASSERT_NE(read(3), Bytes(kPageSize));
  ASSERT_TRUE(guest->svm_off().has_value());
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(read(page), Bytes(kPageSize)) << page;
  std::memcpy(at(3), text(3).data(), kPageSize);
  EXPECT_EQ(read(3), text(3)) << "one page for both, as before";
  unmap_all();
}

TEST_F(SecureBesideDma, TheExternalDomainPinsWhatItsDriverAsksForAndThatIsSealed) {
  become_secure();
  connect(kExternal);
  map_all();
  for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(state(page), PageState::kSecure) << page;
  // Without a pin: as any other access of the process.
  EXPECT_LT(equal_bytes(read(2), text(2)), kPageSize / 50);
  EXPECT_EQ(guest_bytes(2), text(2));
  ASSERT_TRUE(dma_->hold(iova(3), kPageSize, true).has_value());
  EXPECT_EQ(state(3), PageState::kPagedOut);
  EXPECT_EQ(state(4), PageState::kSecure);
  EXPECT_EQ(touch(3), GuestAccess::kRetry);
  EXPECT_LT(equal_bytes(read(3), text(3)), kPageSize / 50);
  dma_->let_go(iova(3), kPageSize);
  EXPECT_EQ(guest_bytes(3), text(3));
}

// By its process's own addresses (SVA) nothing is pinned: each access is a touch.
TEST_F(SecureBesideDma, ByAddressesOfTheProcessEachAccessSealsAndNothingIsPinned) {
  become_secure();
  connect(kIsolated);
  const auto pasid = dma_->bind_process();
  ASSERT_TRUE(pasid.has_value());
  for (int turn = 0; turn < 3; ++turn) {
    Bytes bytes(kPageSize);
    const auto answer = dma_->read(hva(3).raw(), bytes.data(), kPageSize, {*pasid, true});
    ASSERT_EQ(answer.done, kPageSize) << turn;
    EXPECT_LT(equal_bytes(bytes, text(3)), kPageSize / 50);
    EXPECT_EQ(host::pin_use().pages, 0u);
    EXPECT_EQ(guest_bytes(3), text(3)) << "and the guest may have it at once";
  }
  dma_->unbind_process();
}

}  // namespace
}  // namespace stagetwo::uv
