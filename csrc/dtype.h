// The element types, listed once.
//
// The first four are what gradients may have and what kernels are compiled for. The others can only be read: they are
// converted to float64 (nearest even) while a chunk is gathered, and then take the f64 kernel (contract, paragraph 3).
//
// This header is included by files that are compiled per instruction set, so every function in it is `static`:
// an inline function with external linkage could be merged by the linker into the copy made for AVX-512.
#pragma once

#include <cstddef>
#include <cstdint>

// For the few functions that CUDA kernels call as well.
#ifdef __CUDACC__
#define FASTREG_HOST_DEVICE __host__ __device__
#else
#define FASTREG_HOST_DEVICE
#endif

namespace fastreg {

enum class DType : std::uint8_t { f16, bf16, f32, f64, boolean, i8, i16, i32, i64, u8, u16, u32, u64 };

constexpr int floating_dtype_count = 4;
constexpr int dtype_count = 13;

[[maybe_unused]] static constexpr bool is_floating(DType dtype) {
  return static_cast<int>(dtype) < floating_dtype_count;
}

// In the order of the enumeration. Not inside item_size, where it would be written to the stack at every call.
constexpr std::size_t item_sizes[dtype_count] = {2, 2, 4, 8, 1, 1, 2, 4, 8, 1, 2, 4, 8};

[[maybe_unused]] static constexpr std::size_t item_size(DType dtype) { return item_sizes[static_cast<int>(dtype)]; }

// The names that Python and the documentation use, in the order of the enumeration.
[[maybe_unused]] static constexpr const char* dtype_names[dtype_count] = {
    "f16", "bf16", "f32", "f64", "bool", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"};

// The storage of each floating type, and the type that its gradient is computed in.
struct F16 {
  using Storage = std::uint16_t;
  using Real = float;
};
struct BF16 {
  using Storage = std::uint16_t;
  using Real = float;
};
struct F32 {
  using Storage = float;
  using Real = float;
};
struct F64 {
  using Storage = double;
  using Real = double;
};

}  // namespace fastreg
