// Every kernel of optimizers' steps, of every table that this processor can run, against scalar code that follows the
// contract line by line: algorithms, modes, flags, dtypes of parameters and gradients, at sizes where something ends,
// at every alignment, over special numbers. Then whole calls: layouts, threads, norms of what is clipped.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/policy.h"
#include "cpu/pool.h"
#include "cpu/step_loops.h"
#include "step_oracle.h"
#include "steps.h"

namespace fastreg::test {
namespace {

StepRule rule_for(const Step& step) {
  return rule_of(step.settings, step.taken, step.loss_scale, step.clip, step.factor);
}

bool uses_first(const StepSettings& settings) { return has_first(settings); }

// The arrays of a tensor, before and as they have to be after.
struct Case {
  Case(const Step& asked, DType parameters, bool converted, std::size_t elements, Fill kind)
      : step(asked),
        dtype(parameters),
        arithmetic(arithmetic_of(parameters)),
        gradient_dtype(converted ? arithmetic : parameters),
        count(elements),
        w(make(dtype, kind, 1)),
        g(make(gradient_dtype, kind, 2)),
        m(make(arithmetic, kind, 3)),
        v(make(arithmetic, kind, 4)),
        h(make(arithmetic, kind, 5)),
        new_w(w),
        new_m(m),
        new_v(v),
        new_h(h) {
    for (std::size_t i = 0; i < count; ++i) {
      positive(v, i);
      positive(h, i);
    }
    new_v = v;
    new_h = h;
    for (std::size_t i = 0; i < count; ++i) {
      Element e{at(dtype, w, i), at(gradient_dtype, g, i), at(arithmetic, m, i), at(arithmetic, v, i),
                at(arithmetic, h, i)};
      dtype == DType::f64 ? Scalar<double>{step}.take(e) : Scalar<float>{step}.take(e);
      put(dtype, new_w, i, e.w);
      put(arithmetic, new_m, i, e.m);
      put(arithmetic, new_v, i, e.v);
      put(arithmetic, new_h, i, e.h);
    }
    const bool counts = step.settings.mode != Mode::none;
    const std::vector<double> summed =
        elements_of((step.settings.mode == Mode::gradient ? w : new_w).data(), dtype, count);
    l1 = oracle::chunk_sums(oracle::magnitudes(summed));
    l2 = oracle::chunk_sums(oracle::squares(summed));
    for (const double x : elements_of(new_w.data(), dtype, count)) {
      zeros += counts && x == 0.0 ? 1 : 0;
    }
    if (counts) {
      penalty = oracle::penalty(summed, {step.settings.l1, step.settings.l2});
    }
  }

  using Array = std::vector<unsigned char>;
  Array make(DType type, Fill kind, std::uint64_t seed) const {
    Array array(count * item_size(type) + 1);
    fill(array.data(), type, count, kind, seed * 1000 + count);
    return array;
  }
  static double at(DType type, const Array& array, std::size_t i) {
    return oracle::element(type, array.data() + i * item_size(type));
  }
  static void put(DType type, Array& array, std::size_t i, double number) {
    oracle::store(type, number, array.data() + i * item_size(type));
  }
  // Second moments are not negative, but for the sign of a NaN.
  void positive(Array& array, std::size_t i) const { array[(i + 1) * item_size(arithmetic) - 1] &= 0x7f; }

