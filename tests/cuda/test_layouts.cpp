// Tensors with gaps, of negative and zero strides, gradients in another order than their weights, and integers: the
// bits of the CPU engine, in every cell.
#include <cstring>
#include <string>
#include <vector>

#include "support.h"

namespace fastreg::test {
namespace {

const std::vector<Coefficients> all_strengths = {strengths_for(0), strengths_for(term_l1), strengths_for(term_l2),
                                                 strengths_for(term_l1 | term_l2)};

const std::vector<Coefficients> all_thresholds = {thresholds_for(0), thresholds_for(term_l1), thresholds_for(term_l2),
                                                  thresholds_for(term_l1 | term_l2)};

constexpr DType integer_dtypes[] = {DType::boolean, DType::i8,  DType::i16, DType::i32, DType::i64,
                                    DType::u8,      DType::u16, DType::u32, DType::u64};

std::int64_t product(const Numbers& extents) {
  std::int64_t count = 1;
  for (const std::int64_t extent : extents) {
    count *= extent;
  }
  return count;
}

// Strides without gaps, of axes in the order given: from the slowest to the fastest.
Numbers dense(const Numbers& extents, const Numbers& order) {
  Numbers strides(extents.size());
  std::int64_t step = 1;
  for (std::size_t k = order.size(); k-- > 0;) {
    const auto axis = static_cast<std::size_t>(order[k]);
    strides[axis] = step;
    step *= extents[axis];
  }
  return strides;
}

Numbers dense(const Numbers& extents) {
  Numbers order;
  for (std::size_t axis = 0; axis < extents.size(); ++axis) {
    order.push_back(static_cast<std::int64_t>(axis));
  }
  return dense(extents, order);
}

Numbers times(Numbers strides, const Numbers& factors) {
  for (std::size_t axis = 0; axis < strides.size(); ++axis) {
    strides[axis] *= factors[axis];
  }
  return strides;
}

struct Arrangement {
  const char* name;
  Numbers extents;
  Numbers weight_strides;
  Numbers gradient_strides;
};

// Some 5,000 elements each, so that there is more than one chunk.
std::vector<Arrangement> arrangements() {
  const Numbers plane = {67, 79};
  const Numbers box = {7, 19, 41};
  const Numbers many = {3, 2, 1, 5, 2, 3, 2, 5, 7};
  const Numbers c = dense(plane);
  return {
      {"transposed gradient", plane, c, dense(plane, {1, 0})},
      {"transposed weight", plane, dense(plane, {1, 0}), c},
      {"both transposed", plane, dense(plane, {1, 0}), dense(plane, {1, 0})},
      {"sliced with steps", plane, {2 * 400, 3}, c},
      {"sliced with steps, the gradient too", plane, {2 * 400, 3}, {300, 2}},
      {"negative strides", plane, times(c, {-1, -1}), c},
      {"one negative stride", plane, times(c, {-1, 1}), times(c, {1, -1})},
      {"rows repeated", plane, {0, 1}, c},
      {"columns repeated", plane, {1, 0}, dense(plane, {1, 0})},
      {"one number", plane, {0, 0}, c},
      {"windows that overlap", plane, {1, 1}, c},
      {"permuted", box, dense(box, {1, 2, 0}), dense(box, {2, 0, 1})},
      {"permuted alike", box, dense(box, {2, 1, 0}), dense(box, {2, 1, 0})},
      {"a gradient with gaps", box, dense(box), times(dense(box), {2, 2, 2})},
      {"nine axes", many, dense(many, {8, 3, 5, 2, 0, 7, 1, 4, 6}), dense(many)},
      {"nine axes in C order with gaps", many, times(dense(many), {2, -2, 9, 2, -2, 2, -2, 2, 2}), dense(many)},
      {"a long axis", {9000}, {-2}, {3}},
      {"a long axis inside", {2, 8500}, {8501, 1}, {1, 2}},
      {"a long axis outside", {8500, 2}, {1, 8501}, {2, 1}},
      {"pairs", {5000, 2}, {3, 1}, {2, 1}},
  };
}

Shape shape_of(const Arrangement& arrangement, DType dtype, std::uint32_t terms) {
  return {dtype,
          product(arrangement.extents),
          0,
          terms,
          arrangement.extents,
          arrangement.weight_strides,
          arrangement.gradient_strides};
}

Shape line(DType dtype, std::int64_t count, std::int64_t weight_stride, std::int64_t gradient_stride,
           std::uint32_t terms) {
  return {dtype, count, 0, terms, {count}, {weight_stride}, {gradient_stride}};
}

// Where no two elements share memory.
bool may_be_written(const Arrangement& arrangement) {
  return arrangement.weight_strides[0] != 0 && arrangement.weight_strides.back() != 0 &&
         std::strcmp(arrangement.name, "windows that overlap") != 0;
}

Arrangement in_place(Arrangement arrangement) {
  arrangement.gradient_strides = arrangement.weight_strides;
  return arrangement;
}

void run(std::vector<Shape> shapes, unsigned outputs, const std::string& what, bool in_place = false) {
  static std::uint64_t seed = 0;
  stand_in::reset(++seed);
  stand_in::set_processors(1 + static_cast<int>(seed % 3), 1);
  Problem problem(std::move(shapes), is_prox(outputs) ? all_thresholds : all_strengths, outputs, seed, 0, in_place);
  run(problem, what);
}

void each_length(const std::vector<std::int64_t>& lengths) {
  for (const DType dtype : floating_dtypes) {
    for (const unsigned outputs : output_cells) {
      for (const std::int64_t length : lengths) {
        const auto terms = static_cast<std::uint32_t>(length % 3 + 1);
        const std::string what = name_of(dtype, terms, outputs) + " length " + std::to_string(length);
        run({line(dtype, length, -1, 1, terms)}, outputs, what + " backwards");
        run({line(dtype, length, 2, -3, terms)}, outputs, what + " with steps");
      }
    }
  }
  for (const DType dtype : integer_dtypes) {
    for (const std::int64_t length : lengths) {
      const std::string what = name_of(dtype, 3, 1) + " length " + std::to_string(length);
      run({{dtype, length, 1, 3}}, 1, what);
      run({line(dtype, length, -2, 1, 3)}, 1, what + " with steps");
    }
  }
}

// Tensors of all dtypes, terms and arrangements, every third one dense.
std::vector<Shape> mixed(int count, unsigned outputs) {
  const std::vector<Arrangement> all = arrangements();
  std::vector<Shape> shapes;
  for (int i = 0; i < count; ++i) {
    const auto terms = static_cast<std::uint32_t>(i * 5 % 7 % 4);
    DType dtype = floating_dtypes[i * 7 % 4];
    if (outputs == output_value && i % 5 == 1) {
      dtype = integer_dtypes[i % 9];
    }
    if (i % 3 == 0) {
      shapes.push_back({dtype, std::int64_t{7919} * i % 300, i % 3, terms});
    } else if (i % 3 == 1) {
      shapes.push_back(line(dtype, std::int64_t{13} * i % 200, i % 2 == 0 ? -2 : 3, 1, terms));
    } else {
      Arrangement small = all[static_cast<std::size_t>(i) % all.size()];
      for (std::int64_t& extent : small.extents) {
        extent = std::min<std::int64_t>(extent, 11);
      }
      // The strides still keep the elements apart: they are those of longer axes.
      if (product(small.extents) <= 500) {
        shapes.push_back(shape_of(small, dtype, terms));
      }
    }
  }
  return shapes;
}

}  // namespace

TEST(layouts_in_every_cell) {
  for (const Arrangement& arrangement : arrangements()) {
    for (const DType dtype : floating_dtypes) {
      for (std::uint32_t terms = 0; terms <= 3; ++terms) {
        for (const unsigned outputs : output_cells) {
          run({shape_of(arrangement, dtype, terms)}, outputs,
              std::string(arrangement.name) + ", " + name_of(dtype, terms, outputs));
        }
      }
    }
  }
}

TEST(layouts_of_integers) {
  for (const Arrangement& arrangement : arrangements()) {
    for (const DType dtype : integer_dtypes) {
      const std::uint32_t terms = 1 + static_cast<std::uint32_t>(dtype) % 3;
      run({shape_of(arrangement, dtype, terms)}, 1, std::string(arrangement.name) + ", " + name_of(dtype, terms, 1));
    }
  }
}

TEST(layouts_of_small_sizes) { each_length({0, 1, 31, 32, 33}); }
TEST(layouts_around_a_chunk) { each_length({4095, 4096, 4097}); }
TEST(layouts_of_many_chunks) { each_length({100003}); }

TEST(layouts_in_place) {
  for (const Arrangement& arrangement : arrangements()) {
    if (!may_be_written(arrangement)) {
      continue;
    }
    const Arrangement alike = in_place(arrangement);
    for (const unsigned outputs : {2u, 3u, 6u, 7u}) {
      run({shape_of(alike, DType::f32, 3), shape_of(alike, DType::bf16, 0)}, outputs,
          std::string(arrangement.name) + " in place, " + name_of(DType::f32, 3, outputs), true);
    }
  }
}

TEST(steps_in_any_layout) {
  for (const Arrangement& arrangement : arrangements()) {
    for (const DType dtype : floating_dtypes) {
      for (std::uint32_t terms = 0; terms <= 3; ++terms) {
        const std::string what = std::string(arrangement.name) + ", " + name_of(dtype, terms, 11);
        run({shape_of(arrangement, dtype, terms)}, 11, "step, " + what);
        if (may_be_written(arrangement)) {
          run({shape_of(in_place(arrangement), dtype, terms)}, 11, "step in place, " + what, true);
        }
      }
      run({shape_of(arrangement, dtype, 3)}, 10, std::string("step without value, ") + arrangement.name);
    }
  }
}

TEST(layouts_of_300_tensors) { run(mixed(300, 7), 7, "300 tensors"); }

TEST(layouts_of_3000_tensors) {
  for (const unsigned outputs : output_cells) {
    run(mixed(3000, outputs), outputs, "3000 tensors, outputs " + std::to_string(outputs));
  }
}

// The order by hand: C order of the indices, whatever the memory; but memory order where there are no gaps.
TEST(layouts_are_visited_in_the_order_of_the_contract) {
  for (const Arrangement& arrangement : arrangements()) {
    stand_in::reset(5);
    const Shape shape = shape_of(arrangement, DType::f64, 3);
    Problem problem({shape}, all_strengths, 1, 17);
    evaluate_on_device(problem.call(), arrangement.name);
    CHECK(cudaDeviceSynchronize() == cudaSuccess, arrangement.name, stand_in::refusal());
    const auto* weights = reinterpret_cast<const double*>(problem.weights(0));
    std::vector<double> in_order;
    const std::string name = arrangement.name;
    if (name == "transposed weight" || name == "both transposed" || name.starts_with("permuted") ||
        name == "nine axes") {
      in_order.assign(weights, weights + shape.count);
    } else {
      Numbers index(shape.extents.size(), 0);
      for (std::int64_t i = 0; i < shape.count; ++i) {
        std::int64_t place = 0;
        for (std::size_t axis = 0; axis < index.size(); ++axis) {
          place += index[axis] * shape.weight_strides[axis];
        }
        in_order.push_back(weights[place]);
        for (std::size_t axis = index.size(); axis > 0; --axis) {
          if (++index[axis - 1] < shape.extents[axis - 1]) {
            break;
          }
          index[axis - 1] = 0;
        }
      }
    }
    const Item item{in_order.data(), nullptr, shape.count, all_strengths[3], nullptr, DType::f64};
    double value = 0.0;
    evaluate(&item, 1, 1, &value);
    CHECK(problem.device_value(0) == value, name, problem.device_value(0), "is not", value);
  }
}

// A captured call keeps its axes.
TEST(layouts_in_a_graph) {
  stand_in::reset(1);
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  Problem problem(mixed(40, 7), all_strengths, 7, 3);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  Recording* recording = nullptr;
  evaluate_on_device(problem.call(stream), "capture", &recording);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&executable, graph, 0);
  for (int i = 0; i < 2; ++i) {
    cudaGraphLaunch(executable, stream);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess, stand_in::refusal());
    problem.compare("replay");
  }
  fastreg_backend()->forget(recording);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST(layouts_described_wrongly_are_refused) {
  stand_in::reset(1);
  Problem problem({line(DType::f32, 5000, 2, 1, 3), {DType::i32, 50, 0, 1}}, all_strengths, 1, 1);
  const auto refuse = [&](const Layout* layout, DType dtype, unsigned outputs) {
    DeviceCall call = problem.call();
    std::vector<DeviceItem> items(call.items, call.items + call.item_count);
    items[0].layout = layout;
    items[0].gradients = const_cast<void*>(items[0].weights);
    items[1].gradients = const_cast<void*>(items[1].weights);
    items[1].dtype = dtype;
    call.items = items.data();
    call.outputs = outputs;
    BackendError error;
    CHECK(fastreg_backend()->evaluate(&call, nullptr, &error) == BackendStatus::bad_argument, error.text);
    CHECK(std::strstr(error.text, "is described wrongly") != nullptr, error.text);
    stand_in::drain();
    CHECK(problem.device_is_untouched(), "a refused call");
  };
  Layout layout = *problem.call().items[0].layout;
  refuse(&layout, DType::i32, 3);  // a gradient of integers
  refuse(&layout, static_cast<DType>(dtype_count), 1);
  layout.axes[0].weight_stride = 6;  // not of elements
  refuse(&layout, DType::i32, 1);
  layout.axes[0].weight_stride = 8;
  layout.axes[0].extent = 5001;
  refuse(&layout, DType::i32, 1);
  layout.axes[0].extent = 5000;
  layout.axis_count = max_axes + 1;
  refuse(&layout, DType::i32, 1);
}

// What a sanitizer that takes a millisecond per thread can do.
TEST(layouts_tiny) {
  for (const unsigned outputs : {1u, 7u}) {
    stand_in::reset(outputs);
    // One block, and more chunks than it has warps.
    stand_in::set_processors(1, 1);
    std::vector<Shape> shapes = {{DType::f32, 36000, 0, 3, {3, 12000}, {-12000, 1}, {1, 3}},
                                 {DType::f64, 40, 0, 2, {40}, {-1}, {2}},
                                 {DType::bf16, 4100, 1, 1},
                                 line(DType::f16, 4100, 3, 2, 3)};
    if (outputs == 1) {
      shapes.push_back({DType::u64, 50, 0, 3});
    }
    Problem problem(std::move(shapes), all_strengths, outputs, outputs);
    run(problem, "tiny layouts, outputs " + std::to_string(outputs));
  }
}

}  // namespace fastreg::test
