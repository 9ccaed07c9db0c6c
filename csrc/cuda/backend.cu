// The CUDA backend: launches, streams, workspace. See backend.h for what it promises.
//
// A call's table, strengths and sums lie in one block of device memory per device and stream, which grows and is kept:
// the stream's own order keeps calls apart, and nothing is freed, since freeing waits for the device. A stream that is
// no longer used leaves its block to another (see Workspace). Training brings the same tensors at every step, so what
// the device holds already is not sent again.
//
// A call on a stream that is being captured gets a block of its own, filled before the capture goes on, since a replay
// comes when the stream's block holds something else.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "devices.h"
#include "errors.h"
#include "kernel.cuh"
#include "strided.cuh"

namespace fastreg::cuda {
namespace {

// ---- streams

void require_device_of_stream(cudaStream_t stream, int device) {
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

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking whether the stream is being captured");
  if (status == cudaStreamCaptureStatusInvalidated) {
    fail(BackendStatus::failed, "the stream's capture has been invalidated");
  }
  return status == cudaStreamCaptureStatusActive;
}

// ---- memory

void* device_memory(int device, std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes),
        "allocating " + std::to_string(bytes) + " bytes on device " + std::to_string(device));
  return memory;
}

// Pinned memory from which the device fetches what it is sent. A piece may be filled again when the device has fetched
// it; while none has been, there is another: nobody waits.
class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    for (const Piece& piece : pieces_) {
      cudaEventDestroy(piece.fetched);
      cudaFreeHost(piece.memory);
    }
  }

  // Queues the copy of a part of `bytes` to the same part of `target`.
  void send(const char* bytes, std::size_t begin, std::size_t end, char* target, cudaStream_t stream) {
    Piece& piece = free_piece(end - begin);
    std::memcpy(piece.memory, bytes + begin, end - begin);
    check(cudaMemcpyAsync(target + begin, piece.memory, end - begin, cudaMemcpyHostToDevice, stream),
          "sending the table of tensors");
    check(cudaEventRecord(piece.fetched, stream), "recording an event");
  }

 private:
  struct Piece {
    void* memory;
    std::size_t capacity;
    cudaEvent_t fetched;
  };

  Piece& free_piece(std::size_t bytes) {
    for (Piece& piece : pieces_) {
      if (piece.capacity >= bytes && cudaEventQuery(piece.fetched) == cudaSuccess) {
        return piece;
      }
    }
    cudaGetLastError();  // "not ready" is no error
    pieces_.reserve(pieces_.size() + 1);
    Piece piece{nullptr, std::max<std::size_t>(2 * bytes, 4096), nullptr};
    check(cudaHostAlloc(&piece.memory, piece.capacity, cudaHostAllocDefault),
          "allocating " + std::to_string(piece.capacity) + " bytes of pinned memory");
    const cudaError_t error = cudaEventCreateWithFlags(&piece.fetched, cudaEventDisableTiming);
    if (error != cudaSuccess) {
      cudaFreeHost(piece.memory);
      check(error, "making an event");
    }
    pieces_.push_back(piece);
    return pieces_.back();
  }

  std::vector<Piece> pieces_;
};

// Where things lie in a block: first the counter, then what is sent, then what kernels write.
struct Places {
  static constexpr std::size_t alignment = 256;
  static constexpr std::size_t strengths = alignment;  // the counter is at 0

  std::size_t rows, first_chunks, groups, large_rows, strided_rows, axes, sent_end;
  std::size_t l1_sums, l2_sums, l1_group_sums, l2_group_sums, values, total_sums, end;

