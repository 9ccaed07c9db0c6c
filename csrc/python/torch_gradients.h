// What torch's autograd knows of a plain tensor: whether it requires a gradient, and which it has.
//
// Torch's getters take 25 to 40 ns a question, which is half of what many small parameters cost. So fields of its
// objects are read, at places that tensors show whose properties are set and reset (torch_memory.h does likewise). Each
// change must be seen in exactly one place; else, and wherever the fields do not settle a question, the getters answer.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

namespace fastreg::python {

// Fresh tensors, each with another of its shape that becomes its gradient.
using AutogradSamples = std::vector<std::pair<pybind11::object, pybind11::object>>;

// Returns false where the samples do not agree, as when there are none: from then on nothing is read.
// `is_mode_enabled` says whether a mode of torch functions wants to see the getters.
bool learn_torch_gradients(const AutogradSamples& samples, const pybind11::object& is_mode_enabled);

// Fields of tensors, for one call. The tensors are exact torch.Tensor or torch.nn.Parameter, and the interpreter is
// held from the making of it to its last use.
class AutogradFields {
 public:
  AutogradFields();

  // The gradient of a leaf that requires one; null where that is not sure, or there is none. A new reference.
  pybind11::object gradient(PyObject* parameter) const;

  // Whether it is sure that the tensor requires a gradient, or that it requires none.
  bool surely_requires(PyObject* tensor) const;
  bool surely_requires_none(PyObject* tensor) const;

 private:
  const struct AutogradPlaces* places_;  // null: nothing is sure
};

}  // namespace fastreg::python
