// SPDX-License-Identifier: Apache-2.0
#pragma once

// Ways to violate each line of the order in which KVM_SET_USER_MEMORY_REGION(2) refuses, by the
// call alone; the calls they are made to, and the slots that stand there before.

#include <array>
#include <functional>
#include <vector>

#include "stage2/memslots.h"
#include "tests/support/region.h"
#include "tests/support/slot_model.h"

namespace stagetwo::test {

inline constexpr u32 kThere = 5;      // a plain slot at 1 MiB
inline constexpr u32 kFileSlot = 6;   // a guest_memfd slot at 2 MiB
inline constexpr u32 kOtherSlot = 8;  // a plain slot elsewhere
inline constexpr u64 kOrderMiB = 1 << 20;
inline constexpr u64 kOrderHva = 0x7f0000000000;

struct RegionViolation {
  int line;
  const char* how;
  std::function<void(stage2::Region&)> make;
};

enum class BaseCall : u8 { kCreate, kDelete, kModify };
inline constexpr std::array kBaseCalls = {BaseCall::kCreate, BaseCall::kDelete, BaseCall::kModify};

inline stage2::Region order_region(u32 slot, u64 gpa, u64 size = 16 * 4096) {
  return region_of(slot, gpa, size, size == 0 ? 0 : kOrderHva, 0);
}
inline stage2::Region file_region() {
  stage2::Region region =
      region_of(kFileSlot, 2 * kOrderMiB, 16 * 4096, kOrderHva + kOrderMiB, stage2::kGuestMemfd);
  name_memfd(&region, kMemfdGood);
  return region;
}

// What is there before. `other`: the address of kOtherSlot.
inline std::vector<stage2::Region> furniture(bool memfd, u64 other) {
  std::vector<stage2::Region> all = {order_region(kThere, kOrderMiB),
                                     order_region(kOtherSlot, other)};
  if (memfd) all.push_back(file_region());
  return all;
}

inline stage2::Region base_call(BaseCall base, bool memfd) {
  stage2::Region region = base == BaseCall::kCreate   ? order_region(1, 16 * kOrderMiB)
                          : base == BaseCall::kDelete ? order_region(kThere, 0, 0)
                                                      : order_region(kThere, 17 * kOrderMiB);
  name_memfd(&region, memfd ? kMemfdGood : kMemfdClosed);
  return region;
}

inline std::vector<RegionViolation> region_violations(u64 other) {
  using stage2::Region;
  const auto with_file = [](Region& r) { r.flags |= stage2::kGuestMemfd; };
  const auto of_the_slot = [](Region& r) { r.slot = kThere; };
  return {
      {2, "old ioctl, unknown flag",
       [](Region& r) {
         r.first_version = true;
         r.flags |= 8;
       }},
      {2, "old ioctl, file flag",
       [=](Region& r) {
         r.first_version = true;
         with_file(r);
       }},
      {3, "id", [](Region& r) { r.slot = (r.slot & ~0xffffU) | stage2::kUserSlots; }},
      {4, "unknown flag", [](Region& r) { r.flags |= 16; }},
      {4, "file and logging",
       [=](Region& r) {
         with_file(r);
         r.flags |= stage2::kLogDirtyPages;
       }},
      {4, "file and read-only",
       [=](Region& r) {
         with_file(r);
         r.flags |= stage2::kReadonly;
       }},
      {4, "internal flag", [](Region& r) { r.flags |= stage2::kInvalid; }},
      {5, "size", [](Region& r) { r.size += 1; }},
      {6, "gpa", [](Region& r) { r.gpa |= 8; }},
      {7, "hva alignment", [](Region& r) { r.hva |= 16; }},
      {7, "hva in the kernel's half", [](Region& r) { r.hva = u64{0xffff8} << 44; }},
      {8, "file offset",
       [=](Region& r) {
         with_file(r);
         r.memfd_offset = 4095;
       }},
      {8, "file offset wraps",
       [=](Region& r) {
         with_file(r);
         r.memfd_offset = ~u64{0} & kPageMask;
         r.size += 4096;
       }},
      {9, "address space", [](Region& r) { r.slot |= 4U << 16; }},
      {10, "gpa wraps", [](Region& r) { r.gpa = (~u64{0} & kPageMask) | (r.gpa & 0xfff); }},
      {11, "pages",
       [](Region& r) {
         r.size += u64{1} << 43;
         r.hva &= 0xffff000000000fff;
       }},
      {12, "no such slot",
       [](Region& r) {
         r.slot = (r.slot & ~0xffffU) | 77;
         r.size = 0;
       }},
      {15, "file flag on a slot",
       [=](Region& r) {
         of_the_slot(r);
         with_file(r);
       }},
      {15, "file slot again", [](Region& r) { r = file_region(); }},
      {16, "other hva",
       [=](Region& r) {
         of_the_slot(r);
         r.hva += 4096;
       }},
      {16, "other size",
       [=](Region& r) {
         of_the_slot(r);
         r.size += 4096;
       }},
      {16, "read-only toggles",
       [=](Region& r) {
         of_the_slot(r);
         r.flags ^= stage2::kReadonly;
       }},
      {17, "identical", [](Region& r) { r = order_region(kThere, kOrderMiB); }},
      {18, "overlap", [=](Region& r) { r.gpa = other | (r.gpa & 0xfff); }},
      {20, "file not open",
       [=](Region& r) {
         with_file(r);
         name_memfd(&r, kMemfdClosed);
       }},
      {21, "not its file",
       [=](Region& r) {
         with_file(r);
         name_memfd(&r, kMemfdForeign);
       }},
  };
}

}  // namespace stagetwo::test
