// The device code. Compiled with -fmad=false (nvcc) or -ffp-contract=off: every operation is rounded
// (docs/numerics.md, 6).
//
// A warp takes a chunk and thread j of it is lane j, so that the canonical order is the order of the loads: a row of 32
// elements is one request of consecutive addresses. Each thread has the loads of `rows_in_flight` rows under way, and
// no other warp needs its sums: no shared memory, no barrier and no atomics until the chunk sums are written.
// Those are added up by a second kernel, a block for each group of 4096 of them.
//
// Weights may be the gradients: a thread reads an element before it writes it, and no other thread does either.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../canonical_sum.h"
#include "../prox.inl"
#include "language.h"
#include "table.h"

namespace fastreg::cuda {

constexpr int lanes = lanes_per_chunk;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int warps_per_block = 8;
constexpr int threads_per_block = warps_per_block * lanes;
constexpr int rows_per_chunk = chunk_size / lanes;
// Blocks that should fit a processor at once: 32 warps, so 64 registers a thread, for sums alone, and for a gradient of
// at most four bytes that is added alone. Other gradients need 80 to keep as many loads under way, and get them: with
// 64 they spill on some architectures.
constexpr int blocks_per_processor(unsigned outputs, std::size_t size) {
  const bool adds_alone = outputs == (output_gradient | output_add) && size <= 4;
  return (outputs & output_gradient) != 0 && !adds_alone ? 3 : 4;
}

// ---- elements

template <class E>
struct Element {
  using Storage = typename E::Storage;
  FASTREG_DEVICE Storage widen(Storage x) { return x; }
  FASTREG_DEVICE Storage narrow(Storage x) { return x; }
};

template <>
struct Element<F16> {
  FASTREG_DEVICE float widen(std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
  FASTREG_DEVICE std::uint16_t narrow(float x) { return __half_as_ushort(__float2half_rn(x)); }
};

template <>
struct Element<BF16> {
  FASTREG_DEVICE float widen(std::uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }
  FASTREG_DEVICE std::uint16_t narrow(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
};

// What penalty.inl, prox.inl and step.inl ask for.
template <class Scalar>
struct ScalarOps {
  using Real = Scalar;
  FASTREG_DEVICE Real sign(Real x) {
    // Where |x| > 0 fails, |x| is the answer: +0, or that NaN.
    const Real magnitude = fabs(x);
    return magnitude > Real{0} ? copysign(Real{1}, x) : magnitude;
  }
  FASTREG_DEVICE Real add_exact(Real s, Real l, Real x) { return s * l + x; }
  FASTREG_DEVICE Real shrink(Real x, Real threshold) {
    const Real left = fabs(x) - threshold;
    return left <= Real{0} ? Real{0} : copysign(left, x);  // NaN where that is
  }
  FASTREG_DEVICE Real root_quotient(Real x, Real divisor, Real) { return ::sqrt(x) / divisor; }
};

// Rows whose loads a thread has under way at once, of each array: a warp of float32 has 2 KiB of each on their way.
template <class E>
constexpr int rows_in_flight = sizeof(typename E::Storage) == 8 ? 8 : 16;

// ---- sums

// Step 3 of the canonical sum: the lanes of a warp halved into lane 0.
FASTREG_DEVICE double halve_warp(double lane_sum) {
  FASTREG_UNROLL
  for (int half = lanes / 2; half > 0; half /= 2) {
    lane_sum += __shfl_down_sync(all_lanes, lane_sum, static_cast<unsigned>(half));
  }
  return lane_sum;
}

// The square of an element is exact in float64 unless it is one: only there must the addition not be fused.
template <class E>
FASTREG_DEVICE double add_square(double x, double sum) {
  if constexpr (sizeof(typename E::Storage) == sizeof(double)) {
    return sum + x * x;
  } else {
    return __fma_rn(x, x, sum);
  }
}

// Of one lane of a chunk.
struct LaneSums {
  double l1 = 0.0;
  double l2 = 0.0;
  int zeros = 0;
};

// An element's terms to the sums of its lane.
template <class E, unsigned terms, unsigned outputs>
FASTREG_DEVICE void add_terms(typename E::Real x, LaneSums& sums) {
  if constexpr ((outputs & output_value) != 0 && (terms & term_l1) != 0) {
    sums.l1 += fabs(static_cast<double>(x));
  }
  if constexpr ((outputs & output_value) != 0 && (terms & term_l2) != 0) {
    sums.l2 = add_square<E>(static_cast<double>(x), sums.l2);
  }
}

// ---- gradients

template <class E, unsigned terms, unsigned outputs, class Real = typename E::Real>
FASTREG_DEVICE Real new_gradient(Real x, typename E::Storage old, Real gradient_l1, Real gradient_l2) {
  Real gradient{0};
  if constexpr (terms != 0) {
    gradient = penalty_gradient<ScalarOps<Real>, terms>(x, gradient_l1, gradient_l2);
  }
  if constexpr ((outputs & output_add) != 0) {
    gradient = Element<E>::widen(old) + gradient;
  }
  return gradient;
}

// ---- proximal steps

// What an element becomes. Without a term it stays as it is, whatever the bits of a NaN.
template <class E, unsigned terms, class Real = typename E::Real>
FASTREG_DEVICE typename E::Storage stored_step(typename E::Storage w, Real t1, Real t2) {
  if constexpr (terms == 0) {
    return w;
  } else {
    return Element<E>::narrow(proximal_step<ScalarOps<Real>, terms>(Element<E>::widen(w), t1, t2));
  }
}

// Penalty and zeros of a proximal step are of what is stored. What `is_there` denies is +0, but no zero of the
// tensor's.
template <class E, unsigned terms, unsigned outputs>
FASTREG_DEVICE void add_stored(typename E::Real stored, bool is_there, LaneSums& sums) {
  add_terms<E, terms, outputs>(stored, sums);
  if constexpr ((outputs & output_value) != 0) {
    sums.zeros += is_there && stored == 0 ? 1 : 0;
  }
}

// ---- chunks

struct ChunkWork {
  const Row* rows;
  const std::int64_t* first_chunks;
  const Coefficients* strengths;
  Launch launch;
  double* l1_sums;  // one per chunk; null without value
  double* l2_sums;
  std::int32_t* zeros = nullptr;  // one per chunk, of proximal steps with the value
};

// The last row from `low` on, of those before `high`, that starts at `chunk` or before it; `low` does. All lanes look
// at once, at 32 places: 3,000 rows take three loads one after the other, 12 by halving.
FASTREG_DEVICE std::int64_t find_row(const std::int64_t* first_chunks, std::int64_t low, std::int64_t high,
                                     std::int64_t chunk, int lane) {
  while (high - low > 1) {
    const std::int64_t step = (high - low + lanes - 1) / lanes;
    const std::int64_t place = low + lane * step;
    const unsigned votes = __ballot_sync(all_lanes, place < high && first_chunks[place] <= chunk);
    low += (__popc(votes) - 1) * step;
    high = low + step < high ? low + step : high;
  }
  return low;
}

// Runs run(r, chunk, lane) for each of a warp's chunks, of the row r.
template <class Run>
FASTREG_DEVICE void for_each_chunk_of_rows(const ChunkWork& work, Run run) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const std::int64_t warp = static_cast<std::int64_t>(blockIdx.x) * warps_per_block + threadIdx.x / lanes;
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * warps_per_block;
  std::int64_t r = work.launch.row_begin;
  std::int64_t row_end = work.launch.chunk_begin;  // the first chunk that is not of row r
  for (std::int64_t chunk = work.launch.chunk_begin + warp; chunk < work.launch.chunk_end; chunk += warps) {
    if (chunk >= row_end) {
      r = find_row(work.first_chunks, r, work.launch.row_end, chunk, lane);
      row_end = work.first_chunks[r + 1];
    }
    run(r, chunk, lane);
  }
}

// Runs run<terms, outputs>(r, strengths, chunk, lane) for each of a warp's chunks, of the row r. Which terms there are
// is read with the strengths, chunk by chunk: tensors with different terms share the launch, and a strength that a
// schedule brings to 0 or away from it needs no other kernel.
template <unsigned outputs, class Run>
FASTREG_DEVICE void for_each_chunk(const ChunkWork& work, Run run) {
  for_each_chunk_of_rows(work, [&](std::int64_t r, std::int64_t chunk, int lane) {
    const Coefficients& strengths = work.strengths[work.rows[r].strengths];
    switch (strengths.terms) {
      case term_l1:
        run.template operator()<term_l1, outputs>(r, strengths, chunk, lane);
        break;
      case term_l2:
        run.template operator()<term_l2, outputs>(r, strengths, chunk, lane);
        break;
      case term_l1 | term_l2:
        run.template operator()<term_l1 | term_l2, outputs>(r, strengths, chunk, lane);
        break;
      default:
        // Without a term a new gradient is +0, and an accumulated one is left alone; a proximal step is a copy.
        if constexpr (is_prox(outputs)) {
          run.template operator()<0, outputs>(r, strengths, chunk, lane);
        } else if constexpr ((outputs & output_gradient) != 0 && (outputs & output_add) == 0) {
          run.template operator()<0, output_gradient>(r, strengths, chunk, lane);
        }
    }
  });
}

// The sums of a chunk from those of its lanes.
template <unsigned terms, unsigned outputs>
FASTREG_DEVICE void write_sums(const ChunkWork& work, std::int64_t chunk, int lane, const LaneSums& sums) {
  constexpr bool wants_value = (outputs & output_value) != 0;
  if constexpr (wants_value && (terms & term_l1) != 0) {
    const double l1_sum = halve_warp(sums.l1);
    if (lane == 0) {
      work.l1_sums[chunk] = l1_sum;
    }
  }
  if constexpr (wants_value && (terms & term_l2) != 0) {
    const double l2_sum = halve_warp(sums.l2);
    if (lane == 0) {
      work.l2_sums[chunk] = l2_sum;
    }
  }
  if constexpr (wants_value && is_prox(outputs)) {
    const double zeros = halve_warp(sums.zeros);
    if (lane == 0) {
      work.zeros[chunk] = static_cast<std::int32_t>(zeros);
    }
  }
}

// One lane of one chunk, batch of rows by batch. `whole`: all elements of the batches are there.
template <class E, unsigned terms, unsigned outputs, bool whole>
struct LaneOfChunk {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  static constexpr bool wants_gradient = (outputs & output_gradient) != 0;
  static constexpr bool adds = (outputs & output_add) != 0;
  static constexpr bool reads_weights = terms != 0 || is_prox(outputs);
  // The conditions want registers too.
  static constexpr int batch = whole ? rows_in_flight<E> : 4;
  static_assert(rows_per_chunk % batch == 0);

