// What torch knows of a tensor's memory, and DLPack does not tell: whether the elements are there, and are the numbers
// that lie there, and whether they may be written (fastreg/_arrays/torch_memory.py).
//
// To ask torch's Python methods takes 500 ns a tensor, ten times what all else of it takes, and torch has no C
// interface that tells it all. So the words of torch's objects are read where they lie. Where that is, no header is
// believed: it is found out with sample tensors of which torch's Python interface tells everything, once for a process.
// Where not all samples agree on it, as in a release that keeps its tensors in another way, the methods are asked.
#pragma once

#include <pybind11/pybind11.h>

#include "../layout.h"

namespace fastreg::python {

struct TorchFlags {
  bool has_elements;  // all are there, and are what the tensor holds
  bool is_writable;
};

// Of an exact torch.Tensor or torch.nn.Parameter that `view` describes. Leaves no Python error.
TorchFlags torch_flags(PyObject* tensor, const ArrayView& view);

}  // namespace fastreg::python
