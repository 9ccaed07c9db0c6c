// Calls: of one tensor, of many, and of the parameters of torch. Their arguments are positional, and documented in
// fastreg/_core.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <numeric>
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

// What the caller gets who has to decide: an operand or a number is not plainly right, or lies on a device. Nothing has
// been written.
PyObject* not_plain() { Py_RETURN_NOTIMPLEMENTED; }

// A scale may be anything that the caller was given: true for what is plainly a finite number.
bool read_scale(PyObject* number, double& value) {
  if (PyFloat_Check(number)) {  // numpy.float64 is one too
    value = PyFloat_AS_DOUBLE(number);
    return std::isfinite(value);
  }
  if (!PyLong_CheckExact(number)) {
    return false;
  }
  value = PyLong_AsDouble(number);
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return false;
  }
  return true;
}

PyObject* evaluate_one(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return translate_exceptions([&]() -> PyObject* {
    require_arguments("evaluate_one", count, 7);
    const unsigned outputs = to_outputs(arguments[0]);
    const double l1 = to_double(arguments[3]);
    const double l2 = to_double(arguments[4]);
    double scale;
    double grad_scale;
    if (!read_scale(arguments[5], scale) || !read_scale(arguments[6], grad_scale)) {
      return not_plain();
    }
    Item item;
    double value;
    std::int64_t zeros;
    Call call(outputs, {&item, &value, &zeros, 1});
    if (!call.add(arguments[1], arguments[2], Rule(outputs, l1, l2, scale, grad_scale)) || !call.is_plainly_right()) {
      return not_plain();
    }
    call.run();
    if ((outputs & output_value) == 0) {
      Py_RETURN_NONE;
    }
    if (is_prox(outputs)) {
      return py::make_tuple(value, zeros, item.count).release().ptr();
    }
    return PyFloat_FromDouble(value);
  });
}

// The arguments of a call of many tensors, in tuples of one length; `gradients` may be None where none is written.
struct Many {
  unsigned outputs;
  PyObject* weights;
  PyObject* gradients;
  PyObject* strengths;
  PyObject* which;
  PyObject* scale;
  PyObject* grad_scale;
  PyObject* copies = nullptr;  // a tuple of pairs (target, source) to be written with the gradients
};

// A call of many tensors, described and judged.
class ManyTensors {
 public:
  ManyTensors(const Many& many, Call::Operands operands)
      : items_(static_cast<std::size_t>(PyTuple_GET_SIZE(many.weights))),
        values_(items_.size()),
        zeros_(is_prox(many.outputs) ? items_.size() : 0),
        call_(many.outputs, {items_.data(), values_.data(), zeros_.data(), items_.size()}, operands) {
    const Py_ssize_t tensors = PyTuple_GET_SIZE(many.weights);
    const bool writes = (many.outputs & output_gradient) != 0;
    if (PyTuple_GET_SIZE(many.which) != tensors ||
        (writes && (!PyTuple_Check(many.gradients) || PyTuple_GET_SIZE(many.gradients) != tensors))) {
      throw std::invalid_argument("names, weights, gradients and which must be of one length");
    }
    double scale = 0.0;
    double grad_scale = 0.0;
    is_read_ = read_scale(many.scale, scale) && read_scale(many.grad_scale, grad_scale);
    std::vector<Rule> rules;
    for (const py::handle pair : py::reinterpret_borrow<py::tuple>(many.strengths)) {
      const auto both = py::cast<py::tuple>(pair);
      rules.emplace_back(many.outputs, to_double(py::object(both[0]).ptr()), to_double(py::object(both[1]).ptr()),
                         scale, grad_scale);
    }
    for (Py_ssize_t i = 0; is_read_ && i < tensors; ++i) {
      const std::size_t rule = PyLong_AsSize_t(PyTuple_GET_ITEM(many.which, i));
      if (rule >= rules.size()) {
        PyErr_Clear();
        throw std::invalid_argument("which must hold indices into strengths");
      }
      is_read_ = call_.add(PyTuple_GET_ITEM(many.weights, i), writes ? PyTuple_GET_ITEM(many.gradients, i) : nullptr,
                           rules[rule]);
    }
    for (Py_ssize_t i = 0; is_read_ && many.copies != nullptr && i < PyTuple_GET_SIZE(many.copies); ++i) {
      PyObject* pair = PyTuple_GET_ITEM(many.copies, i);
      if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
        throw std::invalid_argument("copies must hold pairs (target, source)");
      }
      is_read_ = call_.add_copy(PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1));
    }
  }

  // False where an operand or a number cannot be read as it is.
  bool is_read() const { return is_read_; }
  bool is_on_host() const { return call_.device() <= on_host; }
  const Call& call() const { return call_; }

  // None, the values, or their canonical sum; of proximal steps with zeros and sizes, or their sums.
  py::object run(unsigned outputs, bool per_tensor) {
    call_.run();
    if ((outputs & output_value) == 0) {
      return py::none();
    }
    if (is_prox(outputs)) {
      return of_prox(per_tensor);
    }
    return per_tensor ? py::cast(values_) : py::object(py::float_(total_of(values_)));
  }

 private:
  py::object of_prox(bool per_tensor) {
    if (!per_tensor) {
      const std::int64_t zeros = std::accumulate(zeros_.begin(), zeros_.end(), std::int64_t{0});
      return py::make_tuple(total_of(values_), zeros, call_.elements());
    }
    std::vector<std::int64_t> sizes;
    sizes.reserve(items_.size());
    for (const Item& item : items_) {
      sizes.push_back(item.count);
    }
    return py::make_tuple(values_, zeros_, sizes);
  }

  std::vector<Item> items_;
  std::vector<double> values_;
  std::vector<std::int64_t> zeros_;
  Call call_;
  bool is_read_;
};

