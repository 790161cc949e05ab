// SPDX-License-Identifier: Apache-2.0
#pragma once

// An iommufd of a test's own, and memory to map into it. At the end everything must be given back.

#include <gtest/gtest.h>

#include "host/backstop.h"
#include "host/pin.h"
#include "host/pin_account.h"
#include "iommu/locked.h"
#include "tests/support/pages.h"

namespace stagetwo::iommu {

inline constexpr u32 kReadWrite = kMayRead | kMayWrite;
inline constexpr u64 kApertureStart = u64{1} << 24;
inline constexpr u64 kApertureLast = (u64{1} << 31) - 1;

template <typename T>
int error_of(const Result<T>& result) {
  return result ? 0 : to_int(result.error());
}

class IommufdWorld : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    backing_.emplace(*Context::make_file("test-iommufd"));
    context_ = *Context::attach(backing_->fd());
  }
  void TearDown() override {
    {
      Locked locked(*context_);
      EXPECT_EQ(locked.root().objects, 0u) << "the test leaves objects";
      EXPECT_EQ(locked.root().page_sets.get(), nullptr);
      // The table of objects stays.
      EXPECT_EQ(locked.arena().blocks_in_use(), locked.root().table.get() == nullptr ? 0 : 1);
    }
    EXPECT_EQ(host::pin_use().pages, 0u);
    EXPECT_EQ(host::pin_use().pins, 0u);
  }

  u32 make_ioas() {
    Locked locked(*context_);
    return (*locked.make_ioas())->object.id;
  }
  // Answers the errno; *iova is in and out where `fixed`, else out.
  int map(u32 ioas, u64 address, u64 length, u64* iova, bool fixed = true,
          u32 rights = kReadWrite) {
    MapRequest request{fixed, *iova, length, rights};
    const auto done = context_->map(ioas, address, &request);
    if (done) *iova = request.iova;
    return error_of(done);
  }
  int map_at(u32 ioas, u64 address, u64 length, u64 iova, u32 rights = kReadWrite) {
    return map(ioas, address, length, &iova, true, rights);
  }
  int unmap(u32 ioas, u64 iova, u64 length, u64* bytes = nullptr) {
    u64 unmapped = 0;
    const auto done = context_->unmap(ioas, iova, iova + (length - 1), &unmapped);
    if (bytes != nullptr) *bytes = unmapped;
    return error_of(done);
  }
  int unmap_all(u32 ioas) {
    u64 unmapped = 0;
    return error_of(context_->unmap(ioas, 0, ~u64{0}, &unmapped));
  }
  int destroy(u32 id) {
    Locked locked(*context_);
    return error_of(locked.destroy(id));
  }

  struct Attached {
    u32 test_device = 0, device = 0, hwpt = 0;
    int error = 0;
  };
  Attached attach_device(u32 pt_id, bool no_dirty = false, bool huge = false) {
    Locked locked(*context_);
    Attached out;
    const auto test = locked.add<TestDevice>(ObjectType::kTestDevice, "test");
    if (!test) return {.error = error_of(test)};
    const auto device = locked.make_device(no_dirty, huge, 0);
    if (!device) {
      locked.remove(*test);
      return {.error = error_of(device)};
    }
    (*device)->object.users = 1;
    (*test)->device = *device;
    out = {(*test)->object.id, (*device)->object.id, pt_id, 0};
    const auto attached = locked.attach(**device, &out.hwpt);
    out.error = error_of(attached);
    if (!attached) {
      locked.remove(*device);
      locked.remove(*test);
    }
    return out;
  }
  // The frame address a device finds at `iova`; kNowhere: nothing.
  static constexpr u64 kNowhere = ~u64{0};
  u64 walk(u32 hwpt, u64 iova) {
    Locked locked(*context_);
    const auto found = translate(locked.arena(), (*locked.find<Hwpt>(hwpt))->domain, iova);
    return found ? found->address : kNowhere;
  }
  u64 frame_address(u64 address) {
    Locked locked(*context_);
    const auto frame = locked.frame_at(page_floor(Hva(address)));
    return frame ? *frame * kPageSize + address % kPageSize : kNowhere;
  }
  static u32 pins_at(u64 address) {
    const auto frame = host::frame_at(Hva(address));
    return frame ? host::pins_of(*frame) : 0;
  }

  std::optional<host::Backing> backing_;
  Box<Context> context_;
};

}  // namespace stagetwo::iommu
