// Streams of the caller, whether they are being captured into a graph, and streams of our own.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "errors.h"

namespace fastreg::cuda {

inline void require_device_of_stream(cudaStream_t stream, int device) {
#if CUDART_VERSION >= 12080
  if (stream != nullptr && stream != cudaStreamLegacy && stream != cudaStreamPerThread) {
    int its_device = 0;
    check(cudaStreamGetDevice(stream, &its_device), "asking for the stream's device");
    if (its_device != device) {
      fail(BackendStatus::bad_argument, "the stream is of device " + std::to_string(its_device) +
                                            ", the tensors are on device " + std::to_string(device));
    }
  }
#endif
}

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking whether the stream is being captured");
  if (status == cudaStreamCaptureStatusInvalidated) {
    fail(BackendStatus::failed, "the stream's capture has been invalidated");
  }
  return status == cudaStreamCaptureStatusActive;
}

// Allocation, events and private streams are allowed while another stream of this thread is being captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { check(cudaThreadExchangeStreamCaptureMode(&mode_), "relaxing the capture mode"); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class PrivateStream {
 public:
  PrivateStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
  ~PrivateStream() { cudaStreamDestroy(stream_); }
  PrivateStream(const PrivateStream&) = delete;
  PrivateStream& operator=(const PrivateStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace fastreg::cuda
