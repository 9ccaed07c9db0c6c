// What no array in memory can be, and what other libraries may hand in by DLPack all the same.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "../layout.h"
#include "dlpack_abi.h"

namespace fastreg::dlpack {

// Whether elements are numbers of whole bytes. Others are arrays as well, which are refused by the name of their dtype.
inline bool has_whole_bytes(const DataType& dtype) {
  return dtype.lanes == 1 && dtype.bits != 0 && dtype.bits % 8 == 0;
}

// Returns what is wrong with a description, in words, or an empty string: then shape and strides may be read, and
// products of them with the size of an element fit in 64 bits. Whether the memory is there only its library knows.
inline std::string fault_of(const Tensor& tensor) {
  if (tensor.ndim < 0 || tensor.ndim > max_axes) {
    return "it has " + std::to_string(tensor.ndim) + " axes";
  }
  if (tensor.ndim > 0 && tensor.shape == nullptr) {
    return "it has no shape";
  }
  const std::int64_t size = (std::int64_t{tensor.dtype.bits} * tensor.dtype.lanes + 7) / 8;
  std::int64_t bytes = size;
  bool is_empty = false;
  bool is_too_large = false;
  for (std::int32_t axis = 0; axis < tensor.ndim; ++axis) {
    const std::int64_t extent = tensor.shape[axis];
    if (extent < 0) {
      return "an axis has " + std::to_string(extent) + " elements";
    }
    is_empty |= extent == 0;
    is_too_large |= __builtin_mul_overflow(bytes, extent, &bytes);
  }
  std::int64_t reach = size;  // bytes from the lowest to the highest
  for (std::int32_t axis = 0; tensor.strides != nullptr && axis < tensor.ndim; ++axis) {
    std::int64_t stride = 0;
    std::int64_t span = 0;
    const bool is_strided = tensor.shape[axis] > 1 && !is_empty;
    if (__builtin_mul_overflow(tensor.strides[axis], size, &stride) ||
        stride == std::numeric_limits<std::int64_t>::min() ||
        (is_strided && (__builtin_mul_overflow(stride < 0 ? -stride : stride, tensor.shape[axis] - 1, &span) ||
                        __builtin_add_overflow(reach, span, &reach)))) {
      return "no memory has a stride of " + std::to_string(tensor.strides[axis]);
    }
  }
  if (is_empty) {
    return {};
  }
  if (is_too_large) {
    return "no memory has so many elements";
  }
  if (tensor.data == nullptr) {
    return "it has elements, and no memory";
  }
  return {};
}

}  // namespace fastreg::dlpack
