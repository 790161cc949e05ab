// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sealing pages of one secure guest, so that they can lie in memory anybody may read: AES-256-GCM
// with a key that lives and dies with the store.
//
// I1  no nonce is used twice under a key: the counter is burnt before the cipher runs, also when
//     the cipher then fails.
// I2  open() gives the bytes that seal() was given for the same identity and the same record, or
//     refuses; the receiver sees no byte of a page that is refused.
// I3  the key, its schedules and nothing else of the store are secret; all of them lie in memory
//     that is not dumped and is wiped when the store ends.
//
// The record is what makes an old copy of a page refused: it is the caller's, and it must be kept
// where nobody else can write (PageRecord of `uv` stands in SecureMemory).
// Analogue: the ultravisor's page-out cipher. Differs: the identity is authenticated, too.
// Locking: a lane has a lock of rank mem store, held while a page is sealed or opened. Two pages on
// two threads go at once.

#include "base/result.h"
#include "base/types.h"
#include "mem/crypto/aes_gcm.h"
#include "mem/secure_memory.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::mem {

// What a page is: which guest's, in which of its lives, where, how large. All of it is
// authenticated with the page.
struct SealedIdentity {
  u64 guest = 0;
  u64 incarnation = 0;  // counts how often the guest became secure
  u64 address = 0;
  u64 bytes = 0;
};

// What one sealing left behind, needed to open it.
struct SealedRecord {
  u64 version = 0;  // 0: never sealed
  u8 tag[16] = {};
};

class SealedStore {
 public:
  // Encryptions under one key (NIST SP 800-38D counts 2^32 for nonces that may collide; ours do
  // not).
  static constexpr u64 kMostVersions = u64{1} << 32;

  SealedStore() = default;
  SealedStore(const SealedStore&) = delete;
  SealedStore& operator=(const SealedStore&) = delete;
  ~SealedStore() { forget(); }

  // A new key, from the kernel. Pre: no page is being sealed or opened. Failure: what
  // cipher_library() says, ENOMEM.
  [[nodiscard]] Result<void> begin();
  // Wipes the key: nothing sealed under it can be opened any more.
  void forget();

  // Seals `page` into `sealed`, `identity.bytes` each. Failure: EOVERFLOW (the key is used up),
  // EIO (the cipher failed, `sealed` is zeros). *record changes only on success.
  [[nodiscard]] Result<void> seal(const SealedIdentity& identity, const void* page, void* sealed,
                                  SealedRecord* record);
  // `page` may be `sealed` itself. Failure: EBADMSG, and `page` is zeros: `sealed` is not what was
  // sealed for this identity in this version.
  [[nodiscard]] Result<void> open(const SealedIdentity& identity, const SealedRecord& record,
                                  const void* sealed, void* page);

  // The version of the latest sealing.
  [[nodiscard]] u64 version() const { return version_.load(sync::kRelaxed); }
  // For tests of the limit.
  void debug_set_version(u64 version) { version_.store(version, sync::kRelaxed); }

 private:
  static constexpr unsigned kLanes = 4;
  struct alignas(64) Lane {
    sync::Mutex lock{sync::Rank::kMemStore};
    void* key TA_GUARDED(lock) = nullptr;
  };
  template <typename Run>
  int with_lane(Run run);

  const stagetwo_cipher_calls* cipher_ = nullptr;  // set by begin()
  sync::Atomic<u64> version_{0};                   // relaxed: each number is given out once
  Lane lanes_[kLanes];
};

}  // namespace stagetwo::mem
