#include "layout.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace fastreg {
namespace {

std::uint64_t magnitude(std::int64_t stride) {
  return stride < 0 ? 0 - static_cast<std::uint64_t>(stride) : static_cast<std::uint64_t>(stride);
}

// Indices of the axes of more than one element, the largest stride first; ties in C order.
int order_by_stride(const ArrayView& view, int* order) {
  int count = 0;
  for (int axis = 0; axis < view.axes; ++axis) {
    if (view.shape[axis] != 1) {
      order[count++] = axis;
    }
  }
  std::sort(order, order + count, [&](int a, int b) {
    const std::uint64_t of_a = magnitude(view.stride(a));
    const std::uint64_t of_b = magnitude(view.stride(b));
    return of_a != of_b ? of_a > of_b : a < b;
  });
  return count;
}

// Dense: every stride positive and equal to the extent of the axes inside it.
bool is_dense(const ArrayView& view, const int* order, int count) {
  auto expected = static_cast<std::int64_t>(item_size(view.dtype));
  for (int k = count - 1; k >= 0; --k) {
    if (view.stride(order[k]) != expected) {
      return false;
    }
    expected = wrapped_product(expected, view.shape[order[k]]);
  }
  return true;
}

// Calls visit(offset, stride, elements) for the runs along the fastest axis that make up the range.
template <class Visit>
void for_each_run(const Layout& layout, std::int64_t Layout::Axis::* stride, std::int64_t begin, std::int64_t count,
                  Visit visit) {
  if (layout.axis_count == 0) {
    visit(std::int64_t{0}, std::int64_t{0}, count);
    return;
  }
  std::int64_t index[max_axes];
  std::int64_t offset = 0;
  for (int k = layout.axis_count - 1; k >= 0; --k) {
    index[k] = begin % layout.axes[k].extent;
    begin /= layout.axes[k].extent;
    offset += index[k] * (layout.axes[k].*stride);
  }
  const int fastest = layout.axis_count - 1;
  const Layout::Axis& inner = layout.axes[fastest];
  while (count > 0) {
    const std::int64_t run = std::min(count, inner.extent - index[fastest]);
    visit(offset, inner.*stride, run);
    count -= run;
    offset += run * (inner.*stride);
    index[fastest] += run;
    for (int k = fastest; k > 0 && index[k] == layout.axes[k].extent; --k) {
      offset -= layout.axes[k].extent * (layout.axes[k].*stride);
      index[k] = 0;
      offset += layout.axes[k - 1].*stride;
      ++index[k - 1];
    }
  }
}

std::int64_t Layout::Axis::* stride_of(Operand operand) {
  return operand == Operand::weights ? &Layout::Axis::weight_stride : &Layout::Axis::gradient_stride;
}

// Calls copy with the item's size as a constant, so that each element is one load and one store.
template <class Copy>
void with_constant_size(std::size_t item_size, Copy copy) {
  switch (item_size) {
    case 1:
      return copy(std::integral_constant<std::size_t, 1>{});
    case 2:
      return copy(std::integral_constant<std::size_t, 2>{});
    case 4:
      return copy(std::integral_constant<std::size_t, 4>{});
    default:
      return copy(std::integral_constant<std::size_t, 8>{});
  }
}

template <class Integer>
void convert(const void* from, std::int64_t count, double* to) {
  const char* bytes = static_cast<const char*>(from);
  for (std::int64_t i = 0; i < count; ++i) {
    Integer value;
    std::memcpy(&value, bytes + static_cast<std::size_t>(i) * sizeof value, sizeof value);
    to[i] = static_cast<double>(value);
  }
}

}  // namespace

void measure(ArrayView& view) {
  view.count = 1;
  bool is_too_large = false;
  bool is_empty = false;
  for (int axis = 0; axis < view.axes; ++axis) {
    is_empty |= view.shape[axis] == 0;
    is_too_large |= __builtin_mul_overflow(view.count, view.shape[axis], &view.count);
  }
  if (is_empty) {
    view.count = 0;
  } else if (is_too_large) {
    view.count = std::numeric_limits<std::int64_t>::max();
  }
  if (view.strides == nullptr || view.count == 0) {
    view.c_contiguous = true;
    view.f_contiguous = view.axes <= 1 || view.count == 0;
    return;
  }
  const auto size = static_cast<std::int64_t>(item_size(view.dtype));
  const auto follows = [&](int first, int step) {
    std::int64_t expected = size;
    for (int k = 0, axis = first; k < view.axes; ++k, axis += step) {
      if (view.shape[axis] != 1) {
        if (view.stride(axis) != expected) {
          return false;
        }
        expected = wrapped_product(expected, view.shape[axis]);
      }
    }
    return true;
  };
  view.c_contiguous = follows(view.axes - 1, -1);
  view.f_contiguous = follows(0, 1);
}

Extent extent_of(const ArrayView& view) {
  const auto start = reinterpret_cast<std::uintptr_t>(view.data);
  if (view.count == 0) {
    return {start, start};
  }
  const std::size_t size = item_size(view.dtype);
  if (view.c_contiguous || view.f_contiguous) {
    return {start, start + static_cast<std::uintptr_t>(view.count) * size};
  }
  Extent extent{start, start + size};
  for (int axis = 0; axis < view.axes; ++axis) {
    const std::int64_t reach = wrapped_product(view.shape[axis] - 1, view.stride(axis));
    (reach < 0 ? extent.low : extent.high) += static_cast<std::uintptr_t>(reach);
  }
  return extent;
}

