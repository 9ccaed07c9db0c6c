// The CPU kernels of optimizers' steps, and of what a clip measures before them; compiled as kernel.cpp is, and like it
// exports its table alone.
//
// One pass over memory, in blocks that stay in L1: a block's step is taken, then what has been written is added to the
// lane sums, and its zeros are counted. Only algorithms and dtypes have code of their own: of the options the branches
// are the same for all elements, and take less than the divisions.
#include <cmath>
#include <cstring>

#include "../step.inl"
#include "fetch.h"
#include "lane_sums.h"
#include "magnitudes.h"
#include "step_loops.h"
#include "vec.h"

namespace fastreg {
namespace {

constexpr int block_size = 16 * lanes_per_chunk;
static_assert(chunk_size % block_size == 0);

using Sums = LaneSums<FASTREG_VECTOR_BYTES>;

template <bool rounds, bool are_magnitudes, class Real>
void add_terms(unsigned terms, const Real* numbers, int count, Sums& sums) {
  const int rows = count / lanes_per_chunk;
  if (terms == term_l1) {
    add_rows<term_l1, rounds, are_magnitudes>(numbers, rows, sums);
  } else if (terms == term_l2) {
    add_rows<term_l2, rounds, are_magnitudes>(numbers, rows, sums);
  } else if (terms != 0) {
    add_rows<term_l1 | term_l2, rounds, are_magnitudes>(numbers, rows, sums);
  }
}

template <class Real>
FASTREG_INLINE StepNumbers<Vector<Real>> broadcast_numbers(const StepNumbers<double>& numbers) {
  return converted<Vector<Real>>(numbers, [](double number) { return broadcast(static_cast<Real>(number)); });
}

// The element type of the arithmetic.
template <class Real>
struct ElementOf {
  using type = F32;
};
template <>
struct ElementOf<double> {
  using type = F64;
};

template <class E>
constexpr bool is_bf16 = false;
template <>
constexpr bool is_bf16<BF16> = true;

// Parameters of the type E, gradients of the type G.
template <class E, class G, Algorithm algorithm>
struct StepKernel {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Memory = Access<E>;
  using GradientMemory = Access<G>;
  using Ops = VectorOps<Real>;
  using Numbers = StepNumbers<Vector<Real>>;
  static constexpr bool converts = !Memory::is_compute_type;
  static constexpr int elements_per_store = Memory::registers_per_store * real_lanes<Real>;
  static_assert(lanes_per_chunk % elements_per_store == 0);

  struct Streams {
    Storage* parameters;
    const typename G::Storage* gradients;
    Real* first;
    Real* second;
    Real* largest;

    static Real* after(Real* moment, int count) { return moment == nullptr ? nullptr : moment + count; }
    void advance(int count) {
      parameters += count;
      gradients += count;
      first = after(first, count);
      second = after(second, count);
      largest = after(largest, count);
    }
  };

  FASTREG_INLINE Vector<Real> step(unsigned operations, const Numbers& n, const Streams& at, int i) {
    const Vector<Real> w = Memory::load(at.parameters + i);
    const Vector<Real> g = GradientMemory::load(at.gradients + i);
    Vector<Real> m{};
    if constexpr (algorithm == Algorithm::sgd) {
      const bool keeps = does(operations, op_momentum);
      if (keeps && !does(operations, op_begin)) {
        m = load_vector<Vector<Real>>(at.first + i);
      }
      const Vector<Real> u = sgd_step<Ops>(operations, n, w, g, m);
      if (keeps) {
        store_vector(at.first + i, m);
      }
      return u;
    } else {
      m = load_vector<Vector<Real>>(at.first + i);
      auto v = load_vector<Vector<Real>>(at.second + i);
      Vector<Real> h{};
      if (does(operations, op_amsgrad)) {
        h = load_vector<Vector<Real>>(at.largest + i);
      }
      const Vector<Real> u = adamw_step<Ops>(operations, n, w, g, m, v, h);
      store_vector(at.first + i, m);
      store_vector(at.second + i, v);
      if (does(operations, op_amsgrad)) {
        store_vector(at.largest + i, h);
      }
      return u;
    }
  }

