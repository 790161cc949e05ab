// SPDX-License-Identifier: Apache-2.0
#pragma once

// ST_GUARD(name, condition): the only form of a guard that a test may remove.
//
//   if (ST_GUARD(stale_fault, gate.must_retry(snapshot, gfn))) return FaultOutcome::kRetry;
//
// Everywhere but in the preset `mutation` it is the condition and nothing else, which a test proves
// with nm. In `mutation` a test names a guard to remove, and the guard's own test must then fail.

#if defined(ST_MUTATION)
namespace stagetwo::mutation {
// Removes the guard of that name until restore_all(). Thread-safe against concurrent guards, not
// against itself. `name` must outlive the removal.
void remove(const char* name);
void restore_all();
[[nodiscard]] bool removed(const char* name);
}  // namespace stagetwo::mutation
#define ST_GUARD(name, condition) (!::stagetwo::mutation::removed(#name) && (condition))
#else
#define ST_GUARD(name, condition) (condition)
#endif
