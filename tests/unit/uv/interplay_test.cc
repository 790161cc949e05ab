// SPDX-License-Identifier: Apache-2.0
// Goal: secure pages beside the other owners of pages. A sealed page may be swapped and may go to a
// device, a secure one never; a shared one is the same for everybody wherever it has been.
#include <chrono>
#include <thread>

#include "host/page_owner.h"
#include "host/worker.h"
#include "mem/swap_file.h"
#include "mirror/mirror.h"
#include "reclaim/reclaim.h"
#include "tests/support/process_guest.h"

namespace stagetwo::uv {
namespace {

class SecureBeside : public ProcessGuest {
 protected:
  // Pages the VMM looks at lie sealed in the process.
  void seal(u64 first, u64 count) {
    for (u64 page = first; page < first + count; ++page) {
      ASSERT_LT(equal_bytes(seen(page), text(page)), kPageSize / 50);
      ASSERT_EQ(guest->page(Gpa(page * kPageSize)), PageState::kPagedOut);
    }
  }
  void share(u64 page, const Bytes& what) {
    ASSERT_EQ(guest_call(Call::kUvSharePage, page, 1), Status::kSuccess);
    std::memcpy(at(page), what.data(), kPageSize);
  }
};

// ---- reclaim ------------------------------------------------------------------------------------

class SecureBesideReclaim : public SecureBeside {
 protected:
  void SetUp() override {
    SecureBeside::SetUp();
    if (IsSkipped()) return;
    become_secure();
  }
  void TearDown() override {
    user_.reset();
    reclaim::stop();
    SecureBeside::TearDown();
  }
  // Nothing may stay that can go.
  void start() {
    reclaim::Settings settings;
    settings.memory_limit = kPageSize;
    // Sealed pages do not get smaller: they go to the file.
    const auto file = mem::SwapFile::create(testing::TempDir().c_str());
    ASSERT_TRUE(file.has_value());
    settings.swap_fd = *file;
    ASSERT_TRUE(reclaim::start(settings).has_value());
    user_ = std::make_unique<reclaim::Guest>();
    ASSERT_TRUE(user_->use(0, range()).has_value());
  }
  bool goes(u64 page) {
    for (int i = 0; i < 5000 && !reclaim::keeps(hva(page)); ++i) {
      host::kick_worker(true);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return reclaim::keeps(hva(page));
  }
  std::unique_ptr<reclaim::Guest> user_;
};

TEST_F(SecureBesideReclaim, ASealedPageMayBeSwappedAndASecureOneNever) {
  seal(0, 4);
  start();
  for (u64 page = 0; page < 4; ++page) EXPECT_TRUE(goes(page)) << page;
  for (u64 page = 4; page + 1 < kPages; ++page) {
    EXPECT_FALSE(reclaim::keeps(hva(page))) << page;
    EXPECT_EQ(guest->page(Gpa(page * kPageSize)), PageState::kSecure);
  }
  for (u64 page = 0; page + 1 < kPages; ++page) EXPECT_EQ(guest_bytes(page), text(page)) << page;
  EXPECT_EQ(ultravisor.use(kLpid).tampered, 0u);
  EXPECT_EQ(reclaim::statistics().lost, 0u);
}

TEST_F(SecureBesideReclaim, ASharedPageThatWasSwappedIsOnePageForBoth) {
  share(5, text(9));
  ASSERT_EQ(guest_bytes(5), text(9));
  const u64 told = guest->use().forgotten;
  start();
  ASSERT_TRUE(goes(5));
  EXPECT_GT(guest->use().forgotten, told) << "its frame is used by nobody any more";
  EXPECT_EQ(guest_bytes(5), text(9));
  std::memcpy(at(5), text(8).data(), kPageSize);
  EXPECT_EQ(guest_bytes(5), text(8));
}

TEST_F(SecureBesideReclaim, AResetWipesWhatIsSwapped) {
  seal(0, 2);
  share(5, text(9));
  start();
  ASSERT_TRUE(goes(0) && goes(1) && goes(5));
  ASSERT_TRUE(guest->svm_off().has_value());
  for (const u64 page : {u64{0}, u64{1}, u64{5}}) EXPECT_EQ(seen(page), Bytes(kPageSize)) << page;
}

// ---- a device's mirror --------------------------------------------------------------------------

class SecureBesideMirror : public SecureBeside {
 protected:
  void SetUp() override {
    SecureBeside::SetUp();
    if (IsSkipped()) return;
    device_ = std::move(*mirror::Mirror::open(0));
    become_secure();
  }
  void TearDown() override {
    device_.reset();
    SecureBeside::TearDown();
  }
  Bytes read(u64 page) {
    Bytes bytes(kPageSize);
    mirror::Transfer done;
    return device_->read(hva(page), 1, bytes.data(), &done) ? bytes : Bytes();
  }
  Box<mirror::Mirror> device_;
};

TEST_F(SecureBesideMirror, ADeviceReadsSealedBytesAndForgetsThemWhenTheGuestComes) {
  const Bytes first = read(3);
  ASSERT_EQ(first.size(), kPageSize);
  EXPECT_LT(equal_bytes(first, text(3)), kPageSize / 50);
  EXPECT_EQ(guest->page(Gpa(3 * kPageSize)), PageState::kPagedOut);
  EXPECT_EQ(guest_bytes(3), text(3));
  const Bytes second = read(3);
  EXPECT_LT(equal_bytes(second, text(3)), kPageSize / 50);
  EXPECT_LT(equal_bytes(second, first), kPageSize / 50) << "sealed anew, not remembered";
}

TEST_F(SecureBesideMirror, ADeviceThatWritesASealedPageEndsTheGuest) {
  mirror::Transfer done;
  const Bytes noise(kPageSize, 7);
  ASSERT_TRUE(device_->write(hva(3), 1, noise.data(), &done).has_value());
  EXPECT_EQ(guest_bytes(3), Bytes());
  EXPECT_EQ(ultravisor.state(kLpid), SvmState::kStopped);
}

TEST_F(SecureBesideMirror, ASealedPageThatWentToADeviceComesBackForTheGuest) {
  seal(3, 1);
  ASSERT_TRUE(device_->migrate_to_device(range(3, 1)).has_value());
  ASSERT_TRUE(host::is_absent(hva(3)));
  EXPECT_EQ(guest_bytes(3), text(3));
}

TEST_F(SecureBesideMirror, ASecurePageDoesNotGoToADevice) {
  static_cast<void>(device_->migrate_to_device(range(3, 2)));
  EXPECT_EQ(guest->page(Gpa(3 * kPageSize)), PageState::kSecure);
  EXPECT_EQ(guest_bytes(3), text(3));
  EXPECT_EQ(guest_bytes(4), text(4));
}

TEST_F(SecureBesideMirror, ASharedPageThatWentToADeviceIsOnePageForBoth) {
  share(5, text(9));
  ASSERT_TRUE(device_->migrate_to_device(range(5, 1)).has_value());
  ASSERT_TRUE(host::is_absent(hva(5)));
  EXPECT_EQ(guest_bytes(5), text(9));
  EXPECT_EQ(read(5), text(9));
  std::memcpy(at(5), text(8).data(), kPageSize);
  EXPECT_EQ(guest_bytes(5), text(8));
  EXPECT_EQ(read(5), text(8));
}

}  // namespace
}  // namespace stagetwo::uv
