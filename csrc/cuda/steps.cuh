// The device code of optimizers' steps (docs/numerics.md, 12): step.inl on the chunks, warps and sums of kernel.cuh,
// one pass over all that a tensor has. A step of which only the device knows all takes two more kernels, of one block:
// step_rules before the others, step_outcome after them.
#pragma once

#include <type_traits>

#include "../step.inl"
#include "norms.cuh"
#include "step_table.h"
#include "strided.cuh"

namespace fastreg::cuda {

// Elements of the type of the arithmetic.
template <class E>
using Arithmetic = std::conditional_t<sizeof(typename E::Real) == sizeof(float), F32, F64>;

// Twenty numbers of the step are in registers too, forty in float64, and divisions and square roots want more: 128, and
// for AdamW in float64 a few beyond.
template <Algorithm algorithm, class Real>
constexpr int step_blocks_per_processor = (algorithm == Algorithm::adamw && sizeof(Real) == sizeof(double)) ? 1 : 2;
// Rows whose loads a thread has under way, of each of at most five arrays.
template <Algorithm algorithm, class Real>
// NOLINTNEXTLINE(modernize-avoid-c-style-cast): an argument of a template is taken for one
constexpr int step_rows_in_flight = (algorithm == Algorithm::adamw && sizeof(Real) == sizeof(double)) ? 2 : 4;

template <class Real>
struct Rounded {
  FASTREG_HOST_DEVICE Real operator()(double number) const { return static_cast<Real>(number); }
};

struct StepWork {
  ChunkWork chunks;  // the strengths are not looked at; the sums are of tensors that count
  const StepRow* rows;
  const StepRule* rules;
  const Axis* axes;
  const StepVerdict* verdict;  // null: the host knows all
  const ClipState* state;      // null: the rules have the factor
  bool skips_nonfinite;
};

// Whether the device leaves the step out, and the factor of the clip.
struct StepDecision {
  bool skips;
  double factor;
};

FASTREG_DEVICE StepDecision decision_of(const StepWork& work, const StepRule& rule) {
  StepDecision found{false, rule.numbers.clip};
  if (work.verdict != nullptr) {
    found.skips = work.verdict->skips != 0;
  }
  if (work.state != nullptr) {
    found.skips = found.skips || (work.skips_nonfinite && work.state->is_finite == 0);
    found.factor = work.state->factor;
  }
  return found;
}

// What a rule asks of an element's memory.
template <Algorithm algorithm>
struct StepUses {
  FASTREG_DEVICE bool has_first(unsigned operations) {
    return algorithm == Algorithm::adamw || does(operations, op_momentum);
  }
  FASTREG_DEVICE bool reads_first(unsigned operations) {
    return algorithm == Algorithm::adamw || (does(operations, op_momentum) && !does(operations, op_begin));
  }
  FASTREG_DEVICE bool has_largest(unsigned operations) {
    return algorithm == Algorithm::adamw && does(operations, op_amsgrad);
  }
};

template <Algorithm algorithm, class Real>
FASTREG_DEVICE Real stepped(unsigned operations, const StepNumbers<Real>& numbers, Real w, Real g, Real& m, Real& v,
                            Real& h) {
  if constexpr (algorithm == Algorithm::adamw) {
    return adamw_step<ScalarOps<Real>>(operations, numbers, w, g, m, v, h);
  } else {
    return sgd_step<ScalarOps<Real>>(operations, numbers, w, g, m);
  }
}

// An element's part of the penalty and of the zeros.
template <class E>
FASTREG_DEVICE void count_element(const StepRule& rule, typename E::Real before, typename E::Real stored,
                                  LaneSums& sums) {
  const typename E::Real x = rule.adds_before ? before : stored;
  if ((rule.coefficients.terms & term_l1) != 0) {
    add_terms<E, term_l1, output_value>(x, sums);
  }
  if ((rule.coefficients.terms & term_l2) != 0) {
    add_terms<E, term_l2, output_value>(x, sums);
  }
  sums.zeros += stored == 0 ? 1 : 0;
}

// ---- dense chunks

template <class E, class G>
struct StepPlaces {
  typename E::Storage* w;
  const typename G::Storage* g;
  typename E::Real* m;
  typename E::Real* v;
  typename E::Real* h;
};

// One lane of one chunk, as LaneOfChunk.
template <class E, class G, Algorithm algorithm, bool whole>
struct LaneOfStep {
  using Real = typename E::Real;
  using Uses = StepUses<algorithm>;
  static constexpr int batch = whole ? step_rows_in_flight<algorithm, Real> : 1;

