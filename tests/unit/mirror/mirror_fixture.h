// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory of the client, two devices that mirror it, and changes of it that ring the bell.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <functional>
#include <vector>

#include "host/backstop.h"
#include "host/change.h"
#include "mirror/mirror.h"
#include "tests/support/mirror_access.h"
#include "tests/support/pages.h"

namespace stagetwo::test {

// Does something when a migration of the device has just ended.
class AtTheEnd final : public host::MmuNotifier {
 public:
  AtTheEnd(mirror::Mirror& device, std::function<void()> what)
      : device_(device), what_(std::move(what)) {
    EXPECT_TRUE(host::register_notifier(this));
  }
  ~AtTheEnd() { host::unregister_notifier(this); }
  bool invalidate_range_start(const host::InvalidateEvent&) override { return true; }
  void invalidate_range_end(const host::InvalidateEvent& event) override {
    if (event.owner != mirror::MirrorTestAccess::cookie(device_)) return;
    ++ends;
    what_();
  }
  unsigned ends = 0;

 private:
  mirror::Mirror& device_;
  std::function<void()> what_;
};

class MirrorTest : public testing::Test {
 protected:
  static constexpr size_t kPages = 100;  // more than one chunk of a fault
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    one_ = std::move(*mirror::Mirror::open(0));
    two_ = std::move(*mirror::Mirror::open(1));
    for (size_t i = 0; i < kPages; ++i) fill(i, i + 1);
  }
  void TearDown() override {
    one_.reset();
    two_.reset();
    discard();
  }

  [[nodiscard]] u8* page(size_t i) const { return memory_.bytes_at(i * kPageSize); }
  [[nodiscard]] Hva at(size_t i) const { return Hva(memory_.address() + i * kPageSize); }
  [[nodiscard]] HvaRange range(size_t first = 0, size_t pages = kPages) const {
    return HvaRange(at(first), pages * kPageSize);
  }
  void fill(size_t i, size_t value) const {
    std::memset(page(i), static_cast<int>(value), kPageSize);
  }
  void discard(size_t first = 0, size_t pages = kPages) const {
    host::change(at(first).raw(), pages * kPageSize, host::EventKind::kClear,
                 [&] { return ::madvise(page(first), pages * kPageSize, MADV_DONTNEED); });
  }
  void protect(int prot, size_t first = 0, size_t pages = kPages) const {
    const auto call = [&] { return ::mprotect(page(first), pages * kPageSize, prot); };
    const auto loss = host::loss_by_mprotect(prot);
    const u64 bytes = pages * kPageSize;
    ASSERT_EQ(0, loss ? host::change(at(first).raw(), bytes, *loss, call)
                      : host::gain(at(first).raw(), bytes, call));
  }
  // What a device reads of a page, first and last byte; 256: refused, errno in *error.
  int read_page(mirror::Mirror& device, size_t i, u64* faults = nullptr, int* error = nullptr) {
    mirror::Transfer done;
    std::vector<u8> bytes(kPageSize);
    const auto read = device.read(at(i), 1, bytes.data(), &done);
    if (faults != nullptr) *faults = done.faults;
    if (error != nullptr) *error = read ? 0 : to_int(read.error());
    return read && bytes[0] == bytes[kPageSize - 1] ? bytes[0] : 256;
  }
  int write_page(mirror::Mirror& device, size_t i, u8 value, u64* faults = nullptr) {
    mirror::Transfer done;
    const std::vector<u8> bytes(kPageSize, value);
    const auto wrote = device.write(at(i), 1, bytes.data(), &done);
    if (faults != nullptr) *faults = done.faults;
    return wrote ? 0 : to_int(wrote.error());
  }

  GuardedPages memory_{kPages};
  Box<mirror::Mirror> one_, two_;
};

}  // namespace stagetwo::test
