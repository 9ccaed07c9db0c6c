// The CPU kernels of optimizers' steps, and of what a clip measures before them; compiled as kernel.cpp is, and like it
// exports its table alone.
//
// One pass over memory, in blocks that stay in L1: what is done to gradients before the step, one operation after the
// other; the step; then what has been written is added to the lane sums, and its zeros are counted. The branches of
// step.inl are the same for all elements, but taken for every register they cost more than the arithmetic, so that the
// usual rules have loops without any (usual_operations); all others share one.
#include <cmath>
#include <cstring>
#include <iterator>
#include <utility>

#include "../step.inl"
#include "fetch.h"
#include "lane_sums.h"
#include "magnitudes.h"
#include "step_loops.h"
#include "vec.h"

namespace fastreg {
namespace {

constexpr int block_size = 16 * lanes_per_chunk;
// What only reads waits for memory alone: in shorter blocks the next reads begin while the last sums are added. A step
// after a guard, 16 million float32, takes 0.94 of the time, and 1.05 in a cache (Zen 5; not tried on others).
constexpr int measured_block_size = 4 * lanes_per_chunk;
static_assert(chunk_size % block_size == 0 && chunk_size % measured_block_size == 0);

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

// d of a block, at the line of the clip or behind it.
template <class E, class G>
struct GradientBlock {
  using Real = typename E::Real;
  using Arithmetic = typename ElementOf<Real>::type;
  using Ops = VectorOps<Real>;
  using Numbers = StepNumbers<Vector<Real>>;

  const typename E::Storage* parameters;  // not read where no penalty is added
  const typename G::Storage* gradients;
  int count;

  // Returns where d is: the gradients themselves, if nothing is done to them, or `memory`. Not inlined, for the stack.
  [[gnu::noinline]] const Real* compute(unsigned operations, const StepNumbers<double>& numbers, Real* memory) const {
    const Real* d = nullptr;
    d = done<op_unscale>(operations, numbers, d, memory);
    d = done<op_negate>(operations, numbers, d, memory);
    d = done<op_clip_data>(operations, numbers, d, memory);
    if (does(operations, op_gradient_l1) && does(operations, op_gradient_l2)) {
      d = done<op_gradient_l1 | op_gradient_l2>(operations, numbers, d, memory);
    } else {
      d = done<op_gradient_l1>(operations, numbers, d, memory);
      d = done<op_gradient_l2>(operations, numbers, d, memory);
    }
    d = done<op_clip_total>(operations, numbers, d, memory);
    if (d != nullptr) {
      return d;
    }
    if constexpr (Access<G>::is_compute_type) {
      return gradients;
    } else {
      return apply<G, 0>(numbers, gradients, memory);
    }
  }

 private:
  // One operation, or none. `d` is null as long as none is done.
  template <unsigned operation>
  const Real* done(unsigned operations, const StepNumbers<double>& numbers, const Real* d, Real* memory) const {
    if (!does(operations, operation)) {
      return d;
    }
    return d == nullptr ? apply<G, operation>(numbers, gradients, memory)
                        : apply<Arithmetic, operation>(numbers, d, memory);
  }

  template <class D, unsigned operation>
  const Real* apply(const StepNumbers<double>& numbers, const typename D::Storage* d, Real* memory) const {
    const Numbers n = broadcast_numbers<Real>(numbers);  // those that are used
    for (int i = 0; i < count; i += real_lanes<Real>) {
      Vector<Real> w{};
      if constexpr (does(operation, op_gradient_l1 | op_gradient_l2)) {
        w = Access<E>::load(parameters + i);
      }
      store_vector(memory + i, clipped_gradient<Ops>(operation, n, Access<D>::load(d + i), w));
    }
    return memory;
  }
};

// What rules do beside that of a GradientBlock, where it is what most rules do.
template <Algorithm algorithm>
constexpr unsigned usual_operations[] = {
    0u,
    op_weight_decay,
    op_momentum,
    op_momentum | op_weight_decay,
    op_shrink,
    op_shrink | op_weight_decay,
    op_shrink | op_momentum,
    op_shrink | op_momentum | op_weight_decay,
};
template <>
constexpr unsigned usual_operations<Algorithm::adamw>[] = {
    0u,
    op_weight_decay,
    op_shrink,
    op_shrink | op_weight_decay,
    op_shrink | op_scaled,
    op_shrink | op_scaled | op_weight_decay,
};

// Parameters of the type E, gradients of the type G.
template <class E, class G, Algorithm algorithm>
struct StepKernel {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Arithmetic = typename ElementOf<Real>::type;
  using Memory = Access<E>;
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