  FASTREG_DEVICE void run(const StepRule& rule, const StepNumbers<Real>& numbers, const StepPlaces<E, G>& at, int first,
                          int left, LaneSums& sums) {
    const unsigned operations = rule.operations;
    FASTREG_NO_UNROLL
    for (int begin = first; begin < left; begin += batch * lanes) {
      typename E::Storage w[batch];
      typename G::Storage g[batch];
      Real m[batch];
      Real v[batch];
      Real h[batch];
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        const int i = begin + k * lanes;
        w[k] = at.w[i];
        g[k] = at.g[i];
        m[k] = Uses::reads_first(operations) ? at.m[i] : Real{0};
        v[k] = algorithm == Algorithm::adamw ? at.v[i] : Real{0};
        h[k] = Uses::has_largest(operations) ? at.h[i] : Real{0};
      }
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        const int i = begin + k * lanes;
        const Real before = Element<E>::widen(w[k]);
        const auto stored = Element<E>::narrow(
            stepped<algorithm>(operations, numbers, before, Element<G>::widen(g[k]), m[k], v[k], h[k]));
        at.w[i] = stored;
        if (Uses::has_first(operations)) {
          at.m[i] = m[k];
        }
        if constexpr (algorithm == Algorithm::adamw) {
          at.v[i] = v[k];
        }
        if (Uses::has_largest(operations)) {
          at.h[i] = h[k];
        }
        if (rule.counts) {
          count_element<E>(rule, before, Element<E>::widen(stored), sums);
        }
      }
    }
  }
};

FASTREG_DEVICE void write_step_sums(const StepWork& work, std::int64_t chunk, int lane, const LaneSums& sums) {
  write_sums<term_l1 | term_l2, output_value | output_gradient | output_prox>(work.chunks, chunk, lane, sums);
}

template <class E, class G, Algorithm algorithm>
FASTREG_DEVICE void take_chunk(const StepWork& work, std::int64_t r, const StepRule& rule, double factor,
                               std::int64_t chunk, int lane, LaneSums& sums) {
  using Real = typename E::Real;
  const Row& row = work.chunks.rows[r];
  const StepRow& step = work.rows[r];
  const std::int64_t first = (chunk - row.first_chunk) * chunk_size + lane;
  const std::int64_t rest = row.count - (first - lane);
  FASTREG_ASSUME_GLOBAL(row.weights);
  FASTREG_ASSUME_GLOBAL(row.gradients);
  FASTREG_ASSUME_GLOBAL(step.first);
  FASTREG_ASSUME_GLOBAL(step.second);
  FASTREG_ASSUME_GLOBAL(step.largest);
  StepPlaces<E, G> at{};
  at.w = static_cast<typename E::Storage*>(const_cast<void*>(row.weights)) + first;
  at.g = static_cast<const typename G::Storage*>(row.gradients) + first;
  at.m = static_cast<Real*>(step.first) + first;
  at.v = static_cast<Real*>(step.second) + first;
  at.h = static_cast<Real*>(step.largest) + first;
  StepNumbers<Real> numbers = converted<Real>(rule.numbers, Rounded<Real>{});
  numbers.clip = static_cast<Real>(factor);
  const int count = rest < chunk_size ? static_cast<int>(rest) : chunk_size;
  const int whole = count - count % (step_rows_in_flight<algorithm, Real> * lanes);
  LaneOfStep<E, G, algorithm, true>::run(rule, numbers, at, 0, whole, sums);
  LaneOfStep<E, G, algorithm, false>::run(rule, numbers, at, whole, count - lane, sums);
}

