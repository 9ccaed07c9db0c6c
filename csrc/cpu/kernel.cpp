// The CPU kernel. Compiled once per instruction set with
//   FASTREG_ISA           the namespace of its table: portable, avx2, avx512, neon
//   FASTREG_VECTOR_BYTES  the width of a register
//   -ffp-contract=off     the contract rounds every operation
// All but the table has internal linkage, and nothing here is to be optimised at link time (see vec.h).
//
// One pass over memory, in steps that stay in L1: a step's weights are added to the lane sums, then lines of the
// gradients are written as far as the weights have been summed. A row is 32 elements, one per lane. Lanes are added in
// groups, so that the accumulators of both sums and the temporaries fit the registers: 16 with SSE2 and AVX2, 32 with
// AVX-512, where a group is the whole row and a step may be one.
#include "kernel.h"

#include <cstring>

#include "../canonical_sum.h"
#include "../penalty.inl"
#include "fetch.h"
#include "lane_sums.h"
#include "vec.h"

namespace fastreg {
namespace {

template <Variant variant, class E, unsigned terms, unsigned outputs, bool streaming>
struct PenaltyKernel {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Memory = Access<E>;
  static constexpr bool goes_by_row = variant == Variant::cached || variant == Variant::whole;
  // Zen 4 works 64-byte registers in halves, and widens into them at less than half the speed.
  static constexpr bool sums_in_halves = variant == Variant::cached && has_avx512 && sizeof(Real) == sizeof(float);
  static constexpr int sum_bytes = FASTREG_VECTOR_BYTES / (sums_in_halves ? 2 : 1);
  using Sums = LaneSums<sum_bytes>;
  using Sum = typename Sums::Sum;
  static constexpr bool has_l1 = (terms & term_l1) != 0;
  static constexpr bool has_l2 = (terms & term_l2) != 0;
  static constexpr bool wants_value = (outputs & output_value) != 0;
  static constexpr bool wants_gradient = (outputs & output_gradient) != 0;
  static constexpr bool adds = (outputs & output_add) != 0;
  static constexpr bool converts = !Memory::is_compute_type;
  // From memory 2 KiB of one array after 2 KiB of the other, in caches as few rows as keep the sums in registers: from
  // memory one row takes 1.1 to 1.3 times as long, in caches 2 KiB up to 1.2 times.
  static constexpr int row_bytes = lanes_per_chunk * static_cast<int>(sizeof(Storage));
  static constexpr int rows_in_cache = converts ? 16 : 1;
  // Where registers hold a row's sums, halves are widened a row ahead, else a step.
  static constexpr bool widens_by_row = converts && Sums::groups == 1;
  static constexpr int rows_per_step = goes_by_row && wants_gradient && Sums::groups == 1 ? rows_in_cache
                                       : widens_by_row && !wants_gradient                 ? chunk_size / lanes_per_chunk
                                                                                          : 2048 / row_bytes;
  static constexpr int elements_per_line = line_bytes / static_cast<int>(sizeof(Storage));
  static_assert(lanes_per_chunk % elements_per_line == 0);

  template <std::uintptr_t bytes>
  FASTREG_INLINE void prefetch(const void* address) {
    fetch_ahead<variant, bytes>(address);
  }

  // ---- sums

  FASTREG_INLINE void add_groups(const Real* weights, int rows, Sums& sums) {
    constexpr Addition how = {sizeof(Storage) == sizeof(double), converts,
                              sizeof(Storage) == sizeof(float) || widens_by_row};
    // Inlined at once: GCC leaves out calls of a function that does nothing but fetch.
    fastreg::add_rows<terms, how>(weights, rows, sums, [](const Real* row) __attribute__((always_inline)) {
      if constexpr (!converts) {
        prefetch<Sums::registers_per_group * Sums::lanes* static_cast<int>(sizeof(Real))>(row);
      }
    });
  }

