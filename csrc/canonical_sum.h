// The canonical sum (docs/numerics.md, 4): its constants and its tree, written once.
//
// Terms are cut into chunks of 4096; a chunk has 32 lanes, lane j adding the terms j, j+32, j+64, ... in this order;
// the lanes are halved; the chunk sums are the terms of a canonical sum in turn until one is left.
//
// All functions are static: this header is included by files that are compiled per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

// Set by compilers under -ffast-math and parts of it; CMakeLists.txt appends the flags that undo them.
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(__NO_SIGNED_ZEROS__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "the sums of fastreg need IEEE arithmetic: compile without -ffast-math and its parts"
#endif

#ifdef __CUDACC__
#define FASTREG_SUM_FUNCTION [[maybe_unused]] static __host__ __device__
#else
#define FASTREG_SUM_FUNCTION [[maybe_unused]] static inline
#endif

namespace fastreg {

constexpr int lanes_per_chunk = 32;
constexpr int chunk_size = 4096;

FASTREG_SUM_FUNCTION constexpr std::int64_t chunk_count(std::int64_t terms) {
  return terms / chunk_size + (terms % chunk_size != 0 ? 1 : 0);
}

// Halves `count` lanes into the first. `Lane` is a double, or a vector of consecutive lanes: lanes 2k apart are k
// vectors apart until one vector is left, whose elements are then halved by a second call.
template <class Lane>
FASTREG_SUM_FUNCTION void halve_lanes(Lane* lanes, int count) {
  for (int half = count / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) {
      lanes[j] += lanes[j + half];
    }
  }
}

FASTREG_SUM_FUNCTION double sum_chunk(const double* terms, int count) {
  double lanes[lanes_per_chunk] = {};
  for (int i = 0; i < count; ++i) {
    lanes[i % lanes_per_chunk] += terms[i];
  }
  halve_lanes(lanes, lanes_per_chunk);
  return lanes[0];
}

// Puts the sum of each chunk of `terms` in the place of the terms; returns how many they are.
FASTREG_SUM_FUNCTION std::int64_t sum_chunks_in_place(double* terms, std::int64_t count) {
  const std::int64_t chunks = chunk_count(count);
  for (std::int64_t c = 0; c < chunks; ++c) {
    const std::int64_t begin = c * chunk_size;
    const std::int64_t rest = count - begin;
    terms[c] = sum_chunk(terms + begin, static_cast<int>(rest < chunk_size ? rest : chunk_size));
  }
  return chunks;
}

// The canonical sum of the terms whose chunk sums are given; they are overwritten.
FASTREG_SUM_FUNCTION double sum_of_chunk_sums(double* sums, std::int64_t count) {
  while (count > 1) {
    count = sum_chunks_in_place(sums, count);
  }
  return count == 0 ? 0.0 : sums[0];
}

// The canonical sum of `terms`, which are overwritten. A single term is a chunk too, so that -0.0 gives +0.0.
FASTREG_SUM_FUNCTION double canonical_sum_in_place(double* terms, std::int64_t count) {
  return sum_of_chunk_sums(terms, sum_chunks_in_place(terms, count));
}

}  // namespace fastreg
