#include "support.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "canonical_sum.h"

namespace fastreg::test {
namespace {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2862933555777941757u + 3037000493u) {}
  std::uint64_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 32 ^ state_ << 20) * 0x9e3779b97f4a7c15u;
  }

 private:
  std::uint64_t state_;
};

bool is_nan(DType dtype, const char* element) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, element, item_size(dtype));
  switch (dtype) {
    case DType::f16:
      return (bits & 0x7fff) > 0x7c00;
    case DType::bf16:
      return (bits & 0x7fff) > 0x7f80;
    case DType::f32:
      return (bits & 0x7fffffff) > 0x7f800000;
    default:
      return (bits & ~(std::uint64_t{1} << 63)) > 0x7ff0000000000000u;
  }
}

// The elements from the lowest address to the highest, and how many of them are below that of index 0.
struct Span {
  std::int64_t elements;
  std::int64_t below;
};

Span span_of(const Shape& shape, const Numbers& strides) {
  if (shape.extents.empty() || shape.count == 0) {
    return {shape.count, 0};
  }
  Span span{1, 0};
  for (std::size_t axis = 0; axis < strides.size(); ++axis) {
    const std::int64_t reach = (shape.extents[axis] - 1) * strides[axis];
    span.elements += std::abs(reach);
    span.below += std::max<std::int64_t>(0, -reach);
  }
  return span;
}

const Numbers& gradient_strides_of(const Shape& shape) {
  return shape.gradient_strides.empty() ? shape.weight_strides : shape.gradient_strides;
}

std::unique_ptr<Layout> layout_of(const Shape& shape) {
  if (shape.extents.empty() || shape.count == 0) {
    return nullptr;
  }
  const auto view_of = [&](const Numbers& strides) {
    ArrayView view;
    view.shape = shape.extents.data();
    view.strides = strides.data();
    view.stride_unit = static_cast<std::int64_t>(item_size(shape.dtype));
    view.axes = static_cast<int>(shape.extents.size());
    view.dtype = shape.dtype;
    measure(view);
    CHECK(view.count == shape.count, "a test's shape is wrong");
    return view;
  };
  const ArrayView weights = view_of(shape.weight_strides);
  const ArrayView gradients = view_of(gradient_strides_of(shape));
  return std::make_unique<Layout>(make_layout(weights, &gradients));
}

}  // namespace

void fill(char* memory, DType dtype, std::int64_t count, std::uint64_t seed) {
  Random random(seed);
  const bool has_specials = random.next() % 4 == 0;
  const auto put = [&](auto type, int fraction_bits, int exponent_bits) {
    using Bits = decltype(type);
    const std::uint64_t bias = (std::uint64_t{1} << (exponent_bits - 1)) - 1;
    const std::uint64_t exponent_mask = ((std::uint64_t{1} << exponent_bits) - 1) << fraction_bits;
    for (std::int64_t i = 0; i < count; ++i) {
      std::uint64_t bits = random.next();
      const std::uint64_t choice = random.next() % 32;
      if (choice == 0) {
        bits &= ~(exponent_mask | (exponent_mask - 1)) | 1;  // a zero, or the smallest subnormal
      } else if (choice == 1) {
        bits &= ~exponent_mask;  // a subnormal
      } else if (!has_specials || choice != 2) {
        bits = (bits & ~exponent_mask) | (bias - 8 + random.next() % 13) << fraction_bits;
      }
      const auto element = static_cast<Bits>(bits);
      std::memcpy(memory + static_cast<std::size_t>(i) * sizeof element, &element, sizeof element);
    }
  };
  switch (dtype) {
    case DType::f16:
      return put(std::uint16_t{}, 10, 5);
    case DType::bf16:
      return put(std::uint16_t{}, 7, 8);
    case DType::f32:
      return put(std::uint32_t{}, 23, 8);
    case DType::f64:
      return put(std::uint64_t{}, 52, 11);
    default:
      for (std::size_t i = 0; i < static_cast<std::size_t>(count) * item_size(dtype); ++i) {
        memory[i] = static_cast<char>(dtype == DType::boolean ? random.next() & 1 : random.next());
      }
  }
}

