// SPDX-License-Identifier: Apache-2.0
// The guest's walk against the same formats written by a mapper: random tables in every paging mode
// translate as their maker says, and what only one mode knows is that mode's.

#include <optional>
#include <random>

#include "pt/fmt/x86_first_level.h"
#include "pt/fmt/x86_legacy.h"
#include "pt/map.h"
#include "tests/support/seeds.h"
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

constexpr u64 kRam = 16 << 20;

// Page tables in a guest's memory, at guest-physical addresses.
template <pt::Format F>
struct GuestTables {
  using Word = typename F::Word;
  // As pt::Memory.
  struct Memory : pt::DirectMemory<Word> {
    u8* ram;
    explicit Memory(u8* at) : ram(at) {}
    pt::Entry<F>* entries(u64 gpa) const { return reinterpret_cast<pt::Entry<F>*>(ram + gpa); }
  };

  // As pt::TableSource. A root of fewer entries is aligned to no more than its size.
  pt::Entry<F>* allocate(unsigned level) {
    const u64 bytes = pt::entry_count<F>(level) * sizeof(Word);
    next = align_up(next, bytes) + (bytes < 4096 ? bytes : 0);
    auto* table = reinterpret_cast<pt::Entry<F>*>(ram + next);
    next += bytes;
    EXPECT_LT(next, kRam);
    return table;
  }
  void free(pt::Entry<F>*, unsigned) {}
  u64 address_of(pt::Entry<F>* table) const { return static_cast<u64>(as_bytes(table) - ram); }
  // Nothing is taken out again here.
  pt::GatherNode* node_of(pt::Entry<F>*) { return &unused; }
  static u8* as_bytes(pt::Entry<F>* table) { return reinterpret_cast<u8*>(table); }

  u8* ram;
  u64 next = 2 * kTables;  // beyond the guest's own
  pt::GatherNode unused = {};
};

template <pt::Format TheFormat, unsigned TheLevels>
struct Mode {
  using F = TheFormat;
  static constexpr unsigned kLevels = TheLevels;
};

template <typename M>
class GuestWalk : public ::testing::Test {
 protected:
  using Fmt = typename M::F;

  void SetUp() override {
    guest.long_mode();
    SystemState sys = guest.state().sys;
    sys.cr3 = tables.address_of(root);
    if (M::kLevels == 5) sys.cr4 |= cr4::kLa57;
    if (M::kLevels < 4) {
      sys.efer &= ~(efer::kLme | efer::kLma);
      sys.seg[kSegCs].l = 0;
      sys.seg[kSegCs].db = 1;
    }
    if (M::kLevels == 2) sys.cr4 = (sys.cr4 & ~cr4::kPae) | cr4::kPse;
    set(sys);
  }
  void set(const SystemState& sys) { ASSERT_TRUE(guest.cpu().set_system_state(sys).has_value()); }
  void TearDown() override { EXPECT_FALSE(gather.has_tables()); }
  std::optional<u64> walk(u64 linear) {
    Gpa gpa;
    if (!guest.cpu().translate(Gva(linear), &gpa)) return std::nullopt;
    return gpa.raw();
  }
  std::optional<u64> expected(u64 linear) {
    const auto found = mapper.translate(linear >> 12);
    if (!found) return std::nullopt;
    return found->address | (linear & 0xfff);
  }
  [[nodiscard]] bool map(u64 frame, u64 frames, u64 address) {
    typename Fmt::Attributes attributes{};
    attributes.write = (frame & 1) != 0;
    return mapper.map(frame, frames, address, attributes, gather).has_value();
  }
  Guest guest{kRam};
  GuestTables<Fmt> tables{guest.ram(0)};
  pt::Entry<Fmt>* root = tables.allocate(M::kLevels);
  pt::Mapper<Fmt, GuestTables<Fmt>, typename GuestTables<Fmt>::Memory> mapper{
      root, M::kLevels, tables, typename GuestTables<Fmt>::Memory(guest.ram(0))};
  pt::Gather gather;
};

