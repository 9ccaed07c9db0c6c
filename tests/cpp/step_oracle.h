// The step of an optimizer once more, one element in the words of the contract (docs/numerics.md, 12), and options for
// it.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "arrays.h"
#include "check.h"
#include "step.h"

namespace fastreg::test {

struct Step {
  StepSettings settings{};
  std::int64_t taken = 0;
  double loss_scale = 1.0;
  Clip clip = Clip::none;
  double factor = 1.0;
};

struct Element {
  double w, g, m, v, h;
};

[[maybe_unused]] static double power_of(double base, std::int64_t exponent) {
  double result = 1.0;
  for (double p = base; exponent != 0; exponent /= 2, p = p * p) {
    result = exponent % 2 != 0 ? result * p : result;
  }
  return result;
}

// One element in the words of the contract, every number rounded to Real and every operation as well.
template <class Real>
struct Scalar {
  const Step& step;
  const StepSettings& s = step.settings;

  static Real round(double x) { return static_cast<Real>(x); }
  static Real sign(Real w) { return w > 0 ? Real{1} : w < 0 ? Real{-1} : std::isnan(w) ? w : Real{0}; }
  bool has(unsigned flag) const { return (s.flags & flag) != 0; }

  Real first_line(double g) const {
    Real d = round(g);
    if (step.loss_scale != 1.0) {
      d = d * round(1.0 / step.loss_scale);
    }
    return has(flag_maximize) ? -d : d;
  }

  Real penalized(Real d, Real w) const {
    if (s.mode != Mode::gradient || (s.l1 == 0.0 && s.l2 == 0.0)) {
      return d;
    }
    const Real of_l1 = sign(w) * round(s.l1);
    const Real of_l2 = round(2.0 * s.l2) * w;
    if (s.l1 != 0.0 && s.l2 != 0.0) {
      const Real both = of_l1 + of_l2;
      return d + both;
    }
    return d + (s.l1 != 0.0 ? of_l1 : of_l2);
  }

  Real prox(Real u, Real t1, Real t2, bool has_l1, bool has_l2) const {
    if (has_l1) {
      const Real a = std::fabs(u) - t1;
      u = a > 0 ? std::copysign(a, u) : std::isnan(a) ? a : Real{0};
    }
    return has_l2 ? u / t2 : u;
  }

  Real left(Real w, Real kept, Real move, Real q) const {
    const bool has_l1 = s.l1 != 0.0;
    const bool has_l2 = s.l2 != 0.0;
    if (s.mode == Mode::proximal) {
      return prox(kept - move, round(s.lr * s.l1), round(1.0 + s.lr * (2.0 * s.l2)), has_l1, has_l2);
    }
    if (s.mode == Mode::scaled) {
      const Real quotient = round(s.lr * (2.0 * s.l2)) / q;
      return prox(kept - move, round(s.lr * s.l1) / q, Real{1} + quotient, has_l1, has_l2);
    }
    if (s.mode == Mode::decoupled) {
      const bool opposed = (move > 0 && w < 0) || (move < 0 && w > 0);
      if (has(flag_cautious) && opposed) {
        return kept - move;
      }
      const Real decayed = has_l2 ? kept * round(1.0 - s.factor * (2.0 * s.l2)) : kept;
      return prox(decayed - move, round(s.factor * s.l1), Real{1}, has_l1, false);
    }
    return kept - move;
  }

