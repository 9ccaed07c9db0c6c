// What the loops of norms and of clips leave of a chunk.
#pragma once

#include <cstdint>
#include <cstring>

#include "../canonical_sum.h"

namespace fastreg {

// A chunk that has been read so far.
struct NormLanes {
  alignas(64) double l1[lanes_per_chunk] = {};
  alignas(64) double l2[lanes_per_chunk] = {};
  std::uint64_t maximum = 0;  // the bits of |x| as float64: in the order of the numbers, infinity and NaN above all
  std::int64_t zeros = 0;
  std::int64_t nonfinite = 0;

  void add_maximum(double magnitude) {
    std::uint64_t bits;
    std::memcpy(&bits, &magnitude, sizeof bits);
    maximum = bits > maximum ? bits : maximum;
  }
};

}  // namespace fastreg
