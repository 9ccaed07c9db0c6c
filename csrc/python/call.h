// One call from Python: its operands described, judged, and turned into the plan's items.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "../cpu/float_environment.h"
#include "../plan.h"

namespace fastreg::python {

struct Strengths {
  double l1;
  double l2;
};

// One tensor and what is asked of it.
struct Operand {
  ArrayView weights;
  ArrayView gradients;
  Coefficients coefficients;
  bool in_place;  // the gradient lies exactly on the weights
};

class Call {
 public:
  // Memory for one tensor, which the caller provides: on the stack where there is but one tensor.
  struct Slots {
    Operand* operands;
    Item* items;
    double* values;
  };

  Call(unsigned outputs, Slots slots) : outputs_(outputs), slots_(slots) {}

  // Borrows the objects, which must outlive the call. `gradients` is ignored when the outputs need none.
  void add(PyObject* weights, PyObject* gradients, const char* gradient_argument, Strengths strengths, double scale,
           double grad_scale);

  // False when anything is not plainly right. Then fastreg._checks.check_call decides: it raises the error, or finds
  // that memory only seemed to overlap.
  bool is_plainly_right() const;

  // Throws std::logic_error if what remains is a matter on which check_call cannot overrule is_plainly_right.
  void require_safe() const;

  // Writes the gradients and the values.
  void run();

 private:
  void describe_or_convert(PyObject* object, const char* argument, bool writable, ArrayView& view);
  bool writes_gradients() const { return (outputs_ & output_gradient) != 0; }
  bool gradients_are_safe(const Operand& operand) const;
  bool coefficients_are_representable(const Operand& operand) const;
  bool memory_is_disjoint() const;

  FloatEnvironment environment_;  // strengths are multiplied and judged under the contract's rounding too
  unsigned outputs_;
  Slots slots_;
  std::size_t count_ = 0;
  std::int64_t bytes_ = 0;
  std::vector<pybind11::object> kept_;  // what was converted, alive until the end of the call
  std::vector<std::unique_ptr<Layout>> layouts_;
};

// True if two of the objects, of those that are not empty, have the same lowest address.
bool shares_address(PyObject* const* objects, std::size_t count);

}  // namespace fastreg::python
