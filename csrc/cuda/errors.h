// Errors of the CUDA backend: thrown where they are found, turned into a status where the caller comes in.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "../backend.h"

namespace fastreg::cuda {

struct Failure : std::exception {
  Failure(BackendStatus its_status, std::string its_text) : status(its_status), text(std::move(its_text)) {}
  BackendStatus status;
  std::string text;
};

[[noreturn]] inline void fail(BackendStatus status, std::string text) { throw Failure(status, std::move(text)); }

inline BackendStatus status_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return BackendStatus::out_of_memory;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
      return BackendStatus::no_device;
    case cudaErrorInvalidDevice:
      return BackendStatus::bad_argument;
    default:
      return BackendStatus::failed;
  }
}

inline void check(cudaError_t error, const std::string& doing) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // clear the sticky error: it is reported here
    fail(status_of(error),
         std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error) + " (" + doing + ")");
  }
}

template <class Body>
BackendStatus guarded(BackendError* error, Body body) {
  BackendStatus status = BackendStatus::ok;
  const char* text = "";
  std::string kept;
  try {
    body();
  } catch (Failure& failure) {
    status = failure.status;
    kept = std::move(failure.text);
    text = kept.c_str();
  } catch (const std::bad_alloc&) {
    status = BackendStatus::out_of_memory;
    text = "out of host memory";
  }
  if (error != nullptr) {
    std::snprintf(error->text, sizeof error->text, "%s", text);
  }
  return status;
}

}  // namespace fastreg::cuda
