// Runs the tests named on the command line, or all of them. The last line is "N passed, N failed", counted in tests;
// the exit status is 0 if none failed.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "check.h"

namespace fastreg::test {
namespace {

const Test* first = nullptr;
const Test** last = &first;

std::atomic<long> checks{0};
std::atomic<long> failed{0};
constexpr long most_failures_shown = 40;

}  // namespace

Test::Test(const char* test_name, Body test_body) noexcept : name(test_name), body(test_body) {
  *last = this;
  last = &next;
}

void count_check(bool check_passed, const char* where, const std::string& what) {
  checks.fetch_add(1, std::memory_order_relaxed);
  if (!check_passed && failed.fetch_add(1, std::memory_order_relaxed) < most_failures_shown) {
    std::fprintf(stderr, "%s [%s]\n", where, what.c_str());
  }
}

}  // namespace fastreg::test

int main(int count, char** arguments) {
  using namespace fastreg::test;
  int tests_passed = 0;
  int tests_failed = 0;
  for (const Test* test = first; test != nullptr; test = test->next) {
    bool chosen = count == 1;
    for (int i = 1; i < count; ++i) {
      chosen |= std::strcmp(arguments[i], test->name) == 0;
    }
    if (!chosen) {
      continue;
    }
    const long failed_before = failed;
    const auto start = std::chrono::steady_clock::now();
    test->body();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const bool is_right = failed == failed_before;
    ++(is_right ? tests_passed : tests_failed);
    std::printf("%-36s %s  %.2f s\n", test->name, is_right ? "ok    " : "FAILED", seconds.count());
    std::fflush(stdout);
  }
  const int tests_run = tests_passed + tests_failed;
  if (tests_run == 0 || (count > 1 && tests_run != count - 1)) {
    std::fprintf(stderr, "no such test; these are there:");
    for (const Test* test = first; test != nullptr; test = test->next) {
      std::fprintf(stderr, " %s", test->name);
    }
    std::fprintf(stderr, "\n");
    return 2;
  }
  std::printf("%ld checks, of which %ld failed\n", checks.load(), failed.load());
  std::printf("%d passed, %d failed\n", tests_passed, tests_failed);
  return tests_failed == 0 ? 0 : 1;
}
