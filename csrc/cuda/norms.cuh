// The device code of norms and of clipping by them (docs/numerics.md, 10 and 11). Chunks, warps and sums are those of
// kernel.cuh; what has no dense kernel, and what is taken times a power of 2, goes the way of strided.cuh.
#pragma once

#include <cstring>

#include "block.h"
#include "strided.cuh"

namespace fastreg::cuda {

// ---- magnitudes, in the order of their bits: infinities and NaN above all numbers

template <class Bits, class Real>
FASTREG_DEVICE Bits bits_of(Real x) {
  static_assert(sizeof(Bits) == sizeof(Real));
  Bits bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <class Real>
struct MagnitudeOf;
template <>
struct MagnitudeOf<float> {
  using type = std::uint32_t;
  static constexpr type infinity = 0x7f800000;
};
template <>
struct MagnitudeOf<double> {
  using type = std::uint64_t;
  static constexpr type infinity = 0x7ff0000000000000;
};

FASTREG_DEVICE double larger(double a, double b) {
  return bits_of<std::uint64_t>(a) < bits_of<std::uint64_t>(b) ? b : a;
}

// The largest magnitude of a warp, to lane 0.
FASTREG_DEVICE double largest_of_warp(double magnitude) {
  FASTREG_UNROLL
  for (int half = lanes / 2; half > 0; half /= 2) {
    magnitude = larger(magnitude, __shfl_down_sync(all_lanes, magnitude, static_cast<unsigned>(half)));
  }
  return magnitude;
}

// ---- chunks

// Numbers of zeros and of elements that are not finite share 32 bits: neither is beyond 4096 in a chunk.
constexpr int nonfinite_shift = 16;
static_assert(chunk_size < 1 << nonfinite_shift);

struct NormWork {
  ChunkWork chunks;  // the strengths are not looked at
  const StridedRow* strided_rows;
  const Axis* axes;
  double* maxima;          // one per chunk
  std::int32_t* counts;    // likewise
  int exponent;            // of strided rows alone
  const ClipState* state;  // not null: has the exponent, and without one there is nothing to do
};

// What one lane of a chunk has seen of elements of float32 or float64.
template <class E>
struct NormLane {
  using Real = typename E::Real;
  using Magnitude = typename MagnitudeOf<Real>::type;
  double l1 = 0.0;
  double l2 = 0.0;
  Real maximum = 0;
  int counts = 0;

  // What is not there is +0, but no zero of the tensor's.
  FASTREG_MEMBER void add(Real x, bool is_there) {
    const Real magnitude = fabs(x);
    const auto bits = bits_of<Magnitude>(magnitude);
    maximum = bits > bits_of<Magnitude>(maximum) ? magnitude : maximum;
    counts += is_there && bits == 0 ? 1 : 0;
    counts += bits >= MagnitudeOf<Real>::infinity ? 1 << nonfinite_shift : 0;
    l1 += static_cast<double>(magnitude);
    l2 = add_square<E>(static_cast<double>(x), l2);
  }

  FASTREG_MEMBER void write(const NormWork& work, std::int64_t chunk, int lane) const {
    const double l1_sum = halve_warp(l1);
    const double l2_sum = halve_warp(l2);
    const double most = largest_of_warp(static_cast<double>(maximum));
    const double all_counts = halve_warp(counts);
    if (lane == 0) {
      work.chunks.l1_sums[chunk] = l1_sum;
      work.chunks.l2_sums[chunk] = l2_sum;
      work.maxima[chunk] = most;
      work.counts[chunk] = static_cast<std::int32_t>(all_counts);
    }
  }
};

// Runs visit(first element of the lane, batch size, whether each is there) over one lane of a dense chunk.
template <class E, class Visit>
FASTREG_DEVICE void for_each_batch(const Row& row, std::int64_t chunk, int lane, Visit visit) {
  using Storage = typename E::Storage;
  const std::int64_t first = (chunk - row.first_chunk) * chunk_size;
  const std::int64_t rest = row.count - first;
  FASTREG_ASSUME_GLOBAL(row.weights);
  Storage* elements = const_cast<Storage*>(static_cast<const Storage*>(row.weights)) + first + lane;
  const int count = rest < chunk_size ? static_cast<int>(rest) : chunk_size;
  const int whole = count - count % (rows_in_flight<E> * lanes);
  FASTREG_NO_UNROLL
  for (int begin = 0; begin < whole; begin += rows_in_flight<E> * lanes) {
    visit.template operator()<rows_in_flight<E>, true>(elements + begin, rows_in_flight<E> * lanes);
  }
  FASTREG_NO_UNROLL
  for (int begin = whole; begin < count - lane; begin += 4 * lanes) {
    visit.template operator()<4, false>(elements + begin, count - lane - begin);
  }
}

template <class E>
__global__ void FASTREG_BOUNDS(threads_per_block, blocks_per_processor(output_value, sizeof(typename E::Storage)))
    norm_chunks(NormWork work) {
  using Storage = typename E::Storage;
  for_each_chunk_of_rows(work.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    NormLane<E> sums;
    for_each_batch<E>(work.chunks.rows[r], chunk, lane, [&]<int batch, bool whole>(const Storage* elements, int left) {
      Storage x[batch];
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        x[k] = whole || k * lanes < left ? elements[k * lanes] : Storage{};
      }
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        sums.add(Element<E>::widen(x[k]), whole || k * lanes < left);
      }
    });
    sums.write(work, chunk, lane);
  });
}

