// SPDX-License-Identifier: Apache-2.0
#pragma once

// Hardware queues of a virtual IOMMU: memory of the guest's that the IOMMU itself reads commands
// from, by frames. The pages are pinned and follow each other; while there is a queue nobody unmaps
// what they are mapped by.
//
// Analogue: struct iommufd_hw_queue (kernel file: drivers/iommu/iommufd/viommu.c), and the selftest
// driver's own: two places, the second after the first.
// I1  An area has a lock for each hardware queue in it, and at least so many accesses.
// I2  A queue that another was made after counts it as a user.
// Locking: the arena's.

#include "iommu/viommu.h"

namespace stagetwo::iommu {

struct HardwareQueue {
  Object object;
  RelPtr<Viommu> viommu;
  RelPtr<HardwareQueue> before;  // the one in the place before
  RelPtr<Access> access;
  Kept<u64> iova;  // of the pages it is in
  Kept<u64> length;
  Kept<u32> place;
};

template <>
struct TypeOf<HardwareQueue> {
  static bool is(ObjectType t) { return t == ObjectType::kHardwareQueue; }
};

// [iova, iova + length) in what the virtual IOMMU's parent maps. Failure: ERANGE, ENOENT (not
// mapped), EINVAL (no such place, or as an access), EPERM, EFAULT (frames that do not follow each
// other), EEXIST (the place is taken), EIO (the one before is not), ENOMEM. Pre: length != 0.
Result<HardwareQueue*> make_hardware_queue(Locked& locked, Viommu& viommu, u32 place, u64 iova,
                                           u64 length);
void destroy_hardware_queue(Locked& locked, HardwareQueue* queue);  // pre: no users

}  // namespace stagetwo::iommu
