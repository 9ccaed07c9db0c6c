// The element types, listed once.
//
// The first four are what gradients may have and what kernels are compiled for. The others can only be read: they are
// converted to float64 (nearest even) while a chunk is gathered, and then take the f64 kernel (docs/numerics.md, 2).
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

[[maybe_unused]] static constexpr bool is_floating(DType dtype) {
  return static_cast<int>(dtype) < floating_dtype_count;
}

// What an element is, by DLPack's numbers.
enum class Kind : std::uint8_t { integer = 0, natural = 1, floating = 2, bfloat = 4, boolean = 6 };

struct DTypeRow {
  const char* name;  // as Python and the documentation write it
  Kind kind;
  std::uint8_t size;
  std::int32_t xla;  // the number that XLA has for it
};

// In the order of the enumeration. fastreg/_base/dtypes.py is Python's table, and a test compares the two.
constexpr DTypeRow dtype_rows[] = {
    {"f16", Kind::floating, 2, 10}, {"bf16", Kind::bfloat, 2, 16}, {"f32", Kind::floating, 4, 11},
    {"f64", Kind::floating, 8, 12}, {"bool", Kind::boolean, 1, 1}, {"i8", Kind::integer, 1, 2},
    {"i16", Kind::integer, 2, 3},   {"i32", Kind::integer, 4, 4},  {"i64", Kind::integer, 8, 5},
    {"u8", Kind::natural, 1, 6},    {"u16", Kind::natural, 2, 7},  {"u32", Kind::natural, 4, 8},
    {"u64", Kind::natural, 8, 9},
};
constexpr int dtype_count = static_cast<int>(sizeof dtype_rows / sizeof *dtype_rows);

[[maybe_unused]] static constexpr const DTypeRow& row_of(DType dtype) { return dtype_rows[static_cast<int>(dtype)]; }

// Not inside item_size, where they would be written to the stack at every call.
struct ItemSizes {
  std::size_t of[dtype_count];
};
constexpr ItemSizes item_sizes = [] {
  ItemSizes sizes{};
  for (int i = 0; i < dtype_count; ++i) {
    sizes.of[i] = dtype_rows[i].size;
  }
  return sizes;
}();
[[maybe_unused]] static constexpr std::size_t item_size(DType dtype) { return item_sizes.of[static_cast<int>(dtype)]; }

[[maybe_unused]] static constexpr const char* name_of(DType dtype) { return row_of(dtype).name; }

// Returns false where there is no such dtype.
[[maybe_unused]] static constexpr bool find_dtype(Kind kind, std::size_t size, DType& dtype) {
  for (int i = 0; i < dtype_count; ++i) {
    if (dtype_rows[i].kind == kind && dtype_rows[i].size == size) {
      dtype = static_cast<DType>(i);
      return true;
    }
  }
  return false;
}

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
