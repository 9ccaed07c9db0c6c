// The module fastreg._core: the entry points that fastreg._backend chooses from, and what `info` and `bench` ask.
//
// The hot functions are METH_FASTCALL: pybind11 takes 93 ns to read four arguments, which is as long as the penalty of
// 64 elements. Their arguments are positional, and documented in fastreg/_core.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <new>
#include <stdexcept>

#include "../cpu/dispatch.h"
#include "../cpu/pool.h"
#include "../jax/capsules.h"
#include "call.h"
#include "device.h"
#include "interpreter_lock.h"
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
    const double scale = to_scale(arguments[5], "scale");  // before the other: where both are wrong it is named
    const double grad_scale = to_scale(arguments[6], "grad_scale");
    const Rule rule(l1, l2, scale, grad_scale);
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
    if (call.ran_foreign_code()) {
      Item same_item;
      Call second(outputs, {&same_item, &value, 1}, &call);
      second.add(weights, gradients, "out", rule);
      second.require_same(call);
    }
    call.run();
    if ((outputs & output_value) == 0) {
      Py_RETURN_NONE;
    }
    return PyFloat_FromDouble(value);
  });
}

// The arguments of a call of many tensors, in tuples of one length; `gradients` may be None where none is written.
struct Many {
  unsigned outputs;
  PyObject* names;
  PyObject* weights;
  PyObject* gradients;
  PyObject* strengths;
  PyObject* which;
  PyObject* scale;
  PyObject* grad_scale;
  bool per_tensor;
  PyObject* copies = nullptr;  // a tuple of pairs (target, source) to be written with the gradients
};

void require_tuples(const char* function, PyObject* const* arguments, std::initializer_list<int> places) {
  for (const int place : places) {
    if (!PyTuple_Check(arguments[place])) {
      throw py::type_error(std::string(function) + " takes tuples of names, tensors, strengths and which");
    }
  }
}

// Null, and no error, where `others` is not null and one of its objects begins where another or a weight does.
PyObject* evaluate(const Many& many, PyObject* others) {
  const Py_ssize_t tensors = PyTuple_GET_SIZE(many.weights);
  const bool writes = (many.outputs & output_gradient) != 0;
  if (PyTuple_GET_SIZE(many.names) != tensors || PyTuple_GET_SIZE(many.which) != tensors ||
      (writes && (!PyTuple_Check(many.gradients) || PyTuple_GET_SIZE(many.gradients) != tensors))) {
    throw std::invalid_argument("names, weights, gradients and which must be of one length");
  }
  const double scale = to_scale(many.scale, "scale");
  const double grad_scale = to_scale(many.grad_scale, "grad_scale");
  std::vector<Rule> rules;
  for (const py::handle pair : py::reinterpret_borrow<py::tuple>(many.strengths)) {
    const auto both = py::cast<py::tuple>(pair);
    rules.emplace_back(to_double(py::object(both[0]).ptr()), to_double(py::object(both[1]).ptr()), scale, grad_scale);
  }

  const auto check_all = [&](const Call& call) {
    check(call, many.outputs, py::reinterpret_borrow<py::object>(many.names),
          py::reinterpret_borrow<py::tuple>(many.weights), py::reinterpret_borrow<py::object>(many.gradients),
          py::reinterpret_borrow<py::tuple>(many.strengths), py::reinterpret_borrow<py::tuple>(many.which), many.scale,
          many.grad_scale);
  };
  const auto size = static_cast<std::size_t>(tensors);
  const auto add_all = [&](Call& call) {
    for (Py_ssize_t i = 0; i < tensors; ++i) {
      const std::size_t rule = PyLong_AsSize_t(PyTuple_GET_ITEM(many.which, i));
      if (rule >= rules.size()) {
        PyErr_Clear();
        throw std::invalid_argument("which must hold indices into strengths");
      }
      call.add(PyTuple_GET_ITEM(many.weights, i), writes ? PyTuple_GET_ITEM(many.gradients, i) : nullptr, "grads",
               rules[rule]);
    }
    for (Py_ssize_t i = 0; many.copies != nullptr && i < PyTuple_GET_SIZE(many.copies); ++i) {
      PyObject* pair = PyTuple_GET_ITEM(many.copies, i);
      if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
        throw std::invalid_argument("copies must hold pairs (target, source)");
      }
      call.add_copy(PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1), "grads");
    }
  };
  std::vector<Item> items(size);
  std::vector<double> values(size);
  Call call(many.outputs, {items.data(), values.data(), size});
  try {
    add_all(call);
  } catch (py::error_already_set&) {
    check_all(call);  // the same refusal, with the name of the tensor
    throw;
  }
  if (others != nullptr &&
      call.shares_address(PySequence_Fast_ITEMS(others), static_cast<std::size_t>(PyTuple_GET_SIZE(others)))) {
    return nullptr;
  }
  if (call.device() > on_host) {
    return evaluate_described(call, many.outputs, many.which, py::reinterpret_borrow<py::tuple>(many.weights),
                              py::reinterpret_borrow<py::object>(many.gradients),
                              py::reinterpret_borrow<py::tuple>(many.strengths), many.scale, many.grad_scale,
                              many.per_tensor);
  }
  if (!call.is_plainly_right()) {
    check_all(call);
  }
  if (call.ran_foreign_code()) {
    std::vector<Item> same_items(size);
    Call second(many.outputs, {same_items.data(), values.data(), size}, &call);
    add_all(second);
    second.require_same(call);
  }
  call.run();
  if ((many.outputs & output_value) == 0) {
    Py_RETURN_NONE;
  }
  if (many.per_tensor) {
    return py::cast(values).release().ptr();
  }
  return PyFloat_FromDouble(total_of(values));
}

