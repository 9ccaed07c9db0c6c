// One call from Python: its operands described, judged, and turned into the plan's items.
//
// What is not plainly right is not decided here, and no Python code is run but torch's own: the caller says
// NotImplemented, and Python decides.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "../plan.h"
#include "operands.h"
#include "tensor.h"

namespace fastreg::python {

// What one regularizer asks for, judged once for all tensors that it is for; whatever the caller's floating-point
// state.
struct Rule {
  Rule(unsigned outputs, double l1, double l2, double scale, double grad_scale);

  Coefficients coefficients;
  bool is_finite;
  bool gradient_fits_f32;
  bool gradient_fits_f64;
};

// The canonical sum of the values, which are overwritten; whatever the caller's floating-point state.
double total_of(std::vector<double>& values);

class Call {
 public:
  // Memory for each tensor, which the caller provides: on the stack where there is but one tensor.
  struct Slots {
    Item* items;
    double* values;
    std::int64_t* zeros;  // of proximal steps
    std::size_t count;
  };

  enum class Operands {
    of_host,
    of_any_device,  // all on the same
    views,          // on the host: pairs (numpy.ndarray, name of the dtype), as Python has described them
  };

  Call(unsigned outputs, Slots slots, Operands operands = Operands::of_host);

  // Borrows the objects, which must outlive the call. `gradients` is ignored when the outputs need none. Returns false,
  // and leaves no Python error, where one cannot be read directly or does not lie where operands have to.
  bool add(PyObject* weights, PyObject* gradients, const Rule& rule);

  // An array of which run() writes a copy into another one of the same shape and size of elements. Both are borrowed;
  // the source is a NumPy array. Returns false, and leaves no Python error, where they are not.
  bool add_copy(PyObject* target, PyObject* source);

  // False when anything is not plainly right: an argument is wrong, or memory only seems to overlap.
  bool is_plainly_right() const;

  // False when what is wrong would read or write memory that is not the operands'.
  bool is_safe() const { return is_safe_; }

  // The CUDA device of all operands, or on_host, or less where there is none.
  int device() const { return device_; }

  const Item* items() const { return slots_.items; }
  std::size_t size() const { return added_; }
  std::int64_t elements() const;

  // Adds the lowest addresses of the weights that are not empty. They are torch's, which has no negative strides.
  void add_addresses(std::vector<std::uintptr_t>& addresses) const;

  // Writes the gradients and the values. The operands are on the host.
  void run();

 private:
  struct Copy {
    const void* source;
    void* target;
    std::int64_t count;
    std::size_t item_size;
    const Layout* layout;  // null: both are consecutive and in the same order
  };

  void copy(const Copy& copy) const;
  bool describe_operand(PyObject* object, ArrayView& view);
  void judge_gradients(const ArrayView& weights, const ArrayView& gradients, const Rule& rule);
  const Layout* layout_of(const ArrayView& weights, const ArrayView& gradients);
  bool writes_gradients() const { return (outputs_ & output_gradient) != 0; }

  unsigned outputs_;
  Slots slots_;
  Operands operands_;
  std::size_t added_ = 0;
  Owner owner_ = Owner::other;  // of the first operand
  int device_ = on_host - 1;
  std::int64_t bytes_ = 0;
  bool is_safe_ = true;   // dtypes, shapes and permission to write
  bool is_plain_ = true;  // the rest, each tensor by itself
  Spans spans_;
  std::vector<Copy> copies_;
  std::vector<std::unique_ptr<Layout>> layouts_;
};

// Adds the lowest addresses of objects that are not empty. Returns false, and leaves no Python error, where one cannot
// be read directly.
bool add_addresses(PyObject* const* objects, std::size_t count, std::vector<std::uintptr_t>& addresses);

// Returns whether two are equal.
bool has_duplicate(const std::vector<std::uintptr_t>& addresses);

}  // namespace fastreg::python
