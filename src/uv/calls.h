// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the hypervisor, the ultravisor and a guest say to each other: numbers, arguments and answers
// as POWER defines them, so that a log can be compared with the kernel's documents line by line.
// Analogue: Documentation/arch/powerpc/ultravisor.rst, asm/ultravisor-api.h, asm/hvcall.h.
//
// I1  a message is plain numbers: what crosses here could cross a socket, and a test sends it
//     through one.
// I2  who calls is said by the wire a message comes over, never by the message.
//
// The two halves (hypervisor.h, ultravisor.h) know each other as a Port and by nothing else.

#include "base/types.h"

namespace stagetwo::uv {

// Hypercalls and ultracalls share one space of numbers.
enum class Call : u32 {
  kHSvmPageIn = 0xEF00,   // gpa, flags, order
  kHSvmPageOut = 0xEF04,  // gpa, flags, order
  kHSvmInitStart = 0xEF08,
  kHSvmInitDone = 0xEF0C,
  kHSvmTpmComm = 0xEF10,
  kHSvmInitAbort = 0xEF14,

  kUvWritePate = 0xF104,
  kUvRestrictedSprWrite = 0xF108,
  kUvRestrictedSprRead = 0xF10C,
  kUvEsm = 0xF110,  // kernel base, device tree
  kUvReadScom = 0xF114,
  kUvWriteScom = 0xF118,
  kUvReturn = 0xF11C,
  kUvRegisterMemSlot = 0xF120,    // lpid, gpa, bytes, flags, slot
  kUvUnregisterMemSlot = 0xF124,  // lpid, slot
  kUvPageIn = 0xF128,             // lpid, real address, gpa, flags, order
  kUvPageOut = 0xF12C,            // lpid, real address, gpa, flags, order
  kUvSharePage = 0xF130,          // gfn, count
  kUvUnsharePage = 0xF134,        // gfn, count
  kUvPageInval = 0xF138,          // lpid, gpa, order, and ours: flags
  kUvSvmTerminate = 0xF13C,       // lpid
  kUvUnshareAllPages = 0xF140,
  kUvReadMem = 0xF144,
  kUvWriteMem = 0xF148,
  kUvEsmbGetFile = 0xF14C,
  kUvSendSbe = 0xF150,

  // Ours, no call of POWER's: has the hypervisor's process a place for each of these pages that is
  // not shared? The guest wants to share them all, and what it has in the first must not be thrown
  // away if it can be foreseen that the last has none. Nothing is done. gpa, count.
  kPlacesFor = 0xE04,

  // Ours: H_SVM_PAGE_IN of many pages at once, each of which was never touched, so that nothing is
  // sent for it. PARAMETER where one is not so: none of them has gone in. gpa, count.
  kPageInUntouched = 0xE08,

  // No call but an interrupt: the ultravisor passes a guest's fault on to the hypervisor, whose
  // page it is (the hypervisor data storage interrupt, vector 0xE00). gpa.
  kReflectedFault = 0xE00,
};

// H_* and U_* are one set of values.
enum class Status : s32 {
  kSuccess = 0,
  kBusy = 1,
  kNotAvailable = 3,
  kHardware = -1,
  kFunction = -2,
  kParameter = -4,
  kRetry = -5,  // of ultracalls only
  kAuthority = -10,
  kPermission = -11,
  kP2 = -55,
  kP3 = -56,
  kP4 = -57,
  kP5 = -58,
  kBadMode = -59,
  kUnsupported = -67,
  kState = -75,
};

// As it stands in a register.
constexpr u64 to_word(Status status) {
  return static_cast<u64>(static_cast<s64>(status));
}

// May the same call succeed later though nothing of it changes?
constexpr bool is_transient(Status status) {
  return status == Status::kBusy || status == Status::kRetry;
}

// Who calls. A guest that is secure or not: its saved state says so (MSR bit S).
enum class Caller : u8 { kHypervisor, kUltravisor, kGuest, kSecureGuest };

struct Message {
  Call call{};
  u32 lpid = 0;  // of the guest the wire belongs to; of calls that name one, what they name
  u64 args[5] = {};
};
static_assert(sizeof(Message) == 48, "no padding: it is sent as it stands");

class Port {
 public:
  // Context: no lock of the caller's that the other side could need to call back; may sleep.
  virtual Status call(const Message& message, Caller caller) = 0;

 protected:
  ~Port() = default;
};

// The page size by its order, as calls name it.
constexpr u64 order_of(u64 page_bytes) {
  return static_cast<u64>(__builtin_ctzll(page_bytes));
}

// Slots of a guest; their ids are below.
inline constexpr u64 kMostSlots = 512;

// H_SVM_PAGE_IN's one flag.
inline constexpr u64 kPageInShared = 1;

// Ours, of UV_PAGE_INVAL: a frame that is in use answers BUSY, and nobody waits. POWER's hypervisor
// may always wait there.
inline constexpr u64 kInvalNow = 1;

}  // namespace stagetwo::uv