PyObject* evaluate_many(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return on_host_or_device("evaluate_many", arguments, count, [&]() -> PyObject* {
    require_arguments("evaluate_many", count, count == 10 ? 10 : 9);
    const unsigned outputs = to_outputs(arguments[0]);
    require_tuples("evaluate_many", arguments, {1, 2, 4, 5});
    if (count == 10) {
      require_tuples("evaluate_many", arguments, {9});
    }
    return evaluate({outputs, arguments[1], arguments[2], arguments[3], arguments[4], arguments[5], arguments[6],
                     arguments[7], PyObject_IsTrue(arguments[8]) != 0, count == 10 ? arguments[9] : nullptr},
                    nullptr);
  });
}

// The gradients of parameters, None for each unless `wanted`; no object where not all are plain torch parameters that
// require one and, if it is wanted, have it, and where one of them is part of a graph but may not be.
py::object gradients_of(PyObject* parameters, bool wanted, bool may_be_recorded) {
  const Py_ssize_t count = PyTuple_GET_SIZE(parameters);
  py::tuple gradients(count);
  ParameterState state;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!read_parameter(PyTuple_GET_ITEM(parameters, i), state) || !state.requires_grad) {
      return {};
    }
    if (wanted && (state.grad.is_none() || (!may_be_recorded && requires_gradient(state.grad.ptr())))) {
      return {};
    }
    PyTuple_SET_ITEM(gradients.ptr(), i, (wanted ? state.grad : py::none()).release().ptr());
  }
  return gradients;
}

bool are_frozen(PyObject* parameters) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(parameters); ++i) {
    if (requires_gradient(PyTuple_GET_ITEM(parameters, i))) {
      return false;
    }
  }
  return true;
}

PyObject* accumulate_parameters(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return translate_exceptions([&]() -> PyObject* {
    require_arguments("accumulate_parameters", count, 10);
    const unsigned outputs = to_outputs(arguments[0]);
    require_tuples("accumulate_parameters", arguments, {1, 2, 3, 4, 5, 6});
    PyObject* result = nullptr;
    const bool writes = (outputs & output_gradient) != 0;
    const py::object gradients = are_frozen(arguments[4])
                                     ? gradients_of(arguments[2], writes, PyObject_IsTrue(arguments[9]) != 0)
                                     : py::object();
    if (gradients) {
      try {
        result = evaluate({outputs, arguments[1], arguments[2], gradients.ptr(), arguments[5], arguments[6],
                           arguments[7], arguments[8], false},
                          arguments[3]);
        if (result == nullptr && PyErr_Occurred() != nullptr) {
          throw py::error_already_set();
        }
      } catch (const OnDevice&) {
        result = nullptr;
      }
    }
    if (result == nullptr) {
      Py_RETURN_NOTIMPLEMENTED;
    }
    const py::object owned = py::reinterpret_steal<py::object>(result);
    if (writes) {
      py::module_::import("fastreg._results").attr("torch_written")(gradients);
    }
    return owned.inc_ref().ptr();
  });
}

