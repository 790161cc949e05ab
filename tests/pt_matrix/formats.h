// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rows of the matrix: each format under each root it can have, and the attributes it knows.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "pt/fmt/amdv1_like.h"
#include "pt/fmt/stage2.h"
#include "pt/fmt/vtd_second_level.h"
#include "pt/fmt/x86_first_level.h"
#include "pt/fmt/x86_legacy.h"
#include "tests/pt_matrix/arena.h"

namespace stagetwo::pt::test {

template <Format TheFormat, unsigned TheRootLevel>
struct Row {
  using F = TheFormat;
  static constexpr unsigned kRootLevel = TheRootLevel;
};

using Rows =
    ::testing::Types<Row<Stage2, 4>, Row<Stage2, 5>, Row<X86FirstLevel, 4>, Row<X86FirstLevel, 5>,
                     Row<X86Pae, 3>, Row<X86Legacy, 2>, Row<VtdSecondLevel, 3>,
                     Row<VtdSecondLevel, 4>, Row<VtdSecondLevel, 5>, Row<AmdV1, 1>, Row<AmdV1, 3>,
                     Row<AmdV1, 4>, Row<AmdV1, 6>, Row<AmdV1Half, 2>, Row<AmdV1Half, 4>,
                     Row<AmdV1Half, 6>>;

struct RowNames {
  template <typename R>
  static std::string GetName(int) {
    const char* name = std::is_same_v<typename R::F, Stage2>           ? "Stage2"
                       : std::is_same_v<typename R::F, X86FirstLevel>  ? "X86FirstLevel"
                       : std::is_same_v<typename R::F, X86Pae>         ? "X86Pae"
                       : std::is_same_v<typename R::F, X86Legacy>      ? "X86Legacy"
                       : std::is_same_v<typename R::F, VtdSecondLevel> ? "VtdSecondLevel"
                       : std::is_same_v<typename R::F, AmdV1>          ? "AmdV1"
                                                                       : "AmdV1Half";
    return std::string(name) + "_" + std::to_string(R::kRootLevel);
  }
};

// Every state of the attributes that a leaf of the format can have.
template <Format F>
std::vector<typename F::Attributes> all_attributes() {
  using A = typename F::Attributes;
  std::vector<A> all = {A{}};
  const auto add = [&](auto set) {
    const size_t count = all.size();
    for (size_t i = 0; i < count; ++i) {
      A more = all[i];
      set(more);
      if (!(more == all[i])) all.push_back(more);
    }
  };
  if constexpr (requires(A a) { a.host_writable; }) {
    const A host{.host_writable = true};
    const A mmu{.host_writable = true, .mmu_writable = true};
    const A write{.write = true, .host_writable = true, .mmu_writable = true};
    all.insert(all.end(), {host, mmu, write});
  } else {
    add([](A& a) { a.write = true; });
  }
  if constexpr (requires(A a) { a.exec; }) add([](A& a) { a.exec = true; });
  if constexpr (requires(A a) { a.user; }) add([](A& a) { a.user = true; });
  if constexpr (requires(A a) { a.accessed; }) add([](A& a) { a.accessed = true; });
  if constexpr (requires(A a) { a.dirty; }) add([](A& a) { a.dirty = true; });
  if constexpr (requires(A a) { a.snoop; }) add([](A& a) { a.snoop = true; });
  if constexpr (requires(A a) { a.force_coherent; }) add([](A& a) { a.force_coherent = true; });
  if constexpr (requires(A a) { a.is_private; }) add([](A& a) { a.is_private = true; });
  return all;
}

// Two whose rights differ, without history.
template <Format F>
typename F::Attributes read_only() {
  return {};
}
template <Format F>
typename F::Attributes writable() {
  typename F::Attributes a{};
  a.write = true;
  if constexpr (requires { a.host_writable; }) a.host_writable = a.mmu_writable = true;
  return a;
}

// Each size of leaf a root can hold.
template <Format F>
std::vector<LeafSize> leaf_sizes(unsigned root_level) {
  std::vector<LeafSize> sizes;
  for (unsigned level = 1; level <= root_level; ++level) {
    if (!F::can_be_leaf(level)) continue;
    unsigned contig = 0;
    if constexpr (VariableLeaf<F>) contig = F::max_contig_lg2(level);
    for (unsigned lg2 = 0; lg2 <= contig; ++lg2) sizes.push_back({level, lg2});
  }
  return sizes;
}

// Where a test maps to: aligned for every leaf of a format, and of no more bits than it can say.
template <Format F>
constexpr u64 kTarget =
    std::is_same_v<F, X86Legacy> || std::is_same_v<F, X86Pae> ? u64{1} << 30 : u64{1} << 50;

}  // namespace stagetwo::pt::test
