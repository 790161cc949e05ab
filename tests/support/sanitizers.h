// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which sanitizer watches this program: for what none of them can watch. Their options stand in
// sanitizer_options.cc, which every test program links.

namespace stagetwo::test {

#if defined(__has_feature)  // clang
inline constexpr bool kThreadSanitizer = __has_feature(thread_sanitizer);
inline constexpr bool kAddressSanitizer = __has_feature(address_sanitizer);
#else
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif
#endif

}  // namespace stagetwo::test
