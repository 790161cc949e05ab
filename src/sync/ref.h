// SPDX-License-Identifier: Apache-2.0
#pragma once

// Ref<T>: shared ownership, counted in the object. Move-only; a second reference is an explicit
// clone(). The count refuses to rise from zero: try_ref() of a dying object says no.
// Analogue: kref and kref_get_unless_zero().
//
// The object is made by make_ref<T>() and remembers what it was made as, so a Ref of a base class
// may be the last one.

#include "base/alloc.h"
#include "base/check.h"
#include "sync/atomic.h"

namespace stagetwo::sync {

// The count. Derive publicly; the destructor is called by the last Ref.
class RefCounted {
 public:
  RefCounted() = default;
  RefCounted(const RefCounted&) = delete;
  RefCounted& operator=(const RefCounted&) = delete;

  // One more reference. Pre: the caller has one, or otherwise knows that there is one.
  void ref() const {
    const u32 before = count_.fetch_add(1, kRelaxed);  // whoever has one keeps it alive
    ST_CHECK_OP(before, >, u32{0});
  }
  // One more reference unless the object is dying.
  [[nodiscard]] bool try_ref() const {
    u32 seen = count_.load(kRelaxed);
    while (seen != 0) {
      if (count_.compare_exchange_weak(seen, seen + 1, kAcquire)) return true;
    }
    return false;
  }
  // One less; at zero the object ends.
  void unref() const {
    // Release: what this owner did happens before the end. Acquire: the last one sees all of it.
    if (count_.fetch_sub(1, kAcqRel) != 1) return;
    void* block = block_;
    const size_t bytes = bytes_;
    const u32 align = align_;
    this->~RefCounted();
    dealloc(block, bytes, align);
  }
  [[nodiscard]] u32 debug_count() const { return count_.load(kRelaxed); }

 protected:
  virtual ~RefCounted() = default;

 private:
  template <typename T>
  friend class Ref;
  mutable Atomic<u32> count_{1};
  u32 align_ = 0;  // these three: immutable after make_ref
  void* block_ = nullptr;
  size_t bytes_ = 0;
};

template <typename T>
class Ref {
 public:
  constexpr Ref() = default;
  constexpr Ref(std::nullptr_t) {}
  // Takes over one reference that the caller has.
  static Ref adopt(T* object) {
    Ref taken;
    taken.object_ = object;
    return taken;
  }
  // A new object with one reference. Failure: ENOMEM.
  template <typename... Args>
  [[nodiscard]] static Result<Ref> make(const char* site, Args&&... args) {
    T* object = ST_TRY(::stagetwo::make<T>(site, std::forward<Args>(args)...));
    RefCounted& counted = *object;
    counted.block_ = object;
    counted.bytes_ = sizeof(T);
    counted.align_ = alignof(T);
    return adopt(object);
  }

  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  template <typename U>
    requires std::is_convertible_v<U*, T*>
  Ref(Ref<U>&& other) noexcept : object_(other.release()) {}
  Ref& operator=(Ref&& other) noexcept {
    Ref taken(std::move(other));
    std::swap(object_, taken.object_);
    return *this;
  }
  ~Ref() { reset(); }

  void reset() {
    if (object_ != nullptr) std::exchange(object_, nullptr)->unref();
  }
  [[nodiscard]] Ref clone() const {
    if (object_ != nullptr) object_->ref();
    return adopt(object_);
  }
  // The reference is the caller's now.
  [[nodiscard]] T* release() { return std::exchange(object_, nullptr); }
  [[nodiscard]] T* get() const { return object_; }
  T& operator*() const { return *object_; }
  T* operator->() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  T* object_ = nullptr;
};

}  // namespace stagetwo::sync
