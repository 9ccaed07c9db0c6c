// Which kernels the steps of optimizers launch; as launches.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "norm_launches.cuh"
#include "steps.cuh"

namespace fastreg::cuda {

template <Algorithm algorithm>
KernelOf<StepWork> step_kernel(const Launch& launch) {
  if (launch.is_strided) {
    return launch.dtype == DType::f64 ? strided_step_chunks<F64, algorithm> : strided_step_chunks<F32, algorithm>;
  }
  return choose<StepWork>(launch.dtype, step_chunks<F16, algorithm>, step_chunks<BF16, algorithm>,
                          step_chunks<F32, algorithm>, step_chunks<F64, algorithm>);
}

inline KernelOf<StepNormWork> step_norm_kernel(const Launch& launch) {
  if (launch.is_strided) {
    return launch.dtype == DType::f64 ? strided_step_norm_chunks<F64> : strided_step_norm_chunks<F32>;
  }
  return choose<StepNormWork>(launch.dtype, step_norm_chunks<F16>, step_norm_chunks<BF16>, step_norm_chunks<F32>,
                              step_norm_chunks<F64>);
}

// All that a call launches, found before the first of it.
class StepSequence {
 public:
  StepSequence(const StepCall& call, const StepTable& table, const StepPlacesInBlock& places)
      : call_(call), table_(table), places_(places) {
    const bool is_adamw = call.item_count != 0 && call.items[0].rule.algorithm == Algorithm::adamw;
    for (const Launch& launch : table.all.launches) {
      const std::int64_t blocks = (launch.chunk_end - launch.chunk_begin + warps_per_block - 1) / warps_per_block;
      may_need_power_ = may_need_power_ || launch.dtype == DType::f64;
      if (measures()) {
        norm_starts_.emplace_back(step_norm_kernel(launch), blocks, call.device);
      }
      if (takes()) {
        step_starts_.emplace_back(
            is_adamw ? step_kernel<Algorithm::adamw>(launch) : step_kernel<Algorithm::sgd>(launch), blocks,
            call.device);
      }
    }
    if (measures()) {
      norm_value_start_.emplace_back(norm_values, static_cast<std::int64_t>(table.all.groups.size()), call.device);
    }
    if (has_record()) {
      value_start_.emplace_back(penalty_values<true>, static_cast<std::int64_t>(table.counts.groups.size()),
                                call.device);
    }
    if (decides()) {
      rules_start_.emplace_back(step_rules, 1, call.device);
      outcome_start_.emplace_back(step_outcome, 1, call.device);
    }
  }

  void run(char* block, cudaStream_t stream) const {
    for (const auto& start : rules_start_) {
      const StepOnDevice& given = *call_.on_device;
      start.run({at<RuleSource>(block, places_.sources), static_cast<std::int64_t>(call_.item_count), call_.clip,
                 given.loss_scale, given.loss_scale_there, given.found_inf, at<StepRule>(block, places_.made_rules),
                 at<Coefficients>(block, places_.made_coefficients), at<StepVerdict>(block, places_.verdict)},
                stream);
    }
    if (measures()) {
      measure(false, block, stream);
    }
    if (measures() && decides() && may_need_power_) {
      measure(true, block, stream);
    }
    take(block, stream);
    for (const auto& start : outcome_start_) {
      start.run({at<RuleSource>(block, places_.sources), static_cast<std::int64_t>(call_.item_count),
                 at<StepVerdict>(block, places_.verdict), measures() ? state(block) : nullptr, skips_nonfinite(),
                 call_.on_device->optimizer_taken, call_.on_device->skipped},
                stream);
    }
  }

 private:
  bool decides() const { return call_.on_device != nullptr; }
  bool takes() const { return call_.task == StepTask::take; }
  bool measures() const { return !takes() || (decides() && call_.on_device->measures); }
  bool skips_nonfinite() const { return decides() && measures() && call_.on_device->skips_nonfinite; }
  bool has_record() const {
    return takes() && (call_.penalties != nullptr || call_.zeros != nullptr || call_.penalty != nullptr);
  }

  template <class T>
  static T* at(char* block, std::size_t place) {
    return reinterpret_cast<T*>(block + place);
  }
  ClipState* state(char* block) const { return at<ClipState>(block, places_.state); }
  const StepRule* rules(char* block) const {
    return at<StepRule>(block, decides() ? places_.made_rules : places_.rules);
  }

