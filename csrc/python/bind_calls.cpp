// Calls: of one tensor, of many, and of the parameters of torch. Their arguments are positional, and documented in
// fastreg/_core.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <stdexcept>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "call.h"
#include "device.h"
#include "tensor.h"

namespace py = pybind11;

namespace fastreg::python {
namespace {

// Runs body(), which throws OnDevice where it meets a device tensor; the call is then fastreg._engine.cuda's.
template <class Body>
PyObject* on_host_or_device(const char* function, PyObject* const* arguments, Py_ssize_t count, Body body) {
  return translate_exceptions([&]() -> PyObject* {
    try {
      return body();
    } catch (const OnDevice&) {
      const py::object target = py::module_::import("fastreg._engine.cuda").attr(function);
      return PyObject_Vectorcall(target.ptr(), arguments, static_cast<std::size_t>(count), nullptr);
    }
  });
}

// A scale may be anything that the caller gave: what is not plainly a finite number goes to fastreg._engine.checks.
double to_scale(PyObject* number, const char* name) {
  if (PyFloat_CheckExact(number)) {
    const double value = PyFloat_AS_DOUBLE(number);
    if (std::isfinite(value)) {
      return value;
    }
  }
  return py::cast<double>(py::module_::import("fastreg._base.arguments")
                              .attr("multiplier")(py::reinterpret_borrow<py::object>(number), name));
}

void check(const Call& call, unsigned outputs, const py::object& names, const py::tuple& weights,
           const py::object& gradients, const py::tuple& strengths, const py::tuple& which, PyObject* scale,
           PyObject* grad_scale) {
  py::module_::import("fastreg._engine.checks")
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
      py::module_::import("fastreg._arrays.results").attr("torch_written")(gradients);
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

void add_call_functions(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), hot_functions) != 0) {
    throw py::error_already_set();
  }
  m.def("canonical_sum", [](std::vector<double> values) { return total_of(values); }, py::arg("values"));
}

}  // namespace fastreg::python
