// The module's functions for the CUDA backend.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "../backend.h"
#include "call.h"

namespace fastreg::python {

// The tensors of a call whose operands have all been described and lie on a device, as an object of Python; none where
// it is not plainly right. `which` is a tuple of indices into the strengths.
pybind11::object device_tensors(const Call& call, PyObject* which);

// The backend, which throws where there is none.
const Backend& cuda_functions();

// Throws what a failure is in Python.
void require_success(BackendStatus status, const BackendError& error);

// Addresses of device memory, and streams, as DLPack and the CUDA array interface number them.
using Address = std::uintptr_t;
template <class T>
T* pointer_to(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace fastreg::python
