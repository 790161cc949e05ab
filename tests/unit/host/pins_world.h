// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory of a client, the calls it changes it by, and pins of it.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "host/backstop.h"
#include "host/change.h"
#include "host/pin.h"
#include "host/pin_store.h"

namespace stagetwo::test {

using host::Announced;
using host::EventKind;
using host::Frame;
using host::FrameRun;
using host::PinHow;

inline constexpr PinHow kForWriting{.write = true, .long_term = true};
inline constexpr PinHow kForReading{.write = false, .long_term = true};

// What a client has mapped, and the calls it changes it by, as the wrappers make them.
class Memory {
 public:
  Memory(size_t pages, int prot, int flags, int fd = -1, off_t offset = 0)
      : bytes_(pages * kPageSize) {
    at_ = static_cast<u8*>(::mmap(nullptr, bytes_, prot, flags, fd, offset));
  }
  explicit Memory(size_t pages)
      : Memory(pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS) {
    for (size_t i = 0; i < pages; ++i) std::memset(page(i), static_cast<int>(i + 1), kPageSize);
  }
  ~Memory() { ::munmap(at_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  u8* page(size_t i) const { return at_ + i * kPageSize; }
  Hva hva(size_t i) const { return Hva(reinterpret_cast<u64>(page(i))); }
  HvaRange range(size_t first, size_t pages) const {
    return HvaRange(hva(first), pages * kPageSize);
  }
  int unmap(size_t first, size_t pages) const {
    return host::change(hva(first).raw(), pages * kPageSize, EventKind::kUnmap,
                        [&] { return ::munmap(page(first), pages * kPageSize); });
  }
  int advise(size_t first, size_t pages, int advice) const {
    return host::change(hva(first).raw(), pages * kPageSize, EventKind::kClear,
                        [&] { return ::madvise(page(first), pages * kPageSize, advice); });
  }
  void* map_over(size_t first, size_t pages) const {
    return host::change(hva(first).raw(), pages * kPageSize, EventKind::kUnmap, [&] {
      return ::mmap(page(first), pages * kPageSize, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    });
  }
  int protect(size_t first, size_t pages, int prot) const {
    const auto go_on = [&] { return ::mprotect(page(first), pages * kPageSize, prot); };
    if (!host::loss_by_mprotect(prot))
      return host::gain(hva(first).raw(), pages * kPageSize, go_on);
    return host::change(hva(first).raw(), pages * kPageSize, EventKind::kProtection, go_on);
  }
  u8* remap(size_t first, size_t pages, size_t new_pages, int flags, void* to = nullptr) const {
    return static_cast<u8*>(host::change(
        hva(first).raw(), pages * kPageSize, EventKind::kUnmap, Announced::kMoves,
        [&] { return ::mremap(page(first), pages * kPageSize, new_pages * kPageSize, flags, to); },
        new_pages * kPageSize));
  }

 private:
  u8* at_;
  size_t bytes_;
};

// Pins of a test: given back at its end, and then nothing is left.
class Pins : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(host::backstop::install()); }
  void TearDown() override {
    for (const FrameRun& run : held_) host::unpin_pages(run);
    EXPECT_EQ(host::pin_use().pages, 0u);
    EXPECT_EQ(host::pin_use().stored, 0u);
    EXPECT_EQ(host::pin_use().blocks, 0u);
    host::pin_store::debug_copy_only(false);
  }
  // The frames of the pages, one each; empty: refused. errno says why.
  std::vector<Frame> pin(HvaRange range, PinHow how = kForWriting) {
    FrameRun runs[16];
    const auto done = host::pin_pages(range, how, runs, 16);
    std::vector<Frame> frames;
    errno = done ? 0 : to_int(done.error());
    for (unsigned i = 0; done && i < done->runs; ++i) {
      held_.push_back(runs[i]);
      for (u64 n = 0; n < runs[i].pages; ++n) frames.push_back(runs[i].first + n);
    }
    return frames;
  }
  void unpin_all() {
    for (const FrameRun& run : held_) host::unpin_pages(run);
    held_.clear();
  }
  static int byte(Frame frame, u64 offset = 0) {
    u8 value = 0;
    return host::read_frame(frame, offset, &value, 1) ? value : -1;
  }
  static bool put(Frame frame, u8 value, u64 offset = 0) {
    return host::write_frame(frame, offset, &value, 1);
  }
  static bool is_filled(Frame frame, u8 value) {
    u8 page[kPageSize];
    if (!host::read_frame(frame, 0, page, kPageSize)) return false;
    for (const u8 each : page) {
      if (each != value) return false;
    }
    return true;
  }
  std::vector<FrameRun> held_;
};

}  // namespace stagetwo::test
