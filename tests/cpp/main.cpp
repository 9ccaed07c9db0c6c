// Runs the tests named on the command line, or all of them. The last line is "N passed, N failed", counted in checks;
// the exit status is 0 if none failed.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "check.h"

namespace fastreg::test {
namespace {

struct Entry {
  const char* name;
  Test test;
};

std::vector<Entry>& entries() {
  static std::vector<Entry> all;
  return all;
}

std::atomic<long> passed{0};
std::atomic<long> failed{0};
constexpr long most_failures_shown = 40;

}  // namespace

bool register_test(const char* name, Test test) {
  entries().push_back({name, test});
  return true;
}

void count_check(bool check_passed, const char* where, const std::string& what) {
  if (check_passed) {
    passed.fetch_add(1, std::memory_order_relaxed);
  } else if (failed.fetch_add(1, std::memory_order_relaxed) < most_failures_shown) {
    std::fprintf(stderr, "%s [%s]\n", where, what.c_str());
  }
}

}  // namespace fastreg::test

int main(int count, char** arguments) {
  using namespace fastreg::test;
  int wanted = 0;
  for (const Entry& entry : entries()) {
    bool chosen = count == 1;
    for (int i = 1; i < count; ++i) {
      chosen |= std::strcmp(arguments[i], entry.name) == 0;
    }
    if (!chosen) {
      continue;
    }
    ++wanted;
    const long failed_before = failed;
    const auto start = std::chrono::steady_clock::now();
    entry.test();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%-28s %s  %.2f s\n", entry.name, failed == failed_before ? "ok    " : "FAILED", seconds.count());
    std::fflush(stdout);
  }
  if (wanted == 0 || (count > 1 && wanted != count - 1)) {
    std::fprintf(stderr, "no such test; these are there:");
    for (const Entry& entry : entries()) {
      std::fprintf(stderr, " %s", entry.name);
    }
    std::fprintf(stderr, "\n");
    return 2;
  }
  std::printf("%ld passed, %ld failed\n", passed.load(), failed.load());
  return failed == 0 ? 0 : 1;
}