  // Half precision is widened in memory: to magnitudes, since a register holds twice as many floats as float64 whose
  // sign would have to go. Squares take either.
  FASTREG_INLINE void widen_row(const Storage* weights, Real* magnitudes) {
    using Floats = typename VectorOf<Real, sum_bytes>::type;
    constexpr int floats = sum_bytes / static_cast<int>(sizeof(Real));
    prefetch<lanes_per_chunk* static_cast<int>(sizeof(Storage))>(weights);
    if constexpr (Memory::comes_in_pairs) {
      for (int k = 0; k < lanes_per_chunk / 2; k += floats) {
        Floats even;
        Floats odd;
        Memory::load_magnitudes(weights + 2 * k, even, odd);
        store_vector(magnitudes + k, even);
        store_vector(magnitudes + lanes_per_chunk / 2 + k, odd);
      }
    } else {
      for (int k = 0; k < lanes_per_chunk; k += floats) {
        store_vector(magnitudes + k, absolute<Real>(Memory::template load<Floats>(weights + k)));
      }
    }
  }

  FASTREG_INLINE void add_rows(const Storage* weights, int rows, Sums& sums) {
    if constexpr (widens_by_row) {
      // A row is widened while the one before it is added; after the last one it is that one again.
      alignas(line_bytes) Real magnitudes[2 * lanes_per_chunk];
      widen_row(weights, magnitudes);
      int place = 0;
      for (int row = 1; row <= rows; ++row) {
        weights += row < rows ? lanes_per_chunk : 0;
        widen_row(weights, magnitudes + (place ^ lanes_per_chunk));
        add_groups(magnitudes + place, 1, sums);
        place ^= lanes_per_chunk;
      }
    } else if constexpr (converts) {
      alignas(line_bytes) Real magnitudes[rows_per_step * lanes_per_chunk];
      for (int i = 0; i < rows * lanes_per_chunk; i += lanes_per_chunk) {
        widen_row(weights + i, magnitudes + i);
      }
      add_groups(magnitudes, rows, sums);
    } else {
      add_groups(weights, rows, sums);
    }
  }

  // The last row may be short: it is padded with +0, whose terms change no bit of a lane, since no term is below +0.
  FASTREG_INLINE void add_short_row(const Storage* weights, int elements, Sums& sums) {
    alignas(line_bytes) Storage padded[lanes_per_chunk] = {};
    std::memcpy(padded, weights, static_cast<std::size_t>(elements) * sizeof(Storage));
    add_rows(padded, 1, sums);
  }

  FASTREG_INLINE double sum_of(Sum* registers) {
    if constexpr (Memory::comes_in_pairs) {  // the even lanes, then the odd ones, which meet last
      constexpr int half = Sums::registers / 2;
      return halve(registers, half) + halve(registers + half, half);
    } else {
      return halve(registers);
    }
  }

  // ---- gradients

  // What one store takes. Loads and stores alternate: a compiler that may choose writes lines backwards, at half the
  // speed.
  static constexpr int elements_per_store = Memory::registers_per_store * real_lanes<Real>;
  static_assert(elements_per_line % elements_per_store == 0);

  // NOLINTBEGIN(readability-redundant-inline-specifier): GCC asks for it beside the attribute, in templates.
  struct Gradients {
    const Storage* weights;
    Storage* gradients;
    Vector<Real> l1;
    Vector<Real> l2;

    template <bool past_caches>
    inline __attribute__((always_inline)) void write_line_at(std::int64_t first, Storage* target) const {
      for (int k = 0; k < elements_per_line; k += elements_per_store) {
        Vector<Real> computed[Memory::registers_per_store];
        for (int i = 0; i < Memory::registers_per_store; ++i) {
          const std::int64_t at = first + k + i * real_lanes<Real>;
          computed[i] = penalty_gradient<VectorOps<Real>, terms>(Memory::load(weights + at), l1, l2);
          if constexpr (adds) {
            computed[i] = Memory::load(gradients + at) + computed[i];
          }
        }
        if constexpr (past_caches) {
          stream_vector(target + k, Memory::narrow(computed));
        } else {
          store_vector(target + k, Memory::narrow(computed));
        }
      }
    }

