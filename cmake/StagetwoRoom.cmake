# SPDX-License-Identifier: Apache-2.0
# stagetwo_room(): a room of the house. It stops the configuration when a room uses one that is not
# on a strictly lower floor, so that the floors of src/README.md are true and not a hope.

# The floors: the one place that knows them. A room that is not listed here does not exist.
set(STAGETWO_FLOORS
  base:0 sync:1 addr:2 pt:3 mem:4 host:5 stage2:6 iommu:6 mirror:6 reclaim:6 vcpu:7 vfio:7 uv:7
  abi/kvm:8 abi/vfio:8 abi/iommufd:8 abi/hmm:8 check:8 shim:9 cli:9)

function(stagetwo_floor_of room out)
  foreach(entry IN LISTS STAGETWO_FLOORS)
    if(entry MATCHES "^${room}:([0-9]+)$")
      set(${out} ${CMAKE_MATCH_1} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "stagetwo_room: there is no room '${room}'; the floors are listed in "
                      "cmake/StagetwoRoom.cmake")
endfunction()

function(stagetwo_room_target room out)
  string(REPLACE "/" "_" flat ${room})
  set(${out} st_${flat} PARENT_SCOPE)
endfunction()

# The library's headers are two thirds of what a source costs to compile, so they are read once for
# each flavour. Not beside a compiler cache, which does that better, nor for clang, whose tools want
# the text; so a source that forgets its own include fails there.
set(STAGETWO_FIRST_HEADERS <algorithm> <array> <atomic> <bit> <cstring> <expected> <functional>
  <memory> <optional> <span> <string> <string_view> <type_traits> <utility> <vector>)
set(STAGETWO_READS_ONCE OFF)
if(NOT CMAKE_CXX_COMPILER_LAUNCHER AND NOT STAGETWO_SANITIZE AND
   CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  set(STAGETWO_READS_ONCE ON)
endif()
function(stagetwo_read_headers_once target flavour options)
  set(first headers_first${flavour})
  if(NOT TARGET ${first})
    file(WRITE ${CMAKE_BINARY_DIR}/headers_first.cc "")
    add_library(${first} OBJECT EXCLUDE_FROM_ALL ${CMAKE_BINARY_DIR}/headers_first.cc)
    # As the rooms are compiled, or the compiler refuses it.
    target_link_libraries(${first} PRIVATE st_warnings st_resident)
    target_compile_options(${first} PRIVATE ${options})
    target_precompile_headers(${first} PRIVATE ${STAGETWO_FIRST_HEADERS})
  endif()
  target_precompile_headers(${target} REUSE_FROM ${first})
endfunction()

# What is compiled for tests alone is compiled eight files at once: most of what a small source costs
# is its headers. Files that give one name to two things cannot stand together: APART names those
# that are compiled by themselves. The rooms as they are shipped, what a compiler cache serves and
# what clang's tools look at are one file at a time.
option(STAGETWO_TOGETHER "compile the files of a test, and of a room for tests, together"
       ${STAGETWO_READS_ONCE})
function(stagetwo_compile_together target)
  if(STAGETWO_TOGETHER)
    # What is no fault of a file by itself is none of one that is included.
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8
      UNITY_BUILD_CODE_BEFORE_INCLUDE "#pragma GCC diagnostic ignored \"-Wshadow\"\n\
#pragma GCC diagnostic ignored \"-Wsubobject-linkage\"")
    set_source_files_properties(${ARGN} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

# stagetwo_room(NAME <room> FLOOR <n> [USES <room>…] [SOURCES <file>…] [APART <file>…])
# Creates st_<room>, and st_<room>_sched: the same sources with every atomic and lock going through
# the schedule seam (built only when a test of tests/sched asks for it).
function(stagetwo_room)
  cmake_parse_arguments(ROOM "" "NAME;FLOOR" "USES;SOURCES;APART" ${ARGN})
  stagetwo_floor_of(${ROOM_NAME} floor)
  if(NOT floor EQUAL ROOM_FLOOR)
    message(FATAL_ERROR "stagetwo_room: '${ROOM_NAME}' says floor ${ROOM_FLOOR}, "
                        "the house says ${floor}")
  endif()
  stagetwo_room_target(${ROOM_NAME} target)
  foreach(flavour "" "_sched")
    if(ROOM_SOURCES)
      set(kind PUBLIC)
      add_library(${target}${flavour} STATIC ${ROOM_SOURCES})
      target_link_libraries(${target}${flavour} PRIVATE st_warnings st_resident)
      if(flavour)
        set_target_properties(${target}${flavour} PROPERTIES EXCLUDE_FROM_ALL ON)
      endif()
      # No figure is taken of these: the optimiser's second half and the debugger's information
      # would be a third of their build. At -O1 the compiler takes a refusal that was never made
      # for one that may be uninitialized; the rooms themselves are compiled with that warning.
      set(options "")
      if((flavour OR STAGETWO_MUTATION) AND CMAKE_BUILD_TYPE STREQUAL RelWithDebInfo AND
         NOT STAGETWO_SANITIZE)
        set(options -O1 -g1 -Wno-maybe-uninitialized)
        stagetwo_compile_together(${target}${flavour} ${ROOM_APART})
      endif()
      target_compile_options(${target}${flavour} PRIVATE ${options})
      if(STAGETWO_READS_ONCE)
        stagetwo_read_headers_once(${target}${flavour} "${flavour}" "${options}")
      endif()
    else()
      set(kind INTERFACE)
      add_library(${target}${flavour} INTERFACE)
    endif()
    target_include_directories(${target}${flavour} ${kind}
      $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/src>)
    if(flavour)
      target_compile_definitions(${target}${flavour} ${kind} ST_SCHED=1)
    endif()
    foreach(used IN LISTS ROOM_USES)
      stagetwo_floor_of(${used} used_floor)
      if(NOT used_floor LESS floor)
        message(FATAL_ERROR
          "stagetwo_room: '${ROOM_NAME}' (floor ${floor}) may not use '${used}' (floor "
          "${used_floor}): a room uses strictly lower floors only. If two rooms of one floor need "
          "the same thing, it belongs one floor down.")
      endif()
      stagetwo_room_target(${used} used_target)
      target_link_libraries(${target}${flavour} ${kind} ${used_target}${flavour})
    endforeach()
  endforeach()
endfunction()