PyObject* have_members(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return translate_exceptions([&]() -> PyObject* {
    require_arguments("have_members", count, 2);
    require_tuples("have_members", arguments, {0, 1});
    const Py_ssize_t total = PyTuple_GET_SIZE(arguments[1]);
    Py_ssize_t seen = 0;
    bool same = true;
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(arguments[0]); ++i) {
      PyObject* dict = PyTuple_GET_ITEM(arguments[0], i);
      if (!PyDict_Check(dict)) {
        throw py::type_error("have_members takes a tuple of dicts");
      }
#ifdef Py_BEGIN_CRITICAL_SECTION
      Py_BEGIN_CRITICAL_SECTION(dict);
#endif
      Py_ssize_t position = 0;
      PyObject* value = nullptr;
      while (same && PyDict_Next(dict, &position, nullptr, &value) != 0) {
        same = seen < total && PyTuple_GET_ITEM(arguments[1], seen) == value;
        ++seen;
      }
#ifdef Py_BEGIN_CRITICAL_SECTION
      Py_END_CRITICAL_SECTION();
#endif
    }
    return PyBool_FromLong(same && seen == total);
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
     "evaluate_many(outputs, names, weights, gradients, strengths, which, scale, grad_scale, per_tensor, copies=())"},
    {"accumulate_parameters", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(accumulate_parameters)),
     METH_FASTCALL,
     "accumulate_parameters(outputs, names, parameters, others, frozen, strengths, which, scale, grad_scale, "
     "may_be_recorded)"},
    {"have_members", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(have_members)), METH_FASTCALL,
     "have_members(dicts, members)"},
    {"shares_address", any_shared_address, METH_O, "shares_address(weights)"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace fastreg::python

// Written out, as PYBIND11_MODULE asks for the lock by PyGILState_Ensure before anything else: in a sub-interpreter
// CPython up to 3.11 then waits for ever.
static int pybind11_exec__core(PyObject*);

namespace {

int require_main_interpreter(PyObject*) {
  if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
    PyErr_SetString(PyExc_ImportError, "the compiled core works in the main interpreter, not in sub-interpreters");
    return -1;
  }
  try {
    PYBIND11_ENSURE_INTERNALS_READY
    return 0;
  }
  PYBIND11_CATCH_INIT_EXCEPTIONS
  return -1;
}

}  // namespace

// Python looks for this name.
// NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming)
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
  PYBIND11_CHECK_PYTHON_VERSION
  static PyModuleDef_Slot slots[] = {
      {Py_mod_exec, reinterpret_cast<void*>(require_main_interpreter)},
      {Py_mod_exec, reinterpret_cast<void*>(pybind11_exec__core)},
#ifdef Py_mod_multiple_interpreters
      {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
      {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
      {0, nullptr},
  };
  static PyModuleDef definition{PyModuleDef_HEAD_INIT, "_core", nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr};
  return PyModuleDef_Init(&definition);
}

PYBIND11_MODULE_EXEC(_core, m) {
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
  m.def("canonical_sum", [](std::vector<double> values) { return total_of(values); }, py::arg("values"));

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
        const std::size_t bytes = common_bytes(from, from);
        std::uint64_t seen = 0;
        without_lock([&] { seen = floor_read(from.data, bytes); });
        return seen;
      },
      py::arg("source"));
  m.def(
      "floor_copy",
      [](const py::object& target, const py::object& source) {
        const ArrayView to = plain_bytes(target, true);
        const ArrayView from = plain_bytes(source, false);
        const std::size_t bytes = common_bytes(to, from);
        without_lock([&] { floor_copy(to.data, from.data, bytes); });
      },
      py::arg("target"), py::arg("source"));
  m.def(
      "floor_add",
      [](const py::object& target, const py::object& source) {
        const ArrayView to = plain_bytes(target, true);
        const ArrayView from = plain_bytes(source, false);
        const std::size_t bytes = common_bytes(to, from);
        without_lock([&] { floor_add(to.data, from.data, bytes, from.dtype); });
      },
      py::arg("target"), py::arg("source"));
}
