# libfastreg_cuda: the CUDA backend, a library of its own that is opened at the first device tensor, so that everything
# else works without a driver. FASTREG_CUDA=AUTO builds it where nvcc is found, ON insists, OFF does not look.

set(FASTREG_CUDA_REASON "" CACHE INTERNAL "Why the CUDA backend is not built; empty when it is")

if(FASTREG_CUDA STREQUAL "OFF")
  set(FASTREG_CUDA_REASON "not built (FASTREG_CUDA=OFF)")
elseif(NOT FASTREG_NVCC)
  set(FASTREG_CUDA_REASON "not built (no nvcc was found)")
else()
  set(CMAKE_CUDA_COMPILER "${FASTREG_NVCC}")
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    # Machine code for each, and code for those to come (PTX) for the last alone.
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100-real 120)
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
  else()
    set(FASTREG_CUDA_REASON "not built (${FASTREG_NVCC} cannot compile)")
  endif()
endif()

if(FASTREG_CUDA_REASON)
  if(FASTREG_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FASTREG_CUDA is ON, but the CUDA backend is ${FASTREG_CUDA_REASON}. Install a CUDA toolkit, or the "
                        "wheels nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-cuda-runtime and nvidia-cuda-cccl, or name the "
                        "compiler by CMAKE_CUDA_COMPILER.")
  endif()
  message(STATUS "CUDA backend: ${FASTREG_CUDA_REASON}")
  return()
endif()
message(STATUS "CUDA backend: ${CMAKE_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}")

add_library(fastreg_cuda MODULE csrc/cuda/backend.cu)
target_include_directories(fastreg_cuda PRIVATE csrc)
set_target_properties(fastreg_cuda PROPERTIES
  CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden
  POSITION_INDEPENDENT_CODE ON PREFIX "lib")
# The contract rounds every operation: no contraction, on the device or on the host.
target_compile_options(fastreg_cuda PRIVATE -fmad=false --threads=2 "-Xcompiler=-Wall,-Wextra,-ffp-contract=off"
                                            $<$<BOOL:${FASTREG_WERROR}>:-Werror=all-warnings -Xcompiler=-Werror>)
# What static cudart brings along is nobody else's business.
target_link_options(fastreg_cuda PRIVATE "LINKER:--exclude-libs,ALL")
install(TARGETS fastreg_cuda LIBRARY DESTINATION fastreg)
