// What torch knows of a tensor's memory, and DLPack does not tell: whether the elements are there, and are the numbers
// that lie there, and whether they may be written (torch_memory.py says what).
//
// To ask torch's Python methods takes 500 ns a tensor, ten times what all else of it takes, and torch has no C
// interface that tells it all. So fields of TensorImpl and StorageImpl are read at byte offsets, which are found by
// probing sample tensors, once for a process, not taken from headers. Where not all samples agree, as in a release with
// another layout of these objects, a function is called that asks those methods.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "../layout.h"

namespace fastreg::python {

// A tensor, and what torch says of it: addresses of its objects for tensor and storage, dispatch keys, offset in the
// storage in elements, bytes of the storage.
using TorchSample =
    std::tuple<pybind11::object, std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;
using TorchSamples = std::vector<TorchSample>;

struct TorchMemory {
  TorchSamples samples;
  std::uint64_t other_numbers;  // dispatch keys of tensors whose numbers are not those in memory
  std::uint64_t not_inference;  // the key that inference tensors lack
  pybind11::object is_inference_mode_enabled;
  pybind11::object flags;  // takes a tensor, returns the two of TorchFlags
  bool asks;               // whether `flags` is asked where not all samples agree
};

// Returns false where not all samples agree, and nothing is to be asked.
bool learn_torch_memory(const TorchMemory& memory);

struct TorchFlags {
  bool has_elements;  // all are there, and are what the tensor holds
  bool is_writable;
};

// Of an exact torch.Tensor or torch.nn.Parameter that `view` describes, once that has been learned. Leaves no Python
// error.
TorchFlags torch_flags(PyObject* tensor, const ArrayView& view);

}  // namespace fastreg::python
