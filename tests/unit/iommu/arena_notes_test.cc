// SPDX-License-Identifier: Apache-2.0
// Every word that a section overwrites is noted: at the end of each one, of whatever kind, all is
// put back once, compared byte by byte with what stood there at its beginning, and done again.
// Then real deaths: of a process at the end of its section, and in the middle.
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <vector>

#include "host/process.h"
#include "iommu/event_queue.h"
#include "iommu/hardware_queue.h"
#include "tests/support/pages.h"
#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

// What is looked at: the head with the root, and the heap.
struct Bytes {
  std::vector<u8> head, heap;
  u64 end = 0;
};

Bytes bytes_of(const Arena& arena, u64 end) {
  Bytes bytes;
  const auto* const base = static_cast<const u8*>(arena.at(0));
  bytes.head.assign(base, base + Arena::kNodes);
  bytes.heap.assign(base + Arena::kHeap, base + end);
  bytes.end = end;
  return bytes;
}

void write_back(const Arena& arena, const Bytes& bytes) {
  memcpy(arena.at(0), bytes.head.data(), bytes.head.size());
  memcpy(arena.at(Arena::kHeap), bytes.heap.data(), bytes.heap.size());
}

// What is nobody's, but for the link at its beginning.
std::vector<bool> free_bytes(const Arena& arena, u64 end) {
  std::vector<bool> free(end - Arena::kHeap);
  arena.debug_each_free([&](u64 at, u64 bytes) {
    for (u64 i = at - Arena::kHeap + sizeof(u64); i < at - Arena::kHeap + bytes; ++i)
      free[i] = true;
  });
  return free;
}

struct Check {
  Bytes before;
  std::vector<bool> free;
  unsigned sections = 0, words = 0;
  u64 wrong = 0;  // where first
} check;

// Of the head: the lock and the notes' own words, and what engines and sleepers share.
bool is_compared(u64 offset) {
  if (offset < Arena::kRoot)
    return offset >= Arena::debug_kept_from() && offset < Arena::debug_kept_end();
  const u64 at = offset - Arena::kRoot;
  const bool queue =
      at >= offsetof(Root, queue) && at < offsetof(Root, queue) + sizeof(Root::queue);
  const bool responses =
      at >= offsetof(Root, responses) && at < offsetof(Root, responses) + sizeof(u32);
  return !queue && !responses;
}

void section_begins(const Arena& arena) {
  check.before = bytes_of(arena, arena.debug_heap_end());
  check.free = free_bytes(arena, check.before.end);
}

void section_ends(const Arena& arena) {
  const Bytes after = bytes_of(arena, arena.debug_heap_end());
  arena.debug_restore();
  const Bytes restored = bytes_of(arena, check.before.end);
  ++check.sections;
  const bool same_head = restored.head == check.before.head;
  for (u64 i = 0; !same_head && i < restored.head.size() && check.wrong == 0; ++i) {
    if (restored.head[i] != check.before.head[i] && is_compared(i)) check.wrong = i;
  }
  const bool same_heap = restored.heap == check.before.heap;
  for (u64 i = 0; !same_heap && i < restored.heap.size() && check.wrong == 0; ++i) {
    if (restored.heap[i] != check.before.heap[i] && !check.free[i]) check.wrong = Arena::kHeap + i;
  }
  for (u64 i = 0; i < restored.heap.size(); i += 8)
    check.words += after.heap[i] != restored.heap[i];
  write_back(arena, after);
}

class Notes : public DeviceWorld {
 protected:
  void SetUp() override {
    DeviceWorld::SetUp();
    check = {};
    Arena::debug_note_always = true;
    Arena::debug_hooks = {section_begins, section_ends};
  }
  void TearDown() override {
    Arena::debug_hooks = {nullptr, nullptr};
    Arena::debug_note_always = false;
    DeviceWorld::TearDown();
    EXPECT_EQ(check.wrong, 0u) << "a word at " << std::hex << check.wrong << " was not noted";
    EXPECT_GT(check.words, 0u);
  }
};

