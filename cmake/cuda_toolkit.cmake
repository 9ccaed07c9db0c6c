# Finds nvcc and CUDA's headers: of a toolkit, or of the wheels nvidia-cuda-nvcc, -crt, -runtime and -cccl, which lay them
# out as a toolkit under site-packages/nvidia. FASTREG_CUDA=OFF does not look.
#
#   FASTREG_NVCC           the compiler, or empty: what CMAKE_CUDA_COMPILER or CUDACXX name, else the first in PATH, in
#                          FASTREG_CUDA_ROOTS, and among the wheels
#   FASTREG_CUDA_INCLUDE   the directory of cuda_runtime_api.h and cuda_fp16.h, or empty
#   FASTREG_CUDA_LIBRARIES where nvcc's libraries are, if nvcc itself would not find them

set(FASTREG_CUDA_ROOTS "/usr/local/cuda;/opt/cuda" CACHE STRING "CUDA toolkits, looked at after PATH")
set(FASTREG_NVCC "")
set(FASTREG_CUDA_INCLUDE "")
set(FASTREG_CUDA_LIBRARIES "")
if(FASTREG_CUDA STREQUAL "OFF")
  return()
endif()

set(cuda_roots ${FASTREG_CUDA_ROOTS})
find_package(Python 3.10 QUIET COMPONENTS Interpreter)
if(Python_EXECUTABLE)
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "import sysconfig; print(sysconfig.get_path('purelib'))"
                  OUTPUT_VARIABLE site_packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  file(GLOB wheel_roots "${site_packages}/nvidia/cu[0-9]*")
  list(APPEND cuda_roots ${wheel_roots})
endif()

foreach(candidate IN ITEMS "${CMAKE_CUDA_COMPILER}" "$ENV{CUDACXX}")
  if(candidate AND NOT FASTREG_NVCC)
    set(FASTREG_NVCC "${candidate}")
  endif()
endforeach()
if(NOT FASTREG_NVCC)
  set(cuda_bins ${cuda_roots})
  list(TRANSFORM cuda_bins APPEND "/bin")
  find_program(fastreg_found_nvcc nvcc PATHS ENV PATH ${cuda_bins} NO_DEFAULT_PATH NO_CACHE)
  if(fastreg_found_nvcc)
    set(FASTREG_NVCC "${fastreg_found_nvcc}")
  endif()
endif()

# nvcc itself says where its headers are, even when what is found in PATH is a script that starts it.
if(FASTREG_NVCC)
  execute_process(COMMAND "${FASTREG_NVCC}" --dryrun -x cu -c /dev/null OUTPUT_VARIABLE dryrun ERROR_VARIABLE dryrun)
  if(dryrun MATCHES "TOP=([^\n\r]*)")
    get_filename_component(nvcc_root "${CMAKE_MATCH_1}" ABSOLUTE)
    list(PREPEND cuda_roots "${nvcc_root}")
    # It looks in lib64, but the wheels have lib.
    if(EXISTS "${nvcc_root}/lib/libcudart_static.a" AND NOT EXISTS "${nvcc_root}/lib64")
      set(FASTREG_CUDA_LIBRARIES "${nvcc_root}/lib")
    endif()
  endif()
endif()
set(cuda_includes ${cuda_roots})
list(TRANSFORM cuda_includes APPEND "/include")
find_path(fastreg_found_headers cuda_fp16.h PATHS ${cuda_includes} NO_DEFAULT_PATH NO_CACHE)
if(fastreg_found_headers AND EXISTS "${fastreg_found_headers}/cuda_runtime_api.h")
  set(FASTREG_CUDA_INCLUDE "${fastreg_found_headers}")
endif()
