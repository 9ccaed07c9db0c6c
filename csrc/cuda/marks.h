// Marks: what a stream held at some moment, as an event.
#pragma once

#include <cuda_runtime_api.h>

#include "../backend.h"
#include "devices.h"
#include "errors.h"
#include "streams.h"

namespace fastreg::cuda {

inline cudaEvent_t event_of(const Mark* mark) { return reinterpret_cast<cudaEvent_t>(const_cast<Mark*>(mark)); }

inline BackendStatus set_mark(int device, void* stream, Mark** mark, BackendError* error) {
  *mark = nullptr;
  return guarded(error, [&] {
    const DeviceGuard guard(device);
    require_device_of_stream(static_cast<cudaStream_t>(stream), device);
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    const cudaError_t result = cudaEventRecord(event, static_cast<cudaStream_t>(stream));
    if (result != cudaSuccess) {
      cudaEventDestroy(event);
      check(result, "recording an event");
    }
    *mark = reinterpret_cast<Mark*>(event);
  });
}

inline void drop_mark(Mark* mark) { cudaEventDestroy(event_of(mark)); }

inline bool has_passed(const Mark* mark) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // asking is not allowed in a capture otherwise
  cudaThreadExchangeStreamCaptureMode(&mode);
  const bool passed = cudaEventQuery(event_of(mark)) != cudaErrorNotReady;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaGetLastError();  // "not ready" is no error
  return passed;
}

inline BackendStatus wait_for_mark(int device, void* stream, Mark* mark, BackendError* error) {
  return guarded(error, [&] {
    const DeviceGuard guard(device);
    check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), event_of(mark), 0), "waiting for a mark");
  });
}

inline BackendStatus wait(int device, void* stream, void* producer, BackendError* error) {
  if (stream == producer) {
    return BackendStatus::ok;
  }
  Mark* mark = nullptr;
  BackendStatus status = set_mark(device, producer, &mark, error);
  if (status == BackendStatus::ok) {
    status = wait_for_mark(device, stream, mark, error);
    drop_mark(mark);
  }
  return status;
}

}  // namespace fastreg::cuda
