// SPDX-License-Identifier: Apache-2.0
// Pages that the kernel itself reads or writes: what is under way into them is not lost by a taker.
#include "host/kernel_io.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "host/process_map.h"
#include "tests/support/absent_pages.h"
#include "tests/support/registered_buffer.h"

namespace stagetwo {
namespace {

using test::AbsentPages;
using test::hiding_name;
using test::RegisteredBuffer;

class PinnedByTheKernel : public AbsentPages {
 protected:
  static constexpr const char* kNoRing =
      "io_uring is not to be had here (kernel.io_uring_disabled?)";
};
INSTANTIATE_TEST_SUITE_P(Hiding, PinnedByTheKernel, testing::Bool(), hiding_name);

TEST_P(PinnedByTheKernel, APageStaysAndWhatIsReadIntoItArrives) {
  RegisteredBuffer buffer(page(2), 2 * kPageSize);
  if (!buffer.usable()) GTEST_SKIP() << kNoRing;
  static_cast<void>(take());
  EXPECT_FALSE(host::is_absent(at(2)));
  EXPECT_FALSE(host::is_absent(at(3)));
  const int file = test::file_of(0x77, 2 * kPageSize);
  ASSERT_EQ(static_cast<int>(2 * kPageSize), buffer.read(file, 2 * kPageSize));
  ::close(file);
  EXPECT_EQ(0x77, page(2)[0]);
  EXPECT_EQ(0x77, page(3)[kPageSize - 1]);
  for (const size_t i : {0u, 1u, 4u, 7u}) EXPECT_TRUE(is_page_of(i)) << i;
}

// Moved page by page, the kernel says of each; before a copy it says only whether there are any,
// and of a ring's requests not even that.
TEST_P(PinnedByTheKernel, ItsNeighboursGoWherePagesAreMoved) {
  RegisteredBuffer buffer(page(2), 2 * kPageSize);
  if (!buffer.usable()) GTEST_SKIP() << kNoRing;
  const u64 refused = host::owner_counts().refused_owner;
  const u64 taken = take();
  EXPECT_EQ(GetParam() ? 0 : kPages - 2, taken);
  EXPECT_EQ(refused + kPages - taken, host::owner_counts().refused_owner);
  buffer.release();
  EXPECT_EQ(GetParam() ? 0 : kPages - taken, take());
  for (size_t i = 0; i < kPages; ++i) EXPECT_TRUE(is_page_of(i)) << i;
}

// Memory that cannot be moved (the places have other rights) is copied. What a ring's requests have
// pinned without being registered nobody says.
TEST_P(PinnedByTheKernel, MemoryThatIsCopiedStaysWhileThereIsAnIoUring) {
  ASSERT_EQ(0, ::mprotect(page(0), 2 * kPageSize, PROT_READ));
  {
    RegisteredBuffer buffer(page(4), kPageSize);
    if (!buffer.usable()) GTEST_SKIP() << kNoRing;
    EXPECT_EQ(0u, take(0, 2));
    EXPECT_TRUE(is_page_of(0));
    buffer.release();
    EXPECT_EQ(0u, take(0, 2));
  }
  EXPECT_EQ(2u, take(0, 2));
  EXPECT_TRUE(is_page_of(1));
  ASSERT_EQ(0, ::mprotect(page(0), 2 * kPageSize, PROT_READ | PROT_WRITE));
}

// A huge page is one to the kernel: who pins a part of it pins it whole.
TEST_P(PinnedByTheKernel, PartsOfAHugePageStayAndNobodyWaitsForThem) {
  constexpr size_t kHuge = 2 << 20;
  test::GuardedPages memory(2 * kHuge / kPageSize);
  const u64 start = (memory.address() + kHuge - 1) & ~u64{kHuge - 1};
  auto* const bytes = reinterpret_cast<u8*>(start);
  ASSERT_EQ(0, ::madvise(bytes, kHuge, MADV_HUGEPAGE));
  std::memset(bytes, 5, kHuge);
  host::PageState state;
  ASSERT_TRUE(host::page_states(Hva(start), 1, &state));
  if (!state.huge) GTEST_SKIP() << "no huge page is to be had here (transparent_hugepage?)";
  RegisteredBuffer buffer(bytes, kPageSize);
  if (!buffer.usable()) GTEST_SKIP() << kNoRing;
  test::Keeper keeper{Hva(start)};
  const HvaRange four(Hva(start), 4 * kPageSize);
  ::alarm(20);
  ASSERT_TRUE(host::take_away(four, &keeper, this, host::Which::kAnonymous));
  ::alarm(0);
  EXPECT_FALSE(host::is_absent(four.start()));
  const int file = test::file_of(0x77, kPageSize);
  EXPECT_EQ(static_cast<int>(kPageSize), buffer.read(file, kPageSize));
  ::close(file);
  EXPECT_EQ(0x77, bytes[100]);
  EXPECT_EQ(5, bytes[kPageSize]);
}

// A write by the kernel into pages of this process that has begun: it has them, and waits for the
// bytes to write.
class WriteUnderWay {
 public:
  WriteUnderWay(void* to, size_t bytes) : source_(bytes / kPageSize) {
    watch_ = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
    uffdio_api api{UFFD_API, 0, 0};
    const u64 start = source_.address();
    uffdio_register span{{start, bytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
    if (watch_ < 0 || ::ioctl(watch_, UFFDIO_API, &api) != 0 ||
        ::ioctl(watch_, UFFDIO_REGISTER, &span) != 0) {
      return;
    }
    writer_ = std::thread([this, to, bytes] {
      const iovec from{source_.pointer(), bytes};
      const iovec place{to, bytes};
      written_ = ::process_vm_writev(::getpid(), &from, 1, &place, 1, 0);
    });
    uffd_msg message;
    usable_ = ::read(watch_, &message, sizeof(message)) == sizeof(message);
  }
  ~WriteUnderWay() {
    if (writer_.joinable()) writer_.join();
    ::close(watch_);
  }
  [[nodiscard]] bool usable() const { return usable_; }
  // Answers how many bytes were written.
  ssize_t finish(u8 byte) {
    const std::vector<u8> bytes(source_.bytes(), byte);
    uffdio_copy copy{source_.address(), reinterpret_cast<u64>(bytes.data()), bytes.size(), 0, 0};
    EXPECT_EQ(0, ::ioctl(watch_, UFFDIO_COPY, &copy));
    writer_.join();
    return written_;
  }

 private:
  test::GuardedPages source_;
  int watch_ = -1;
  bool usable_ = false;
  std::thread writer_;
  ssize_t written_ = 0;
};

class WrittenByTheKernel : public AbsentPages {
 protected:
  void SetUp() override {
    AbsentPages::SetUp();
    if (!host::userfault::serves_kernel()) GTEST_SKIP() << "userfaultfd serves user mode only here";
  }
};
INSTANTIATE_TEST_SUITE_P(Hiding, WrittenByTheKernel, testing::Values(false), hiding_name);

TEST_P(WrittenByTheKernel, APageIsNotTakenInTheMiddleOfIt) {
  WriteUnderWay write(page(2), kPageSize);
  ASSERT_TRUE(write.usable());
  EXPECT_EQ(kPages - 1, take());
  EXPECT_FALSE(host::is_absent(at(2)));
  EXPECT_EQ(static_cast<ssize_t>(kPageSize), write.finish(0x66));
  EXPECT_EQ(0x66, page(2)[17]);
  EXPECT_TRUE(is_page_of(1));
  EXPECT_TRUE(is_page_of(3));
}

// Those of io_submit, whose context is no ring of the kernel's here.
TEST(KernelRequests, AreUnderWayUntilTheirEndsAreFetched) {
  ASSERT_TRUE(host::backstop::install());
  ASSERT_FALSE(host::kernel_pins_memory());
  host::requests_begin(0x1000, 3);
  host::requests_begin(0x2000, 1);
  EXPECT_TRUE(host::kernel_pins_memory());
  host::requests_fetched(0x1000, 2);
  host::requests_fetched(0x2000, 1);
  EXPECT_TRUE(host::kernel_pins_memory());
  host::requests_forget(0x1000);
  EXPECT_FALSE(host::kernel_pins_memory());
  host::requests_fetched(0x1000, 1);  // nobody's
  EXPECT_FALSE(host::kernel_pins_memory());
  // One that went without a word, and another in its place.
  host::requests_begin(0x1000, 2);
  host::requests_made(0x1000);
  EXPECT_FALSE(host::kernel_pins_memory());
  host::requests_forget(0x1000);
}

// A context of the kernel's, whose ends the test takes from the ring as libaio does.
class Context {
 public:
  Context() { usable_ = ::syscall(SYS_io_setup, 8, &id_) == 0; }
  ~Context() {
    ::syscall(SYS_io_destroy, id_);
    host::requests_forget(id_);
  }
  [[nodiscard]] bool usable() const { return usable_; }
  void tell() const { host::requests_made(id_); }
  // By an instruction of the program's own: told to nobody.
  long submit_untold(iocb* request) { return ::syscall(SYS_io_submit, id_, 1, &request); }
  // As the shim does it. Answers what the kernel took.
  long submit(iocb* request, long count) {
    std::vector<iocb*> list(static_cast<size_t>(count), request);
    host::requests_begin(id_, static_cast<u64>(count));
    const long taken = ::syscall(SYS_io_submit, id_, count, list.data());
    host::requests_refused(id_, static_cast<u64>(count - std::max(taken, 0L)));
    return taken;
  }
  // How many ended ones were there to take.
  u32 take_ended() {
    auto* const ring = reinterpret_cast<volatile u32*>(id_);  // id, events, head, tail
    const u32 events = ring[1], tail = ring[3];
    const u32 count = (tail + events - ring[2]) % events;
    ring[2] = tail;
    return count;
  }

 private:
  unsigned long id_ = 0;
  bool usable_ = false;
};
// Of a file in memory: it has ended when the call that submits it returns.
template <typename T>
iocb read_of(int file, T* bytes) {
  iocb read{};
  read.aio_lio_opcode = IOCB_CMD_PREAD;
  read.aio_fildes = static_cast<u32>(file);
  read.aio_buf = reinterpret_cast<u64>(bytes);
  read.aio_nbytes = sizeof(*bytes);
  return read;
}
constexpr const char* kNoContext = "io_setup is not to be had here (fs.aio-max-nr?)";

TEST(KernelRequests, TakenFromTheRingAreUnderWayNoMore) {
  ASSERT_TRUE(host::backstop::install());
  ASSERT_FALSE(host::kernel_pins_memory());
  Context context;
  if (!context.usable()) GTEST_SKIP() << kNoContext;
  const int file = test::file_of(0x31, kPageSize);
  char bytes[16];
  iocb read = read_of(file, &bytes);
  // Of a file in memory they have ended when the call returns; many times around the ring.
  for (unsigned round = 0; round < 500; ++round) {
    const long count = 1 + round % 7;
    ASSERT_EQ(count, context.submit(&read, count));
    if (round % 3 == 0) {
      ASSERT_FALSE(host::kernel_pins_memory()) << round;
    }
    ASSERT_EQ(static_cast<u32>(count), context.take_ended());
    if (round % 2 == 0) {
      ASSERT_FALSE(host::kernel_pins_memory()) << round;
    }
  }
  ::close(file);
}

// A program makes it by its own instruction, as one that brings no libc does.
TEST(KernelRequests, OfAContextThatWasNotToldOfMayBeUnderWayAsLongAsItIsThere) {
  ASSERT_TRUE(host::backstop::install());
  ASSERT_FALSE(host::kernel_pins_memory());
  {
    Context context;
    if (!context.usable()) GTEST_SKIP() << kNoContext;
    EXPECT_TRUE(host::kernel_pins_memory());
    context.tell();
    EXPECT_FALSE(host::kernel_pins_memory());
  }
  EXPECT_FALSE(host::kernel_pins_memory());
}

TEST(KernelRequests, OneThatEndsAndWasNotToldOfMakesTheRestDoubtful) {
  ASSERT_TRUE(host::backstop::install());
  Context context;
  if (!context.usable()) GTEST_SKIP() << kNoContext;
  const int file = test::file_of(0x31, kPageSize);
  char bytes[16];
  iocb read = read_of(file, &bytes);
  ASSERT_EQ(1, context.submit(&read, 1));
  EXPECT_FALSE(host::kernel_pins_memory());
  ASSERT_EQ(1, context.submit_untold(&read));
  EXPECT_TRUE(host::kernel_pins_memory());
  EXPECT_EQ(2u, context.take_ended());
  ASSERT_EQ(1, context.submit(&read, 1));
  EXPECT_TRUE(host::kernel_pins_memory());
  ::close(file);
}

// Its entries may be unmapped while what they asked for is under way.
TEST(KernelRequests, OfAnIoUringMayBeUnderWayWhateverIsMappedOfIt) {
  ASSERT_FALSE(host::kernel_pins_memory());
  io_uring_params params{};
  const int ring = static_cast<int>(::syscall(SYS_io_uring_setup, 4, &params));
  if (ring < 0) GTEST_SKIP() << "io_uring is not to be had here (kernel.io_uring_disabled?)";
  for (const auto which : {IORING_OFF_SQ_RING, IORING_OFF_SQES}) {
    void* const at = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
                            static_cast<off_t>(which));
    ASSERT_NE(MAP_FAILED, at);
    EXPECT_TRUE(host::kernel_pins_memory()) << which;
    ::munmap(at, kPageSize);
  }
  EXPECT_FALSE(host::kernel_pins_memory());
  ::close(ring);
}

// For good: nothing tells that it is no more.
TEST(KernelRequests, OfARingWithoutAMappingMayBeUnderWay) {
  const pid_t child = ::fork();
  if (child == 0) {
    const bool before = host::kernel_pins_memory();
    host::ring_without_mapping();
    ::_exit(!before && host::kernel_pins_memory() ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(child, ::waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
}

TEST(KernelRequests, ThatHaveNotEndedAreUnderWayWhateverIsTaken) {
  ASSERT_TRUE(host::backstop::install());
  Context context;
  if (!context.usable()) GTEST_SKIP() << kNoContext;
  const int counter = ::eventfd(0, EFD_NONBLOCK);
  iocb wait{};
  wait.aio_lio_opcode = IOCB_CMD_POLL;
  wait.aio_fildes = static_cast<u32>(counter);
  wait.aio_buf = POLLIN;
  const int file = test::file_of(0x31, kPageSize);
  char bytes[16];
  iocb read = read_of(file, &bytes);
  ASSERT_EQ(1, context.submit(&wait, 1));
  for (unsigned round = 0; round < 100; ++round) {
    ASSERT_EQ(3, context.submit(&read, 3));
    ASSERT_TRUE(host::kernel_pins_memory()) << round;
    ASSERT_EQ(3u, context.take_ended());
    ASSERT_TRUE(host::kernel_pins_memory()) << round;
  }
  ASSERT_EQ(0, ::eventfd_write(counter, 1));
  EXPECT_FALSE(host::kernel_pins_memory());
  EXPECT_EQ(1u, context.take_ended());
  EXPECT_FALSE(host::kernel_pins_memory());
  ::close(file);
  ::close(counter);
}

TEST(KernelRequests, OfLibcsThreadsEndWhenTheirWordSaysSo) {
  ASSERT_TRUE(host::backstop::install());
  ASSERT_FALSE(host::kernel_pins_memory());
  int words[200];
  for (int& word : words) {
    word = EINPROGRESS;
    host::read_begins(Hva(reinterpret_cast<u64>(&word)));
    host::read_begins(Hva(reinterpret_cast<u64>(&word)));  // the next one in its place
  }
  for (int& word : words) {
    ASSERT_TRUE(host::kernel_pins_memory());
    word = 0;
  }
  EXPECT_FALSE(host::kernel_pins_memory());
  words[0] = EINPROGRESS;
  host::read_begins(Hva(reinterpret_cast<u64>(&words[0])));
  EXPECT_TRUE(host::kernel_pins_memory());
  host::read_refused(Hva(reinterpret_cast<u64>(&words[0])));
  EXPECT_FALSE(host::kernel_pins_memory());
}

TEST(KernelRequests, EndInHoweverManyContextsTheyAre) {
  ASSERT_TRUE(host::backstop::install());
  constexpr u64 kMany = 1000;
  for (u64 i = 1; i <= kMany; ++i) host::requests_begin(i << 12, 1);
  for (u64 i = 1; i <= kMany; ++i) {
    if (i % 200 == 0) {
      ASSERT_TRUE(host::kernel_pins_memory());
    }
    host::requests_fetched(i << 12, 1);
  }
  EXPECT_FALSE(host::kernel_pins_memory());
  for (u64 i = 1; i <= kMany; ++i) host::requests_forget(i << 12);
  EXPECT_FALSE(host::kernel_pins_memory());
}

// Then nothing is known of its end.
TEST(KernelRequests, OfAContextThatHasNoRoomNeverEnd) {
  ASSERT_TRUE(host::backstop::install());
  constexpr u64 kMany = 5000;
  failpoint::arm("host.io_contexts", 1, failpoint::kForever);
  for (u64 i = 1; i <= kMany; ++i) host::requests_begin(i << 12, 1);
  failpoint::disarm();
  for (u64 i = 1; i <= kMany; ++i) host::requests_forget(i << 12);
  EXPECT_TRUE(host::kernel_pins_memory());
  host::requests_after_fork_child();
  EXPECT_FALSE(host::kernel_pins_memory());
}

class EnginesMemory : public AbsentPages {};
INSTANTIATE_TEST_SUITE_P(Hiding, EnginesMemory, testing::Bool(), hiding_name);

// Whoever brought it back would need it himself.
TEST_P(EnginesMemory, IsNotTaken) {
  const auto taken = [&](const void* at) {
    const HvaRange one(page_floor(Hva(reinterpret_cast<u64>(at))), kPageSize);
    return host::take_away(one, &keeper_, this, host::Which::kAnonymous);
  };
  void* const block = alloc(100, kMinAlign, "test");
  void* const large = alloc(3 * kPageSize, kMinAlign, "test");
  void* const pages = *map_pages(2 * kPageSize, "test");
  static u64 word = 1;
  for (const void* at : {block, large, pages, static_cast<void*>(&word)}) {
    const auto result = taken(at);
    ASSERT_FALSE(result) << at;
    EXPECT_EQ(EINVAL, to_int(result.error()));
  }
  unmap_pages(pages, 2 * kPageSize);
  dealloc(large, 3 * kPageSize);
  dealloc(block, 100);
}

TEST_P(EnginesMemory, LeavesWhatIsBesideItToTheClient) {
  const auto pages = reinterpret_cast<u64>(*map_pages(2 * kPageSize, "test"));
  void* const after = reinterpret_cast<void*>(pages + kPageSize);
  unmap_pages(after, kPageSize);
  ASSERT_EQ(after, ::mmap(after, kPageSize, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  *static_cast<u8*>(after) = 9;
  const HvaRange clients(Hva(pages + kPageSize), kPageSize);
  test::Keeper keeper{clients.start()};
  EXPECT_EQ(1u, *host::take_away(clients, &keeper, this, host::Which::kAnonymous));
  EXPECT_EQ(9, *static_cast<u8*>(after));
  ::munmap(after, kPageSize);
  unmap_pages(reinterpret_cast<void*>(pages), kPageSize);
}

}  // namespace
}  // namespace stagetwo