std::int64_t first_difference(DType dtype, const char* a, const char* b, std::int64_t count) {
  const auto size = static_cast<std::int64_t>(item_size(dtype));
  if (count == 0 || std::memcmp(a, b, static_cast<std::size_t>(count * size)) == 0) {
    return -1;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (std::memcmp(a + i * size, b + i * size, static_cast<std::size_t>(size)) != 0 &&
        !(is_nan(dtype, a + i * size) && is_nan(dtype, b + i * size))) {
      return i;
    }
  }
  return -1;
}

Memory::Memory(std::size_t bytes, int device) {
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(device);
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  CHECK(error == cudaSuccess, "no memory for the test");
  cudaSetDevice(before);
  data = static_cast<char*>(memory);
}

Memory::~Memory() { cudaFree(data); }

Problem::Problem(std::vector<Shape> shapes, std::vector<Coefficients> strengths, unsigned outputs, std::uint64_t seed,
                 int device, bool in_place)
    : shapes_(std::move(shapes)),
      strengths_(std::move(strengths)),
      outputs_(outputs),
      device_(device),
      values_(shapes_.size() * sizeof(double), device),
      total_(sizeof(double), device),
      zeros_(shapes_.size() * sizeof(std::int64_t), device),
      total_zeros_(sizeof(std::int64_t), device),
      in_place_(in_place) {
  for (const Shape& shape : shapes_) {
    const std::size_t size = item_size(shape.dtype);
    const std::size_t skipped = static_cast<std::size_t>(shape.offset) * size;
    const auto place = [&](const Numbers& strides, std::vector<std::vector<char>>& host,
                           std::vector<std::size_t>& origins) {
      const Span span = span_of(shape, strides);
      const std::size_t bytes = static_cast<std::size_t>(span.elements) * size;
      memory_.push_back(std::make_unique<Memory>(skipped + bytes, device));
      char* data = memory_.back()->data + skipped;
      fill(data, shape.dtype, span.elements, ++seed);
      host.emplace_back(data, data + bytes);
      origins.push_back(static_cast<std::size_t>(span.below) * size);
      return data + origins.back();
    };
    char* weights = place(shape.weight_strides, weights_, weight_origins_);
    char* gradients = weights;
    if (!in_place_) {
      gradients = place(gradient_strides_of(shape), gradients_, gradient_origins_);
    }
    layouts_.push_back(layout_of(shape));
    device_items_.push_back({weights, (outputs & output_gradient) != 0 ? gradients : nullptr, shape.count,
                             shape.strengths, shape.dtype, layouts_.back().get()});
  }
}

DeviceCall Problem::call(cudaStream_t stream) {
  return {device_,
          stream,
          device_items_.data(),
          device_items_.size(),
          strengths_.data(),
          strengths_.size(),
          outputs_,
          reinterpret_cast<double*>(values_.data),
          reinterpret_cast<double*>(total_.data),
          reinterpret_cast<std::int64_t*>(zeros_.data),
          reinterpret_cast<std::int64_t*>(total_zeros_.data)};
}

std::vector<Item> Problem::items() const {
  std::vector<Item> items;
  for (std::size_t i = 0; i < shapes_.size(); ++i) {
    const std::size_t origin = in_place_ ? weight_origins_[i] : gradient_origins_[i];
    void* gradients = const_cast<char*>(host_gradients(i).data() + origin);
    items.push_back({weights(i), (outputs_ & output_gradient) != 0 ? gradients : nullptr, shapes_[i].count,
                     strengths_[shapes_[i].strengths], layouts_[i].get(), shapes_[i].dtype});
  }
  return items;
}

const char* Problem::device_gradients(std::size_t tensor) const {
  return static_cast<const char*>(device_items_[tensor].gradients) -
         (in_place_ ? weight_origins_[tensor] : gradient_origins_[tensor]);
}

const std::vector<char>& Problem::host_gradients(std::size_t tensor) const {
  return in_place_ ? weights_[tensor] : gradients_[tensor];
}

double Problem::device_value(std::size_t tensor) const {
  double value;
  std::memcpy(&value, values_.data + tensor * sizeof value, sizeof value);
  return value;
}

std::vector<double> Problem::step(std::vector<std::int64_t>* zeros) {
  std::vector<double> values(shapes_.size());
  std::vector<std::int64_t> counted(shapes_.size());
  const std::vector<Item> all = items();
  evaluate(all.data(), all.size(), outputs_, values.data(), Owner::other, counted.data());
  if (zeros != nullptr) {
    *zeros = std::move(counted);
  }
  return values;
}

