// SPDX-License-Identifier: Apache-2.0
#pragma once

// The address kinds of the house. Each is a type of its own: comparison within a kind only, `+`
// with a count only, a difference gives a count, and no conversion is implicit. A number chosen by
// a guest or a client becomes an address in exactly one place per entry path, by the explicit
// constructor; sums that such a number takes part in use `checked_add`.
//
//   Gva   guest virtual address            Hva    address in the client's process
//   Gpa   guest physical address           Gfn    guest frame number (Gpa >> 12)
//   Iova  I/O virtual address              Pasid, SourceId   who a DMA speaks for

#include <compare>
#include <cstdint>
#include <optional>

namespace stagetwo {

inline constexpr unsigned kPageShift = 12;
inline constexpr std::uint64_t kPageSize = std::uint64_t{1} << kPageShift;
inline constexpr std::uint64_t kPageMask = ~(kPageSize - 1);

template <typename Tag>
class Address {
 public:
  constexpr Address() = default;
  explicit constexpr Address(std::uint64_t raw) : raw_(raw) {}

  // The number itself. The name is the promise that the type system is left here.
  [[nodiscard]] constexpr std::uint64_t raw() const { return raw_; }

  [[nodiscard]] constexpr std::optional<Address> checked_add(std::uint64_t count) const {
    std::uint64_t sum = 0;
    if (__builtin_add_overflow(raw_, count, &sum)) return std::nullopt;
    return Address(sum);
  }

  friend constexpr auto operator<=>(Address, Address) = default;
  // Wraps like the machine does; use checked_add where a guest or client chose the operands.
  friend constexpr Address operator+(Address a, std::uint64_t count) {
    return Address(a.raw_ + count);
  }
  friend constexpr Address operator-(Address a, std::uint64_t count) {
    return Address(a.raw_ - count);
  }
  friend constexpr std::uint64_t operator-(Address a, Address b) { return a.raw_ - b.raw_; }
  constexpr Address& operator+=(std::uint64_t count) { return *this = *this + count; }

 private:
  std::uint64_t raw_ = 0;
};

using Gva = Address<struct GvaTag>;
using Gpa = Address<struct GpaTag>;
using Gfn = Address<struct GfnTag>;
using Hva = Address<struct HvaTag>;
using Iova = Address<struct IovaTag>;

enum class Pasid : std::uint32_t {};
enum class SourceId : std::uint16_t {};

template <typename Tag>
constexpr Address<Tag> page_floor(Address<Tag> a) {
  return Address<Tag>(a.raw() & kPageMask);
}
template <typename Tag>
constexpr std::uint64_t page_offset(Address<Tag> a) {
  return a.raw() & ~kPageMask;
}
constexpr Gfn gpa_to_gfn(Gpa a) {
  return Gfn(a.raw() >> kPageShift);
}
constexpr Gpa gfn_to_gpa(Gfn n) {
  return Gpa(n.raw() << kPageShift);
}

// A half-open range [start, start + size). `size` is bytes for addresses and frames for Gfn.
// Never wraps: `make` refuses what would.
template <typename A>
class Range {
 public:
  constexpr Range() = default;

  [[nodiscard]] static constexpr std::optional<Range> make(A start, std::uint64_t size) {
    if (!start.checked_add(size)) return std::nullopt;
    return Range(start, size);
  }
  // For bounds the caller has already proven not to wrap.
  constexpr Range(A start, std::uint64_t size) : start_(start), size_(size) {}

  [[nodiscard]] constexpr A start() const { return start_; }
  [[nodiscard]] constexpr A end() const { return start_ + size_; }
  [[nodiscard]] constexpr std::uint64_t size() const { return size_; }
  [[nodiscard]] constexpr bool empty() const { return size_ == 0; }
  [[nodiscard]] constexpr bool contains(A a) const { return a >= start_ && a - start_ < size_; }
  [[nodiscard]] constexpr bool overlaps(const Range& other) const {
    return start_ < other.end() && other.start_ < end();
  }
  friend constexpr bool operator==(const Range&, const Range&) = default;

 private:
  A start_;
  std::uint64_t size_ = 0;
};

using HvaRange = Range<Hva>;
using GfnRange = Range<Gfn>;
using IovaRange = Range<Iova>;

enum class Access : std::uint8_t { kRead, kWrite, kExec };

// What a translation permits.
struct Prot {
  bool read = false;
  bool write = false;
  bool exec = false;
  friend constexpr bool operator==(Prot, Prot) = default;
  [[nodiscard]] constexpr bool allows(Access a) const {
    return a == Access::kRead ? read : a == Access::kWrite ? write : exec;
  }
};

static_assert(sizeof(Gpa) == 8 && sizeof(Range<Hva>) == 16, "addresses are passed in registers");

}  // namespace stagetwo
