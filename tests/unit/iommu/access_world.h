// SPDX-License-Identifier: Apache-2.0
#pragma once

// An IOAS, and somebody who pins by an access to it.

#include <cstddef>
#include <functional>
#include <vector>

#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {

// Lets go when told, or does not.
class Holder final : public AccessClient {
 public:
  void unmap(u64 iova, u64 last) override {
    ++calls;
    if (meanwhile) meanwhile();
    if (context == nullptr) return;
    Locked locked(*context);
    for (size_t i = pins.size(); i-- > 0;) {
      if (pins[i].start > last || pins[i].last < iova) continue;
      locked.unpin(**locked.find<Access>(id), pins[i].start, pins[i].last - pins[i].start + 1);
      pins.erase(pins.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  Context* context = nullptr;
  u32 id = 0;
  std::vector<IovaRanges> pins;
  int calls = 0;
  std::function<void()> meanwhile;  // before it lets go
};

class AccessWorld : public IommufdWorld {
 protected:
  void SetUp() override {
    IommufdWorld::SetUp();
    ioas_ = make_ioas();
    for (size_t i = 0; i < memory_.bytes(); ++i) *memory_.bytes_at(i) = static_cast<u8>(i * 7);
  }
  void TearDown() override {
    if (holder_.id != 0) context_->destroy_access(holder_.id);
    EXPECT_EQ(unmap_all(ioas_), 0);
    EXPECT_EQ(destroy(ioas_), 0);
    IommufdWorld::TearDown();
  }
  void make_access(bool pins) {
    Locked locked(*context_);
    holder_.context = context_.get();
    holder_.id = (*locked.make_access(*locked.find<Ioas>(ioas_), pins, &holder_))->object.id;
  }
  int pin(u64 iova, u64 length, bool write = true) {
    Locked locked(*context_);
    u64 frames[64];
    const auto done = locked.pin(**locked.find<Access>(holder_.id), iova, length, write, frames);
    if (done) holder_.pins.push_back({iova, iova + length - 1});
    return error_of(done);
  }
  int transfer(u64 iova, u64 length, void* to, const void* from) {
    Locked locked(*context_);
    return error_of(locked.transfer(**locked.find<Access>(holder_.id), iova, length, to, from));
  }

  u32 ioas_ = 0;
  Holder holder_;
  test::GuardedPages memory_{4};
  static constexpr u64 kIova = 0x100000;
};

}  // namespace stagetwo::iommu
