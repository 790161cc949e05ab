// SPDX-License-Identifier: Apache-2.0
#pragma once

// Clang's thread-safety attributes under short names, empty under g++. The preset `tsa` turns their
// diagnoses into errors. What the analysis cannot follow (callbacks, lock-free entries) says so
// with TA_ASSERT or a role capability; see docs/locking.md.

#if defined(__clang__)
#define ST_TA(x) __attribute__((x))
#else
#define ST_TA(x)
#endif

#define TA_CAP(name) ST_TA(capability(name))
#define TA_SCOPED ST_TA(scoped_lockable)
#define TA_GUARDED(lock) ST_TA(guarded_by(lock))
#define TA_PT_GUARDED(lock) ST_TA(pt_guarded_by(lock))
#define TA_REQ(...) ST_TA(requires_capability(__VA_ARGS__))
#define TA_REQ_SHARED(...) ST_TA(requires_shared_capability(__VA_ARGS__))
#define TA_EXCL(...) ST_TA(locks_excluded(__VA_ARGS__))
#define TA_ACQ(...) ST_TA(acquire_capability(__VA_ARGS__))
#define TA_ACQ_SHARED(...) ST_TA(acquire_shared_capability(__VA_ARGS__))
#define TA_TRY_ACQ(...) ST_TA(try_acquire_capability(__VA_ARGS__))
#define TA_REL(...) ST_TA(release_capability(__VA_ARGS__))
#define TA_REL_SHARED(...) ST_TA(release_shared_capability(__VA_ARGS__))
#define TA_REL_GENERIC(...) ST_TA(release_generic_capability(__VA_ARGS__))
#define TA_ASSERT(...) ST_TA(assert_capability(__VA_ARGS__))
#define TA_ASSERT_SHARED(...) ST_TA(assert_shared_capability(__VA_ARGS__))
#define TA_RETURN(lock) ST_TA(lock_returned(lock))
#define TA_AFTER(...) ST_TA(acquired_after(__VA_ARGS__))
// Only with a comment that says why the analysis is wrong here.
#define TA_NO_ANALYSIS ST_TA(no_thread_safety_analysis)
