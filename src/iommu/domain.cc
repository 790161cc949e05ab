// SPDX-License-Identifier: Apache-2.0
#include "iommu/domain.h"

#include <algorithm>
#include <type_traits>

#include "base/check.h"
#include "iommu/near_entry.h"
#include "pt/map.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kTableBytes = 4096;

// The word of a table's page.
struct TableNode {
  pt::GatherNode link;
};

template <pt::Format F>
struct ArenaTables {
  static_assert(F::kNonpresent == 0, "fresh memory is an empty table");
  pt::Entry<F>* allocate(unsigned level) {
    ST_DCHECK(pt::entry_count<F>(level) * sizeof(typename F::Word) == kTableBytes);
    return static_cast<pt::Entry<F>*>(arena->alloc(kTableBytes, "iommu.table"));
  }
  void free(pt::Entry<F>* table, unsigned) { arena->free(table, kTableBytes); }
  u64 address_of(pt::Entry<F>* table) const { return arena->offset_of(table); }
  pt::GatherNode* node_of(pt::Entry<F>* table) const {
    return static_cast<pt::GatherNode*>(arena->node_of(table));
  }
  Arena* arena;
};

template <pt::Format F>
class Tables {
 public:
  using Word = typename F::Word;
  using Attributes = typename F::Attributes;
  using Mapper = pt::Mapper<F, ArenaTables<F>, ArenaMemory<Word>>;

  Tables(Arena& arena, Domain& domain)
      : arena_(arena),
        domain_(domain),
        source_{&arena},
        mapper_(root(), domain.root_level, source_, ArenaMemory<Word>(arena)) {}

  Result<void> map(u64 iova, u64 address, u64 bytes, u32 rights) {
    const u64 first = iova >> F::kGranuleLg2, frames = bytes >> F::kGranuleLg2;
    pt::Gather gather;
    const auto done =
        mapper_.map(first, frames, address, attributes_of<F>(rights), gather, max_level());
    release(gather);
    if (frames == 1) note_near(first);
    return done;
  }
  u64 unmap(u64 iova, u64 bytes) {
    const u64 first = iova >> F::kGranuleLg2, frames = bytes >> F::kGranuleLg2;
    pt::Gather gather;
    const u64 mapped = mapper_.unmap(first, frames, gather);
    release(gather);
    if (frames == 1) note_near(first);
    return mapped << F::kGranuleLg2;
  }
  bool find_near(u64 iova) {
    note_near(iova >> F::kGranuleLg2);
    return domain_.near_table.get() != nullptr;
  }
  std::optional<Translation> translate(u64 iova) const {
    const auto found = mapper_.translate(iova >> F::kGranuleLg2);
    if (!found) return std::nullopt;
    const u64 within = iova & ((u64{1} << F::kGranuleLg2) - 1);
    const u32 rights =
        (may_read(found->attributes) ? kMayRead : 0u) | (found->attributes.write ? kMayWrite : 0u);
    return Translation{found->address + within, rights,
                       u64{1} << (found->frames_lg2 + F::kGranuleLg2)};
  }
  bool set_dirty(u64 iova) {
    auto [entry, word, level] =
        pt::find<F>(root(), domain_.root_level, iova >> F::kGranuleLg2, 1, memory());
    if (!F::is_leaf(word, level)) return false;
    memory().fetch_or(entry, F::kDirty);
    return true;
  }
  std::optional<DirtyPage> next_dirty(u64 iova, u64 last, bool clear) {
    const u64 first = iova >> F::kGranuleLg2;
    for (pt::Cursor<F, ArenaMemory<Word>> at(root(), domain_.root_level, 1, first,
                                             (last >> F::kGranuleLg2) + 1, memory());
         at.valid(); at.next()) {
      if (!at.is_leaf() || (at.old() & F::kDirty) == 0) continue;
      if (clear) at.fetch_and(~F::kDirty);
      return DirtyPage{at.frame() << F::kGranuleLg2, at.frames() << F::kGranuleLg2};
    }
    return std::nullopt;
  }
  void free_all() {
    pt::Gather gather;
    mapper_.unmap(0, pt::frame_limit<F>(domain_.root_level), gather);
    release(gather);
    arena_.free(root(), kTableBytes);
  }

 private:
  pt::Entry<F>* root() const {
    return static_cast<pt::Entry<F>*>(static_cast<void*>(domain_.root.get()));
  }
  ArenaMemory<Word> memory() const { return ArenaMemory<Word>(arena_); }
  void note_near(u64 frame) {
    const auto found = pt::find<F>(root(), domain_.root_level, frame, 1, memory());
    domain_.near_table = nullptr;
    if (found.level != 1) return;
    void* const table = found.entry - pt::index_of<F>(frame, 1);
    domain_.near_table = static_cast<void**>(table);
    domain_.near_frames = frame >> F::index_bits(1);
  }
  // A processor's format has no right to read: what is present may be read, by user accesses.
  static bool may_read(const Attributes& attributes) {
    if constexpr (requires { attributes.read; }) {
      return attributes.read;
    } else {
      return true;
    }
  }
  // The level of the largest page the domain may use.
  unsigned max_level() const {
    unsigned level = 1;
    while (level < domain_.root_level && F::can_be_leaf(level + 1) &&
           (domain_.page_sizes >> pt::bytes_lg2<F>(level + 1) & 1) != 0) {
      ++level;
    }
    return level;
  }
  // No device walks these tables without the arena's lock: nothing is cached.
  void release(pt::Gather& gather) {
    if (gather.has_tables()) domain_.near_table = nullptr;
    gather.flushed();
    gather.release<TableNode, &TableNode::link>(
        [this](TableNode* node) { arena_.free(arena_.block_of(node), kTableBytes); });
  }

