// SPDX-License-Identifier: Apache-2.0
#include "mem/secure_memory.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/kernel_numbers.h"
#include "base/process_page.h"
#include "base/sys.h"
#include "sync/passing_number.h"

#if !defined(SYS_memfd_secret)
#define SYS_memfd_secret 447
#endif

namespace stagetwo::mem {
namespace {

constexpr long kCloseOnExec = 02000000;

// The descriptor is not kept: the mapping alone leads there.
Result<void*> map_secret(size_t bytes, const char* site) {
  const sync::PassingNumber passing;
  const int fd = static_cast<int>(ST_TRY(sys::checked(sys::call(SYS_memfd_secret, kCloseOnExec))));
  auto mapped = Result<void*>(refuse(ENOMEM));
  if (const auto sized = sys::ftruncate(fd, static_cast<off_t>(bytes)); !sized) {
    mapped = refuse(sized.error());
  } else {
    mapped = map_file(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0, site);
  }
  static_cast<void>(sys::close(fd));
  return mapped;
}

Result<void> keep_to_ourselves(void* at, size_t bytes) {
  ST_TRY(sys::madvise(at, bytes, MADV_DONTDUMP));
  return sys::madvise(at, bytes, MADV_DONTFORK);
}

// On fault: locking all of it at once would take all of it at once.
Result<void> lock_pages(void* at, size_t bytes) {
  const long done = sys::call(SYS_mlock2, sys::arg(at), static_cast<long>(bytes), MLOCK_ONFAULT);
  if (done < 0) return refuse(static_cast<int>(-done));
  return {};
}

// Pages that were never touched are zeros, and wiping them would make them.
void wipe_present(u8* at, size_t bytes) {
  constexpr size_t kAtOnce = 1024;
  unsigned char present[kAtOnce];
  for (size_t done = 0; done < bytes; done += kAtOnce * kPageSize) {
    const size_t part = std::min(bytes - done, kAtOnce * kPageSize);
    const bool told = sys::mincore(at + done, part, present).has_value();
    for (size_t page = 0; page < part / kPageSize; ++page) {
      if (!told || (present[page] & 1) != 0) wipe(at + done + page * kPageSize, kPageSize);
    }
  }
}

}  // namespace

void wipe(void* at, size_t bytes) {
  if (bytes == 0) return;
  std::memset(at, 0, bytes);
  __asm__ volatile("" : : "r"(at) : "memory");
}

Result<SecureMemory> SecureMemory::map(size_t bytes, Want want, const char* site) {
  SecureMemory made;
  made.stamp_ = process_stamp();
  made.bytes_ = (bytes + kPageSize - 1) & kPageMask;
  if (made.bytes_ == 0) return refuse(EINVAL);
  if (want == Want::kSecretOrLocked) {
    if (const auto secret = map_secret(made.bytes_, site)) {
      made.at_ = static_cast<u8*>(*secret);
      made.kind_ = Kind::kSecret;
      ST_TRY(keep_to_ourselves(made.at_, made.bytes_));
      return made;
    }
  }
  made.at_ = static_cast<u8*>(ST_TRY(map_pages(made.bytes_, site)));
  ST_TRY(keep_to_ourselves(made.at_, made.bytes_));
  const auto locked = lock_pages(made.at_, made.bytes_);
  if (!locked && want != Want::kWhatThereIs) return refuse(locked.error());
  made.kind_ = locked ? Kind::kLocked : Kind::kPageable;
  return made;
}

void SecureMemory::release() {
  if (at_ == nullptr) return;
  // A child of fork has nothing there.
  if (stamp_ == process_stamp()) {
    wipe_present(at_, bytes_);
    unmap_pages(at_, bytes_);
  }
  at_ = nullptr;
  bytes_ = 0;
}

}  // namespace stagetwo::mem
