// SPDX-License-Identifier: Apache-2.0
#pragma once

// Who maps pages one by one is not made to walk: the table that was used last for a page alone is
// known (Domain::near_table), and its entries are written at once. Part of domain.cc and
// one_page.cc. Whoever writes entries holds the arena's lock.

#include <type_traits>

#include "iommu/arena_memory.h"
#include "iommu/mock_format.h"
#include "iommu/objects.h"
#include "pt/fmt/vtd_second_level.h"
#include "pt/fmt/x86_first_level.h"
#include "pt/leaf.h"

namespace stagetwo::iommu {

// fn(std::type_identity<the format>).
template <typename Fn>
auto with_format(FormatKind format, Fn&& fn) {
  switch (format) {
    case FormatKind::kVtdSecondLevel:
      return fn(std::type_identity<pt::VtdSecondLevel>{});
    case FormatKind::kX86FirstLevel:
      return fn(std::type_identity<pt::X86FirstLevel>{});
    case FormatKind::kMock:
      break;
  }
  return fn(std::type_identity<MockFormat>{});
}

template <pt::Format F>
typename F::Attributes attributes_of(u32 rights) {
  typename F::Attributes attributes{};
  attributes.write = (rights & kMayWrite) != 0;
  if constexpr (requires { attributes.read; }) {
    attributes.read = (rights & kMayRead) != 0;
  } else {
    attributes.user = true;
  }
  return attributes;
}

// The entry of a frame alone whose table was used last, or null.
template <pt::Format F>
pt::Entry<F>* near_entry(const Domain& domain, u64 iova, u64 bytes) {
  const u64 frame = iova >> F::kGranuleLg2;
  void* const table = domain.near_table;
  const bool is_near = table != nullptr && bytes == u64{1} << F::kGranuleLg2 &&
                       domain.near_frames == frame >> F::index_bits(1);
  return is_near ? static_cast<pt::Entry<F>*>(table) + pt::index_of<F>(frame, 1) : nullptr;
}

template <pt::Format F>
Result<void> map_near(pt::Entry<F>* entry, u64 address, u32 rights) {
  using Memory = ArenaMemory<typename F::Word>;
  if (Memory::load(entry) != F::kNonpresent) return refuse(EADDRINUSE);
  Memory::store(entry, pt::leaf_word<F>({}, address, attributes_of<F>(rights)));
  return {};
}

template <pt::Format F>
u64 unmap_near(pt::Entry<F>* entry) {
  using Memory = ArenaMemory<typename F::Word>;
  const auto word = Memory::load(entry);
  if (!F::is_leaf(word, 1) || pt::leaf_span_lg2<F>(word, 1) != 0) return 0;
  Memory::store(entry, F::kNonpresent);
  return u64{1} << F::kGranuleLg2;
}

}  // namespace stagetwo::iommu
