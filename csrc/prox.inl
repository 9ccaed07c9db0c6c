// The proximal step of one element, written once; the CPU kernels and the CUDA kernels both include it.
//
// `Ops::Real` is a float, a double, or a native-width vector of them. `Ops` also gives
//   shrink(u, t1)      a = |u| - t1 with the sign of u where a > 0; +0 where a <= 0; NaN where a is NaN
// All operations are rounded, the division correctly: whoever includes this compiles without contraction and without
// reciprocals (docs/numerics.md, 9).
#pragma once

#include "penalty.inl"

namespace fastreg {

// The minimiser of |x - u|^2 / 2 + step * penalty(x), with t1 = step * l1 and t2 = 1 + step * (2 * l2). An absent term
// is left out: without L1 a zero keeps its sign.
template <class Ops, unsigned terms, class Real = typename Ops::Real>
FASTREG_INLINE Real proximal_step(Real u, Real t1, Real t2) {
  if constexpr ((terms & term_l1) != 0) {
    u = Ops::shrink(u, t1);
  }
  if constexpr ((terms & term_l2) != 0) {
    u = u / t2;
  }
  return u;
}

}  // namespace fastreg
