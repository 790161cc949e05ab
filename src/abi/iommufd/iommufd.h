// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: /dev/iommu. Linux analogue: iommufd_fops (kernel file:
// drivers/iommu/iommufd/main.c). All state hangs off the file description (iommu/context.h), so a
// child of fork and whoever receives the descriptor work on the same objects.
//
// The first check that fails answers, in the kernel's order.

#include <span>
#include <string_view>

#include "base/alloc.h"
#include "base/result.h"
#include "base/types.h"
#include "host/descriptor.h"

namespace stagetwo::abi_iommufd {

inline constexpr u32 kMinor = 122;  // the kernel takes a free one

// Is IOMMU_TEST_CMD there (CONFIG_IOMMUFD_TEST)? Default: no. `stagetwo run --iommufd-test`.
void set_test_commands(bool on);

// Are the requests of 6.13 to 6.18 there? Default: no. `stagetwo run --abi=6.18`.
void set_newer_requests(bool on);

// open("/dev/iommu", flags). Failure: EMFILE, ENFILE, ENOMEM.
[[nodiscard]] Result<int> open_device(int flags);

// The files of fault injection that stand beside the test command (fail_nth.cc): /proc/…/fail-nth,
// and one of debugfs. Failure: as open_device().
[[nodiscard]] Result<int> open_fail_nth(int flags);
[[nodiscard]] Result<int> open_fail_knob(int flags);
// Told the sites that failed in a sweep, when it is over.
using SiteReport = void (*)(std::span<const char* const> sites);
void set_site_report(SiteReport report);

// The description of a received descriptor (host::set_attacher); empty: not of this room.
[[nodiscard]] Box<host::Description> attach(std::string_view kind, int fd,
                                            host::DescriptorSpec* spec);

}  // namespace stagetwo::abi_iommufd
