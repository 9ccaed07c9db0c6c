// The CPU kernel of proximal steps; compiled as kernel.cpp is, and like it exports its table alone.
//
// One pass over memory, in blocks that stay in L1: a block's proximal steps are written, then what has been written is
// added to the lane sums, and its zeros are counted. The penalty is that of the elements as they are stored.
#include <cstring>

#include "../prox.inl"
#include "fetch.h"
#include "kernel.h"
#include "lane_sums.h"
#include "magnitudes.h"
#include "vec.h"

namespace fastreg {
namespace {

using Sums = LaneSums<FASTREG_VECTOR_BYTES>;

template <Variant variant, class E, unsigned terms, bool wants_value>
struct ProxKernel {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Memory = Access<E>;
  static constexpr bool converts = !Memory::is_compute_type;
  static constexpr int block_size = 32 * lanes_per_chunk;
  static constexpr int elements_per_store = Memory::registers_per_store * real_lanes<Real>;
  static_assert(lanes_per_chunk % elements_per_store == 0 && chunk_size % block_size == 0);

  struct Thresholds {
    Vector<Real> t1;
    Vector<Real> t2;
  };

  // Of what is stored, in the type of the arithmetic: in place, or half precision widened.
  FASTREG_INLINE const Real* widened(const Storage* stored, int count, Real* memory) {
    if constexpr (converts) {
      for (int i = 0; i < count; i += real_lanes<Real>) {
        store_vector(memory + i, Memory::load(stored + i));
      }
      return memory;
    } else {
      return stored;
    }
  }

  FASTREG_INLINE void write_steps(const Storage* from, Storage* to, int count, Thresholds thresholds) {
    for (int i = 0; i < count; i += elements_per_store) {
      fetch_ahead<variant, elements_per_store* static_cast<int>(sizeof(Storage))>(from + i);
      Vector<Real> computed[Memory::registers_per_store];
      for (int k = 0; k < Memory::registers_per_store; ++k) {
        computed[k] = proximal_step<VectorOps<Real>, terms>(Memory::load(from + i + k * real_lanes<Real>),
                                                            thresholds.t1, thresholds.t2);
      }
      store_vector(to + i, Memory::narrow(computed));
    }
  }

  // `count` is a multiple of 32; returns the number of zeros.
  FASTREG_INLINE std::int64_t run_block(const Storage* from, Storage* to, int count, Sums& sums,
                                        Thresholds thresholds) {
    if constexpr (terms != 0) {
      write_steps(from, to, count, thresholds);
    } else if (from != to) {
      std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(Storage));
    }
    if constexpr (wants_value) {
      if constexpr (terms != 0) {
        alignas(64) Real memory[converts ? block_size : 1];
        add_rows<terms, sizeof(Storage) == sizeof(double), false>(widened(to, count, memory), count / lanes_per_chunk,
                                                                  sums);
      }
      return count_zeros<E>(to, count);
    }
    return 0;
  }

  // The last row may be short: it is padded with zeros, which change no sum and are not counted.
  FASTREG_INLINE std::int64_t run_short_row(const Storage* from, Storage* to, int elements, Sums& sums,
                                            Thresholds thresholds) {
    alignas(64) Storage padded[lanes_per_chunk] = {};
    const std::size_t bytes = static_cast<std::size_t>(elements) * sizeof(Storage);
    std::memcpy(padded, from, bytes);
    const std::int64_t zeros = run_block(padded, padded, lanes_per_chunk, sums, thresholds);
    std::memcpy(to, padded, bytes);
    return zeros - (lanes_per_chunk - elements);
  }

  static void run(const KernelArguments& arguments) {
    const Storage* from = static_cast<const Storage*>(arguments.weights);
    Storage* to = static_cast<Storage*>(arguments.gradients);
    const Thresholds thresholds = {broadcast(static_cast<Real>(arguments.gradient_l1)),
                                   broadcast(static_cast<Real>(arguments.gradient_l2))};
    std::int64_t left = arguments.count;
    for (std::int64_t chunk = 0; left > 0; ++chunk) {
      int elements = left < chunk_size ? static_cast<int>(left) : chunk_size;
      left -= elements;
      Sums sums;
      std::int64_t zeros = 0;
      while (elements >= lanes_per_chunk) {
        const int whole = elements - elements % lanes_per_chunk;
        const int count = whole < block_size ? whole : block_size;
        zeros += run_block(from, to, count, sums, thresholds);
        from += count;
        to += count;
        elements -= count;
      }
      if (elements != 0) {
        zeros += run_short_row(from, to, elements, sums, thresholds);
      }
      if constexpr (wants_value) {
        arguments.zeros[chunk] = zeros;
        if constexpr ((terms & term_l1) != 0) {
          arguments.l1_sums[chunk] = halve(sums.l1);
        }
        if constexpr ((terms & term_l2) != 0) {
          arguments.l2_sums[chunk] = halve(sums.l2);
        }
      }
    }
  }
};

template <Variant variant, class E, unsigned terms>
constexpr void fill_cells(ProxCells& cells, DType dtype) {
  cells.kernels[static_cast<int>(dtype)][terms][0] = ProxKernel<variant, E, terms, false>::run;
  cells.kernels[static_cast<int>(dtype)][terms][1] = ProxKernel<variant, E, terms, true>::run;
}

template <Variant variant, class E>
constexpr void fill_terms(ProxCells& cells, DType dtype) {
  fill_cells<variant, E, 0>(cells, dtype);
  fill_cells<variant, E, term_l1>(cells, dtype);
  fill_cells<variant, E, term_l2>(cells, dtype);
  fill_cells<variant, E, term_l1 | term_l2>(cells, dtype);
}

template <Variant variant>
constexpr ProxCells make_cells() {
  ProxCells cells{};
  fill_terms<variant, F16>(cells, DType::f16);
  fill_terms<variant, BF16>(cells, DType::bf16);
  fill_terms<variant, F32>(cells, DType::f32);
  fill_terms<variant, F64>(cells, DType::f64);
  return cells;
}

// Steps in caches are plain ones: nothing else was measured.
constexpr Variant step_kernels_of(Variant variant) { return kernels_of(fetches_of(variant)); }

}  // namespace

namespace FASTREG_ISA {
constexpr ProxCells prox_cells[variant_count] = {
    make_cells<step_kernels_of(Variant::plain)>(),  make_cells<step_kernels_of(Variant::near)>(),
    make_cells<step_kernels_of(Variant::far)>(),    make_cells<step_kernels_of(Variant::pairs)>(),
    make_cells<step_kernels_of(Variant::cached)>(), make_cells<step_kernels_of(Variant::whole)>()};
}

}  // namespace fastreg