  FASTREG_INLINE Vector<Real> step(unsigned operations, const Numbers& n, const Streams& at, int i, Vector<Real> g) {
    const Vector<Real> w = Memory::load(at.parameters + i);
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

  // By value: what a reference leads to might be changed by a store, and would be loaded again for each register.
  template <class D>
  FASTREG_INLINE void take(unsigned operations, Numbers n, Streams at, const typename D::Storage* d, int count) {
    for (int i = 0; i < count; i += elements_per_store) {
      Vector<Real> computed[Memory::registers_per_store];
      for (int k = 0; k < Memory::registers_per_store; ++k) {
        const int place = i + k * real_lanes<Real>;
        computed[k] = with_plain_nan(step(operations, n, at, place, Access<D>::load(d + place)));
      }
      store_vector(at.parameters + i, Memory::narrow(computed));
    }
  }

  // Where the operations are the one that is known at compile time.
  template <class D, unsigned known>
  static bool took(unsigned operations, const Numbers& n, const Streams& at, const typename D::Storage* d, int count) {
    if (operations != known) {
      return false;
    }
    take<D>(known, n, at, d, count);
    return true;
  }

  template <class D, std::size_t... usual>
  FASTREG_INLINE void take_usual(std::index_sequence<usual...>, unsigned operations, const Numbers& n,
                                 const Streams& at, const typename D::Storage* d, int count) {
    if (!(took<D, usual_operations<algorithm>[usual]>(operations, n, at, d, count) || ...)) {
      take<D>(operations, n, at, d, count);
    }
  }

  template <class D>
  FASTREG_INLINE void take_from(unsigned operations, const Numbers& n, const Streams& at, const typename D::Storage* d,
                                int count) {
    take_usual<D>(std::make_index_sequence<std::size(usual_operations<algorithm>)>(), operations, n, at, d, count);
  }

  // `count` is a multiple of 32. Not inlined, as it is called twice.
  [[gnu::noinline]] static void take_rows(const StepRule& rule, const Numbers& n, const Streams& at, int count) {
    const unsigned operations = rule.operations;
    if ((operations & on_gradients) == 0) {
      take_from<G>(operations, n, at, at.gradients, count);
      return;
    }
    alignas(64) Real memory[block_size];
    const GradientBlock<E, G> block{at.parameters, at.gradients, count};
    take_from<Arithmetic>(operations & ~on_gradients, n, at, block.compute(operations, rule.numbers, memory), count);
  }

  // Of less than a row.
  static void take_few(const StepRule& rule, const Numbers& n, const Streams& at, int count) {
    Padded<Storage> parameters(at.parameters, count);
    Padded<typename G::Storage> gradients(at.gradients, count);
    Padded<Real> first(at.first, count);
    Padded<Real> second(at.second, count);
    Padded<Real> largest(at.largest, count);
    take_rows(rule, n, {parameters.elements, gradients.elements, first.elements, second.elements, largest.elements},
              lanes_per_chunk);
    parameters.put_back(at.parameters);
    first.put_back(at.first);
    second.put_back(at.second);
    largest.put_back(at.largest);
  }

  // Of the parameters as they are stored; half precision is widened in memory, to magnitudes.
  static void add_stored(unsigned terms, const Storage* stored, int count, Sums& sums) {
    if constexpr (converts) {
      alignas(64) Real magnitudes[block_size];
      for (int i = 0; i < count; i += real_lanes<Real>) {
        store_vector(magnitudes + i, absolute<Real>(Memory::load(stored + i)));
      }
      add_terms<false, true>(terms, magnitudes, count, sums);
    } else {
      add_terms<sizeof(Storage) == sizeof(double), false>(terms, stored, count, sums);
    }
  }

  // What comes before the first line of the moments. All arrays of a library lie as far from one as a rule, NumPy's
  // large ones 16 bytes: with each access on two lines AdamW takes 1.25 times as long from memory (Zen 4, where SGD and
  // half precision gain nothing).
  static int elements_to_line(const Streams& at, std::int64_t count) {
    if (algorithm != Algorithm::adamw || converts || count < fewest_aligned) {
      return 0;
    }
    const std::uintptr_t bytes = -reinterpret_cast<std::uintptr_t>(at.first) % line_bytes;
    return bytes % sizeof(Real) == 0 ? static_cast<int>(bytes / sizeof(Real)) : 0;
  }

  // Parameters in rows from the first on, however far the steps have come.
  struct Rows {
    const Storage* next;
    std::int64_t left;

    // Calls visit(elements, count, how many of them are there) for the next elements, whole rows or all that are left.
    template <class Visit>
    // NOLINTNEXTLINE(readability-redundant-inline-specifier): GCC asks for it beside the attribute, in templates.
    inline __attribute__((always_inline)) void visit_next(std::int64_t elements, Visit visit) {
      while (elements > 0) {
        const int there = static_cast<int>(elements < block_size ? elements : block_size);
        const int whole = there - there % lanes_per_chunk;
        if (whole != 0) {
          visit(next, whole, whole);
        } else {
          const Padded<Storage> last(next, there);
          visit(static_cast<const Storage*>(last.elements), lanes_per_chunk, there);
        }
        const int visited = whole != 0 ? whole : there;
        next += visited;
        left -= visited;
        elements -= visited;
      }
    }
  };

  static void run(const StepRule& rule, const StepArguments& arguments, StepLanes& lanes) {
    const Numbers n = broadcast_numbers<Real>(rule.numbers);
    const unsigned terms = rule.coefficients.terms;
    Streams at = {static_cast<Storage*>(arguments.parameters),
                  static_cast<const typename G::Storage*>(arguments.gradients), static_cast<Real*>(arguments.first),
                  static_cast<Real*>(arguments.second), static_cast<Real*>(arguments.largest)};
    Sums sums(lanes.l1, lanes.l2);
    Rows added = {at.parameters, arguments.count};
    Rows counted = added;
    const auto add = [&](const Storage* stored, int count, int) { add_stored(terms, stored, count, sums); };
    const auto count_there = [&](const Storage* stored, int count, int there) {
      lanes.zeros += count_zeros<E>(stored, count) - (count - there);
    };
    int some = elements_to_line(at, arguments.count);
    for (std::int64_t left = arguments.count; left > 0;) {
      if (some == 0) {
        some = static_cast<int>(left < block_size ? left : block_size);
        some -= some > lanes_per_chunk ? some % lanes_per_chunk : 0;
      }
      left -= some;
      // From the end: what of the rest is not a whole row is in the last one.
      const std::int64_t rows_ahead = left == 0 ? 0 : (arguments.count - left) % lanes_per_chunk;
      if (terms != 0 && rule.adds_before) {
        const std::int64_t to_row = rows_ahead == 0 ? 0 : lanes_per_chunk - rows_ahead;
        added.visit_next(added.left - (left < to_row ? 0 : left - to_row), add);
      }
      if (some < lanes_per_chunk) {
        take_few(rule, n, at, some);
      } else {
        take_rows(rule, n, at, some);
      }
      at.advance(some);
      some = 0;
      if (rule.counts) {
        if (terms != 0 && !rule.adds_before) {
          added.visit_next(added.left - left - rows_ahead, add);
        }
        counted.visit_next(counted.left - left - rows_ahead, count_there);
      }
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
  using Squares = LaneSums<FASTREG_VECTOR_BYTES>;
  using Block = GradientBlock<E, G>;

  // What is done before the clip, but for a sign that changes no magnitude.
  static unsigned operations_of(const StepRule& rule, bool adds_penalty) {
    return rule.operations & (adds_penalty ? op_unscale | op_negate | op_gradient_l1 | op_gradient_l2 : op_unscale);
  }

  // Calls visit(d, count, how many of them are there) block by block; the count is a multiple of 32, and behind the
  // last that is there d is 0.
  template <class Visit>
  FASTREG_INLINE void visit_blocks(const StepRule& rule, bool adds_penalty, const Storage* parameters,
                                   const GradientStorage* gradients, std::int64_t elements, Visit visit) {
    const unsigned operations = operations_of(rule, adds_penalty);
    alignas(64) Real memory[measured_block_size];
    alignas(64) Storage last_parameters[lanes_per_chunk];
    alignas(64) GradientStorage last_gradients[lanes_per_chunk];
    while (elements > 0) {
      int there = static_cast<int>(elements < measured_block_size ? elements : measured_block_size);
      int count = there;
      if (there >= lanes_per_chunk) {
        count = there -= there % lanes_per_chunk;
      } else {
        count = lanes_per_chunk;
        parameters = adds_penalty ? pad(parameters, there, last_parameters) : parameters;
        gradients = pad(gradients, there, last_gradients);
      }
      if (!adds_penalty) {  // of two streams nothing was measured
        fetch_ahead<variant, measured_block_size * sizeof(GradientStorage)>(gradients);
      }
      visit(Block{parameters, gradients, count}.compute(operations, rule.numbers, memory), count, there);
      parameters += adds_penalty ? count : 0;
      gradients += count;
      elements -= there;
    }
  }

  // Less than a row, with zeros behind it.
  template <class Element>
  static const Element* pad(const Element* from, int count, Element* row) {
    std::memset(row, 0, lanes_per_chunk * sizeof(Element));
    std::memcpy(row, from, static_cast<std::size_t>(count) * sizeof(Element));
    return row;
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
    const auto visit_all = [&](auto visit) {
      visit_blocks(rule, adds_penalty, static_cast<const Storage*>(parameters),
                   static_cast<const GradientStorage*>(gradients), count, visit);
    };
    LargestMagnitude<Arithmetic> largest;
    Squares squares(lanes.l1, lanes.l2);
    visit_all([&](const Real* d, int elements, int) {
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
      visit_all([&](const Real* d, int, int there) { lanes.nonfinite += count_nonfinite<Arithmetic>(d, there); });
    }
  }
};

template <Variant variant, class E>
constexpr void fill_measures(StepLoops& loops, std::size_t dtype) {
  using Arithmetic = typename ElementOf<typename E::Real>::type;
  auto& measures = loops.measure[static_cast<std::size_t>(variant)][dtype];
  measures[0] = ClipKernel<fetches_of(kernels_of(variant)), E, E>::run;
  measures[1] = ClipKernel<fetches_of(kernels_of(variant)), E, Arithmetic>::run;
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
  fill_measures<Variant::whole, E>(loops, place);
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