    // Whole lines from `first` on, `step` elements at a time; returns where they end.
    template <int step>
    inline __attribute__((always_inline)) std::int64_t write_lines(std::int64_t first, std::int64_t last) const {
      for (; first + step <= last; first += step) {
        for (int k = 0; k < step; k += elements_per_line) {
          if constexpr (!wants_value) {
            prefetch<line_bytes>(weights + first + k);
          }
          if constexpr (adds || !streaming) {
            prefetch<line_bytes>(gradients + first + k);
          }
          write_line_at<streaming>(first + k, gradients + first + k);
        }
      }
      return first;
    }

    // Elements [first, last) of the line that begins at `start`.
    inline __attribute__((always_inline)) void write_part_of_line(std::int64_t start, std::int64_t first,
                                                                  std::int64_t last) const {
      alignas(line_bytes) Storage line[elements_per_line];
      write_line_at<false>(start, line);
      std::memcpy(gradients + first, line + (first - start), static_cast<std::size_t>(last - first) * sizeof(Storage));
    }

    // Less than a line.
    inline __attribute__((always_inline)) void write_few(std::int64_t count) const {
      alignas(line_bytes) Storage padded_weights[elements_per_line] = {};
      alignas(line_bytes) Storage padded_gradients[elements_per_line] = {};
      const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(Storage);
      std::memcpy(padded_weights, weights, bytes);
      if constexpr (adds) {
        std::memcpy(padded_gradients, gradients, bytes);
      }
      Gradients{padded_weights, padded_gradients, l1, l2}.template write_line_at<false>(0, padded_gradients);
      std::memcpy(gradients, padded_gradients, bytes);
    }

    // How many elements lie before the first line: a store that crosses lines costs two, and arrays of NumPy start 16
    // bytes into a line.
    inline __attribute__((always_inline)) int elements_to_line() const {
      const auto bytes = -reinterpret_cast<std::uintptr_t>(gradients) % line_bytes;
      return bytes % sizeof(Storage) == 0 ? static_cast<int>(bytes / sizeof(Storage)) : 0;
    }
  };
  // NOLINTEND(readability-redundant-inline-specifier)

  // Two chunks of a run at once, far apart: what is fetched ahead stops at the end of a page, though not at once for
  // both.
  static constexpr bool takes_two = has_avx512 && wants_value && !wants_gradient && !converts &&
                                    (variant == Variant::pairs || variant == Variant::whole ||
                                     (variant == Variant::cached && sizeof(Real) == sizeof(double)));
  FASTREG_INLINE void add_two(const Storage* one, const Storage* other, Sums& sums, Sums& sums_of_other) {
    for (int row = 0; row < chunk_size; row += lanes_per_chunk) {
      add_groups(one + row, 1, sums);
      add_groups(other + row, 1, sums_of_other);
    }
  }
  FASTREG_INLINE void keep(const KernelArguments& arguments, std::int64_t chunk, Sums& sums) {
    if constexpr (has_l1) {
      arguments.l1_sums[chunk] = sum_of(sums.l1);
    }
    if constexpr (has_l2) {
      arguments.l2_sums[chunk] = sum_of(sums.l2);
    }
  }

  // ---- a run

