#include "runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "device_language.h"
#include "scheduler.h"

// The types that CUDA's headers only name.
struct CUgraph_st {
  std::vector<std::function<void()>> operations;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> operations;
  int device;
};

namespace stand_in {
namespace {

struct Operation {
  std::uint64_t number;  // in order of queueing, over all streams
  std::function<void()> run;
};

}  // namespace
}  // namespace stand_in

struct CUevent_st {
  cudaStream_t stream = nullptr;
  std::uint64_t number = 0;  // all of the stream's operations up to this one; 0: never recorded
  bool is_captured = false;
};

struct CUstream_st {
  int device = 0;
  bool is_legacy = false;
  bool waits_for_legacy = true;
  bool is_destroyed = false;
  unsigned long long id = 0;
  std::deque<stand_in::Operation> queue;
  CUgraph_st* capture = nullptr;
};

namespace stand_in {
namespace {

constexpr int most_devices = 2;
constexpr unsigned most_threads_per_block = 1024;
constexpr std::size_t launch_limit = 0x7fffffff;

struct Allocation {
  std::size_t bytes;
  int device;  // -1: pinned host memory
};

std::recursive_mutex mutex;
int device_count_now = most_devices;
int processors_now = 2;
int blocks_per_processor_now = 2;
bool has_pools_now = true;
std::size_t memory_limit = SIZE_MAX;
std::size_t memory_used = 0;
int launches_until_failure = 0;
cudaError_t launch_failure = cudaSuccess;
cudaError_t sticky_error = cudaSuccess;  // as after an illegal address: the context is lost
std::uint64_t last_number = 0;
unsigned long long last_stream_id = 0;
std::size_t launch_count = 0;
std::size_t wait_count = 0;
std::string refusal_text;
std::map<const void*, Allocation> allocations;
std::vector<std::unique_ptr<CUstream_st>> streams;
CUstream_st* legacy[most_devices];

// A device's primary context; `exists` is what a test asks for, since libraries keep the handle.
struct PrimaryContext {
  int device;
  bool exists;
};
PrimaryContext contexts[most_devices] = {{0, false}, {1, false}};

thread_local PrimaryContext* current_context = nullptr;
thread_local int chosen_device = 0;  // what the runtime makes a context of where there is none
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

cudaError_t give(cudaError_t error) {
  if (error != cudaSuccess) {
    last_error = error;
  }
  return error;
}

PrimaryContext* make_context(int device) {
  contexts[device].exists = true;
  return &contexts[device];
}

// The device that a call of the runtime is for; like the real one, it makes a context where the thread has none.
int current_device() {
  if (current_context == nullptr) {
    current_context = make_context(chosen_device);
  }
  return current_context->device;
}

CUstream_st* new_stream(int device) {
  streams.push_back(std::make_unique<CUstream_st>());
  streams.back()->device = device;
  streams.back()->id = ++last_stream_id;
  return streams.back().get();
}

// The stream that a handle means: 0 and 1 are the legacy default stream, 2 the thread's, here one for all threads.
CUstream_st* stream_of(cudaStream_t handle) {
  if (handle != nullptr && handle != cudaStreamLegacy && handle != cudaStreamPerThread) {
    return handle;
  }
  CUstream_st*& stream = legacy[current_device()];
  if (stream == nullptr) {
    stream = new_stream(current_device());
    stream->is_legacy = true;
  }
  return stream;
}

bool has_capture() {
  return std::any_of(streams.begin(), streams.end(), [](const auto& stream) { return stream->capture != nullptr; });
}

// Runs one stream up to an operation, and first what legacy default streams put before it.
void run_until(CUstream_st* stream, std::uint64_t number) {
  while (!stream->queue.empty() && stream->queue.front().number <= number) {
    const std::uint64_t next = stream->queue.front().number;
    for (const auto& other : streams) {
      if (other.get() != stream && other->device == stream->device && other->waits_for_legacy &&
          stream->waits_for_legacy && (other->is_legacy || stream->is_legacy) && !other->queue.empty() &&
          other->queue.front().number < next) {
        run_until(other.get(), next - 1);
      }
    }
    if (stream->queue.empty() || stream->queue.front().number != next) {
      continue;
    }
    const Operation operation = std::move(stream->queue.front());
    stream->queue.pop_front();
    operation.run();
  }
}

cudaError_t queue(cudaStream_t handle, std::function<void()> run) {
  CUstream_st* stream = stream_of(handle);
  if (stream->is_destroyed) {
    refusal_text = "a stream is used that has been destroyed";
    return cudaErrorInvalidResourceHandle;
  }
  if (stream->capture != nullptr) {
    stream->capture->operations.push_back(std::move(run));
    return cudaSuccess;
  }
  if (stream->is_legacy && has_capture()) {
    return cudaErrorStreamCaptureImplicit;
  }
  stream->queue.push_back({++last_number, std::move(run)});
  // Now and then the device is quick: some stream, up to some operation.
  while (random_number() % 4 == 0) {
    std::vector<CUstream_st*> busy;
    for (const auto& candidate : streams) {
      if (!candidate->queue.empty()) {
        busy.push_back(candidate.get());
      }
    }
    if (busy.empty()) {
      break;
    }
    CUstream_st* chosen = busy[random_number() % busy.size()];
    run_until(chosen, chosen->queue[random_number() % chosen->queue.size()].number);
  }
  return sticky_error;
}

bool is_refused_by_capture() { return capture_mode != cudaStreamCaptureModeRelaxed && has_capture(); }

cudaError_t allocate(void** address, std::size_t bytes, int device) {
  if (device_count_now == 0) {
    return cudaErrorNoDevice;
  }
  if (is_refused_by_capture()) {
    return cudaErrorStreamCaptureUnsupported;
  }
  if (bytes > memory_limit - std::min(memory_limit, memory_used)) {
    return cudaErrorMemoryAllocation;
  }
#if defined(__SANITIZE_ADDRESS__)
  *address = std::malloc(bytes);  // so that its end is seen
#else
  *address = std::aligned_alloc(256, (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256);
#endif
  std::memset(*address, 0xa5, bytes);
  allocations[*address] = {bytes, device};
  memory_used += bytes;
  return cudaSuccess;
}

void forget_memory(void* address) {
  const auto found = allocations.find(address);
  memory_used -= found->second.bytes;
  std::memset(address, 0xdd, found->second.bytes);
  allocations.erase(found);
  std::free(address);
}

cudaError_t deallocate(void* address) {
  if (address == nullptr) {
    return cudaSuccess;
  }
  if (allocations.count(address) == 0) {
    return cudaErrorInvalidValue;
  }
  if (is_refused_by_capture()) {
    return cudaErrorStreamCaptureUnsupported;
  }
  drain();  // as the real one waits for the device
  ++wait_count;
  forget_memory(address);
  return cudaSuccess;
}

const std::map<const void*, Allocation>::value_type* allocation_of(const void* address) {
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) {
    return nullptr;
  }
  --after;
  return static_cast<const char*>(address) < static_cast<const char*>(after->first) + after->second.bytes ? &*after
                                                                                                          : nullptr;
}

}  // namespace

void reset(std::uint64_t seed) {
  const std::lock_guard lock(mutex);
  drain();
  set_seed(seed);
  device_count_now = most_devices;
  processors_now = 2;
  blocks_per_processor_now = 2;
  has_pools_now = true;
  memory_limit = SIZE_MAX;
  launches_until_failure = 0;
  sticky_error = cudaSuccess;
  last_error = cudaSuccess;
  launch_count = wait_count = 0;
  refusal_text.clear();
  for (PrimaryContext& context : contexts) {
    context.exists = false;
  }
}

void set_device_count(int count) { device_count_now = count; }
void set_processors(int processors, int blocks_per_processor) {
  processors_now = processors;
  blocks_per_processor_now = blocks_per_processor;
}
void set_memory_pools(bool has_pools) { has_pools_now = has_pools; }
void set_memory_limit(std::size_t bytes) { memory_limit = bytes; }
void fail_launch(int n, cudaError_t error) {
  launches_until_failure = n;
  launch_failure = error;
}

void drain() {
  const std::lock_guard lock(mutex);
  for (const auto& stream : streams) {
    run_until(stream.get(), last_number);
  }
}

std::size_t queued() {
  std::size_t count = 0;
  for (const auto& stream : streams) {
    count += stream->queue.size();
  }
  return count;
}
std::size_t launches() { return launch_count; }
std::string refusal() { return refusal_text; }
std::size_t live_allocations() { return allocations.size(); }
std::size_t waits() { return wait_count; }
bool has_context(int device) { return contexts[device].exists; }
bool is_in_context() { return current_context != nullptr; }

cudaError_t queue_launch(unsigned blocks, unsigned threads, cudaStream_t stream, std::function<void()> thread) {
  const std::lock_guard lock(mutex);
  if (device_count_now == 0) {
    return give(cudaErrorNoDevice);
  }
  if (blocks == 0 || blocks > launch_limit || threads == 0 || threads > most_threads_per_block) {
    refusal_text = "launch of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads";
    return give(cudaErrorInvalidConfiguration);
  }
  if (stream_of(stream)->device != current_device()) {
    refusal_text = "launch on a stream of device " + std::to_string(stream_of(stream)->device) + " while device " +
                   std::to_string(current_device()) + " is current";
    return give(cudaErrorInvalidResourceHandle);
  }
  if (launches_until_failure > 0) {
    --launches_until_failure;
    if (launches_until_failure == 0) {
      return give(launch_failure);
    }
  }
  return give(queue(stream, [blocks, threads, thread = std::move(thread)] {
    if (sticky_error != cudaSuccess) {
      return;
    }
    ++launch_count;
    const std::string why = run_grid(blocks, threads, thread);
    if (!why.empty()) {
      refusal_text = why;
      sticky_error = cudaErrorLaunchFailure;
    }
  }));
}

}  // namespace stand_in

