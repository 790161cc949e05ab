# SPDX-License-Identifier: Apache-2.0
# One place for warnings, sanitizers and the flags of code that lives in a client's process.

add_library(st_warnings INTERFACE)
target_compile_options(st_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wundef -Werror
  $<$<COMPILE_LANGUAGE:CXX>:-Wold-style-cast -Wnon-virtual-dtor -Woverloaded-virtual>
  # Statement expressions are how ST_TRY propagates a refusal; g++ wants __extension__, which clang
  # honours too, but not through nested macros.
  $<$<CXX_COMPILER_ID:Clang>:-Wno-gnu-statement-expression-from-macro-expansion>
  # The uapi's open-ended structs stand at the head of a client's own struct; g++ does not mind.
  $<$<CXX_COMPILER_ID:Clang>:-Wno-gnu-variable-sized-type-not-at-end>)
if(STAGETWO_THREAD_SAFETY)
  target_compile_options(st_warnings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wthread-safety -Wthread-safety-beta>)
endif()

# Code that can end up in a client's process: docs/decisions/0001-floors-and-bells.md.
add_library(st_resident INTERFACE)
target_compile_options(st_resident INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions> -fvisibility=hidden -fno-semantic-interposition
  $<$<COMPILE_LANGUAGE:CXX>:-fvisibility-inlines-hidden> -ftls-model=initial-exec)

if(STAGETWO_SANITIZE)
  add_compile_options(-fsanitize=${STAGETWO_SANITIZE} -fno-omit-frame-pointer
                      -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${STAGETWO_SANITIZE})
endif()
if(STAGETWO_MUTATION)
  add_compile_definitions(ST_MUTATION=1)
endif()
