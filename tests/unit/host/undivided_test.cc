// SPDX-License-Identifier: Apache-2.0
// Where pages are absent the kernel sees borders that the client has not made: who is watched ends
// there, and hidden pages have no rights. Whatever the client then asks of what is one mapping for
// it, answer, errno, bytes and mappings are those of the same calls on memory nobody has taken of.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "host/piecewise.h"
#include "host/process_map.h"
#include "tests/support/absent_pages.h"
#include "tests/support/seeds.h"

namespace stagetwo {
namespace {

using host::EventKind;
using test::Deadline;
using test::hiding_name;
using test::Keeper;

constexpr size_t kPages = 64;
constexpr int kBoth = PROT_READ | PROT_WRITE;
constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;
constexpr int kFixedMove = MREMAP_MAYMOVE | MREMAP_FIXED;

// Far from everything, with holes around it: 64 pages, a hole, a target of 128, a hole.
class Place {
 public:
  explicit Place(u64 at) : base(at) { make(); }
  ~Place() { clear(); }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  static constexpr size_t kTarget = 256, kEnd = 512;
  void make() const {
    clear();
    map(0, kPages, kBoth);
    map(kTarget, 128, kBoth);
  }
  void clear() const {
    host::change(base, kEnd * kPageSize, EventKind::kUnmap,
                 [&] { return ::munmap(at(0), kEnd * kPageSize); });
  }
  void map(size_t first, size_t pages, int prot) const {
    void* made =
        ::mmap(at(first), pages * kPageSize, prot, kAnonymous | MAP_FIXED_NOREPLACE, -1, 0);
    ASSERT_EQ(at(first), made);
    host::join_watched(range(first, pages), true);
  }
  void protect(size_t first, size_t pages, int prot) const {
    const auto call = [&] { return ::mprotect(at(first), pages * kPageSize, prot); };
    const u64 start = range(first, pages).start().raw();
    const auto loss = host::loss_by_mprotect(prot);
    ASSERT_EQ(0, loss ? host::change(start, pages * kPageSize, *loss, call)
                      : host::gain(start, pages * kPageSize, call));
    host::join_watched(range(first, pages), false);
  }
  void fill(size_t first, size_t pages) const {
    for (size_t i = first; i < first + pages; ++i) std::memset(at(i), static_cast<int>(i + 1), 8);
  }
  [[nodiscard]] u8* at(size_t page) const { return reinterpret_cast<u8*>(base + page * kPageSize); }
  [[nodiscard]] HvaRange range(size_t first, size_t pages) const {
    return HvaRange(Hva(base + first * kPageSize), pages * kPageSize);
  }
  // Where the kernel sees borders.
  [[nodiscard]] std::string mappings() const {
    std::string out;
    const HvaRange all = range(0, kEnd);
    for (Hva from = all.start();;) {
      const auto found = host::shown_mapping_from(from);
      if (!found || found->range.start() >= all.end()) return out;
      out += std::to_string((found->range.start() - all.start()) / kPageSize) + "-" +
             std::to_string((found->range.end() - all.start()) / kPageSize) +
             (found->prot.write ? "w " : "r ");
      from = found->range.end();
    }
  }