  // Pointers to the lane's first element, from which `first` and `left` are counted: where to begin, and the chunk's
  // end, or that of its whole batches.
  FASTREG_DEVICE void run(const Storage* weights, Storage* gradients, int first, int left, Real gradient_l1,
                          Real gradient_l2, LaneSums& sums) {
    FASTREG_NO_UNROLL  // or all loads of a chunk want registers at once
        for (int begin = first; begin < left; begin += batch * lanes) {
      Storage w[batch];
      Storage old[batch];
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        const int i = begin + k * lanes;
        const bool is_there = whole || i < left;
        // What is not there is +0, which changes no bit of a sum: no term is below +0.
        w[k] = reads_weights && is_there ? weights[i] : Storage{};
        old[k] = adds && is_there ? gradients[i] : Storage{};
      }
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        const int i = begin + k * lanes;
        if constexpr (is_prox(outputs)) {
          const bool is_there = whole || i < left;
          const Storage step = stored_step<E, terms>(w[k], gradient_l1, gradient_l2);
          if (is_there) {
            gradients[i] = step;
          }
          add_stored<E, terms, outputs>(Element<E>::widen(step), is_there, sums);
        } else {
          const Real x = Element<E>::widen(w[k]);
          add_terms<E, terms, outputs>(x, sums);
          if constexpr (wants_gradient) {
            const Real gradient = new_gradient<E, terms, outputs>(x, old[k], gradient_l1, gradient_l2);
            if (whole || i < left) {
              gradients[i] = Element<E>::narrow(gradient);
            }
          }
        }
      }
    }
  }
};