  ChunkWork chunks_of(std::size_t launch, char* block) const {
    return {at<Row>(block, places_.rows),
            at<std::int64_t>(block, places_.first_chunks),
            nullptr,
            table_.all.launches[launch],
            at<double>(block, places_.l1_sums),
            at<double>(block, places_.l2_sums),
            at<std::int32_t>(block, places_.zeros_of_chunks)};
  }

  void measure(bool is_again, char* block, cudaStream_t stream) const {
    for (std::size_t i = 0; i < norm_starts_.size(); ++i) {
      norm_starts_[i].run(
          {{chunks_of(i, block), nullptr, nullptr, at<double>(block, places_.maxima),
            at<std::int32_t>(block, places_.zeros_of_chunks), call_.exponent, is_again ? state(block) : nullptr},
           at<StepRow>(block, places_.step_rows),
           rules(block),
           at<Axis>(block, places_.axes),
           call_.clip == Clip::total},
          stream);
    }
    const double no_clip = std::numeric_limits<double>::infinity();
    norm_value_start_[0].run({at<Row>(block, places_.rows),
                              at<SumGroup>(block, places_.norm_groups),
                              static_cast<std::int64_t>(table_.all.groups.size()),
                              at<LargeRow>(block, places_.norm_large_rows),
                              static_cast<std::int64_t>(table_.all.large_rows.size()),
                              at<double>(block, places_.l1_sums),
                              at<double>(block, places_.l2_sums),
                              at<double>(block, places_.maxima),
                              at<std::int32_t>(block, places_.zeros_of_chunks),
                              at<double>(block, places_.l1_group_sums),
                              at<double>(block, places_.l2_group_sums),
                              at<double>(block, places_.group_maxima),
                              at<double>(block, places_.group_zeros),
                              at<double>(block, places_.group_nonfinite),
                              at<Norm>(block, places_.norms),
                              static_cast<std::int64_t>(table_.all.rows.size()),
                              at<unsigned>(block, 0),
                              decides() ? at<double>(block, places_.squares) : nullptr,
                              at<double>(block, places_.total_sums),
                              decides() ? state(block) : nullptr,
                              decides() ? call_.on_device->norm : nullptr,
                              call_.clip == Clip::none || !decides() ? no_clip : call_.on_device->max_norm,
                              is_again},
                             stream);
  }

  void take(char* block, cudaStream_t stream) const {
    for (std::size_t i = 0; i < step_starts_.size(); ++i) {
      step_starts_[i].run({chunks_of(i, block), at<StepRow>(block, places_.step_rows), rules(block),
                           at<Axis>(block, places_.axes), decides() ? at<StepVerdict>(block, places_.verdict) : nullptr,
                           decides() && measures() ? state(block) : nullptr, skips_nonfinite()},
                          stream);
    }
    for (const auto& start : value_start_) {
      start.run(
          {at<Row>(block, places_.count_rows),
           at<Coefficients>(block, decides() ? places_.made_coefficients : places_.coefficients),
           at<SumGroup>(block, places_.count_groups), static_cast<std::int64_t>(table_.counts.groups.size()),
           at<LargeRow>(block, places_.count_large_rows), static_cast<std::int64_t>(table_.counts.large_rows.size()),
           at<double>(block, places_.l1_sums), at<double>(block, places_.l2_sums),
           at<double>(block, places_.l1_group_sums), at<double>(block, places_.l2_group_sums),
           call_.penalties != nullptr ? call_.penalties : at<double>(block, places_.values),
           static_cast<std::int64_t>(table_.counts.rows.size()), call_.penalty, at<double>(block, places_.total_sums),
           at<unsigned>(block, 0), at<std::int32_t>(block, places_.zeros_of_chunks),
           at<double>(block, places_.group_zeros),
           call_.zeros != nullptr ? call_.zeros : at<std::int64_t>(block, places_.zeros), call_.all_zeros},
          stream);
    }
  }

  const StepCall& call_;
  const StepTable& table_;
  const StepPlacesInBlock& places_;
  bool may_need_power_ = false;
  std::vector<Start<StepRulesWork>> rules_start_;  // one, or none; so are the others but for steps and norms
  std::vector<Start<StepNormWork>> norm_starts_;
  std::vector<Start<NormSums>> norm_value_start_;
  std::vector<Start<StepWork>> step_starts_;
  std::vector<Start<SumWork>> value_start_;
  std::vector<Start<StepOutcomeWork>> outcome_start_;
};

}  // namespace fastreg::cuda
