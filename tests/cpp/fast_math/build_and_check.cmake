# cmake -DSOURCE=... -DBUILD=... -DCOMPILER=... -DGENERATOR=... -DMAKE=... -P build_and_check.cmake
#
# Configures the project with flags that ask for other arithmetic, builds one small module with the flags that all of it
# has, and checks the module's arithmetic; and that the check fails for a module without that protection.

# What is in CXXFLAGS, and what in LDFLAGS.
set(every_way
    "-O3 -ffast-math|"
    "-Ofast|-Ofast"
    "|-ffast-math"
    "-funsafe-math-optimizations|-funsafe-math-optimizations"
    "-ffinite-math-only -freciprocal-math|"
    "-fassociative-math -fno-signed-zeros -fno-trapping-math|")

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${ARGN}: ${status}\n${output}")
  endif()
endfunction()

foreach(way IN LISTS every_way)
  string(FIND "${way}" "|" bar)
  string(SUBSTRING "${way}" 0 ${bar} compile_flags)
  math(EXPR bar "${bar} + 1")
  string(SUBSTRING "${way}" ${bar} -1 link_flags)
  message(STATUS "CXXFLAGS='${compile_flags}' LDFLAGS='${link_flags}'")
  file(REMOVE_RECURSE "${BUILD}")
  # From the environment, as pip has them.
  run("${CMAKE_COMMAND}" -E env "CXXFLAGS=${compile_flags}" "LDFLAGS=${link_flags}"
      "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${BUILD}" -G "${GENERATOR}" "-DCMAKE_MAKE_PROGRAM=${MAKE}"
      "-DCMAKE_CXX_COMPILER=${COMPILER}" -DFASTREG_BUILD_PYTHON=OFF -DFASTREG_BUILD_TESTS=ON -DFASTREG_CUDA=OFF)
  run("${CMAKE_COMMAND}" --build "${BUILD}" --target fastreg_arithmetic_module fastreg_arithmetic_check)
  run("${BUILD}/tests/cpp/fastreg_arithmetic_check" "${BUILD}/tests/cpp/libfastreg_arithmetic_module.so")
endforeach()

set(source "${SOURCE}/tests/cpp/fast_math/arithmetic.cpp")
run("${COMPILER}" -std=c++20 -O3 -fPIC -shared -ffast-math -DFASTREG_UNPROTECTED "${source}" -o "${BUILD}/unprotected.so")
execute_process(COMMAND "${BUILD}/tests/cpp/fastreg_arithmetic_check" "${BUILD}/unprotected.so"
                RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT status EQUAL 1)
  message(FATAL_ERROR "the check does not see -ffast-math: ${status}\n${output}")
endif()
execute_process(COMMAND "${COMPILER}" -std=c++20 -ffast-math -fsyntax-only "-I${SOURCE}/csrc" "${source}"
                RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(status EQUAL 0 OR NOT output MATCHES "need IEEE arithmetic")
  message(FATAL_ERROR "csrc/canonical_sum.h can be compiled with -ffast-math: ${status}\n${output}")
endif()
