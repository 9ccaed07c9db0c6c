// The loops of norms over consecutive elements, of one instruction set: norm_loops.cpp is compiled once for each and
// exports exactly one symbol, its table.
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "kernel.h"
#include "norm_lanes.h"

namespace fastreg {

struct NormLoops {
  // Adds elements of one chunk; all calls for it but the last have a multiple of 32.
  void (*add[floating_dtype_count])(const void* elements, std::int64_t count, NormLanes& lanes);
  void (*scale[floating_dtype_count])(void* elements, std::int64_t count, double factor);
  // Converts to float64.
  void (*widen[floating_dtype_count])(const void* elements, std::int64_t count, double* to);
};

namespace portable {
extern const NormLoops norm_loops[variant_count];  // by variant
}
namespace avx2 {
extern const NormLoops norm_loops[variant_count];  // by variant
}
namespace avx512 {
extern const NormLoops norm_loops[variant_count];  // by variant
}
namespace neon {
extern const NormLoops norm_loops[variant_count];  // by variant
}
namespace avx512_on_avx2 {
extern const NormLoops norm_loops[variant_count];  // by variant
}

// The loops of the instruction set in use.
const NormLoops& norm_loops(Variant variant);

}  // namespace fastreg
