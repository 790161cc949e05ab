// SPDX-License-Identifier: Apache-2.0
#pragma once

// libcrypto, found and loaded when the first page is sealed (docs/decisions/0027-sealed-pages.md).
// The object is libstagetwo_crypto.so: beside the object this code is in, in ../lib/stagetwo from
// there (a program of ours), or where the loader looks (a program that links the archive).
// What libcrypto allocates, key schedules among it, is not dumped and is wiped when given back.

#include "base/result.h"
#include "mem/crypto/aes_gcm.h"

namespace stagetwo::mem {

// Loads it once; the same answer ever after. Failure: ENOENT (no such object), ELIBBAD (it is not
// ours, or libcrypto would not start). Context: no lock that a client's allocator or the loader may
// want; may sleep.
[[nodiscard]] Result<const stagetwo_cipher_calls*> cipher_library();

}  // namespace stagetwo::mem