  // The rounding to bfloat16 takes the lower half of a NaN for digits.
  FASTREG_INLINE Vector<Real> with_plain_nan(Vector<Real> x) {
    if constexpr (is_bf16<E>) {
      return x == x ? x : broadcast(__builtin_nanf(""));
    } else {
      return x;
    }
  }

  FASTREG_INLINE void take(unsigned operations, const Numbers& n, const Streams& at, int count) {
    for (int i = 0; i < count; i += elements_per_store) {
      Vector<Real> computed[Memory::registers_per_store];
      for (int k = 0; k < Memory::registers_per_store; ++k) {
        computed[k] = with_plain_nan(step(operations, n, at, i + k * real_lanes<Real>));
      }
      store_vector(at.parameters + i, Memory::narrow(computed));
    }
  }

  // Of the parameters as they are stored; half precision is widened in memory, to magnitudes.
  template <class Visit>
  FASTREG_INLINE void visit_stored(const Storage* stored, int count, Visit visit) {
    if constexpr (converts) {
      alignas(64) Real magnitudes[block_size];
      for (int i = 0; i < count; i += real_lanes<Real>) {
        store_vector(magnitudes + i, absolute<Real>(Memory::load(stored + i)));
      }
      visit(static_cast<const Real*>(magnitudes));
    } else {
      visit(stored);
    }
  }

  static void add_stored(unsigned terms, const Storage* stored, int count, Sums& sums) {
    visit_stored(stored, count, [&](const Real* numbers) {
      add_terms<sizeof(Storage) == sizeof(double), converts>(terms, numbers, count, sums);
    });
  }

  // Of the `count` elements, a multiple of 32, `there` are the tensor's.
  FASTREG_INLINE void run_block(const StepRule& rule, const Numbers& n, const Streams& at, int count, int there,
                                Sums& sums, std::int64_t& zeros) {
    const unsigned terms = rule.coefficients.terms;
    if (rule.adds_before && terms != 0) {
      add_stored(terms, at.parameters, count, sums);
    }
    take(rule.operations, n, at, count);
    if (!rule.counts) {
      return;
    }
    if (there != count) {
      std::memset(at.parameters + there, 0, static_cast<std::size_t>(count - there) * sizeof(Storage));
    }
    visit_stored(at.parameters, count, [&](const Real* numbers) {
      if (!rule.adds_before) {
        add_terms<sizeof(Storage) == sizeof(double), converts>(terms, numbers, count, sums);
      }
      zeros += count_zeros(numbers, count) - (count - there);
    });
  }

  // A copy of less than a row, with zeros behind it.
  template <class Element>
  struct Padded {
    explicit Padded(const Element* from, int count) : bytes(static_cast<std::size_t>(count) * sizeof(Element)) {
      if (from != nullptr) {
        std::memcpy(elements, from, bytes);
      }
    }
    void put_back(Element* to) const {
      if (to != nullptr) {
        std::memcpy(to, elements, bytes);
      }
    }
    alignas(64) Element elements[lanes_per_chunk] = {};
    std::size_t bytes;
  };

  static void run_short_row(const StepRule& rule, const Numbers& n, const Streams& at, int count, Sums& sums,
                            std::int64_t& zeros) {
    Padded<Storage> parameters(at.parameters, count);
    Padded<typename G::Storage> gradients(at.gradients, count);
    Padded<Real> first(at.first, count);
    Padded<Real> second(at.second, count);
    Padded<Real> largest(at.largest, count);
    run_block(rule, n, {parameters.elements, gradients.elements, first.elements, second.elements, largest.elements},
              lanes_per_chunk, count, sums, zeros);
    parameters.put_back(at.parameters);
    first.put_back(at.first);
    second.put_back(at.second);
    largest.put_back(at.largest);
  }