  Arena& arena_;
  Domain& domain_;
  ArenaTables<F> source_;
  Mapper mapper_;
};

// fn(Tables<the domain's format>&).
template <typename Fn>
auto with_tables(const Arena& arena, const Domain& domain, Fn&& fn) {
  // Reading through a table changes nothing; the operations that write get both writable.
  auto& of = const_cast<Arena&>(arena);
  auto& in = const_cast<Domain&>(domain);
  return with_format(domain.format, [&]<typename F>(std::type_identity<F>) {
    Tables<F> tables(of, in);
    return fn(tables);
  });
}

// The lowest level whose root covers the aperture.
template <pt::Format F>
unsigned root_level_for(u64 aperture_last) {
  unsigned level = 2;
  while (level + 1 < F::kMaxLevel &&
         pt::frame_limit<F>(level) - 1 < aperture_last >> F::kGranuleLg2) {
    ++level;
  }
  return level;
}

constexpr u64 kVtdPages = bit(12) | bit(21) | bit(30);

}  // namespace

DomainShape vtd_shape(unsigned levels) {
  const u64 last = pt::frame_limit<pt::VtdSecondLevel>(levels) * kPageSize - 1;
  return {FormatKind::kVtdSecondLevel, 0, last, kVtdPages, levels};
}

DomainShape first_level_shape(unsigned levels) {
  const u64 last = pt::frame_limit<pt::X86FirstLevel>(levels) * kPageSize / 2 - 1;
  return {FormatKind::kX86FirstLevel, 0, last, kVtdPages, levels};
}

Result<void> make_domain(Arena& arena, const DomainShape& shape, Domain* out) {
  void* const root = arena.alloc(kTableBytes, "iommu.table");
  if (root == nullptr) return refuse(ENOMEM);
  out->format = shape.format;
  out->root_level =
      shape.levels != 0 ? shape.levels : root_level_for<MockFormat>(shape.aperture_last);
  out->root = static_cast<void**>(root);
  out->aperture_start = shape.aperture_start;
  out->aperture_last = shape.aperture_last;
  out->page_sizes = shape.page_sizes;
  return {};
}

void destroy_domain(Arena& arena, Domain& domain) {
  if (domain.root.get() == nullptr) return;
  with_tables(arena, domain, [](auto& tables) { tables.free_all(); });
  domain.root = nullptr;
}

Result<void> map_range(Arena& arena, Domain& domain, u64 iova, u64 frame_address, u64 bytes,
                       u32 rights) {
  return with_format(domain.format, [&]<typename F>(std::type_identity<F>) -> Result<void> {
    if (auto* const entry = near_entry<F>(domain, iova, bytes)) {
      return map_near<F>(entry, frame_address, rights);
    }
    return Tables<F>(arena, domain).map(iova, frame_address, bytes, rights);
  });
}

u64 unmap_range(Arena& arena, Domain& domain, u64 iova, u64 bytes) {
  return with_format(domain.format, [&]<typename F>(std::type_identity<F>) {
    if (auto* const entry = near_entry<F>(domain, iova, bytes)) return unmap_near<F>(entry);
    return Tables<F>(arena, domain).unmap(iova, bytes);
  });
}

bool find_near_table(Arena& arena, Domain& domain, u64 iova) {
  if (iova > domain.aperture_last) return false;
  return with_tables(arena, domain, [&](auto& tables) { return tables.find_near(iova); });
}

std::optional<Translation> translate(const Arena& arena, const Domain& domain, u64 iova) {
  if (iova > domain.aperture_last) return std::nullopt;
  return with_tables(arena, domain, [&](auto& tables) { return tables.translate(iova); });
}

bool set_dirty(Arena& arena, Domain& domain, u64 iova) {
  if (iova > domain.aperture_last) return false;
  return with_tables(arena, domain, [&](auto& tables) { return tables.set_dirty(iova); });
}

std::optional<DirtyPage> next_dirty(Arena& arena, Domain& domain, u64 iova, u64 last, bool clear) {
  if (iova > domain.aperture_last) return std::nullopt;
  last = std::min(last, domain.aperture_last.get());
  return with_tables(arena, domain,
                     [&](auto& tables) { return tables.next_dirty(iova, last, clear); });
}

}  // namespace stagetwo::iommu
