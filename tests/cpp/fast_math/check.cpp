// Opens the module that its argument names, and checks its arithmetic and what its being opened has done to this
// process.
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <limits>

#include "arithmetic.h"

namespace {

int failures = 0;

void check(bool right, const char* what) {
  if (!right) {
    std::printf("wrong: %s\n", what);
    ++failures;
  }
}

template <class Function>
Function* find(void* module, const char* name) {
  return reinterpret_cast<Function*>(dlsym(module, name));
}

}  // namespace

int main(int count, char** arguments) {
  volatile double least = std::numeric_limits<double>::denorm_min();
  volatile double one = 1.0;
  check(least * one > 0.0, "subnormal numbers at the start of a program");
  void* module = count == 2 ? dlopen(arguments[1], RTLD_NOW) : nullptr;
  if (module == nullptr) {
    std::printf("%s\n", dlerror());
    return 2;
  }
  check(least * one > 0.0, "subnormal numbers after the module was opened");

  const double terms[] = {1e16, 1.0, -1e16, 1.0, 1e16, 1.0, -1e16, 1.0, 0.25, 1e-17, 3.0, 1.0, 1e16, 1.0, -1e16, 1.0};
  double sum = 0.0;
  for (const double term : terms) {
    volatile double added = sum + term;
    sum = added;
  }
  check(find<decltype(sum_in_order)>(module, "sum_in_order")(terms, 16) == sum, "the order of a sum");

  double numbers[64];
  for (int i = 0; i < 64; ++i) {
    numbers[i] = i + 1;
  }
  volatile double divisor = 49.0;
  find<decltype(divide_all)>(module, "divide_all")(numbers, 64, divisor);
  bool divided = true;
  for (int i = 0; i < 64; ++i) {
    volatile double quotient = (i + 1) / divisor;
    divided &= numbers[i] == quotient;
  }
  check(divided, "division");

  volatile double nan = std::numeric_limits<double>::quiet_NaN();
  check(find<decltype(is_nan)>(module, "is_nan")(nan), "NaN");
  volatile double negative_zero = -0.0;
  check(!std::signbit(find<decltype(add_zero)>(module, "add_zero")(negative_zero)), "the sign of zero");
  const double x = 1.0 + 0x1p-30;
  check(find<decltype(add_product)>(module, "add_product")(x, x, -(1.0 + 0x1p-29)) == 0.0, "a product that is added");
  volatile double smallest = std::numeric_limits<double>::min();
  check(find<decltype(half)>(module, "half")(smallest) == 0x1p-1023, "a subnormal result");
  return failures == 0 ? 0 : 1;
}
