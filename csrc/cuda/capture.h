// A call that is captured into a graph: its block is its own, and is filled before the capture goes on, since a replay
// comes when the stream's block holds something else.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "../backend.h"
#include "block.h"
#include "errors.h"
#include "streams.h"

namespace fastreg::cuda {

struct RecordedCall {
  explicit RecordedCall(int on_device) : device(on_device), block(on_device) {}
  int device;
  std::size_t strength_count = 0;
  std::size_t sources = 0;  // where they lie, of a step; what update() changes
  std::size_t source_count = 0;
  Block block;
};

inline Recording* handle_of(RecordedCall* call) { return reinterpret_cast<Recording*>(call); }
inline RecordedCall& call_of(Recording* handle) { return *reinterpret_cast<RecordedCall*>(handle); }

// A block that is filled when this returns. It waits for the copy alone, on a stream with nothing else in it.
template <class CallPlaces>
std::unique_ptr<RecordedCall> make_recording(int device, std::size_t strength_count, const CallPlaces& places,
                                             std::vector<char> image) {
  const RelaxedCapture relaxed;
  const PrivateStream stream;
  auto recording = std::make_unique<RecordedCall>(device);
  recording->strength_count = strength_count;
  recording->block.reserve(places.end, stream.get());
  recording->block.hold(std::move(image), places.rows, stream.get());
  check(cudaStreamSynchronize(stream.get()), "sending the table of tensors");
  return recording;
}

}  // namespace fastreg::cuda
