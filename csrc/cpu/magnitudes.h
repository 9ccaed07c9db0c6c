// The largest magnitude of many numbers, and how many are zeros, found in their bits as they are stored. Included by
// files that are compiled per instruction set, as vec.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "../dtype.h"
#include "vec.h"

namespace fastreg {
namespace {

// Signed integers of the size of an element, whose largest every instruction set finds fastest: magnitudes have no
// sign, and their bits are in the order of the numbers, infinity and then NaN above all.
template <class E>
struct MagnitudeOf;
template <>
struct MagnitudeOf<F16> {
  using type = std::int16_t;
  static constexpr type infinity = 0x7c00;
};
template <>
struct MagnitudeOf<BF16> {
  using type = std::int16_t;
  static constexpr type infinity = 0x7f80;
};
template <>
struct MagnitudeOf<F32> {
  using type = std::int32_t;
  static constexpr type infinity = 0x7f800000;
};
template <>
struct MagnitudeOf<F64> {
  using type = std::int64_t;
  static constexpr type infinity = 0x7ff0000000000000;
};

// NOLINTBEGIN(readability-redundant-inline-specifier): GCC asks for it beside the attribute, in templates.
template <class E>
class LargestMagnitude {
 public:
  using Magnitude = typename MagnitudeOf<E>::type;
  using Magnitudes = Vector<Magnitude>;
  static constexpr Magnitude all_but_the_sign = std::numeric_limits<Magnitude>::max();
  static constexpr int per_register = FASTREG_VECTOR_BYTES / static_cast<int>(sizeof(Magnitude));

  // Returns the magnitudes of a register's elements; `turn` counts registers.
  inline __attribute__((always_inline)) Magnitudes add(const void* elements, int turn) {
    const Magnitudes magnitudes = load_vector<Magnitudes>(elements) & all_but_the_sign;
    Magnitudes& largest = largest_[turn % 2];
    largest = magnitudes > largest ? magnitudes : largest;
    return magnitudes;
  }

  Magnitude found() const {
    const Magnitudes largest = largest_[0] > largest_[1] ? largest_[0] : largest_[1];
    Magnitude most = 0;
    for (int k = 0; k < per_register; ++k) {
      most = largest[k] > most ? largest[k] : most;
    }
    return most;
  }

 private:
  Magnitudes largest_[2] = {};
};
// NOLINTEND(readability-redundant-inline-specifier)

// Of so many elements as they are stored, a multiple of a row's.
template <class E>
FASTREG_INLINE std::int64_t count_zeros(const typename E::Storage* elements, int count) {
  using Largest = LargestMagnitude<E>;
  ZeroCount<typename Largest::Magnitude> zeros;
  for (int i = 0; i < count; i += Largest::per_register) {
    if constexpr (Access<E>::is_compute_type) {
      zeros.add_number(load_vector<Vector<typename E::Real>>(elements + i));
    } else {
      zeros.add(load_vector<typename Largest::Magnitudes>(elements + i) & Largest::all_but_the_sign);
    }
  }
  return zeros.total();
}

template <class E>
FASTREG_INLINE bool is_finite(typename MagnitudeOf<E>::type magnitude) {
  return magnitude < MagnitudeOf<E>::infinity;
}

// How many of the elements are infinite or NaN.
template <class E>
std::int64_t count_nonfinite(const typename E::Storage* elements, std::int64_t count) {
  using Magnitude = typename MagnitudeOf<E>::type;
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    Magnitude one;
    std::memcpy(&one, elements + i, sizeof one);
    found += is_finite<E>(one & std::numeric_limits<Magnitude>::max()) ? 0 : 1;
  }
  return found;
}

}  // namespace
}  // namespace fastreg
