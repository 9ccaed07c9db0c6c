// Which kernels norms, scaling and clipping launch; as launches.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "launches.cuh"
#include "norms.cuh"

namespace fastreg::cuda {

// The kernel of a dtype out of those for each.
template <class Work>
using KernelOf = void (*)(Work);

template <class Work>
KernelOf<Work> choose(DType dtype, KernelOf<Work> f16, KernelOf<Work> bf16, KernelOf<Work> f32, KernelOf<Work> f64) {
  switch (dtype) {
    case DType::f16:
      return f16;
    case DType::bf16:
      return bf16;
    case DType::f32:
      return f32;
    default:
      return f64;
  }
}

inline KernelOf<NormWork> norm_kernel(const Launch& launch, bool times_power) {
  if (launch.is_strided || times_power) {
    return strided_norm_chunks;
  }
  return choose<NormWork>(launch.dtype, norm_chunks<F16>, norm_chunks<BF16>, norm_chunks<F32>, norm_chunks<F64>);
}

inline KernelOf<ScaleWork> scale_kernel(const Launch& launch) {
  if (launch.is_strided) {
    return launch.dtype == DType::f64 ? strided_scale_chunks<F64> : strided_scale_chunks<F32>;
  }
  return choose<ScaleWork>(launch.dtype, scale_chunks<F16>, scale_chunks<BF16>, scale_chunks<F32>, scale_chunks<F64>);
}

// All that a call launches, found before the first of it.
class NormSequence {
 public:
  // `may_need_power`: all rows of the table have axes.
  NormSequence(const NormCall& call, const Table& table, const Places& places, bool may_need_power)
      : call_(call), table_(table), places_(places), may_need_power_(may_need_power) {
    const auto start = [&](auto& starts, auto kernel, const Launch& launch) {
      starts.emplace_back(kernel, (launch.chunk_end - launch.chunk_begin + warps_per_block - 1) / warps_per_block,
                          call.device);
    };
    for (const Launch& launch : table.launches) {
      if (measures()) {
        start(norm_starts_, norm_kernel(launch, call.exponent != 0), launch);
      }
      if (measures_again()) {
        start(again_starts_, norm_kernel(launch, true), launch);
      }
      if (scales()) {
        start(scale_starts_, scale_kernel(launch), launch);
      }
    }
    if (measures()) {
      value_start_.emplace_back(norm_values, static_cast<std::int64_t>(table.groups.size()), call.device);
    }
  }

  void run(char* block, cudaStream_t stream) const {
    if (measures()) {
      measure(norm_starts_, false, block, stream);
    }
    if (measures_again()) {
      measure(again_starts_, true, block, stream);
    }
    for (std::size_t i = 0; i < scale_starts_.size(); ++i) {
      scale_starts_[i].run(
          {chunks_of(i, block), at<StridedRow>(block, places_.strided_rows), at<Axis>(block, places_.axes),
           call_.factor, is_clip() ? at<ClipState>(block, places_.state) : nullptr},
          stream);
    }
  }

 private:
  bool is_clip() const { return call_.task == NormTask::clip; }
  bool measures() const { return call_.task != NormTask::scale; }
  bool measures_again() const { return is_clip() && may_need_power_; }
  bool scales() const { return call_.task != NormTask::measure; }

  template <class T>
  static T* at(char* block, std::size_t place) {
    return reinterpret_cast<T*>(block + place);
  }

  ChunkWork chunks_of(std::size_t launch, char* block) const {
    return {at<Row>(block, places_.rows),
            at<std::int64_t>(block, places_.first_chunks),
            nullptr,
            table_.launches[launch],
            at<double>(block, places_.l1_sums),
            at<double>(block, places_.l2_sums)};
  }

  void measure(const std::vector<Start<NormWork>>& starts, bool is_again, char* block, cudaStream_t stream) const {
    ClipState* const state = is_clip() ? at<ClipState>(block, places_.state) : nullptr;
    for (std::size_t i = 0; i < starts.size(); ++i) {
      starts[i].run({chunks_of(i, block), at<StridedRow>(block, places_.strided_rows), at<Axis>(block, places_.axes),
                     at<double>(block, places_.maxima), at<std::int32_t>(block, places_.chunk_zeros), call_.exponent,
                     is_again ? state : nullptr},
                    stream);
    }
    value_start_[0].run({at<Row>(block, places_.rows),
                         at<SumGroup>(block, places_.groups),
                         static_cast<std::int64_t>(table_.groups.size()),
                         at<LargeRow>(block, places_.large_rows),
                         static_cast<std::int64_t>(table_.large_rows.size()),
                         at<double>(block, places_.l1_sums),
                         at<double>(block, places_.l2_sums),
                         at<double>(block, places_.maxima),
                         at<std::int32_t>(block, places_.chunk_zeros),
                         at<double>(block, places_.l1_group_sums),
                         at<double>(block, places_.l2_group_sums),
                         at<double>(block, places_.group_maxima),
                         at<double>(block, places_.group_zeros),
                         at<double>(block, places_.group_nonfinite),
                         at<Norm>(block, places_.norms),
                         static_cast<std::int64_t>(table_.rows.size()),
                         at<unsigned>(block, 0),
                         is_clip() ? at<double>(block, places_.values) : nullptr,
                         at<double>(block, places_.total_sums),
                         state,
                         call_.norm,
                         call_.max_norm,
                         is_again},
                        stream);
  }

  const NormCall& call_;
  const Table& table_;
  const Places& places_;
  bool may_need_power_;
  std::vector<Start<NormWork>> norm_starts_;
  std::vector<Start<NormWork>> again_starts_;
  std::vector<Start<ScaleWork>> scale_starts_;
  std::vector<Start<NormSums>> value_start_;  // one, or none
};

}  // namespace fastreg::cuda
