// What compilers change under -ffast-math and its parts, one function for each. Compiled as all of fastreg is.
#include "arithmetic.h"

#ifndef FASTREG_UNPROTECTED
#include "canonical_sum.h"  // refuses to be compiled where it can tell
#endif

extern "C" {

double sum_in_order(const double* terms, int count) {
  double sum = 0.0;
  for (int i = 0; i < count; ++i) {
    sum += terms[i];
  }
  return sum;
}

void divide_all(double* numbers, int count, double divisor) {
  for (int i = 0; i < count; ++i) {
    numbers[i] /= divisor;
  }
}

bool is_nan(double x) { return x != x; }

double add_zero(double x) { return x + 0.0; }

double add_product(double x, double y, double z) { return x * y + z; }

double half(double x) { return x * 0.5; }
}
