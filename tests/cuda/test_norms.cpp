// Norms, scaling and clips: the bits of the CPU engine.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "canonical_sum.h"
#include "norms.h"
#include "support.h"

namespace fastreg::test {
namespace {

const std::vector<Coefficients> no_strengths = {strengths_for(0)};

bool same(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b) || (std::isnan(a) && std::isnan(b));
}

// Tensors on the device, and the CPU's copy of them.
class Tensors {
 public:
  Tensors(std::vector<Shape> shapes, std::uint64_t seed)
      : shapes_(std::move(shapes)), problem_(shapes_, no_strengths, output_value, seed), norm_(sizeof(double)) {
    const DeviceCall call = problem_.call();
    items_.assign(call.items, call.items + call.item_count);
  }

  // Every `every`-th element of a dense float64 tensor is this number.
  void put(std::size_t tensor, double number, std::int64_t every) {
    for (std::int64_t i = 0; i < items_[tensor].count; i += every) {
      for (const NormItem& where : {on_device(tensor), on_host(tensor)}) {
        static_cast<double*>(where.data)[i] = number;
      }
    }
  }

  void measure(const std::string& what, int exponent = 0) {
    std::vector<Norm> found(items_.size());
    NormCall call = call_for(NormTask::measure);
    call.exponent = exponent;
    call.norms = found.data();
    run(call, what);
    const std::vector<Norm> wanted = measured(exponent);
    for (std::size_t i = 0; i < items_.size(); ++i) {
      CHECK(same(found[i].l2, wanted[i].l2), "wrong squares:", what, "tensor", i, found[i].l2, wanted[i].l2);
      if (exponent == 0) {
        CHECK(same(found[i].l1, wanted[i].l1), "wrong sum:", what, "tensor", i, found[i].l1, wanted[i].l1);
        CHECK(same(found[i].maximum, wanted[i].maximum), "wrong maximum:", what, "tensor", i, found[i].maximum);
        CHECK(found[i].zeros == wanted[i].zeros, "wrong zeros:", what, "tensor", i, found[i].zeros, wanted[i].zeros);
        CHECK(found[i].nonfinite == wanted[i].nonfinite, "wrong non-finite:", what, "tensor", i, found[i].nonfinite);
      }
    }
  }

  void scale(const std::string& what, double factor) {
    NormCall call = call_for(NormTask::scale);
    call.factor = factor;
    run(call, what);
    scale_host(factor);
    compare(what);
  }

  void clip(const std::string& what, double max_norm) {
    const double norm = clip_host(max_norm);
    NormCall call = call_for(NormTask::clip);
    call.max_norm = max_norm;
    call.norm = reinterpret_cast<double*>(norm_.data);
    run(call, what);
    double found;
    std::memcpy(&found, norm_.data, sizeof found);
    CHECK(same(found, norm), "wrong norm:", what, found, "is not", norm);
    compare(what);
  }

 private:
  NormCall call_for(NormTask task) {
    NormCall call{};
    call.task = task;
    call.items = items_.data();
    call.item_count = items_.size();
    call.factor = 1.0;
    return call;
  }

  static void run(const NormCall& call, const std::string& what) {
    BackendError error;
    const BackendStatus status = fastreg_backend()->norms(&call, nullptr, &error);
    CHECK(status == BackendStatus::ok, what, error.text);
    CHECK(cudaDeviceSynchronize() == cudaSuccess, what, stand_in::refusal());
  }

  NormItem on_device(std::size_t i) const {
    return {const_cast<void*>(items_[i].weights), items_[i].count, items_[i].layout, items_[i].dtype};
  }
  NormItem on_host(std::size_t i) const {
    return {const_cast<char*>(problem_.weights(i)), items_[i].count, items_[i].layout, items_[i].dtype};
  }

  std::vector<NormItem> host_items() const {
    std::vector<NormItem> items;
    items.reserve(items_.size());
    for (std::size_t i = 0; i < items_.size(); ++i) {
      items.push_back(on_host(i));
    }
    return items;
  }

  std::vector<Norm> measured(int exponent) const {
    std::vector<Norm> norms(items_.size());
    measure_items(host_items().data(), items_.size(), exponent, norms.data());
    return norms;
  }