// The penalty and zeros of a chunk that stays as it is.
template <class E>
FASTREG_DEVICE void count_chunk(const StepWork& work, std::int64_t r, const StepRule& rule, std::int64_t chunk,
                                int lane, LaneSums& sums) {
  for_each_batch<E>(work.chunks.rows[r], chunk, lane,
                    [&]<int batch, bool whole>(const typename E::Storage* elements, int left) {
                      FASTREG_UNROLL
                      for (int k = 0; k < batch; ++k) {
                        if (whole || k * lanes < left) {
                          const typename E::Real x = Element<E>::widen(elements[k * lanes]);
                          count_element<E>(rule, x, x, sums);
                        }
                      }
                    });
}

template <class E, Algorithm algorithm>
__global__ void FASTREG_BOUNDS(threads_per_block, (step_blocks_per_processor<algorithm, typename E::Real>))
    step_chunks(StepWork work) {
  for_each_chunk_of_rows(work.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    const StepRule& rule = work.rules[work.rows[r].rule];
    const StepDecision decision = decision_of(work, rule);
    LaneSums sums;
    if (decision.skips) {
      if (rule.counts) {
        count_chunk<E>(work, r, rule, chunk, lane, sums);
      }
    } else if constexpr (std::is_same_v<E, Arithmetic<E>>) {  // NOLINT(bugprone-branch-clone): or it is made twice
      take_chunk<E, E, algorithm>(work, r, rule, decision.factor, chunk, lane, sums);
    } else if (work.rows[r].is_converted != 0) {
      take_chunk<E, Arithmetic<E>, algorithm>(work, r, rule, decision.factor, chunk, lane, sums);
    } else {
      take_chunk<E, E, algorithm>(work, r, rule, decision.factor, chunk, lane, sums);
    }
    if (rule.counts) {
      write_step_sums(work, chunk, lane, sums);
    }
  });
}

// ---- strided chunks

// Elements that a lane has under way: their places want registers too.
template <class Real>
constexpr int strided_step_batch = sizeof(Real) == sizeof(double) ? 1 : 2;

// Where the elements of a lane are in an array.
template <int batch>
struct StepOffsets {
  std::int64_t of[batch];
};

// The places `begin`, `begin` + 32, ... of a chunk, by the axes of one array, whose starts the warp has written.
// `other`: the array is the second of the axes' pair.
template <int batch>
FASTREG_DEVICE StepOffsets<batch> offsets_in(const Axis* axes, std::int32_t axis_count, const std::int64_t* starts,
                                             int begin, bool other) {
  std::uint32_t carry[batch];
  StepOffsets<batch> offsets;
  FASTREG_UNROLL
  for (int k = 0; k < batch; ++k) {
    carry[k] = static_cast<std::uint32_t>(begin + k * lanes);
    offsets.of[k] = 0;
  }
  FASTREG_NO_UNROLL
  for (int a = 0; a < axis_count; ++a) {
    const Axis& axis = axes[a];
    const std::int64_t start = starts[a];
    const std::int64_t base = start * (other ? axis.gradient_stride : axis.weight_stride);
    FASTREG_UNROLL
    for (int k = 0; k < batch; ++k) {
      offsets.of[k] += base + carry[k] * (other ? axis.gradient_step : axis.weight_step);
      carry[k] = carry_of(axis, start, carry[k]);
    }
  }
  return offsets;
}

// The starts of a chunk along the axes of all arrays of a row, by a whole warp.
FASTREG_DEVICE void write_step_starts(const Axis* axes, const StepRow& step, std::int64_t first, int lane,
                                      std::int64_t* starts) {
  __syncwarp();  // the starts of the last chunk have been read
  FASTREG_NO_UNROLL
  for (int operand = 0; operand < step_operands; ++operand) {
    const OperandAxes& own = step.axes[operand];
    for (int a = lane; a < own.count; a += lanes) {
      starts[operand * max_axes + a] = start_of(axes[own.first + a], first);
    }
  }
  __syncwarp();  // the starts are there
}

