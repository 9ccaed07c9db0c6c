// Calls that are large enough for threads, and what must come out of them, here and in a forked child.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "arrays.h"
#include "plan.h"

namespace fastreg::test {

class LargeCall {
 public:
  explicit LargeCall(std::size_t count = 1'000'003) : count_(count), weights_(count * sizeof(float), 16) {
    fill(weights_.data(), DType::f32, count, Fill::ordinary, 5);
    expected_.resize(weights_.size());
    for (std::size_t i = 0; i < expected_.size(); i += sizeof(float)) {
      oracle::gradient(DType::f32, weights_.data() + i, expected_.data() + i, strengths_, false);
    }
    expected_value_ = oracle::penalty(elements_of(weights_.data(), DType::f32, count), strengths_);
  }
  // May be called by several threads.
  bool is_right(Owner owner = Owner::other) const {
    Bytes gradients(weights_.size(), 0);
    const Item item{weights_.data(),
                    gradients.data(),
                    static_cast<std::int64_t>(count_),
                    make_coefficients(strengths_.l1, strengths_.l2, 1.0, 1.0),
                    nullptr,
                    DType::f32};
    double value = 0.0;
    evaluate(&item, 1, output_value | output_gradient, &value, owner);
    return oracle::same_value(value, expected_value_) && gradients.untouched() &&
           first_difference(gradients.data(), expected_.data(), DType::f32, count_) == count_;
  }

 private:
  oracle::Strengths strengths_{0.3, 0.7};
  std::size_t count_;
  Bytes weights_;
  std::vector<unsigned char> expected_;
  double expected_value_;
};

// Runs `body` in a forked child, and returns whether it exited with success. One that waits for threads that the child
// has not got would wait for ever, and is ended.
template <class Body>
bool succeeds_in_child(Body body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace fastreg::test
