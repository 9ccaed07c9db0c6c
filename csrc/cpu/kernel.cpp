// The CPU kernel. Compiled once per instruction set with
//   FASTREG_ISA           the namespace of its table: portable, avx2, avx512, neon
//   FASTREG_VECTOR_BYTES  the width of a register
//   -ffp-contract=off     the contract rounds every operation
// All but the table has internal linkage, and nothing here is to be optimised at link time (see vec.h).
//
// One pass over memory, in blocks that stay in L1: a block's weights are converted to the compute type (half precision
// only), then added to the lane sums, then turned into its gradients. A row is 32 elements, one per lane; lanes are
// added in groups of four float64 registers per sum, so that the accumulators of both sums (8 registers) and the
// temporaries fit the 16 registers of SSE2 and AVX2. With AVX-512 a group is the whole row.
#include "kernel.h"

#include <cstring>

#include "../canonical_sum.h"
#include "../penalty.inl"
#include "vec.h"

namespace fastreg {
namespace {

constexpr int registers_per_group = 4;
constexpr int group_lanes = registers_per_group * wide_lanes;
constexpr int groups = lanes_per_chunk / group_lanes;
static_assert(lanes_per_chunk % group_lanes == 0);

constexpr int line_bytes = 64;
// How far ahead the weights and the old gradients are fetched: L1 has few lines in flight, L2 more, and the hardware's
// own fetching stops at every 4 KiB page.
constexpr int near_distance = 4096;
constexpr int far_distance = 8192;

// Fetches what lies ahead of the `bytes` at `address`. Unrolled, for each variant: a loop that could be told otherwise
// cost 10 to 26 % in cache.
template <Variant variant, std::uintptr_t bytes>
FASTREG_INLINE void fetch_ahead([[maybe_unused]] const void* address) {
  if constexpr (variant != Variant::plain) {
    // As an integer: the place may lie past the array's end, where a pointer must not be formed.
    const auto here = reinterpret_cast<std::uintptr_t>(address);
    constexpr int into_l2 = 2;
    for (std::uintptr_t line = 0; line < bytes; line += line_bytes) {
      if constexpr (variant == Variant::near || variant == Variant::far) {
        __builtin_prefetch(reinterpret_cast<const void*>(here + line + near_distance));
      }
      if constexpr (variant == Variant::far) {
        __builtin_prefetch(reinterpret_cast<const void*>(here + line + far_distance), 0, into_l2);
      }
      if constexpr (variant == Variant::l2) {
        __builtin_prefetch(reinterpret_cast<const void*>(here + line + near_distance), 0, into_l2);
      }
    }
  }
}

// The lane sums of one chunk, one register after the other.
struct LaneSums {
  Wide l1[groups * registers_per_group] = {};
  Wide l2[groups * registers_per_group] = {};
};

template <Variant variant, class E, unsigned terms, unsigned outputs, bool streaming>
struct PenaltyKernel {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Memory = Access<E>;
  static constexpr bool wants_value = (outputs & output_value) != 0;
  static constexpr bool wants_gradient = (outputs & output_gradient) != 0;
  static constexpr bool adds = (outputs & output_add) != 0;
  // A block of streaming stores has parts of lines at both ends, so there it is the whole chunk.
  static constexpr int rows_per_block = streaming ? chunk_size / lanes_per_chunk : 32;
  static constexpr int block_size = rows_per_block * lanes_per_chunk;
  static_assert(chunk_size % block_size == 0);
  static constexpr int elements_per_line = line_bytes / static_cast<int>(sizeof(Storage));
  // Which of the passes over a block is the first to touch its weights, and so fetches those to come.
  static constexpr bool converts = !Memory::is_compute_type;
  static constexpr bool sum_fetches = !converts;
  static constexpr bool gradient_fetches = !converts && !wants_value;

  template <std::uintptr_t bytes>
  FASTREG_INLINE void prefetch(const void* address) {
    fetch_ahead<variant, bytes>(address);
  }

  struct Coefficients {
    Vector<Real> l1;
    Vector<Real> l2;
  };

  // ---- the passes over a block; `count` is a multiple of 32

  // Widens half precision: to magnitudes for the sums of |w|, since a register holds twice as many floats as float64
  // whose sign would have to go, and to the numbers themselves for gradients. Squares take either.
  static constexpr bool sums_magnitudes = wants_value && (!wants_gradient || (terms & term_l1) != 0);

