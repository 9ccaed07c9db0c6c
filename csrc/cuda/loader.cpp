#include "loader.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>

#ifndef FASTREG_CUDA_REASON
#define FASTREG_CUDA_REASON ""  // why this build has no CUDA backend
#endif

namespace fastreg {
namespace {

#if defined(__unix__) || defined(__APPLE__)

constexpr char library_name[] = "libfastreg_cuda.so";

// Of a distribution of its own, installed beside the package: see packages/cuda13.
constexpr char package_of_library[] = "../fastreg_kernels_cuda13/";

// Where the library or program is that this function is in, with a slash; empty where nobody knows.
std::string own_directory() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&own_directory), &info) == 0 || info.dli_fname == nullptr) {
    return "";
  }
  const std::string own = info.dli_fname;
  return own.substr(0, own.rfind('/') + 1);
}

bool is_there(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// The library to open; empty where there is none and none was built.
std::string path_of_library() {
  const char* chosen = std::getenv("FASTREG_CUDA_LIBRARY");
  if (chosen != nullptr && *chosen != '\0') {
    return chosen;
  }
  const std::string directory = own_directory();
  const bool was_built = *FASTREG_CUDA_REASON == '\0';
  if (was_built && is_there(directory + library_name)) {
    return directory + library_name;
  }
  std::string installed = directory + package_of_library + library_name;
  if (!directory.empty() && is_there(installed)) {  // never from the directory that the process happens to be in
    return installed;
  }
  return was_built ? directory + library_name : "";
}

// The library's backend; null, and the reason, where it does not fit this core.
const Backend* backend_of(void* library, const std::string& path, std::string& reason) {
  const auto entry = reinterpret_cast<const Backend* (*)()>(dlsym(library, "fastreg_backend"));
  const Backend* backend = entry != nullptr ? entry() : nullptr;
  constexpr std::uint32_t first_with_release = 6;
  if (backend != nullptr && backend->version >= first_with_release &&
      std::strcmp(backend->fastreg_release, own_release) != 0) {
    reason = std::string("the library of the CUDA backend is that of fastreg-kernels ") + backend->fastreg_release +
             ", and this is " + own_release + "; install the same version of both: " + path;
    return nullptr;
  }
  if (backend == nullptr || backend->version != backend_version) {
    reason = "the library of the CUDA backend is of another version of fastreg: " + path;
    return nullptr;
  }
  return backend;
}

LoadedBackend load() {
  LoadedBackend loaded;
  const std::string path = path_of_library();
  if (path.empty()) {
    loaded.reason = FASTREG_CUDA_REASON;
    return loaded;
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();
    loaded.reason = std::string("the library of the CUDA backend cannot be opened: ") + (error != nullptr ? error : "");
    return loaded;
  }
  const Backend* backend = backend_of(library, path, loaded.reason);
  if (backend == nullptr) {
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

#else

LoadedBackend load() {
  LoadedBackend loaded;
  loaded.reason = FASTREG_CUDA_REASON;
  return loaded;
}

#endif

}  // namespace

const LoadedBackend& cuda_backend() {
  static const LoadedBackend loaded = load();
  return loaded;
}

}  // namespace fastreg
