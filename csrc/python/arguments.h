// Reading the arguments of METH_FASTCALL functions, and what C++ throws as Python's exceptions.
//
// pybind11 takes 93 ns to read four arguments, which is as long as the penalty of 64 elements.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>

#include "../penalty.h"

namespace fastreg::python {

// The one place where what C++ throws becomes a Python exception.
template <class Body>
PyObject* translate_exceptions(Body body) {
  try {
    return body();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_SystemError, error.what());
  }
  return nullptr;
}

inline void require_arguments(const char* function, Py_ssize_t given, Py_ssize_t wanted) {
  if (given != wanted) {
    throw pybind11::type_error(std::string(function) + " takes " + std::to_string(wanted) + " arguments, not " +
                               std::to_string(given));
  }
}

inline double to_double(PyObject* number) {
  if (PyFloat_CheckExact(number)) {
    return PyFloat_AS_DOUBLE(number);
  }
  const double value = PyFloat_AsDouble(number);
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    throw pybind11::error_already_set();
  }
  return value;
}

inline unsigned to_outputs(PyObject* number) {
  const long outputs = PyLong_AsLong(number);
  if (outputs == -1 && PyErr_Occurred() != nullptr) {
    throw pybind11::error_already_set();
  }
  const bool is_cell = outputs >= 0 && outputs < long{output_masks} && is_output_cell(static_cast<unsigned>(outputs));
  if (!is_cell && !is_prox_cell(static_cast<unsigned>(outputs))) {
    throw std::invalid_argument("outputs must be one of 1, 2, 3, 6, 7, 10, 11, not " + std::to_string(outputs));
  }
  return static_cast<unsigned>(outputs);
}

inline void require_tuples(const char* function, PyObject* const* arguments, std::initializer_list<int> places) {
  for (const int place : places) {
    if (!PyTuple_Check(arguments[place])) {
      throw pybind11::type_error(std::string(function) + " takes tuples of names, tensors, strengths and which");
    }
  }
}

}  // namespace fastreg::python
