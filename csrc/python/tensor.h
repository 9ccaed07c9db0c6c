// A Python object -> a description of its memory, without copying.
#pragma once

#include <pybind11/pybind11.h>

#include "../layout.h"
#include "dlpack_abi.h"
#include "torch_gradients.h"
#include "torch_memory.h"

namespace fastreg::python {

// Imports NumPy's C interface. Throws pybind11::error_already_set.
void import_numpy();

// The device number of host memory.
constexpr int on_host = -1;

// Describes `object` in `view`, says where it is in `device`, and returns true, when it is one of the kinds that are
// read directly: exactly a numpy.ndarray of a native numeric type, or exactly a torch.Tensor or torch.nn.Parameter
// without gaps on the CPU or a CUDA device, once torch has been learned. Returns false, and leaves no Python error, for
// everything else, which Python knows how to read or to refuse. The view borrows from `object`, which must outlive it.
bool describe(PyObject* object, ArrayView& view, int& device);

// The same of a pair (numpy.ndarray, dtype name) that stands for an array of another kind.
bool describe_view(PyObject* pair, ArrayView& view);

// True for exactly a torch.Tensor or torch.nn.Parameter, once torch has been learned.
bool is_plain_torch(PyObject* object);

// Learns torch's types and how it keeps tensors. Before that, and where this returns false, no tensor of torch is read
// directly.
bool learn_torch(const pybind11::object& tensor, const pybind11::object& parameter, const TorchMemory& memory);

// Fills the description of an exact torch.Tensor or torch.nn.Parameter, which borrows from it. Returns false, and
// leaves no Python error, for everything else, and where torch has no exchange table.
bool exchange(PyObject* object, dlpack::Tensor& tensor);

// What a parameter of torch says of itself.
struct ParameterState {
  bool requires_grad;
  pybind11::object grad;  // None where it has none
};

// Reads an exact torch.Tensor or torch.nn.Parameter; `grad` only where it requires one and `wants_grad`. Returns false
// for everything else.
bool read_parameter(PyObject* object, const AutogradFields& fields, bool wants_grad, ParameterState& state);

// True for everything that does not say that it requires no gradient.
bool requires_gradient(PyObject* object, const AutogradFields& fields);

// The stream that torch uses on a CUDA device at this moment. Returns false where torch does not say.
bool torch_stream(int device, void*& stream);

}  // namespace fastreg::python
