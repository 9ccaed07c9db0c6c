// The steps of optimizers over consecutive elements, of one instruction set: step_kernel.cpp is compiled once for each
// and exports exactly one symbol, its table.
#pragma once

#include <cstdint>

#include "../canonical_sum.h"
#include "../dtype.h"
#include "../step.h"
#include "kernel.h"
#include "norm_lanes.h"

namespace fastreg {

// Moments are in the type of the arithmetic; those that the rule does not need are ignored.
struct StepArguments {
  void* parameters;
  const void* gradients;
  void* first;
  void* second;
  void* largest;
  std::int64_t count;
};

// A chunk whose step has been taken so far.
struct StepLanes {
  double l1[lanes_per_chunk] = {};
  double l2[lanes_per_chunk] = {};
  std::int64_t zeros = 0;
};

using TakeStep = void (*)(const StepRule& rule, const StepArguments& arguments, StepLanes& lanes);
// Adds squares, the largest magnitude and what is not finite of d at the line of the clip, of the data alone or with
// the penalty's gradient in it; without it the parameters are not read. Squares are those of d times 2^exponent.
using MeasureStep = void (*)(const StepRule& rule, bool with_penalty, int exponent, const void* parameters,
                             const void* gradients, std::int64_t count, NormLanes& lanes);

// All calls for a chunk but the last have a multiple of 32 elements. [the parameters' dtype][whether the gradients are
// in the type of the arithmetic instead]
struct StepLoops {
  TakeStep take[algorithm_count][floating_dtype_count][2];
  // By variant: how far ahead gradients are fetched where nothing else is read.
  MeasureStep measure[variant_count][floating_dtype_count][2];
};

namespace portable {
extern const StepLoops step_loops;
}
namespace avx2 {
extern const StepLoops step_loops;
}
namespace avx512 {
extern const StepLoops step_loops;
}
namespace neon {
extern const StepLoops step_loops;
}
namespace avx512_on_avx2 {
extern const StepLoops step_loops;
}

// The loops of the instruction set in use.
const StepLoops& step_loops();

}  // namespace fastreg
