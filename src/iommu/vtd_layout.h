// SPDX-License-Identifier: Apache-2.0
#pragma once

// What an IOMMU reads about devices, bit by bit: VT-d's tables in scalable mode, and the reasons it
// gives for refusing. An address in them is an offset of the arena.
// Source: Intel VT-d specification 4.1, 9.1 to 9.6, 7.1.3; Linux analogue:
// drivers/iommu/intel/{iommu,pasid}.h.
//
//   root table   256 x 16 bytes   by bus; low half devices 00-0f, high half 10-1f
//   context      128 x 32 bytes   by device and function
//   directory    2^(n+7) x 8      by PASID[19:6]
//   PASID table  64 x 64 bytes    by PASID[5:0]
//
// Locking: who has the tables. No state here.

#include "base/bits.h"
#include "base/types.h"

namespace stagetwo::iommu {

enum class FaultReason : u8 {
  kNone = 0,
  kRootNotPresent = 0x39,
  kContextNotPresent = 0x41,
  kPasidNotEnabled = 0x45,
  kPasidTooLarge = 0x46,
  kDirectoryNotPresent = 0x51,
  kPasidNotPresent = 0x59,
  kPasidReserved = 0x5a,
  kPasidInvalid = 0x5b,  // no such translation type
  kFirstUnreadable = 0x70,
  kFirstNotPresent = 0x71,
  kFirstReserved = 0x72,
  kSecondUnreadable = 0x78,  // also: nobody here can reach the frame
  kSecondDenied = 0x79,      // not permitted, or nothing is mapped
  kNotCanonical = 0x80,
  kSupervisorPage = 0x81,
  kBeyondWidth = 0x83,
  kNoWrite = 0x85,
  kInterruptRange = 0x87,
};

// Where a device writes interrupts and never memory.
inline constexpr u64 kInterruptStart = 0xfee0'0000, kInterruptLast = 0xfeef'ffff;

inline constexpr unsigned kMostPasidBits = 20;
inline constexpr unsigned kTablePasidBits = 6;  // of a PASID table
inline constexpr u64 kEntryPresent = 1;
inline constexpr u64 kEntryAddress = bit_mask(63, 12);

struct RootEntry {
  u64 half[2];  // 0: devfn 00-7f, 1: the others
};

struct ContextEntry {
  u64 word[4];

  static constexpr u64 kDeviceTlb = bit(2), kPasids = bit(3), kPageRequests = bit(4);
  [[nodiscard]] constexpr bool present() const { return (word[0] & kEntryPresent) != 0; }
  [[nodiscard]] constexpr bool pasids() const { return (word[0] & kPasids) != 0; }
  // log2 of the PASIDs its directory is for.
  [[nodiscard]] constexpr unsigned pasid_bits() const {
    return static_cast<unsigned>(get_field(word[0], 11, 9)) + 7 + kTablePasidBits;
  }
  [[nodiscard]] constexpr u64 directory() const { return word[0] & kEntryAddress; }
  [[nodiscard]] constexpr u32 rid_pasid() const {
    return static_cast<u32>(get_field(word[1], 19, 0));
  }
};
// Pre: `directory_lg2`, of its entries, is 7 to 14.
constexpr ContextEntry make_context(u64 directory, unsigned directory_lg2, bool pasids) {
  const u64 flags = kEntryPresent | ContextEntry::kDeviceTlb | ContextEntry::kPageRequests |
                    (pasids ? ContextEntry::kPasids : 0);
  return {{set_field(directory | flags, 11, 9, directory_lg2 - 7), 0, 0, 0}};
}

enum class TranslationType : u8 {
  kFirstLevel = 1,
  kSecondLevel = 2,
  kNested = 3,
  kPassThrough = 4,
};

// A first level that is not in the arena: the addresses of a process, by its number there. No table
// stands so low.
inline constexpr u64 kProcessRoots = u64{1} << 22;
constexpr u64 process_root(u32 process) {
  return (u64{process} + 1) << 12;
}
inline constexpr unsigned kProcessLevels = 4;

// 512 bits: what one PASID of one device means.
struct PasidEntry {
  u64 word[8];

  [[nodiscard]] constexpr bool present() const { return (word[0] & kEntryPresent) != 0; }
  [[nodiscard]] constexpr TranslationType type() const {
    return static_cast<TranslationType>(get_field(word[0], 8, 6));
  }
  [[nodiscard]] constexpr unsigned second_levels() const {
    return static_cast<unsigned>(get_field(word[0], 4, 2)) + 2;
  }
  // Does a device's access set the accessed and dirty bits of second-level entries?
  [[nodiscard]] constexpr bool second_dirty() const { return (word[0] & bit(9)) != 0; }
  [[nodiscard]] constexpr u64 second_table() const { return word[0] & kEntryAddress; }
  [[nodiscard]] constexpr u16 domain_id() const { return static_cast<u16>(word[1]); }
  [[nodiscard]] constexpr unsigned first_levels() const {
    return static_cast<unsigned>(get_field(word[2], 3, 2)) + 4;
  }
  [[nodiscard]] constexpr u64 first_table() const { return word[2] & kEntryAddress; }
  [[nodiscard]] constexpr bool is_process() const {
    return type() == TranslationType::kFirstLevel && first_table() <= kProcessRoots;
  }
  [[nodiscard]] constexpr u32 process() const {
    return static_cast<u32>((first_table() >> 12) - 1);
  }
  [[nodiscard]] constexpr bool reserved_clear() const {
    return (word[0] & bit_mask(11, 10)) == 0 &&
           (word[3] | word[4] | word[5] | word[6] | word[7]) == 0;
  }

  constexpr PasidEntry& with_second(u64 table, unsigned levels, bool dirty) {
    word[0] = set_field(word[0] | table | (dirty ? bit(9) : 0), 4, 2, levels - 2);
    return *this;
  }
  constexpr PasidEntry& with_first(u64 table, unsigned levels) {
    word[2] = set_field(word[2] | table, 3, 2, levels - 4);
    return *this;
  }
};
// Present, without tables. Snooped, as memory of a process is.
constexpr PasidEntry make_pasid_entry(TranslationType type, u16 domain_id) {
  constexpr u64 kWalkSnoop = bit(23), kPageSnoop = bit(24);
  return {{set_field(kEntryPresent, 8, 6, static_cast<u64>(type)),
           domain_id | kWalkSnoop | kPageSnoop}};
}

static_assert(sizeof(RootEntry) == 16 && sizeof(ContextEntry) == 32 && sizeof(PasidEntry) == 64);
static_assert(make_context(0x5000, 14, true).word[0] == 0x5e1d &&
              make_context(0x5000, 14, true).pasid_bits() == 20);
static_assert(
    make_pasid_entry(TranslationType::kSecondLevel, 7).with_second(0x9000, 4, true).word[0] ==
    0x9000 + 0x200 + 0x80 + 0x8 + 1);
static_assert(make_pasid_entry(TranslationType::kFirstLevel, 1).with_first(0x9000, 5).word[2] ==
              0x9004);

}  // namespace stagetwo::iommu