TEST_F(Notes, OfMappingAndUnmapping) {
  const test::GuardedPages memory(16);
  const u32 ioas = make_ioas(), other = make_ioas();
  ASSERT_EQ(map_at(ioas, memory.address(), 2 * kPageSize, kApertureStart), 0);
  const Attached device = attach_device(ioas);
  ASSERT_EQ(device.error, 0);
  for (u64 i = 2; i < 12; ++i) {
    ASSERT_EQ(map_at(ioas, memory.address() + i * kPageSize, kPageSize,
                     kApertureStart + (i * 37 % 64 + 8) * kPageSize),
              0);
  }
  u64 iova = 0;
  ASSERT_EQ(map(ioas, memory.address(), 16 * kPageSize, &iova, false), 0);
  {
    Locked locked(*context_);
    MapRequest request{true, kApertureStart, 4 * kPageSize, kReadWrite};
    ASSERT_EQ(error_of(locked.copy(**locked.find<Ioas>(ioas), iova, other, &request)), 0);
    ASSERT_EQ(error_of(locked.set_dirty_tracking(**locked.find<Hwpt>(device.hwpt), true)),
              EOPNOTSUPP);
    const IovaRanges allowed[] = {{kApertureStart, kApertureLast}};
    ASSERT_EQ(error_of(locked.allow(**locked.find<Ioas>(ioas), allowed)), 0);
  }
  ASSERT_EQ(map_at(ioas, 4096, kPageSize, kApertureStart + 500 * kPageSize), EFAULT);
  ASSERT_EQ(unmap(ioas, kApertureStart, 2 * kPageSize), 0);
  ASSERT_EQ(unmap_all(ioas), 0);
  ASSERT_EQ(unmap_all(other), 0);
  ASSERT_EQ(destroy(device.test_device), 0);
  for (const u32 id : {ioas, other}) ASSERT_EQ(destroy(id), 0);
  EXPECT_GT(check.sections, 20u);
}

// By the short way (one_page.cc), too.
TEST_F(Notes, OfPagesAlone) {
  // Within 2 MiB of their own: pages behind such a border are another block's.
  constexpr u64 kLarge = u64{2} << 20;
  const test::GuardedPages memory(8 + kLarge / kPageSize);
  const u64 start = (memory.address() + kLarge - 1) & ~(kLarge - 1);
  memset(reinterpret_cast<void*>(start), 0, 8 * kPageSize);
  const u32 ioas = make_ioas(), device = make_vtd(0x10);
  const u32 table = make_hwpt(ioas, device);
  ASSERT_EQ(map_at(ioas, start, 8 * kPageSize, kApertureStart), 0);
  ASSERT_EQ(unmap_all(ioas), 0);
  for (const u64 page : {0u, 5u, 2u, 3u, 7u}) {
    ASSERT_EQ(map_at(ioas, start + page * kPageSize, kPageSize, kApertureStart + page * kPageSize),
              0);
  }
  // Three and four go on where the page before ended: they are a row, with seven in front of it.
  ASSERT_EQ(map_at(ioas, start + 4 * kPageSize, kPageSize, kApertureStart + 4 * kPageSize), 0);
  const auto row_pages = [&] {
    Locked locked(*context_);
    const PageRow* const row = (*locked.find<Ioas>(ioas))->rows.tree.first();
    return row == nullptr ? 0 : row->pages.get();
  };
  EXPECT_EQ(row_pages(), 3u);
  for (const u64 page : {3u, 0u})
    ASSERT_EQ(unmap(ioas, kApertureStart + page * kPageSize, kPageSize), 0);
  EXPECT_EQ(row_pages(), 2u);
  ASSERT_EQ(map_at(ioas, start, kPageSize, kApertureStart + 4 * kPageSize), EEXIST);
  EXPECT_EQ(row_pages(), 0u) << "whoever looks for an area finds one";
  for (const u64 page : {7u, 2u, 4u, 5u})
    ASSERT_EQ(unmap(ioas, kApertureStart + page * kPageSize, kPageSize), 0);
  for (const u32 id : {table, device, ioas}) ASSERT_EQ(destroy(id), 0);
}

// Blocks that give their memory back, and are used again.
TEST_F(Notes, OfLargeLists) {
  const test::GuardedPages memory(8192);
  const u32 ioas = make_ioas();
  const Attached device = attach_device(ioas);
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(map_at(ioas, memory.address(), 8192 * kPageSize, kApertureStart), 0);
    ASSERT_EQ(unmap_all(ioas), 0);
  }
  ASSERT_EQ(destroy(device.test_device), 0);
  ASSERT_EQ(destroy(ioas), 0);
}

