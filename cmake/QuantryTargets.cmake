# Compiler settings and the three target functions every folder uses:
#   quantry_library(NAME SOURCES... DEPS...)   static library, one per folder
#   quantry_binary(NAME SOURCES... DEPS...)    executable in build/bin
#   quantry_test(NAME SOURCES... DEPS...)      GoogleTest executable + ctest entry
include(GNUInstallDirs)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
set(QUANTRY_DEPS_DIR "${CMAKE_SOURCE_DIR}/.deps" CACHE PATH "Where scripts/bootstrap unpacks wheels")

find_program(QUANTRY_CCACHE ccache)
if(QUANTRY_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Precompiled headers need the sloppiness; see ccache(1).
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${QUANTRY_CCACHE})
endif()
find_program(QUANTRY_MOLD mold)
if(QUANTRY_MOLD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_link_options(-fuse-ld=mold)
endif()
# RPATH, not RUNPATH: LibTorch's own dependencies must be found through ours.
add_link_options(-Wl,--disable-new-dtags)

option(QUANTRY_UNITY "Compile up to ten files of a target as one: less than half the work from scratch, more after a small change" OFF)
add_library(quantry_flags INTERFACE)
target_include_directories(quantry_flags INTERFACE "${CMAKE_SOURCE_DIR}")
target_compile_options(quantry_flags INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor
  $<$<BOOL:${QUANTRY_WERROR}>:-Werror> -fpch-preprocess)
if(QUANTRY_UNITY)  # what one file declares, a later one may use again or keep in a public type
  target_compile_options(quantry_flags INTERFACE -Wno-shadow $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
endif()
target_compile_definitions(quantry_flags INTERFACE QUANTRY_VERSION="${PROJECT_VERSION}")

if(QUANTRY_BUILD_TESTS)
  enable_testing()
  find_package(GTest QUIET)
  if(NOT GTest_FOUND)  # a GPU machine without packages: sources carried along
    set(QUANTRY_GTEST_SOURCE /usr/src/googletest CACHE PATH "GoogleTest source tree")
    add_subdirectory("${QUANTRY_GTEST_SOURCE}" "${CMAKE_BINARY_DIR}/googletest" EXCLUDE_FROM_ALL)
    add_library(GTest::gtest_main ALIAS gtest_main)
    add_library(GTest::gmock ALIAS gmock)
  endif()
  include(GoogleTest)
endif()

# Names in unnamed namespaces must then differ within a target.
function(quantry_unite target)
  if(QUANTRY_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 10)
  endif()
endfunction()

function(quantry_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  quantry_unite(${name})
  target_link_libraries(${name} PRIVATE quantry_flags PUBLIC ${ARG_DEPS})
  target_include_directories(${name} PUBLIC "${CMAKE_SOURCE_DIR}")
  quantry_use_pch(${name} ${ARG_DEPS})
endfunction()

function(quantry_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE quantry_flags ${ARG_DEPS})
  quantry_use_pch(${name} ${ARG_DEPS})
endfunction()

function(quantry_test name)
  if(NOT QUANTRY_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_link_libraries(${name} PRIVATE quantry_flags ${ARG_DEPS} GTest::gtest_main GTest::gmock)
  target_compile_definitions(${name} PRIVATE QUANTRY_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  quantry_unite(${name})
  # Tables of cases take the optimizer longer than they ever run.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  quantry_use_test_pch(${name} ${ARG_DEPS})
  add_test(NAME ${name} COMMAND ${name})
  # A waiting thread of a team must not spin: the cores may be shared.
  set_tests_properties(${name} PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=PASSIVE)
  set_tests_properties(${name} PROPERTIES TIMEOUT 600)
endfunction()

# Names a header every user of `dep` precompiles: quantry_pch(quantry::torch "<ATen/ATen.h>")
function(quantry_pch dep header)
  set_property(GLOBAL PROPERTY "QUANTRY_PCH_${dep}" "${header}")
endfunction()

# Shares one precompiled header among the targets that name `dep` directly.
function(quantry_use_pch target)
  foreach(dep ${ARGN})
    get_property(header GLOBAL PROPERTY "QUANTRY_PCH_${dep}")
    if(header)
      quantry_share_pch(${target} "${dep}" ${dep} "${header}")
      return()
    endif()
  endforeach()
endfunction()

# The same for tests, GoogleTest's headers in it; also for those without such a `dep`.
function(quantry_use_test_pch target)
  set(gtest "<gmock/gmock.h>" "<gtest/gtest.h>")
  foreach(dep ${ARGN})
    get_property(header GLOBAL PROPERTY "QUANTRY_PCH_${dep}")
    if(header)
      quantry_share_pch(${target} "${dep}_test" "${dep};GTest::gtest_main;GTest::gmock" "${header};${gtest}")
      return()
    endif()
  endforeach()
  # -pthread, with its macro, for all of them: some of their libraries ask for it.
  quantry_share_pch(${target} "test" "GTest::gtest_main;GTest::gmock" "${gtest}" -pthread)
endfunction()

function(quantry_share_pch target name deps headers)
  string(MAKE_C_IDENTIFIER "quantry_pch_${name}" owner)
  if(NOT TARGET ${owner})
    file(WRITE "${CMAKE_BINARY_DIR}/${owner}.cc" "// owner of a shared precompiled header\n")
    add_library(${owner} OBJECT "${CMAKE_BINARY_DIR}/${owner}.cc")
    target_link_libraries(${owner} PRIVATE quantry_flags ${deps})
    target_precompile_headers(${owner} PRIVATE ${headers})
    target_compile_options(${owner} PRIVATE ${ARGN})
  endif()
  target_precompile_headers(${target} REUSE_FROM ${owner})
  # The header was compiled with -fPIC; an executable's -fPIE would refuse it.
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(${target} PRIVATE -fPIC ${ARGN})
endfunction()
