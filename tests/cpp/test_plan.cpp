// evaluate() against the oracle: layouts, dtypes that are only read, many items, scales, empty items, threads; and the
// judgements of layout.h against the sets of addresses themselves.
#include "plan.h"

#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "arrays.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/pool.h"

#if defined(__linux__)
namespace {
// What the system says of memory, and how often it was asked to map a page; the tests below say otherwise.
enum class Pages { as_they_are, mapped, unmapped };
std::atomic<Pages> pages{Pages::as_they_are};
std::atomic<int> pages_asked_for{0};
}  // namespace

// In the place of the C library's.
extern "C" int mincore(void* memory, std::size_t bytes, unsigned char* answers) noexcept {
  if (pages == Pages::as_they_are) {
    return static_cast<int>(syscall(SYS_mincore, memory, bytes, answers));
  }
  std::fill_n(answers, (bytes + 4095) / 4096, static_cast<unsigned char>(pages == Pages::mapped ? 1 : 0));
  return 0;
}

extern "C" int madvise(void* memory, std::size_t bytes, int advice) noexcept {
  constexpr int populate_write = 23;
  pages_asked_for += advice == populate_write ? 1 : 0;
  return static_cast<int>(syscall(SYS_madvise, memory, bytes, advice));
}
#endif

namespace fastreg::test {
namespace {

using Axes = std::vector<std::int64_t>;

// Where the elements of an array lie: strides and offset in elements.
struct Strided {
  Axes shape;
  Axes strides;
  std::int64_t offset = 0;