  void take(Element& e) const {
    const Real w = round(e.w);
    Real d = first_line(e.g);
    if (step.clip == Clip::data) {
      d = d * round(step.factor);
    }
    d = penalized(d, w);
    if (step.clip == Clip::total) {
      d = d * round(step.factor);
    }
    if (s.algorithm == Algorithm::sgd) {
      if (s.weight_decay != 0.0) {
        const Real decay = round(s.weight_decay) * w;
        d = d + decay;
      }
      if (s.momentum != 0.0) {
        const Real old = round(s.momentum) * round(e.m);
        const Real added = round(1.0 - s.dampening) * d;
        const Real m = step.taken == 0 ? d : old + added;
        const Real ahead = round(s.momentum) * m;
        d = has(flag_nesterov) ? d + ahead : m;
        e.m = m;
      }
      e.w = left(w, w, round(s.lr) * d, Real{0});
      return;
    }
    const std::int64_t t = step.taken + 1;
    const Real old_m = round(s.beta1) * round(e.m);
    const Real new_m = round(1.0 - s.beta1) * d;
    const Real m = old_m + new_m;
    const Real old_v = round(s.beta2) * round(e.v);
    const Real new_v = round(1.0 - s.beta2) * d;
    const Real square = new_v * d;
    const Real v = old_v + square;
    Real second = v;
    e.m = m;
    e.v = v;
    if (has(flag_amsgrad)) {
      const Real h = round(e.h);
      second = std::isnan(h) || h > v ? h : v;
      e.h = second;
    }
    const Real root = std::sqrt(second);
    const Real corrected = root / round(std::sqrt(1.0 - power_of(s.beta2, t)));
    const Real q = corrected + round(s.eps);
    const Real ratio = m / q;
    const Real move = round(s.lr / (1.0 - power_of(s.beta1, t))) * ratio;
    const Real kept = s.weight_decay != 0.0 ? w * round(1.0 - s.lr * s.weight_decay) : w;
    e.w = left(w, kept, move, q);
  }

  double measured(double w, double g) const {
    const Real d = first_line(g);
    return static_cast<double>(step.clip == Clip::total ? penalized(d, round(w)) : d);
  }
};

// Options at random, so that a run of some hundreds meets all pairs of them.
[[maybe_unused]] static Step random_step(Random& random) {
  const auto of = [&](std::initializer_list<double> numbers) {
    return *(numbers.begin() + random.below(static_cast<int>(numbers.size())));
  };
  Step step;
  StepSettings& s = step.settings;
  s.algorithm = random.below(2) != 0 ? Algorithm::adamw : Algorithm::sgd;
  const bool is_adamw = s.algorithm == Algorithm::adamw;
  do {
    s.mode = static_cast<Mode>(random.below(mode_count));
  } while (!is_adamw && s.mode == Mode::scaled);
  s.flags = static_cast<unsigned>(random.below(16));
  s.lr = of({0.0, 1e-3, 0.1, 0.5});
  s.weight_decay = of({0.0, 0.01, 0.3});
  if (is_adamw) {
    s.beta1 = of({0.0, 0.9});
    s.beta2 = of({0.99, 0.999});
    s.eps = of({0.0, 1e-8, 1e-3});
  } else {
    s.momentum = of({0.0, 0.9});
    s.dampening = of({0.0, 0.3});
  }
  s.l1 = of({0.0, 0.02, 1.5});
  s.l2 = of({0.0, 0.03, 2.0});
  s.factor = of({0.1, 1.0});
  step.taken = static_cast<std::int64_t>(of({0, 0, 1, 5, 1000, 123456}));
  step.loss_scale = of({1.0, 1.0, 1024.0, 3.0});
  step.clip = static_cast<Clip>(random.below(clip_count));
  step.factor = of({0.3, 1.0, 0.0});
  return step;
}

[[maybe_unused]] static std::string description(const Step& step) {
  const StepSettings& s = step.settings;
  return text("algorithm", static_cast<int>(s.algorithm), "mode", static_cast<int>(s.mode), "flags", s.flags, "lr",
              s.lr, "momentum", s.momentum, s.dampening, "decay", s.weight_decay, "betas", s.beta1, s.beta2, "eps",
              s.eps, "l1", s.l1, "l2", s.l2, "factor", s.factor, "taken", step.taken, "scale", step.loss_scale, "clip",
              static_cast<int>(step.clip), step.factor);
}

}  // namespace fastreg::test
