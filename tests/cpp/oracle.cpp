#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace fastreg::oracle {
namespace {

// The two formats of 16 bits: a sign, an exponent, a fraction.
struct Format {
  int exponent_bits;
  int fraction_bits;
};

Format format_of(DType dtype) { return dtype == DType::f16 ? Format{5, 10} : Format{8, 7}; }

double widen_by_bits(std::uint16_t bits, Format format) {
  const auto bit = [&](int place) { return (bits >> place & 1) != 0; };
  int exponent = 0;
  for (int k = 0; k < format.exponent_bits; ++k) {
    exponent += bit(format.fraction_bits + k) ? 1 << k : 0;
  }
  double fraction = 0.0;
  for (int k = 0; k < format.fraction_bits; ++k) {
    fraction += bit(k) ? std::ldexp(1.0, k - format.fraction_bits) : 0.0;
  }
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  double magnitude;
  if (exponent == (1 << format.exponent_bits) - 1) {
    magnitude = fraction == 0.0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(fraction, 1 - bias);
  } else {
    magnitude = std::ldexp(1.0 + fraction, exponent - bias);
  }
  return bit(15) ? -magnitude : magnitude;
}

struct Table {
  std::vector<double> all;        // what each of the 65,536 patterns means
  std::vector<double> ascending;  // the patterns from +0 to the infinity, which stands where the next number would be
};

Table make_table(DType dtype) {
  Table table;
  for (unsigned bits = 0; bits < 0x10000u; ++bits) {
    table.all.push_back(widen_by_bits(static_cast<std::uint16_t>(bits), format_of(dtype)));
  }
  for (unsigned bits = 0; std::isfinite(table.all[bits]); ++bits) {
    table.ascending.push_back(table.all[bits]);
  }
  const std::size_t last = table.ascending.size() - 1;
  table.ascending.push_back(table.ascending[last] + (table.ascending[last] - table.ascending[last - 1]));
  return table;
}

const Table& table_of(DType dtype) {
  static const Table f16 = make_table(DType::f16);
  static const Table bf16 = make_table(DType::bf16);
  return dtype == DType::f16 ? f16 : bf16;
}

template <class T>
T read(const void* address) {
  T value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

template <class T>
void write(void* address, T value) {
  std::memcpy(address, &value, sizeof value);
}

// One element's gradient with every operation rounded to Real.
template <class Real>
Real gradient_in(double weight, double old, bool has_l1, bool has_l2, double factor_l1, double factor_l2, bool adds) {
  const Real w = static_cast<Real>(weight);
  const Real l1 = static_cast<Real>(factor_l1);
  const Real l2 = static_cast<Real>(factor_l2);
  Real sign = 0;
  if (std::isnan(w)) {
    sign = w;
  } else if (w > 0) {
    sign = 1;
  } else if (w < 0) {
    sign = -1;
  }
  Real slope;
  if (has_l1 && has_l2) {
    const Real first = l1 * sign;
    const Real second = l2 * w;
    slope = first + second;
  } else {
    slope = has_l1 ? l1 * sign : l2 * w;
  }
  if (adds) {
    slope = slope + static_cast<Real>(old);
  }
  return slope;
}

}  // namespace

double widen(DType dtype, std::uint16_t bits) { return table_of(dtype).all[bits]; }

std::uint16_t narrow(DType dtype, double number) {
  const std::vector<double>& numbers = table_of(dtype).ascending;
  const std::uint16_t sign = std::signbit(number) ? 0x8000 : 0;
  const double magnitude = std::fabs(number);
  const auto infinity = static_cast<std::uint16_t>(numbers.size() - 1);
  if (std::isnan(number)) {
    return static_cast<std::uint16_t>(infinity + 1);
  }
  if (magnitude >= numbers.back()) {
    return sign | infinity;
  }
  const auto above =
      static_cast<std::size_t>(std::upper_bound(numbers.begin(), numbers.end(), magnitude) - numbers.begin());
  const std::size_t below = above - 1;
  // Exact: neighbours are at most a factor of two apart, or the lower one is zero.
  const double to_below = magnitude - numbers[below];
  const double to_above = numbers[above] - magnitude;
  const bool goes_up = to_above < to_below || (to_above == to_below && below % 2 == 1);
  return static_cast<std::uint16_t>(sign | (goes_up ? above : below));
}

double element(DType dtype, const void* address) {
  switch (dtype) {
    case DType::f16:
    case DType::bf16:
      return widen(dtype, read<std::uint16_t>(address));
    case DType::f32:
      return static_cast<double>(read<float>(address));
    case DType::f64:
      return read<double>(address);
    case DType::boolean:
    case DType::u8:
      return read<std::uint8_t>(address);
    case DType::i8:
      return read<std::int8_t>(address);
    case DType::i16:
      return read<std::int16_t>(address);
    case DType::i32:
      return read<std::int32_t>(address);
    case DType::i64:
      return static_cast<double>(read<std::int64_t>(address));
    case DType::u16:
      return read<std::uint16_t>(address);
    case DType::u32:
      return read<std::uint32_t>(address);
    case DType::u64:
      return static_cast<double>(read<std::uint64_t>(address));
  }
  return 0.0;
}

void store(DType dtype, double number, void* address) {
  switch (dtype) {
    case DType::f64:
      return write(address, number);
    case DType::f32:
      return write(address, static_cast<float>(number));
    default:
      return write(address, narrow(dtype, number));
  }
}

bool same_element(DType dtype, const void* a, const void* b) {
  return std::memcmp(a, b, item_size(dtype)) == 0 || (std::isnan(element(dtype, a)) && std::isnan(element(dtype, b)));
}

bool same_value(double a, double b) { return same_element(DType::f64, &a, &b); }

std::vector<double> chunk_sums(const std::vector<double>& terms) {
  std::vector<double> sums;
  for (std::size_t start = 0; start < terms.size(); start += 4096) {
    double lane[32];
    for (double& sum : lane) {
      sum = 0.0;
    }
    for (std::size_t i = start; i < terms.size() && i < start + 4096; ++i) {
      lane[(i - start) % 32] += terms[i];
    }
    for (const int half : {16, 8, 4, 2, 1}) {
      for (int j = 0; j < half; ++j) {
        lane[j] = lane[j] + lane[j + half];
      }
    }
    sums.push_back(lane[0]);
  }
  return sums;
}

double canonical_sum(std::vector<double> terms) {
  if (terms.empty()) {
    return 0.0;
  }
  do {
    terms = chunk_sums(terms);
  } while (terms.size() > 1);
  return terms[0];
}

std::vector<double> magnitudes(const std::vector<double>& elements) {
  std::vector<double> terms;
  terms.reserve(elements.size());
  for (const double x : elements) {
    terms.push_back(std::fabs(x));
  }
  return terms;
}

std::vector<double> squares(const std::vector<double>& elements) {
  std::vector<double> terms;
  terms.reserve(elements.size());
  for (const double x : elements) {
    terms.push_back(x * x);
  }
  return terms;
}

double penalty(const std::vector<double>& elements, const Strengths& strengths) {
  const double l1 = strengths.l1 * strengths.scale;
  const double l2 = strengths.l2 * strengths.scale;
  double value = 0.0;
  if (l1 != 0.0) {
    value = l1 * canonical_sum(magnitudes(elements));
  }
  if (l2 != 0.0) {
    const double second = l2 * canonical_sum(squares(elements));
    value = l1 != 0.0 ? value + second : second;
  }
  return value;
}

void gradient(DType dtype, const void* weight, void* target, bool has_l1, bool has_l2, double factor_l1,
              double factor_l2, bool adds) {
  const double w = element(dtype, weight);
  const double old = adds ? element(dtype, target) : 0.0;
  if (!has_l1 && !has_l2) {
    store(dtype, old, target);
  } else if (dtype == DType::f64) {
    store(dtype, gradient_in<double>(w, old, has_l1, has_l2, factor_l1, factor_l2, adds), target);
  } else {
    store(dtype, static_cast<double>(gradient_in<float>(w, old, has_l1, has_l2, factor_l1, factor_l2, adds)), target);
  }
}

void gradient(DType dtype, const void* weight, void* target, const Strengths& strengths, bool adds) {
  const double l1 = strengths.l1 * strengths.scale;
  const double l2 = strengths.l2 * strengths.scale;
  gradient(dtype, weight, target, l1 != 0.0, l2 != 0.0, l1 * strengths.grad_scale, 2.0 * (l2 * strengths.grad_scale),
           adds);
}

}  // namespace fastreg::oracle
