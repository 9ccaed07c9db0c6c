// What fastreg._device asks of the CUDA backend. The tensors have been described and judged in Python.
#pragma once

#include <pybind11/pybind11.h>

namespace fastreg::python {

// True, without importing anything or raising, if the object says that its memory is a CUDA device's.
bool is_on_cuda(PyObject* object);

void add_device_functions(pybind11::module_& m);

}  // namespace fastreg::python