  Places(const Table& table, std::size_t strength_count, bool wants_value) {
    std::size_t next = strengths;
    const auto place = [&](std::size_t& offset, std::size_t count, std::size_t size) {
      offset = next;
      next = (next + count * size + alignment - 1) / alignment * alignment;
    };
    std::size_t first = 0;
    place(first, strength_count, sizeof(Coefficients));
    place(rows, table.rows.size(), sizeof(Row));
    place(first_chunks, table.first_chunks.size(), sizeof(std::int64_t));
    place(groups, table.groups.size(), sizeof(SumGroup));
    place(large_rows, table.large_rows.size(), sizeof(LargeRow));
    place(strided_rows, table.strided_rows.size(), sizeof(StridedRow));
    place(axes, table.axes.size(), sizeof(Axis));
    sent_end = next;
    const std::size_t chunks = wants_value ? static_cast<std::size_t>(table.chunks()) : 0;
    place(l1_sums, chunks, sizeof(double));
    place(l2_sums, chunks, sizeof(double));
    place(l1_group_sums, table.groups.size(), sizeof(double));
    place(l2_group_sums, table.groups.size(), sizeof(double));
    place(values, wants_value ? table.rows.size() : 0, sizeof(double));
    place(total_sums, static_cast<std::size_t>(chunk_count(static_cast<std::int64_t>(table.rows.size()))),
          sizeof(double));
    end = next;
  }
};

// The first `sent_end` bytes of a block; those before `Places::strengths` are not sent.
std::vector<char> make_image(const Table& table, const Places& places, const Coefficients* strengths,
                             std::size_t strength_count) {
  std::vector<char> image(places.sent_end, 0);
  const auto put = [&](std::size_t place, const auto* from, std::size_t count) {
    if (count != 0) {
      std::memcpy(image.data() + place, from, count * sizeof *from);
    }
  };
  put(Places::strengths, strengths, strength_count);
  put(places.rows, table.rows.data(), table.rows.size());
  put(places.first_chunks, table.first_chunks.data(), table.first_chunks.size());
  put(places.groups, table.groups.data(), table.groups.size());
  put(places.large_rows, table.large_rows.data(), table.large_rows.size());
  put(places.strided_rows, table.strided_rows.data(), table.strided_rows.size());
  put(places.axes, table.axes.data(), table.axes.size());
  return image;
}

// A block of device memory, and what it holds, or will hold when its stream comes to it.
class Block {
 public:
  explicit Block(int device) : device_(device) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() {
    cudaFree(memory_);
    for (void* memory : outgrown_) {
      cudaFree(memory);
    }
  }

  char* memory() const { return memory_; }

  void reserve(std::size_t bytes, cudaStream_t stream) {
    if (bytes <= capacity_) {
      return;
    }
    const std::size_t capacity = std::max(bytes, 2 * capacity_);
    outgrown_.reserve(outgrown_.size() + 1);
    auto* memory = static_cast<char*>(device_memory(device_, capacity));
    const cudaError_t error = cudaMemsetAsync(memory, 0, Places::alignment, stream);  // the counter
    if (error != cudaSuccess) {
      cudaFree(memory);
      check(error, "clearing memory");
    }
    if (memory_ != nullptr) {
      outgrown_.push_back(memory_);
    }
    memory_ = memory;
    capacity_ = capacity;
    held_.clear();
  }

  void hold(std::vector<char> image, std::size_t strengths_end, cudaStream_t stream) {
    const bool same_size = image.size() == held_.size();
    const auto same = [&](std::size_t begin, std::size_t end) {
      return same_size && std::memcmp(image.data() + begin, held_.data() + begin, end - begin) == 0;
    };
    const bool same_strengths = same(Places::strengths, strengths_end);
    const bool same_table = same(strengths_end, image.size());
    if (same_strengths && same_table) {
      return;
    }
    held_.clear();  // should sending fail
    staging_.send(image.data(), same_strengths ? strengths_end : Places::strengths,
                  same_table ? strengths_end : image.size(), memory_, stream);
    held_ = std::move(image);
  }

  void hold_strengths(const Coefficients* strengths, std::size_t count, cudaStream_t stream) {
    std::memcpy(held_.data() + Places::strengths, strengths, count * sizeof *strengths);
    staging_.send(held_.data(), Places::strengths, Places::strengths + count * sizeof *strengths, memory_, stream);
  }

 private:
  int device_;
  char* memory_ = nullptr;
  std::size_t capacity_ = 0;
  std::vector<void*> outgrown_;
  std::vector<char> held_;
  Staging staging_;
};

// ---- workspaces

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