// Calls visit with the element type that is meant, of all that there are.
template <class Visit>
FASTREG_DEVICE void with_any_storage(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::f16:
      return visit(F16{});
    case DType::bf16:
      return visit(BF16{});
    case DType::f32:
      return visit(F32{});
    default:
      return with_storage<F64, output_value>(dtype, visit);
  }
}

// Elements of any layout and dtype, times 2^exponent. Only the square of a float64 can be rounded: of all others it is
// exact, and so the same as there.
[[maybe_unused]] static __global__ void FASTREG_BOUNDS(threads_per_block, strided_blocks_per_processor)
    strided_norm_chunks(NormWork work) {
  constexpr int batch = 4;
  FASTREG_SHARED(std::int64_t, starts, warps_per_block* max_axes);
  std::int64_t* own_starts = starts + threadIdx.x / lanes * max_axes;
  const int exponent = work.state != nullptr ? work.state->exponent : work.exponent;
  if (work.state != nullptr && exponent == 0) {
    return;
  }
  const StridedWork strided{work.chunks, work.strided_rows, work.axes};
  for_each_chunk_of_rows(work.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    NormLane<F64> sums;
    walk_strided_chunk<batch, false>(
        strided, r, chunk, lane, own_starts,
        [&](int begin, int count, const char* from, const std::int64_t (&offset)[batch], char*,
            const std::int64_t (&)[batch]) {
          double x[batch];
          with_any_storage(work.strided_rows[r].dtype, [&](auto element) {
            using Stored = decltype(element);
            using Storage = typename Stored::Storage;
            FASTREG_UNROLL
            for (int k = 0; k < batch; ++k) {
              const Storage stored =
                  begin + k * lanes < count ? *reinterpret_cast<const Storage*>(from + offset[k]) : Storage{};
              x[k] = static_cast<double>(Element<Stored>::widen(stored));
            }
          });
          FASTREG_UNROLL
          for (int k = 0; k < batch; ++k) {
            sums.add(exponent != 0 ? ldexp(x[k], exponent) : x[k], begin + k * lanes < count);
          }
        });
    sums.write(work, chunk, lane);
  });
}

// ---- norms from the sums of chunks

struct NormSums {
  const Row* rows;
  const SumGroup* groups;
  std::int64_t group_count;
  const LargeRow* large_rows;
  std::int64_t large_row_count;
  const double* l1_sums;  // per chunk, as are the next three
  const double* l2_sums;
  const double* maxima;
  const std::int32_t* counts;
  double* l1_group_sums;  // per group, as are the next four
  double* l2_group_sums;
  double* group_maxima;
  double* group_zeros;
  double* group_nonfinite;
  Norm* norms;  // per item
  std::int64_t item_count;
  unsigned int* finished;  // blocks; 0 before and after
  // Of a clip, else null.
  double* squares;     // per item
  double* total_sums;  // one per 4096 items
  ClipState* state;
  double* norm;  // the caller's
  double max_norm;
  bool is_again;  // with the exponent that the first pass has found, or not at all
};

struct NormShared {
  SumMemory sums;
  double* zeros;  // one per warp, as are the next two
  double* nonfinite;
  double* maxima;
};

// The largest magnitude that the threads of a block have, to thread 0; see sum_of_block.
FASTREG_DEVICE double largest_of_block(double magnitude, double* of_warps) {
  magnitude = largest_of_warp(magnitude);
  if (threadIdx.x % lanes == 0) {
    of_warps[threadIdx.x / lanes] = magnitude;
  }
  __syncthreads();  // the maxima of the warps are there
  double most = 0.0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < warps_per_block; ++warp) {
      most = larger(most, of_warps[warp]);
    }
  }
  return most;
}

FASTREG_DEVICE Norm make_norm(double l1, double l2, double maximum, double zeros, double nonfinite) {
  Norm norm;
  norm.l1 = l1;
  norm.l2 = l2;
  norm.maximum = maximum;
  norm.zeros = static_cast<std::int64_t>(zeros);
  norm.nonfinite = static_cast<std::int64_t>(nonfinite);
  return norm;
}

