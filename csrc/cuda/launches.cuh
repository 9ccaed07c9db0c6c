// Which kernels a call launches, on how many blocks, and with what.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "block.h"
#include "errors.h"
#include "kernel.cuh"
#include "strided.cuh"

namespace fastreg::cuda {

using ChunkKernel = void (*)(ChunkWork);

// By outputs; null where they are no cell.
constexpr unsigned kernel_cells = (output_value | output_gradient | output_prox) + 1;

template <class E>
constexpr ChunkKernel chunk_kernels[kernel_cells] = {
    nullptr,
    penalty_chunks<E, 1>,
    penalty_chunks<E, 2>,
    penalty_chunks<E, 3>,
    nullptr,
    nullptr,
    penalty_chunks<E, 6>,
    penalty_chunks<E, 7>,
    nullptr,
    nullptr,
    penalty_chunks<E, 10>,
    penalty_chunks<E, 11>,
};

inline ChunkKernel chunk_kernel(DType dtype, unsigned outputs) {
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
constexpr void (*strided_kernels[kernel_cells])(StridedWork) = {
    nullptr,
    strided_chunks<E, 1>,
    strided_chunks<E, 2>,
    strided_chunks<E, 3>,
    nullptr,
    nullptr,
    strided_chunks<E, 6>,
    strided_chunks<E, 7>,
    nullptr,
    nullptr,
    strided_chunks<E, 10>,
    strided_chunks<E, 11>,
};

// How many blocks of a kernel the whole device runs at once. Fails where the library has no code for the device.
inline std::int64_t resident_blocks(const void* kernel, int device) {
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
      value_start_.emplace_back(is_prox(call.outputs) ? penalty_values<true> : penalty_values<false>,
                                static_cast<std::int64_t>(table.groups.size()), call.device);
    }
  }

  void run(char* block, cudaStream_t stream) const {
    const auto at = [&](std::size_t place, auto* type) { return reinterpret_cast<decltype(type)>(block + place); };
    double* const doubles = nullptr;
    const bool counts = wants_value() && is_prox(call_.outputs);
    std::int32_t* const chunk_zeros = counts ? at(places_.chunk_zeros, static_cast<std::int32_t*>(nullptr)) : nullptr;
    std::int64_t* const zeros = at(places_.zeros, static_cast<std::int64_t*>(nullptr));
    const Row* const rows = at(places_.rows, static_cast<const Row*>(nullptr));
    const Coefficients* const strengths = at(Places::strengths, static_cast<const Coefficients*>(nullptr));
    for (std::size_t i = 0; i < table_.launches.size(); ++i) {
      const ChunkWork work{rows,
                           at(places_.first_chunks, static_cast<const std::int64_t*>(nullptr)),
                           strengths,
                           table_.launches[i],
                           at(places_.l1_sums, doubles),
                           at(places_.l2_sums, doubles),
                           chunk_zeros};
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
                 at(0, static_cast<unsigned*>(nullptr)), chunk_zeros, at(places_.group_zeros, doubles),
                 call_.zeros != nullptr ? call_.zeros : zeros, call_.total_zeros},
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

}  // namespace fastreg::cuda
