// csrc/canonical_sum.h against the oracle.
#include "canonical_sum.h"

#include <cmath>
#include <limits>

#include "arrays.h"
#include "check.h"

namespace fastreg::test {

static double sum(std::vector<double> terms) {
  return canonical_sum_in_place(terms.data(), static_cast<std::int64_t>(terms.size()));
}

TEST(canonical_sum_of_any_signs) {
  for (const int size : {0, 1, 2, 31, 32, 33, 64, 4095, 4096, 4097, 8192, 33 * 4096 + 5, 1'000'003}) {
    Random random(static_cast<std::uint64_t>(size) + 1);
    std::vector<double> terms;
    terms.reserve(static_cast<std::size_t>(size));
    for (int i = 0; i < size; ++i) {
      terms.push_back(random.number() * std::ldexp(1.0, random.below(80) - 40));
    }
    CHECK(oracle::same_value(sum(terms), oracle::canonical_sum(terms)), "size", size);
  }
}

TEST(canonical_sum_of_specials) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double tiny = std::numeric_limits<double>::denorm_min();
  const std::vector<std::vector<double>> cases = {
      {-0.0}, {-0.0, -0.0}, {infinity, -infinity}, {-infinity}, {std::nan(""), 1}, {1e308, 1e308}, {tiny, tiny, -tiny}};
  for (const std::vector<double>& terms : cases) {
    CHECK(oracle::same_value(sum(terms), oracle::canonical_sum(terms)), terms[0]);
  }
  CHECK(!std::signbit(sum({-0.0})));
  CHECK(!std::signbit(sum({})));
}

// 4096 * 4096 + 1 terms have sums of sums of sums.
TEST(canonical_sum_of_three_levels) {
  const std::vector<double> terms(std::size_t{4096} * 4096 + 1, 0.1);
  CHECK(oracle::same_value(sum(terms), oracle::canonical_sum(terms)));
}

}  // namespace fastreg::test
