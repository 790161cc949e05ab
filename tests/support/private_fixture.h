// SPDX-License-Identifier: Apache-2.0
#pragma once

// A VM with private memory, a guest_memfd of it and a thread that plays its vCPU.

#include <fcntl.h>

#include <cstring>

#include "base/sys.h"
#include "mem/guest_memfd.h"
#include "tests/support/region.h"
#include "tests/unit/stage2/vm_fixture.h"

namespace stagetwo::stage2 {

inline constexpr u64 kFilePages = 16;

// A memfd and its object, as the descriptor's owner has them.
struct TestFile {
  explicit TestFile(u64 pages = kFilePages) : object(pages * kPageSize, number) {
    fd = *sys::memfd_create("test", MFD_CLOEXEC);
    number.exchange(fd);
    EXPECT_TRUE(sys::ftruncate(fd, static_cast<off_t>(pages * kPageSize)));
  }
  ~TestFile() {
    object.release();
    static_cast<void>(sys::close(fd));
  }
  int punch(u64 page, u64 count) {
    const auto done = object.fallocate(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, page * kPageSize,
                                       count * kPageSize);
    return done ? 0 : to_int(done.error());
  }
  u64 resident_pages() const {
    struct ::stat now{};
    EXPECT_TRUE(sys::fstat(fd, &now));
    return static_cast<u64>(now.st_blocks) * 512 / kPageSize;
  }
  int fd = -1;
  sync::KeptNumber number{sync::KeptNumber::kNone};
  mem::GuestMemfd object;
};

class PrivateVm : public Memory {
 protected:
  void SetUp() override {
    policy_.private_memory = policy_.guest_memfd = true;
    Memory::SetUp();
    memory_->set_slot_zap_all(false);
  }
  int bind(u32 id, u64 gpa, u64 pages, u64 hva, TestFile& file, u64 first_page = 0) {
    Region region = test::region_of(id, gpa, pages * kPageSize, hva, kGuestMemfd);
    region.memfd_offset = first_page * kPageSize;
    region.file = &file.object;
    const auto done = memory_->slots().set_region(region);
    return done ? 0 : to_int(done.error());
  }
  int convert(u64 gpa, u64 pages, bool to_private) {
    const auto done =
        memory_->private_memory().set_attributes(GfnRange(gpa_to_gfn(Gpa(gpa)), pages), to_private);
    return done ? 0 : to_int(done.error());
  }
  // A guest's load or store of the first word of a page.
  u64 load(u64 gpa) {
    Fault found;
    u64 value = ~u64{0};
    if (fault(gpa, Access::kRead, &found) == FaultOutcome::kFixed) {
      EXPECT_TRUE(host::load(found.page, &value));
    }
    return value;
  }
  FaultOutcome store(u64 gpa, u64 value) {
    Fault found;
    const FaultOutcome outcome = fault(gpa, Access::kWrite, &found);
    if (outcome == FaultOutcome::kFixed) {
      EXPECT_TRUE(host::store(found.page, value));
    }
    return outcome;
  }
  u64& host_word(u64 page) { return *reinterpret_cast<u64*>(pages_.address() + page * kPageSize); }

  TestFile file_;
};

}  // namespace stagetwo::stage2
