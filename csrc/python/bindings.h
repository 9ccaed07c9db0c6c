// The functions of the module fastreg._core, by family.
#pragma once

#include <pybind11/pybind11.h>

namespace fastreg::python {

void add_call_functions(pybind11::module_& m);
void add_device_functions(pybind11::module_& m);
void add_floor_functions(pybind11::module_& m);
void add_norm_functions(pybind11::module_& m);
void add_setting_functions(pybind11::module_& m);
void add_step_functions(pybind11::module_& m);

}  // namespace fastreg::python
