// Which device is current, during a call and after it.
//
// The runtime's own cudaSetDevice cannot put back what was: from CUDA 12 on it makes a context on the device that it is
// given, hundreds of megabytes on a GPU that the process has never used, and fails where that GPU is another's alone.
// The driver's contexts can, a missing one included. The driver's functions are asked of the runtime, since the library
// links no driver, and has to load where there is none.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <string>

#include "errors.h"

namespace fastreg::cuda {

// The driver's functions, with its types as far as they matter here; 0 is success.
struct Driver {
  using Context = struct CUctx_st*;
  int (*get_current)(Context* context);
  int (*set_current)(Context context);
  int (*get_device)(int* device);  // of the current context
  int (*retain_primary)(Context* context, int device);
};

namespace detail {

template <class Function>
void find_in_driver(Function& function, const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  constexpr unsigned since = 12000;  // as they have been from this version on, or before it
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, since, cudaEnableDefault, &result);
#else
  static_cast<void>(since);
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  check(error, std::string("looking for ") + name);
  if (result != cudaDriverEntryPointSuccess || found == nullptr) {
    fail(BackendStatus::failed, std::string("the driver has no ") + name);
  }
  function = reinterpret_cast<Function>(found);
}

inline void check_driver(int result, const std::string& doing) {
  if (result == 2) {  // CUDA_ERROR_OUT_OF_MEMORY
    fail(BackendStatus::out_of_memory, "the driver is out of memory (" + doing + ")");
  }
  if (result != 0) {
    fail(BackendStatus::failed, "the driver's error " + std::to_string(result) + " (" + doing + ")");
  }
}

}  // namespace detail

inline const Driver& driver() {
  static const Driver found = [] {
    Driver driver{};
    detail::find_in_driver(driver.get_current, "cuCtxGetCurrent");
    detail::find_in_driver(driver.set_current, "cuCtxSetCurrent");
    detail::find_in_driver(driver.get_device, "cuCtxGetDevice");
    detail::find_in_driver(driver.retain_primary, "cuDevicePrimaryCtxRetain");
    return driver;
  }();
  return found;
}

inline int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "counting devices");
  return count;
}

// A device's primary context, which is that of its runtime, and of torch, JAX and CuPy. Never given back, like the
// workspaces in it.
inline Driver::Context primary_context(int device) {
  static auto* mutex = new std::mutex;
  static auto* known = new std::map<int, Driver::Context>;
  const std::lock_guard lock(*mutex);
  Driver::Context& context = (*known)[device];
  if (context == nullptr) {
    detail::check_driver(driver().retain_primary(&context, device),
                         "asking for the context of device " + std::to_string(device));
  }
  return context;
}

// Makes a device current, and afterwards the context that was, or none, without making another.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    const int count = device_count();
    if (device < 0 || device >= count) {
      fail(BackendStatus::bad_argument,
           "there is no CUDA device " + std::to_string(device) + ", only " + std::to_string(count));
    }
    detail::check_driver(driver().get_current(&before_), "asking for the current context");
    // A context of the device that is not its primary one is the caller's choice.
    int before_device = -1;
    if (before_ != nullptr) {
      detail::check_driver(driver().get_device(&before_device), "asking for the current device");
    }
    if (before_device != device) {
      detail::check_driver(driver().set_current(primary_context(device)), "choosing device " + std::to_string(device));
      changed_ = true;
    }
  }
  ~DeviceGuard() {
    if (changed_) {
      driver().set_current(before_);
    }
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  Driver::Context before_ = nullptr;
  bool changed_ = false;
};

}  // namespace fastreg::cuda