  Step step;
  DType dtype;
  DType arithmetic;
  DType gradient_dtype;
  std::size_t count;
  Array w, g, m, v, h;
  Array new_w, new_m, new_v, new_h;
  std::vector<double> l1;  // the sums of the chunks
  std::vector<double> l2;
  double penalty = 0.0;
  std::int64_t zeros = 0;
};

// Memory for one array of a case: at a distance from a line, and watched.
struct Held {
  Held(const Case::Array& from, DType dtype, std::size_t count, std::size_t offset)
      : bytes(count * item_size(dtype), offset), type(dtype), elements(count) {
    std::copy_n(from.begin(), bytes.size(), bytes.data());
  }
  void check(const Case::Array& expected, const std::string& what) const {
    CHECK(bytes.untouched(), what, "wrote beside an array");
    const std::size_t at = first_difference(bytes.data(), expected.data(), type, elements);
    CHECK(at == elements, what, "at", at);
  }
  Bytes bytes;
  DType type;
  std::size_t elements;
};

void run_case(const Case& cell, std::size_t offset, const std::string& what) {
  Held w(cell.w, cell.dtype, cell.count, offset);
  Held g(cell.g, cell.gradient_dtype, cell.count, 2 * offset);
  Held m(cell.m, cell.arithmetic, cell.count, 3 * offset);
  Held v(cell.v, cell.arithmetic, cell.count, 16 * offset);
  Held h(cell.h, cell.arithmetic, cell.count, offset);
  const StepSettings& settings = cell.step.settings;
  const StepRule rule = rule_for(cell.step);
  const bool is_adamw = settings.algorithm == Algorithm::adamw;
  const auto take = step_loops().take[static_cast<int>(settings.algorithm)][static_cast<int>(cell.dtype)]
                                     [cell.gradient_dtype == cell.dtype ? 0 : 1];
  std::int64_t zeros = 0;
  for (std::size_t begin = 0, chunk = 0; begin < cell.count; begin += chunk_size, ++chunk) {
    const auto place = [&](Held& array) { return array.bytes.data() + begin * item_size(array.type); };
    StepLanes lanes;
    take(rule,
         {place(w), place(g), uses_first(settings) ? place(m) : nullptr, is_adamw ? place(v) : nullptr,
          has_largest(settings) ? place(h) : nullptr,
          static_cast<std::int64_t>(std::min<std::size_t>(cell.count - begin, chunk_size))},
         lanes);
    halve_lanes(lanes.l1, lanes_per_chunk);
    halve_lanes(lanes.l2, lanes_per_chunk);
    zeros += lanes.zeros;
    if ((rule.coefficients.terms & term_l1) != 0) {
      CHECK(oracle::same_value(lanes.l1[0], cell.l1[chunk]), what, "l1 sum", chunk, lanes.l1[0], cell.l1[chunk]);
    }
    if ((rule.coefficients.terms & term_l2) != 0) {
      CHECK(oracle::same_value(lanes.l2[0], cell.l2[chunk]), what, "l2 sum", chunk, lanes.l2[0], cell.l2[chunk]);
    }
  }
  CHECK(zeros == cell.zeros, what, "zeros", zeros, cell.zeros);
  w.check(cell.new_w, what + " parameters");
  g.check(cell.g, what + " gradients");
  m.check(cell.new_m, what + " first");
  v.check(cell.new_v, what + " second");
  h.check(cell.new_h, what + " largest");
}

void run_random(int rounds, std::initializer_list<std::size_t> counts, Fill kind, std::uint64_t seed) {
  Random random(seed);
  for (int round = 0; round < rounds; ++round) {
    const Step step = random_step(random);
    for (const DType dtype : floating_dtypes) {
      for (const bool converted : {false, true}) {
        const std::size_t count = *(counts.begin() + random.below(static_cast<int>(counts.size())));
        const Case cell(step, dtype, converted, count, kind);
        for (const std::string& name : usable_instruction_sets()) {
          choose_instruction_set(name, "the test");
          const std::string what =
              text(name, name_of(dtype), converted ? "converted" : "", "count", count, description(step));
          run_case(cell, 0, what);
          run_case(cell, 1, what + " at any byte");
          run_case(cell, 8, what + " at any number");
        }
      }
    }
  }
}

// Rules whose operations have loops of their own, and each alone of what is done to gradients before.
void run_usual(int count) {
  Step step;
  StepSettings& s = step.settings;
  s.lr = 0.03125;
  s.l1 = 0.25;
  s.beta1 = 0.9;
  s.beta2 = 0.99;
  s.eps = 1e-8;
  s.factor = 1.0;
  step.taken = 3;
  const auto run = [&] {
    for (const DType dtype : floating_dtypes) {
      for (const bool converted : {false, true}) {
        const Case cell(step, dtype, converted, static_cast<std::size_t>(count), Fill::ordinary);
        for (const std::string& name : usable_instruction_sets()) {
          choose_instruction_set(name, "the test");
          for (const std::size_t offset : {1u, 8u}) {
            run_case(cell, offset,
                     text(name, name_of(dtype), converted ? "converted" : "", "offset", offset, description(step)));
          }
        }
      }
    }
  };
  for (const Algorithm algorithm : {Algorithm::sgd, Algorithm::adamw}) {
    s.algorithm = algorithm;
    for (const double weight_decay : {0.0, 0.5}) {
      for (const double momentum : {0.0, 0.75}) {
        s.weight_decay = weight_decay;
        s.momentum = momentum;
        for (const Mode mode : {Mode::none, Mode::proximal, Mode::scaled}) {
          s.mode = mode;
          if (mode != Mode::scaled || algorithm == Algorithm::adamw) {
            run();
          }
        }
      }
    }
    s.mode = Mode::gradient;
    for (const Clip clip : {Clip::none, Clip::data, Clip::total}) {
      for (const double loss_scale : {1.0, 8.0}) {
        step.clip = clip;
        step.factor = clip == Clip::none ? 1.0 : 0.3;
        step.loss_scale = loss_scale;
        for (const double l2 : {0.0, 0.125}) {
          s.l2 = l2;
          run();
        }
        s.l2 = 0.0;
      }
    }
    step = Step{s};
    step.taken = 3;
  }
}

// Roots by a known number are divided without a division: every seventh of those that there are, with the quotient
// passed on by 1 / q, and numbers that have no finite root.
template <class Real>
void check_roots(int numbers, DType dtype) {
  Random random(6);
  const Real infinity = std::numeric_limits<Real>::infinity();
  for (const std::int64_t taken : {0, 1, 7, 500, 100000}) {
    Step step;
    StepSettings& s = step.settings;
    s.algorithm = Algorithm::adamw;
    s.lr = 1.0;
    s.beta2 = 0.999;
    step.taken = taken;
    const StepRule rule = rule_for(step);
    constexpr std::size_t some = chunk_size;
    for (int first = 0; first < numbers; first += chunk_size) {
      std::vector<Real> v(some);
      for (std::size_t i = 0; i < some; ++i) {
        const double fraction = dtype == DType::f32 ? (7.0 * (first + static_cast<int>(i))) / 0x1p23 : random.number();
        v[i] = static_cast<Real>(1.0 + std::fmod(std::fabs(fraction), 3.0));
      }
      const Real others[] = {Real{0}, infinity, -Real{1}, std::numeric_limits<Real>::denorm_min()};
      std::copy(std::begin(others), std::end(others), v.begin());
      std::vector<Real> expected(some);
      for (std::size_t i = 0; i < some; ++i) {
        Element e{0.0, 1.0, 0.0, static_cast<double>(v[i]), 0.0};
        Scalar<Real>{step}.take(e);
        expected[i] = static_cast<Real>(e.w);
      }
      for (const std::string& name : usable_instruction_sets()) {
        choose_instruction_set(name, "the test");
        std::vector<Real> w(some), g(some, Real{1}), m(some), second(v);
        StepLanes lanes;
        step_loops().take[static_cast<int>(Algorithm::adamw)][static_cast<int>(dtype)][0](
            rule, {w.data(), g.data(), m.data(), second.data(), nullptr, static_cast<std::int64_t>(some)}, lanes);
        for (std::size_t i = 0; i < some; ++i) {
          CHECK(oracle::same_value(static_cast<double>(w[i]), static_cast<double>(expected[i])), name, name_of(dtype),
                "taken", taken, "v", v[i], "found", w[i], "expected", expected[i]);
        }
      }
    }
  }
}

// ---- whole calls

// An array of rows that are a number of elements longer than what counts of them.
struct Strided {
  Strided(const Case::Array& from, DType type, std::int64_t rows, std::int64_t columns, std::int64_t gap)
      : dtype(type), memory(bytes(rows * (columns + gap))) {
    shape[0] = rows;
    shape[1] = columns;
    strides[0] = columns + gap;
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      std::copy_n(from.data() + bytes(i), item_size(dtype), memory.data() + place(i));
    }
    view.data = reinterpret_cast<char*>(memory.data());
    view.shape = shape;
    view.strides = strides;
    view.stride_unit = static_cast<std::int64_t>(item_size(dtype));
    view.axes = 2;
    view.dtype = dtype;
    view.writable = true;
    measure(view);
  }
  Strided(const Strided&) = delete;
  Strided& operator=(const Strided&) = delete;