  // The places of all elements in C order of their indices, in elements.
  std::vector<std::int64_t> places() const {
    std::vector<std::int64_t> all = {offset};
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      std::vector<std::int64_t> longer;
      for (const std::int64_t place : all) {
        for (std::int64_t i = 0; i < shape[axis]; ++i) {
          longer.push_back(place + i * strides[axis]);
        }
      }
      all = std::move(longer);
    }
    return all;
  }
};

// Dense in the sense of the contract: no stride that counts is negative or zero, and the elements fill their memory.
bool is_dense(const Strided& array) {
  std::vector<std::int64_t> places = array.places();
  for (std::size_t axis = 0; axis < array.shape.size(); ++axis) {
    if (array.shape[axis] != 1 && array.strides[axis] <= 0) {
      return false;
    }
  }
  std::sort(places.begin(), places.end());
  for (std::size_t i = 1; i < places.size(); ++i) {
    if (places[i] != places[i - 1] + 1) {
      return false;
    }
  }
  return true;
}

Axes c_strides(const Axes& shape) {
  Axes strides(shape.size(), 1);
  for (std::size_t axis = shape.size(); axis-- > 1;) {
    strides[axis - 1] = strides[axis] * std::max<std::int64_t>(1, shape[axis]);
  }
  return strides;
}

Axes f_strides(const Axes& shape) {
  Axes strides(shape.size(), 1);
  for (std::size_t axis = 1; axis < shape.size(); ++axis) {
    strides[axis] = strides[axis - 1] * std::max<std::int64_t>(1, shape[axis - 1]);
  }
  return strides;
}

// C order, F order, the last axes exchanged, every second element, backwards, one row again and again, gaps.
std::vector<Strided> ways_to_lie(const Axes& shape) {
  std::vector<Strided> ways = {{shape, c_strides(shape)}, {shape, f_strides(shape)}};
  const std::size_t axes = shape.size();
  if (axes >= 2) {
    Axes exchanged = shape;
    std::swap(exchanged[axes - 1], exchanged[axes - 2]);
    Axes strides = c_strides(exchanged);
    std::swap(strides[axes - 1], strides[axes - 2]);
    ways.push_back({shape, strides});
  }
  Axes every_second = c_strides(shape);
  for (std::int64_t& stride : every_second) {
    stride *= 2;
  }
  ways.push_back({shape, every_second, 1});
  if (axes >= 1) {
    Strided backwards{shape, c_strides(shape)};
    for (std::size_t axis = 0; axis < axes; axis += 2) {
      backwards.offset += std::max<std::int64_t>(0, shape[axis] - 1) * backwards.strides[axis];
      backwards.strides[axis] *= -1;
    }
    ways.push_back(backwards);
    Strided gaps{shape, c_strides(shape)};
    for (std::size_t axis = 0; axis + 1 < axes; ++axis) {
      gaps.strides[axis] += 5 * (axis == 0 ? 3 : 0) + 7 * gaps.strides[0];
    }
    ways.push_back(gaps);
    Strided repeated{shape, c_strides(shape)};
    repeated.strides[0] = 0;
    ways.push_back(repeated);
  }
  return ways;
}

ArrayView view_of(const Strided& array, DType dtype, unsigned char* memory) {
  ArrayView view;
  view.data = reinterpret_cast<char*>(memory) + array.offset * static_cast<std::int64_t>(item_size(dtype));
  view.shape = array.shape.data();
  view.strides = array.strides.data();
  view.stride_unit = static_cast<std::int64_t>(item_size(dtype));
  view.axes = static_cast<int>(array.shape.size());
  view.dtype = dtype;
  measure(view);
  return view;
}

std::size_t extent_in_elements(const Strided& array) {
  const std::vector<std::int64_t> places = array.places();
  return places.empty() ? 0 : static_cast<std::size_t>(*std::max_element(places.begin(), places.end())) + 1;
}

// The layout that a call makes: none where both lie in C order or both in F order.
struct LaidOut {
  LaidOut(const ArrayView& weights, const ArrayView* gradients) : layout(make_layout(weights, gradients)) {
    needed = !layout.weights_consecutive || !layout.gradients_consecutive;
  }
  Layout layout;
  bool needed;
};

void check_layouts(DType dtype, const Strided& weights, const Strided& gradients, unsigned outputs) {
  const std::size_t item = item_size(dtype);
  const bool writes = (outputs & output_gradient) != 0;
  const bool adds = (outputs & output_add) != 0;
  Bytes weight_memory(extent_in_elements(weights) * item, item);
  Bytes gradient_memory(writes ? extent_in_elements(gradients) * item : 0, 2 * item);
  fill(weight_memory.data(), dtype, weight_memory.size() / item, Fill::ordinary, 3);
  fill(gradient_memory.data(), dtype, gradient_memory.size() / item, Fill::ordinary, 4);
  std::vector<unsigned char> expected(gradient_memory.data(), gradient_memory.data() + gradient_memory.size());

  const std::vector<std::int64_t> weight_places = weights.places();
  const std::vector<std::int64_t> gradient_places = gradients.places();
  std::vector<std::size_t> order(weight_places.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (is_dense(weights)) {
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return weight_places[a] < weight_places[b]; });
  }
  const oracle::Strengths strengths{0.3, 0.7, 0.37, 3.0};
  std::vector<double> elements;
  for (const std::size_t i : order) {
    const unsigned char* weight = weight_memory.data() + static_cast<std::size_t>(weight_places[i]) * item;
    elements.push_back(oracle::element(dtype, weight));
    if (writes) {
      oracle::gradient(dtype, weight, expected.data() + static_cast<std::size_t>(gradient_places[i]) * item, strengths,
                       adds);
    }
  }

  const ArrayView weight_view = view_of(weights, dtype, weight_memory.data());
  const ArrayView gradient_view = view_of(gradients, dtype, gradient_memory.data());
  const LaidOut laid_out(weight_view, writes ? &gradient_view : nullptr);
  const Item item_of_call{weight_view.data,
                          gradient_view.data,
                          weight_view.count,
                          make_coefficients(strengths.l1, strengths.l2, strengths.scale, strengths.grad_scale),
                          laid_out.needed ? &laid_out.layout : nullptr,
                          dtype};
  double value = -1.0;
  evaluate(&item_of_call, 1, outputs, &value);
  const std::string what = text(name_of(dtype), "count", weight_view.count, "outputs", outputs);
  if ((outputs & output_value) != 0) {
    CHECK(oracle::same_value(value, oracle::penalty(elements, strengths)), what);
  }
  if (writes) {
    const std::size_t count = gradient_memory.size() / item;
    const std::size_t at = first_difference(gradient_memory.data(), expected.data(), dtype, count);
    CHECK(at == count, what, "at", at);
  }
  CHECK(gradient_memory.untouched(), what);
}

