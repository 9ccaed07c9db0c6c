// Shapes and strides as another library might hand them in: real arrays are gathered and scattered, and compared with a
// walk index by index; what no memory can hold must only be judged without undefined behaviour.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "input.h"
#include "oracle.h"

namespace fastreg::fuzz {
namespace {

// docs/numerics.md, 3, over offsets: dense arrays in the order of memory, others in C order.
std::vector<std::size_t> order_of(const Array& array) {
  std::vector<std::size_t> axes;
  for (std::size_t k = 0; k < array.shape.size(); ++k) {
    if (array.shape[k] != 1) {
      axes.push_back(k);
    }
  }
  std::sort(axes.begin(), axes.end(),
            [&](std::size_t a, std::size_t b) { return array.strides[a] < array.strides[b]; });
  auto inside = static_cast<std::int64_t>(item_size(array.view.dtype));
  bool is_dense = true;
  for (const std::size_t k : axes) {
    is_dense &= array.strides[k] == inside;
    inside *= array.shape[k];
  }
  std::vector<std::size_t> order(array.offsets.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (is_dense) {
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return array.offsets[a] < array.offsets[b]; });
  }
  return order;
}

bool are_distinct(const Array& array) {
  std::vector<std::int64_t> sorted = array.offsets;
  std::sort(sorted.begin(), sorted.end());
  const auto size = static_cast<std::int64_t>(item_size(array.view.dtype));
  return std::adjacent_find(sorted.begin(), sorted.end(),
                            [&](std::int64_t a, std::int64_t b) { return b - a < size; }) == sorted.end();
}

void check_judgement(const Array& array) {
  const auto start = reinterpret_cast<std::uintptr_t>(array.view.data);
  const Extent extent = extent_of(array.view);
  REQUIRE(array.view.count == static_cast<std::int64_t>(array.offsets.size()));
  REQUIRE(extent.low == start + static_cast<std::uintptr_t>(array.low));
  REQUIRE(extent.high == start + static_cast<std::uintptr_t>(array.high));
  REQUIRE(!elements_are_distinct(array.view) || are_distinct(array));
  if (array.view.c_contiguous || array.view.f_contiguous) {
    REQUIRE(are_distinct(array));
  }
}

void check_walk(const Layout& layout, Operand operand, Array& array, const std::vector<std::size_t>& order,
                Input& input) {
  const std::size_t size = item_size(array.view.dtype);
  const int count = static_cast<int>(order.size());
  const int begin = input.below(count);
  const int some = 1 + input.below(count - begin);
  const std::vector<char> before(array.memory.get(), array.memory.get() + array.bytes());
  std::vector<char> gathered(static_cast<std::size_t>(some) * size);
  gather(layout, operand, array.view.data, size, begin, some, gathered.data());
  const auto at = [&](int i) { return array.offsets[order[static_cast<std::size_t>(begin + i)]]; };
  for (int i = 0; i < some; ++i) {
    REQUIRE(std::memcmp(array.view.data + at(i), gathered.data() + static_cast<std::size_t>(i) * size, size) == 0);
  }
  if (!are_distinct(array)) {
    return;  // refused before anything is written
  }
  std::vector<char> written(gathered.size());
  std::vector<char> expected = before;
  for (std::size_t i = 0; i < written.size(); ++i) {
    written[i] = static_cast<char>(gathered[i] ^ 0x5a);
  }
  for (int i = 0; i < some; ++i) {
    std::memcpy(expected.data() + (at(i) - array.low), written.data() + static_cast<std::size_t>(i) * size, size);
  }
  scatter(layout, operand, array.view.data, size, begin, some, written.data());
  REQUIRE(std::equal(expected.begin(), expected.end(), array.memory.get()));
}

void check_conversion(const Array& array) {
  if (is_floating(array.view.dtype) || !array.view.c_contiguous) {
    return;
  }
  std::vector<double> found(array.offsets.size());
  convert_to_f64(array.view.dtype, array.view.data, array.view.count, found.data());
  for (std::size_t i = 0; i < found.size(); ++i) {
    REQUIRE(found[i] == oracle::element(array.view.dtype, array.view.data + i * item_size(array.view.dtype)));
  }
}

void check_real(Input& input) {
  const auto dtype = static_cast<DType>(input.below(dtype_count));
  const std::vector<std::int64_t> shape = small_shape(input);
  Array weights(input, shape, dtype);
  Array gradients(input, shape, is_floating(dtype) && input.below(3) == 0 ? DType::f32 : dtype);
  check_judgement(weights);
  check_judgement(gradients);
  REQUIRE(same_shape(weights.view, gradients.view));
  check_conversion(weights);
  if (weights.view.count == 0) {
    return;
  }
  const std::vector<std::size_t> order = order_of(weights);
  const Layout layout = make_layout(weights.view, &gradients.view);
  const auto is_run = [&](const Array& array) {
    const auto size = static_cast<std::int64_t>(item_size(array.view.dtype));
    for (std::size_t i = 0; i < order.size(); ++i) {
      if (array.offsets[order[i]] != static_cast<std::int64_t>(i) * size) {
        return false;
      }
    }
    return true;
  };
  REQUIRE(!layout.weights_consecutive || is_run(weights));
  REQUIRE(!layout.gradients_consecutive || is_run(gradients));
  REQUIRE(layout.weights_consecutive || !is_run(weights));
  check_walk(layout, Operand::weights, weights, order, input);
  check_walk(layout, Operand::gradients, gradients, order, input);
}

void check_absurd(Input& input) {
  std::vector<std::int64_t> shape(static_cast<std::size_t>(input.below(max_axes + 1)));
  std::vector<std::int64_t> strides(shape.size());
  for (std::size_t k = 0; k < shape.size(); ++k) {
    shape[k] = input.below(3) == 0 ? input.below(3) : static_cast<std::int64_t>(input.raw<std::uint64_t>() >> 1);
    strides[k] = input.below(3) == 0 ? input.below(9) : input.raw<std::int64_t>();
  }
  ArrayView view;
  view.shape = shape.data();
  view.strides = input.below(4) == 0 ? nullptr : strides.data();
  view.axes = static_cast<int>(shape.size());
  view.dtype = static_cast<DType>(input.below(dtype_count));
  view.stride_unit = input.below(2) == 0 ? 1 : static_cast<std::int64_t>(item_size(view.dtype));
  view.data = reinterpret_cast<char*>(input.raw<std::uintptr_t>());
  measure(view);
  REQUIRE(view.count >= 0);
  REQUIRE((std::find(shape.begin(), shape.end(), 0) != shape.end()) == (view.count == 0));
  const Extent extent = extent_of(view);
  REQUIRE(view.count != 0 || extent.low == extent.high);
  static_cast<void>(elements_are_distinct(view));
  REQUIRE(same_shape(view, view));
  const Layout layout = make_layout(view, nullptr);
  REQUIRE(layout.axis_count <= view.axes);
}

}  // namespace
}  // namespace fastreg::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fastreg::fuzz::Input input(data, size);
  if (input.below(4) == 0) {
    fastreg::fuzz::check_absurd(input);
  } else {
    fastreg::fuzz::check_real(input);
  }
  return 0;
}