  static void run(const StepRule& rule, const StepArguments& arguments, StepLanes& lanes) {
    const Numbers n = broadcast_numbers<Real>(rule.numbers);
    Streams at = {static_cast<Storage*>(arguments.parameters),
                  static_cast<const typename G::Storage*>(arguments.gradients), static_cast<Real*>(arguments.first),
                  static_cast<Real*>(arguments.second), static_cast<Real*>(arguments.largest)};
    Sums sums(lanes.l1, lanes.l2);
    std::int64_t left = arguments.count;
    while (left >= lanes_per_chunk) {
      const int count = static_cast<int>(left < block_size ? left - left % lanes_per_chunk : block_size);
      run_block(rule, n, at, count, count, sums, lanes.zeros);
      at.advance(count);
      left -= count;
    }
    if (left != 0) {
      run_short_row(rule, n, at, static_cast<int>(left), sums, lanes.zeros);
    }
    sums.store(lanes.l1, lanes.l2);
  }
};

// The squares and the largest magnitude of d at the line of the clip.
template <Variant variant, class E, class G>
struct ClipKernel {
  using Storage = typename E::Storage;
  using GradientStorage = typename G::Storage;
  using Real = typename E::Real;
  using Arithmetic = typename ElementOf<Real>::type;
  using Ops = VectorOps<Real>;
  using Numbers = StepNumbers<Vector<Real>>;
  using Squares = LaneSums<FASTREG_VECTOR_BYTES>;
  static constexpr int block = 16 * lanes_per_chunk;
  static_assert(chunk_size % block == 0);

  struct Streams {
    const Storage* parameters;
    const GradientStorage* gradients;
  };

  // Whether the magnitudes of d are those of the gradients as they are: a sign changes none.
  static bool are_the_gradients(const StepRule& rule, bool adds_penalty) {
    return Access<G>::is_compute_type && !adds_penalty && !does(rule.operations, op_unscale);
  }

  FASTREG_INLINE void compute(unsigned operations, bool adds_penalty, const Numbers& n, const Streams& at, int count,
                              Real* d) {
    for (int i = 0; i < count; i += real_lanes<Real>) {
      Vector<Real> found = data_gradient<Ops>(operations, n, Access<G>::load(at.gradients + i));
      if (adds_penalty) {
        found = with_penalty<Ops>(operations, n, found, Access<E>::load(at.parameters + i));
      }
      store_vector(d + i, found);
    }
  }

  // Calls visit(d, count, how many of them are there) for every block, a multiple of 32 elements; behind the last that
  // is there d is 0.
  template <class Visit>
  FASTREG_INLINE void visit_blocks(const StepRule& rule, bool adds_penalty, const Streams& from, std::int64_t elements,
                                   Visit visit) {
    const Numbers n = broadcast_numbers<Real>(rule.numbers);
    const bool are_as_read = are_the_gradients(rule, adds_penalty);
    for (std::int64_t done = 0; done < elements; done += block) {
      alignas(64) Real d[block];
      const int there = elements - done < block ? static_cast<int>(elements - done) : block;
      const int whole = there - there % lanes_per_chunk;
      const Streams at = {adds_penalty ? from.parameters + done : nullptr, from.gradients + done};
      if (!adds_penalty) {  // of two streams nothing was measured
        fetch_ahead<variant, block * sizeof(GradientStorage)>(at.gradients);
      }
      if constexpr (Access<G>::is_compute_type) {
        if (are_as_read && whole == there) {
          visit(at.gradients, whole, whole);
          continue;
        }
      }
      compute(rule.operations, adds_penalty, n, at, whole, d);
      if (whole < there) {
        Storage parameters[lanes_per_chunk] = {};
        GradientStorage gradients[lanes_per_chunk] = {};
        const auto rest = static_cast<std::size_t>(there - whole);
        if (adds_penalty) {
          std::memcpy(parameters, at.parameters + whole, rest * sizeof *parameters);
        }
        std::memcpy(gradients, at.gradients + whole, rest * sizeof *gradients);
        compute(rule.operations, adds_penalty, n, {parameters, gradients}, lanes_per_chunk, d + whole);
      }
      visit(static_cast<const Real*>(d), whole < there ? whole + lanes_per_chunk : whole, there);
    }
  }

