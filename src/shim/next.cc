// SPDX-License-Identifier: Apache-2.0
#include "shim/next.h"

namespace stagetwo::shim::next {

#define ST_DEFINE_NEXT(name, ...) constinit Next<__VA_ARGS__> name{#name};
ST_NEXT_FUNCTIONS(ST_DEFINE_NEXT)
#undef ST_DEFINE_NEXT

void resolve_all() {
#define ST_RESOLVE_NEXT(name, ...) name.resolve();
  ST_NEXT_FUNCTIONS(ST_RESOLVE_NEXT)
#undef ST_RESOLVE_NEXT
}

}  // namespace stagetwo::shim::next
