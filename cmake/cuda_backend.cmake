# libfastreg_cuda: the CUDA backend, a library of its own that is opened at the first device tensor, so that everything
# else works without a driver. FASTREG_CUDA=AUTO builds it where nvcc is found and can compile, ON insists, OFF does not
# look. A build by pip is OFF unless it is told otherwise (pyproject.toml).

set(FASTREG_CUDA_DESTINATION "fastreg" CACHE STRING "The Python package that the library is installed in")
set(FASTREG_CUDA_MAJOR "" CACHE STRING "The version of CUDA that nvcc has to be of; empty: any")
set(FASTREG_CUDA_REASON "" CACHE INTERNAL "Why the CUDA backend is not built; empty when it is")

if(FASTREG_CUDA STREQUAL "OFF" AND SKBUILD)
  set(FASTREG_CUDA_REASON "not built (pip install with -C cmake.define.FASTREG_CUDA=ON builds it)")
elseif(FASTREG_CUDA STREQUAL "OFF")
  set(FASTREG_CUDA_REASON "not built (FASTREG_CUDA=OFF)")
elseif(NOT FASTREG_NVCC)
  set(FASTREG_CUDA_REASON "not built (no nvcc was found)")
else()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    # Machine code for each, and code for those to come (PTX) for the last alone.
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100-real 120)
  endif()
  # CMake tries the compiler before there is a target that could say where libraries are.
  set(library_path "$ENV{LIBRARY_PATH}")
  if(FASTREG_CUDA_LIBRARIES)
    set(ENV{LIBRARY_PATH} "${FASTREG_CUDA_LIBRARIES}:${library_path}")
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # the answer of a configuration before this
  endif()
  set(ENV{CUDACXX} "${FASTREG_NVCC}")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
  else()
    set(FASTREG_CUDA_REASON "not built (${FASTREG_NVCC} cannot compile)")
  endif()
  set(ENV{LIBRARY_PATH} "${library_path}")
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
if(FASTREG_CUDA_MAJOR AND NOT CMAKE_CUDA_COMPILER_VERSION MATCHES "^${FASTREG_CUDA_MAJOR}\\.")
  message(FATAL_ERROR "This is to be CUDA ${FASTREG_CUDA_MAJOR}, but ${CMAKE_CUDA_COMPILER} is of CUDA ${CMAKE_CUDA_COMPILER_VERSION}. "
                      "Name another compiler by CMAKE_CUDA_COMPILER.")
endif()
message(STATUS "CUDA backend: ${CMAKE_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}")

# Objects, since tests/cuda links the same ones with a stub of the runtime.
add_library(fastreg_cuda_objects OBJECT csrc/cuda/backend.cu)
target_include_directories(fastreg_cuda_objects PRIVATE csrc)
set_target_properties(fastreg_cuda_objects PROPERTIES
  CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
# The contract rounds every operation: no contraction, on the device or on the host; divisions are IEEE's. ptxas warns of spills and the like,
# whose absence is promised (tests/cuda/static_evidence.py).
target_compile_options(fastreg_cuda_objects PRIVATE
  -fmad=false -prec-div=true -prec-sqrt=true -ftz=false --threads=2 "-Xcompiler=-Wall,-Wextra,-ffp-contract=off"
  -Xptxas=--warn-on-spills,--warn-on-local-memory-usage
  $<$<BOOL:${FASTREG_WERROR}>:-Werror=all-warnings -Xcompiler=-Werror -Xptxas=--warning-as-error>)

add_library(fastreg_cuda MODULE $<TARGET_OBJECTS:fastreg_cuda_objects>)
set_target_properties(fastreg_cuda PROPERTIES LINKER_LANGUAGE CUDA CUDA_RUNTIME_LIBRARY Static PREFIX "lib")
if(FASTREG_CUDA_LIBRARIES)
  # As an option: CMake leaves out what LIBRARY_PATH has named before, as if the linker went on looking there.
  target_link_options(fastreg_cuda PRIVATE "-L${FASTREG_CUDA_LIBRARIES}")
endif()
# What static cudart brings along is nobody else's business.
target_link_options(fastreg_cuda PRIVATE "LINKER:--exclude-libs,ALL")
install(TARGETS fastreg_cuda LIBRARY DESTINATION ${FASTREG_CUDA_DESTINATION})
