// How long a processor takes for the operations of a value: what bounds the sums where memory does not. The least of
// five runs of loops of twelve independent instructions, on registers of 32 bytes, in nanoseconds:
//   cmake --preset release && cmake --build --preset release --target fastreg_operations
//   build/release/tests/instructions/fastreg_operations
#include <algorithm>
#include <chrono>
#include <cstdio>

#if !defined(__x86_64__) || !defined(__GNUC__)
int main() {
  std::puts("these are operations of x86-64");
  return 1;
}
#else

namespace {

constexpr int rounds = 5'000'000;
alignas(64) float numbers[64];

// The nanoseconds of one of the `count` that a round has.
template <class Round>
double time_of(int count, Round round) {
  double least = 1e9;
  for (int run = 0; run < 5; ++run) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < rounds; ++i) {
      round();
    }
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
    least = std::min(least, taken.count() / rounds / count);
  }
  return least;
}

// NOLINTBEGIN(cppcoreguidelines-macro-usage,bugprone-macro-parentheses): the names of registers are text
#define CLOBBERED                                                                                                     \
  "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", "ymm13", \
      "ymm14", "ymm15"
#define ROUND(instructions) [] { asm volatile(instructions : : "r"(numbers) : CLOBBERED); }
#define WIDEN(to, place) "vcvtps2pd " place "(%0), %%ymm" to "\n"
#define ADD(to) "vaddpd %%ymm14, %%ymm" to ", %%ymm" to "\n"
#define PRODUCT(to) "vfmadd231pd %%ymm14, %%ymm15, %%ymm" to "\n"
#define MASK(to) "vandpd %%ymm14, %%ymm15, %%ymm" to "\n"
#define FOUR(one, a, b, c, d) one(a) one(b) one(c) one(d)
#define TWELVE(one) FOUR(one, "0", "1", "2", "3") FOUR(one, "4", "5", "6", "7") FOUR(one, "8", "9", "10", "11")
#define WIDEN_16(to) WIDEN(to, "16")
#define SUM(widened, place, l1, l2, one) WIDEN(widened, place) MASK("13") one(l1) PRODUCT(l2)
#define SUM_OF_4(one)          \
  SUM("0", "0", "4", "8", one) \
  SUM("1", "16", "5", "9", one) SUM("2", "32", "6", "10", one) SUM("3", "48", "7", "11", one)
#define SUMS(one) SUM_OF_4(one) SUM_OF_4(one) SUM_OF_4(one)

void report(const char* what, double nanoseconds) { std::printf("%-58s %.3f\n", what, nanoseconds); }

}  // namespace

int main() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::puts("this processor has no AVX2, or no fused products");
    return 1;
  }
  report("four floats widened to float64, from memory", time_of(12, ROUND(TWELVE(WIDEN_16))));
  report("four float64 added", time_of(12, ROUND(TWELVE(ADD))));
  report("four float64 multiplied and added", time_of(12, ROUND(TWELVE(PRODUCT))));
  report("four float64 masked", time_of(12, ROUND(TWELVE(MASK))));
  report("four floats in L1L2: widened, masked, added, squared", time_of(12, ROUND(SUMS(ADD))));
  report("the same with a product in the place of the addition", time_of(12, ROUND(SUMS(PRODUCT))));
  return 0;
}
// NOLINTEND(cppcoreguidelines-macro-usage,bugprone-macro-parentheses)
#endif