  u64 base;
};

struct Call {
  size_t from, pages, new_pages;
  int flags;
  size_t to = 0;
};

std::string described(const Call& call) {
  return std::to_string(call.from) + "+" + std::to_string(call.pages) + " to " +
         std::to_string(call.new_pages) + " flags " + std::to_string(call.flags) + " at " +
         std::to_string(call.to);
}

// What came of it: the answer, and the first byte of each page that it gave.
std::string outcome_of(const Place& place, const Call& call, void* there) {
  if (there == MAP_FAILED) return ::strerrorname_np(errno);
  std::string out = there == place.at(call.from) ? "in place:" : "moved:";
  for (size_t i = 0; i < call.new_pages; ++i) {
    u8* const page = static_cast<u8*>(there) + i * kPageSize;
    u8 present = 0;
    out += ::mincore(page, kPageSize, &present) != 0 ? " -" : " " + std::to_string(*page);
  }
  const bool elsewhere = there != place.at(call.from) && there != place.at(call.to);
  if (elsewhere) ::munmap(there, call.new_pages * kPageSize);
  return out;
}
std::string natively(const Place& place, const Call& call) {
  void* there = ::mremap(place.at(call.from), call.pages * kPageSize, call.new_pages * kPageSize,
                         call.flags, place.at(call.to));
  return outcome_of(place, call, there);
}
void* by_library(const Place& place, const Call& call) {
  return host::remap(
      {place.base + call.from * kPageSize, call.pages * kPageSize, call.new_pages * kPageSize,
       call.flags, place.base + call.to * kPageSize},
      [](const host::Remap& one) {
        return ::mremap(reinterpret_cast<void*>(one.from), one.size, one.new_size, one.flags,
                        reinterpret_cast<void*>(one.to));
      },
      [](void* there, u64 size) {
        if (there != MAP_FAILED) {
          host::owners_see_mapping(HvaRange(Hva(reinterpret_cast<u64>(there)), size));
        }
        return there;
      });
}

class Undivided : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    host::userfault::debug_deny(GetParam());
    if (!GetParam() && !host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
  }
  void TearDown() override { host::userfault::debug_deny(false); }
  static constexpr u64 kMine = 0x10'0000'0000, kTwin = 0x18'0000'0000;
  void take(size_t first, size_t pages) {
    const auto taken =
        host::take_away(mine_.range(first, pages), &keeper_, this, host::Which::kAnonymous);
    ASSERT_TRUE(taken);
    ASSERT_EQ(pages, *taken);
  }
  void expect_the_same(const Call& call) {
    const std::string wanted = natively(twin_, call);
    EXPECT_EQ(wanted, outcome_of(mine_, call, by_library(mine_, call))) << described(call);
    expect_same_mappings(described(call));
  }
  // Once nothing is absent any more.
  void expect_same_mappings(const std::string& what) {
    host::bring_back_range(mine_.range(0, Place::kEnd));
    EXPECT_EQ(twin_.mappings(), mine_.mappings()) << what;
  }
  template <typename F>
  void both(F&& what) {
    what(twin_);
    what(mine_);
  }
  void make_anew() {
    both([](const Place& place) { place.make(); });
  }

