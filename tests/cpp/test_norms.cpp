// The loops of norms, of every variant of every table that this processor can run, and what norms.cpp makes of them,
// against the oracle: every dtype, at sizes where something ends, at every alignment, over special numbers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/norm_loops.h"
#include "cpu/policy.h"
#include "cpu/pool.h"
#include "norms.h"

namespace fastreg::test {
namespace {

Norm expected_norm(const std::vector<double>& elements) {
  Norm norm;
  norm.l1 = oracle::canonical_sum(oracle::magnitudes(elements));
  norm.l2 = oracle::canonical_sum(oracle::squares(elements));
  for (const double element : elements) {
    const double magnitude = std::fabs(element);
    norm.maximum = std::isnan(magnitude) || magnitude > norm.maximum ? magnitude : norm.maximum;
    norm.zeros += element == 0.0 ? 1 : 0;
    norm.nonfinite += std::isfinite(element) ? 0 : 1;
  }
  return norm;
}

void require_same(const Norm& found, const Norm& wanted, const std::string& what) {
  CHECK(oracle::same_value(found.l1, wanted.l1), what, "l1", found.l1, wanted.l1);
  CHECK(oracle::same_value(found.l2, wanted.l2), what, "l2", found.l2, wanted.l2);
  CHECK(oracle::same_value(found.maximum, wanted.maximum), what, "maximum", found.maximum, wanted.maximum);
  CHECK(found.zeros == wanted.zeros, what, "zeros", found.zeros, wanted.zeros);
  CHECK(found.nonfinite == wanted.nonfinite, what, "nonfinite", found.nonfinite, wanted.nonfinite);
}

// The product in the type of the arithmetic, rounded there and then to the dtype.
void scale_once(DType dtype, void* element, double factor) {
  const double number = oracle::element(dtype, element);
  const double product = dtype == DType::f64
                             ? number * factor
                             : static_cast<double>(static_cast<float>(number) * static_cast<float>(factor));
  oracle::store(dtype, product, element);
}

void run_case(DType dtype, std::size_t count, Fill kind, std::size_t offset, const std::string& what) {
  Bytes bytes(count * item_size(dtype), offset);
  fill(bytes.data(), dtype, count, kind, count + offset);
  NormItem item{bytes.data(), static_cast<std::int64_t>(count), nullptr, dtype};
  Norm norm;
  measure_items(&item, 1, 0, &norm);
  require_same(norm, expected_norm(elements_of(bytes.data(), dtype, count)), what);
  for (const double factor : {0.3, 1e-6, 0.0, std::numeric_limits<double>::quiet_NaN()}) {
    std::vector<unsigned char> scaled(bytes.data(), bytes.data() + bytes.size());
    for (std::size_t i = 0; i < bytes.size(); i += item_size(dtype)) {
      scale_once(dtype, scaled.data() + i, factor);
    }
    Bytes target(bytes.size(), offset);
    std::copy(bytes.data(), bytes.data() + bytes.size(), target.data());
    item.data = target.data();
    scale_items(&item, 1, factor);
    const std::size_t at = first_difference(target.data(), scaled.data(), dtype, count);
    CHECK(at == count, what, "scaled by", factor, "at", at);
    CHECK(target.untouched(), what, "wrote beside the array");
  }
}

// Rows with a gap behind each, of any dtype; floating ones are scaled as well.
void run_rows(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t gap, Fill kind,
              const std::string& what) {
  const std::int64_t shape[] = {rows, columns};
  const std::int64_t strides[] = {columns + gap, 1};
  const auto all = static_cast<std::size_t>(rows * (columns + gap));
  Bytes bytes(all * item_size(dtype), 0);
  fill(bytes.data(), dtype, all, kind, all);
  ArrayView view;
  view.data = reinterpret_cast<char*>(bytes.data());
  view.shape = shape;
  view.strides = strides;
  view.stride_unit = static_cast<std::int64_t>(item_size(dtype));
  view.axes = 2;
  view.dtype = dtype;
  measure(view);
  const Layout layout = make_layout(view, nullptr);
  const NormItem item{bytes.data(), view.count, &layout, dtype};
  std::vector<std::size_t> places;
  std::vector<double> elements;
  for (std::int64_t i = 0; i < view.count; ++i) {
    places.push_back(static_cast<std::size_t>(i / columns * strides[0] + i % columns) * item_size(dtype));
    elements.push_back(oracle::element(dtype, bytes.data() + places.back()));
  }
  Norm norm;
  measure_items(&item, 1, 0, &norm);
  require_same(norm, expected_norm(elements), what);
  for (const int exponent : {1, 3, -40}) {
    std::vector<double> scaled = elements;
    for (double& element : scaled) {
      element = std::ldexp(element, exponent);
    }
    measure_items(&item, 1, exponent, &norm);
    const double wanted = expected_norm(scaled).l2;
    CHECK(oracle::same_value(norm.l2, wanted), what, "exponent", exponent, norm.l2, wanted);
  }
  if (is_floating(dtype)) {
    std::vector<unsigned char> scaled(bytes.data(), bytes.data() + bytes.size());
    for (const std::size_t place : places) {
      scale_once(dtype, scaled.data() + place, 0.7);
    }
    scale_items(&item, 1, 0.7);
    const std::size_t at = first_difference(bytes.data(), scaled.data(), dtype, all);
    CHECK(at == all, what, "scaled, at", at);
    CHECK(bytes.untouched(), what, "wrote beside the array");
  }
}

void run_all(std::initializer_list<std::size_t> counts, Fill kind) {
  for (const std::string& name : usable_instruction_sets()) {
    choose_instruction_set(name, "the test");
    for (std::size_t variant = 0; variant < variant_count; ++variant) {
      force_policy(name_of(static_cast<Variant>(variant)), "the test");
      for (const DType dtype : floating_dtypes) {
        for (const std::size_t count : counts) {
          for (const std::size_t offset : {0, 1, 16}) {
            run_case(
                dtype, count, kind, offset,
                text(name, name_of(static_cast<Variant>(variant)), name_of(dtype), "count", count, "offset", offset));
          }
        }
      }
    }
  }
  force_policy("", "the test");
}

}  // namespace

TEST(norms_around_rows_and_chunks) {
  run_all({0, 1, 2, 31, 32, 33, 127, 128, 129, 511, 512, 545, 4095, 4096, 4097, 9001}, Fill::ordinary);
}
TEST(norms_of_special_numbers) { run_all({1, 7, 64, 1057, 4200}, Fill::special); }

TEST(norms_of_every_dtype_and_layout) {
  for (const std::string& name : usable_instruction_sets()) {
    choose_instruction_set(name, "the test");
    for (int number = 0; number < dtype_count; ++number) {
      const auto dtype = static_cast<DType>(number);
      for (const Fill kind : {Fill::ordinary, Fill::special}) {
        for (const std::int64_t gap : {0, 3}) {
          for (const auto& [rows, columns] : {std::pair{1, 5}, {16, 32}, {33, 16}, {3, 171}, {65, 67}}) {
            run_rows(
                dtype, rows, columns, gap, kind,
                text(name, name_of(dtype), kind == Fill::special ? "special" : "", rows, "by", columns, "gap", gap));
          }
        }
      }
    }
  }
}

// A counter of half precision's zeros has 16 bits: a chunk of zeros has to fit, whatever the registers.
TEST(norms_of_zeros_alone) {
  for (const std::string& name : usable_instruction_sets()) {
    choose_instruction_set(name, "the test");
    for (const DType dtype : floating_dtypes) {
      constexpr std::size_t count = 3 * 4096 + 5;
      const std::vector<unsigned char> bytes(count * item_size(dtype));
      const NormItem item{const_cast<unsigned char*>(bytes.data()), count, nullptr, dtype};
      Norm norm;
      measure_items(&item, 1, 0, &norm);
      require_same(norm, Norm{0.0, 0.0, 0.0, count, 0}, text(name, name_of(dtype)));
    }
  }
}

// What is not finite is counted in a run's own elements, not in those behind it.
TEST(norms_of_infinities_alone) {
  for (const std::string& name : usable_instruction_sets()) {
    choose_instruction_set(name, "the test");
    for (const DType dtype : floating_dtypes) {
      constexpr std::size_t count = 2 * 4096 + 5;
      const std::vector<double> elements(count, std::numeric_limits<double>::infinity());
      Bytes bytes(count * item_size(dtype), 0);
      for (std::size_t i = 0; i < count; ++i) {
        oracle::store(dtype, elements[i], bytes.data() + i * item_size(dtype));
      }
      const NormItem item{bytes.data(), count, nullptr, dtype};
      Norm norm;
      measure_items(&item, 1, 0, &norm);
      require_same(norm, expected_norm(elements), text(name, name_of(dtype)));
    }
  }
}

TEST(norms_of_many_items_on_any_number_of_threads) {
  // So many elements that sleeping threads are woken for them.
  const auto most = static_cast<std::size_t>(policy().policy->elements_worth_waking);
  const std::size_t sizes[] = {70000, 0, most, 4096, 3, 1};
  std::vector<std::vector<unsigned char>> memory;
  std::vector<NormItem> items;
  std::vector<Norm> wanted;
  for (std::size_t i = 0; i < std::size(sizes); ++i) {
    const DType dtype = floating_dtypes[i % 4];
    std::vector<unsigned char>& bytes = memory.emplace_back(sizes[i] * item_size(dtype));
    fill(bytes.data(), dtype, sizes[i], Fill::ordinary, i);
    items.push_back({bytes.data(), static_cast<std::int64_t>(sizes[i]), nullptr, dtype});
    wanted.push_back(expected_norm(elements_of(bytes.data(), dtype, sizes[i])));
  }
  const int before = get_num_threads();
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    std::vector<Norm> norms(items.size());
    measure_items(items.data(), items.size(), 0, norms.data());
    for (std::size_t i = 0; i < items.size(); ++i) {
      require_same(norms[i], wanted[i], text("threads", threads, "item", i));
    }
  }
  for (const int threads : {1, 5}) {
    set_num_threads(threads);
    for (std::size_t i = 0; i < items.size(); ++i) {
      for (std::size_t k = 0; k < memory[i].size(); k += item_size(items[i].dtype)) {
        scale_once(items[i].dtype, memory[i].data() + k, 0.7);
      }
    }
    const std::vector<std::vector<unsigned char>> scaled = memory;
    for (std::size_t i = 0; i < items.size(); ++i) {
      fill(memory[i].data(), items[i].dtype, sizes[i], Fill::ordinary, i);
    }
    scale_items(items.data(), items.size(), 0.7);
    for (std::size_t i = 0; i < items.size(); ++i) {
      CHECK(first_difference(memory[i].data(), scaled[i].data(), items[i].dtype, sizes[i]) == sizes[i],
            "scaled, threads", threads, "item", i);
      fill(memory[i].data(), items[i].dtype, sizes[i], Fill::ordinary, i);
    }
  }
  set_num_threads(before);
}

}  // namespace fastreg::test
