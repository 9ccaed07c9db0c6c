// The step of one element, written once; the CPU kernels and the CUDA kernels both include it.
//
// `Ops::Real` is a float, a double, or a native-width vector of them. Beside what penalty.inl and prox.inl ask for,
// `Ops` gives
//   root_quotient(x, b, r)  sqrt(x) / b, both correctly rounded, for an r that is 1 / b rounded and b in [2^-27, 1]
// Which operations there are is the same for all elements of a tensor: the branches on it are always predicted. All
// operations are rounded, divisions correctly: whoever includes this compiles without contraction and without
// reciprocals (docs/numerics.md, 12).
#pragma once

#include "penalty.inl"
#include "prox.inl"
#include "step.h"

namespace fastreg {

[[maybe_unused]] static FASTREG_HOST_DEVICE constexpr bool does(unsigned operations, unsigned operation) {
  return (operations & operation) != 0;
}

// d of the first line: the data's gradient, unscaled and to be minimised.
template <class Ops, class Real = typename Ops::Real>
FASTREG_INLINE Real data_gradient(unsigned operations, const StepNumbers<Real>& n, Real g) {
  if (does(operations, op_unscale)) {
    g = g * n.inverse_scale;
  }
  return does(operations, op_negate) ? -g : g;
}

template <class Ops, class Real = typename Ops::Real>
FASTREG_INLINE Real with_penalty(unsigned operations, const StepNumbers<Real>& n, Real d, Real w) {
  if (does(operations, op_gradient_l1)) {
    return d + (does(operations, op_gradient_l2) ? penalty_gradient<Ops, term_l1 | term_l2>(w, n.l1, n.double_l2)
                                                 : penalty_gradient<Ops, term_l1>(w, n.l1, n.double_l2));
  }
  if (does(operations, op_gradient_l2)) {
    return d + penalty_gradient<Ops, term_l2>(w, n.l1, n.double_l2);
  }
  return d;
}

// d before SGD's weight decay.
template <class Ops, class Real = typename Ops::Real>
FASTREG_INLINE Real clipped_gradient(unsigned operations, const StepNumbers<Real>& n, Real g, Real w) {
  Real d = data_gradient<Ops>(operations, n, g);
  if (does(operations, op_clip_data)) {
    d = d * n.clip;
  }
  d = with_penalty<Ops>(operations, n, d, w);
  return does(operations, op_clip_total) ? d * n.clip : d;
}

// u after the proximal step or the decoupled L1.
template <class Ops, class Real = typename Ops::Real>
FASTREG_INLINE Real shrunk(unsigned operations, Real u, Real threshold, Real divisor) {
  if (does(operations, op_shrink)) {
    u = proximal_step<Ops, term_l1>(u, threshold, divisor);
  }
  return does(operations, op_divide) ? proximal_step<Ops, term_l2>(u, threshold, divisor) : u;
}

// What becomes of the parameter: `kept` is w after AdamW's weight decay, `s` is taken from it.
template <class Ops, class Real = typename Ops::Real>
FASTREG_INLINE Real moved(unsigned operations, const StepNumbers<Real>& n, Real w, Real kept, Real s) {
  const Real decayed = does(operations, op_decay) ? kept * n.decay : kept;
  const Real u = shrunk<Ops>(operations, decayed - s, n.threshold, n.divisor);
  if (does(operations, op_cautious)) {
    const Real zero{};
    const auto are_opposed = ((s > zero) & (w < zero)) | ((s < zero) & (w > zero));
    return are_opposed ? kept - s : u;
  }
  return u;
}

// Returns the parameter after the step; `m` is the momentum, neither read nor written without op_momentum.
template <class Ops, class Real = typename Ops::Real>
FASTREG_INLINE Real sgd_step(unsigned operations, const StepNumbers<Real>& n, Real w, Real g, Real& m) {
  Real d = clipped_gradient<Ops>(operations, n, g, w);
  if (does(operations, op_weight_decay)) {
    d = d + n.weight_decay * w;
  }
  if (does(operations, op_momentum)) {
    m = does(operations, op_begin) ? d : n.momentum * m + n.undamped * d;
    d = does(operations, op_nesterov) ? d + n.momentum * m : m;
  }
  return moved<Ops>(operations, n, w, w, n.lr * d);
}

// The same with both moments, and the largest second moment, which is neither read nor written without op_amsgrad.
template <class Ops, class Real = typename Ops::Real>
FASTREG_INLINE Real adamw_step(unsigned operations, const StepNumbers<Real>& n, Real w, Real g, Real& m, Real& v,
                               Real& h) {
  const Real d = clipped_gradient<Ops>(operations, n, g, w);
  m = n.beta1 * m + n.one_minus_beta1 * d;
  v = n.beta2 * v + (n.one_minus_beta2 * d) * d;
  Real second = v;
  if (does(operations, op_amsgrad)) {
    // The larger, NaN if either is.
    const auto stays = (h > v) | (h != h);
    h = stays ? h : v;
    second = h;
  }
  const Real q = Ops::root_quotient(second, n.correction, n.inverse_correction) + n.eps;
  const Real s = n.size * (m / q);
  const Real kept = does(operations, op_weight_decay) ? w * n.kept : w;
  if (does(operations, op_scaled)) {
    Real threshold{};
    Real divisor{};
    if (does(operations, op_shrink)) {
      threshold = n.threshold / q;
    }
    if (does(operations, op_divide)) {
      divisor = n.one + n.divisor / q;
    }
    return shrunk<Ops>(operations, kept - s, threshold, divisor);
  }
  return moved<Ops>(operations, n, w, kept, s);
}

}  // namespace fastreg
