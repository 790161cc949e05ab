// SPDX-License-Identifier: Apache-2.0
#pragma once

// A client that maps regions of its device as the shim does it for a program.

#include <sys/mman.h>

#include "abi/vfio/mappings.h"
#include "host/mmu_notifier.h"
#include "tests/unit/abi/vfio/register_device.h"
#include "tests/unit/abi/vfio/vfio_client.h"

namespace stagetwo {

class MappedRegion : public VfioClient {
 protected:
  MappedRegion() {
    test::register_devices();
    type_ = "registers-a";
  }
  void SetUp() override {
    VfioClient::SetUp();
    open_device();
  }
  void TearDown() override {
    for (u8* const at : mapped_) unmap(at);
    VfioClient::TearDown();
  }
  // As the shim does it.
  int mmap_errno(u64 offset, u64 size, int flags = MAP_SHARED) {
    const host::MapRequest request{size, PROT_READ | PROT_WRITE, flags, static_cast<off_t>(offset)};
    const auto checked = host::find(device_)->check_mmap(request);
    return checked ? 0 : to_int(checked.error());
  }
  u8* map_region(u64 offset, u64 size, int prot = PROT_READ | PROT_WRITE) {
    const host::MapRequest request{size, prot, MAP_SHARED, static_cast<off_t>(offset)};
    const auto ref = host::find(device_);
    EXPECT_TRUE(ref->check_mmap(request));
    void* const at = mmap(nullptr, size, prot, MAP_SHARED, device_, request.offset);
    EXPECT_NE(at, MAP_FAILED);
    EXPECT_TRUE(dynamic_cast<host::PlacedMaps*>(ref.get())->mapped_at(
        Hva(reinterpret_cast<u64>(at)), request));
    mapped_[count_] = static_cast<u8*>(at);
    sizes_[count_++] = size;
    return static_cast<u8*>(at);
  }
  void unmap(u8* at) {
    for (unsigned i = 0; i < count_; ++i) {
      if (at == nullptr || mapped_[i] != at) continue;
      const host::InvalidateSection change(
          {HvaRange(Hva(reinterpret_cast<u64>(at)), sizes_[i]), host::EventKind::kUnmap});
      munmap(at, sizes_[i]);
      mapped_[i] = nullptr;
    }
  }
  static const test::RegisterState& seen() { return *test::RegisterDevice::state; }
  static const test::Stored& last() { return seen().stored[seen().count - 1]; }
  static void expect_last(u64 offset, u64 value, u32 bytes) {
    ASSERT_NE(seen().count, 0u);
    EXPECT_EQ(last().offset, offset);
    EXPECT_EQ(last().value, value);
    EXPECT_EQ(last().bytes, bytes);
  }

  u8* mapped_[8] = {};
  u64 sizes_[8] = {};
  unsigned count_ = 0;
};

template <typename T>
void put(u8* at, T value) {
  *reinterpret_cast<volatile T*>(at) = value;
}
template <typename T>
T get(const u8* at) {
  return *reinterpret_cast<const volatile T*>(at);
}

}  // namespace stagetwo