// A device's first streams keep their workspaces for good, and their calls pay nothing for what follows. Nobody says
// when a stream is gone, so the workspaces of later streams are lent: a stream that comes new gets the one that has not
// been used for longest, of those whose work has finished. None is freed, since that would wait for the device. Where
// all lent ones are busy there is another, so their number is that of the streams that were ever busy at once, or this.
constexpr std::size_t kept_workspaces = 8;
constexpr std::size_t lent_workspaces = 8;

struct Workspace {
  explicit Workspace(int on_device) : block(on_device) {}
  std::mutex mutex;  // held during a call: threads may share a stream
  Block block;
  // What follows is under the lock of all of them.
  unsigned long long stream = 0;
  unsigned long long last_use = 0;
  int users = 0;
  cudaEvent_t finished = nullptr;  // recorded after each call; null: kept for good
  bool is_recorded = false;
};

// Never destroyed, since the driver may be gone when the process ends.
struct Workspaces {
  std::mutex mutex;
  std::map<int, std::vector<std::unique_ptr<Workspace>>> of_device;
  unsigned long long uses = 0;
};

Workspaces& all_workspaces() {
  static auto* all = new Workspaces;
  return *all;
}

Workspace* longest_idle(const std::vector<std::unique_ptr<Workspace>>& workspaces) {
  Workspace* chosen = nullptr;
  for (const std::unique_ptr<Workspace>& candidate : workspaces) {
    if (candidate->users == 0 && candidate->is_recorded &&
        (chosen == nullptr || candidate->last_use < chosen->last_use) &&
        cudaEventQuery(candidate->finished) == cudaSuccess) {
      chosen = candidate.get();
    }
  }
  cudaGetLastError();  // "not ready" is no error
  return chosen;
}

// The workspace of a stream while a call uses it. By the stream's number rather than its handle: a handle may come back
// for another stream while the work of the one that was destroyed still runs.
class WorkspaceInUse {
 public:
  WorkspaceInUse(int device, cudaStream_t stream)
      : stream_(stream), workspace_(find(device, stream)), lock_(workspace_.mutex) {}
  ~WorkspaceInUse() {
    const std::lock_guard lock(all_workspaces().mutex);
    --workspace_.users;
    if (workspace_.finished != nullptr) {
      workspace_.is_recorded = cudaEventRecord(workspace_.finished, stream_) == cudaSuccess;
    }
  }
  WorkspaceInUse(const WorkspaceInUse&) = delete;
  WorkspaceInUse& operator=(const WorkspaceInUse&) = delete;
  Block& block() { return workspace_.block; }

 private:
  static Workspace& find(int device, cudaStream_t stream) {
    unsigned long long number = 0;
    check(cudaStreamGetId(stream, &number), "asking for the stream's number");
    Workspaces& all = all_workspaces();
    const std::lock_guard lock(all.mutex);
    std::vector<std::unique_ptr<Workspace>>& workspaces = all.of_device[device];
    const auto own =
        std::find_if(workspaces.begin(), workspaces.end(), [&](const auto& each) { return each->stream == number; });
    Workspace* found = own != workspaces.end() ? own->get() : nullptr;
    if (found == nullptr && workspaces.size() >= kept_workspaces + lent_workspaces) {
      found = longest_idle(workspaces);
    }
    if (found == nullptr) {
      auto made = std::make_unique<Workspace>(device);
      if (workspaces.size() >= kept_workspaces) {
        check(cudaEventCreateWithFlags(&made->finished, cudaEventDisableTiming), "making an event");
      }
      found = made.get();
      workspaces.push_back(std::move(made));
    }
    found->stream = number;
    found->last_use = ++all.uses;
    ++found->users;
    return *found;
  }

  cudaStream_t stream_;
  Workspace& workspace_;
  std::lock_guard<std::mutex> lock_;
};

// ---- launches

using ChunkKernel = void (*)(ChunkWork);

template <class E>
constexpr ChunkKernel chunk_kernels[output_masks] = {
    nullptr, penalty_chunks<E, 1>, penalty_chunks<E, 2>, penalty_chunks<E, 3>, nullptr,
    nullptr, penalty_chunks<E, 6>, penalty_chunks<E, 7>,
};