  std::size_t bytes(std::int64_t elements) const { return static_cast<std::size_t>(elements) * item_size(dtype); }
  std::size_t place(std::int64_t i) const { return bytes(i / shape[1] * strides[0] + i % shape[1]); }
  Case::Array elements() const {
    Case::Array found(bytes(shape[0] * shape[1]));
    for (std::int64_t i = 0; i < shape[0] * shape[1]; ++i) {
      std::copy_n(memory.data() + place(i), item_size(dtype), found.data() + bytes(i));
    }
    return found;
  }
  StepOperand operand(const ArrayView& weights, Layout& layout) {
    layout = make_layout(weights, &view == &weights ? nullptr : &view);
    return {memory.data(),
            (&view == &weights ? layout.weights_consecutive : layout.gradients_consecutive) ? nullptr : &layout};
  }

  DType dtype;
  std::int64_t shape[2] = {};
  std::int64_t strides[2] = {0, 1};
  Case::Array memory;
  ArrayView view;
};

struct Tensor {
  using Gaps = std::array<std::int64_t, 5>;  // of parameters, gradients and moments
  Tensor(const Case& cell, std::int64_t rows, std::int64_t columns, const Gaps& gaps)
      : w(cell.w, cell.dtype, rows, columns, gaps[0]),
        g(cell.g, cell.gradient_dtype, rows, columns, gaps[1]),
        m(cell.m, cell.arithmetic, rows, columns, gaps[2]),
        v(cell.v, cell.arithmetic, rows, columns, gaps[3]),
        h(cell.h, cell.arithmetic, rows, columns, gaps[4]) {
    const StepSettings& settings = cell.step.settings;
    item.parameters = w.operand(w.view, layouts[0]);
    item.gradients = g.operand(w.view, layouts[1]);
    if (uses_first(settings)) {
      item.first = m.operand(w.view, layouts[2]);
    }
    if (settings.algorithm == Algorithm::adamw) {
      item.second = v.operand(w.view, layouts[3]);
    }
    if (has_largest(settings)) {
      item.largest = h.operand(w.view, layouts[4]);
    }
    item.count = rows * columns;
    item.dtype = cell.dtype;
    item.gradient_dtype = cell.gradient_dtype;
    item.rule = rule_for(cell.step);
  }
  Strided w, g, m, v, h;
  Layout layouts[5];
  StepItem item{};
};

void check_array(const Strided& array, const Case::Array& expected, const std::string& what) {
  const auto count = static_cast<std::size_t>(array.shape[0] * array.shape[1]);
  const Case::Array found = array.elements();
  const std::size_t at = first_difference(found.data(), expected.data(), array.dtype, count);
  CHECK(at == count, what, "at", at);
}

void check_arrays(const Tensor& tensor, const Case& cell, const std::string& what) {
  check_array(tensor.w, cell.new_w, what + " parameters");
  check_array(tensor.g, cell.g, what + " gradients");
  check_array(tensor.m, cell.new_m, what + " first");
  check_array(tensor.v, cell.new_v, what + " second");
  check_array(tensor.h, cell.new_h, what + " largest");
}

struct Norms {
  explicit Norms(const Case& cell, int exponent) {
    std::vector<double> d;
    for (std::size_t i = 0; i < cell.count; ++i) {
      const double w = Case::at(cell.dtype, cell.w, i);
      const double g = Case::at(cell.gradient_dtype, cell.g, i);
      d.push_back(std::ldexp(
          cell.dtype == DType::f64 ? Scalar<double>{cell.step}.measured(w, g) : Scalar<float>{cell.step}.measured(w, g),
          exponent));
    }
    l2 = oracle::canonical_sum(oracle::squares(d));
    for (const double x : d) {
      maximum = std::isnan(x) || std::isnan(maximum) ? std::numeric_limits<double>::quiet_NaN()
                                                     : std::max(maximum, std::fabs(x));
      nonfinite += std::isfinite(x) ? 0 : 1;
    }
  }
  double l2;
  double maximum = 0.0;
  std::int64_t nonfinite = 0;
};

void check_call(const Step& step, Fill kind, Random& random) {
  struct Shape {
    std::int64_t rows;
    std::int64_t columns;
  };
  const Shape shapes[] = {{0, 3}, {1, 1}, {5, 7}, {33, 129}, {64, 64}, {90, 100}};
  std::vector<Case> cases;
  std::vector<Shape> sizes;
  for (const DType dtype : floating_dtypes) {
    for (const bool converted : {false, true}) {
      sizes.push_back(shapes[random.below(std::size(shapes))]);
      cases.emplace_back(step, dtype, converted, static_cast<std::size_t>(sizes.back().rows * sizes.back().columns),
                         kind);
    }
  }
  for (const int threads : {1, 2}) {
    set_num_threads(threads);
    std::vector<std::unique_ptr<Tensor>> tensors;
    std::vector<StepItem> items;
    for (std::size_t i = 0; i < cases.size(); ++i) {
      Tensor::Gaps gaps;
      std::generate(gaps.begin(), gaps.end(), [&] { return random.below(3); });
      tensors.push_back(std::make_unique<Tensor>(cases[i], sizes[i].rows, sizes[i].columns, gaps));
      items.push_back(tensors.back()->item);
    }
    for (const int exponent : {0, 1, 3}) {
      std::vector<Norm> norms(items.size());
      measure_steps(items.data(), items.size(), step.clip, exponent, norms.data());
      for (std::size_t i = 0; i < items.size(); ++i) {
        const Norms expected(cases[i], exponent);
        const std::string what = text("tensor", i, "norms", exponent, description(step));
        CHECK(oracle::same_value(norms[i].l2, expected.l2), what, "l2", norms[i].l2, expected.l2);
        if (exponent == 0) {
          CHECK(oracle::same_value(norms[i].maximum, expected.maximum), what, "maximum");
          CHECK(norms[i].nonfinite == expected.nonfinite, what, "counts");
        }
      }
    }
    std::vector<double> penalties(items.size(), std::numeric_limits<double>::quiet_NaN());
    std::vector<std::int64_t> zeros(items.size(), -1);
    take_steps(items.data(), items.size(), penalties.data(), zeros.data());
    for (std::size_t i = 0; i < items.size(); ++i) {
      const std::string what = text("tensor", i, "threads", threads, description(step));
      CHECK(oracle::same_value(penalties[i], cases[i].penalty), what, "penalty", penalties[i], cases[i].penalty);
      CHECK(zeros[i] == cases[i].zeros, what, "zeros");
      check_arrays(*tensors[i], cases[i], what);
    }
  }
}

void check_calls(int rounds, Fill kind, std::uint64_t seed) {
  for (const std::string& name : usable_instruction_sets()) {
    choose_instruction_set(name, "the test");
    Random random(seed);
    for (int round = 0; round < rounds; ++round) {
      check_call(random_step(random), kind, random);
    }
  }
}

}  // namespace