// One chunk of a strided row of the dtype E, by a whole warp.
template <class E, class G, Algorithm algorithm>
FASTREG_DEVICE void take_strided_chunk(const StepWork& work, std::int64_t r, const StepRule& rule,
                                       const StepDecision& decision, int count, int lane, const std::int64_t* starts,
                                       LaneSums& sums) {
  using Real = typename E::Real;
  using Uses = StepUses<algorithm>;
  constexpr int batch = strided_step_batch<Real>;
  const Row& row = work.chunks.rows[r];
  const StepRow& step = work.rows[r];
  char* const w_base = static_cast<char*>(const_cast<void*>(row.weights));
  const char* const g_base = static_cast<const char*>(row.gradients);
  char* const m_base = static_cast<char*>(step.first);
  char* const v_base = static_cast<char*>(step.second);
  char* const h_base = static_cast<char*>(step.largest);
  FASTREG_ASSUME_GLOBAL(w_base);
  FASTREG_ASSUME_GLOBAL(g_base);
  FASTREG_ASSUME_GLOBAL(m_base);
  FASTREG_ASSUME_GLOBAL(v_base);
  FASTREG_ASSUME_GLOBAL(h_base);
  StepNumbers<Real> numbers = converted<Real>(rule.numbers, Rounded<Real>{});
  numbers.clip = static_cast<Real>(decision.factor);
  const unsigned operations = rule.operations;
  const auto offsets = [&](int operand, int begin) {
    const OperandAxes& own = step.axes[operand];
    return offsets_in<batch>(work.axes + own.first, own.count, starts + operand * max_axes, begin, own.is_other != 0);
  };
  FASTREG_NO_UNROLL
  for (int begin = lane; begin < count; begin += batch * lanes) {
    const StepOffsets<batch> w_at = offsets(0, begin);
    if (decision.skips) {
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        if (begin + k * lanes < count) {
          const Real x = Element<E>::widen(*reinterpret_cast<const typename E::Storage*>(w_base + w_at.of[k]));
          count_element<E>(rule, x, x, sums);
        }
      }
      continue;
    }
    const StepOffsets<batch> g_at = offsets(1, begin);
    const StepOffsets<batch> m_at = offsets(2, begin);
    const StepOffsets<batch> v_at = offsets(3, begin);
    const StepOffsets<batch> h_at = offsets(4, begin);
    FASTREG_UNROLL
    for (int k = 0; k < batch; ++k) {
      if (begin + k * lanes < count) {
        auto* const w = reinterpret_cast<typename E::Storage*>(w_base + w_at.of[k]);
        const auto* const g = reinterpret_cast<const typename G::Storage*>(g_base + g_at.of[k]);
        auto* const m_place = reinterpret_cast<Real*>(m_base + m_at.of[k]);
        auto* const v_place = reinterpret_cast<Real*>(v_base + v_at.of[k]);
        auto* const h_place = reinterpret_cast<Real*>(h_base + h_at.of[k]);
        Real m = Uses::reads_first(operations) ? *m_place : Real{0};
        Real v = algorithm == Algorithm::adamw ? *v_place : Real{0};
        Real h = Uses::has_largest(operations) ? *h_place : Real{0};
        const Real before = Element<E>::widen(*w);
        const auto stored =
            Element<E>::narrow(stepped<algorithm>(operations, numbers, before, Element<G>::widen(*g), m, v, h));
        *w = stored;
        if (Uses::has_first(operations)) {
          *m_place = m;
        }
        if constexpr (algorithm == Algorithm::adamw) {
          *v_place = v;
        }
        if (Uses::has_largest(operations)) {
          *h_place = h;
        }
        if (rule.counts) {
          count_element<E>(rule, before, Element<E>::widen(stored), sums);
        }
      }
    }
  }
}

