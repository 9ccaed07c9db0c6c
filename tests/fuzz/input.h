// Bytes of the fuzzer as numbers, and arrays of any layout made of them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "layout.h"

#define REQUIRE(condition)                                                         \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (false)

namespace fastreg::fuzz {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}
  bool is_empty() const { return left_ == 0; }
  int byte() {
    if (left_ == 0) {
      return 0;
    }
    --left_;
    return *data_++;
  }
  int below(int limit) { return byte() % limit; }
  template <class Number>
  Number raw() {
    std::uint8_t bytes[sizeof(Number)];
    for (std::uint8_t& one : bytes) {
      one = static_cast<std::uint8_t>(byte());
    }
    Number number;
    std::memcpy(&number, bytes, sizeof number);
    return number;
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

// Where the elements of an array lie, worked out index by index, in bytes from its first.
inline std::vector<std::int64_t> offsets_in_c_order(const std::vector<std::int64_t>& shape,
                                                    const std::vector<std::int64_t>& strides) {
  std::vector<std::int64_t> offsets = {0};
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    std::vector<std::int64_t> inner;
    for (const std::int64_t offset : offsets) {
      for (std::int64_t i = 0; i < shape[axis]; ++i) {
        inner.push_back(offset + i * strides[axis]);
      }
    }
    offsets = inner;
  }
  return offsets;
}

// An array in memory that ends where its last byte does, so that a sanitizer sees what goes beyond.
struct Array {
  Array(Input& input, const std::vector<std::int64_t>& its_shape, DType dtype) : shape(its_shape) {
    const auto size = static_cast<std::int64_t>(item_size(dtype));
    const int kind = input.below(4);
    strides.resize(shape.size());
    std::int64_t step = size;
    for (std::size_t k = shape.size(); k-- > 0;) {
      strides[k] = step;
      step *= shape[k] == 0 ? 1 : shape[k];
    }
    for (std::size_t k = 0; k < strides.size(); ++k) {
      if (kind == 1) {  // some axes change places
        std::swap(strides[k], strides[static_cast<std::size_t>(input.below(static_cast<int>(strides.size())))]);
      } else if (kind == 2) {  // gaps, repeats, backwards
        strides[k] *= static_cast<std::int8_t>(input.byte()) % 4;
      } else if (kind == 3) {  // anything
        strides[k] = static_cast<std::int8_t>(input.byte());
      }
    }
    offsets = offsets_in_c_order(shape, strides);
    for (const std::int64_t offset : offsets) {
      low = std::min(low, offset);
      high = std::max(high, offset + size);
    }
    memory.reset(new char[static_cast<std::size_t>(high - low)]);
    for (std::int64_t i = 0; i < high - low; ++i) {
      memory[static_cast<std::size_t>(i)] = static_cast<char>(input.byte() + i);
    }
    view.data = memory.get() - low;
    view.shape = shape.data();
    view.strides = kind == 0 && input.below(2) == 0 ? nullptr : strides.data();
    view.axes = static_cast<int>(shape.size());
    view.dtype = dtype;
    view.writable = true;
    measure(view);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  bool is_in_c_order() const { return view.strides == nullptr; }
  std::size_t bytes() const { return static_cast<std::size_t>(high - low); }

  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  std::vector<std::int64_t> offsets;  // of all elements, in C order
  std::int64_t low = 0;
  std::int64_t high = 0;
  std::unique_ptr<char[]> memory;
  ArrayView view;
};

inline std::vector<std::int64_t> small_shape(Input& input) {
  std::vector<std::int64_t> shape(static_cast<std::size_t>(input.below(6)));
  for (std::int64_t& extent : shape) {
    extent = input.below(6);
  }
  return shape;
}

}  // namespace fastreg::fuzz
