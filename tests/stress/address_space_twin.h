// SPDX-License-Identifier: Apache-2.0
#pragma once

// The kernel's own answer to what the mutator does: the same memory once more, with the same holes
// around it, where the same calls are made by themselves and nobody takes, pins or watches a page.
// Each page says which it is, so that it can be read off what a call has moved, cleared, unmapped
// and protected, also one that was refused in the middle.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>

#include "host/process_map.h"
#include "tests/stress/address_space_model.h"

namespace stagetwo::test {

// Where things stand, in pages from the base on; in both the same.
inline constexpr unsigned kYard = 64;     // where pages are made that move in
inline constexpr unsigned kGraves = 128;  // where pages go that move away
inline constexpr unsigned kGravePages = 64;
inline constexpr unsigned kWorldPages = 256;
inline constexpr unsigned kFilePages = 3 * kModelPages;

// One of the two.
class World {
 public:
  explicit World(u64 base) : base_(base), file_(::memfd_create("stress", MFD_CLOEXEC)) {
    if (file_ < 0 || ::ftruncate(file_, kFilePages * kPageSize) != 0) std::abort();
    map(kGraves, kGravePages, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *words_at(kGraves) = 0;
  }
  ~World() {
    ::munmap(at(0), kWorldPages * kPageSize);
    ::close(file_);
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  [[nodiscard]] u64 address(unsigned page) const { return base_ + page * kPageSize; }
  [[nodiscard]] u8* at(unsigned page) const { return reinterpret_cast<u8*>(address(page)); }
  [[nodiscard]] u64* words_at(unsigned page) const { return reinterpret_cast<u64*>(address(page)); }
  [[nodiscard]] int file() const { return file_; }
  void* map(unsigned page, unsigned count, int flags, int fd, unsigned file_page) const {
    return ::mmap(at(page), count * kPageSize, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd,
                  static_cast<off_t>(file_page * kPageSize));
  }

 private:
  u64 base_;
  int file_;
};

struct TwinPage {
  u64 id = 0;  // 0: nobody has put anything there
  Rights rights = Rights::kNone;
  std::optional<unsigned> file_page;

  friend bool operator==(const TwinPage&, const TwinPage&) = default;
};

class Twin : public World {
 public:
  Twin() : World(kTwinBase) {
    memory_ = ::open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    if (memory_ < 0) std::abort();
    map(0, kModelPages, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  ~Twin() { ::close(memory_); }
  Twin(const Twin&) = delete;
  Twin& operator=(const Twin&) = delete;

  // Whatever the rights are. None: nothing is mapped there.
  [[nodiscard]] std::optional<TwinPage> look(unsigned page) const {
    const auto mapping = host::shown_mapping_at(Hva(address(page)));
    if (!mapping) return std::nullopt;
    TwinPage found;
    if (mapping->prot.write) {
      found.rights = Rights::kWrite;
    } else if (mapping->prot.read) {
      found.rights = Rights::kRead;
    }
    if (mapping->shared) {
      const u64 offset = mapping->offset + (Hva(address(page)) - mapping->range.start());
      found.file_page = static_cast<unsigned>(offset / kPageSize);
    }
    u64 id = 0;
    const ssize_t got =
        found.file_page
            ? ::pread(file(), &id, sizeof(id), static_cast<off_t>(*found.file_page * kPageSize))
            : ::pread(memory_, &id, sizeof(id), static_cast<off_t>(address(page)));
    if (got != sizeof(id)) std::abort();
    found.id = id;
    return found;
  }
  void name(unsigned page, u64 id) {
    const auto found = look(page);
    if (!found) std::abort();
    const ssize_t put =
        found->file_page
            ? ::pwrite(file(), &id, sizeof(id), static_cast<off_t>(*found->file_page * kPageSize))
            : ::pwrite(memory_, &id, sizeof(id), static_cast<off_t>(address(page)));
    if (put != sizeof(id)) std::abort();
  }
  // Past the rights. One that is not there stays so.
  void put_zero(u64 at) const {
    const u64 zero = 0;
    static_cast<void>(!::pwrite(memory_, &zero, sizeof(zero), static_cast<off_t>(at)));
  }

 private:
  int memory_ = -1;
};

}  // namespace stagetwo::test
