// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the acceptance checks of secure guests share: a guest that is secure, at either size of
// page.

#include <gtest/gtest.h>

#include <memory>

#include "tests/support/secure_machine.h"

namespace stagetwo::uv {

using test::Bytes;
using test::SecureMachine;

class SecureGuestCheck : public testing::TestWithParam<u64> {
 protected:
  // A secure guest of `pages` pages with known text, in a pool that holds all of it.
  static std::unique_ptr<SecureMachine> secure(u64 pages, u32 pool = 0, bool evicts = true) {
    auto m = std::make_unique<SecureMachine>(
        GetParam(), pool != 0 ? pool : static_cast<u32>(pages) + 8, evicts);
    EXPECT_TRUE(m->opened);
    m->plug(0, 0, pages);
    m->vmm_fill(0, pages);
    EXPECT_EQ(m->esm(), Status::kSuccess);
    return m;
  }
  static Bytes zeros() { return Bytes(GetParam()); }
};

}  // namespace stagetwo::uv
