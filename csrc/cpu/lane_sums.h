// The lane sums of canonical_sum.h in registers, and the numbers that are added to them: consecutive ones, in rows of
// 32, in the type of the arithmetic. Included by files that are compiled per instruction set, as vec.h.
//
// Lanes are added in groups, so that the accumulators of both sums and the temporaries fit the registers: 16 with SSE2
// and AVX2, 32 with AVX-512, where a group is the whole row.
#pragma once

#include <cstdint>
#include <cstring>

#include "../canonical_sum.h"
#include "../penalty.h"
#include "vec.h"

namespace fastreg {
namespace {

// Of registers of so many bytes, one after the other.
template <int sum_bytes>
struct LaneSums {
  using Sum = typename VectorOf<double, sum_bytes>::type;
  static constexpr int lanes = sum_bytes / static_cast<int>(sizeof(double));
  static constexpr int registers = lanes_per_chunk / lanes;
  static constexpr int registers_per_group = has_avx512 ? registers : 4;
  static constexpr int groups = registers / registers_per_group;
  static_assert(registers % registers_per_group == 0);

  Sum l1[registers];
  Sum l2[registers];

  LaneSums() {
    // One by one: a compiler clears the arrays by an instruction that takes 40 cycles.
    for (int k = 0; k < registers; ++k) {
      l1[k] = l2[k] = Sum{};
    }
  }

  LaneSums(const double* l1_lanes, const double* l2_lanes) {
    for (int k = 0; k < registers; ++k) {
      l1[k] = load_vector<Sum>(l1_lanes + k * lanes);
      l2[k] = load_vector<Sum>(l2_lanes + k * lanes);
    }
  }

  void store(double* l1_lanes, double* l2_lanes) const {
    for (int k = 0; k < registers; ++k) {
      store_vector(l1_lanes + k * lanes, l1[k]);
      store_vector(l2_lanes + k * lanes, l2[k]);
    }
  }
};

// How numbers are added.
struct Addition {
  bool rounds;          // their squares have to be rounded, as those of float64 are; else they are exact
  bool are_magnitudes;  // they have no sign
  bool by_product;      // magnitudes times one: Zen adds where it widens, and the units of the products are free
};

// Adds rows of numbers; fetch(address) goes before what a group takes of a row.
template <unsigned terms, Addition how, class Sums, class Real, class Fetch>
FASTREG_INLINE void add_rows(const Real* numbers, int rows, Sums& sums, Fetch fetch) {
  using Sum = typename Sums::Sum;
  constexpr int group = Sums::registers_per_group;
  constexpr bool by_product = has_fused_product && how.by_product;
  const Sum one [[maybe_unused]] = opaque(Sum{} + 1.0);
  for (int first = 0; first < Sums::registers; first += group) {
    Sum l1[group];
    Sum l2[group];
    for (int k = 0; k < group; ++k) {
      l1[k] = sums.l1[first + k];
      l2[k] = sums.l2[first + k];
    }
    const Real* row = numbers + first * Sums::lanes;
    for (int i = 0; i < rows; ++i, row += lanes_per_chunk) {
      fetch(row);
      for (int k = 0; k < group; ++k) {
        const Sum x = load_wide<Sum>(row + k * Sums::lanes);
        if constexpr ((terms & term_l1) != 0) {
          const Sum magnitude = how.are_magnitudes ? x : absolute<double>(x);
          l1[k] = by_product ? add_exact_product<double>(magnitude, one, l1[k]) : l1[k] + magnitude;
        }
        if constexpr ((terms & term_l2) != 0) {
          l2[k] = how.rounds ? l2[k] + x * x : add_exact_product<double>(x, x, l2[k]);
        }
      }
    }
    for (int k = 0; k < group; ++k) {
      sums.l1[first + k] = l1[k];
      sums.l2[first + k] = l2[k];
    }
  }
}

template <unsigned terms, bool rounds, bool are_magnitudes, class Sums, class Real>
FASTREG_INLINE void add_rows(const Real* numbers, int rows, Sums& sums) {
  add_rows<terms, Addition{rounds, are_magnitudes, !rounds && !are_magnitudes}>(numbers, rows, sums,
                                                                                [](const Real*) {});
}

// The sum of all lanes of one term, or of those in its first `count` registers.
template <class Sum>
FASTREG_INLINE double halve(Sum* registers, int count = lanes_per_chunk * static_cast<int>(sizeof(double)) /
                                                        static_cast<int>(sizeof(Sum))) {
  constexpr int lanes = static_cast<int>(sizeof(Sum) / sizeof(double));
  halve_lanes(registers, count);
  double last[lanes];
  std::memcpy(last, registers, sizeof last);
  halve_lanes(last, lanes);
  return last[0];
}

}  // namespace
}  // namespace fastreg
