# Where there is no nvcc, or one that cannot compile: AUTO does without, OFF does not look, ON says what would do.
include("${CMAKE_CURRENT_LIST_DIR}/configure.cmake")

# An interpreter without wheels beside it: none at all.
set(no_wheels -DCMAKE_DISABLE_FIND_PACKAGE_Python=ON)

fastreg_configure(${no_wheels} -DFASTREG_CUDA=AUTO)
fastreg_expect(fine "CUDA backend: not built \\(no nvcc was found\\)")

fastreg_configure(${no_wheels} -DFASTREG_CUDA=ON)
fastreg_expect(error "FASTREG_CUDA is ON, but the CUDA backend is not built \\(no nvcc was found\\)")
fastreg_expect(error "Install a CUDA toolkit, or the wheels nvidia-cuda-nvcc, .* or name the compiler by CMAKE_CUDA_COMPILER")

set(broken "${SCRATCH}/toolkit")
file(WRITE "${broken}/bin/nvcc" "#!/bin/sh\nexit 1\n")
file(CHMOD "${broken}/bin/nvcc" PERMISSIONS OWNER_READ OWNER_EXECUTE)

fastreg_configure(${no_wheels} -DFASTREG_CUDA=AUTO "-DFASTREG_CUDA_ROOTS=${broken}")
fastreg_expect(fine "CUDA backend: not built \\([^ ]*/toolkit/bin/nvcc cannot compile\\)")

fastreg_configure(${no_wheels} -DFASTREG_CUDA=ON "-DFASTREG_CUDA_ROOTS=${broken}")
fastreg_expect(error "FASTREG_CUDA is ON, but the CUDA backend is not built \\([^ ]*/toolkit/bin/nvcc cannot compile\\)")

fastreg_configure(${no_wheels} -DFASTREG_CUDA=OFF "-DFASTREG_CUDA_ROOTS=${broken}")
fastreg_expect(fine "CUDA backend: not built \\(FASTREG_CUDA=OFF\\)")
fastreg_expect_installed(NO)

# By pip, which pyproject.toml makes OFF.
fastreg_configure(${no_wheels} -DFASTREG_CUDA=OFF -DSKBUILD=2)
fastreg_expect(fine "CUDA backend: not built \\(pip install with -C cmake\\.define\\.FASTREG_CUDA=ON builds it\\)")

# MSVC, which cannot compile the kernels: pip installs the package without its core, anything else is an error.
set(msvc ${no_wheels} -DCMAKE_CXX_COMPILER_FORCED=ON -DCMAKE_CXX_COMPILER_ID=MSVC -DCMAKE_CXX_COMPILER_ID_RUN=ON)
file(REMOVE_RECURSE "${SCRATCH}/build")
fastreg_configure(${msvc} -DSKBUILD=2)
fastreg_expect(fine "the package is installed without its compiled core and runs on NumPy\\. clang-cl")
file(REMOVE_RECURSE "${SCRATCH}/build")
fastreg_configure(${msvc})
fastreg_expect(error "GCC 11 or Clang 14 or later is needed, not MSVC")