// Calls visit with the element types of parameters and gradients, of those that compute as E does.
template <class E, class Visit>
FASTREG_DEVICE void with_step_storage(const StepRow& step, Visit visit) {
  with_storage<E, output_gradient>(step.dtype, [&](auto element) {
    using Stored = decltype(element);
    if constexpr (std::is_same_v<Stored, Arithmetic<Stored>>) {  // NOLINT(bugprone-branch-clone): or it is made twice
      visit(element, element);
    } else if (step.is_converted != 0) {
      visit(element, Arithmetic<Stored>{});
    } else {
      visit(element, element);
    }
  });
}

// Rows of which an array is strided, that compute as E does.
template <class E, Algorithm algorithm>
__global__ void FASTREG_BOUNDS(threads_per_block, (step_blocks_per_processor<algorithm, typename E::Real>))
    strided_step_chunks(StepWork work) {
  FASTREG_SHARED(std::int64_t, starts, warps_per_block * step_operands * max_axes);
  std::int64_t* own_starts = starts + threadIdx.x / lanes * step_operands * max_axes;
  for_each_chunk_of_rows(work.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    const Row& row = work.chunks.rows[r];
    const StepRule& rule = work.rules[work.rows[r].rule];
    const StepDecision decision = decision_of(work, rule);
    const std::int64_t first = (chunk - row.first_chunk) * chunk_size;
    const std::int64_t rest = row.count - first;
    const int count = rest < chunk_size ? static_cast<int>(rest) : chunk_size;
    write_step_starts(work.axes, work.rows[r], first, lane, own_starts);
    LaneSums sums;
    if (!decision.skips || rule.counts) {
      with_step_storage<E>(work.rows[r], [&](auto element, auto gradient) {
        take_strided_chunk<decltype(element), decltype(gradient), algorithm>(work, r, rule, decision, count, lane,
                                                                             own_starts, sums);
      });
    }
    if (rule.counts) {
      write_step_sums(work, chunk, lane, sums);
    }
  });
}

// ---- norms of what is clipped

struct StepNormWork {
  NormWork norms;  // with `state` only where its exponent is not 0
  const StepRow* rows;
  const StepRule* rules;
  const Axis* axes;
  bool with_penalty;  // d has the penalty's gradient in it
};

// The gradient at the line of the clip, taken times 2^exponent, in float64. Only a float64 can have a square that is
// rounded: of all others it is exact, and so the same as there.
template <class Real>
FASTREG_DEVICE double clipped_number(const StepRule& rule, const StepNumbers<Real>& numbers, bool with_penalty_too,
                                     Real g, Real w, int exponent) {
  Real d = data_gradient<ScalarOps<Real>>(rule.operations, numbers, g);
  if (with_penalty_too) {
    d = with_penalty<ScalarOps<Real>>(rule.operations, numbers, d, w);
  }
  const auto number = static_cast<double>(d);
  return exponent != 0 ? ldexp(number, exponent) : number;
}

FASTREG_DEVICE bool has_penalty_gradient(const StepNormWork& work, const StepRule& rule) {
  return work.with_penalty && does(rule.operations, op_gradient_l1 | op_gradient_l2);
}