  static void run(const KernelArguments& arguments) {
    const Storage* weights = static_cast<const Storage*>(arguments.weights);
    const std::int64_t count = arguments.count;
    const Gradients gradients = {weights, static_cast<Storage*>(arguments.gradients),
                                 broadcast(static_cast<Real>(arguments.gradient_l1)),
                                 broadcast(static_cast<Real>(arguments.gradient_l2))};
    // The gradients follow the sums, line by line: they may lie on the weights. The parts of lines at both ends come
    // apart, the first when its weights have been summed; in a small array they would cost more than stores that cross.
    const int head = wants_gradient && (streaming || count >= fewest_aligned) ? gradients.elements_to_line() : 0;
    std::int64_t written = head;
    if constexpr (wants_value) {
      std::int64_t chunk = 0;
      if constexpr (takes_two) {
        const std::int64_t half = count / chunk_size / 2;
        for (; chunk < half; ++chunk) {
          Sums sums;
          Sums sums_of_other;
          add_two(weights + chunk * chunk_size, weights + (chunk + half) * chunk_size, sums, sums_of_other);
          keep(arguments, chunk, sums);
          keep(arguments, chunk + half, sums_of_other);
        }
        chunk = 2 * half;
      }
      std::int64_t summed = chunk * chunk_size;
      for (; summed < count; ++chunk) {
        const std::int64_t end = count - summed < chunk_size ? count : summed + chunk_size;
        Sums sums;
        while (summed + lanes_per_chunk <= end) {
          const auto left = static_cast<int>(end - summed) / lanes_per_chunk;
          const int rows = left < rows_per_step ? left : rows_per_step;
          add_rows(weights + summed, rows, sums);
          summed += rows * lanes_per_chunk;
          if constexpr (wants_gradient) {
            written = gradients.template write_lines<lanes_per_chunk>(written, summed);
          }
        }
        if (summed < end) {
          add_short_row(weights + summed, static_cast<int>(end - summed), sums);
          summed = end;
        }
        keep(arguments, chunk, sums);
      }
    }
    if constexpr (wants_gradient) {
      if (count < elements_per_line) {
        gradients.write_few(count);
      } else {
        if (head != 0) {
          gradients.write_part_of_line(0, 0, head);
        }
        written = gradients.template write_lines<lanes_per_chunk>(written, count);
        written = gradients.template write_lines<elements_per_line>(written, count);
        if (written < count) {
          gradients.write_part_of_line(count - elements_per_line, written, count);
        }
      }
    }
    if constexpr (streaming) {
      finish_streaming();
    }
  }
};

// ---- the table, filled by folding over the cells

// Variants that do not differ in a cell have one kernel there. Halves row by row were tried, with whole registers: 1.00
// to 1.04 times plain.
template <Variant variant, class E, unsigned outputs>
constexpr Variant kernel_of() {
  constexpr bool writes = (outputs & output_gradient) != 0;
  constexpr bool converts = !Access<E>::is_compute_type;
  if (variant == Variant::pairs && (writes || converts)) {
    return Variant::plain;
  }
  if (variant == Variant::whole) {
    return converts                                        ? Variant::plain
           : !writes                                       ? Variant::pairs
           : sizeof(typename E::Storage) == sizeof(double) ? Variant::cached
                                                           : variant;
  }
  return variant;
}

template <Variant variant, class E, unsigned terms, unsigned outputs>
constexpr void fill_cell(KernelTable& table, int dtype) {
  if constexpr (is_output_cell(outputs)) {
    Cells& cells = table.cells[static_cast<std::size_t>(variant)];
    constexpr Variant found = kernel_of<variant, E, outputs>();
    cells.kernels[dtype][terms - 1][outputs] = PenaltyKernel<found, E, terms, outputs, false>::run;
    if constexpr ((outputs & output_gradient) != 0 && (outputs & output_add) == 0) {
      cells.streaming_kernels[dtype][terms - 1][outputs] = PenaltyKernel<found, E, terms, outputs, true>::run;
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
  if constexpr (kernels_of(variant) == variant) {
    fill_terms<variant, F16>(table, DType::f16);
    fill_terms<variant, BF16>(table, DType::bf16);
    fill_terms<variant, F32>(table, DType::f32);
    fill_terms<variant, F64>(table, DType::f64);
  } else {  // filled before: plain and near come first
    table.cells[static_cast<std::size_t>(variant)] = table.cells[static_cast<std::size_t>(kernels_of(variant))];
  }
}

#define FASTREG_STRING_OF(x) #x
#define FASTREG_STRING(x) FASTREG_STRING_OF(x)

constexpr KernelTable make_table() {
  KernelTable table{};
  table.name = FASTREG_STRING(FASTREG_ISA);
  table.vector_bytes = FASTREG_VECTOR_BYTES;
  table.prox = FASTREG_ISA::prox_cells;
  fill_variant<Variant::plain>(table);
  fill_variant<Variant::near>(table);
  fill_variant<Variant::far>(table);
  fill_variant<Variant::pairs>(table);
  fill_variant<Variant::cached>(table);
  fill_variant<Variant::whole>(table);
  return table;
}

}  // namespace

namespace FASTREG_ISA {
constexpr KernelTable table = make_table();
}

}  // namespace fastreg