ChunkKernel chunk_kernel(DType dtype, unsigned outputs) {
  switch (dtype) {
    case DType::f16:
      return chunk_kernels<F16>[outputs];
    case DType::bf16:
      return chunk_kernels<BF16>[outputs];
    case DType::f32:
      return chunk_kernels<F32>[outputs];
    default:
      return chunk_kernels<F64>[outputs];
  }
}

template <class E>
constexpr void (*strided_kernels[output_masks])(StridedWork) = {
    nullptr, strided_chunks<E, 1>, strided_chunks<E, 2>, strided_chunks<E, 3>, nullptr,
    nullptr, strided_chunks<E, 6>, strided_chunks<E, 7>,
};

// How many blocks of a kernel the whole device runs at once. Fails where the library has no code for the device.
std::int64_t resident_blocks(const void* kernel, int device) {
  static auto* mutex = new std::mutex;
  static auto* known = new std::map<std::pair<const void*, int>, std::int64_t>;
  const std::lock_guard lock(*mutex);
  std::int64_t& blocks = (*known)[{kernel, device}];
  if (blocks == 0) {
    int processors = 0;
    int per_processor = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads_per_block, 0),
          "looking for code for device " + std::to_string(device));
    blocks = std::max<std::int64_t>(1, std::int64_t{processors} * per_processor);
  }
  return blocks;
}

template <class Work>
struct Start {
  void (*kernel)(Work);
  unsigned blocks;

  Start(void (*chosen)(Work), std::int64_t useful_blocks, int device)
      : kernel(chosen),
        blocks(static_cast<unsigned>(std::clamp<std::int64_t>(
            useful_blocks, 1, resident_blocks(reinterpret_cast<const void*>(chosen), device)))) {}

  void run(const Work& work, cudaStream_t stream) const {
    check(launch_kernel(kernel, blocks, static_cast<unsigned>(threads_per_block), stream, work), "launching a kernel");
  }
};

// All that a call launches, found before the first of it.
class Sequence {
 public:
  Sequence(const DeviceCall& call, const Table& table, const Places& places)
      : call_(call), table_(table), places_(places) {
    for (const Launch& launch : table.launches) {
      const std::int64_t blocks = (launch.chunk_end - launch.chunk_begin + warps_per_block - 1) / warps_per_block;
      if (launch.is_strided) {
        strided_starts_.emplace_back(
            launch.dtype == DType::f64 ? strided_kernels<F64>[call.outputs] : strided_kernels<F32>[call.outputs],
            blocks, call.device);
      } else {
        chunk_starts_.emplace_back(chunk_kernel(launch.dtype, call.outputs), blocks, call.device);
      }
    }
    if (wants_value()) {
      value_start_.emplace_back(penalty_values, static_cast<std::int64_t>(table.groups.size()), call.device);
    }
  }

  void run(char* block, cudaStream_t stream) const {
    const auto at = [&](std::size_t place, auto* type) { return reinterpret_cast<decltype(type)>(block + place); };
    double* const doubles = nullptr;
    const Row* const rows = at(places_.rows, static_cast<const Row*>(nullptr));
    const Coefficients* const strengths = at(Places::strengths, static_cast<const Coefficients*>(nullptr));
    for (std::size_t i = 0; i < table_.launches.size(); ++i) {
      const ChunkWork work{rows,
                           at(places_.first_chunks, static_cast<const std::int64_t*>(nullptr)),
                           strengths,
                           table_.launches[i],
                           at(places_.l1_sums, doubles),
                           at(places_.l2_sums, doubles)};
      if (i < strided_starts_.size()) {
        strided_starts_[i].run({work, at(places_.strided_rows, static_cast<const StridedRow*>(nullptr)),
                                at(places_.axes, static_cast<const Axis*>(nullptr))},
                               stream);
      } else {
        chunk_starts_[i - strided_starts_.size()].run(work, stream);
      }
    }
    for (const auto& start : value_start_) {
      start.run({rows, strengths, at(places_.groups, static_cast<const SumGroup*>(nullptr)),
                 static_cast<std::int64_t>(table_.groups.size()),
                 at(places_.large_rows, static_cast<const LargeRow*>(nullptr)),
                 static_cast<std::int64_t>(table_.large_rows.size()), at(places_.l1_sums, doubles),
                 at(places_.l2_sums, doubles), at(places_.l1_group_sums, doubles), at(places_.l2_group_sums, doubles),
                 call_.values != nullptr ? call_.values : at(places_.values, doubles),
                 static_cast<std::int64_t>(table_.rows.size()), call_.total, at(places_.total_sums, doubles),
                 at(0, static_cast<unsigned*>(nullptr))},
                stream);
    }
  }

