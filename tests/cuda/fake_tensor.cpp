// A tensor type with DLPack's exchange table, as torch.Tensor has it, that describes whatever it was made with. Only
// tests/cuda/fake_torch.py imports it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <vector>

#include "python/dlpack_abi.h"

namespace py = pybind11;

namespace {

using namespace fastreg::dlpack;

struct FakeTensor {
  std::uintptr_t address;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  int code;
  int bits;
  int device_type;
  int device;
};

std::map<std::int32_t, std::uintptr_t> streams;
int exchanges = 0;

int describe(void* object, Tensor* out) {
  ++exchanges;
  auto& tensor = *py::handle(static_cast<PyObject*>(object)).cast<FakeTensor*>();
  if (tensor.bits == 0) {
    PyErr_SetString(PyExc_RuntimeError, "this one has no memory");
    return -1;
  }
  *out = {reinterpret_cast<void*>(tensor.address),
          {static_cast<DeviceType>(tensor.device_type), tensor.device},
          static_cast<std::int32_t>(tensor.shape.size()),
          {static_cast<std::uint8_t>(tensor.code), static_cast<std::uint8_t>(tensor.bits), 1},
          tensor.shape.data(),
          tensor.strides.data(),
          0};
  return 0;
}

int current_stream(DeviceType, std::int32_t device, void** out) {
  *out = reinterpret_cast<void*>(streams[device]);
  return 0;
}

ExchangeTable table{{{1, 3}, nullptr}, nullptr, nullptr, nullptr, describe, current_stream};

}  // namespace

PYBIND11_MODULE(_fake_tensor, m) {
  py::class_<FakeTensor>(m, "Tensor", py::dynamic_attr())
      .def(py::init<std::uintptr_t, std::vector<std::int64_t>, std::vector<std::int64_t>, int, int, int, int>())
      .def_readonly("address", &FakeTensor::address)
      .attr("__dlpack_c_exchange_api__") = py::capsule(&table, exchange_capsule_name);
  m.def("set_stream", [](std::int32_t device, std::uintptr_t stream) { streams[device] = stream; });
  m.def("stream", [](std::int32_t device) { return streams[device]; });
  m.def("exchanges", [] { return exchanges; });
}