  Place mine_{kMine};
  Place twin_{kTwin};
  Keeper keeper_{Hva(kMine)};
};
INSTANTIATE_TEST_SUITE_P(Hiding, Undivided, testing::Bool(), hiding_name);

struct Part {
  size_t first, pages;
};
constexpr Part kTaken[] = {{0, 32}, {16, 16}, {32, 32}};

std::vector<Call> calls() {
  std::vector<Call> all;
  for (const size_t from : {0U, 16U, 40U}) {
    for (const size_t pages : {8U, 48U}) {
      for (const size_t new_pages : {pages / 2, pages, 2 * pages}) {
        all.push_back({from, pages, new_pages, 0});
        all.push_back({from, pages, new_pages, MREMAP_MAYMOVE});
        all.push_back({from, pages, new_pages, MREMAP_MAYMOVE | MREMAP_DONTUNMAP});
        all.push_back({from, pages, new_pages, kFixedMove, Place::kTarget});
        all.push_back({from, pages, new_pages, kFixedMove | MREMAP_DONTUNMAP, Place::kTarget});
      }
    }
  }
  return all;
}

TEST_P(Undivided, EveryMremapAnswersAsIfNothingHadEverBeenTaken) {
  for (const Part part : kTaken) {
    for (const Call& call : calls()) {
      make_anew();
      both([](const Place& place) { place.fill(0, kPages); });
      take(part.first, part.pages);
      expect_the_same(call);
      if (HasFailure()) return;
    }
  }
}

// Each side of the border is touched for the first time when it is there.
TEST_P(Undivided, ItDoesWhereNobodyHadTouchedTheMemoryBefore) {
  for (const Part part : kTaken) {
    for (const Call& call : calls()) {
      make_anew();
      take(part.first, part.pages);
      both([](const Place& place) { place.fill(0, kPages); });
      take(part.first, part.pages);
      expect_the_same(call);
      if (HasFailure()) return;
    }
  }
}

TEST_P(Undivided, WhatIsMappedBesideOrInsideIsOneMappingWithIt) {
  take(0, kPages);
  both([](const Place& place) {
    place.map(kPages, 16, kBoth);
    place.fill(kPages, 16);
    host::change(place.range(8, 8).start().raw(), 8 * kPageSize, EventKind::kUnmap,
                 [&] { return ::munmap(place.at(8), 8 * kPageSize); });
    place.map(8, 8, kBoth);
    place.fill(8, 8);
  });
  expect_the_same({0, kPages + 16, kPages + 32, MREMAP_MAYMOVE});
}

// By who had asked for the page that was there: the bell does not stop a touch that has begun.
TEST_P(Undivided, SoIsWhatIsTouchedAsSoonAsItIsMapped) {
  both([](const Place& place) { place.fill(0, kPages); });
  take(0, kPages);
  both([](const Place& place) {
    for (const size_t first : {size_t{24}, kPages}) {
      const auto call = [&] {
        void* there = ::mmap(place.at(first), 8 * kPageSize, kBoth, kAnonymous | MAP_FIXED, -1, 0);
        place.fill(first, 8);
        return there;
      };
      const u64 start = place.range(first, 8).start().raw();
      ASSERT_EQ(place.at(first), host::replace(start, 8 * kPageSize, call));
      host::join_watched(place.range(first, 8), true);
    }
  });
  expect_the_same({0, kPages + 8, kPages + 16, MREMAP_MAYMOVE});
}

TEST_P(Undivided, SoIsWhatAMoveLeavesBehindBetweenTwoBorders) {
  both([](const Place& place) { place.fill(0, kPages); });
  take(0, 16);
  take(24, 16);
  const Call leaving{16, 8, 8, kFixedMove | MREMAP_DONTUNMAP, Place::kTarget};
  ASSERT_EQ(twin_.at(Place::kTarget), ::mremap(twin_.at(16), 8 * kPageSize, 8 * kPageSize,
                                               leaving.flags, twin_.at(Place::kTarget)));
  ASSERT_EQ(mine_.at(Place::kTarget), by_library(mine_, leaving));
  both([](const Place& place) { place.fill(16, 8); });
  expect_the_same({8, 24, 32, MREMAP_MAYMOVE});
}

TEST_P(Undivided, SoIsWhatGetsTheSameRights) {
  both([](const Place& place) { place.protect(32, 32, PROT_READ); });
  take(0, 32);
  both([](const Place& place) {
    place.protect(32, 32, kBoth);
    place.fill(32, 32);
  });
  expect_the_same({8, 48, 56, MREMAP_MAYMOVE});
}

TEST_P(Undivided, WhatTheClientDividedStaysDivided) {
  both([](const Place& place) {
    place.fill(0, kPages);
    place.protect(32, 8, PROT_READ);
  });
  take(0, kPages);
  expect_the_same({0, kPages, 2 * kPages, MREMAP_MAYMOVE});
  expect_the_same({0, kPages, kPages, kFixedMove, Place::kTarget});
}

// Two pieces touched apart, a hole between them that is filled while pages of one are away: what of
// it the kernel makes one mapping, and with which piece, is what it makes of it untaken.
struct Filling {
  const char* name;
  void (*fill)(const Place&);
};
constexpr size_t kLeft = 8, kRight = 24, kHole = 16, kPiece = 8;
void map_over_hole(const Place& place) {
  const auto call = [&] {
    return ::mmap(place.at(kHole), kPiece * kPageSize, kBoth, kAnonymous | MAP_FIXED, -1, 0);
  };
  ASSERT_EQ(place.at(kHole),
            host::replace(place.range(kHole, kPiece).start().raw(), kPiece * kPageSize, call));
  host::join_watched(place.range(kHole, kPiece), true);
}
void give_rights(const Place& place) {
  place.protect(kHole, kPiece, kBoth);
}
void move_there(const Place& place) {
  const Call call{Place::kTarget, kPiece, kPiece, kFixedMove, kHole};
  ASSERT_EQ(place.at(kHole), by_library(place, call)) << errno;
}
void grow_into_it(const Place& place) {
  const Call call{kLeft, kPiece, 2 * kPiece, 0};
  ASSERT_EQ(place.at(kLeft), by_library(place, call)) << errno;
}

TEST_P(Undivided, WhatFillsAHoleBetweenTwoPiecesBecomesOneWithTheSameOfThem) {
  constexpr Filling kFillings[] = {{"mmap", map_over_hole},
                                   {"mprotect", give_rights},
                                   {"mremap", move_there},
                                   {"mremap in place", grow_into_it}};
  const std::vector<Call> moves = {{12, 8, 8, kFixedMove, Place::kTarget + 32},
                                   {12, 8, 16, MREMAP_MAYMOVE},
                                   {20, 8, 8, kFixedMove, Place::kTarget + 32},
                                   {20, 8, 16, MREMAP_MAYMOVE},
                                   {8, 24, 32, MREMAP_MAYMOVE}};
  for (const Filling& filling : kFillings) {
    for (const size_t taken : {kLeft, kRight}) {
      for (const bool first_right : {false, true}) {
        for (const Call& call : moves) {
          both([&](const Place& place) {
            place.clear();
            place.map(Place::kTarget, kPiece, kBoth);
            for (const bool right : {first_right, !first_right}) {
              place.map(right ? kRight : kLeft, kPiece, kBoth);
              place.fill(right ? kRight : kLeft, kPiece);
            }
            if (filling.fill == give_rights) place.map(kHole, kPiece, PROT_NONE);
          });
          take(taken, kPiece);
          both([&](const Place& place) {
            filling.fill(place);
            place.fill(kHole, kPiece);
          });
          SCOPED_TRACE(std::string(filling.name) + ", away from " + std::to_string(taken));
          expect_the_same(call);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// What is mapped there meanwhile is refused to be watched, and goes on being.
TEST_P(Undivided, AForeignMappingInsideASpanLeavesNothingWatched) {
  both([](const Place& place) { place.fill(0, kPages); });
  take(0, kPages);
  const int self = ::open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  both([&](const Place& place) {
    ASSERT_NE(MAP_FAILED,
              ::mmap(place.at(16), 4 * kPageSize, PROT_READ, MAP_PRIVATE | MAP_FIXED, self, 0));
  });
  ::close(self);
  expect_same_mappings("nothing is absent");
}

// A taker that comes and goes all the time, in the source and in the target.
TEST_P(Undivided, BesideATakerEveryMoveIsDoneAndWhole) {
  both([](const Place& place) { place.fill(0, kPages); });
  std::atomic<bool> stop{false};
  std::thread taker([&] {
    for (unsigned i = 0; !stop; ++i) {
      const size_t first = i * 7 % 48;
      const size_t base = i % 3 == 0 ? Place::kTarget : 0;
      static_cast<void>(
          host::take_away(mine_.range(base + first, 16), &keeper_, this, host::Which::kAnonymous));
    }
  });
  const Deadline deadline(0.3);
  unsigned rounds = 0;
  for (unsigned i = 0; deadline.running() && !HasFailure(); ++i, ++rounds) {
    const size_t from = i * 13 % 40, pages = 1 + i * 5 % 24;
    const Call there{from, pages, pages, kFixedMove, Place::kTarget + from};
    const Call back{Place::kTarget + from, pages, pages, kFixedMove, from};
    for (const Call& call : {there, back}) {
      ASSERT_EQ(mine_.at(call.to), by_library(mine_, call)) << described(call) << ": " << errno;
      for (size_t page = 0; page < pages; ++page) {
        ASSERT_EQ(from + page + 1, *mine_.at(call.to + page)) << described(call);
      }
    }
    // The hole that the move back left in the target.
    mine_.map(Place::kTarget + from, pages, kBoth);
  }
  stop = true;
  taker.join();
  EXPECT_GT(rounds, 10U);
}

}  // namespace
}  // namespace stagetwo