TEST(steps_of_every_kernel) {
  run_random(120, {1, 2, 15, 16, 31, 32, 33, 64, 511, 512, 513, 1057, 4096, 4097}, Fill::ordinary, 1);
}
TEST(steps_of_special_numbers) { run_random(120, {7, 64, 600}, Fill::special, 2); }
TEST(steps_of_usual_rules) {
  for (const int count : {33, 1057}) {
    run_usual(count);
  }
}
TEST(steps_divide_every_root) {
  check_roots<float>(3 * (1 << 23) / 7, DType::f32);
  check_roots<double>(1 << 18, DType::f64);
}
// One array of a step has gaps, the others lie as the loops take them.
TEST(steps_with_one_array_that_is_gathered) {
  Random random(5);
  for (int round = 0; round < 40; ++round) {
    const Step step = random_step(random);
    const Case cell(step, floating_dtypes[round % 4], false, 33 * 129, Fill::ordinary);
    for (std::size_t gathered = 0; gathered < 5; ++gathered) {
      Tensor::Gaps gaps{};
      gaps[gathered] = 2;
      const Tensor tensor(cell, 33, 129, gaps);
      double penalty = 0.0;
      std::int64_t zeros = 0;
      take_steps(&tensor.item, 1, &penalty, &zeros);
      check_arrays(tensor, cell, text("gathered", gathered, description(step)));
    }
  }
}
TEST(steps_of_many_tensors) {
  check_calls(12, Fill::ordinary, 3);
  check_calls(12, Fill::special, 4);
}

}  // namespace fastreg::test
