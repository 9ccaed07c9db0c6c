// The module's functions for the CUDA backend.
#pragma once

#include <pybind11/pybind11.h>

#include "call.h"

namespace fastreg::python {

// The tensors of a call whose operands have all been described and lie on a device, as an object of Python; none where
// it is not plainly right. `which` is a tuple of indices into the strengths.
pybind11::object device_tensors(const Call& call, PyObject* which);

}  // namespace fastreg::python