 private:
  bool wants_value() const { return (call_.outputs & output_value) != 0; }

  const DeviceCall& call_;
  const Table& table_;
  const Places& places_;
  std::vector<Start<StridedWork>> strided_starts_;  // of the first launches
  std::vector<Start<ChunkWork>> chunk_starts_;      // of the others
  std::vector<Start<SumWork>> value_start_;         // one, or none
};

bool fits(const Layout& layout, const DeviceItem& item) {
  const auto size = static_cast<std::int64_t>(item_size(item.dtype));
  if (layout.axis_count < 0 || layout.axis_count > max_axes) {
    return false;
  }
  std::int64_t count = 1;
  for (int a = 0; a < layout.axis_count; ++a) {
    const Layout::Axis& axis = layout.axes[a];
    if (axis.extent < 1 || axis.weight_stride % size != 0 || axis.gradient_stride % size != 0 ||
        __builtin_mul_overflow(count, axis.extent, &count)) {
      return false;
    }
  }
  return count == item.count;
}

void check_items(const DeviceCall& call) {
  if (!is_output_cell(call.outputs) || call.outputs >= output_masks || chunk_kernels<F32>[call.outputs] == nullptr) {
    fail(BackendStatus::bad_argument, "no such outputs: " + std::to_string(call.outputs));
  }
  const bool writes = (call.outputs & output_gradient) != 0;
  for (std::size_t i = 0; i < call.item_count; ++i) {
    const DeviceItem& item = call.items[i];
    const auto is_misaligned = [&](const void* address) {
      return reinterpret_cast<std::uintptr_t>(address) % item_size(item.dtype) != 0;
    };
    if (static_cast<int>(item.dtype) >= dtype_count || (writes && !is_floating(item.dtype)) || item.count < 0 ||
        item.strengths >= call.strength_count || (item.layout != nullptr && !fits(*item.layout, item))) {
      fail(BackendStatus::bad_argument, "tensor " + std::to_string(i) + " is described wrongly");
    }
    if (is_misaligned(item.weights) || (writes && is_misaligned(item.gradients))) {
      fail(BackendStatus::bad_argument,
           "the address of tensor " + std::to_string(i) + " is no multiple of its elements' size");
    }
  }
}

struct RecordedCall {
  explicit RecordedCall(int on_device) : device(on_device), block(on_device) {}
  int device;
  std::size_t strength_count = 0;
  Block block;
};

Recording* handle_of(RecordedCall* call) { return reinterpret_cast<Recording*>(call); }
RecordedCall& call_of(Recording* handle) { return *reinterpret_cast<RecordedCall*>(handle); }

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

// A block that is filled when this returns. It waits for the copy alone, on a stream with nothing else in it.
std::unique_ptr<RecordedCall> make_recording(const DeviceCall& call, const Places& places, std::vector<char> image) {
  const RelaxedCapture relaxed;
  const PrivateStream stream;
  auto recording = std::make_unique<RecordedCall>(call.device);
  recording->strength_count = call.strength_count;
  recording->block.reserve(places.end, stream.get());
  recording->block.hold(std::move(image), places.rows, stream.get());
  check(cudaStreamSynchronize(stream.get()), "sending the table of tensors");
  return recording;
}

BackendStatus evaluate(const DeviceCall* call, Recording** recording, BackendError* error) {
  if (recording != nullptr) {
    *recording = nullptr;
  }
  return guarded(error, [&] {
    const DeviceGuard guard(call->device);
    const auto stream = static_cast<cudaStream_t>(call->stream);
    require_device_of_stream(stream, call->device);
    check_items(*call);
    const bool wants_value = (call->outputs & output_value) != 0;
    const Table table = make_table(call->items, call->item_count, wants_value);
    const Places places(table, call->strength_count, wants_value);
    const Sequence sequence(*call, table, places);
    std::vector<char> image = make_image(table, places, call->strengths, call->strength_count);
    if (is_capturing(stream)) {
      std::unique_ptr<RecordedCall> own = make_recording(*call, places, std::move(image));
      sequence.run(own->block.memory(), stream);
      Recording* kept = handle_of(own.release());
      if (recording != nullptr) {
        *recording = kept;
      }
    } else {
      const RelaxedCapture relaxed;
      WorkspaceInUse workspace(call->device, stream);
      workspace.block().reserve(places.end, stream);
      workspace.block().hold(std::move(image), places.rows, stream);
      sequence.run(workspace.block().memory(), stream);
    }
  });
}