template <class E, unsigned terms, unsigned outputs>
FASTREG_DEVICE void run_chunk(const ChunkWork& work, const Row& row, const Coefficients& strengths, std::int64_t chunk,
                              int lane) {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  const std::int64_t first = (chunk - row.first_chunk) * chunk_size;
  const std::int64_t rest = row.count - first;
  FASTREG_ASSUME_GLOBAL(row.weights);
  if constexpr ((outputs & output_gradient) != 0) {
    FASTREG_ASSUME_GLOBAL(row.gradients);
  }
  const Storage* weights = static_cast<const Storage*>(row.weights) + first + lane;
  Storage* gradients = (outputs & output_gradient) != 0 ? static_cast<Storage*>(row.gradients) + first + lane : nullptr;
  const Real gradient_l1 = static_cast<Real>(strengths.gradient_l1);
  const Real gradient_l2 = static_cast<Real>(strengths.gradient_l2);
  LaneSums sums;
  // A short chunk has whole batches as well: each of its loads would wait for a branch of its own otherwise.
  const int count = rest < chunk_size ? static_cast<int>(rest) : chunk_size;
  const int whole = count - count % (rows_in_flight<E> * lanes);
  LaneOfChunk<E, terms, outputs, true>::run(weights, gradients, 0, whole, gradient_l1, gradient_l2, sums);
  LaneOfChunk<E, terms, outputs, false>::run(weights, gradients, whole, count - lane, gradient_l1, gradient_l2, sums);
  write_sums<terms, outputs>(work, chunk, lane, sums);
}

