// What fastreg.jax registers with XLA.
#pragma once

#include <pybind11/pybind11.h>

namespace fastreg::python {

void add_jax_functions(pybind11::module_& m);

}  // namespace fastreg::python
