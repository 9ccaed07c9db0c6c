// Arrays of any strides, and the order in which the elements of a pair of them are visited (docs/numerics.md, 3).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastreg {

constexpr int max_axes = 64;  // NumPy's limit

// The product as processors have it. Other libraries may describe arrays without elements, or with axes of one, by
// strides that no memory has; such products count for nothing, but have to be defined.
constexpr std::int64_t wrapped_product(std::int64_t a, std::int64_t b) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
}

// Another library's array, described where it lies. Shape and strides belong to that library.
struct ArrayView {
  char* data = nullptr;
  const std::int64_t* shape = nullptr;
  const std::int64_t* strides = nullptr;  // null: C order without gaps
  std::int64_t stride_unit = 1;           // bytes that a stride of 1 means: 1, or the item's size
  std::int64_t count = 0;
  int axes = 0;
  DType dtype = DType::f32;
  bool writable = false;
  bool c_contiguous = false;
  bool f_contiguous = false;

  std::int64_t stride(int axis) const { return wrapped_product(strides[axis], stride_unit); }
};

// Sets count, c_contiguous and f_contiguous from shape and strides. A count beyond int64 becomes the largest one.
void measure(ArrayView& view);

// The bytes between which all elements lie, [low, high); empty arrays have low == high.
struct Extent {
  std::uintptr_t low;
  std::uintptr_t high;
};
Extent extent_of(const ArrayView& view);

// False if two indices might share memory; true only if they cannot.
bool elements_are_distinct(const ArrayView& view);

bool same_shape(const ArrayView& a, const ArrayView& b);

// Iteration order over a weight and its gradient: merged axes, slowest first (as nditer coalesces them). Strides in
// bytes.
struct Layout {
  struct Axis {
    std::int64_t extent;
    std::int64_t weight_stride;
    std::int64_t gradient_stride;
  };
  int axis_count;
  // Consecutive in memory in this order: no gathering needed.
  bool weights_consecutive;
  bool gradients_consecutive;
  Axis axes[max_axes];
};

// `gradients` may be null.
Layout make_layout(const ArrayView& weights, const ArrayView* gradients);

// Copies `count` elements in this order, starting at element `begin`, between an array and a buffer.
enum class Operand { weights, gradients };
void gather(const Layout& layout, Operand operand, const void* array, std::size_t item_size, std::int64_t begin,
            std::int64_t count, void* buffer);
void scatter(const Layout& layout, Operand operand, void* array, std::size_t item_size, std::int64_t begin,
             std::int64_t count, const void* buffer);

// float64 from any element type that can be read, to nearest even.
void convert_to_f64(DType dtype, const void* from, std::int64_t count, double* to);

}  // namespace fastreg
