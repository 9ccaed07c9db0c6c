// What a call asks for: terms, outputs, coefficients. L1, L2 and L1L2 are one function with two coefficients.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastreg {

// Terms are a 2-bit mask. A call without terms never reaches a kernel.
enum Terms : unsigned { term_l1 = 1, term_l2 = 2 };
constexpr unsigned term_cells = 3;  // masks 1, 2, 3

// Outputs are bits as well; five of the combinations are cells that exist.
enum Outputs : unsigned { output_value = 1, output_gradient = 2, output_add = 4 };
constexpr unsigned output_masks = 8;

[[maybe_unused]] static constexpr bool is_output_cell(unsigned outputs) {
  return outputs == output_value || (outputs & output_gradient) != 0;
}

// A proximal step is written where a gradient would be; with the value come that of what is written, and its zeros.
constexpr unsigned output_prox = 8;
[[maybe_unused]] static constexpr FASTREG_HOST_DEVICE bool is_prox(unsigned outputs) {
  return (outputs & output_prox) != 0;
}
[[maybe_unused]] static constexpr bool is_prox_cell(unsigned outputs) {
  return (outputs & ~unsigned{output_value}) == (output_gradient | output_prox);
}

// Everything that strengths and scales become, computed once per tensor in float64 (docs/numerics.md, 1).
// The gradient's two coefficients are rounded to float32 by the kernels that compute in float32.
struct Coefficients {
  double l1;           // l1 * scale: multiplies the sum of |w|
  double l2;           // l2 * scale: multiplies the sum of w*w
  double gradient_l1;  // (l1 * scale) * grad_scale: multiplies sign(w); of a proximal step t1
  double gradient_l2;  // 2 * ((l2 * scale) * grad_scale): multiplies w; of a proximal step t2
  unsigned terms;      // absent: the product with scale is zero
};

[[maybe_unused]] static FASTREG_HOST_DEVICE unsigned terms_of(const Coefficients& c) {
  return (c.l1 != 0.0 ? unsigned{term_l1} : 0u) | (c.l2 != 0.0 ? unsigned{term_l2} : 0u);
}

[[maybe_unused]] static Coefficients make_coefficients(double l1, double l2, double scale, double grad_scale) {
  Coefficients c{};
  c.l1 = l1 * scale;
  c.l2 = l2 * scale;
  c.gradient_l1 = c.l1 * grad_scale;
  c.gradient_l2 = 2.0 * (c.l2 * grad_scale);
  c.terms = terms_of(c);
  return c;
}

[[maybe_unused]] static Coefficients make_prox_coefficients(double l1, double l2, double scale, double step) {
  Coefficients c{};
  c.l1 = l1 * scale;
  c.l2 = l2 * scale;
  c.gradient_l1 = step * c.l1;
  c.gradient_l2 = 1.0 + step * (2.0 * c.l2);
  c.terms = terms_of(c);
  return c;
}

// The value of a penalty from its two sums. The absent term is left out, so that 0 * inf cannot make a NaN.
[[maybe_unused]] static FASTREG_HOST_DEVICE double penalty_value(const Coefficients& c, double l1_sum, double l2_sum) {
  switch (c.terms) {
    case term_l1:
      return c.l1 * l1_sum;
    case term_l2:
      return c.l2 * l2_sum;
    case term_l1 | term_l2:
      return c.l1 * l1_sum + c.l2 * l2_sum;
    default:
      return 0.0;
  }
}

}  // namespace fastreg
