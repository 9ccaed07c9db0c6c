// The gradient of one element, written once; the CPU kernels and the CUDA kernels both include it.
//
// `Ops::Real` is a float, a double, or a native-width vector of them. `Ops` also gives
//   sign(w)            +-1, +0 for both zeros, NaN for NaN
//   add_exact(s, l, x) s * l + x where s is a sign: the product is exact, so that fused or not the bits are the same
// All other operations are rounded: whoever includes this compiles without contraction (docs/numerics.md, 6).
#pragma once

#include "penalty.h"

#ifdef __CUDACC__
#define FASTREG_INLINE static __host__ __device__ __forceinline__
#else
#define FASTREG_INLINE [[maybe_unused]] static inline __attribute__((always_inline))
#endif

namespace fastreg {

// l1*sign(w) + (2*l2)*w, with an absent term left out rather than multiplied by zero.
template <class Ops, unsigned terms, class Real = typename Ops::Real>
FASTREG_INLINE Real penalty_gradient(Real w, Real gradient_l1, Real gradient_l2) {
  if constexpr (terms == term_l1) {
    return Ops::sign(w) * gradient_l1;
  } else if constexpr (terms == term_l2) {
    return gradient_l2 * w;
  } else {
    return Ops::add_exact(Ops::sign(w), gradient_l1, gradient_l2 * w);
  }
}

}  // namespace fastreg