bool elements_are_distinct(const ArrayView& view) {
  if (view.c_contiguous || view.f_contiguous || view.count <= 1) {
    return true;
  }
  int order[max_axes];
  const int count = order_by_stride(view, order);
  std::uint64_t reach = item_size(view.dtype);  // bytes that the axes inside span
  for (int k = count - 1; k >= 0; --k) {
    const std::uint64_t stride = magnitude(view.stride(order[k]));
    std::uint64_t span = 0;
    if (stride < reach || __builtin_mul_overflow(stride, static_cast<std::uint64_t>(view.shape[order[k]] - 1), &span) ||
        __builtin_add_overflow(reach, span, &reach)) {
      return false;
    }
  }
  return true;
}

bool same_shape(const ArrayView& a, const ArrayView& b) {
  return a.axes == b.axes && std::equal(a.shape, a.shape + a.axes, b.shape);
}

Layout make_layout(const ArrayView& weights, const ArrayView* gradients) {
  Layout layout;
  int order[max_axes];
  int count = 0;
  // A view without strides is in C order without gaps: its strides follow from the shape.
  std::int64_t implied[2][max_axes];
  const auto strides_of = [&](const ArrayView& view, std::int64_t* memory) {
    auto step = static_cast<std::int64_t>(item_size(view.dtype));
    for (int axis = view.axes - 1; axis >= 0; --axis) {
      memory[axis] = view.strides != nullptr ? view.stride(axis) : step;
      step = wrapped_product(step, view.shape[axis]);
    }
    return memory;
  };
  const std::int64_t* weight_strides = strides_of(weights, implied[0]);
  const std::int64_t* gradient_strides = gradients != nullptr ? strides_of(*gradients, implied[1]) : weight_strides;

  ArrayView strided = weights;
  strided.strides = weight_strides;
  strided.stride_unit = 1;
  count = order_by_stride(strided, order);
  layout.weights_consecutive = is_dense(strided, order, count);
  if (!layout.weights_consecutive) {
    std::sort(order, order + count);
  }

  layout.axis_count = 0;
  for (int k = 0; k < count; ++k) {
    const Layout::Axis axis{weights.shape[order[k]], weight_strides[order[k]], gradient_strides[order[k]]};
    if (layout.axis_count > 0) {
      Layout::Axis& outer = layout.axes[layout.axis_count - 1];
      if (outer.weight_stride == wrapped_product(axis.extent, axis.weight_stride) &&
          outer.gradient_stride == wrapped_product(axis.extent, axis.gradient_stride)) {
        outer = {wrapped_product(outer.extent, axis.extent), axis.weight_stride, axis.gradient_stride};
        continue;
      }
    }
    layout.axes[layout.axis_count++] = axis;
  }
  auto expected = static_cast<std::int64_t>(item_size((gradients != nullptr ? *gradients : weights).dtype));
  layout.gradients_consecutive = true;
  for (int k = layout.axis_count - 1; k >= 0; --k) {
    layout.gradients_consecutive &= layout.axes[k].gradient_stride == expected;
    expected = wrapped_product(expected, layout.axes[k].extent);
  }
  return layout;
}

void gather(const Layout& layout, Operand operand, const void* array, std::size_t item_size, std::int64_t begin,
            std::int64_t count, void* buffer) {
  with_constant_size(item_size, [&](auto size) {
    const char* from = static_cast<const char*>(array);
    char* to = static_cast<char*>(buffer);
    for_each_run(layout, stride_of(operand), begin, count,
                 [&](std::int64_t offset, std::int64_t stride, std::int64_t run) {
                   for (std::int64_t i = 0; i < run; ++i, to += size()) {
                     std::memcpy(to, from + offset + i * stride, size());
                   }
                 });
  });
}

void scatter(const Layout& layout, Operand operand, void* array, std::size_t item_size, std::int64_t begin,
             std::int64_t count, const void* buffer) {
  with_constant_size(item_size, [&](auto size) {
    const char* from = static_cast<const char*>(buffer);
    char* to = static_cast<char*>(array);
    for_each_run(layout, stride_of(operand), begin, count,
                 [&](std::int64_t offset, std::int64_t stride, std::int64_t run) {
                   for (std::int64_t i = 0; i < run; ++i, from += size()) {
                     std::memcpy(to + offset + i * stride, from, size());
                   }
                 });
  });
}

void convert_to_f64(DType dtype, const void* from, std::int64_t count, double* to) {
  switch (dtype) {
    case DType::boolean:
    case DType::u8:
      return convert<std::uint8_t>(from, count, to);
    case DType::i8:
      return convert<std::int8_t>(from, count, to);
    case DType::i16:
      return convert<std::int16_t>(from, count, to);
    case DType::i32:
      return convert<std::int32_t>(from, count, to);
    case DType::i64:
      return convert<std::int64_t>(from, count, to);
    case DType::u16:
      return convert<std::uint16_t>(from, count, to);
    case DType::u32:
      return convert<std::uint32_t>(from, count, to);
    case DType::u64:
      return convert<std::uint64_t>(from, count, to);
    default:
      return;  // floating types are read by the kernels themselves
  }
}

}  // namespace fastreg
