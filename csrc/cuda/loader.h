// The CUDA backend, opened at the first call of cuda_backend() and not before: nothing else needs a driver.
#pragma once

#include <string>

#include "../backend.h"

namespace fastreg {

struct LoadedBackend {
  const Backend* backend = nullptr;  // null: there is none, for this reason
  std::string reason;
  int device_count = 0;
};

// Looks once, and keeps what it found: the library that FASTREG_CUDA_LIBRARY names, else the one that was built with
// the core, else that of a distribution of its own. A library of another release than the core's is refused by name.
const LoadedBackend& cuda_backend();

}  // namespace fastreg
