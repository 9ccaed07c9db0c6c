# Finds nvcc and CUDA's headers: of a toolkit, or of the wheels nvidia-cuda-nvcc, -crt, -runtime and -cccl, which lay them
# out as a toolkit under site-packages/nvidia.
#
#   FASTREG_NVCC           the compiler, or empty
#   FASTREG_CUDA_INCLUDE   the directory of cuda_runtime_api.h and cuda_fp16.h, or empty

set(cuda_roots "")
find_package(Python 3.10 QUIET COMPONENTS Interpreter)
if(Python_EXECUTABLE)
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "import sysconfig; print(sysconfig.get_path('purelib'))"
                  OUTPUT_VARIABLE site_packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  file(GLOB cuda_roots "${site_packages}/nvidia/cu1[2-9]" "${site_packages}/nvidia/cuda_nvcc")
endif()

set(FASTREG_NVCC "")
foreach(candidate IN ITEMS "${CMAKE_CUDA_COMPILER}" "$ENV{CUDACXX}")
  if(candidate AND NOT FASTREG_NVCC)
    set(FASTREG_NVCC "${candidate}")
  endif()
endforeach()
if(NOT FASTREG_NVCC)
  set(wheel_bins ${cuda_roots})
  list(TRANSFORM wheel_bins APPEND "/bin")
  find_program(fastreg_found_nvcc nvcc PATHS ENV PATH /usr/local/cuda/bin ${wheel_bins} NO_CACHE)
  if(fastreg_found_nvcc)
    set(FASTREG_NVCC "${fastreg_found_nvcc}")
  endif()
endif()

# nvcc itself says where its headers are, even when what is found in PATH is a script that starts it.
set(toolkit_roots ${cuda_roots})
if(FASTREG_NVCC)
  execute_process(COMMAND "${FASTREG_NVCC}" --dryrun -x cu -c /dev/null OUTPUT_VARIABLE dryrun ERROR_VARIABLE dryrun)
  if(dryrun MATCHES "TOP=([^\n\r]*)")
    list(PREPEND toolkit_roots "${CMAKE_MATCH_1}")
  endif()
endif()
list(TRANSFORM toolkit_roots APPEND "/include")
find_path(fastreg_found_headers cuda_fp16.h PATHS ${toolkit_roots} /usr/local/cuda/include NO_CACHE)
set(FASTREG_CUDA_INCLUDE "")
if(fastreg_found_headers AND EXISTS "${fastreg_found_headers}/cuda_runtime_api.h")
  set(FASTREG_CUDA_INCLUDE "${fastreg_found_headers}")
endif()
