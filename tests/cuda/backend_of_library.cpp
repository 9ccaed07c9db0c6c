// The CUDA backend of the library that FASTREG_CUDA_LIBRARY names, for the tests of the host side and of bits.
#include <cstdio>
#include <cstdlib>

#include "cuda/loader.h"

const fastreg::Backend* fastreg_backend() {
  const fastreg::LoadedBackend& loaded = fastreg::cuda_backend();
  if (loaded.backend == nullptr) {
    std::fprintf(stderr, "there is no backend to test: %s\n", loaded.reason.c_str());
    std::exit(2);
  }
  return loaded.backend;
}
