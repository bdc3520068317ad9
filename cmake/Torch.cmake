# LibTorch as an imported target of our own, quantry::torch. TorchConfig.cmake
# of the CUDA wheel demands a CUDA toolkit; linking needs only libtorch_cpu and
# libc10. libtorch_cuda is loaded at run time by worker/engine/device.
set(QUANTRY_TORCH_DIR "${QUANTRY_DEPS_DIR}/torch/torch" CACHE PATH "Folder with include/ and lib/ of torch")
if(NOT EXISTS "${QUANTRY_TORCH_DIR}/include/ATen/ATen.h")
  message(FATAL_ERROR "LibTorch not found in ${QUANTRY_TORCH_DIR}: run scripts/bootstrap, "
    "or pass -DQUANTRY_TORCH_DIR=<site-packages/torch>")
endif()
file(GLOB QUANTRY_CUDA_LIB_DIRS "${QUANTRY_DEPS_DIR}/nvidia_*/nvidia/*/lib")
# Where deploy/docker/cuda-wheels.txt has its libraries, which may come after the build: a confined
# engine may read what its RPATH names and no other library.
foreach(part cu13 cudnn cusparselt nccl nvshmem)
  list(APPEND QUANTRY_CUDA_LIB_DIRS "${QUANTRY_TORCH_DIR}/../nvidia/${part}/lib")
endforeach()
add_library(quantry::torch INTERFACE IMPORTED GLOBAL)
target_include_directories(quantry::torch SYSTEM INTERFACE
  "${QUANTRY_TORCH_DIR}/include" "${QUANTRY_TORCH_DIR}/include/torch/csrc/api/include")
target_link_libraries(quantry::torch INTERFACE
  "${QUANTRY_TORCH_DIR}/lib/libtorch_cpu.so" "${QUANTRY_TORCH_DIR}/lib/libc10.so")
# at::parallel_for is a template: without OpenMP in the file that calls it, it is a plain loop. The runtime is LibTorch's own.
target_compile_options(quantry::torch INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fopenmp>)
target_link_libraries(quantry::torch INTERFACE "${QUANTRY_TORCH_DIR}/lib/libgomp.so.1")
foreach(dir ${QUANTRY_CUDA_LIB_DIRS})
  target_link_options(quantry::torch INTERFACE "-Wl,-rpath-link,${dir}" "-Wl,-rpath,${dir}")
endforeach()
quantry_pch(quantry::torch "<ATen/ATen.h>")

include(Json)
