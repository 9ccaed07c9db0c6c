// The runtime calls that csrc/cuda uses, over host memory, and what tests may ask of them.
//
// Streams delay: what is queued runs when somebody waits for it, or when a test says so, or (seeded) at random in
// between, as far as streams and events leave a choice. Memory is host memory, known by device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace stand_in {

// Back to the start: two devices, nothing queued, no limits. Streams, events and memory of before stay valid.
void reset(std::uint64_t seed);

// 0 devices: every call answers "no CUDA-capable device".
void set_device_count(int count);
void set_processors(int processors, int blocks_per_processor);
// Whether devices have memory pools. What a library has found of them, it may keep.
void set_memory_pools(bool has_pools);
// Allocations on a device and of pinned memory fail beyond this many bytes in all.
void set_memory_limit(std::size_t bytes);
// The n-th launch from now fails with the error.
void fail_launch(int n, cudaError_t error);

// Runs everything that is queued.
void drain();
// Operations queued and not yet run.
std::size_t queued();
// Launches that have run.
std::size_t launches();
// Why the last launch that was refused was refused.
std::string refusal();
// Allocations that are still there, on all devices and pinned.
std::size_t live_allocations();
// Calls that made the host wait for a stream or a device.
std::size_t waits();
// Whether the device has got a context since the last reset.
bool has_context(int device);
// Whether this thread has a current context.
bool is_in_context();

}  // namespace stand_in