// All chunks of the rows of one dtype.
template <class E, unsigned outputs>
__global__ void FASTREG_BOUNDS(threads_per_block, blocks_per_processor(outputs, sizeof(typename E::Storage)))
    penalty_chunks(ChunkWork work) {
  for_each_chunk<outputs>(work, [&]<unsigned terms, unsigned cell>(std::int64_t r, const Coefficients& strengths,
                                                                   std::int64_t chunk, int lane) {
    run_chunk<E, terms, cell>(work, work.rows[r], strengths, chunk, lane);
  });
}

// ---- sums of chunk sums

struct SumWork {
  const Row* rows;
  const Coefficients* strengths;
  const SumGroup* groups;
  std::int64_t group_count;
  const LargeRow* large_rows;
  std::int64_t large_row_count;
  const double* l1_sums;
  const double* l2_sums;
  double* l1_group_sums;  // one per group
  double* l2_group_sums;
  double* values;  // one per item
  std::int64_t item_count;
  double* total;           // null: not asked for
  double* total_sums;      // one per 4096 items
  unsigned int* finished;  // blocks; 0 before and after
  // Of proximal steps, else null: per chunk, per group and per item, and their total if one is asked for.
  const std::int32_t* chunk_zeros = nullptr;
  double* group_zeros = nullptr;
  std::int64_t* zeros = nullptr;
  std::int64_t* total_zeros = nullptr;
};

// Both sums of a penalty, or a single one.
struct SumPair {
  const double* l1;  // null: there is none
  const double* l2;
};

// Numbers of each sum that a block holds at once, and those of them that a thread fetches.
constexpr int tile_size = 2048;
constexpr int fetches = tile_size / threads_per_block;

// What another block may have written: past L1, which does not see it.
template <class Number>
FASTREG_DEVICE Number load_written(const Number* place) {
  return __ldcg(place);
}

struct SumMemory {
  double* tiles;    // 2 * tile_size, shared by the block
  double* results;  // 2, likewise
};

// Steps 2 and 3 of the canonical sum, of at most 4096 terms, by the whole block: all threads fetch, warp 0 adds up the
// one sum and warp 1 the other. Both are then in `results` for all to read, until the next call.
FASTREG_DEVICE void sum_group(SumPair terms, std::int64_t begin, int count, SumMemory memory) {
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / lanes;
  const int lane = thread % lanes;
  const bool adds = warp == 0 ? terms.l1 != nullptr : warp == 1 && terms.l2 != nullptr;
  double lane_sum = 0.0;
  int done = 0;
  do {
    const int part = count - done < tile_size ? count - done : tile_size;
    // All loads before the first store, which would wait for its own load and let none pass.
    double l1[fetches];
    double l2[fetches];
    FASTREG_UNROLL
    for (int k = 0; k < fetches; ++k) {
      const int i = k * threads_per_block + thread;
      l1[k] = terms.l1 != nullptr && i < part ? load_written(terms.l1 + begin + done + i) : 0.0;
      l2[k] = terms.l2 != nullptr && i < part ? load_written(terms.l2 + begin + done + i) : 0.0;
    }
    FASTREG_UNROLL
    for (int k = 0; k < fetches; ++k) {
      const int i = k * threads_per_block + thread;
      memory.tiles[i] = l1[k];
      memory.tiles[tile_size + i] = l2[k];
    }
    __syncthreads();  // the tiles are full
    if (adds) {
      for (int i = lane; i < part; i += lanes) {
        lane_sum += memory.tiles[warp * tile_size + i];
      }
    }
    __syncthreads();  // the tiles may be filled again, and the results of the last call have been read
    done += part;
  } while (done < count);
  if (warp < 2) {
    lane_sum = halve_warp(lane_sum);
    if (lane == 0) {
      memory.results[warp] = lane_sum;
    }
  }
  __syncthreads();  // the results are there
}

