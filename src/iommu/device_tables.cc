// SPDX-License-Identifier: Apache-2.0
#include "iommu/device_tables.h"

#include "addr/addr.h"
#include "base/check.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kPage = kPageSize;
constexpr unsigned kContexts = 128;
constexpr unsigned kPasidsOfTable = 1u << kTablePasidBits;
static_assert(kContexts * sizeof(ContextEntry) == kPage &&
              kPasidsOfTable * sizeof(PasidEntry) == kPage && 256 * sizeof(RootEntry) == kPage);

template <typename T>
T* table_at(const Arena& arena, u64 address) {
  return static_cast<T*>(arena.at(address & kEntryAddress));
}

u64* half_of(const Arena& arena, u64 root_table, SourceId source) {
  const u32 id = static_cast<u32>(source);
  return &table_at<RootEntry>(arena, root_table)[id >> 8].half[(id >> 7) & 1];
}

// The context of a device, or null: there is no table for it.
ContextEntry* context_of(const Arena& arena, u64 root_table, SourceId source) {
  if (root_table == 0) return nullptr;
  const u64 half = *half_of(arena, root_table, source);
  if ((half & kEntryPresent) == 0) return nullptr;
  return &table_at<ContextEntry>(arena, half)[static_cast<u32>(source) % kContexts];
}

u64 directory_bytes(const ContextEntry& context) {
  return u64{8} << (context.pasid_bits() - kTablePasidBits);
}

u64* directory_entry(const Arena& arena, const ContextEntry& context, u32 pasid) {
  return &table_at<u64>(arena, context.directory())[pasid >> kTablePasidBits];
}

// Null: there is no table of it.
PasidEntry* entry_of(const Arena& arena, u64 root_table, SourceId source, u32 pasid) {
  const ContextEntry* const context = context_of(arena, root_table, source);
  if (context == nullptr || !context->present()) return nullptr;
  if (pasid >> context->pasid_bits() != 0) return nullptr;
  const u64 table = *directory_entry(arena, *context, pasid);
  if ((table & kEntryPresent) == 0) return nullptr;
  return &table_at<PasidEntry>(arena, table)[pasid % kPasidsOfTable];
}

bool is_empty(const Arena& arena, u64 contexts) {
  const auto* const table = table_at<ContextEntry>(arena, contexts);
  for (unsigned i = 0; i < kContexts; ++i) {
    if (table[i].present()) return false;
  }
  return true;
}

// Takes the tables a device was the last of.
void drop_empty(Arena& arena, Kept<u64>* root_table, SourceId source) {
  u64* const half = half_of(arena, *root_table, source);
  if ((*half & kEntryPresent) != 0 && is_empty(arena, *half)) {
    arena.free(table_at<u8>(arena, *half), kPage);
    undo::note(half, sizeof(*half));
    *half = 0;
  }
  const auto* const root = table_at<RootEntry>(arena, *root_table);
  for (unsigned bus = 0; bus < 256; ++bus) {
    if ((root[bus].half[0] | root[bus].half[1]) != 0) return;
  }
  arena.free(table_at<u8>(arena, *root_table), kPage);
  *root_table = 0;
}

// The tables above a device's context. What was made stays on failure, for drop_empty().
Result<ContextEntry*> make_path(Arena& arena, Kept<u64>* root_table, SourceId source) {
  if (*root_table == 0) {
    void* const root = arena.alloc(kPage, "iommu.root_table");
    if (root == nullptr) return refuse(ENOMEM);
    *root_table = arena.offset_of(root);
  }
  u64* const half = half_of(arena, *root_table, source);
  if ((*half & kEntryPresent) == 0) {
    void* const contexts = arena.alloc(kPage, "iommu.context_table");
    if (contexts == nullptr) return refuse(ENOMEM);
    undo::note(half, sizeof(*half));
    *half = arena.offset_of(contexts) | kEntryPresent;
  }
  return context_of(arena, *root_table, source);
}

Result<void> fill_context(Arena& arena, ContextEntry* context, unsigned pasid_bits) {
  if (context->present()) return refuse(EBUSY);
  const unsigned least = 7 + kTablePasidBits;
  const unsigned lg2 = (pasid_bits < least ? least : pasid_bits) - kTablePasidBits;
  // A whole page at least: its address has no low bits.
  const u64 bytes = u64{8} << lg2;
  void* const directory = arena.alloc(bytes < kPage ? kPage : bytes, "iommu.pasid_directory");
  if (directory == nullptr) return refuse(ENOMEM);
  undo::note(context, sizeof(*context));
  *context = make_context(arena.offset_of(directory), lg2, pasid_bits != 0);
  return {};
}

}  // namespace

