// What the step of an optimizer is given, and the numbers that follow from it (docs/numerics.md, 12). The same as
// fastreg/_base/steps.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "penalty.h"

namespace fastreg {

// The values are those that Python hands in.
enum class Algorithm : std::uint8_t { sgd, adamw };
constexpr int algorithm_count = 2;
enum class Mode : std::uint8_t { none, gradient, proximal, scaled, decoupled };  // scaled: by AdamW's preconditioner
constexpr int mode_count = 5;
enum class Clip : std::uint8_t { none, data, total };
constexpr int clip_count = 3;
enum StepFlags : unsigned { flag_nesterov = 1, flag_maximize = 2, flag_amsgrad = 4, flag_cautious = 8 };

struct StepSettings {
  Algorithm algorithm;
  Mode mode;
  unsigned flags;
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  double beta1;
  double beta2;
  double eps;
  double l1;  // times scale, as l2 is
  double l2;
  double factor;  // of decoupled strengths
};

[[maybe_unused]] static FASTREG_HOST_DEVICE bool has_first(const StepSettings& settings) {
  return settings.algorithm == Algorithm::adamw || settings.momentum != 0.0;
}
[[maybe_unused]] static FASTREG_HOST_DEVICE bool has_largest(const StepSettings& settings) {
  return settings.algorithm == Algorithm::adamw && (settings.flags & flag_amsgrad) != 0;
}

// What is done to an element: an operation whose number is absent is left out rather than done with 0 or 1.
enum Operations : unsigned {
  op_unscale = 1u << 0,
  op_negate = 1u << 1,
  op_clip_data = 1u << 2,
  op_gradient_l1 = 1u << 3,
  op_gradient_l2 = 1u << 4,
  op_clip_total = 1u << 5,
  op_weight_decay = 1u << 6,
  op_momentum = 1u << 7,
  op_begin = 1u << 8,  // the momentum is not there yet
  op_nesterov = 1u << 9,
  op_amsgrad = 1u << 10,
  op_decay = 1u << 11,  // decoupled L2
  op_shrink = 1u << 12,
  op_divide = 1u << 13,
  op_scaled = 1u << 14,  // both of them by AdamW's preconditioner
  op_cautious = 1u << 15,
};

// What is done to the gradient before the algorithm has it.
constexpr unsigned on_gradients =
    op_unscale | op_negate | op_clip_data | op_gradient_l1 | op_gradient_l2 | op_clip_total;

template <class Real>
struct StepNumbers {
  Real inverse_scale;
  Real clip;
  Real l1;
  Real double_l2;
  Real weight_decay;
  Real momentum;
  Real undamped;  // 1 - dampening
  Real beta1;
  Real one_minus_beta1;
  Real beta2;
  Real one_minus_beta2;
  Real eps;
  Real lr;
  Real kept;        // 1 - lr * weight_decay
  Real size;        // A = lr / (1 - beta1^t)
  Real correction;  // B = sqrt(1 - beta2^t)
  Real decay;       // 1 - factor * (2 * l2)
  Real threshold;   // t1; scaled, what is still to be divided by q
  Real divisor;     // t2; scaled, lr * (2 * l2)
  Real one;
  Real inverse_correction;  // of the converted numbers alone: 1 / B, rounded once to their type
};

template <class To, class From, class Convert>
static FASTREG_HOST_DEVICE StepNumbers<To> converted(const StepNumbers<From>& n, Convert to) {
  return {to(n.inverse_scale),
          to(n.clip),
          to(n.l1),
          to(n.double_l2),
          to(n.weight_decay),
          to(n.momentum),
          to(n.undamped),
          to(n.beta1),
          to(n.one_minus_beta1),
          to(n.beta2),
          to(n.one_minus_beta2),
          to(n.eps),
          to(n.lr),
          to(n.kept),
          to(n.size),
          to(n.correction),
          to(n.decay),
          to(n.threshold),
          to(n.divisor),
          to(n.one),
          to(n.one) / to(n.correction)};
}

// A step of one tensor.
struct StepRule {
  Algorithm algorithm;
  unsigned operations;
  StepNumbers<double> numbers;  // not rounded yet to the type of the arithmetic
  Coefficients coefficients;    // of the penalty's value; nothing else of them is set
  bool counts;                  // zeros, and adds up the penalty if there is a term
  bool adds_before;             // the penalty is that of the parameters before the step
};

// By squaring, from the lowest bit of the exponent: `pow` differs between libraries.
[[maybe_unused]] static FASTREG_HOST_DEVICE double power(double base, std::int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) {
      result *= base;
    }
    base *= base;
  }
  return result;
}

