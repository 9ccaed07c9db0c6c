// One call from Python: its operands described, judged, and turned into the plan's items.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <memory>
#include <vector>

#include "../plan.h"
#include "tensor.h"

namespace fastreg::python {

// What one regularizer asks for, judged once for all tensors that it is for; whatever the caller's floating-point
// state.
struct Rule {
  Rule(double l1, double l2, double scale, double grad_scale);

  Coefficients coefficients;
  bool is_finite;
  bool gradient_fits_f32;
  bool gradient_fits_f64;
};

// The canonical sum of the values, which are overwritten; whatever the caller's floating-point state.
double total_of(std::vector<double>& values);

// Thrown where an operand lies on a device and not all is as plain as Call has it: the call is fastreg._engine.cuda's.
struct OnDevice : std::exception {};

class Call {
 public:
  // Memory for each tensor, which the caller provides: on the stack where there is but one tensor.
  struct Slots {
    Item* items;
    double* values;
    std::size_t count;
  };

  // `first` may be a call of the same objects, whose conversions are used: the code of other libraries is not run
  // again. What it converted must come again.
  Call(unsigned outputs, Slots slots, const Call* first = nullptr);

  // Borrows the objects, which must outlive the call. `gradients` is ignored when the outputs need none.
  void add(PyObject* weights, PyObject* gradients, const char* gradient_argument, const Rule& rule);

  // An array of which run() writes a copy into another one of the same shape and size of elements. Both are borrowed.
  void add_copy(PyObject* target, PyObject* source, const char* target_argument);

  // True if the code of other libraries has run since the call looked at its first operand: it may have resized or
  // freed an earlier one. Then a second call has to find the same, before anything is read or written.
  bool ran_foreign_code() const { return ran_foreign_code_; }

  // Raises fastreg._base.errors.changed_error where this call has not found what the other one has.
  void require_same(const Call& other) const;

  // False when anything is not plainly right. Then fastreg._engine.checks.check_call decides: it raises the error, or
  // finds that memory only seemed to overlap.
  bool is_plainly_right() const;

  // Throws std::logic_error if what remains is a matter on which check_call cannot overrule is_plainly_right.
  void require_safe() const;

  // The CUDA device of all operands, or on_host, or less where there is none.
  int device() const { return device_; }

  const Item* items() const { return slots_.items; }
  std::size_t size() const { return added_; }

  // True if two of the weights and the other objects, of those that are not empty, begin at the same address. The
  // weights are torch's, which has no negative strides.
  bool shares_address(PyObject* const* others, std::size_t count) const;

  // Writes the gradients and the values. The operands are on the host.
  void run();

 private:
  // Memory that a call reads or writes.
  struct Span {
    Extent extent;
    bool written;
    bool operator==(const Span& other) const {
      return extent.low == other.extent.low && extent.high == other.extent.high && written == other.written;
    }
  };

  // The memory of a converted operand, alive until the end of the call.
  struct Kept {
    PyObject* object;
    pybind11::object view;
  };

  struct Copy {
    const void* source;
    void* target;
    std::int64_t count;
    std::size_t item_size;
    const Layout* layout;  // null: both are consecutive and in the same order
  };

  void place(int device);
  void take_converted(PyObject* object, ArrayView& view);
  void copy(const Copy& copy) const;
  void describe_or_convert(PyObject* object, const char* argument, bool writable, ArrayView& view);
  void judge_gradients(const ArrayView& weights, const ArrayView& gradients, const Rule& rule);
  const Layout* layout_of(const ArrayView& weights, const ArrayView& gradients);
  bool writes_gradients() const { return (outputs_ & output_gradient) != 0; }
  bool spans_are_disjoint() const;

  unsigned outputs_;
  Slots slots_;
  std::size_t added_ = 0;
  int device_ = on_host - 1;
  std::int64_t bytes_ = 0;
  bool is_safe_ = true;   // dtypes, shapes and permission to write
  bool is_plain_ = true;  // the rest, each tensor by itself
  std::vector<Span> spans_;
  const Call* first_;
  std::size_t taken_ = 0;  // of what the first call kept
  bool ran_foreign_code_ = false;
  std::vector<Kept> kept_;
  std::vector<Copy> copies_;
  std::vector<std::unique_ptr<Layout>> layouts_;
};

// True if two of the objects, of those that are not empty, have the same lowest address.
bool shares_address(PyObject* const* objects, std::size_t count);

}  // namespace fastreg::python
