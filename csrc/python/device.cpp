#include "device.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../cuda/loader.h"
#include "dlpack_abi.h"

namespace py = pybind11;

namespace fastreg::python {
namespace {

const Backend& backend() {
  const LoadedBackend& loaded = cuda_backend();
  if (loaded.backend == nullptr) {
    throw std::runtime_error("there is no CUDA here: " + loaded.reason);
  }
  return *loaded.backend;
}

// The backend's failures as Python's: memory, arguments, and the rest with the runtime's own text.
void require(BackendStatus status, const BackendError& error) {
  switch (status) {
    case BackendStatus::ok:
      return;
    case BackendStatus::out_of_memory:
      PyErr_SetString(PyExc_MemoryError, error.text);
      throw py::error_already_set();
    case BackendStatus::bad_argument:
      throw py::value_error(error.text);
    default:
      throw std::runtime_error(error.text);
  }
}

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

// shape, then the strides of weights and of gradients, in elements; without gradients () for the last
using Axes = std::vector<std::int64_t>;
using DeviceLayout = std::tuple<Axes, Axes, Axes>;
// Addresses of weights and of gradients, each that of the element of index 0; count; dtype's number; index into
// strengths; None where weights and gradients are consecutive and in the same order
using DeviceTensor =
    std::tuple<std::uintptr_t, std::uintptr_t, std::int64_t, int, std::uint32_t, std::optional<DeviceLayout>>;

// The order of the elements is that of the CPU engine: csrc/layout.h decides it for both.
Layout layout_of(const DeviceLayout& described, std::int64_t count, DType dtype) {
  const auto& [shape, weight_strides, gradient_strides] = described;
  const auto view_of = [&](const Axes& strides) {
    ArrayView view;
    view.shape = shape.data();
    view.strides = strides.data();
    view.stride_unit = static_cast<std::int64_t>(item_size(dtype));
    view.axes = static_cast<int>(shape.size());
    view.dtype = dtype;
    measure(view);
    return view;
  };
  const bool has_gradients = !gradient_strides.empty();
  if (shape.size() > max_axes || weight_strides.size() != shape.size() ||
      (has_gradients && gradient_strides.size() != shape.size()) || view_of(weight_strides).count != count) {
    throw py::value_error("a layout is described wrongly");
  }
  const ArrayView weights = view_of(weight_strides);
  const ArrayView gradients = view_of(has_gradients ? gradient_strides : weight_strides);
  return make_layout(weights, &gradients);
}

void evaluate_on_device(unsigned outputs, int device, std::uintptr_t stream, const std::vector<DeviceTensor>& tensors,
                        const std::vector<std::pair<double, double>>& strengths, double scale, double grad_scale,
                        std::uintptr_t values, std::uintptr_t total) {
  std::vector<DeviceItem> items;
  items.reserve(tensors.size());
  std::vector<std::unique_ptr<Layout>> layouts;
  for (const auto& [weights, gradients, count, number, which, layout] : tensors) {
    if (number < 0 || number >= dtype_count) {
      throw py::value_error("there is no dtype " + std::to_string(number));
    }
    const auto dtype = static_cast<DType>(number);
    items.push_back({pointer(weights), pointer(gradients), count, which, dtype, nullptr});
    if (layout.has_value() && count != 0) {
      layouts.push_back(std::make_unique<Layout>(layout_of(*layout, count, dtype)));
      if (!layouts.back()->weights_consecutive || !layouts.back()->gradients_consecutive) {
        items.back().layout = layouts.back().get();
      }
    }
  }
  std::vector<Coefficients> coefficients;
  coefficients.reserve(strengths.size());
  for (const auto& [l1, l2] : strengths) {
    coefficients.push_back(make_coefficients(l1, l2, scale, grad_scale));
  }
  const DeviceCall call{device,
                        pointer(stream),
                        items.data(),
                        items.size(),
                        coefficients.data(),
                        coefficients.size(),
                        outputs,
                        static_cast<double*>(pointer(values)),
                        static_cast<double*>(pointer(total))};
  const Backend& cuda = backend();
  BackendError error;
  BackendStatus status;
  {
    const py::gil_scoped_release release;
    status = cuda.evaluate(&call, nullptr, &error);
  }
  require(status, error);
}

// ---- DLPack capsules, of which only what is described is read; the capsule keeps the memory alive

struct ManagedTensor {
  dlpack::Tensor tensor;
};

struct ManagedTensorVersioned {
  dlpack::Version version;
  void* context;
  void (*deleter)(void*);
  std::uint64_t flags;
  dlpack::Tensor tensor;
};

constexpr std::uint64_t flag_read_only = 1;

py::tuple describe_capsule(const py::object& capsule) {
  bool is_writable = false;  // a capsule without a version cannot say that it is
  const dlpack::Tensor* tensor = nullptr;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    const auto* managed =
        static_cast<ManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major != 1) {
      throw py::type_error("a DLPack capsule of version " + std::to_string(managed->version.major));
    }
    is_writable = (managed->flags & flag_read_only) == 0;
    tensor = &managed->tensor;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
    tensor = &static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor;
  } else {
    throw py::type_error("__dlpack__ gave no DLPack capsule");
  }
  std::vector<std::int64_t> shape(tensor->shape, tensor->shape + tensor->ndim);
  py::object strides = py::none();
  if (tensor->strides != nullptr) {
    strides = py::cast(std::vector<std::int64_t>(tensor->strides, tensor->strides + tensor->ndim));
  }
  return py::make_tuple(reinterpret_cast<std::uintptr_t>(tensor->data) + tensor->byte_offset, shape, strides,
                        static_cast<int>(tensor->dtype.code),
                        static_cast<int>(tensor->dtype.bits) * tensor->dtype.lanes,
                        static_cast<int>(tensor->device.type), tensor->device.id, is_writable);
}

}  // namespace