// How much of its stack a thread uses that evaluates an array whose elements are `step` apart.
std::size_t stack_used_for(DType dtype, std::int64_t count, std::int64_t step, unsigned outputs) {
  constexpr unsigned char untouched = 0xa5;
  const Strided array{{count}, {step}};
  const std::size_t item = item_size(dtype);
  Bytes weights(extent_in_elements(array) * item, 0);
  Bytes gradients(weights.size(), 0);
  fill(weights.data(), dtype, weights.size() / item, Fill::ordinary, 3);
  fill(gradients.data(), dtype, weights.size() / item, Fill::ordinary, 4);
  const ArrayView weight_view = view_of(array, dtype, weights.data());
  const ArrayView gradient_view = view_of(array, dtype, gradients.data());
  const LaidOut laid_out(weight_view, &gradient_view);
  struct Call {
    Item item;
    unsigned outputs;
  } call{{weight_view.data, gradient_view.data, weight_view.count, make_coefficients(0.3, 0.7, 1.0, 1.0),
          laid_out.needed ? &laid_out.layout : nullptr, dtype},
         outputs};

  constexpr std::size_t size = std::size_t{1} << 18;  // enough to see how much it is
  Bytes stack(size, 0);
  std::fill(stack.data(), stack.data() + size, untouched);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_t thread;
  CHECK(pthread_attr_setstack(&attributes, stack.data(), size) == 0);
  const int failure = pthread_create(
      &thread, &attributes,
      [](void* context) -> void* {
        const auto& of = *static_cast<Call*>(context);
        double value = 0.0;
        evaluate(&of.item, 1, of.outputs, &value);
        return nullptr;
      },
      &call);
  CHECK(failure == 0 && pthread_join(thread, nullptr) == 0);
  pthread_attr_destroy(&attributes);
  return static_cast<std::size_t>(
      stack.data() + size -
      std::find_if(stack.data(), stack.data() + size, [](unsigned char byte) { return byte != untouched; }));
}

const std::vector<Axes>& shapes() {
  static const std::vector<Axes> all = {{},     {0},      {1},        {7},          {3, 5},      {0, 4},
                                        {1, 9}, {65, 67}, {2, 1, 50}, {3, 4, 5, 6}, {5, 20, 43}, {1, 4097}};
  return all;
}

// Several items of all kinds, as one call has them; with what must come out.
struct ManyItems {
  explicit ManyItems(std::int64_t largest) {
    std::uint64_t seed = 0;
    for (const std::int64_t count : {std::int64_t{5}, std::int64_t{0}, largest, std::int64_t{4097}, std::int64_t{33}}) {
      for (const DType dtype : floating_dtypes) {
        // Every fourth has no term: a new gradient of it is +0, an accumulated one is untouched.
        const double l2 = seed % 4 == 3 ? 0.0 : 0.25 + static_cast<double>(seed % 3);
        strengths.push_back({seed % 2 == 0 ? 0.3 : 0.0, l2, 0.5, 2.0});
        const auto bytes = static_cast<std::size_t>(count) * item_size(dtype);
        weights.emplace_back(bytes, 16 * (seed % 4));
        old_gradients.emplace_back(bytes, 16 * (seed % 3));
        fill(weights.back().data(), dtype, static_cast<std::size_t>(count), Fill::ordinary, ++seed);
        fill(old_gradients.back().data(), dtype, static_cast<std::size_t>(count), Fill::ordinary, ++seed);
        seed -= 1;
        dtypes.push_back(dtype);
        counts.push_back(count);
      }
    }
  }

