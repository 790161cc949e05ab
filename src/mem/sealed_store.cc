// SPDX-License-Identifier: Apache-2.0
#include "mem/sealed_store.h"

#include <sys/syscall.h>

#include <cstring>

#include "base/check.h"
#include "base/failpoint.h"
#include "base/sys.h"
#include "mem/cipher_library.h"
#include "sync/try_mutex.h"

// What is authenticated beside the bytes, 48 bytes:
//
//   0        8        16            24        32          40        48
//   | format | guest  | incarnation | address | page size | version |
//
// The nonce is the domain (32 bits) and the version (64 bits), little-endian: a version is used
// once under a key, so a nonce is. The version stands in both: the record, not the nonce's
// construction, is what an old copy fails against.

namespace stagetwo::mem {
namespace {

constexpr size_t kKeyBytes = 32;
constexpr u32 kPageDomain = 1;  // 2 is kept for a stream of pages that leaves the process
constexpr char kFormat[9] = "st2page1";

struct Associated {
  char format[8];
  u64 guest, incarnation, address, bytes, version;
};
static_assert(sizeof(Associated) == 48, "no padding: every byte is authenticated");

Associated associated(const SealedIdentity& identity, u64 version) {
  Associated data{{},     identity.guest, identity.incarnation, identity.address, identity.bytes,
                  version};
  std::memcpy(data.format, kFormat, sizeof(data.format));
  return data;
}

struct Nonce {
  u8 bytes[12];
  explicit Nonce(u64 version) {
    std::memcpy(bytes, &kPageDomain, 4);
    std::memcpy(bytes + 4, &version, 8);
  }
};

Result<void> random_bytes(u8* to, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const long got = sys::call(SYS_getrandom, sys::arg(to + done), static_cast<long>(bytes - done));
    if (got == -EINTR) continue;
    if (got <= 0) return refuse(got < 0 ? static_cast<int>(-got) : EIO);
    done += static_cast<size_t>(got);
  }
  return {};
}

}  // namespace

Result<void> SealedStore::begin() {
  forget();
  if (failpoint::should_fail("mem.sealed_store")) return refuse(ENOMEM);
  cipher_ = ST_TRY(cipher_library());
  const SecureMemory key = ST_TRY(
      SecureMemory::map(kKeyBytes, SecureMemory::Want::kWhatThereIs, "mem.sealed_store_key"));
  ST_TRY(random_bytes(key.data(), kKeyBytes));
  for (Lane& lane : lanes_) {
    const sync::MutexGuard guard(lane.lock);
    lane.key = cipher_->new_key(key.data());
    if (lane.key == nullptr) return refuse(ENOMEM);
  }
  return {};
}

void SealedStore::forget() {
  for (Lane& lane : lanes_) {
    const sync::MutexGuard guard(lane.lock);
    if (lane.key != nullptr) cipher_->free_key(lane.key);
    lane.key = nullptr;
  }
  version_.store(0, sync::kRelaxed);
}

// A lane nobody is in, else the thread's own, waited for.
template <typename Run>
int SealedStore::with_lane(Run run) TA_NO_ANALYSIS {
  const unsigned own = static_cast<unsigned>(sys::current_tid());
  for (unsigned i = 0; i < kLanes; ++i) {
    Lane& lane = lanes_[(own + i) % kLanes];
    const sync::TryMutexGuard guard(lane.lock);
    if (guard.locked()) return run(lane.key);
  }
  Lane& lane = lanes_[own % kLanes];
  const sync::MutexGuard guard(lane.lock);
  return run(lane.key);
}

Result<void> SealedStore::seal(const SealedIdentity& identity, const void* page, void* sealed,
                               SealedRecord* record) {
  const u64 version = version_.fetch_add(1, sync::kRelaxed) + 1;
  if (version > kMostVersions) {
    version_.fetch_sub(1, sync::kRelaxed);
    return refuse(EOVERFLOW);
  }
  const Associated data = associated(identity, version);
  const Nonce nonce(version);
  SealedRecord fresh{version, {}};
  const stagetwo_cipher_run run{nonce.bytes, &data,          sizeof(data), page,
                                sealed,      identity.bytes, fresh.tag};
  const int failed = with_lane([&](void* key) {
    ST_CHECK(key != nullptr);
    return cipher_->seal(key, &run);
  });
  if (failed != 0) return refuse(EIO);
  *record = fresh;
  return {};
}

Result<void> SealedStore::open(const SealedIdentity& identity, const SealedRecord& record,
                               const void* sealed, void* page) {
  const Associated data = associated(identity, record.version);
  const Nonce nonce(record.version);
  SealedRecord copy = record;  // the cipher takes the tag without const
  const stagetwo_cipher_run run{nonce.bytes, &data,          sizeof(data), sealed,
                                page,        identity.bytes, copy.tag};
  const int failed = with_lane([&](void* key) {
    ST_CHECK(key != nullptr);
    return cipher_->open(key, &run);
  });
  if (failed != 0 || record.version == 0) {
    wipe(page, identity.bytes);
    return refuse(EBADMSG);
  }
  return {};
}

}  // namespace stagetwo::mem
