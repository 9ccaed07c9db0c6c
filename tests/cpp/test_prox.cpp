// Every cell of the proximal kernels, of every variant of every table that this processor can run, against scalar code:
// dtype x terms x value, at sizes where something ends, at every alignment, in place and apart, over special numbers.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/policy.h"

namespace fastreg::test {
namespace {

constexpr double t1 = 0.3;
constexpr double t2 = 1.7;

// With every operation rounded to Real.
template <class Real>
Real step_in(double element, unsigned terms) {
  Real u = static_cast<Real>(element);
  if ((terms & term_l1) != 0) {
    const Real left = std::fabs(u) - static_cast<Real>(t1);
    const Real gone = std::isnan(left) ? left : Real{0};
    u = left > 0 ? std::copysign(left, u) : gone;
  }
  return (terms & term_l2) != 0 ? u / static_cast<Real>(t2) : u;
}

struct Case {
  DType dtype;
  unsigned terms;
  std::size_t count;
  std::vector<unsigned char> weights;
  std::vector<unsigned char> expected;
  std::vector<double> l1;  // the sums of the chunks of what is expected
  std::vector<double> l2;
  std::vector<std::int64_t> zeros;

  std::size_t bytes() const { return count * item_size(dtype); }
};

Case make_case(DType dtype, unsigned terms, std::size_t count, Fill kind) {
  Case cell{dtype, terms, count, {}, {}, {}, {}, {}};
  cell.weights.resize(cell.bytes());
  fill(cell.weights.data(), dtype, count, kind, count);
  cell.expected = cell.weights;
  const std::size_t size = item_size(dtype);
  for (std::size_t i = 0; terms != 0 && i < cell.bytes(); i += size) {
    const double element = oracle::element(dtype, cell.weights.data() + i);
    const double result = dtype == DType::f64 ? step_in<double>(element, terms) : step_in<float>(element, terms);
    oracle::store(dtype, result, cell.expected.data() + i);
  }
  const std::vector<double> elements = elements_of(cell.expected.data(), dtype, count);
  cell.l1 = oracle::chunk_sums(oracle::magnitudes(elements));
  cell.l2 = oracle::chunk_sums(oracle::squares(elements));
  cell.zeros.resize(cell.l1.size());
  for (std::size_t i = 0; i < count; ++i) {
    cell.zeros[i / 4096] += elements[i] == 0.0 ? 1 : 0;
  }
  return cell;
}

void run_case(const Case& cell, Kernel kernel, bool value, std::size_t from, std::size_t to, bool in_place,
              const std::string& what) {
  Bytes weights(cell.bytes(), from);
  std::copy(cell.weights.begin(), cell.weights.end(), weights.data());
  Bytes apart(cell.bytes(), to);
  unsigned char* target = in_place ? weights.data() : apart.data();
  std::vector<double> l1(cell.l1.size());
  std::vector<double> l2(cell.l2.size());
  std::vector<std::int64_t> zeros(cell.zeros.size());
  kernel({weights.data(), target, static_cast<std::int64_t>(cell.count), t1, t2, l1.data(), l2.data(),
          value ? zeros.data() : nullptr});
  CHECK(weights.untouched() && apart.untouched(), what, "wrote beside an array");
  const std::size_t at = first_difference(target, cell.expected.data(), cell.dtype, cell.count);
  CHECK(at == cell.count, what, "proximal step at", at);
  CHECK(in_place || std::equal(cell.weights.begin(), cell.weights.end(), weights.data()), what, "weights were written");
  if (!value) {
    return;
  }
  CHECK(zeros == cell.zeros, what, "zeros");
  if ((cell.terms & term_l1) != 0) {
    CHECK(first_difference(l1.data(), cell.l1.data(), DType::f64, l1.size()) == l1.size(), what, "l1 sums");
  }
  if ((cell.terms & term_l2) != 0) {
    CHECK(first_difference(l2.data(), cell.l2.data(), DType::f64, l2.size()) == l2.size(), what, "l2 sums");
  }
}

void run_all(std::initializer_list<std::size_t> counts, Fill kind) {
  for (const std::string& name : usable_instruction_sets()) {
    choose_instruction_set(name, "the test");
    for (const DType dtype : floating_dtypes) {
      for (const std::size_t count : counts) {
        for (const unsigned terms : {0u, 1u, 2u, 3u}) {
          const Case cell = make_case(dtype, terms, count, kind);
          for (std::size_t variant = 0; variant < variant_count; ++variant) {
            for (const bool value : {false, true}) {
              const Kernel kernel = kernels().prox[variant].kernels[static_cast<int>(dtype)][terms][value ? 1 : 0];
              const std::string what = text(name, name_of(static_cast<Variant>(variant)), name_of(dtype), "terms",
                                            terms, "value", value, "count", count);
              run_case(cell, kernel, value, 0, 0, false, what);
              run_case(cell, kernel, value, 16, 0, true, what + " in place");
              run_case(cell, kernel, value, 1, 3, false, what + " at any byte");
            }
          }
        }
      }
    }
  }
}

}  // namespace

TEST(every_cell_of_proximal_steps) { run_all({1, 2, 31, 32, 33, 1023, 1024, 1057, 4096, 4097, 9001}, Fill::ordinary); }
TEST(proximal_steps_of_special_numbers) { run_all({7, 64, 1057}, Fill::special); }

}  // namespace fastreg::test