// The sum of each group of `terms` to `l1` and `l2`, which may be the terms themselves; returns how many they are.
FASTREG_DEVICE std::int64_t sum_groups(SumPair terms, std::int64_t count, double* l1, double* l2, SumMemory memory) {
  const std::int64_t groups = chunk_count(count);
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t begin = g * chunk_size;
    sum_group(terms, begin, static_cast<int>(count - begin < chunk_size ? count - begin : chunk_size), memory);
    if (threadIdx.x == 0) {
      if (terms.l1 != nullptr) {
        l1[g] = memory.results[0];
      }
      if (terms.l2 != nullptr) {
        l2[g] = memory.results[1];
      }
    }
  }
  __syncthreads();  // the block sees what thread 0 has written
  return groups;
}

FASTREG_DEVICE SumPair of_terms(const Coefficients& strengths, const double* l1, const double* l2) {
  return {(strengths.terms & term_l1) != 0 ? l1 : nullptr, (strengths.terms & term_l2) != 0 ? l2 : nullptr};
}

// ---- zeros: whole numbers, exact in float64 whatever the order

// The sum of what the threads of a block have, to thread 0. `of_warps` is shared, a number for each warp; the block
// meets at another barrier before the next call.
FASTREG_DEVICE double sum_of_block(double number, double* of_warps) {
  number = halve_warp(number);
  if (threadIdx.x % lanes == 0) {
    of_warps[threadIdx.x / lanes] = number;
  }
  __syncthreads();  // the sums of the warps are there
  double sum = 0.0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < warps_per_block; ++warp) {
      sum += of_warps[warp];
    }
  }
  return sum;
}

// The zeros of a group of chunks, to thread 0.
FASTREG_DEVICE double zeros_of_group(const std::int32_t* chunk_zeros, const SumGroup& group, double* of_warps) {
  constexpr int batch = 4;
  int zeros = 0;
  FASTREG_NO_UNROLL
  for (int begin = static_cast<int>(threadIdx.x); begin < group.count; begin += batch * threads_per_block) {
    std::int32_t fetched[batch];
    FASTREG_UNROLL
    for (int k = 0; k < batch; ++k) {
      const int i = begin + k * threads_per_block;
      fetched[k] = i < group.count ? load_written(chunk_zeros + group.first_sum + i) : 0;
    }
    FASTREG_UNROLL
    for (const std::int32_t one : fetched) {
      zeros += one;
    }
  }
  return sum_of_block(zeros, of_warps);
}

// The zeros of all items, by the whole block.
FASTREG_DEVICE void finish_zeros(const SumWork& work, double* of_warps) {
  std::int64_t zeros = 0;
  for (std::int64_t i = threadIdx.x; i < work.item_count; i += threads_per_block) {
    zeros += load_written(work.zeros + i);
  }
  const double all = sum_of_block(static_cast<double>(zeros), of_warps);
  if (threadIdx.x == 0) {
    *work.total_zeros = static_cast<std::int64_t>(all);
  }
}

// ---- sums of groups

// The canonical sum of `count` terms by one warp, which leaves the sums of its groups in the places of the terms. For
// few terms: a row of 2^36 elements has 4096. All lanes get a number, lane 0 the sum.
FASTREG_DEVICE double sum_by_warp(double* terms, std::int64_t count, int lane) {
  constexpr int batch = 4;
  double sum = 0.0;
  do {
    const std::int64_t groups = chunk_count(count);
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t end = (g + 1) * chunk_size < count ? (g + 1) * chunk_size : count;
      sum = 0.0;
      for (std::int64_t i = g * chunk_size + lane; i < end; i += batch * lanes) {
        double fetched[batch];
        FASTREG_UNROLL
        for (int k = 0; k < batch; ++k) {
          // What is not there is +0, which changes no bit: no term is below +0.
          fetched[k] = i + k * lanes < end ? load_written(terms + i + k * lanes) : 0.0;
        }
        FASTREG_UNROLL
        for (const double term : fetched) {
          sum += term;
        }
      }
      sum = halve_warp(sum);
      if (groups > 1) {
        __syncwarp();  // the terms have been read
        if (lane == 0) {
          terms[g] = sum;
        }
      }
    }
    __syncwarp();  // the sums are there to be read
    count = groups;
  } while (count > 1);
  return sum;
}

