# AUTO finds nvcc as the wheels lay it out beside an interpreter, and compiles for the architectures that it is told.
# NVCC is a compiler that works, PYTHON an interpreter.
include("${CMAKE_CURRENT_LIST_DIR}/configure.cmake")

# An environment of its own, in which the directory that the wheels would fill is a link to the toolkit.
execute_process(COMMAND "${NVCC}" --dryrun -x cu -c /dev/null OUTPUT_VARIABLE dryrun ERROR_VARIABLE dryrun)
if(NOT dryrun MATCHES "TOP=([^\n\r]*)")
  message(FATAL_ERROR "${NVCC} does not say where it is:\n${dryrun}")
endif()
get_filename_component(toolkit "${CMAKE_MATCH_1}" ABSOLUTE)
set(environment "${SCRATCH}/environment")
execute_process(COMMAND "${PYTHON}" -m venv --without-pip "${environment}" COMMAND_ERROR_IS_FATAL ANY)
file(GLOB site_packages "${environment}/lib/python*/site-packages")
file(MAKE_DIRECTORY "${site_packages}/nvidia")
file(CREATE_LINK "${toolkit}" "${site_packages}/nvidia/cu13" SYMBOLIC)
set(in_environment "-DPython_EXECUTABLE=${environment}/bin/python")

function(fastreg_expect_architectures)
  file(READ "${SCRATCH}/build/compile_commands.json" commands)
  string(REGEX MATCHALL "code=\\[[a-z0-9_,]+\\]" found "${commands}")
  list(TRANSFORM found REPLACE "code=\\[([a-z0-9_,]+)\\]" "\\1")
  if(NOT found STREQUAL ARGN)
    message(FATAL_ERROR "It compiles for ${found}, not for ${ARGN}")
  endif()
endfunction()

fastreg_configure(${in_environment} -DFASTREG_CUDA=AUTO -DCMAKE_EXPORT_COMPILE_COMMANDS=ON)
fastreg_expect(fine "CUDA backend: [^ ]*/site-packages/nvidia/cu13/bin/nvcc for 75-real;80-real;86-real;89-real;90-real;100-real;120")
fastreg_expect_architectures(sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 compute_120,sm_120)
fastreg_expect_installed(YES)

fastreg_configure(${in_environment} -DFASTREG_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90-real)
fastreg_expect(fine "CUDA backend: [^ ]*/bin/nvcc for 90-real")
fastreg_expect_architectures(sm_90)

fastreg_configure(${in_environment} -DFASTREG_CUDA=OFF)
fastreg_expect(fine "CUDA backend: not built \\(FASTREG_CUDA=OFF\\)")
fastreg_expect_installed(NO)
