// Device memory for small results, where the caller has no allocator.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "../backend.h"
#include "block.h"
#include "devices.h"
#include "errors.h"
#include "marks.h"
#include "streams.h"

namespace fastreg::cuda {

// What does not come from a pool; it is freed by waiting for the device.
class PlainMemory {
 public:
  void add(void* address) {
    const std::lock_guard lock(mutex_);
    addresses_.insert(address);
  }
  bool remove(void* address) {
    const std::lock_guard lock(mutex_);
    return addresses_.erase(address) != 0;
  }

 private:
  std::mutex mutex_;
  std::set<void*> addresses_;
};

inline PlainMemory& plain_memory() {
  static auto* memory = new PlainMemory;
  return *memory;
}

// A device's pool, from which memory is had and to which it is given back in a stream's order.
struct Pool {
  cudaMemPool_t handle = nullptr;  // null where the device has none
  cudaStream_t release_stream = nullptr;
};

inline const Pool& pool_of(int device) {
  static auto* mutex = new std::mutex;
  static auto* pools = new std::map<int, Pool>;
  const std::lock_guard lock(*mutex);
  const auto known = pools->find(device);
  if (known != pools->end()) {
    return known->second;
  }
  Pool pool;
  int has_pools = 0;
  check(cudaDeviceGetAttribute(&has_pools, cudaDevAttrMemoryPoolsSupported, device), "looking for memory pools");
  if (has_pools != 0) {
    const RelaxedCapture relaxed;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    check(cudaStreamCreateWithFlags(&pool.release_stream, cudaStreamNonBlocking), "making a stream");
    check(cudaMemPoolCreate(&pool.handle, &properties), "making a memory pool");
    std::uint64_t threshold = UINT64_MAX;  // results are small, and there is no telling what may still read them
    check(cudaMemPoolSetAttribute(pool.handle, cudaMemPoolAttrReleaseThreshold, &threshold),
          "setting up a memory pool");
  }
  return pools->emplace(device, pool).first->second;
}

inline BackendStatus allocate(int device, void* stream, std::size_t bytes, void** address, BackendError* error) {
  *address = nullptr;
  return guarded(error, [&] {
    const DeviceGuard guard(device);
    const auto on = static_cast<cudaStream_t>(stream);
    require_device_of_stream(on, device);
    // A graph's own memory would be gone after its first replay.
    if (is_capturing(on) || pool_of(device).handle == nullptr) {
      const RelaxedCapture relaxed;
      void* memory = device_memory(device, bytes);
      plain_memory().add(memory);
      *address = memory;
    } else {
      check(cudaMallocFromPoolAsync(address, bytes, pool_of(device).handle, on),
            "allocating " + std::to_string(bytes) + " bytes on device " + std::to_string(device));
    }
  });
}

inline void release(int device, void* address, Mark* const* marks, std::size_t mark_count) {
  guarded(nullptr, [&] {
    const DeviceGuard guard(device);
    if (plain_memory().remove(address)) {
      const RelaxedCapture relaxed;
      cudaFree(address);
      return;
    }
    cudaStream_t stream = pool_of(device).release_stream;
    for (std::size_t i = 0; i < mark_count; ++i) {
      check(cudaStreamWaitEvent(stream, event_of(marks[i]), 0), "waiting for a mark");
    }
    check(cudaFreeAsync(address, stream), "giving memory back");
  });
}

}  // namespace fastreg::cuda