  FASTREG_INLINE void convert(const Storage* weights, int count, Real* magnitudes, Real* numbers) {
    for (int i = 0; i < count; i += lanes_per_chunk) {
      prefetch<lanes_per_chunk* static_cast<int>(sizeof(Storage))>(weights + i);
      for (int k = i; k < i + lanes_per_chunk; k += real_lanes<Real>) {
        const Vector<Real> x = Memory::load(weights + k);
        if constexpr (sums_magnitudes) {
          store_vector(magnitudes + k, absolute<Real>(x));
        }
        if constexpr (wants_gradient) {
          store_vector(numbers + k, x);
        }
      }
    }
  }

  FASTREG_INLINE void add_group(const Real* weights, int count, Wide* l1_sums, Wide* l2_sums) {
    Wide l1[registers_per_group];
    Wide l2[registers_per_group];
    for (int k = 0; k < registers_per_group; ++k) {
      l1[k] = l1_sums[k];
      l2[k] = l2_sums[k];
    }
    for (int i = 0; i < count; i += lanes_per_chunk) {
      if constexpr (sum_fetches) {
        prefetch<group_lanes* static_cast<int>(sizeof(Real))>(weights + i);
      }
      for (int k = 0; k < registers_per_group; ++k) {
        const Wide x = load_wide(weights + i + k * wide_lanes);
        if constexpr ((terms & term_l1) != 0) {
          l1[k] += converts ? x : absolute<double>(x);
        }
        if constexpr ((terms & term_l2) != 0) {
          // Only the square of a float64 is rounded before it is added, and must not be fused.
          l2[k] = sizeof(Storage) == sizeof(double) ? l2[k] + x * x : add_exact_product<double>(x, x, l2[k]);
        }
      }
    }
    for (int k = 0; k < registers_per_group; ++k) {
      l1_sums[k] = l1[k];
      l2_sums[k] = l2[k];
    }
  }

  FASTREG_INLINE void add_to_sums(const Real* weights, int count, LaneSums& sums) {
    for (int group = 0; group < groups; ++group) {
      add_group(weights + group * group_lanes, count, sums.l1 + group * registers_per_group,
                sums.l2 + group * registers_per_group);
    }
  }

  // What one store takes. Loads and stores alternate: a compiler that may choose writes lines backwards, at half the
  // speed.
  static constexpr int elements_per_store = Memory::registers_per_store * real_lanes<Real>;
  static_assert(lanes_per_chunk % elements_per_store == 0);

  template <bool past_caches>
  FASTREG_INLINE void write_gradients_at(const Real* weights, Storage* gradients, Storage* target,
                                         Coefficients coefficients) {
    Vector<Real> computed[Memory::registers_per_store];
    for (int i = 0; i < Memory::registers_per_store; ++i) {
      const int offset = i * real_lanes<Real>;
      computed[i] = penalty_gradient<VectorOps<Real>, terms>(load_vector<Vector<Real>>(weights + offset),
                                                             coefficients.l1, coefficients.l2);
      if constexpr (adds) {
        computed[i] = Memory::load(gradients + offset) + computed[i];
      }
    }
    if constexpr (past_caches) {
      stream_vector(target, Memory::narrow(computed));
    } else {
      store_vector(target, Memory::narrow(computed));
    }
  }

  // How many elements lie before the first line of the gradients: a store that crosses lines costs two, and arrays of
  // NumPy start 16 bytes into a line. Other offsets than multiples of 16 bytes are rare, and written as they lie.
  FASTREG_INLINE int elements_to_line(const Storage* gradients) {
    const auto bytes = -reinterpret_cast<std::uintptr_t>(gradients) % line_bytes;
    return bytes % 16 == 0 ? static_cast<int>(bytes / sizeof(Storage)) : 0;
  }