using Modes = ::testing::Types<Mode<pt::X86FirstLevel, 4>, Mode<pt::X86FirstLevel, 5>,
                               Mode<pt::X86Pae, 3>, Mode<pt::X86Legacy, 2>>;
TYPED_TEST_SUITE(GuestWalk, Modes);

TYPED_TEST(GuestWalk, RandomTablesTranslateAsTheirMakerSays) {
  using F = typename TypeParam::F;
  SCOPED_TRACE("STAGETWO_SEED=" + std::to_string(test::seed()));
  std::mt19937_64 random(test::seed());
  // A window that crosses a boundary of every level below the root, in the lower half.
  const u64 boundary = pt::frame_limit<F>(TypeParam::kLevels) / 4;
  const u64 window = 8 * pt::span_of<F>(2);
  const auto frame_in_window = [&] { return boundary - window / 2 + random() % window; };
  unsigned mapped = 0;
  for (unsigned i = 0; i < 60; ++i) {
    const bool large = random() % 3 == 0;
    const u64 frames = large ? pt::span_of<F>(2) : 1 + random() % 20;
    u64 frame = frame_in_window();
    // 32-bit entries have 20 bits of frame, their large pages 28.
    u64 page = random() % (large ? u64{1} << 28 : u64{1} << 20);
    if (large) {
      frame = align_down(frame, frames);
      page = align_down(page, frames);
    }
    if (this->map(frame, frames, page << 12)) ++mapped;
  }
  EXPECT_GT(mapped, 5U);
  for (unsigned i = 0; i < 20000; ++i) {
    const u64 linear = frame_in_window() << 12 | random() % 4096;
    ASSERT_EQ(this->walk(linear), this->expected(linear)) << std::hex << linear;
  }
}

TYPED_TEST(GuestWalk, AnEntryThatIsNotPresentEndsTheWalk) {
  ASSERT_TRUE(this->map(0x123, 1, 0x5000));
  EXPECT_EQ(this->walk(0x123000), 0x5000U);
  EXPECT_EQ(this->walk(0x124000), std::nullopt);
  auto* entry = this->root + pt::index_of<typename TypeParam::F>(0x123, TypeParam::kLevels);
  entry->store(TypeParam::F::kFrozen);
  EXPECT_EQ(this->walk(0x123000), std::nullopt);
}

class PaeWalk : public GuestWalk<Mode<pt::X86Pae, 3>> {};

TEST_F(PaeWalk, TheRootHasNoRightsAndNoAccessedBit) {
  ASSERT_TRUE(map(0x123, 1, 0x5000));
  const u64 entry = root->load();
  for (const u64 reserved :
       {u64{2}, u64{4}, u64{0x20}, u64{0x40}, u64{0x80}, u64{0x100}, u64{1} << 63}) {
    root->store(entry | reserved);
    EXPECT_EQ(walk(0x123000), std::nullopt) << std::hex << reserved;
  }
  root->store(entry);
  EXPECT_EQ(walk(0x123000), 0x5000U);
}

class LegacyWalk : public GuestWalk<Mode<pt::X86Legacy, 2>> {};

TEST_F(LegacyWalk, ALargePageHasFortyAddressBits) {
  ASSERT_TRUE(map(0x400, 0x400, u64{0xab} << 32 | 0x800000));
  EXPECT_EQ(walk(0x400123), u64{0xab} << 32 | 0x800123);
  root[1].store(root[1].load() | 1U << 21);
  EXPECT_EQ(walk(0x400123), std::nullopt) << "bit 21 is reserved";
}

TEST_F(LegacyWalk, WithoutPseTheSizeBitIsIgnored) {
  ASSERT_TRUE(map(0x400, 1, 0x5000));
  root[1].store(root[1].load() | pt::X86Legacy::kLarge);
  EXPECT_NE(walk(0x400000), 0x5000U);
  SystemState sys = guest.state().sys;
  sys.cr4 &= ~cr4::kPse;
  set(sys);
  EXPECT_EQ(walk(0x400000), 0x5000U);
}

}  // namespace
}  // namespace stagetwo::vcpu::testing