using namespace stand_in;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count_now;
  return give(device_count_now == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_context != nullptr ? current_context->device : chosen_device;
  return give(device_count_now == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count_now) {
    return give(device_count_now == 0 ? cudaErrorNoDevice : cudaErrorInvalidDevice);
  }
  chosen_device = device;
  current_context = make_context(device);
  return cudaSuccess;
}

// The driver's functions that csrc/cuda asks for, with the driver's own success and errors.
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  static const std::map<std::string, void*> functions = {
      {"cuCtxGetCurrent", reinterpret_cast<void*>(+[](void** context) {
         *context = current_context;
         return 0;
       })},
      {"cuCtxSetCurrent", reinterpret_cast<void*>(+[](void* context) {
         current_context = static_cast<PrimaryContext*>(context);
         return 0;
       })},
      {"cuCtxGetDevice", reinterpret_cast<void*>(+[](int* device) {
         *device = current_context != nullptr ? current_context->device : -1;
         return current_context != nullptr ? 0 : 201;  // CUDA_ERROR_INVALID_CONTEXT
       })},
      {"cuDevicePrimaryCtxRetain", reinterpret_cast<void*>(+[](void** context, int device) {
         *context = make_context(device);
         return 0;
       })},
  };
  const auto found = functions.find(name);
  *function = found != functions.end() ? found->second : nullptr;
  *result = found != functions.end() ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount    ? processors_now
           : attribute == cudaDevAttrMemoryPoolsSupported ? has_pools_now
                                                          : 0;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, std::size_t) {
  *blocks = blocks_per_processor_now;
  return give(device_count_now == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "cudaError";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    default:
      return "an error of the stand-in";
  }
}

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  const std::lock_guard lock(mutex);
  return give(allocate(address, bytes, current_device()));
}
cudaError_t cudaFree(void* address) {
  const std::lock_guard lock(mutex);
  return give(deallocate(address));
}
// A pool is its device's number, plus one.
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  *pool = reinterpret_cast<cudaMemPool_t>(static_cast<std::intptr_t>(properties->location.id) + 1);
  return give(has_pools_now ? cudaSuccess : cudaErrorNotSupported);
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
// The address is there at once; the memory only for what is queued on the stream after this.
cudaError_t cudaMallocFromPoolAsync(void** address, std::size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  const int device = static_cast<int>(reinterpret_cast<std::intptr_t>(pool) - 1);
  if (stream_of(stream)->device != device) {
    return give(cudaErrorInvalidValue);
  }
  const cudaStreamCaptureMode mode = std::exchange(capture_mode, cudaStreamCaptureModeRelaxed);
  const cudaError_t error = allocate(address, bytes, device);
  capture_mode = mode;
  return give(error);
}
cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (allocations.count(address) == 0) {
    return give(cudaErrorInvalidValue);
  }
  return give(queue(stream, [address] { forget_memory(address); }));
}
cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned) {
  const std::lock_guard lock(mutex);
  return give(allocate(address, bytes, -1));
}
cudaError_t cudaFreeHost(void* address) {
  const std::lock_guard lock(mutex);
  return give(deallocate(address));
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  return give(queue(stream, [=] { std::memcpy(to, from, bytes); }));
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  return give(queue(stream, [=] { std::memset(to, value, bytes); }));
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  const std::lock_guard lock(mutex);
  *attributes = {};
  const auto* found = allocation_of(address);
  attributes->type = found == nullptr           ? cudaMemoryTypeUnregistered
                     : found->second.device < 0 ? cudaMemoryTypeHost
                                                : cudaMemoryTypeDevice;
  attributes->device = found != nullptr ? std::max(found->second.device, 0) : -1;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const std::lock_guard lock(mutex);
  *stream = new_stream(current_device());
  (*stream)->waits_for_legacy = (flags & cudaStreamNonBlocking) == 0;
  return give(device_count_now == 0 ? cudaErrorNoDevice : cudaSuccess);
}

