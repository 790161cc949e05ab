// SPDX-License-Identifier: Apache-2.0
#pragma once

// The engine's memory. An arena of its own (mmap, never malloc), so that the client's allocator is
// neither used nor seen, may be used while the client is inside its own, and can be made to fail.
//
// I1: every way to get memory here passes failpoint::should_fail exactly once.
// I2: nothing is mapped before the first allocation.
// I3: a child of fork starts with an empty arena of its own whatever another thread was doing in
//     the parent (base/process_page.h); blocks inherited from the parent may be read and given
//     back.
//
// Blocks up to kMaxSmall come from size classes, larger ones from mmap. Memory given back to a size
// class is kept for the next request of that class.
// Context: no signal handler.

#include <new>
#include <type_traits>
#include <utility>

#include "base/result.h"
#include "base/types.h"

namespace stagetwo {

inline constexpr size_t kMaxSmall = 32 * 1024;
inline constexpr size_t kMinAlign = 16;

// Uninitialised memory; nullptr when there is none. Pre: `align` is a power of two <= 4096.
[[nodiscard]] void* alloc(size_t bytes, size_t align, const char* site);
// Gives it back. Pre: the same `bytes` and `align` as asked for. nullptr is allowed.
void dealloc(void* block, size_t bytes, size_t align = kMinAlign);

// Zeroed private pages. Failure: ENOMEM.
[[nodiscard]] Result<void*> map_pages(size_t bytes, const char* site);
// Address space without memory: PROT_NONE, not dumped, not counted by mlockall. Grow it in steps by
// commit_pages(). Failure: ENOMEM.
[[nodiscard]] Result<void*> reserve_pages(size_t bytes, const char* site);
[[nodiscard]] Result<void> commit_pages(void* at, size_t bytes, const char* site);
// Any mapping of a descriptor the engine makes for itself. Failure: the kernel's.
[[nodiscard]] Result<void*> map_file(size_t bytes, int prot, int flags, int fd, long offset,
                                     const char* site);
void unmap_pages(void* at, size_t bytes);

// What is in use, for leak tests: both are 0 when everything was given back.
struct AllocUse {
  s64 blocks;
  s64 bytes;
};
AllocUse alloc_use();

// A new T. Failure: ENOMEM.
template <typename T, typename... Args>
[[nodiscard]] Result<T*> make(const char* site, Args&&... args) {
  static_assert(alignof(T) <= 4096);
  void* block = alloc(sizeof(T), alignof(T), site);
  if (block == nullptr) return refuse(ENOMEM);
  return ::new (block) T(std::forward<Args>(args)...);
}

// Ends a T that make<T>() returned. nullptr is allowed. A T of which something derives lives in a
// Box, which remembers what it was made as.
template <typename T>
void destroy(T* object) {
  static_assert(!std::has_virtual_destructor_v<T> || std::is_final_v<T>,
                "the size of what stands behind a base pointer is not known: use Box");
  if (object == nullptr) return;
  object->~T();
  dealloc(object, sizeof(T), alignof(T));
}

// Unique owner of an object from the arena. Converts to a Box of a base class.
template <typename T>
class Box {
 public:
  constexpr Box() = default;
  constexpr Box(std::nullptr_t) {}
  // Takes over what make<T>() returned.
  static Box adopt(T* object) { return Box(object, object, sizeof(T), alignof(T)); }

  Box(Box&& other) noexcept { swap(other); }
  template <typename U>
    requires std::is_convertible_v<U*, T*> &&
                 (std::is_same_v<U, T> || std::has_virtual_destructor_v<T>)
  Box(Box<U>&& other) noexcept
      : object_(other.object_), block_(other.block_), bytes_(other.bytes_), align_(other.align_) {
    other.object_ = nullptr;
    other.block_ = nullptr;
  }
  Box& operator=(Box&& other) noexcept {
    Box taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Box() { reset(); }

  void reset() {
    if (object_ == nullptr) return;
    T* object = std::exchange(object_, nullptr);
    object->~T();
    dealloc(std::exchange(block_, nullptr), bytes_, align_);
  }
  // The object, now the caller's to destroy().
  [[nodiscard]] T* release() {
    static_assert(!std::has_virtual_destructor_v<T> || std::is_final_v<T>,
                  "a base pointer forgets what it was made as");
    block_ = nullptr;
    return std::exchange(object_, nullptr);
  }
  [[nodiscard]] T* get() const { return object_; }
  T& operator*() const { return *object_; }
  T* operator->() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

  void swap(Box& other) noexcept {
    std::swap(object_, other.object_);
    std::swap(block_, other.block_);
    std::swap(bytes_, other.bytes_);
    std::swap(align_, other.align_);
  }

 private:
  template <typename U>
  friend class Box;
  Box(T* object, void* block, size_t bytes, size_t align)
      : object_(object), block_(block), bytes_(bytes), align_(static_cast<u32>(align)) {}

  T* object_ = nullptr;
  void* block_ = nullptr;
  size_t bytes_ = 0;
  u32 align_ = 0;
};

// A new T in a Box. Failure: ENOMEM.
template <typename T, typename... Args>
[[nodiscard]] Result<Box<T>> make_box(const char* site, Args&&... args) {
  auto made = make<T>(site, std::forward<Args>(args)...);
  if (!made) return refuse(made.error());
  return Box<T>::adopt(*made);
}

}  // namespace stagetwo
