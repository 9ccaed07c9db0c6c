// The module fastreg._core: the entry points that fastreg._backend chooses from, and what `info` and `bench` ask.
//
// The hot functions are METH_FASTCALL: pybind11 takes 93 ns to read four arguments, which is as long as the penalty of
// 64 elements. Their arguments are positional, and documented in fastreg/_core.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <new>
#include <stdexcept>

#include "../canonical_sum.h"
#include "../cpu/dispatch.h"
#include "../cpu/float_environment.h"
#include "../cpu/pool.h"
#include "../jax/capsules.h"
#include "call.h"
#include "device.h"
#include "tensor.h"

namespace py = pybind11;

namespace fastreg::python {
namespace {

// The one place where what C++ throws becomes a Python exception.
template <class Body>
PyObject* translate_exceptions(Body body) {
  try {
    return body();
  } catch (py::error_already_set& error) {
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

// Runs body(), which throws OnDevice where it meets a device tensor; the call is then fastreg._device's.
template <class Body>
PyObject* on_host_or_device(const char* function, PyObject* const* arguments, Py_ssize_t count, Body body) {
  return translate_exceptions([&]() -> PyObject* {
    try {
      return body();
    } catch (const OnDevice&) {
      const py::object target = py::module_::import("fastreg._device").attr(function);
      return PyObject_Vectorcall(target.ptr(), arguments, static_cast<std::size_t>(count), nullptr);
    }
  });
}

void require_arguments(const char* function, Py_ssize_t given, Py_ssize_t wanted) {
  if (given != wanted) {
    throw py::type_error(std::string(function) + " takes " + std::to_string(wanted) + " arguments, not " +
                         std::to_string(given));
  }
}

double to_double(PyObject* number) {
  if (PyFloat_CheckExact(number)) {
    return PyFloat_AS_DOUBLE(number);
  }
  const double value = PyFloat_AsDouble(number);
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    throw py::error_already_set();
  }
  return value;
}

// A scale may be anything that the caller gave: what is not plainly a finite number goes to fastreg._checks.
double to_scale(PyObject* number, const char* name) {
  if (PyFloat_CheckExact(number)) {
    const double value = PyFloat_AS_DOUBLE(number);
    if (std::isfinite(value)) {
      return value;
    }
  }
  return py::cast<double>(
      py::module_::import("fastreg._checks").attr("multiplier")(py::reinterpret_borrow<py::object>(number), name));
}

unsigned to_outputs(PyObject* number) {
  const long outputs = PyLong_AsLong(number);
  if (outputs == -1 && PyErr_Occurred() != nullptr) {
    throw py::error_already_set();
  }
  if (outputs < 0 || outputs >= long{output_masks} || !is_output_cell(static_cast<unsigned>(outputs))) {
    throw std::invalid_argument("outputs must be one of 1, 2, 3, 6, 7, not " + std::to_string(outputs));
  }
  return static_cast<unsigned>(outputs);
}

void check(const Call& call, unsigned outputs, const py::object& names, const py::tuple& weights,
           const py::object& gradients, const py::tuple& strengths, const py::tuple& which, PyObject* scale,
           PyObject* grad_scale) {
  py::module_::import("fastreg._checks")
      .attr("check_call")(outputs, names, weights, gradients, strengths, which,
                          py::reinterpret_borrow<py::object>(scale), py::reinterpret_borrow<py::object>(grad_scale));
  call.require_safe();
}

PyObject* evaluate_one(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return on_host_or_device("evaluate_one", arguments, count, [&]() -> PyObject* {
    require_arguments("evaluate_one", count, 7);
    const unsigned outputs = to_outputs(arguments[0]);
    PyObject* weights = arguments[1];
    PyObject* gradients = arguments[2];
    const double l1 = to_double(arguments[3]);
    const double l2 = to_double(arguments[4]);
    const Rule rule(l1, l2, to_scale(arguments[5], "scale"), to_scale(arguments[6], "grad_scale"));
    const auto check_call = [&](const Call& call) {
      check(call, outputs, py::none(), py::make_tuple(py::handle(weights)),
            outputs == output_value ? py::object(py::none()) : py::make_tuple(py::handle(gradients)),
            py::make_tuple(py::make_tuple(l1, l2)), py::make_tuple(0), arguments[5], arguments[6]);
    };
    Item item;
    double value;
    Call call(outputs, {&item, &value, 1});
    try {
      call.add(weights, gradients, (outputs & output_add) != 0 ? "grad" : "out", rule);
    } catch (py::error_already_set&) {
      check_call(call);  // the same refusal, which knows of both arrays
      throw;
    }
    if (call.device() > on_host) {
      return evaluate_described(call, outputs, nullptr, py::make_tuple(py::handle(weights)),
                                py::make_tuple(py::handle(gradients)), py::make_tuple(py::make_tuple(l1, l2)),
                                arguments[5], arguments[6], false);
    }
    if (!call.is_plainly_right()) {
      check_call(call);
    }
    call.run();
    if ((outputs & output_value) == 0) {
      Py_RETURN_NONE;
    }
    return PyFloat_FromDouble(value);
  });
}

PyObject* evaluate_many(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return on_host_or_device("evaluate_many", arguments, count, [&]() -> PyObject* {
    require_arguments("evaluate_many", count, 9);
    const unsigned outputs = to_outputs(arguments[0]);
    for (const int argument : {1, 2, 4, 5}) {
      if (!PyTuple_Check(arguments[argument])) {
        throw py::type_error("evaluate_many takes tuples of names, weights, gradients, strengths and which");
      }
    }
    PyObject* names = arguments[1];
    PyObject* weights = arguments[2];
    PyObject* gradients = arguments[3];
    PyObject* which = arguments[5];
    const Py_ssize_t tensors = PyTuple_GET_SIZE(weights);
    const bool writes = (outputs & output_gradient) != 0;
    if (PyTuple_GET_SIZE(names) != tensors || PyTuple_GET_SIZE(which) != tensors ||
        (writes && (!PyTuple_Check(gradients) || PyTuple_GET_SIZE(gradients) != tensors))) {
      throw std::invalid_argument("names, weights, gradients and which must be of one length");
    }
    const double scale = to_scale(arguments[6], "scale");
    const double grad_scale = to_scale(arguments[7], "grad_scale");
    std::vector<Rule> rules;
    for (const py::handle pair : py::reinterpret_borrow<py::tuple>(arguments[4])) {
      const auto both = py::cast<py::tuple>(pair);
      rules.emplace_back(to_double(py::object(both[0]).ptr()), to_double(py::object(both[1]).ptr()), scale, grad_scale);
    }

    const auto check_all = [&](const Call& call) {
      check(call, outputs, py::reinterpret_borrow<py::object>(names), py::reinterpret_borrow<py::tuple>(weights),
            py::reinterpret_borrow<py::object>(gradients), py::reinterpret_borrow<py::tuple>(arguments[4]),
            py::reinterpret_borrow<py::tuple>(which), arguments[6], arguments[7]);
    };
    const auto size = static_cast<std::size_t>(tensors);
    std::vector<Item> items(size);
    std::vector<double> values(size);
    Call call(outputs, {items.data(), values.data(), size});
    try {
      for (Py_ssize_t i = 0; i < tensors; ++i) {
        const std::size_t rule = PyLong_AsSize_t(PyTuple_GET_ITEM(which, i));
        if (rule >= rules.size()) {
          PyErr_Clear();
          throw std::invalid_argument("which must hold indices into strengths");
        }
        call.add(PyTuple_GET_ITEM(weights, i), writes ? PyTuple_GET_ITEM(gradients, i) : nullptr, "grads", rules[rule]);
      }
    } catch (py::error_already_set&) {
      check_all(call);  // the same refusal, with the name of the tensor
      throw;
    }
    const bool per_tensor = PyObject_IsTrue(arguments[8]) != 0;
    if (call.device() > on_host) {
      return evaluate_described(call, outputs, which, py::reinterpret_borrow<py::tuple>(weights),
                                py::reinterpret_borrow<py::object>(gradients),
                                py::reinterpret_borrow<py::tuple>(arguments[4]), arguments[6], arguments[7],
                                per_tensor);
    }
    if (!call.is_plainly_right()) {
      check_all(call);
    }
    call.run();
    if ((outputs & output_value) == 0) {
      Py_RETURN_NONE;
    }
    if (per_tensor) {
      return py::cast(values).release().ptr();
    }
    return PyFloat_FromDouble(canonical_sum_in_place(values.data(), static_cast<std::int64_t>(values.size())));
  });
}

PyObject* any_shared_address(PyObject*, PyObject* weights) {
  return on_host_or_device("shares_address", &weights, 1, [&]() -> PyObject* {
    const py::tuple objects = py::reinterpret_steal<py::tuple>(PySequence_Tuple(weights));
    if (!objects) {
      throw py::error_already_set();
    }
    return PyBool_FromLong(shares_address(PySequence_Fast_ITEMS(objects.ptr()), objects.size()));
  });
}

// The arrays of the floors: whole, and as large as each other.
ArrayView plain_bytes(const py::handle& object, bool writable) {
  ArrayView view;
  int device = on_host;
  if (!describe(object.ptr(), view, device) || device != on_host || !view.c_contiguous ||
      (writable && !view.writable)) {
    throw std::invalid_argument("the floors take C-contiguous NumPy arrays of numbers, the target writable");
  }
  return view;
}

std::size_t common_bytes(const ArrayView& target, const ArrayView& source) {
  if (target.count != source.count || target.dtype != source.dtype) {
    throw std::invalid_argument("the floors take two arrays of one size and dtype");
  }
  return static_cast<std::size_t>(source.count) * item_size(source.dtype);
}

PyMethodDef hot_functions[] = {
    {"evaluate_one", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(evaluate_one)), METH_FASTCALL,
     "evaluate_one(outputs, weight, gradient, l1, l2, scale, grad_scale)"},
    {"evaluate_many", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(evaluate_many)), METH_FASTCALL,
     "evaluate_many(outputs, names, weights, gradients, strengths, which, scale, grad_scale, per_tensor)"},
    {"shares_address", any_shared_address, METH_O, "shares_address(weights)"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace fastreg::python

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  using namespace fastreg;
  using namespace fastreg::python;
  m.doc() = "The compiled core of fastreg.";
  import_numpy();
  // Wrong values of FASTREG_ISA and FASTREG_NUM_THREADS are refused at import, not in the midst of training.
  kernels();
  get_num_threads();

  if (PyModule_AddFunctions(m.ptr(), hot_functions) != 0) {
    throw py::error_already_set();
  }
  m.def(
      "canonical_sum",
      [](std::vector<double> values) {
        const FloatEnvironment environment;
        return canonical_sum_in_place(values.data(), static_cast<std::int64_t>(values.size()));
      },
      py::arg("values"));

  m.def("get_num_threads", get_num_threads);
  m.def("set_num_threads", set_num_threads, py::arg("n"));
  m.def("instruction_set", [] { return std::string(kernels().name); });
  m.def("set_instruction_set", [](const std::string& name) { choose_instruction_set(name, "name"); }, py::arg("name"));
  m.def("instruction_sets", usable_instruction_sets);
  m.def("compiled_instruction_sets", compiled_instruction_sets);
  m.def("build_info", [] {
    return std::map<std::string, std::string>{{"compiler", FASTREG_COMPILER},
                                              {"build_type", FASTREG_BUILD_TYPE},
                                              {"cxx_standard", std::to_string(__cplusplus)}};
  });

  add_device_functions(m);
  add_jax_functions(m);

  m.def(
      "floor_read",
      [](const py::object& source) {
        const ArrayView from = plain_bytes(source, false);
        const py::gil_scoped_release release;
        return floor_read(from.data, common_bytes(from, from));
      },
      py::arg("source"));
  m.def(
      "floor_copy",
      [](const py::object& target, const py::object& source) {
        const ArrayView to = plain_bytes(target, true);
        const ArrayView from = plain_bytes(source, false);
        const std::size_t bytes = common_bytes(to, from);
        const py::gil_scoped_release release;
        floor_copy(to.data, from.data, bytes);
      },
      py::arg("target"), py::arg("source"));
  m.def(
      "floor_add",
      [](const py::object& target, const py::object& source) {
        const ArrayView to = plain_bytes(target, true);
        const ArrayView from = plain_bytes(source, false);
        const std::size_t bytes = common_bytes(to, from);
        const py::gil_scoped_release release;
        floor_add(to.data, from.data, bytes, from.dtype);
      },
      py::arg("target"), py::arg("source"));
}
