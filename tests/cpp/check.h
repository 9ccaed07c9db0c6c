// The few lines of a test framework: tests register themselves by name, a check that fails is printed and counted.
#pragma once

#include <sstream>
#include <string>

namespace fastreg::test {

// A test, linked to those that main.cpp runs.
struct Test {
  using Body = void (*)();
  Test(const char* test_name, Body test_body) noexcept;
  const char* name;
  Body body;
  const Test* next = nullptr;
};

// Counts a check; prints `what` and `where` when it failed. May be called by several threads.
void count_check(bool passed, const char* where, const std::string& what);

// "a b c" from a, b, c: what a failed check was about.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  ((stream << parts << ' '), ...);
  return stream.str();
}

}  // namespace fastreg::test

#define FASTREG_TEST_STRING_OF(x) #x
#define FASTREG_TEST_STRING(x) FASTREG_TEST_STRING_OF(x)

// CHECK(condition, parts of a message...). The message is built only when the condition fails.
#define CHECK(condition, ...)                                                                                \
  do {                                                                                                       \
    const bool fastreg_passed = (condition);                                                                 \
    ::fastreg::test::count_check(fastreg_passed, __FILE__ ":" FASTREG_TEST_STRING(__LINE__) ": " #condition, \
                                 fastreg_passed ? std::string() : ::fastreg::test::text(__VA_ARGS__));       \
  } while (false)

#define TEST(name)                                             \
  static void name();                                          \
  static const ::fastreg::test::Test name##_test(#name, name); \
  static void name()
