// SPDX-License-Identifier: Apache-2.0
#pragma once

// An iommufd in this process: its own descriptor holds it, and every descriptor that came from it
// or was bound to it. Who is given a number finds it here, whichever room made the descriptor.
//
// Analogue: struct iommufd_ctx with iommufd_ctx_get, iommufd_ctx_from_file (kernel file:
// drivers/iommu/iommufd/main.c). Lifetime: the last of the holders. If the description is closed
// for good by then, what this process has pinned for it is given back.

#include "host/descriptor.h"
#include "iommu/context.h"
#include "iommu/viommu_pages.h"
#include "sync/ref.h"

namespace stagetwo::iommu {

class Iommufd final : public sync::RefCounted {
 public:
  explicit Iommufd(Box<Context> context) : context_(std::move(context)) {}
  [[nodiscard]] Context& context() const { return *context_; }
  void closed() { closed_.store(true, sync::kRelease); }
  ViommuPages& viommu_pages() { return viommu_pages_; }

 private:
  ~Iommufd() override {
    if (closed_.load(sync::kAcquire)) context_->release_all();
  }
  Box<Context> context_;
  sync::Atomic<bool> closed_{false};
  ViommuPages viommu_pages_;
};

// What the description of an iommufd is, beside what it answers.
class IommufdFile {
 public:
  [[nodiscard]] virtual sync::Ref<Iommufd> iommufd() const = 0;

 protected:
  ~IommufdFile() = default;
};

// Empty: it is none.
[[nodiscard]] inline sync::Ref<Iommufd> find_iommufd(int fd) {
  const auto ref = host::find(fd);
  const auto* const file = ref ? dynamic_cast<const IommufdFile*>(ref.get()) : nullptr;
  return file != nullptr ? file->iommufd() : sync::Ref<Iommufd>{};
}

}  // namespace stagetwo::iommu
