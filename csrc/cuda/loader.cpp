#include "loader.h"

#include <dlfcn.h>

#include <cstdlib>

#ifndef FASTREG_CUDA_REASON
#define FASTREG_CUDA_REASON ""  // why this build has no CUDA backend
#endif

namespace fastreg {
namespace {

constexpr char library_name[] = "libfastreg_cuda.so";

// Beside the library or program that this function is in.
std::string path_of_library() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&path_of_library), &info) == 0 || info.dli_fname == nullptr) {
    return library_name;
  }
  const std::string own = info.dli_fname;
  const std::size_t slash = own.rfind('/');
  return slash == std::string::npos ? library_name : own.substr(0, slash + 1) + library_name;
}

LoadedBackend load() {
  LoadedBackend loaded;
  const char* chosen = std::getenv("FASTREG_CUDA_LIBRARY");
  const bool is_chosen = chosen != nullptr && *chosen != '\0';
  if (!is_chosen && *FASTREG_CUDA_REASON != '\0') {
    loaded.reason = FASTREG_CUDA_REASON;
    return loaded;
  }
  void* library = dlopen(is_chosen ? chosen : path_of_library().c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();
    loaded.reason = std::string("the library of the CUDA backend cannot be opened: ") + (error != nullptr ? error : "");
    return loaded;
  }
  const auto entry = reinterpret_cast<const Backend* (*)()>(dlsym(library, "fastreg_backend"));
  const Backend* backend = entry != nullptr ? entry() : nullptr;
  if (backend == nullptr || backend->version != backend_version) {
    loaded.reason = "the library of the CUDA backend is of another version of fastreg";
    return loaded;
  }
  BackendError error;
  const BackendStatus status = backend->device_count(&loaded.device_count, &error);
  if (status != BackendStatus::ok) {
    // Without a driver the runtime says that it is too old.
    loaded.reason = (status == BackendStatus::no_device ? "there is no CUDA device, or no driver for it: " : "");
    loaded.reason += error.text;
    return loaded;
  }
  if (loaded.device_count == 0) {
    loaded.reason = "there is no CUDA device";
    return loaded;
  }
  loaded.backend = backend;
  return loaded;
}

}  // namespace

const LoadedBackend& cuda_backend() {
  static const LoadedBackend loaded = load();
  return loaded;
}

}  // namespace fastreg
