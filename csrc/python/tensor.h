// A Python object -> a description of its memory, without copying.
#pragma once

#include <pybind11/pybind11.h>

#include "../layout.h"

namespace fastreg::python {

// Imports NumPy's C interface. Throws pybind11::error_already_set.
void import_numpy();

// Describes `object` in `view` and gives true, when it is one of the kinds that are read directly: an exact or derived
// numpy.ndarray of a native numeric type, or exactly a torch.Tensor or torch.nn.Parameter on the CPU. Gives false, and
// leaves no Python error, for everything else: fastreg._arrays.host_view knows the other kinds, and what to say of what
// cannot be read. The view borrows from `object`, which must outlive it.
bool describe(PyObject* object, ArrayView& view);

// The same of the pair (numpy.ndarray, dtype name) that fastreg._arrays.host_view gives.
bool describe_host_view(PyObject* pair, ArrayView& view);

}  // namespace fastreg::python
