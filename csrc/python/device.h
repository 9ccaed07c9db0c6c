// What fastreg._engine.cuda asks of the CUDA backend, and the plain calls that need no more of it than their result.
#pragma once

#include <pybind11/pybind11.h>

#include "call.h"

namespace fastreg::python {

// True, without importing anything or raising, if the object says that its memory is a CUDA device's.
bool is_on_cuda(PyObject* object);

// A call whose operands have all been described, and are on a device: made if it is plainly right, else OnDevice is
// thrown. `which` may be null: all tensors have the first strengths.
PyObject* evaluate_described(const Call& call, unsigned outputs, PyObject* which, const pybind11::tuple& weights,
                             const pybind11::object& gradients, const pybind11::tuple& strengths, PyObject* scale,
                             PyObject* grad_scale, bool per_tensor);

}  // namespace fastreg::python
