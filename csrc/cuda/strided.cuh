// The device code for what the kernels of kernel.cuh do not take: tensors with gaps or of negative or zero strides,
// gradients that lie in memory in another order than their weights, and integers.
//
// The order of elements is that of csrc/layout.h, which the core has turned into axes (table.h). As in kernel.cuh a
// warp takes a chunk and thread j is lane j; what differs is that each element's place is worked out. There are few
// kernels, for this is the slow path: one for each type that gradients are computed in and each cell, with the storage
// type looked up for every few elements.
#pragma once

#include "kernel.cuh"

namespace fastreg::cuda {

// All need the registers of a gradient, for places rather than for elements.
constexpr int strided_blocks_per_processor = blocks_per_processor(output_gradient, sizeof(double));

struct StridedWork {
  ChunkWork chunks;
  const StridedRow* rows;
  const Axis* axes;
};

// Integers are numbers of float64; bool is one byte.
template <class Integer>
struct Whole {
  using Storage = Integer;
  using Real = double;
};

// Calls visit with the element type that is meant, of those that compute as E does. Integers have no gradient.
template <class E, unsigned outputs, class Visit>
FASTREG_DEVICE void with_storage(DType dtype, Visit visit) {
  if constexpr (sizeof(typename E::Real) == sizeof(float)) {
    switch (dtype) {
      case DType::f16:
        return visit(F16{});
      case DType::bf16:
        return visit(BF16{});
      default:
        return visit(F32{});
    }
  } else if constexpr ((outputs & output_gradient) != 0) {
    visit(F64{});
  } else {
    switch (dtype) {
      case DType::boolean:
      case DType::u8:
        return visit(Whole<std::uint8_t>{});
      case DType::i8:
        return visit(Whole<std::int8_t>{});
      case DType::i16:
        return visit(Whole<std::int16_t>{});
      case DType::i32:
        return visit(Whole<std::int32_t>{});
      case DType::i64:
        return visit(Whole<std::int64_t>{});
      case DType::u16:
        return visit(Whole<std::uint16_t>{});
      case DType::u32:
        return visit(Whole<std::uint32_t>{});
      case DType::u64:
        return visit(Whole<std::uint64_t>{});
      default:
        return visit(F64{});
    }
  }
}

// ---- places

// Where a chunk's first element is along an axis.
FASTREG_DEVICE std::int64_t start_of(const Axis& axis, std::int64_t element) {
  const auto whole_turns = static_cast<std::uint64_t>(element) / static_cast<std::uint64_t>(axis.inside);
  return static_cast<std::int64_t>(whole_turns % static_cast<std::uint64_t>(axis.extent));
}

// How often an axis is passed by `carry` steps along it from `start`; carry < 4320 (see Axis). No axis is too long for
// 32 bits: one beyond most_span is passed once or not at all, as is one of most_span that ends as near.
FASTREG_DEVICE std::uint32_t carry_of(const Axis& axis, std::int64_t start, std::uint32_t carry) {
  const std::int64_t to_go = axis.extent - start;
  const std::int64_t span = axis.span;
  const std::uint32_t place = axis.span - static_cast<std::uint32_t>(to_go < span ? to_go : span);
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(place + carry) * axis.reciprocal >> 32);
}

// ---- chunks

// Runs visit(begin, count, weights, weight_offset, gradients, gradient_offset) for each batch of a lane's elements of a
// chunk, by a whole warp: element `begin` + k * lanes of the chunk, if below `count`, lies at offset k. `starts` is
// shared memory of the warp's, for max_axes numbers.
template <int batch, bool both, class Visit>
FASTREG_DEVICE void walk_strided_chunk(const StridedWork& work, std::int64_t r, std::int64_t chunk, int lane,
                                       std::int64_t* starts, Visit visit) {
  const Row& row = work.chunks.rows[r];
  const StridedRow& strided = work.rows[r];
  const Axis* axes = work.axes + strided.first_axis;
  const std::int64_t first = (chunk - row.first_chunk) * chunk_size;
  const std::int64_t rest = row.count - first;
  const int count = rest < chunk_size ? static_cast<int>(rest) : chunk_size;

  __syncwarp();  // the starts of the last chunk have been read
  for (int a = lane; a < strided.axis_count; a += lanes) {
    starts[a] = start_of(axes[a], first);
  }
  __syncwarp();  // the starts are there
  FASTREG_ASSUME_GLOBAL(row.weights);
  const char* weights = static_cast<const char*>(row.weights);
  char* gradients = nullptr;
  if constexpr (both) {
    FASTREG_ASSUME_GLOBAL(row.gradients);
    gradients = static_cast<char*>(row.gradients);
  }
  FASTREG_NO_UNROLL
  for (int a = 0; a < strided.axis_count; ++a) {
    weights += starts[a] * axes[a].weight_stride;
    if constexpr (both) {
      gradients += starts[a] * axes[a].gradient_stride;
    }
  }

  FASTREG_NO_UNROLL
  for (int begin = lane; begin < count; begin += batch * lanes) {
    std::uint32_t carry[batch];
    std::int64_t weight_offset[batch];
    std::int64_t gradient_offset[batch];
    FASTREG_UNROLL
    for (int k = 0; k < batch; ++k) {
      carry[k] = static_cast<std::uint32_t>(begin + k * lanes);
      weight_offset[k] = 0;
      gradient_offset[k] = 0;
    }
    FASTREG_NO_UNROLL
    for (int a = 0; a < strided.axis_count; ++a) {
      const Axis& axis = axes[a];
      const std::int64_t start = starts[a];
      FASTREG_UNROLL
      for (int k = 0; k < batch; ++k) {
        weight_offset[k] += carry[k] * axis.weight_step;
        if constexpr (both) {
          gradient_offset[k] += carry[k] * axis.gradient_step;
        }
        carry[k] = carry_of(axis, start, carry[k]);
      }
    }
    visit(begin, count, weights, weight_offset, gradients, gradient_offset);
  }
}

