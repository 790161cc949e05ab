// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory of this process that the kernel has pinned: a buffer registered with an io_uring, and
// reads of a file into it, as a program makes them without libc.

#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "base/types.h"

namespace stagetwo::test {

class RegisteredBuffer {
 public:
  RegisteredBuffer(void* at, size_t bytes) : at_(at) {
    io_uring_params params{};
    ring_ = static_cast<int>(::syscall(SYS_io_uring_setup, 4, &params));
    if (ring_ < 0) return;
    params_ = params;
    const size_t completions = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
    rings_bytes_ = completions;
    rings_ = map(rings_bytes_, IORING_OFF_SQ_RING);
    entries_ = map(params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);
    ::iovec part{at, bytes};
    usable_ = rings_ != MAP_FAILED && entries_ != MAP_FAILED &&
              ::syscall(SYS_io_uring_register, ring_, IORING_REGISTER_BUFFERS, &part, 1) == 0;
  }
  ~RegisteredBuffer() {
    if (ring_ < 0) return;
    release();
    if (rings_ != MAP_FAILED) ::munmap(rings_, rings_bytes_);
    if (entries_ != MAP_FAILED) ::munmap(entries_, params_.sq_entries * sizeof(io_uring_sqe));
    ::close(ring_);
  }
  RegisteredBuffer(const RegisteredBuffer&) = delete;
  RegisteredBuffer& operator=(const RegisteredBuffer&) = delete;

  // False: this machine gives no io_uring to this process.
  [[nodiscard]] bool usable() const { return usable_; }
  // Nothing is pinned any more.
  void release() {
    if (usable_) ::syscall(SYS_io_uring_register, ring_, IORING_UNREGISTER_BUFFERS, nullptr, 0);
    usable_ = false;
  }
  // Reads `bytes` of the file into the buffer; what the kernel answers.
  int read(int file, size_t bytes) {
    auto* const tail = word(params_.sq_off.tail);
    const u32 place = tail->load() & word(params_.sq_off.ring_mask)->load();
    io_uring_sqe entry{};
    entry.opcode = IORING_OP_READ_FIXED;
    entry.fd = file;
    entry.addr = reinterpret_cast<u64>(at_);
    entry.len = static_cast<u32>(bytes);
    std::memcpy(static_cast<io_uring_sqe*>(entries_) + place, &entry, sizeof(entry));
    word(params_.sq_off.array + place * sizeof(u32))->store(place);
    tail->store(tail->load() + 1);
    if (::syscall(SYS_io_uring_enter, ring_, 1, 1, IORING_ENTER_GETEVENTS, nullptr, 0) < 0) {
      return -1;
    }
    auto* const head = word(params_.cq_off.head);
    const u32 done = head->load() & word(params_.cq_off.ring_mask)->load();
    io_uring_cqe result{};
    std::memcpy(&result,
                static_cast<u8*>(rings_) + params_.cq_off.cqes + done * sizeof(io_uring_cqe),
                sizeof(result));
    head->store(head->load() + 1);
    return result.res;
  }

 private:
  void* map(size_t bytes, off_t what) const {
    return ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_, what);
  }
  [[nodiscard]] std::atomic<u32>* word(size_t offset) const {
    return reinterpret_cast<std::atomic<u32>*>(static_cast<u8*>(rings_) + offset);
  }

  void* at_;
  int ring_ = -1;
  io_uring_params params_{};
  void* rings_ = MAP_FAILED;
  void* entries_ = MAP_FAILED;
  size_t rings_bytes_ = 0;
  bool usable_ = false;
};

// A file of `bytes` equal bytes, in memory.
inline int file_of(u8 byte, size_t bytes) {
  const int file = ::memfd_create("bytes", MFD_CLOEXEC);
  if (::ftruncate(file, static_cast<off_t>(bytes)) != 0) return -1;
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  std::memset(at, byte, bytes);
  ::munmap(at, bytes);
  return file;
}

}  // namespace stagetwo::test
