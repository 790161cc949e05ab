# SPDX-License-Identifier: Apache-2.0
# stagetwo_test(NAME <name> SOURCES <file>… [APART <file>…] [ROOMS <room>…] [LINK <lib>…] [SCHED]
#               [MUTATION])
# A GoogleTest program at build/tests/<name>. SCHED links the rooms whose atomics go through the
# schedule seam. MUTATION is a program that removes guards: it exists in the preset `mutation` only,
# where the target mutation_tests builds all of them.
add_custom_target(mutation_tests)
if(STAGETWO_SANITIZE)
  add_library(sanitizer_options OBJECT ${CMAKE_SOURCE_DIR}/tests/support/sanitizer_options.cc)
endif()
# How the tests themselves are compiled: they are two thirds of the build, half of that in the
# optimiser and in debug information. What is tested is in the rooms, at their own optimisation; what
# computes for seconds (models, schedules, stress) is worth the optimiser's first half.
set(unit_options "")
set(other_options "")
if(CMAKE_BUILD_TYPE STREQUAL RelWithDebInfo AND NOT STAGETWO_SANITIZE)
  set(unit_options -O0 -g1)
  set(other_options -O1 -g1)
endif()
# gtest's headers are a quarter of what a test costs to compile, so they, too, are read once for each
# of the two.
if(STAGETWO_READS_ONCE)
  file(WRITE ${CMAKE_BINARY_DIR}/gtest_first.cc "")
  foreach(kind unit other)
    add_library(gtest_first_${kind} OBJECT ${CMAKE_BINARY_DIR}/gtest_first.cc)
    # As the programs are compiled, or the compiler refuses it.
    set_target_properties(gtest_first_${kind} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(gtest_first_${kind} PRIVATE -fPIE ${${kind}_options})
    target_link_libraries(gtest_first_${kind} PRIVATE st_warnings GTest::gtest)
    target_precompile_headers(gtest_first_${kind} PRIVATE <gtest/gtest.h>
      ${STAGETWO_FIRST_HEADERS} <thread>)
  endforeach()
endif()
# The old linker reads the rooms' archives slowly, and there are two hundred programs.
find_program(STAGETWO_GOLD ld.gold)
function(stagetwo_test)
  cmake_parse_arguments(T "SCHED;MUTATION" "NAME" "SOURCES;APART;ROOMS;LINK" ${ARGN})
  if(T_MUTATION AND NOT STAGETWO_MUTATION)
    return()
  endif()
  # One thread runs at a time under the seam: nothing for the thread sanitizer to see.
  if(T_SCHED AND STAGETWO_SANITIZE MATCHES thread)
    return()
  endif()
  add_executable(${T_NAME} ${T_SOURCES})
  stagetwo_compile_together(${T_NAME} ${T_APART})
  if(STAGETWO_SANITIZE)
    target_sources(${T_NAME} PRIVATE $<TARGET_OBJECTS:sanitizer_options>)
  endif()
  set_target_properties(${T_NAME} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_include_directories(${T_NAME} PRIVATE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR})
  set(kind other)
  if(CMAKE_CURRENT_SOURCE_DIR MATCHES "/tests/(unit/|pt_matrix)")
    set(kind unit)
  endif()
  target_compile_options(${T_NAME} PRIVATE ${${kind}_options})
  if(STAGETWO_GOLD AND NOT STAGETWO_SANITIZE)
    target_link_options(${T_NAME} PRIVATE -fuse-ld=gold)
  endif()
  foreach(room IN LISTS T_ROOMS)
    stagetwo_room_target(${room} target)
    if(T_SCHED)
      set(target ${target}_sched)
    endif()
    target_link_libraries(${T_NAME} PRIVATE ${target})
  endforeach()
  target_link_libraries(${T_NAME} PRIVATE st_warnings ${T_LINK} GTest::gtest GTest::gtest_main)
  if(TARGET gtest_first_${kind})
    target_precompile_headers(${T_NAME} REUSE_FROM gtest_first_${kind})
  endif()
  if(T_MUTATION)
    add_dependencies(mutation_tests ${T_NAME})
  endif()
  add_test(NAME ${T_NAME} COMMAND ${T_NAME})
endfunction()

# For sources that read the source tree or the build folder. Not for all of them: a compiler cache
# knows a file by its command line.
function(stagetwo_knows_paths)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_DEFINITIONS
    "ST_SOURCE_DIR=\"${CMAKE_SOURCE_DIR}\";ST_BINARY_DIR=\"${CMAKE_BINARY_DIR}\"")
endfunction()
