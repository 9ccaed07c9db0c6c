// The numerics contract once more, long-hand and scalar: what the tests compare with, bit by bit.
//
// It shares nothing with csrc but the names of the types. Nothing here is quick; half precision is converted by loops
// over bits and by search. Compiled without contraction, as the contract rounds every operation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtype.h"

namespace fastreg::oracle {

// ---- elements

// Any element that can be read, as float64 (nearest even for the large integers).
double element(DType dtype, const void* address);

// Stores a number as a floating type: rounded to nearest even from float64. NaN is stored as some quiet NaN.
void store(DType dtype, double number, void* address);

// The same bits, or both NaN: sign and payload of a NaN are not part of the contract.
bool same_element(DType dtype, const void* a, const void* b);
bool same_value(double a, double b);

// The float64 of f16 or bf16 bits, and back. Exposed for the tests of rounding.
double widen(DType dtype, std::uint16_t bits);
std::uint16_t narrow(DType dtype, double number);

// ---- sums

double canonical_sum(std::vector<double> terms);
// The sum of each chunk of 4096.
std::vector<double> chunk_sums(const std::vector<double>& terms);
std::vector<double> magnitudes(const std::vector<double>& elements);
std::vector<double> squares(const std::vector<double>& elements);

// ---- gradients and penalties

struct Strengths {
  double l1;
  double l2;
  double scale = 1.0;
  double grad_scale = 1.0;
};

double penalty(const std::vector<double>& elements, const Strengths& strengths);

// Writes the gradient of `weight` to `target`, added to what is there if `adds`. Floating types only. A term is left
// out where its flag says so.
void gradient(DType dtype, const void* weight, void* target, bool has_l1, bool has_l2, double factor_l1,
              double factor_l2, bool adds);
// The same with the factors worked out from the strengths.
void gradient(DType dtype, const void* weight, void* target, const Strengths& strengths, bool adds);

}  // namespace fastreg::oracle
