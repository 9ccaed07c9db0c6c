// One call from Python: its operands described, judged, and turned into the plan's items.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "../plan.h"

namespace fastreg::python {

struct Strengths {
  double l1;
  double l2;
};

class Call {
 public:
  Call(unsigned outputs, std::size_t tensors);

  // Borrows the objects, which must outlive the call. `gradient` is null when the outputs need none.
  void add(PyObject* weights, PyObject* gradients, const char* gradient_argument, Strengths strengths, double scale,
           double grad_scale);

  // False when anything is not plainly right. Then fastreg._checks.check_call decides: it raises the error, or finds
  // that memory only seemed to overlap or that a strength will do after all.
  bool is_plainly_right() const;

  // Throws std::logic_error unless what remains is a matter on which check_call may overrule is_plainly_right.
  void require_safe() const;

  // Writes gradients, and gives the values, in the order of the tensors.
  const std::vector<double>& run();

 private:
  struct Operand {
    ArrayView weights;
    ArrayView gradients;
    Coefficients coefficients;
    bool in_place;  // the gradient lies exactly on the weights
  };

  void describe_or_convert(PyObject* object, const char* argument, bool writable, ArrayView& view);
  bool writes_gradients() const { return (outputs_ & output_gradient) != 0; }
  bool gradients_are_safe(const Operand& operand) const;
  bool coefficients_are_representable(const Operand& operand) const;
  bool memory_is_disjoint() const;

  unsigned outputs_;
  std::vector<Operand> operands_;
  std::vector<pybind11::object> kept_;  // what was converted, alive until the end of the call
  std::vector<std::unique_ptr<Layout>> layouts_;
  std::vector<double> values_;
  std::int64_t bytes_ = 0;
};

// True if two of the arrays, which must not be empty, have the same lowest address.
bool shares_address(const std::vector<ArrayView>& views);

}  // namespace fastreg::python
