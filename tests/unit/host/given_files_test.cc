// SPDX-License-Identifier: Apache-2.0
// Goal: what is given away is whole and stays so; what was not given after all is taken as before.
#include "host/given_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <vector>

#include "base/sys.h"
#include "host/backstop.h"
#include "host/page_owner.h"
#include "tests/support/one_place_owner.h"
#include "tests/support/pages.h"

namespace stagetwo::host {
namespace {

// A file of one page, mapped, whose page has an owner or may have one.
class File {
 public:
  explicit File(u8 byte) : byte_(byte) {
    fd = ::memfd_create("given", MFD_CLOEXEC);
    EXPECT_EQ(0, ::ftruncate(fd, kPageSize));
    shared_file_made(fd);
    at_ = static_cast<u8*>(::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    std::memset(at_, byte, kPageSize);
  }
  ~File() {
    bring_back_range(range());
    ::munmap(at_, kPageSize);
    shared_file_gone(fd);
    ::close(fd);
  }
  u64 take() { return *take_away(range(), &store, this, Which::kAll); }
  // Asked without us.
  bool is_whole() const {
    u8 bytes[kPageSize] = {};
    EXPECT_TRUE(sys::pread(fd, bytes, kPageSize, 0));
    return bytes[0] == byte_ && bytes[kPageSize - 1] == byte_;
  }
  int fd = -1;
  test::OnePlaceOwner store;

 private:
  HvaRange range() const { return HvaRange(Hva(reinterpret_cast<u64>(at_)), kPageSize); }
  u8 byte_;
  u8* at_ = nullptr;
};

class GivenFilesTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(backstop::install()); }
  static bool give(const File& file, GivenTo to = GivenTo::kProgram) {
    GivenFiles given;
    const bool whole = given.add(file.fd, to);
    given.keep();
    return whole;
  }
};

TEST_F(GivenFilesTest, WhatIsGivenIsWholeAndStays) {
  File file(5);
  ASSERT_EQ(1u, file.take());
  ASSERT_FALSE(file.is_whole());
  EXPECT_TRUE(give(file));
  EXPECT_TRUE(file.is_whole());
  EXPECT_EQ(0u, file.take());
}

TEST_F(GivenFilesTest, WhatWasNotGivenAfterAllIsTakenAsBefore) {
  File file(6);
  {
    GivenFiles one;
    EXPECT_TRUE(one.add(file.fd, GivenTo::kProgram));
    {
      GivenFiles other;
      EXPECT_TRUE(other.add(file.fd, GivenTo::kProgram));
    }
    EXPECT_EQ(0u, file.take()) << "the first one is still at it";
  }
  EXPECT_EQ(1u, file.take());
}

TEST_F(GivenFilesTest, NobodysFileIsNobodysConcern) {
  EXPECT_TRUE(GivenFiles().add(0, GivenTo::kReceiver));
  EXPECT_TRUE(GivenFiles().add(-1, GivenTo::kProgram));
}

TEST_F(GivenFilesTest, WithLostBytesItIsNotToBeGiven) {
  File file(7);
  ASSERT_EQ(1u, file.take());
  file.store.loses = true;
  EXPECT_FALSE(give(file));
}

TEST_F(GivenFilesTest, ManyFilesAreAllWhole) {
  std::vector<std::unique_ptr<File>> files;
  for (u8 i = 0; i < 20; ++i) {
    files.push_back(std::make_unique<File>(i));
    ASSERT_EQ(1u, files.back()->take());
  }
  GivenFiles given;
  for (const auto& file : files) EXPECT_TRUE(given.add(file->fd, GivenTo::kProgram));
  for (const auto& file : files) EXPECT_TRUE(file->is_whole());
}

TEST_F(GivenFilesTest, WhereNobodyKnowsWhichTheyAreAllGiven) {
  File one(8);
  File two(9);
  ASSERT_EQ(1u, one.take());
  ASSERT_EQ(1u, two.take());
  GivenFiles().add_all();
  for (File* const file : {&one, &two}) {
    EXPECT_TRUE(file->is_whole());
    EXPECT_EQ(0u, file->take());
  }
}

// Its descriptor tells who inherits it nothing of the private pages (abi/kvm/guest_memfd.h).
TEST_F(GivenFilesTest, AGuestsFileIsGivenByMessagesOnly) {
  File pages(10);
  const int stand_in = ::memfd_create("stand-in", 0);
  shared_file_made(stand_in, pages.fd);
  EXPECT_TRUE(GivenFiles().add(stand_in, GivenTo::kProgram));
  EXPECT_EQ(1u, pages.take());
  {
    GivenFiles given;
    EXPECT_TRUE(given.add(stand_in, GivenTo::kReceiver));
    given.keep();
  }
  bring_back_range(HvaRange(Hva(0), u64{1} << 46));
  EXPECT_EQ(0u, pages.take());
  shared_file_gone(stand_in);
  ::close(stand_in);
}

}  // namespace
}  // namespace stagetwo::host
