// SPDX-License-Identifier: Apache-2.0
// The layout and the numbers of uapi.h, as Linux 6.12 on x86-64 has them.
#include <cstddef>

#include "abi/hmm/uapi.h"

static_assert(sizeof(hmm_dmirror_cmd) == 40);
static_assert(offsetof(hmm_dmirror_cmd, ptr) == 8);
static_assert(offsetof(hmm_dmirror_cmd, npages) == 16);
static_assert(offsetof(hmm_dmirror_cmd, cpages) == 24);
static_assert(offsetof(hmm_dmirror_cmd, faults) == 32);
static_assert(HMM_DMIRROR_READ == 0xC0284800);
static_assert(HMM_DMIRROR_RELEASE == 0xC0284807);
