// Fetching what lies ahead, by the variant of a kernel. Included by files that are compiled per instruction set, as
// vec.h.
#pragma once

#include <cstdint>

#include "kernel.h"
#include "vec.h"

namespace fastreg {
namespace {

constexpr int line_bytes = 64;
// Of fewer elements it does not pay to begin what is written at a line.
constexpr int fewest_aligned = 1024;
// How far ahead the weights and the old gradients are fetched: L1 has few lines in flight, L2 more, and the hardware's
// own fetching stops at every 4 KiB page.
constexpr int near_distance = 4096;
constexpr int far_distance = 8192;

// Fetches what lies ahead of the `bytes` at `address`. Unrolled, for each variant: a loop that could be told otherwise
// cost 10 to 26 % in cache.
template <Variant variant, std::uintptr_t bytes>
FASTREG_INLINE void fetch_ahead([[maybe_unused]] const void* address) {
  if constexpr (variant == Variant::near || variant == Variant::far) {
    // As an integer: the place may lie past the array's end, where a pointer must not be formed.
    const auto here = reinterpret_cast<std::uintptr_t>(address);
    constexpr int into_l2 = 2;
    for (std::uintptr_t line = 0; line < bytes; line += line_bytes) {
      __builtin_prefetch(reinterpret_cast<const void*>(here + line + near_distance));
      if constexpr (variant == Variant::far) {
        __builtin_prefetch(reinterpret_cast<const void*>(here + line + far_distance), 0, into_l2);
      }
    }
  }
}

// For kernels that differ in nothing but what is fetched ahead.
constexpr Variant fetches_of(Variant variant) {
  return variant == Variant::near || variant == Variant::far ? variant : Variant::plain;
}

// The variant whose kernels stand for another's. Each takes seconds to compile, so that there is one for several where
// they would not differ, or where nothing was measured: registers that do not hold a row's sums make `cached` and
// `whole` plain, and those that do not hold two `pairs`; 16 bytes have one distance; 64 bytes without AVX-512 are there
// for tests.
constexpr Variant kernels_of(Variant variant) {
  if (FASTREG_VECTOR_BYTES == 64) {
    return has_avx512 ? variant : Variant::plain;
  }
  return FASTREG_VECTOR_BYTES == 16 && fetches_of(variant) == Variant::far ? Variant::near : fetches_of(variant);
}

}  // namespace
}  // namespace fastreg
