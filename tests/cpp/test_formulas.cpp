// The formulas of csrc/*.inl and csrc/step.h on plain floats and doubles, without a kernel: what tests/mutation
// changes.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "step.inl"
#include "step_oracle.h"

namespace fastreg::test {
namespace {

template <class T>
struct ScalarOps {
  using Real = T;
  static Real sign(Real w) { return w > 0 ? Real{1} : w < 0 ? Real{-1} : std::isnan(w) ? w : Real{0}; }
  static Real add_exact(Real s, Real l, Real x) { return s * l + x; }
  static Real shrink(Real u, Real t1) {
    const Real a = std::fabs(u) - t1;
    return a > 0 ? std::copysign(a, u) : std::isnan(a) ? a : Real{0};
  }
  static Real root_quotient(Real x, Real divisor, Real reciprocal) {
    CHECK(reciprocal == Real{1} / divisor, "the reciprocal of", divisor, "is", reciprocal);
    return std::sqrt(x) / divisor;
  }
};

template <class Real>
bool same(Real a, Real b) {
  return oracle::same_value(static_cast<double>(a), static_cast<double>(b));
}

// Numbers of both signs, and all that makes trouble.
template <class Real>
Real number(Random& random) {
  const Real infinity = std::numeric_limits<Real>::infinity();
  const Real specials[] = {Real{0},
                           -Real{0},
                           infinity,
                           -infinity,
                           std::numeric_limits<Real>::quiet_NaN(),
                           std::numeric_limits<Real>::denorm_min(),
                           Real{1},
                           -Real{1}};
  const int choice = random.below(60);
  return choice < static_cast<int>(std::size(specials)) ? specials[choice] : static_cast<Real>(random.number());
}

template <class Real>
StepNumbers<Real> rounded(const StepRule& rule) {
  return converted<Real>(rule.numbers, [](double x) { return static_cast<Real>(x); });
}

template <class Real>
void check_step(const Step& step, Random& random) {
  using Ops = ScalarOps<Real>;
  const StepSettings& s = step.settings;
  const StepRule rule = rule_of(s, step.taken, step.loss_scale, step.clip, step.factor);
  const StepNumbers<Real> n = rounded<Real>(rule);
  const Scalar<Real> scalar{step};
  for (int round = 0; round < 12; ++round) {
    const Real w = number<Real>(random);
    const Real g = number<Real>(random);
    Real m = number<Real>(random);
    Real v = std::fabs(number<Real>(random));
    Real h = round % 3 == 0 ? v : std::fabs(number<Real>(random));
    const Real before[] = {m, v, h};
    Element expected{w, g, m, v, h};
    scalar.take(expected);
    const Real found = s.algorithm == Algorithm::sgd ? sgd_step<Ops>(rule.operations, n, w, g, m)
                                                     : adamw_step<Ops>(rule.operations, n, w, g, m, v, h);
    const std::string what = text("w", w, "g", g, "m", before[0], "v", before[1], "h", before[2], description(step));
    CHECK(same(found, static_cast<Real>(expected.w)), what, "parameter", found, expected.w);
    CHECK(same(m, static_cast<Real>(expected.m)), what, "first", m, expected.m);
    CHECK(same(v, static_cast<Real>(expected.v)), what, "second", v, expected.v);
    CHECK(same(h, static_cast<Real>(expected.h)), what, "largest", h, expected.h);
    Real d = data_gradient<Ops>(rule.operations, n, g);
    if (step.clip == Clip::total) {
      d = with_penalty<Ops>(rule.operations, n, d, w);
    }
    CHECK(same(d, static_cast<Real>(scalar.measured(w, g))), what, "measured", d);
  }
}

// What a call refuses where it is not finite: the numbers that the contract's lines use with these settings, each once.
std::vector<double> used_numbers(const Step& step) {
  const StepSettings& s = step.settings;
  const bool is_adamw = s.algorithm == Algorithm::adamw;
  const bool is_proximal = s.mode == Mode::proximal || s.mode == Mode::scaled;
  const bool is_decoupled = s.mode == Mode::decoupled;
  std::vector<double> used = {s.lr};
  const auto add = [&](bool is_used, double x) {
    if (is_used) {
      used.push_back(x);
    }
  };
  add(step.loss_scale != 1.0, 1.0 / step.loss_scale);
  add(s.mode == Mode::gradient && s.l1 != 0.0, s.l1);
  add(s.mode == Mode::gradient && s.l2 != 0.0, 2.0 * s.l2);
  add(s.weight_decay != 0.0, s.weight_decay);
  add(is_adamw && s.weight_decay != 0.0, 1.0 - s.lr * s.weight_decay);
  add(!is_adamw && s.momentum != 0.0, s.momentum);
  add(!is_adamw && s.momentum != 0.0, 1.0 - s.dampening);
  add(is_decoupled && s.l2 != 0.0, 1.0 - s.factor * (2.0 * s.l2));
  add(is_decoupled && s.l1 != 0.0, s.factor * s.l1);
  add(is_proximal && s.l1 != 0.0, s.lr * s.l1);
  add(s.mode == Mode::proximal && s.l2 != 0.0, 1.0 + s.lr * (2.0 * s.l2));
  add(s.mode == Mode::scaled && s.l2 != 0.0, s.lr * (2.0 * s.l2));
  if (is_adamw) {
    const std::int64_t t = step.taken + 1;
    for (const double x : {s.beta1, 1.0 - s.beta1, s.beta2, 1.0 - s.beta2, s.eps, s.lr / (1.0 - power_of(s.beta1, t)),
                           std::sqrt(1.0 - power_of(s.beta2, t))}) {
      used.push_back(x);
    }
  }
  std::sort(used.begin(), used.end());
  return used;
}

void check_rule(const Step& step) {
  const StepSettings& s = step.settings;
  const StepRule rule = rule_of(s, step.taken, step.loss_scale, step.clip, step.factor);
  const std::string what = description(step);
  std::vector<double> visited;
  visit_numbers(rule, [&](double x) { visited.push_back(x); });
  std::sort(visited.begin(), visited.end());
  CHECK(visited == used_numbers(step), what, "numbers visited");
  const bool has_mode = s.mode != Mode::none;
  CHECK(rule.algorithm == s.algorithm && rule.counts == has_mode && rule.adds_before == (s.mode == Mode::gradient),
        what, "rule");
  const unsigned terms = (s.l1 != 0.0 ? 1u : 0u) + (s.l2 != 0.0 ? 2u : 0u);
  CHECK(rule.coefficients.l1 == s.l1 && rule.coefficients.l2 == s.l2 &&
            rule.coefficients.terms == (has_mode ? terms : 0u),
        what, "coefficients");
  const bool is_adamw = s.algorithm == Algorithm::adamw;
  CHECK(has_first(s) == (is_adamw || s.momentum != 0.0), what, "first");
  CHECK(has_largest(s) == (is_adamw && (s.flags & 4u) != 0), what, "largest");
}

template <class Real>
void check_prox_and_gradient(Random& random) {
  using Ops = ScalarOps<Real>;
  const Real w = number<Real>(random);
  const Real one = std::fabs(number<Real>(random));
  const Real two = std::fabs(number<Real>(random));
  const std::string what = text("w", w, "numbers", one, two);
  const Real shrunk = Ops::shrink(w, one);
  CHECK(same(proximal_step<Ops, 0u>(w, one, two), w), what, "prox without terms");
  CHECK(same(proximal_step<Ops, 1u>(w, one, two), shrunk), what, "prox of L1");
  CHECK(same(proximal_step<Ops, 2u>(w, one, two), w / two), what, "prox of L2");
  CHECK(same(proximal_step<Ops, 3u>(w, one, two), shrunk / two), what, "prox of both");
  const Real of_l1 = one * Ops::sign(w);
  const Real of_l2 = two * w;
  CHECK(same(penalty_gradient<Ops, 1u>(w, one, two), of_l1), what, "gradient of L1");
  CHECK(same(penalty_gradient<Ops, 2u>(w, one, two), of_l2), what, "gradient of L2");
  CHECK(same(penalty_gradient<Ops, 3u>(w, one, two), of_l1 + of_l2), what, "gradient of both");
}

}  // namespace

TEST(formulas_of_steps) {
  Random random(5);
  for (int round = 0; round < 1500; ++round) {
    const Step step = random_step(random);
    check_step<float>(step, random);
    check_step<double>(step, random);
    check_rule(step);
  }
}

// A state from elsewhere may have a -0.0, of which this step makes the second moment's +0.0.
TEST(formulas_of_equal_moments) {
  Step step;
  step.settings.algorithm = Algorithm::adamw;
  step.settings.flags = flag_amsgrad;
  step.settings.lr = 0.1;
  step.settings.beta1 = 0.9;
  step.settings.beta2 = 0.99;
  const StepRule rule = rule_of(step.settings, step.taken, step.loss_scale, step.clip, step.factor);
  double m = 0.0;
  double v = 0.0;
  double h = -0.0;
  adamw_step<ScalarOps<double>>(rule.operations, rounded<double>(rule), 1.0, 0.0, m, v, h);
  CHECK(h == 0.0 && !std::signbit(h), "largest", h);
}

// 2 * l2 comes first: where it overflows, no small factor brings it back.
TEST(formulas_of_huge_strengths) {
  const double infinity = std::numeric_limits<double>::infinity();
  StepSettings s{};
  s.algorithm = Algorithm::adamw;
  s.lr = 0.1;
  s.factor = 0.1;
  s.l2 = 1e308;
  const auto numbers = [&](Mode mode) {
    s.mode = mode;
    return rule_of(s, 0, 1.0, Clip::none, 1.0).numbers;
  };
  CHECK(numbers(Mode::decoupled).decay == -infinity, "decay");
  CHECK(numbers(Mode::proximal).divisor == infinity, "divisor");
  CHECK(numbers(Mode::scaled).divisor == infinity, "divisor of each element");
}

// Python's numbers are refused by these counts.
TEST(counts_of_options) {
  CHECK(static_cast<int>(Algorithm::adamw) + 1 == algorithm_count, algorithm_count);
  CHECK(static_cast<int>(Mode::decoupled) + 1 == mode_count, mode_count);
  CHECK(static_cast<int>(Clip::total) + 1 == clip_count, clip_count);
}

TEST(formulas_of_terms) {
  Random random(6);
  for (int round = 0; round < 3000; ++round) {
    check_prox_and_gradient<float>(random);
    check_prox_and_gradient<double>(random);
  }
}

}  // namespace fastreg::test
