// SPDX-License-Identifier: Apache-2.0
#pragma once

// What stat and statx say of our names and descriptors.

#include <sys/stat.h>

#include "host/descriptor.h"
#include "shim/paths.h"

namespace stagetwo::shim {

// Pre: target is ours. Every field is written.
void show_target(const Target& target, struct ::stat* out);
// Of a descriptor: what the kernel said of the memfd, corrected.
void show_description(const host::DescriptionRef& ref, struct ::stat* out);
void to_statx(const struct ::stat& from, struct ::statx* out);

// access(2): 0, EACCES or EINVAL. `effective`: of AT_EACCESS.
int access_refusal(const Target& target, int mode, bool effective);

}  // namespace stagetwo::shim