  double squares(const std::vector<Norm>& norms) const {
    std::vector<double> terms;
    terms.reserve(norms.size());
    for (const Norm& norm : norms) {
      terms.push_back(norm.l2);
    }
    return canonical_sum_in_place(terms.data(), static_cast<std::int64_t>(terms.size()));
  }

  // What Python does on the host (fastreg/_engine/totals.py).
  double clip_host(double max_norm) {
    const std::vector<Norm> norms = measured(0);
    double most = 0.0;
    for (const Norm& norm : norms) {
      most = std::isnan(norm.maximum) || norm.maximum > most ? norm.maximum : most;
    }
    int exponent = 0;
    if (std::isfinite(most) && most != 0.0) {
      std::frexp(most, &exponent);
      exponent = exponent - 1 >= -400 && exponent - 1 <= 400 ? 0 : 1 - exponent;
    }
    const double scaled_norm = std::sqrt(exponent == 0 ? squares(norms) : squares(measured(exponent)));
    const double norm = std::ldexp(scaled_norm, -exponent);
    const int power = std::min(exponent, 0);
    const double factor = std::ldexp(max_norm, power) / ((exponent < 0 ? scaled_norm : norm) + std::ldexp(1e-6, power));
    if (!(factor >= 1.0)) {
      scale_host(factor);
    }
    return norm;
  }

  void scale_host(double factor) { scale_items(host_items().data(), items_.size(), factor); }

  void compare(const std::string& what) const {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      if (items_[i].count == 0) {
        continue;
      }
      const std::size_t size = item_size(items_[i].dtype);
      const auto elements = [&](const NormItem& item) {
        std::vector<char> copy(static_cast<std::size_t>(item.count) * size);
        if (item.layout == nullptr) {
          std::memcpy(copy.data(), item.data, copy.size());
        } else {
          gather(*item.layout, Operand::weights, item.data, size, 0, item.count, copy.data());
        }
        return copy;
      };
      const std::vector<char> found = elements(on_device(i));
      const std::vector<char> wanted = elements(on_host(i));
      CHECK(first_difference(items_[i].dtype, found.data(), wanted.data(), items_[i].count) < 0,
            "wrong elements:", what, "tensor", i);
    }
  }

  std::vector<Shape> shapes_;
  Problem problem_;
  std::vector<DeviceItem> items_;
  Memory norm_;
};

Shape rows_apart(DType dtype, std::int64_t rows) { return {dtype, rows * 7, 0, 0, {rows, 7}, {9, 1}, {9, 1}}; }
Shape backwards(DType dtype, std::int64_t count) { return {dtype, count, 0, 0, {count}, {-1}, {-1}}; }

// Tensors of all floating dtypes, some of them strided.
std::vector<Shape> mixed(int count, std::int64_t longest) {
  std::vector<Shape> shapes;
  for (int i = 0; i < count; ++i) {
    const std::int64_t size = (std::int64_t{7919} * i * i + 13 * i) % (longest + 1);
    const DType dtype = floating_dtypes[i * 7 % 4];
    shapes.push_back(i % 5 == 3 ? backwards(dtype, size + 1) : Shape{dtype, size, i % 3});
  }
  return shapes;
}

void measure_each(const std::vector<std::int64_t>& sizes) {
  std::uint64_t seed = 0;
  for (const std::int64_t size : sizes) {
    for (const DType dtype : floating_dtypes) {
      stand_in::reset(++seed);
      stand_in::set_processors(1 + static_cast<int>(seed % 3), 1);
      const std::string what = std::string(name_of(dtype)) + " size " + std::to_string(size);
      Tensors({{dtype, size, static_cast<int>(seed % 2)}}, seed).measure(what);
      Tensors({backwards(dtype, size + 1)}, seed).measure(what + " backwards");
    }
  }
}

}  // namespace

TEST(norms_of_small_sizes) { measure_each({0, 1, 31, 32, 33}); }
TEST(norms_around_a_chunk) { measure_each({4095, 4096, 4097, 20003}); }

TEST(norms_of_integers) {
  for (int number = floating_dtype_count; number < dtype_count; ++number) {
    const auto dtype = static_cast<DType>(number);
    Tensors({{dtype, 5003}, rows_apart(dtype, 700)}, 3).measure(name_of(dtype));
  }
}

TEST(norms_of_many_tensors) {
  stand_in::reset(1);
  for (const int count : {7, 300}) {
    Tensors(mixed(count, count == 7 ? 9000 : 300), 5).measure(std::to_string(count) + " tensors");
  }
}