BackendStatus set_strengths(Recording* recording, const Coefficients* strengths, std::size_t count, void* stream,
                            BackendError* error) {
  RecordedCall& recorded = call_of(recording);
  return guarded(error, [&] {
    const DeviceGuard guard(recorded.device);
    require_device_of_stream(static_cast<cudaStream_t>(stream), recorded.device);
    if (count != recorded.strength_count) {
      fail(BackendStatus::bad_argument,
           "the recording has " + std::to_string(recorded.strength_count) + " strengths, not " + std::to_string(count));
    }
    if (is_capturing(static_cast<cudaStream_t>(stream))) {
      fail(BackendStatus::bad_argument, "strengths are set outside of capture, before a replay");
    }
    recorded.block.hold_strengths(strengths, count, static_cast<cudaStream_t>(stream));
  });
}

void forget(Recording* recording) { delete &call_of(recording); }

BackendStatus count_devices(int* count, BackendError* error) {
  *count = 0;
  return guarded(error, [&] { *count = device_count(); });
}

// ---- memory for results

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

PlainMemory& plain_memory() {
  static auto* memory = new PlainMemory;
  return *memory;
}

// A device's pool, from which memory is had and to which it is given back in a stream's order.
struct Pool {
  cudaMemPool_t handle = nullptr;  // null where the device has none
  cudaStream_t release_stream = nullptr;
};

const Pool& pool_of(int device) {
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

BackendStatus allocate(int device, void* stream, std::size_t bytes, void** address, BackendError* error) {
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

cudaEvent_t event_of(const Mark* mark) { return reinterpret_cast<cudaEvent_t>(const_cast<Mark*>(mark)); }

void release(int device, void* address, Mark* const* marks, std::size_t mark_count) {
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

BackendStatus set_mark(int device, void* stream, Mark** mark, BackendError* error) {
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

void drop_mark(Mark* mark) { cudaEventDestroy(event_of(mark)); }

bool has_passed(const Mark* mark) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // asking is not allowed in a capture otherwise
  cudaThreadExchangeStreamCaptureMode(&mode);
  const bool passed = cudaEventQuery(event_of(mark)) != cudaErrorNotReady;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaGetLastError();  // "not ready" is no error
  return passed;
}

BackendStatus wait_for_mark(int device, void* stream, Mark* mark, BackendError* error) {
  return guarded(error, [&] {
    const DeviceGuard guard(device);
    check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), event_of(mark), 0), "waiting for a mark");
  });
}

BackendStatus wait(int device, void* stream, void* producer, BackendError* error) {
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

BackendStatus copy_to_host(int device, void* stream, const void* from, std::size_t bytes, void* to,
                           BackendError* error) {
  return guarded(error, [&] {
    const DeviceGuard guard(device);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)),
          "copying to the host");
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the device");
  });
}

BackendStatus device_of(const void* address, int* device, BackendError* error) {
  *device = -1;
  return guarded(error, [&] {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, address), "asking whose memory it is");
    if (attributes.type == cudaMemoryTypeUnregistered) {
      fail(BackendStatus::bad_argument, "it is memory that no CUDA device can use");
    }
    *device = attributes.device;
  });
}

constexpr Backend backend = {backend_version, "cuda",        count_devices, evaluate,     set_strengths,
                             forget,          allocate,      release,       set_mark,     drop_mark,
                             has_passed,      wait_for_mark, wait,          copy_to_host, device_of};

}  // namespace
}  // namespace fastreg::cuda

const fastreg::Backend* fastreg_backend() { return &fastreg::cuda::backend; }
