// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory for secrets: pages in clear, keys, versions. Excluded from core dumps, not inherited by a
// child of fork, never swapped, wiped before it goes.
// Analogue: memfd_secret(2), or what gpg and ssh do by hand.
//
// I1: a byte written here is in no core dump, and in no file of swap unless the maker allowed it.
// I2: what is given back was zeros before it left the process's hands.
// No lock: one owner. Context: no signal handler. Move-only.

#include <utility>

#include "base/result.h"
#include "base/types.h"

namespace stagetwo::mem {

// Zeros that the compiler may not leave out.
void wipe(void* at, size_t bytes);

class SecureMemory {
 public:
  enum class Kind : u8 {
    kSecret,  // memfd_secret: not even the kernel's own door leads to it (process_vm_readv: EFAULT)
    kLocked,  // mlock on fault
    kPageable  // neither could be had, and the maker allowed that: the kernel may swap it
  };
  // kSecret and kLocked both count against RLIMIT_MEMLOCK, whole, at the start.
  enum class Want : u8 { kSecretOrLocked, kLocked, kWhatThereIs };

  constexpr SecureMemory() = default;
  SecureMemory(SecureMemory&& other) noexcept { swap(other); }
  SecureMemory& operator=(SecureMemory&& other) noexcept {
    SecureMemory taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~SecureMemory() { release(); }

  // Zeros, whole pages. Failure: ENOMEM, and of memory that must be locked what mlock says: EAGAIN
  // or ENOMEM over the limit, EPERM where the limit is 0.
  [[nodiscard]] static Result<SecureMemory> map(size_t bytes, Want want, const char* site);
  // Wipes it and gives it back.
  void release();

  [[nodiscard]] u8* data() const { return at_; }
  [[nodiscard]] size_t size() const { return bytes_; }
  [[nodiscard]] Kind kind() const { return kind_; }
  [[nodiscard]] bool contains(u64 address, u64 bytes) const {
    const u64 start = reinterpret_cast<std::uintptr_t>(at_);
    return address < start + bytes_ && start < address + bytes;
  }

 private:
  void swap(SecureMemory& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(bytes_, other.bytes_);
    std::swap(kind_, other.kind_);
    std::swap(stamp_, other.stamp_);
  }

  u8* at_ = nullptr;
  size_t bytes_ = 0;
  Kind kind_ = Kind::kPageable;
  u32 stamp_ = 0;  // of the process it is mapped in
};

}  // namespace stagetwo::mem