  // Whole lines, and the parts of lines at both ends. Streaming stores write whole lines only: a line written past the
  // caches and through them is written twice.
  template <bool past_caches>
  FASTREG_INLINE void write_gradients(const Real* weights, Storage* gradients, int count, Coefficients coefficients) {
    // In a small array the parts of lines would cost more than the stores that cross.
    int i = past_caches || count == block_size ? elements_to_line(gradients) : 0;
    if (i != 0) {
      write_part_of_line(weights, gradients, 0, i, coefficients);
    }
    for (; i + elements_per_line <= count; i += elements_per_line) {
      if constexpr (gradient_fetches) {
        prefetch<line_bytes>(weights + i);
      }
      if constexpr (!past_caches) {
        prefetch<line_bytes>(gradients + i);
      }
      for (int k = i; k < i + elements_per_line; k += elements_per_store) {
        write_gradients_at<past_caches>(weights + k, gradients + k, gradients + k, coefficients);
      }
    }
    if (i < count) {
      const int start = count - elements_per_line;
      write_part_of_line(weights + start, gradients + start, i - start, elements_per_line, coefficients);
    }
  }

  // Elements [first, last) of as many as a line has. Both are multiples of 16 bytes.
  FASTREG_INLINE void write_part_of_line(const Real* weights, Storage* gradients, int first, int last,
                                         Coefficients coefficients) {
    static_assert(elements_per_line % elements_per_store == 0);
    alignas(line_bytes) Storage line[elements_per_line];
    for (int k = 0; k < elements_per_line; k += elements_per_store) {
      write_gradients_at<false>(weights + k, gradients + k, line + k, coefficients);
    }
    constexpr int step = 16 / static_cast<int>(sizeof(Storage));
    for (int k = first; k < last; k += step) {
      std::memcpy(gradients + k, line + k, 16);
    }
  }

  template <bool may_stream>
  FASTREG_INLINE void run_block(const Storage* weights, Storage* gradients, int count, LaneSums& sums,
                                Coefficients coefficients, void* scratch) {
    // The terms are taken before anything is written: the gradients may lie on the weights.
    if constexpr (converts) {
      constexpr int piece = 1024;
      alignas(line_bytes) Real magnitudes[sums_magnitudes ? piece : 1];
      alignas(line_bytes) Real few[wants_gradient && !streaming ? block_size + real_lanes<Real> : 1];
      static_assert((chunk_size + real_lanes<Real>)*sizeof(Real) <= streaming_scratch_bytes);
      Real* memory = streaming ? static_cast<Real*>(scratch) : few;
      // Where lines of the gradients begin, registers of the converted weights begin too.
      Real* numbers = memory + (wants_gradient ? -elements_to_line(gradients) & (real_lanes<Real> - 1) : 0);
      for (int i = 0; i < count; i += piece) {
        const int elements = count - i < piece ? count - i : piece;
        convert(weights + i, elements, magnitudes, numbers + (wants_gradient ? i : 0));
        if constexpr (wants_value) {
          add_to_sums(sums_magnitudes ? magnitudes : numbers + i, elements, sums);
        }
      }
      write_block<may_stream>(numbers, gradients, count, coefficients);
    } else {
      if constexpr (wants_value) {
        add_to_sums(weights, count, sums);
      }
      write_block<may_stream>(weights, gradients, count, coefficients);
    }
  }

  template <bool may_stream>
  FASTREG_INLINE void write_block(const Real* weights, Storage* gradients, int count, Coefficients coefficients) {
    if constexpr (wants_gradient) {
      write_gradients<may_stream>(weights, gradients, count, coefficients);
    }
  }

  // The last row may be short: it is padded with +0, whose terms change no bit of a lane, since no term is below +0.
  FASTREG_INLINE void run_short_row(const Storage* weights, Storage* gradients, int elements, LaneSums& sums,
                                    Coefficients coefficients, void* scratch) {
    alignas(line_bytes) Storage padded_weights[lanes_per_chunk] = {};
    alignas(line_bytes) Storage padded_gradients[lanes_per_chunk] = {};
    const std::size_t bytes = static_cast<std::size_t>(elements) * sizeof(Storage);
    std::memcpy(padded_weights, weights, bytes);
    if constexpr (adds) {
      std::memcpy(padded_gradients, gradients, bytes);
    }
    run_block<false>(padded_weights, padded_gradients, lanes_per_chunk, sums, coefficients, scratch);
    if constexpr (wants_gradient) {
      std::memcpy(gradients, padded_gradients, bytes);
    }
  }