// Like the real one, it leaves what is queued to finish. The memory stays, so that a stale handle is no crash.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  stream->is_destroyed = true;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const std::lock_guard lock(mutex);
  CUstream_st* stream = stream_of(handle);
  if (stream->capture != nullptr || (stream->is_legacy && has_capture())) {
    return give(cudaErrorStreamCaptureUnsupported);
  }
  ++wait_count;
  run_until(stream, last_number);
  return give(sticky_error);
}

cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(mutex);
  if (has_capture()) {
    return give(cudaErrorStreamCaptureUnsupported);
  }
  ++wait_count;
  drain();
  return give(sticky_error);
}

cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  const std::lock_guard lock(mutex);
  *id = stream_of(stream)->id;
  return cudaSuccess;
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  const std::lock_guard lock(mutex);
  *device = stream_of(stream)->device;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  const std::lock_guard lock(mutex);
  CUstream_st* stream = stream_of(handle);
  const cudaError_t error = queue(handle, [] {});
  event->stream = stream;
  event->number = last_number;
  event->is_captured = stream->capture != nullptr;
  return give(error);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  if (event->is_captured) {
    return give(cudaErrorCapturedEvent);
  }
  if (event->number == 0 || event->stream->queue.empty() || event->stream->queue.front().number > event->number) {
    return cudaSuccess;
  }
  return cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(mutex);
  CUstream_st* producer = event->stream;
  const std::uint64_t number = event->number;
  if (producer != nullptr && event->is_captured != (stream_of(stream)->capture != nullptr)) {
    return give(cudaErrorStreamCaptureIsolation);
  }
  return give(queue(stream, [=] {
    if (producer != nullptr) {
      run_until(producer, number);
    }
  }));
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  const std::lock_guard lock(mutex);
  CUstream_st* stream = stream_of(handle);
  if (stream->is_legacy && has_capture()) {
    return give(cudaErrorStreamCaptureImplicit);
  }
  *status = stream->capture != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
  const std::lock_guard lock(mutex);
  stream_of(handle)->capture = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  const std::lock_guard lock(mutex);
  *graph = std::exchange(stream_of(handle)->capture, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->operations, current_device()};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  return give(queue(stream, [operations = executable->operations] {
    for (const auto& operation : operations) {
      operation();
    }
  }));
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

}  // extern "C"

// For tests in Python.
extern "C" void stand_in_set_memory_limit(std::size_t bytes) { set_memory_limit(bytes); }
extern "C" void stand_in_drain() { drain(); }
extern "C" void stand_in_lose_device() { sticky_error = cudaErrorLaunchFailure; }
extern "C" std::size_t stand_in_waits() { return waits(); }
extern "C" std::size_t stand_in_live_allocations() { return live_allocations(); }