// One chunk of a strided row, by a whole warp; see walk_strided_chunk.
template <class E, unsigned terms, unsigned outputs>
FASTREG_DEVICE void run_strided_chunk(const StridedWork& work, std::int64_t r, const Coefficients& strengths,
                                      std::int64_t chunk, int lane, std::int64_t* starts) {
  using Real = typename E::Real;
  constexpr bool writes = (outputs & output_gradient) != 0;
  constexpr bool adds = (outputs & output_add) != 0;
  // Elements at once: the places of both arrays want registers too.
  constexpr int batch = writes ? 4 : 8;
  const StridedRow& strided = work.rows[r];
  const Real gradient_l1 = static_cast<Real>(strengths.gradient_l1);
  const Real gradient_l2 = static_cast<Real>(strengths.gradient_l2);
  LaneSums sums;
  walk_strided_chunk<batch, writes>(
      work, r, chunk, lane, starts,
      [&](int begin, int count, const char* weights, const std::int64_t (&weight_offset)[batch], char* gradients,
          const std::int64_t (&gradient_offset)[batch]) {
        // Loads, each of what is there: the others are +0, which changes no bit of a sum.
        const auto fetch = [&](const char* from, const std::int64_t (&offset)[batch], Real(&to)[batch]) {
          with_storage<E, outputs>(strided.dtype, [&](auto element) {
            using Stored = decltype(element);
            typename Stored::Storage stored[batch];
            FASTREG_UNROLL
            for (int k = 0; k < batch; ++k) {
              stored[k] = begin + k * lanes < count
                              ? *reinterpret_cast<const typename Stored::Storage*>(from + offset[k])
                              : typename Stored::Storage{};
            }
            FASTREG_UNROLL
            for (int k = 0; k < batch; ++k) {
              to[k] = static_cast<Real>(Element<Stored>::widen(stored[k]));
            }
          });
        };
        Real x[batch] = {};
        Real old[batch] = {};
        if constexpr (terms != 0 || is_prox(outputs)) {
          fetch(weights, weight_offset, x);
        }
        if constexpr (adds) {
          fetch(gradients, gradient_offset, old);
        }
        Real gradient[batch];
        FASTREG_UNROLL
        for (int k = 0; k < batch; ++k) {
          if constexpr (is_prox(outputs)) {
            gradient[k] = stored_step<E, terms>(x[k], gradient_l1, gradient_l2);
          } else {
            add_terms<E, terms, outputs>(x[k], sums);
            if constexpr (writes) {
              gradient[k] = new_gradient<E, terms, outputs>(x[k], old[k], gradient_l1, gradient_l2);
            }
          }
        }
        if constexpr (writes) {
          with_storage<E, outputs>(strided.dtype, [&](auto element) {
            using Stored = decltype(element);
            FASTREG_UNROLL
            for (int k = 0; k < batch; ++k) {
              const auto element_to_store = Element<Stored>::narrow(gradient[k]);
              const bool is_there = begin + k * lanes < count;
              if (is_there) {
                *reinterpret_cast<typename Stored::Storage*>(gradients + gradient_offset[k]) = element_to_store;
              }
              if constexpr (is_prox(outputs)) {
                add_stored<E, terms, outputs>(Element<Stored>::widen(element_to_store), is_there, sums);
              }
            }
          });
        }
      });
  write_sums<terms, outputs>(work.chunks, chunk, lane, sums);
}

// All chunks of the strided rows that compute as E does.
template <class E, unsigned outputs>
__global__ void FASTREG_BOUNDS(threads_per_block, strided_blocks_per_processor) strided_chunks(StridedWork work) {
  FASTREG_SHARED(std::int64_t, starts, warps_per_block* max_axes);
  std::int64_t* own_starts = starts + threadIdx.x / lanes * max_axes;
  for_each_chunk<outputs>(work.chunks, [&]<unsigned terms, unsigned cell>(std::int64_t r, const Coefficients& strengths,
                                                                          std::int64_t chunk, int lane) {
    run_strided_chunk<E, terms, cell>(work, r, strengths, chunk, lane, own_starts);
  });
}

}  // namespace fastreg::cuda
