// The loops of norms over consecutive elements, of one instruction set: norm_loops.cpp is compiled once for each and
// exports exactly one symbol, its table.
#pragma once

#include <cstdint>

#include "../canonical_sum.h"
#include "../dtype.h"
#include "kernel.h"

namespace fastreg {

// A chunk that has been read so far.
struct NormLanes {
  alignas(64) double l1[lanes_per_chunk] = {};
  alignas(64) double l2[lanes_per_chunk] = {};
  std::uint64_t maximum = 0;  // the bits of |x| as float64: in the order of the numbers, infinity and NaN above all
  std::int64_t zeros = 0;
  std::int64_t nonfinite = 0;
};

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
