// SPDX-License-Identifier: Apache-2.0
#pragma once

// Vec<T>: a growing array that can be refused memory. Move-only. Analogue: std::vector, whose
// push_back cannot say no. A refused call leaves the vector as it was.
//
// References and iterators die with the next growing call.

#include <algorithm>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "base/alloc.h"
#include "base/check.h"

namespace stagetwo {

template <typename T>
class Vec {
 public:
  constexpr Vec() = default;
  // Names the failpoint of this vector's allocations.
  explicit constexpr Vec(const char* site) : site_(site) {}
  Vec(Vec&& other) noexcept { swap(other); }
  Vec& operator=(Vec&& other) noexcept {
    Vec taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Vec() {
    clear();
    dealloc(items_, capacity_ * sizeof(T), kAlign);
  }

  // Post: the next n - size() insertions cannot be refused. Failure: ENOMEM.
  [[nodiscard]] Result<void> reserve(size_t n) {
    if (n <= capacity_) return {};
    size_t bytes = 0;
    if (__builtin_mul_overflow(n, sizeof(T), &bytes)) return refuse(ENOMEM);
    auto* fresh = static_cast<T*>(alloc(bytes, kAlign, site_));
    if (fresh == nullptr) return refuse(ENOMEM);
    if (size_ != 0) {
      std::uninitialized_move(begin(), end(), fresh);
      std::destroy(begin(), end());
    }
    dealloc(items_, capacity_ * sizeof(T), kAlign);
    items_ = fresh;
    capacity_ = n;
    return {};
  }
  [[nodiscard]] Result<void> push_back(T item) {
    ST_TRY(make_room());
    ::new (static_cast<void*>(items_ + size_)) T(std::move(item));
    ++size_;
    return {};
  }
  // Pre: at <= size().
  [[nodiscard]] Result<void> insert(size_t at, T item) {
    ST_DCHECK(at <= size_);
    ST_TRY(push_back(std::move(item)));
    std::rotate(begin() + at, end() - 1, end());
    return {};
  }
  // New items are value-initialised.
  [[nodiscard]] Result<void> resize(size_t n) {
    if (n > capacity_) ST_TRY(reserve(n));
    while (size_ > n) pop_back();
    while (size_ < n) ::new (static_cast<void*>(items_ + size_++)) T();
    return {};
  }
  // Appends copies.
  [[nodiscard]] Result<void> append(std::span<const T> items) {
    ST_TRY(reserve_for(size_ + items.size()));
    for (const T& item : items) ::new (static_cast<void*>(items_ + size_++)) T(item);
    return {};
  }

  // Keeps the order of the rest.
  void erase(size_t at) { erase(at, at + 1); }
  // The items [first, last).
  void erase(size_t first, size_t last) {
    ST_DCHECK(first <= last && last <= size_);
    std::move(begin() + last, end(), begin() + first);
    for (size_t n = last - first; n > 0; --n) pop_back();
  }
  // The last item takes its place.
  void swap_erase(size_t at) {
    ST_DCHECK(at < size_);
    if (at + 1 != size_) items_[at] = std::move(items_[size_ - 1]);
    pop_back();
  }
  void pop_back() {
    ST_DCHECK(size_ > 0);
    items_[--size_].~T();
  }
  // Keeps the memory.
  void clear() {
    while (size_ > 0) pop_back();
  }

  [[nodiscard]] size_t size() const { return size_; }
  [[nodiscard]] size_t capacity() const { return capacity_; }
  [[nodiscard]] bool empty() const { return size_ == 0; }
  T& operator[](size_t i) {
    ST_DCHECK(i < size_);
    return items_[i];
  }
  const T& operator[](size_t i) const {
    ST_DCHECK(i < size_);
    return items_[i];
  }
  T& back() { return (*this)[size_ - 1]; }
  const T& back() const { return (*this)[size_ - 1]; }
  T& front() { return (*this)[0]; }
  const T& front() const { return (*this)[0]; }
  T* data() { return items_; }
  const T* data() const { return items_; }
  T* begin() { return items_; }
  T* end() { return items_ + size_; }
  const T* begin() const { return items_; }
  const T* end() const { return items_ + size_; }
  std::span<T> span() { return {items_, size_}; }
  std::span<const T> span() const { return {items_, size_}; }

  void swap(Vec& other) noexcept {
    std::swap(items_, other.items_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
    std::swap(site_, other.site_);
  }

 private:
  static constexpr size_t kAlign = std::max(alignof(T), kMinAlign);

  Result<void> make_room() { return size_ < capacity_ ? Result<void>{} : reserve_for(size_ + 1); }
  // Grows by doubling.
  Result<void> reserve_for(size_t n) {
    return n <= capacity_ ? Result<void>{} : reserve(std::max({n, capacity_ * 2, size_t{4}}));
  }

  T* items_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
  const char* site_ = "base.vec";
};

}  // namespace stagetwo