  void expect(unsigned outputs) {
    expected_values.clear();
    expected_gradients.clear();
    for (std::size_t i = 0; i < dtypes.size(); ++i) {
      const auto count = static_cast<std::size_t>(counts[i]);
      expected_values.push_back(oracle::penalty(elements_of(weights[i].data(), dtypes[i], count), strengths[i]));
      const unsigned char* old = old_gradients[i].data();
      std::vector<unsigned char> gradients(old, old + old_gradients[i].size());
      for (std::size_t k = 0; k < gradients.size() && (outputs & output_gradient) != 0; k += item_size(dtypes[i])) {
        oracle::gradient(dtypes[i], weights[i].data() + k, gradients.data() + k, strengths[i],
                         (outputs & output_add) != 0);
      }
      expected_gradients.push_back(std::move(gradients));
    }
  }

  void check(unsigned outputs, const std::string& what) {
    std::vector<std::vector<unsigned char>> kept;
    std::vector<Item> items;
    for (std::size_t i = 0; i < dtypes.size(); ++i) {
      unsigned char* gradients = old_gradients[i].data();
      kept.emplace_back(gradients, gradients + old_gradients[i].size());
      items.push_back({weights[i].data(), gradients, counts[i],
                       make_coefficients(strengths[i].l1, strengths[i].l2, strengths[i].scale, strengths[i].grad_scale),
                       nullptr, dtypes[i]});
    }
    std::vector<double> values(items.size(), -1.0);
    evaluate(items.data(), items.size(), outputs, values.data());
    for (std::size_t i = 0; i < items.size(); ++i) {
      if ((outputs & output_value) != 0) {
        CHECK(oracle::same_value(values[i], expected_values[i]), what, "value of item", i);
      }
      const auto count = static_cast<std::size_t>(counts[i]);
      const std::size_t at = first_difference(old_gradients[i].data(), expected_gradients[i].data(), dtypes[i], count);
      CHECK(at == count, what, "gradient of item", i, "at", at);
      CHECK(old_gradients[i].untouched(), what, "item", i);
      std::copy(kept[i].begin(), kept[i].end(), old_gradients[i].data());
    }
  }

  std::vector<DType> dtypes;
  std::vector<std::int64_t> counts;
  std::vector<oracle::Strengths> strengths;
  std::vector<Bytes> weights;
  std::vector<Bytes> old_gradients;
  std::vector<double> expected_values;
  std::vector<std::vector<unsigned char>> expected_gradients;
};

}  // namespace

TEST(layouts_of_weights_and_gradients) {
  for (const Axes& shape : shapes()) {
    for (const Strided& gradients : ways_to_lie(shape)) {
      // A gradient that is written must not have two elements in one place.
      const std::vector<std::int64_t> places = gradients.places();
      if (std::set<std::int64_t>(places.begin(), places.end()).size() != places.size()) {
        continue;
      }
      for (const Strided& weights : ways_to_lie(shape)) {
        check_layouts(DType::f32, weights, gradients, output_value | output_gradient | output_add);
        check_layouts(DType::f16, weights, gradients, output_value | output_gradient);
        check_layouts(DType::f64, weights, gradients, output_gradient | output_add);
      }
    }
  }
}