bool is_on_cuda(PyObject* object) {
  const auto has = [&](const char* attribute) { return PyObject_HasAttrString(object, attribute) != 0; };
  if (!has("__dlpack_device__") && !has("__cuda_array_interface__")) {
    return false;
  }
  return py::cast<bool>(py::module_::import("fastreg._device").attr("is_on_cuda")(py::handle(object)));
}

void add_device_functions(py::module_& m) {
  m.def("cuda_state", [] {
    const LoadedBackend& loaded = cuda_backend();
    return py::make_tuple(loaded.backend != nullptr, loaded.reason, loaded.device_count);
  });
  m.def("cuda_evaluate", evaluate_on_device, py::arg("outputs"), py::arg("device"), py::arg("stream"),
        py::arg("tensors"), py::arg("strengths"), py::arg("scale"), py::arg("grad_scale"), py::arg("values"),
        py::arg("total"));
  m.def("cuda_allocate", [](int device, std::size_t bytes) {
    void* address = nullptr;
    BackendError error;
    require(backend().allocate(device, bytes, &address, &error), error);
    return reinterpret_cast<std::uintptr_t>(address);
  });
  m.def("cuda_release", [](int device, std::uintptr_t address) { backend().release(device, pointer(address)); });
  m.def("cuda_wait", [](int device, std::uintptr_t stream, std::uintptr_t producer) {
    BackendError error;
    require(backend().wait(device, pointer(stream), pointer(producer), &error), error);
  });
  m.def("cuda_copy", [](int device, std::uintptr_t stream, std::uintptr_t address, std::size_t count) {
    std::vector<double> numbers(count);
    BackendError error;
    BackendStatus status;
    {
      const py::gil_scoped_release release;
      status = backend().copy_to_host(device, pointer(stream), static_cast<const double*>(pointer(address)), count,
                                      numbers.data(), &error);
    }
    require(status, error);
    return numbers;
  });
  m.def("dlpack_description", describe_capsule);
}

}  // namespace fastreg::python