Result<void> add_context(Arena& arena, Kept<u64>* root_table, SourceId source,
                         unsigned pasid_bits) {
  ST_DCHECK(pasid_bits <= kMostPasidBits);
  const auto context = make_path(arena, root_table, source);
  auto done = context ? fill_context(arena, *context, pasid_bits) : Result<void>(refuse(ENOMEM));
  if (!done && *root_table != 0) drop_empty(arena, root_table, source);
  return done;
}

void remove_context(Arena& arena, Kept<u64>* root_table, SourceId source) {
  ContextEntry* const context = context_of(arena, *root_table, source);
  ST_DCHECK(context != nullptr && context->present());
  const u64 bytes = directory_bytes(*context);
  auto* const directory = table_at<u64>(arena, context->directory());
  for (u64 i = 0; i < bytes / sizeof(u64); ++i) {
    if ((directory[i] & kEntryPresent) != 0) arena.free(table_at<u8>(arena, directory[i]), kPage);
  }
  arena.free(directory, bytes < kPage ? kPage : bytes);
  undo::note(context, sizeof(*context));
  *context = {};
  drop_empty(arena, root_table, source);
}

Result<void> set_pasid_entry(Arena& arena, u64 root_table, SourceId source, u32 pasid,
                             const PasidEntry& entry) {
  const ContextEntry* const context = context_of(arena, root_table, source);
  if (context == nullptr || !context->present()) return refuse(ENODEV);
  if (pasid >> context->pasid_bits() != 0) return refuse(EINVAL);
  u64* const table = directory_entry(arena, *context, pasid);
  if ((*table & kEntryPresent) == 0) {
    void* const made = arena.alloc(kPage, "iommu.pasid_table");
    if (made == nullptr) return refuse(ENOMEM);
    undo::note(table, sizeof(*table));
    *table = arena.offset_of(made) | kEntryPresent;
  }
  PasidEntry* const place = entry_of(arena, root_table, source, pasid);
  if (place->present()) return refuse(EBUSY);
  undo::note(place, sizeof(*place));
  *place = entry;
  return {};
}

void replace_pasid_entry(Arena& arena, u64 root_table, SourceId source, u32 pasid,
                         const PasidEntry& entry) {
  PasidEntry* const place = entry_of(arena, root_table, source, pasid);
  ST_DCHECK(place != nullptr && place->present());
  undo::note(place, sizeof(*place));
  *place = entry;
}

void hide_pasid_entry(Arena& arena, u64 root_table, SourceId source, u32 pasid) {
  PasidEntry* const place = entry_of(arena, root_table, source, pasid);
  ST_DCHECK(place != nullptr && place->present());
  undo::note(place, sizeof(*place));
  place->word[0] &= ~kEntryPresent;
}

void wipe_pasid_entry(Arena& arena, u64 root_table, SourceId source, u32 pasid) {
  PasidEntry* const place = entry_of(arena, root_table, source, pasid);
  undo::note(place, sizeof(*place));
  *place = {};
}

FoundPasid find_pasid(const Arena& arena, u64 root_table, SourceId source, s64 pasid) {
  if (root_table == 0 || (*half_of(arena, root_table, source) & kEntryPresent) == 0) {
    return {.reason = FaultReason::kRootNotPresent};
  }
  const ContextEntry& context = *context_of(arena, root_table, source);
  if (!context.present()) return {.reason = FaultReason::kContextNotPresent};
  if (pasid >= 0 && !context.pasids()) return {.reason = FaultReason::kPasidNotEnabled};
  const u64 index = pasid < 0 ? context.rid_pasid() : static_cast<u64>(pasid);
  if (index >> context.pasid_bits() != 0) return {.reason = FaultReason::kPasidTooLarge};
  const u32 number = static_cast<u32>(index);
  if ((*directory_entry(arena, context, number) & kEntryPresent) == 0) {
    return {.reason = FaultReason::kDirectoryNotPresent, .pasid = number};
  }
  const PasidEntry& entry = *entry_of(arena, root_table, source, number);
  FoundPasid found{.pasid = number, .entry = entry};
  if (!entry.present()) {
    found.reason = FaultReason::kPasidNotPresent;
  } else if (!entry.reserved_clear()) {
    found.reason = FaultReason::kPasidReserved;
  } else if (entry.type() < TranslationType::kFirstLevel ||
             entry.type() > TranslationType::kPassThrough) {
    found.reason = FaultReason::kPasidInvalid;
  }
  return found;
}

}  // namespace stagetwo::iommu