bool is_true(PyObject* flag) { return PyObject_IsTrue(flag) != 0; }

PyObject* evaluate_many(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return translate_exceptions([&]() -> PyObject* {
    require_arguments("evaluate_many", count, count == 10 ? 10 : 9);
    const unsigned outputs = to_outputs(arguments[0]);
    require_tuples("evaluate_many", arguments, {2, 4, 5});
    if (count == 10) {
      require_tuples("evaluate_many", arguments, {9});
    }
    ManyTensors tensors({outputs, arguments[2], arguments[3], arguments[4], arguments[5], arguments[6], arguments[7],
                         count == 10 ? arguments[9] : nullptr},
                        Call::Operands::of_host);
    if (!tensors.is_read() || !tensors.call().is_plainly_right()) {
      return not_plain();
    }
    return tensors.run(outputs, is_true(arguments[8])).release().ptr();
  });
}

PyObject* evaluate_views(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return translate_exceptions([&]() -> PyObject* {
    require_arguments("evaluate_views", count, 10);
    const unsigned outputs = to_outputs(arguments[0]);
    require_tuples("evaluate_views", arguments, {1, 3, 4, 8});
    ManyTensors tensors(
        {outputs, arguments[1], arguments[2], arguments[3], arguments[4], arguments[5], arguments[6], arguments[8]},
        Call::Operands::views);
    const Call& call = tensors.call();
    if (!tensors.is_read() || !(is_true(arguments[9]) ? call.is_safe() : call.is_plainly_right())) {
      return not_plain();
    }
    return tensors.run(outputs, is_true(arguments[7])).release().ptr();
  });
}

PyObject* describe_tensors(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return translate_exceptions([&]() -> PyObject* {
    require_arguments("describe_tensors", count, 7);
    const unsigned outputs = to_outputs(arguments[0]);
    require_tuples("describe_tensors", arguments, {1, 3, 4});
    const ManyTensors tensors(
        {outputs, arguments[1], arguments[2], arguments[3], arguments[4], arguments[5], arguments[6]},
        Call::Operands::of_any_device);
    const py::object described =
        tensors.is_read() && !tensors.is_on_host() ? device_tensors(tensors.call(), arguments[4]) : py::object();
    return described ? py::object(described).release().ptr() : not_plain();
  });
}

