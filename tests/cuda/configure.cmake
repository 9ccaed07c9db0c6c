# Configures the project in a scratch directory, for the tests of what CMake does of FASTREG_CUDA. Included by scripts that
# get SOURCE, SCRATCH, GENERATOR, MAKE and CXX:
#
#   fastreg_configure(option...)      runs CMake, in PATH without nvcc; `output` is what it says, `result` its status
#   fastreg_expect(result pattern)    it must have ended so ("fine" or "error"), with words that match
#   fastreg_expect_installed(wanted)  whether the library of the backend is among what is installed

file(REMOVE_RECURSE "${SCRATCH}")
file(MAKE_DIRECTORY "${SCRATCH}")

# A directory that has nvcc among other programs is replaced by links to the others.
string(REPLACE ":" ";" path "$ENV{PATH}")
set(path_without_nvcc "")
foreach(directory IN LISTS path)
  if(EXISTS "${directory}/nvcc")
    string(MD5 links "${directory}")
    set(links "${SCRATCH}/${links}")
    file(GLOB programs "${directory}/*")
    file(MAKE_DIRECTORY "${links}")
    foreach(program IN LISTS programs)
      get_filename_component(name "${program}" NAME)
      if(NOT name STREQUAL "nvcc")
        file(CREATE_LINK "${program}" "${links}/${name}" SYMBOLIC)
      endif()
    endforeach()
    set(directory "${links}")
  endif()
  list(APPEND path_without_nvcc "${directory}")
endforeach()
string(REPLACE ";" ":" path_without_nvcc "${path_without_nvcc}")

macro(fastreg_configure)
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env --unset=CUDACXX --unset=CUDAARCHS --unset=CUDAFLAGS "PATH=${path_without_nvcc}"
            "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${SCRATCH}/build" -G "${GENERATOR}" "-DCMAKE_MAKE_PROGRAM=${MAKE}"
            "-DCMAKE_CXX_COMPILER=${CXX}" -DFASTREG_BUILD_PYTHON=OFF -DFASTREG_BUILD_TESTS=OFF -DFASTREG_CUDA_ROOTS=
            ${ARGN}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " output "${output}")  # CMake breaks the lines of errors
endmacro()

function(fastreg_expect_installed wanted)
  file(READ "${SCRATCH}/build/cmake_install.cmake" script)
  string(FIND "${script}" "libfastreg_cuda.so" place)
  if((wanted AND place EQUAL -1) OR (NOT wanted AND NOT place EQUAL -1))
    message(FATAL_ERROR "That the CUDA backend is installed should be ${wanted}:\n${script}")
  endif()
endfunction()

function(fastreg_expect wanted pattern)
  if((wanted STREQUAL "fine" AND NOT result EQUAL 0) OR (wanted STREQUAL "error" AND result EQUAL 0))
    message(FATAL_ERROR "CMake ended with ${result}, which is not ${wanted}:\n${output}")
  endif()
  if(NOT output MATCHES "${pattern}")
    message(FATAL_ERROR "CMake said\n${output}\nwhich does not match\n${pattern}")
  endif()
endfunction()