[[maybe_unused]] static FASTREG_HOST_DEVICE unsigned operations_of(const StepSettings& s, std::int64_t steps,
                                                                   double loss_scale, Clip clip) {
  unsigned found = 0;
  const auto add = [&](bool is_there, unsigned operation) { found |= is_there ? operation : 0u; };
  const bool is_proximal = s.mode == Mode::proximal || s.mode == Mode::scaled;
  add(loss_scale != 1.0, op_unscale);
  add((s.flags & flag_maximize) != 0, op_negate);
  add(clip == Clip::data, op_clip_data);
  add(clip == Clip::total, op_clip_total);
  add(s.mode == Mode::gradient && s.l1 != 0.0, op_gradient_l1);
  add(s.mode == Mode::gradient && s.l2 != 0.0, op_gradient_l2);
  add(s.weight_decay != 0.0, op_weight_decay);
  if (s.algorithm == Algorithm::sgd && s.momentum != 0.0) {
    add(true, op_momentum);
    add(steps == 0, op_begin);
    add((s.flags & flag_nesterov) != 0, op_nesterov);
  }
  add(has_largest(s), op_amsgrad);
  add(s.mode == Mode::decoupled && s.l2 != 0.0, op_decay);
  add((is_proximal || s.mode == Mode::decoupled) && s.l1 != 0.0, op_shrink);
  add(is_proximal && s.l2 != 0.0, op_divide);
  add(s.mode == Mode::scaled, op_scaled);
  add(s.mode == Mode::decoupled && (s.flags & flag_cautious) != 0, op_cautious);
  return found;
}

// Computed in float64 from left to right, for the next step of a tensor that took `steps`.
[[maybe_unused]] static FASTREG_HOST_DEVICE StepNumbers<double> numbers_of(const StepSettings& s, std::int64_t steps,
                                                                           double loss_scale, double factor) {
  StepNumbers<double> n{};
  n.inverse_scale = 1.0 / loss_scale;
  n.clip = factor;
  n.l1 = s.l1;
  n.double_l2 = 2.0 * s.l2;
  n.weight_decay = s.weight_decay;
  n.momentum = s.momentum;
  n.undamped = 1.0 - s.dampening;
  n.beta1 = s.beta1;
  n.one_minus_beta1 = 1.0 - s.beta1;
  n.beta2 = s.beta2;
  n.one_minus_beta2 = 1.0 - s.beta2;
  n.eps = s.eps;
  n.lr = s.lr;
  n.kept = 1.0 - s.lr * s.weight_decay;
  if (s.algorithm == Algorithm::adamw) {
    n.size = s.lr / (1.0 - power(s.beta1, steps + 1));
    n.correction = std::sqrt(1.0 - power(s.beta2, steps + 1));
  }
  n.decay = 1.0 - s.factor * (2.0 * s.l2);
  n.threshold = (s.mode == Mode::decoupled ? s.factor : s.lr) * s.l1;
  n.one = 1.0;
  n.divisor = s.mode == Mode::scaled ? s.lr * (2.0 * s.l2) : 1.0 + s.lr * (2.0 * s.l2);
  return n;
}

[[maybe_unused]] static FASTREG_HOST_DEVICE StepRule rule_of(const StepSettings& settings, std::int64_t steps,
                                                             double loss_scale, Clip clip, double factor) {
  StepRule rule{};
  rule.algorithm = settings.algorithm;
  rule.operations = operations_of(settings, steps, loss_scale, clip);
  rule.numbers = numbers_of(settings, steps, loss_scale, factor);
  rule.coefficients.l1 = settings.l1;
  rule.coefficients.l2 = settings.l2;
  rule.coefficients.terms = settings.mode == Mode::none ? 0u : terms_of(rule.coefficients);
  rule.counts = settings.mode != Mode::none;
  rule.adds_before = settings.mode == Mode::gradient;
  return rule;
}

// Calls visit with each number that the operations use, but for the clip, which may be NaN.
template <class Visit>
static void visit_numbers(const StepRule& rule, Visit visit) {
  const StepNumbers<double>& n = rule.numbers;
  const auto visit_if = [&](unsigned operations, double number) {
    if ((rule.operations & operations) != 0) {
      visit(number);
    }
  };
  visit(n.lr);
  visit_if(op_unscale, n.inverse_scale);
  visit_if(op_gradient_l1, n.l1);
  visit_if(op_gradient_l2, n.double_l2);
  visit_if(op_weight_decay, n.weight_decay);
  visit_if(op_momentum, n.momentum);
  visit_if(op_momentum, n.undamped);
  visit_if(op_decay, n.decay);
  visit_if(op_shrink, n.threshold);
  visit_if(op_divide, n.divisor);
  if (rule.algorithm == Algorithm::adamw) {
    const double of_adamw[] = {n.beta1, n.one_minus_beta1, n.beta2, n.one_minus_beta2, n.eps, n.size, n.correction};
    for (const double number : of_adamw) {
      visit(number);
    }
    visit_if(op_weight_decay, n.kept);
  }
}

}  // namespace fastreg
