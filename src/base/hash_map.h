// SPDX-License-Identifier: Apache-2.0
#pragma once

// HashMap<K, V>: open addressing with linear probing and backward-shift deletion; load at most 3/4.
// Move-only; a refused insertion leaves the map as it was. Pointers to values die with the next
// insertion or erasure. Erasure never needs memory.
//
// K: trivially copyable, ==, and hashable by Hash (integers, enums, pointers and address kinds
// are).

#include <type_traits>
#include <utility>

#include "base/alloc.h"
#include "base/bits.h"
#include "base/check.h"

namespace stagetwo {

// Mixes all bits of a word into all bits (the finaliser of splitmix64).
constexpr u64 hash_u64(u64 x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

struct Hash {
  template <typename K>
  constexpr u64 operator()(const K& key) const {
    if constexpr (requires { key.hash(); }) {
      return key.hash();
    } else if constexpr (requires { key.raw(); }) {
      return hash_u64(key.raw());
    } else if constexpr (std::is_pointer_v<K>) {
      return hash_u64(reinterpret_cast<u64>(key));
    } else {
      return hash_u64(static_cast<u64>(key));
    }
  }
};

template <typename K, typename V, typename Hasher = Hash>
class HashMap {
  static_assert(std::is_trivially_copyable_v<K>);

 public:
  constexpr HashMap() = default;
  explicit constexpr HashMap(const char* site) : site_(site) {}
  HashMap(HashMap&& other) noexcept { swap(other); }
  HashMap& operator=(HashMap&& other) noexcept {
    HashMap taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~HashMap() {
    clear();
    dealloc(cells_, capacity_ * sizeof(Cell), kAlign);
  }

  // The value under `key`, or nullptr.
  V* find(const K& key) { return capacity_ == 0 ? nullptr : value_at(probe(key)); }
  const V* find(const K& key) const { return const_cast<HashMap*>(this)->find(key); }
  [[nodiscard]] bool contains(const K& key) const { return find(key) != nullptr; }

  // Post: `key` maps to `value`. Failure: EEXIST if it mapped to something, ENOMEM.
  [[nodiscard]] Result<V*> insert(const K& key, V value) {
    if (find(key) != nullptr) return refuse(EEXIST);
    ST_TRY(reserve(size_ + 1));
    Cell& cell = cells_[probe(key)];
    ::new (static_cast<void*>(&cell.key)) K(key);
    ::new (static_cast<void*>(&cell.value)) V(std::move(value));
    cell.used = true;
    ++size_;
    return &cell.value;
  }
  // insert, or replaces the value that was there.
  [[nodiscard]] Result<V*> put(const K& key, V value) {
    if (V* there = find(key)) {
      *there = std::move(value);
      return there;
    }
    return insert(key, std::move(value));
  }
  // False: there was none.
  bool erase(const K& key) {
    if (capacity_ == 0) return false;
    size_t hole = probe(key);
    if (!cells_[hole].used) return false;
    destroy_cell(cells_[hole]);
    --size_;
    // Every later member of the run moves up if the hole lies between its home and its place.
    for (size_t i = next(hole); cells_[i].used; i = next(i)) {
      const size_t home = home_of(cells_[i].key);
      if (((i - home) & (capacity_ - 1)) < ((i - hole) & (capacity_ - 1))) continue;
      move_cell(cells_[hole], cells_[i]);
      hole = i;
    }
    return true;
  }
  // Post: insertions up to `n` entries cannot be refused.
  [[nodiscard]] Result<void> reserve(size_t n) {
    if (n * 4 <= capacity_ * 3) return {};
    const size_t capacity = std::bit_ceil(n * 4 / 3 + 1) < 8 ? 8 : std::bit_ceil(n * 4 / 3 + 1);
    auto* fresh = static_cast<Cell*>(alloc(capacity * sizeof(Cell), kAlign, site_));
    if (fresh == nullptr) return refuse(ENOMEM);
    for (size_t i = 0; i < capacity; ++i) ::new (static_cast<void*>(&fresh[i])) Cell();
    Cell* old = std::exchange(cells_, fresh);
    const size_t old_capacity = std::exchange(capacity_, capacity);
    for (size_t i = 0; i < old_capacity; ++i) {
      if (old[i].used) move_cell(cells_[probe(old[i].key)], old[i]);
    }
    dealloc(old, old_capacity * sizeof(Cell), kAlign);
    return {};
  }
  void clear() {
    for (size_t i = 0; i < capacity_ && size_ != 0; ++i) {
      if (!cells_[i].used) continue;
      destroy_cell(cells_[i]);
      --size_;
    }
  }
  // fn(const K&, V&) for each entry, in no order. `fn` must not insert or erase.
  template <typename F>
  void for_each(F&& fn) {
    for (size_t i = 0; i < capacity_; ++i) {
      if (cells_[i].used) fn(static_cast<const K&>(cells_[i].key), cells_[i].value);
    }
  }
  [[nodiscard]] size_t size() const { return size_; }
  [[nodiscard]] bool empty() const { return size_ == 0; }
  void swap(HashMap& other) noexcept {
    std::swap(cells_, other.cells_);
    std::swap(capacity_, other.capacity_);
    std::swap(size_, other.size_);
    std::swap(site_, other.site_);
  }

 private:
  // `key` and `value` exist exactly while `used`.
  struct Cell {
    Cell() {}
    ~Cell() {}
    union {
      K key;
    };
    union {
      V value;
    };
    bool used = false;
  };
  static constexpr size_t kAlign = alignof(Cell) > kMinAlign ? alignof(Cell) : kMinAlign;

  size_t home_of(const K& key) const {
    return static_cast<size_t>(Hasher{}(key)) & (capacity_ - 1);
  }
  size_t next(size_t i) const { return (i + 1) & (capacity_ - 1); }
  // Where `key` is, or the free cell where it would go. Pre: capacity_ != 0.
  size_t probe(const K& key) const {
    size_t i = home_of(key);
    while (cells_[i].used && !(cells_[i].key == key)) i = next(i);
    return i;
  }
  V* value_at(size_t i) { return cells_[i].used ? &cells_[i].value : nullptr; }
  static void destroy_cell(Cell& cell) {
    cell.value.~V();
    cell.used = false;
  }
  static void move_cell(Cell& to, Cell& from) {
    ::new (static_cast<void*>(&to.key)) K(from.key);
    ::new (static_cast<void*>(&to.value)) V(std::move(from.value));
    to.used = true;
    destroy_cell(from);
  }

  Cell* cells_ = nullptr;
  size_t capacity_ = 0;  // 0 or a power of two
  size_t size_ = 0;
  const char* site_ = "base.hash_map";
};

}  // namespace stagetwo
