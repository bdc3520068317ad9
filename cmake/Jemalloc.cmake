# jemalloc, linked statically in place of malloc, as quantry::malloc: for the
# engine. glibc 2.36 leaves holes behind LibTorch's aligned tensors that it does
# not fill again (benchmarks/README.md). Without jemalloc (a GPU machine without
# packages, sanitizers) quantry::malloc is empty and the engine tunes glibc's.
include_guard(GLOBAL)
add_library(quantry::malloc INTERFACE IMPORTED GLOBAL)
if(CMAKE_CXX_FLAGS_DEV MATCHES "-fsanitize=")
  return()
endif()
find_library(QUANTRY_JEMALLOC libjemalloc_pic.a DOC "jemalloc, static")
if(NOT QUANTRY_JEMALLOC)
  message(STATUS "No jemalloc: the engine will need more memory")
  return()
endif()
target_compile_definitions(quantry::malloc INTERFACE QUANTRY_JEMALLOC)
target_link_libraries(quantry::malloc INTERFACE "${QUANTRY_JEMALLOC}" ${CMAKE_DL_LIBS} m pthread)