// The values of rows of several groups, a warp for each: a large model has hundreds of them, of few groups.
template <bool counts>
FASTREG_DEVICE void finish_large_rows(const SumWork& work) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for (std::int64_t i = threadIdx.x / lanes; i < work.large_row_count; i += warps_per_block) {
    const LargeRow large = work.large_rows[i];
    const Row& row = work.rows[large.row];
    const Coefficients& strengths = work.strengths[row.strengths];
    const bool has_l1 = (strengths.terms & term_l1) != 0;
    const bool has_l2 = (strengths.terms & term_l2) != 0;
    const double l1 = has_l1 ? sum_by_warp(work.l1_group_sums + large.first_group, large.group_count, lane) : 0.0;
    const double l2 = has_l2 ? sum_by_warp(work.l2_group_sums + large.first_group, large.group_count, lane) : 0.0;
    if (lane == 0) {
      work.values[row.item] = penalty_value(strengths, l1, l2);
    }
    if constexpr (counts) {
      const double zeros = sum_by_warp(work.group_zeros + large.first_group, large.group_count, lane);
      if (lane == 0) {
        work.zeros[row.item] = static_cast<std::int64_t>(zeros);
      }
    }
  }
}

// What is left when all groups are summed: rows of several groups, and the total.
template <bool counts>
FASTREG_DEVICE void finish_sums(const SumWork& work, SumMemory memory, double* of_warps) {
  finish_large_rows<counts>(work);
  if (work.total != nullptr) {
    __syncthreads();  // the values that the block has just written
    if constexpr (counts) {
      finish_zeros(work, of_warps);
    }
    // A single value is a chunk too, so that -0.0 gives +0.0.
    std::int64_t count = sum_groups({work.values, nullptr}, work.item_count, work.total_sums, nullptr, memory);
    while (count > 1) {
      count = sum_groups({work.total_sums, nullptr}, count, work.total_sums, nullptr, memory);
    }
    if (threadIdx.x == 0) {
      *work.total = count == 0 ? 0.0 : work.total_sums[0];
    }
  }
}

// The values from the chunk sums, and their total. `counts`: with the zeros of proximal steps.
template <bool counts>
__global__ void FASTREG_BOUNDS(threads_per_block, blocks_per_processor(output_value, sizeof(double)))
    penalty_values(SumWork work) {
  FASTREG_SHARED(double, tiles, 2 * tile_size);
  FASTREG_SHARED(double, results, 2);
  FASTREG_SHARED(double, of_warps, counts ? warps_per_block : 1);
  FASTREG_SHARED(int, is_last, 1);
  const SumMemory memory{tiles, results};
  for (std::int64_t g = blockIdx.x; g < work.group_count; g += gridDim.x) {
    const SumGroup group = work.groups[g];
    const Row& row = work.rows[group.row];
    const Coefficients& strengths = work.strengths[row.strengths];
    sum_group(of_terms(strengths, work.l1_sums, work.l2_sums), group.first_sum, group.count, memory);
    if (threadIdx.x == 0) {
      if (group.is_all != 0) {
        work.values[row.item] = penalty_value(strengths, results[0], results[1]);
      } else {
        work.l1_group_sums[g] = results[0];
        work.l2_group_sums[g] = results[1];
      }
    }
    if constexpr (counts) {
      const double zeros = zeros_of_group(work.chunk_zeros, group, of_warps);
      if (threadIdx.x == 0) {
        if (group.is_all != 0) {
          work.zeros[row.item] = static_cast<std::int64_t>(zeros);
        } else {
          work.group_zeros[g] = zeros;
        }
      }
    }
  }
  if (work.large_row_count == 0 && work.total == nullptr) {
    return;
  }
  // The block that finishes last sees what all others have written: each fences its writes before it counts itself.
  if (threadIdx.x == 0) {
    __threadfence();
    is_last[0] = atomicAdd(work.finished, 1u) == gridDim.x - 1 ? 1 : 0;
    __threadfence();
  }
  __syncthreads();
  if (is_last[0] != 0) {
    finish_sums<counts>(work, memory, of_warps);
    if (threadIdx.x == 0) {
      atomicExch(work.finished, 0u);  // for the next launch, or the next replay of this one
    }
  }
}

}  // namespace fastreg::cuda