TEST_F(Notes, OfDevicesPasidsAndTables) {
  const u32 ioas = make_ioas(), device = make_vtd(0x10);
  const u32 table = make_hwpt(ioas, device, {.pasid = true});
  const u32 first = make_hwpt(ioas, device, {.pasid = true, .first_level = true});
  const test::GuardedPages memory(8);
  ASSERT_EQ(map_at(ioas, memory.address(), 8 * kPageSize, kApertureStart), 0);
  ASSERT_EQ(attach(device, table, 3), 0);
  ASSERT_EQ(attach(device, first, 70), 0);
  ASSERT_EQ(attach(device, table, 4), 0);  // in a table that is there
  {
    Locked locked(*context_);
    u32 id = first;
    ASSERT_EQ(error_of(locked.replace(**locked.find<Device>(device), &id, 3)), 0);
  }
  for (const u32 pasid : {3u, 4u, 70u}) detach(device, pasid);
  ASSERT_EQ(unmap_all(ioas), 0);
  for (const u32 id : {table, first, device, ioas}) ASSERT_EQ(destroy(id), 0);
}

// A process that dies at the very end of what it does: nothing of it is there.
class Deaths : public IommufdWorld {
 protected:
  // Runs `fn` in a child, which dies at the end of its nth section that notes.
  template <typename F>
  void die_in(unsigned nth, F&& fn) {
    const pid_t child = ::fork();
    if (child == 0) {
      host::after_fork_child();
      left_ = nth;
      Arena::debug_hooks = {[](const Arena&) {},
                            [](const Arena&) {
                              if (--left_ == 0) ::raise(SIGKILL);
                            }};
      fn();
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it came to its end";
    ASSERT_EQ(WTERMSIG(status), SIGKILL);
  }
  s64 blocks() {
    Locked locked(*context_);
    EXPECT_TRUE(locked.ok());
    return locked.arena().blocks_in_use();
  }
  static inline unsigned left_ = 0;
};

TEST_F(Deaths, LeaveTheOthersWithWhatTheyHad) {
  const test::GuardedPages memory(64);
  const u32 ioas = make_ioas();
  const Attached device = attach_device(ioas);
  ASSERT_EQ(map_at(ioas, memory.address(), 16 * kPageSize, kApertureStart), 0);
  const u64 address = memory.address();
  // The table that is made for it stays.
  ASSERT_EQ(map_at(ioas, address, 64 * kPageSize, kApertureStart + (u64{1} << 24)), 0);
  ASSERT_EQ(unmap(ioas, kApertureStart + (u64{1} << 24), 64 * kPageSize), 0);
  const s64 before = blocks();
  for (unsigned nth = 1; nth <= 2; ++nth) {
    die_in(nth, [&] {
      static_cast<void>(map_at(ioas, address, 64 * kPageSize, kApertureStart + (u64{1} << 24)));
    });
    // What stands is an area without a filler: whoever comes takes it away.
    ASSERT_EQ(map_at(ioas, address, 64 * kPageSize, kApertureStart + (u64{1} << 24)), 0);
    ASSERT_EQ(unmap(ioas, kApertureStart + (u64{1} << 24), 64 * kPageSize), 0);
  }
  die_in(1, [&] { static_cast<void>(unmap_all(ioas)); });
  die_in(1, [&] { static_cast<void>(make_ioas()); });
  die_in(1, [&] { static_cast<void>(destroy(device.test_device)); });
  EXPECT_EQ(blocks(), before);
  EXPECT_EQ(host::pin_use().pages, 16u);
  for (u64 i = 0; i < 16; ++i) {
    EXPECT_EQ(walk(device.hwpt, kApertureStart + i * kPageSize),
              frame_address(address + i * kPageSize));
    EXPECT_EQ(pins_at(address + i * kPageSize), 1u);
  }
  ASSERT_EQ(unmap_all(ioas), 0);
  ASSERT_EQ(destroy(device.test_device), 0);
  ASSERT_EQ(destroy(ioas), 0);
}

// Who has just put back dies, too.
TEST_F(Deaths, OneAfterTheOtherChangeNothing) {
  const test::GuardedPages memory(8);
  const u32 ioas = make_ioas();
  const Attached device = attach_device(ioas);
  ASSERT_EQ(map_at(ioas, memory.address(), 4 * kPageSize, kApertureStart), 0);
  for (int i = 0; i < 8; ++i) {
    die_in(1, [&] { static_cast<void>(unmap_all(ioas)); });
    die_in(1, [&] { static_cast<void>(blocks()); });
  }
  for (u64 i = 0; i < 4; ++i)
    EXPECT_NE(walk(device.hwpt, kApertureStart + i * kPageSize), kNowhere);
  ASSERT_EQ(unmap_all(ioas), 0);
  ASSERT_EQ(destroy(device.test_device), 0);
  ASSERT_EQ(destroy(ioas), 0);
}

}  // namespace
}  // namespace stagetwo::iommu
