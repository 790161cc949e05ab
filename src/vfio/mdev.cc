// SPDX-License-Identifier: Apache-2.0
#include "vfio/mdev.h"

#include "sync/mutex.h"
#include "vfio/dma_engine.h"
#include "vfio/ioat.h"
#include "vfio/serial.h"

namespace stagetwo::vfio {
namespace {

// A row is written once, before the count that tells of it is released.
constinit const Parent* parents[kMaxParents] = {};
constinit sync::Atomic<u32> registered{0};
constinit sync::Mutex registering{sync::Rank::kLeaf};
constexpr const Parent* kOwn[] = {&kSerial, &kIoat, &kDmaEngine};
constexpr u32 kOwnCount = std::size(kOwn);

}  // namespace

const Parent* parent_at(unsigned index) {
  if (index < kOwnCount) return kOwn[index];
  index -= kOwnCount;
  return index < registered.load(sync::kAcquire) ? parents[index] : nullptr;
}

const Parent* find_parent(std::string_view name) {
  for (unsigned i = 0; const Parent* parent = parent_at(i); ++i) {
    if (parent->name == name) return parent;
  }
  return nullptr;
}

Result<void> register_parent(const Parent& parent) {
  if (parent.name.empty() || parent.name.size() > Parent::kLongestName || parent.types.empty() ||
      parent.make == nullptr) {
    return refuse(EINVAL);
  }
  const sync::MutexGuard guard(registering);
  if (find_parent(parent.name) != nullptr) return refuse(EEXIST);
  const u32 count = registered.load(sync::kRelaxed);
  if (count + kOwnCount == kMaxParents) return refuse(ENOSPC);
  parents[count] = &parent;
  registered.store(count + 1, sync::kRelease);
  return {};
}

TypeRef find_type(std::string_view folder) {
  for (unsigned i = 0; const Parent* parent = parent_at(i); ++i) {
    const std::string_view name = parent->name;
    if (parent->function != nullptr || !folder.starts_with(name) || folder.size() <= name.size() ||
        folder[name.size()] != '-') {
      continue;
    }
    for (u32 type = 0; type < parent->types.size(); ++type) {
      if (parent->types[type].name == folder.substr(name.size() + 1)) return {parent, type};
    }
  }
  return {};
}

TypeRef find_function(std::string_view name) {
  const Parent* const parent = find_parent(name);
  return parent != nullptr && parent->function != nullptr ? TypeRef{parent, 0} : TypeRef{};
}

void append_folder(const TypeRef& type, TextWriter& out) {
  out.append(type.parent->name).append_char('-').append(type.get().name);
}

}  // namespace stagetwo::vfio
