# SPDX-License-Identifier: Apache-2.0
# `cmake --install`: the tool, the engine, and a CMake package for people who want the memory half of
# a VMM ready made: one archive of every room a program may link (floors 0 to 8), the headers, and the
# uapi structs Debian's own headers are too old for.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(archives "")
set(folders "")
foreach(entry IN LISTS STAGETWO_FLOORS)
  string(REGEX MATCH "^([a-z0-9/]+):([0-9]+)$" _ ${entry})
  set(room ${CMAKE_MATCH_1})
  stagetwo_room_target(${room} target)
  if(TARGET ${target} AND CMAKE_MATCH_2 LESS 9)
    list(APPEND folders ${room})
    get_target_property(type ${target} TYPE)
    if(type STREQUAL STATIC_LIBRARY)
      list(APPEND archives ${target})
    endif()
  endif()
endforeach()

# One archive out of many: ar's own script language does it.
set(script ${CMAKE_BINARY_DIR}/libstagetwo.mri)
set(lines "create ${CMAKE_BINARY_DIR}/lib/libstagetwo.a\n")
foreach(archive IN LISTS archives)
  string(APPEND lines "addlib $<TARGET_FILE:${archive}>\n")
endforeach()
file(GENERATE OUTPUT ${script} CONTENT "${lines}save\nend\n")
if(archives)
  add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/lib/libstagetwo.a
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/lib
    COMMAND ${CMAKE_COMMAND} -E rm -f ${CMAKE_BINARY_DIR}/lib/libstagetwo.a
    COMMAND sh -c "'${CMAKE_AR}' -M <'${script}'"
    DEPENDS ${archives} ${script} COMMENT "Collecting the rooms in lib/libstagetwo.a" VERBATIM)
  add_custom_target(stagetwo_archive ALL DEPENDS ${CMAKE_BINARY_DIR}/lib/libstagetwo.a)
  install(FILES ${CMAKE_BINARY_DIR}/lib/libstagetwo.a DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

foreach(room IN LISTS folders)
  file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${room}/*.h
       ${CMAKE_SOURCE_DIR}/src/${room}/*.inc)
  list(FILTER headers EXCLUDE REGEX "_internal\\.h$|/uapi\\.h$")
  install(FILES ${headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/stagetwo/${room})
  # Folders below a room (base/arch, pt/fmt, mem/crypto) belong to it.
  foreach(part arch fmt crypto)
    if(IS_DIRECTORY ${CMAKE_SOURCE_DIR}/src/${room}/${part})
      install(DIRECTORY ${CMAKE_SOURCE_DIR}/src/${room}/${part}
              DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/stagetwo/${room} FILES_MATCHING PATTERN "*.h")
    endif()
  endforeach()
  # The structs themselves: plain C, by the name of their ABI.
  if(EXISTS ${CMAKE_SOURCE_DIR}/src/${room}/uapi.h)
    get_filename_component(abi ${room} NAME)
    install(FILES ${CMAKE_SOURCE_DIR}/src/${room}/uapi.h
            DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/stagetwo/uapi RENAME ${abi}.h)
    # The room's own headers name it by its place in the house.
    install(FILES ${CMAKE_SOURCE_DIR}/src/${room}/uapi.h
            DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/stagetwo/${room})
  endif()
endforeach()

if(TARGET st_cli)
  install(PROGRAMS ${CMAKE_BINARY_DIR}/bin/stagetwo DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(TARGET st_shim)
  install(DIRECTORY ${CMAKE_BINARY_DIR}/lib/stagetwo DESTINATION lib USE_SOURCE_PERMISSIONS
          FILES_MATCHING PATTERN "*.so")
endif()

set(STAGETWO_DEBUG_CHECKS 1)
if(CMAKE_BUILD_TYPE MATCHES "^(Release|RelWithDebInfo|MinSizeRel)$")
  set(STAGETWO_DEBUG_CHECKS 0)
endif()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/stagetwoConfig.cmake.in
  ${CMAKE_BINARY_DIR}/stagetwoConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/stagetwo
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/stagetwoConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/stagetwoConfig.cmake
        ${CMAKE_BINARY_DIR}/stagetwoConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/stagetwo)
