// The step of an optimizer over many tensors in one pass, and the norms of what it clips (docs/numerics.md, 12). What
// they are given has been checked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "layout.h"
#include "norms.h"
#include "owner.h"
#include "step.h"

namespace fastreg {

// An array, in the order of the parameters' elements. Null layout: consecutive in that order; else the array is what
// the layout calls gradients, and the parameters are its weights.
struct StepOperand {
  void* data = nullptr;
  const Layout* layout = nullptr;
};

struct StepItem {
  StepOperand parameters;  // the weights of its layout
  StepOperand gradients;   // only read
  StepOperand first;       // moments, in the type of the arithmetic; those that the rule needs
  StepOperand second;
  StepOperand largest;
  std::int64_t count;
  DType dtype;
  DType gradient_dtype;  // dtype, or that of the arithmetic
  StepRule rule;
};

// float64 for itself, float32 for the others.
[[maybe_unused]] static constexpr DType arithmetic_of(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

// The norms of d at the line of the clip, but for l1 and zeros, of which nothing is said: with the penalty's gradient
// in it for Clip::total, else without. Else only the gradients are read. Exponent and memory as for measure_items.
void measure_steps(const StepItem* items, std::size_t item_count, Clip clip, int exponent, Norm* norms,
                   Owner owner = Owner::other);

// Takes the steps, and writes the penalty of each item and the number of its zeros, both 0 where the mode is none.
// Throws std::bad_alloc before anything is written.
void take_steps(const StepItem* items, std::size_t item_count, double* penalties, std::int64_t* zeros,
                Owner owner = Owner::other);

}  // namespace fastreg