// The gradients of parameters, None for each unless `wanted`; no object where not all are plain torch parameters that
// require one and, if it is wanted, have it, and where one of them is part of a graph but may not be.
py::object gradients_of(PyObject* parameters, const AutogradFields& fields, bool wanted, bool may_be_recorded) {
  const Py_ssize_t count = PyTuple_GET_SIZE(parameters);
  py::tuple gradients(count);
  ParameterState state;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!read_parameter(PyTuple_GET_ITEM(parameters, i), fields, wanted, state) || !state.requires_grad) {
      return {};
    }
    if (wanted && (state.grad.is_none() || (!may_be_recorded && requires_gradient(state.grad.ptr(), fields)))) {
      return {};
    }
    PyTuple_SET_ITEM(gradients.ptr(), i, (wanted ? state.grad : py::none()).release().ptr());
  }
  return gradients;
}

bool are_frozen(PyObject* parameters, const AutogradFields& fields) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(parameters); ++i) {
    if (requires_gradient(PyTuple_GET_ITEM(parameters, i), fields)) {
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
    const bool writes = (outputs & output_gradient) != 0;
    const AutogradFields fields;
    const py::object gradients = are_frozen(arguments[4], fields)
                                     ? gradients_of(arguments[2], fields, writes, is_true(arguments[9]))
                                     : py::object();
    if (!gradients) {
      return not_plain();
    }
    ManyTensors tensors(
        {outputs, arguments[2], gradients.ptr(), arguments[5], arguments[6], arguments[7], arguments[8]},
        Call::Operands::of_any_device);
    std::vector<std::uintptr_t> addresses;
    if (tensors.is_read()) {
      tensors.call().add_addresses(addresses);
    }
    if (!tensors.is_read() || !tensors.call().is_plainly_right() ||
        !add_addresses(PySequence_Fast_ITEMS(arguments[3]), static_cast<std::size_t>(PyTuple_GET_SIZE(arguments[3])),
                       addresses) ||
        has_duplicate(addresses)) {
      return not_plain();
    }
    const py::object result =
        tensors.is_on_host() ? tensors.run(outputs, false) : device_tensors(tensors.call(), arguments[6]);
    if (!result) {
      return not_plain();
    }
    if (tensors.is_on_host() && !writes) {
      return py::object(result).release().ptr();
    }
    return py::make_tuple(result, gradients).release().ptr();
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

PyObject* shares_address(PyObject*, PyObject* weights) {
  return translate_exceptions([&]() -> PyObject* {
    const py::tuple objects = py::reinterpret_steal<py::tuple>(PySequence_Tuple(weights));
    if (!objects) {
      throw py::error_already_set();
    }
    std::vector<std::uintptr_t> addresses;
    addresses.reserve(objects.size());
    if (!add_addresses(PySequence_Fast_ITEMS(objects.ptr()), objects.size(), addresses)) {
      return not_plain();
    }
    return PyBool_FromLong(has_duplicate(addresses));
  });
}

PyMethodDef hot_functions[] = {
    {"evaluate_one", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(evaluate_one)), METH_FASTCALL,
     "evaluate_one(outputs, weight, gradient, l1, l2, scale, grad_scale)"},
    {"evaluate_many", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(evaluate_many)), METH_FASTCALL,
     "evaluate_many(outputs, names, weights, gradients, strengths, which, scale, grad_scale, per_tensor, copies=())"},
    {"evaluate_views", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(evaluate_views)), METH_FASTCALL,
     "evaluate_views(outputs, views, targets, strengths, which, scale, grad_scale, per_tensor, copies, checked)"},
    {"describe_tensors", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(describe_tensors)), METH_FASTCALL,
     "describe_tensors(outputs, weights, gradients, strengths, which, scale, grad_scale)"},
    {"accumulate_parameters", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(accumulate_parameters)),
     METH_FASTCALL,
     "accumulate_parameters(outputs, names, parameters, others, frozen, strengths, which, scale, grad_scale, "
     "may_be_recorded)"},
    {"have_members", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(have_members)), METH_FASTCALL,
     "have_members(dicts, members)"},
    {"shares_address", shares_address, METH_O, "shares_address(weights)"},
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