template <class E, class G>
FASTREG_DEVICE void measure_chunk(const StepNormWork& work, std::int64_t r, std::int64_t chunk, int lane, int exponent,
                                  NormLane<F64>& sums) {
  using Real = typename E::Real;
  constexpr int batch = 4;
  const Row& row = work.norms.chunks.rows[r];
  const StepRule& rule = work.rules[work.rows[r].rule];
  FASTREG_ASSUME_GLOBAL(row.weights);
  FASTREG_ASSUME_GLOBAL(row.gradients);
  const std::int64_t first = (chunk - row.first_chunk) * chunk_size + lane;
  const std::int64_t rest = row.count - (first - lane);
  const auto* w = static_cast<const typename E::Storage*>(row.weights) + first;
  const auto* g = static_cast<const typename G::Storage*>(row.gradients) + first;
  const StepNumbers<Real> numbers = converted<Real>(rule.numbers, Rounded<Real>{});
  const bool penalized = has_penalty_gradient(work, rule);
  const int left = (rest < chunk_size ? static_cast<int>(rest) : chunk_size) - lane;
  FASTREG_NO_UNROLL
  for (int begin = 0; begin < left; begin += batch * lanes) {
    typename E::Storage stored[batch];
    typename G::Storage gradients[batch];
    FASTREG_UNROLL
    for (int k = 0; k < batch; ++k) {
      const int i = begin + k * lanes;
      gradients[k] = i < left ? g[i] : typename G::Storage{};
      stored[k] = penalized && i < left ? w[i] : typename E::Storage{};
    }
    FASTREG_UNROLL
    for (int k = 0; k < batch; ++k) {
      const bool is_there = begin + k * lanes < left;
      const double x = clipped_number<Real>(rule, numbers, penalized, Element<G>::widen(gradients[k]),
                                            Element<E>::widen(stored[k]), exponent);
      sums.add(is_there ? x : 0.0, is_there);
    }
  }
}

// What elements are taken times, as a power of 2; `is_idle` where there is nothing to do.
FASTREG_DEVICE int exponent_of(const NormWork& work, bool& is_idle) {
  const int exponent = work.state != nullptr ? work.state->exponent : work.exponent;
  is_idle = work.state != nullptr && exponent == 0;
  return exponent;
}

template <class E>
__global__ void FASTREG_BOUNDS(threads_per_block, 3) step_norm_chunks(StepNormWork work) {
  bool is_idle = false;
  const int exponent = exponent_of(work.norms, is_idle);
  if (is_idle) {
    return;
  }
  for_each_chunk_of_rows(work.norms.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    NormLane<F64> sums;
    if constexpr (std::is_same_v<E, Arithmetic<E>>) {  // NOLINT(bugprone-branch-clone): or it is made twice
      measure_chunk<E, E>(work, r, chunk, lane, exponent, sums);
    } else if (work.rows[r].is_converted != 0) {
      measure_chunk<E, Arithmetic<E>>(work, r, chunk, lane, exponent, sums);
    } else {
      measure_chunk<E, E>(work, r, chunk, lane, exponent, sums);
    }
    sums.write(work.norms, chunk, lane);
  });
}

template <class E>
__global__ void FASTREG_BOUNDS(threads_per_block, 3) strided_step_norm_chunks(StepNormWork work) {
  constexpr int batch = strided_step_batch<typename E::Real>;
  FASTREG_SHARED(std::int64_t, starts, warps_per_block * step_operands * max_axes);
  std::int64_t* own_starts = starts + threadIdx.x / lanes * step_operands * max_axes;
  bool is_idle = false;
  const int exponent = exponent_of(work.norms, is_idle);
  if (is_idle) {
    return;
  }
  for_each_chunk_of_rows(work.norms.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    const Row& row = work.norms.chunks.rows[r];
    const StepRow& step = work.rows[r];
    const StepRule& rule = work.rules[step.rule];
    const std::int64_t first = (chunk - row.first_chunk) * chunk_size;
    const std::int64_t rest = row.count - first;
    const int count = rest < chunk_size ? static_cast<int>(rest) : chunk_size;
    write_step_starts(work.axes, step, first, lane, own_starts);
    FASTREG_ASSUME_GLOBAL(row.weights);
    FASTREG_ASSUME_GLOBAL(row.gradients);
    const auto offsets = [&](int operand, int begin) {
      const OperandAxes& own = step.axes[operand];
      return offsets_in<batch>(work.axes + own.first, own.count, own_starts + operand * max_axes, begin,
                               own.is_other != 0);
    };
    const bool penalized = has_penalty_gradient(work, rule);
    NormLane<F64> sums;
    with_step_storage<E>(step, [&](auto element, auto gradient) {
      using Stored = decltype(element);
      using Gradient = decltype(gradient);
      using Real = typename Stored::Real;
      const StepNumbers<Real> numbers = converted<Real>(rule.numbers, Rounded<Real>{});
      FASTREG_NO_UNROLL
      for (int begin = lane; begin < count; begin += batch * lanes) {
        const StepOffsets<batch> w_at = offsets(0, begin);
        const StepOffsets<batch> g_at = offsets(1, begin);
        FASTREG_UNROLL
        for (int k = 0; k < batch; ++k) {
          if (begin + k * lanes < count) {
            const auto* g = reinterpret_cast<const typename Gradient::Storage*>(
                static_cast<const char*>(row.gradients) + g_at.of[k]);
            const auto* w =
                reinterpret_cast<const typename Stored::Storage*>(static_cast<const char*>(row.weights) + w_at.of[k]);
            const auto x = clipped_number<Real>(rule, numbers, penalized, Element<Gradient>::widen(*g),
                                                penalized ? Element<Stored>::widen(*w) : Real{0}, exponent);
            sums.add(x, true);
          }
        }
      }
    });
    sums.write(work.norms, chunk, lane);
  });
}

