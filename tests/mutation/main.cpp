// Runs the tests once for each mutant that is named by its number, in a child of its own, up to the first check that
// fails. Prints the number with "killed", "hung" or "survived"; mutant 0 is the code as it is.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "check.h"

int fastreg_mutant = 0;

namespace fastreg::test {
namespace {

const Test* first = nullptr;
const Test** last = &first;

}  // namespace

Test::Test(const char* test_name, Body test_body) noexcept : name(test_name), body(test_body) {
  *last = this;
  last = &next;
}

void count_check(bool check_passed, const char*, const std::string&) {
  if (!check_passed) {
    _exit(1);
  }
}

}  // namespace fastreg::test

int main(int, char** arguments) {
  for (++arguments; *arguments != nullptr; ++arguments) {
    const int mutant = std::atoi(*arguments);
    const pid_t child = fork();
    if (child == 0) {
      fastreg_mutant = mutant;
      // Of processor time, so that a machine that is busy kills no mutant: the tests take some two seconds. A clock
      // too, for threads that wait for each other.
      const rlimit seconds{6, 8};
      setrlimit(RLIMIT_CPU, &seconds);
      alarm(300);
      for (const auto* test = fastreg::test::first; test != nullptr; test = test->next) {
        // These take longer than all others.
        const std::string name = test->name;
        if (name != "canonical_sum_of_three_levels" && name != "steps_divide_every_root") {
          test->body();
        }
      }
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    const bool hung = signal == SIGXCPU || signal == SIGALRM;
    const bool survived = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    std::printf("%d %s\n", mutant, hung ? "hung" : survived ? "survived" : "killed");
    std::fflush(stdout);
  }
}