TEST(norms_of_two_levels) {
  stand_in::reset(1);
  Tensors({{DType::f16, std::int64_t{4096} * 4096 + 70000}, {DType::f16, 5}}, 3).measure("two levels");
}

TEST(norms_of_infinities) {
  stand_in::reset(1);
  for (const double number : {std::numeric_limits<double>::infinity(), std::nan(""), 0.0}) {
    Tensors tensors({{DType::f64, 9000}}, 3);
    tensors.put(0, number, 70);
    tensors.measure("with " + std::to_string(number));
  }
}

TEST(norms_times_a_power) {
  stand_in::reset(1);
  for (const int exponent : {-900, -3, 500, 1000}) {
    Tensors(mixed(7, 9000), 9).measure("times 2^" + std::to_string(exponent), exponent);
  }
}

TEST(tensors_are_scaled) {
  stand_in::reset(1);
  for (const double factor : {0.37, 1.0, 0.0, 1e-30}) {
    std::vector<Shape> shapes = mixed(9, 9000);
    for (const DType dtype : floating_dtypes) {
      shapes.push_back(rows_apart(dtype, 700));
    }
    Tensors(std::move(shapes), 11).scale("factor " + std::to_string(factor), factor);
  }
}

TEST(tensors_are_clipped) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const double max_norm : {0.0, 0.5, 1e9, infinity}) {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      stand_in::reset(seed);
      Tensors(mixed(static_cast<int>(seed) * 2, 5000), seed).clip("clip to " + std::to_string(max_norm), max_norm);
    }
  }
  for (const double number : {1e300, 1e200, 1e-200, 5e-324, infinity, std::nan("")}) {
    for (const double max_norm : {1e-310, 0.5, 1e250, infinity}) {
      stand_in::reset(3);
      Tensors tensors({{DType::f64, 9000}, {DType::f32, 50}, {DType::f64, 3}}, 5);
      tensors.put(0, number, number < 1.0 ? 1 : 1000);
      if (number < 1.0) {
        tensors.put(2, 0.0, 1);
      }
      tensors.clip("clip of " + std::to_string(number) + " to " + std::to_string(max_norm), max_norm);
    }
  }
  for (const double number : {1e-200, 5e-324, 0.0}) {
    Tensors small({{DType::f64, 9000}, {DType::f64, 0}}, 5);
    small.put(0, number, 1);
    small.clip("clip of small numbers", 1e-320);
  }
}

// Rows of several groups.
TEST(clips_of_large_rows) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    stand_in::reset(seed);
    Tensors({{DType::f16, std::int64_t{4096} * 4096 + 70000}, {DType::f16, 5}}, 3).clip("clip of large rows", 0.5);
  }
}

TEST(clips_follow_each_other) {
  stand_in::reset(1);
  Tensors first({{DType::f32, 9000}, {DType::f64, 70}}, 2);
  Tensors second({{DType::bf16, 20003}}, 7);
  for (int turn = 0; turn < 3; ++turn) {
    first.clip("first", 0.5 / (1 + turn));
    second.clip("second", 0.25 / (1 + turn));
    first.measure("between");
  }
}

TEST(norms_that_are_captured_are_refused) {
  stand_in::reset(1);
  Problem problem({{DType::f32, 50}}, no_strengths, output_value, 1);
  const DeviceCall items = problem.call();
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  Norm norm;
  NormCall call{};
  call.stream = stream;
  call.items = items.items;
  call.item_count = 1;
  call.norms = &norm;
  BackendError error;
  CHECK(fastreg_backend()->norms(&call, nullptr, &error) == BackendStatus::failed, error.text);
  CHECK(std::strstr(error.text, "norms are waited for") != nullptr, error.text);
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream, &graph);
  cudaGraphDestroy(graph);
}

// What a sanitizer that takes a millisecond per thread can do.
TEST(norms_tiny) {
  stand_in::reset(1);
  stand_in::set_processors(1, 2);
  Tensors tensors(
      {{DType::f32, 9000}, {DType::f64, 40}, {DType::bf16, 4100, 1}, {DType::f32, 0}, backwards(DType::f16, 70)}, 11);
  tensors.put(1, 1e250, 7);
  tensors.measure("tiny");
  tensors.clip("tiny", 0.5);
}

}  // namespace fastreg::test
