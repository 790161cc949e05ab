// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the processes of one session share: a page of words in the session directory, and a lock
// that the death of its holder releases. A word that was never written is 0. Who owns which words
// is said below; what they mean is the owner's.
//
// Without a session (the library preloaded by hand, or a directory that cannot be written) the
// words are this process's own.
//
// Analogue: the kernel's variables behind module parameters and sysctls.
// Locking: a word is read without a lock; the read-modify-write of several stands in SessionLock.
// Lifetime: the page until the process ends, whatever becomes of the directory.

#include <string_view>

#include "base/result.h"
#include "base/types.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::host {

inline constexpr unsigned kSessionWords = 512;
inline constexpr unsigned kHugetlbWords = 8;     // 8 words: pool sizes (host/hugetlb_standin.h)
inline constexpr unsigned kStartWord = 16;       // 1 word: the parameters of --param are in force
inline constexpr unsigned kSpmWords = 24;        // 2 words: parameters of test_hmm (abi/hmm/hmm.h)
inline constexpr unsigned kLimitWord = 17;       // 1 word: of memory; 0: as each was told
inline constexpr unsigned kGuestLimitWord = 18;  // 1 word: the same for each VM
inline constexpr u64 kUnlimited = ~u64{0};       // their value for none
inline constexpr unsigned kNotLimitedWord = 19;  // 1 word: a process that no limit reaches; 0: none
inline constexpr unsigned kPinnedWord = 32;      // 1 word: pages charged (host/pin_ledger.h)
inline constexpr unsigned kParameterWords = 64;  // 64 words: values of module parameters
inline constexpr unsigned kAppendedWords = 256;  // 128 words: read so far of what was appended
inline constexpr unsigned kPinNameWords = 384;   // 64 words, and 64 behind them: who has charged,
inline constexpr unsigned kPinCountWords = 448;  // and how many pages (host/pin_ledger.h)

// The file of the words, in the session directory.
inline constexpr const char* kSessionValues = "values";

// Any word may change at any time, in another process. A load and an add.
[[nodiscard]] sync::Atomic<u64>& session_word(unsigned index);

// Maps the page of the session in `directory` (made by the supervisor, mode 0700); empty: none.
// The first call decides, later ones do nothing. Failure: the kernel's, and the words are our own.
Result<void> join_session(std::string_view directory);
// That directory; empty: none.
[[nodiscard]] std::string_view session_folder();
// Can somebody name it (`--session=NAME`)? A folder with a dot in front is one run's alone.
[[nodiscard]] bool session_is_named();
// A file below the directory; O_CREAT makes it with mode 0600. Failure: ENOENT without a session.
Result<int> open_in_session(std::string_view name, int flags);

// Keeps other processes and other threads out. Analogue: the kernel's param_lock. A leaf.
class SessionLock {
 public:
  SessionLock();
  ~SessionLock();
  SessionLock(const SessionLock&) = delete;
  SessionLock& operator=(const SessionLock&) = delete;

 private:
  sync::MutexGuard guard_;
  int fd_ = -1;
};

void session_after_fork_child();
// For tests: forget the session and clear the words.
void debug_leave_session();

}  // namespace stagetwo::host