TEST(layouts_of_every_dtype) {
  for (int dtype = 0; dtype < dtype_count; ++dtype) {
    for (const Axes& shape : {Axes{4097}, Axes{65, 67}, Axes{100'003}}) {
      for (const Strided& weights : ways_to_lie(shape)) {
        check_layouts(static_cast<DType>(dtype), weights, weights, output_value);
      }
    }
  }
}

// Threads that others make may have 64 KiB of stack; sanitizers need more.
TEST(small_stacks_suffice) {
  const int before = get_num_threads();
  for (const int threads : {1, 3}) {
    set_num_threads(threads);
    const std::int64_t count = threads == 1 ? 5'003 : 300'007;  // so large that threads share it
    for (int dtype = 0; dtype < dtype_count; ++dtype) {
      const auto type = static_cast<DType>(dtype);
      if (threads != 1 && type != DType::f16 && type != DType::f64 && type != DType::i8) {
        continue;
      }
      for (const unsigned outputs :
           {unsigned{output_value}, output_value | output_gradient, output_value | output_gradient | output_add}) {
        if (outputs == output_value || is_floating(type)) {
          for (const std::int64_t step : {1, 2}) {
            const std::size_t used = stack_used_for(type, count, step, outputs);
            CHECK(used < (std::size_t{24} << 10), name_of(type), "step", step, "outputs", outputs, "bytes", used);
          }
        }
      }
    }
  }
  set_num_threads(before);
}

TEST(layouts_judged) {
  for (const Axes& shape : shapes()) {
    for (const Strided& array : ways_to_lie(shape)) {
      std::vector<unsigned char> memory(8 * extent_in_elements(array) + 8);
      const ArrayView view = view_of(array, DType::f64, memory.data());
      const std::vector<std::int64_t> places = array.places();
      const std::set<std::int64_t> distinct(places.begin(), places.end());
      const std::string what = text("axes", shape.size(), "count", view.count);
      CHECK(std::cmp_equal(view.count, places.size()), what);
      const Extent extent = extent_of(view);
      const auto start = reinterpret_cast<std::uintptr_t>(memory.data());
      if (places.empty()) {
        CHECK(extent.low == extent.high, what);
        continue;
      }
      CHECK(extent.low == start + 8 * static_cast<std::uintptr_t>(*distinct.begin()), what);
      CHECK(extent.high == start + 8 * (static_cast<std::uintptr_t>(*distinct.rbegin()) + 1), what);
      // May be too careful where axes interlock, but never the other way round.
      CHECK(!elements_are_distinct(view) || distinct.size() == places.size(), what);
      CHECK(elements_are_distinct(view) || !is_dense(array), what);
      const bool in_order = std::is_sorted(places.begin(), places.end());
      CHECK(view.c_contiguous == (in_order && is_dense(array)), what);
      CHECK(!view.f_contiguous || is_dense(array), what);
      CHECK(make_layout(view, nullptr).weights_consecutive == is_dense(array), what);
    }
  }
}

// Without elements, or along axes of one, another library may describe any stride; a count beyond int64 no memory
// holds.
TEST(layouts_that_no_memory_holds) {
  constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min();
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t large = std::int64_t{1} << 62;
  struct Absurd {
    std::int64_t shape[3];
    std::int64_t strides[3];
    std::int64_t count;
    bool are_distinct;
  };
  const Absurd cases[] = {
      {{0, large, large}, {large, least, 8}, 0, true},
      {{large, large, 0}, {most, least, 8}, 0, true},
      {{1, 1, 2}, {least, most, 8}, 2, true},
      {{large, 4, 1}, {8, large, 8}, most, false},
      {{std::int64_t{1} << 32, std::int64_t{1} << 32, 1}, {0, 0, 0}, most, false},
      {{2, 2, 2}, {least, most, large}, 8, false},
  };
  for (const Absurd& absurd : cases) {
    for (const std::int64_t unit : {1, 8}) {
      ArrayView view;
      view.shape = absurd.shape;
      view.strides = absurd.strides;
      view.stride_unit = unit;
      view.axes = 3;
      view.dtype = DType::f64;
      measure(view);
      const std::string what = text("count", absurd.count, "unit", unit);
      CHECK(view.count == absurd.count, what, view.count);
      if (unit == 1) {
        CHECK(elements_are_distinct(view) == absurd.are_distinct, what);
      }
      const Extent extent = extent_of(view);
      CHECK(view.count != 0 || extent.low == extent.high, what);
      CHECK(make_layout(view, nullptr).axis_count <= 3, what);
    }
  }
}

TEST(many_items_on_any_number_of_threads) {
  ManyItems items(200'003);
  const int before = get_num_threads();
  for (const unsigned outputs : {1u, 2u, 3u, 6u, 7u}) {
    items.expect(outputs);
    for (const std::string& name : usable_instruction_sets()) {
      choose_instruction_set(name, "the test");
      for (const int threads : {1, 2, 3, 7}) {
        set_num_threads(threads);
        items.check(outputs, text(name, "outputs", outputs, "threads", threads));
      }
    }
  }
  set_num_threads(before);
}

// Large enough for streaming stores: 16 MiB of every dtype.
TEST(large_gradients_are_streamed) {
  for (const DType dtype : floating_dtypes) {
    const std::size_t count = (std::size_t{1} << 25) / item_size(dtype) + 4099;
    Bytes weights(count * item_size(dtype), 16);
    Bytes gradients(count * item_size(dtype), 48);
    fill(weights.data(), dtype, 5000, Fill::ordinary, 1);
    for (std::size_t done = 5000 * item_size(dtype); done < weights.size(); done *= 2) {
      std::copy_n(weights.data(), std::min(done, weights.size() - done), weights.data() + done);
    }
    const oracle::Strengths strengths{0.3, 0.7};
    std::vector<unsigned char> expected(weights.size());
    for (std::size_t i = 0; i < 5000 * item_size(dtype); i += item_size(dtype)) {
      oracle::gradient(dtype, weights.data() + i, expected.data() + i, strengths, false);
    }
    for (std::size_t done = 5000 * item_size(dtype); done < expected.size(); done *= 2) {
      std::copy_n(expected.begin(), std::min(done, expected.size() - done),
                  expected.begin() + static_cast<std::ptrdiff_t>(done));
    }
    const double expected_value = oracle::penalty(elements_of(weights.data(), dtype, count), strengths);
    for (const std::string& name : usable_instruction_sets()) {
      choose_instruction_set(name, "the test");
      const Item item{weights.data(),
                      gradients.data(),
                      static_cast<std::int64_t>(count),
                      make_coefficients(strengths.l1, strengths.l2, 1.0, 1.0),
                      nullptr,
                      dtype};
      std::memset(gradients.data(), 0x11, gradients.size());
      double value = 0.0;
      evaluate(&item, 1, output_value | output_gradient, &value);
      CHECK(oracle::same_value(value, expected_value), name, name_of(dtype));
      CHECK(first_difference(gradients.data(), expected.data(), dtype, count) == count, name, name_of(dtype));
      CHECK(gradients.untouched(), name, name_of(dtype));
    }
  }
}

TEST(nothing_to_do) {
  double value = -1.0;
  evaluate(nullptr, 0, output_value, &value);
  CHECK(value == -1.0);
  const Item empty{nullptr, nullptr, 0, make_coefficients(0.3, 0.7, 1.0, 1.0), nullptr, DType::f32};
  evaluate(&empty, 1, output_value | output_gradient | output_add, &value);
  CHECK(oracle::same_value(value, 0.0));
}

#if defined(__linux__)
TEST(plan_of_new_gradients) {
  constexpr std::int64_t large_page = 2 << 20;
  constexpr std::int64_t large_pages = 18;  // of 36 MiB
  constexpr std::int64_t count = large_pages * large_page / static_cast<std::int64_t>(sizeof(float));
  const std::vector<float> weights(count, 0.5f);
  const std::size_t bytes = count * sizeof(float) + large_page;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  auto* gradients = static_cast<float*>(memory) + 4;
  const Item item{weights.data(), gradients, count, make_coefficients(0.25, 0.0, 1.0, 1.0), nullptr, DType::f32};
  const auto asked = [&](unsigned outputs, Pages answer) {
    double value = 0.0;
    pages = answer;
    pages_asked_for = 0;
    evaluate(&item, 1, outputs, &value);
    pages = Pages::as_they_are;
    return pages_asked_for.load();
  };
  const int found = asked(output_gradient, Pages::unmapped);
  CHECK(found == large_pages || found == large_pages - 1, std::to_string(found));
  CHECK(std::all_of(gradients, gradients + count, [](float x) { return x == 0.25f; }));
  CHECK(asked(output_value | output_gradient, Pages::mapped) == 0);
  CHECK(asked(output_gradient | output_add, Pages::unmapped) == 0, "read first");
  CHECK(asked(output_value, Pages::unmapped) == 0, "not written");
  munmap(memory, bytes);
}
#endif

}  // namespace fastreg::test
