// SPDX-License-Identifier: Apache-2.0
#include "shim/next.h"

#include "shim/buffered_calls.h"

namespace stagetwo::shim::next {

#define ST_DEFINE_NEXT(name, ...) constinit Next<__VA_ARGS__> name{#name};
ST_NEXT_FUNCTIONS(ST_DEFINE_NEXT)
#undef ST_DEFINE_NEXT
#define ST_CALL(result, name, parameters, arguments, ...) \
  constinit Next<result parameters> name{#name};
#include "shim/buffered_calls.def"
#undef ST_CALL

void resolve_all() {
#define ST_RESOLVE_NEXT(name, ...) name.resolve();
  ST_NEXT_FUNCTIONS(ST_RESOLVE_NEXT)
#undef ST_RESOLVE_NEXT
#define ST_CALL(result, name, ...) name.resolve();
#include "shim/buffered_calls.def"
#undef ST_CALL
}

}  // namespace stagetwo::shim::next