  // Rare, and not inlined: its numbers would be on the stack of all others.
  [[gnu::noinline]] static void add_scaled(const Real* d, int count, int exponent, Squares& squares) {
    alignas(64) double row[lanes_per_chunk];
    for (int i = 0; i < count; i += lanes_per_chunk) {
      for (int k = 0; k < lanes_per_chunk; ++k) {
        row[k] = std::ldexp(static_cast<double>(d[i + k]), exponent);
      }
      add_rows<term_l2, true, false>(row, 1, squares);
    }
  }

  static void run(const StepRule& rule, bool adds_penalty, int exponent, const void* parameters, const void* gradients,
                  std::int64_t count, NormLanes& lanes) {
    const Streams at = {static_cast<const Storage*>(parameters), static_cast<const GradientStorage*>(gradients)};
    LargestMagnitude<Arithmetic> largest;
    Squares squares(lanes.l1, lanes.l2);
    visit_blocks(rule, adds_penalty, at, count, [&](const Real* d, int elements, int) {
      for (int i = 0; i < elements; i += lanes_per_chunk) {
        for (int k = 0; k < lanes_per_chunk / real_lanes<Real>; ++k) {
          largest.add(d + i + k * real_lanes<Real>, k);
        }
      }
      if (exponent == 0) {
        add_rows<term_l2, sizeof(Real) == sizeof(double), false>(d, elements / lanes_per_chunk, squares);
      } else {
        add_scaled(d, elements, exponent, squares);
      }
    });
    squares.store(lanes.l1, lanes.l2);
    const auto most = largest.found();
    lanes.add_maximum(static_cast<double>(bit_cast<Real>(most)));
    if (!is_finite<Arithmetic>(most)) {
      visit_blocks(rule, adds_penalty, at, count,
                   [&](const Real* d, int, int there) { lanes.nonfinite += count_nonfinite<Arithmetic>(d, there); });
    }
  }
};

// Nothing but what is fetched ahead differs.
constexpr Variant fetches_of(Variant variant) {
  const Variant kernels = kernels_of(variant);
  return kernels == Variant::near || kernels == Variant::far ? kernels : Variant::plain;
}

template <Variant variant, class E>
constexpr void fill_measures(StepLoops& loops, std::size_t dtype) {
  using Arithmetic = typename ElementOf<typename E::Real>::type;
  auto& measures = loops.measure[static_cast<std::size_t>(variant)][dtype];
  measures[0] = ClipKernel<fetches_of(variant), E, E>::run;
  measures[1] = ClipKernel<fetches_of(variant), E, Arithmetic>::run;
}

template <class E>
constexpr void fill(StepLoops& loops, DType dtype) {
  using Arithmetic = typename ElementOf<typename E::Real>::type;
  const auto place = static_cast<std::size_t>(dtype);
  constexpr auto sgd = static_cast<std::size_t>(Algorithm::sgd);
  constexpr auto adamw = static_cast<std::size_t>(Algorithm::adamw);
  loops.take[sgd][place][0] = StepKernel<E, E, Algorithm::sgd>::run;
  loops.take[sgd][place][1] = StepKernel<E, Arithmetic, Algorithm::sgd>::run;
  loops.take[adamw][place][0] = StepKernel<E, E, Algorithm::adamw>::run;
  loops.take[adamw][place][1] = StepKernel<E, Arithmetic, Algorithm::adamw>::run;
  fill_measures<Variant::plain, E>(loops, place);
  fill_measures<Variant::near, E>(loops, place);
  fill_measures<Variant::far, E>(loops, place);
  fill_measures<Variant::pairs, E>(loops, place);
  fill_measures<Variant::cached, E>(loops, place);
}

constexpr StepLoops make_loops() {
  StepLoops loops{};
  fill<F16>(loops, DType::f16);
  fill<BF16>(loops, DType::bf16);
  fill<F32>(loops, DType::f32);
  fill<F64>(loops, DType::f64);
  return loops;
}

}  // namespace

namespace FASTREG_ISA {
constexpr StepLoops step_loops = make_loops();
}

}  // namespace fastreg