FASTREG_DEVICE void write_norm(const NormSums& work, std::int64_t item, const Norm& norm) {
  if (!work.is_again) {
    work.norms[item] = norm;
  }
  if (work.squares != nullptr) {
    work.squares[item] = norm.l2;
  }
}

FASTREG_DEVICE void sum_norm_group(const NormSums& work, std::int64_t g, NormShared memory) {
  const SumGroup group = work.groups[g];
  sum_group({work.l1_sums, work.l2_sums}, group.first_sum, group.count, memory.sums);
  double most = 0.0;
  int zeros = 0;
  int nonfinite = 0;
  FASTREG_NO_UNROLL
  for (int i = static_cast<int>(threadIdx.x); i < group.count; i += threads_per_block) {
    most = larger(most, load_written(work.maxima + group.first_sum + i));
    const std::int32_t counts = load_written(work.counts + group.first_sum + i);
    zeros += counts & ((1 << nonfinite_shift) - 1);
    nonfinite += counts >> nonfinite_shift;
  }
  const double all_zeros = sum_of_block(zeros, memory.zeros);
  const double all_nonfinite = sum_of_block(nonfinite, memory.nonfinite);
  most = largest_of_block(most, memory.maxima);
  if (threadIdx.x == 0) {
    const double* results = memory.sums.results;
    if (group.is_all != 0) {
      write_norm(work, work.rows[group.row].item, make_norm(results[0], results[1], most, all_zeros, all_nonfinite));
    } else {
      work.l1_group_sums[g] = results[0];
      work.l2_group_sums[g] = results[1];
      work.group_maxima[g] = most;
      work.group_zeros[g] = all_zeros;
      work.group_nonfinite[g] = all_nonfinite;
    }
  }
}

// A warp for each row of several groups.
FASTREG_DEVICE void finish_large_norms(const NormSums& work) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for (std::int64_t i = threadIdx.x / lanes; i < work.large_row_count; i += warps_per_block) {
    const LargeRow large = work.large_rows[i];
    double most = 0.0;
    for (std::int64_t g = lane; g < large.group_count; g += lanes) {
      most = larger(most, load_written(work.group_maxima + large.first_group + g));
    }
    most = largest_of_warp(most);
    const double l1 = sum_by_warp(work.l1_group_sums + large.first_group, large.group_count, lane);
    const double l2 = sum_by_warp(work.l2_group_sums + large.first_group, large.group_count, lane);
    const double zeros = sum_by_warp(work.group_zeros + large.first_group, large.group_count, lane);
    const double nonfinite = sum_by_warp(work.group_nonfinite + large.first_group, large.group_count, lane);
    if (lane == 0) {
      write_norm(work, work.rows[large.row].item, make_norm(l1, l2, most, zeros, nonfinite));
    }
  }
}

// What elements are taken times, as a power of 2, so that float64 holds their squares; 0 where it does as they are.
FASTREG_DEVICE int exponent_for(double maximum) {
  constexpr int most = 400;
  constexpr int bias = 1023;
  constexpr int fraction_bits = 52;
  const std::uint64_t bits = bits_of<std::uint64_t>(maximum);
  if (bits == 0 || bits >= MagnitudeOf<double>::infinity) {
    return 0;
  }
  int exponent = static_cast<int>(bits >> fraction_bits) - bias;
  if (exponent == -bias) {  // subnormal: 2^64 times it is not
    exponent = static_cast<int>(bits_of<std::uint64_t>(maximum * 0x1p64) >> fraction_bits) - bias - 64;
  }
  return exponent >= -most && exponent <= most ? 0 : -exponent;
}

// min(1, max_norm / (norm + 1e-6)), NaN where that is; large norms by the numbers times 2^exponent.
FASTREG_DEVICE double clip_factor(double norm, double scaled_norm, int exponent, double max_norm) {
  double epsilon = 1e-6;
  if (exponent < 0) {
    norm = scaled_norm;
    max_norm = ldexp(max_norm, exponent);
    epsilon = ldexp(epsilon, exponent);
  }
  const double factor = max_norm / (norm + epsilon);
  return factor > 1.0 ? 1.0 : factor;
}

// Norm and factor of all items together, by the block that finishes last.
FASTREG_DEVICE void finish_clip(const NormSums& work, NormShared memory) {
  double most = 0.0;
  for (std::int64_t i = threadIdx.x; i < work.item_count; i += threads_per_block) {
    most = larger(most, load_written(&work.norms[i].maximum));
  }
  most = largest_of_block(most, memory.maxima);
  std::int64_t count = sum_groups({work.squares, nullptr}, work.item_count, work.total_sums, nullptr, memory.sums);
  while (count > 1) {
    count = sum_groups({work.total_sums, nullptr}, count, work.total_sums, nullptr, memory.sums);
  }
  if (threadIdx.x == 0) {
    const double scaled_norm = sqrt(count == 0 ? 0.0 : work.total_sums[0]);
    const int exponent = work.is_again ? work.state->exponent : exponent_for(most);
    const double norm = ldexp(scaled_norm, work.is_again ? -exponent : 0);
    const double factor = clip_factor(norm, scaled_norm, work.is_again ? exponent : 0, work.max_norm);
    const bool is_finite = bits_of<std::uint64_t>(most) < MagnitudeOf<double>::infinity;
    *work.state = {norm, factor, exponent, is_finite ? 1 : 0};
    *work.norm = norm;
  }
}