void Problem::compare(const std::string& what) {
  std::vector<std::int64_t> zeros;
  std::vector<double> values = step(&zeros);
  if ((outputs_ & output_gradient) != 0) {
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      // With what lies between the elements.
      const std::vector<char>& host = host_gradients(i);
      const std::int64_t place = first_difference(shapes_[i].dtype, host.data(), device_gradients(i),
                                                  static_cast<std::int64_t>(host.size() / item_size(shapes_[i].dtype)));
      CHECK(place < 0, "wrong gradient:", what, "tensor", i, "of", shapes_[i].count, "element", place);
    }
  }
  if ((outputs_ & output_value) != 0) {
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      const double value = device_value(i);
      CHECK(first_difference(DType::f64, reinterpret_cast<const char*>(&value),
                             reinterpret_cast<const char*>(&values[i]), 1) < 0,
            "wrong value:", what, "tensor", i, "of", shapes_[i].count, value, "is not", values[i]);
    }
    const double total = canonical_sum_in_place(values.data(), static_cast<std::int64_t>(values.size()));
    CHECK(first_difference(DType::f64, reinterpret_cast<const char*>(&total), total_.data, 1) < 0,
          "wrong total:", what);
  }
  if ((outputs_ & output_value) != 0 && is_prox(outputs_)) {
    const auto found_at = [](const Memory& memory, std::size_t i) {
      std::int64_t found;
      std::memcpy(&found, memory.data + i * sizeof found, sizeof found);
      return found;
    };
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      CHECK(found_at(zeros_, i) == zeros[i], "wrong zeros:", what, "tensor", i, "of", shapes_[i].count,
            found_at(zeros_, i), "are not", zeros[i]);
    }
    const std::int64_t all = std::accumulate(zeros.begin(), zeros.end(), std::int64_t{0});
    CHECK(found_at(total_zeros_, 0) == all, "wrong total of zeros:", what);
  }
}

void Problem::again(std::vector<Coefficients> strengths) { strengths_ = std::move(strengths); }

bool Problem::device_is_untouched() const {
  for (std::size_t i = 0; i < shapes_.size(); ++i) {
    const std::vector<char>& before = host_gradients(i);
    if (!before.empty() && (outputs_ & output_gradient) != 0 &&
        std::memcmp(before.data(), device_gradients(i), before.size()) != 0) {
      return false;
    }
  }
  const auto is_fresh = [](const char* data, std::size_t bytes) {
    return std::all_of(data, data + bytes, [](char byte) { return static_cast<unsigned char>(byte) == 0xa5; });
  };
  return is_fresh(values_.data, shapes_.size() * sizeof(double)) && is_fresh(total_.data, sizeof(double)) &&
         is_fresh(zeros_.data, shapes_.size() * sizeof(std::int64_t)) &&
         is_fresh(total_zeros_.data, sizeof(std::int64_t));
}

Coefficients strengths_for(unsigned terms, double scale) {
  return make_coefficients((terms & term_l1) != 0 ? 0.0123456789 : 0.0, (terms & term_l2) != 0 ? 0.3141592653 : 0.0,
                           scale, 1.7);
}

Coefficients thresholds_for(unsigned terms) {
  return make_prox_coefficients((terms & term_l1) != 0 ? 0.0623456789 : 0.0,
                                (terms & term_l2) != 0 ? 0.3141592653 : 0.0, 1.3, 0.7);
}

void evaluate_on_device(const DeviceCall& call, const std::string& what, Recording** recording) {
  BackendError error;
  const BackendStatus status = fastreg_backend()->evaluate(&call, recording, &error);
  CHECK(status == BackendStatus::ok, what, error.text);
}

std::string name_of(DType dtype, unsigned terms, unsigned outputs) {
  return std::string(name_of(dtype)) + " terms " + std::to_string(terms) + " outputs " + std::to_string(outputs);
}

void run(Problem& problem, const std::string& what) {
  evaluate_on_device(problem.call(), what);
  const cudaError_t error = cudaDeviceSynchronize();
  CHECK(error == cudaSuccess, what, stand_in::refusal());
  problem.compare(what);
}

}  // namespace fastreg::test