  FASTREG_INLINE double halve(Wide* registers) {
    halve_lanes(registers, groups * registers_per_group);
    double lanes[wide_lanes];
    std::memcpy(lanes, registers, sizeof lanes);
    halve_lanes(lanes, wide_lanes);
    return lanes[0];
  }

  static void run(const KernelArguments& arguments) {
    const Storage* weights = static_cast<const Storage*>(arguments.weights);
    Storage* gradients = static_cast<Storage*>(arguments.gradients);
    const Coefficients coefficients = {broadcast(static_cast<Real>(arguments.gradient_l1)),
                                       broadcast(static_cast<Real>(arguments.gradient_l2))};
    std::int64_t left = arguments.count;
    for (std::int64_t chunk = 0; left > 0; ++chunk) {
      int elements = left < chunk_size ? static_cast<int>(left) : chunk_size;
      left -= elements;
      LaneSums sums;
      while (elements >= lanes_per_chunk) {
        const int rows = elements / lanes_per_chunk;
        const int count = (rows < rows_per_block ? rows : rows_per_block) * lanes_per_chunk;
        run_block<streaming>(weights, gradients, count, sums, coefficients, arguments.scratch);
        weights += count;
        gradients += wants_gradient ? count : 0;
        elements -= count;
      }
      if (elements != 0) {
        run_short_row(weights, gradients, elements, sums, coefficients, arguments.scratch);
      }
      if constexpr (wants_value) {
        if constexpr ((terms & term_l1) != 0) {
          arguments.l1_sums[chunk] = halve(sums.l1);
        }
        if constexpr ((terms & term_l2) != 0) {
          arguments.l2_sums[chunk] = halve(sums.l2);
        }
      }
    }
    if constexpr (streaming) {
      finish_streaming();
    }
  }
};

// ---- the table, filled by folding over the cells

template <Variant variant, class E, unsigned terms, unsigned outputs>
constexpr void fill_cell(KernelTable& table, int dtype) {
  if constexpr (is_output_cell(outputs)) {
    Cells& cells = table.cells[static_cast<std::size_t>(variant)];
    cells.kernels[dtype][terms - 1][outputs] = PenaltyKernel<variant, E, terms, outputs, false>::run;
    if constexpr ((outputs & output_gradient) != 0 && (outputs & output_add) == 0) {
      cells.streaming_kernels[dtype][terms - 1][outputs] = PenaltyKernel<variant, E, terms, outputs, true>::run;
    }
  }
}

template <Variant variant, class E, unsigned terms>
constexpr void fill_outputs(KernelTable& table, int dtype) {
  fill_cell<variant, E, terms, output_value>(table, dtype);
  fill_cell<variant, E, terms, output_gradient>(table, dtype);
  fill_cell<variant, E, terms, output_value | output_gradient>(table, dtype);
  fill_cell<variant, E, terms, output_gradient | output_add>(table, dtype);
  fill_cell<variant, E, terms, output_value | output_gradient | output_add>(table, dtype);
}

template <Variant variant, class E>
constexpr void fill_terms(KernelTable& table, DType dtype) {
  fill_outputs<variant, E, term_l1>(table, static_cast<int>(dtype));
  fill_outputs<variant, E, term_l2>(table, static_cast<int>(dtype));
  fill_outputs<variant, E, term_l1 | term_l2>(table, static_cast<int>(dtype));
}

template <Variant variant>
constexpr void fill_variant(KernelTable& table) {
  fill_terms<variant, F16>(table, DType::f16);
  fill_terms<variant, BF16>(table, DType::bf16);
  fill_terms<variant, F32>(table, DType::f32);
  fill_terms<variant, F64>(table, DType::f64);
}

#define FASTREG_STRING_OF(x) #x
#define FASTREG_STRING(x) FASTREG_STRING_OF(x)

constexpr KernelTable make_table() {
  KernelTable table{};
  table.name = FASTREG_STRING(FASTREG_ISA);
  table.vector_bytes = FASTREG_VECTOR_BYTES;
  fill_variant<Variant::plain>(table);
  fill_variant<Variant::near>(table);
  fill_variant<Variant::far>(table);
  fill_variant<Variant::l2>(table);
  return table;
}

}  // namespace

namespace FASTREG_ISA {
constexpr KernelTable table = make_table();
}

}  // namespace fastreg