// The norms of the items, and of a clip its factor.
[[maybe_unused]] static __global__ void FASTREG_BOUNDS(threads_per_block, 3) norm_values(NormSums work) {
  FASTREG_SHARED(double, tiles, 2 * tile_size);
  FASTREG_SHARED(double, results, 2);
  FASTREG_SHARED(double, of_warps, 3 * warps_per_block);
  FASTREG_SHARED(int, is_last, 1);
  const NormShared memory{{tiles, results}, of_warps, of_warps + warps_per_block, of_warps + 2 * warps_per_block};
  if (work.is_again && work.state->exponent == 0) {
    return;
  }
  for (std::int64_t g = blockIdx.x; g < work.group_count; g += gridDim.x) {
    sum_norm_group(work, g, memory);
  }
  if (work.large_row_count == 0 && work.state == nullptr) {
    return;
  }
  // As in penalty_values.
  if (threadIdx.x == 0) {
    __threadfence();
    is_last[0] = atomicAdd(work.finished, 1u) == gridDim.x - 1 ? 1 : 0;
    __threadfence();
  }
  __syncthreads();
  if (is_last[0] != 0) {
    finish_large_norms(work);
    __syncthreads();  // the norms that the block has just written
    if (work.state != nullptr) {
      finish_clip(work, memory);
    }
    if (threadIdx.x == 0) {
      atomicExch(work.finished, 0u);  // for the next launch, or the next replay of this one
    }
  }
}

// ---- scaling

struct ScaleWork {
  ChunkWork chunks;
  const StridedRow* strided_rows;
  const Axis* axes;
  double factor;
  const ClipState* state;  // not null: has the factor
};

template <class E>
FASTREG_DEVICE typename E::Storage scaled(typename E::Storage x, typename E::Real factor) {
  return Element<E>::narrow(Element<E>::widen(x) * factor);
}

template <class E>
__global__ void FASTREG_BOUNDS(threads_per_block, blocks_per_processor(output_value, sizeof(typename E::Storage)))
    scale_chunks(ScaleWork work) {
  using Storage = typename E::Storage;
  const double wanted = work.state != nullptr ? work.state->factor : work.factor;
  if (wanted == 1.0) {
    return;
  }
  const auto factor = static_cast<typename E::Real>(wanted);
  for_each_chunk_of_rows(work.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    for_each_batch<E>(work.chunks.rows[r], chunk, lane, [&]<int batch, bool whole>(Storage* elements, int left) {
      Storage x[batch];
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        x[k] = whole || k * lanes < left ? elements[k * lanes] : Storage{};
      }
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        if (whole || k * lanes < left) {
          elements[k * lanes] = scaled<E>(x[k], factor);
        }
      }
    });
  });
}

// Strided rows that compute as E does.
template <class E>
__global__ void FASTREG_BOUNDS(threads_per_block, strided_blocks_per_processor) strided_scale_chunks(ScaleWork work) {
  constexpr int batch = 4;
  FASTREG_SHARED(std::int64_t, starts, warps_per_block* max_axes);
  std::int64_t* own_starts = starts + threadIdx.x / lanes * max_axes;
  const double wanted = work.state != nullptr ? work.state->factor : work.factor;
  if (wanted == 1.0) {
    return;
  }
  const auto factor = static_cast<typename E::Real>(wanted);
  const StridedWork strided{work.chunks, work.strided_rows, work.axes};
  for_each_chunk_of_rows(work.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    walk_strided_chunk<batch, false>(strided, r, chunk, lane, own_starts,
                                     [&](int begin, int count, const char* from, const std::int64_t (&offset)[batch],
                                         char*, const std::int64_t (&)[batch]) {
                                       char* elements = const_cast<char*>(from);
                                       with_storage<E, output_gradient>(work.strided_rows[r].dtype, [&](auto element) {
                                         using Stored = decltype(element);
                                         using Storage = typename Stored::Storage;
                                         FASTREG_UNROLL
                                         for (int k = 0; k < batch; ++k) {
                                           if (begin + k * lanes < count) {
                                             auto* place = reinterpret_cast<Storage*>(elements + offset[k]);
                                             *place = scaled<Stored>(*place, factor);
                                           }
                                         }
                                       });
                                     });
  });
}

}  // namespace fastreg::cuda
