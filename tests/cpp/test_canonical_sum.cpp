// csrc/canonical_sum.h against the oracle.
#include "canonical_sum.h"

#include <cmath>
#include <limits>

#include "arrays.h"
#include "check.h"

namespace fastreg::test {

namespace {

// NaN follows the terms, for sums that read too far or write there.
double sum(std::vector<double> terms) {
  const auto count = static_cast<std::int64_t>(terms.size());
  terms.resize(terms.size() + 4096, std::numeric_limits<double>::quiet_NaN());
  const double found = canonical_sum_in_place(terms.data(), count);
  CHECK(std::isnan(terms[terms.size() - 4096]), "written behind", count);
  return found;
}

// A lane that counts what is added to it.
struct Lane {
  int additions = 0;
  void operator+=(const Lane& other) { additions += 1 + other.additions; }
};

}  // namespace

TEST(halves_of_lanes) {
  for (const int count : {1, 2, 8, 32}) {
    std::vector<Lane> lanes(static_cast<std::size_t>(count) + 1);
    lanes.back().additions = 1000;  // not one of them
    halve_lanes(lanes.data(), count);
    CHECK(lanes[0].additions == count - 1, "lanes", count, "additions", lanes[0].additions);
    for (const Lane& lane : lanes) {
      CHECK(&lane == &lanes.back() || lane.additions < count, "lanes", count, "a lane has", lane.additions);
    }
  }
}

TEST(counts_of_chunks) {
  const std::int64_t counts[][2] = {{0, 0}, {1, 1}, {4095, 1}, {4096, 1}, {4097, 2}, {8192, 2}, {8193, 3}};
  for (const auto& [terms, chunks] : counts) {
    CHECK(chunk_count(terms) == chunks, "terms", terms, "chunks", chunk_count(terms));
  }
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