// ---- what only the device knows

struct StepRulesWork {
  const RuleSource* sources;
  std::int64_t count;
  Clip clip;
  double loss_scale;
  const float* loss_scale_there;
  const float* found_inf;
  StepRule* rules;
  Coefficients* coefficients;
  StepVerdict* verdict;
};

FASTREG_DEVICE double number_there(const void* address, bool is_f64) {
  return is_f64 ? *static_cast<const double*>(address) : static_cast<double>(*static_cast<const float*>(address));
}

// Settings with what the device has of their numbers.
FASTREG_DEVICE StepSettings settings_of(const RuleSource& source) {
  StepSettings found = source.settings;
  const NumbersThere& there = source.there;
  if (there.lr != nullptr) {
    found.lr = number_there(there.lr, there.lr_is_f64);
    found.factor = found.lr / there.initial_lr;
  }
  if (there.strength != nullptr) {
    const double strength = number_there(there.strength, there.strength_is_f64);
    found.l1 = found.l1 * strength;
    found.l2 = found.l2 * strength;
  }
  return found;
}

// The rules of all tensors, by one block.
[[maybe_unused]] static __global__ void FASTREG_BOUNDS(threads_per_block, 1) step_rules(StepRulesWork work) {
  const double loss_scale =
      work.loss_scale_there != nullptr ? static_cast<double>(*work.loss_scale_there) : work.loss_scale;
  for (std::int64_t i = threadIdx.x; i < work.count; i += threads_per_block) {
    const RuleSource& source = work.sources[i];
    work.rules[i] = rule_of(settings_of(source), source.taken != nullptr ? *source.taken : source.steps, loss_scale,
                            work.clip, 1.0);
    work.coefficients[i] = work.rules[i].coefficients;
  }
  if (threadIdx.x == 0) {
    work.verdict->skips = work.found_inf != nullptr && *work.found_inf != 0.0f ? 1 : 0;
  }
}

struct StepOutcomeWork {
  const RuleSource* sources;
  std::int64_t count;
  const StepVerdict* verdict;
  const ClipState* state;  // null: nothing was measured
  bool skips_nonfinite;
  std::int64_t* taken;    // steps of the optimizer; may be null
  std::int64_t* skipped;  // likewise
};

// Counts the step where it was taken, by one block.
[[maybe_unused]] static __global__ void FASTREG_BOUNDS(threads_per_block, 1) step_outcome(StepOutcomeWork work) {
  const bool skips = work.verdict->skips != 0 || (work.skips_nonfinite && work.state->is_finite == 0);
  if (!skips) {
    for (std::int64_t i = threadIdx.x; i < work.count; i += threads_per_block) {
      if (work.sources[i].taken != nullptr) {
        *work.sources[i].taken += 1;
      }
    }
  }
  if (threadIdx.x == 0) {
    if (work.taken != nullptr) {
      *work.taken += skips ? 0 : 1;
    }
    if (work.skipped != nullptr) {
      *work.skipped = skips ? 1 : 0;
    }
  }
}

}  // namespace fastreg::cuda
