#include "device.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/float_environment.h"
#include "../cuda/loader.h"
#include "bindings.h"
#include "dlpack_faults.h"
#include "interpreter_lock.h"

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

void* pointer(Address address) { return reinterpret_cast<void*>(address); }
Address address_of(const void* pointer) { return reinterpret_cast<Address>(pointer); }

void wait(int device, Address stream, Address producer) {
  BackendError error;
  require(backend().wait(device, pointer(stream), pointer(producer), &error), error);
}

// ---- marks: what a stream held at some moment

class StreamMark {
 public:
  StreamMark(int device, Address stream) {
    BackendError error;
    require(backend().set_mark(device, pointer(stream), &mark_, &error), error);
  }
  StreamMark(const StreamMark&) = delete;
  StreamMark& operator=(const StreamMark&) = delete;
  ~StreamMark() { backend().drop_mark(mark_); }

  Mark* get() const { return mark_; }
  bool has_passed() const { return backend().has_passed(mark_); }

 private:
  Mark* mark_ = nullptr;
};

// ---- memory for results

// Device memory for a result, from the backend or borrowed of another library's object. Python's objects and the
// capsules made of it share it. Capsules are dropped by other libraries, on any thread and without the interpreter.
class DeviceMemory {
 public:
  DeviceMemory(int device, Address stream, std::size_t bytes) : device_(device), stream_(stream) {
    BackendError error;
    require(backend().allocate(device, pointer(stream), bytes, &memory_, &error), error);
  }
  DeviceMemory(int device, Address stream, Address address, py::object owner)
      : device_(device), stream_(stream), memory_(pointer(address)), owner_(std::move(owner)) {}
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  ~DeviceMemory() {
    if (owner_) {
      with_lock([this] { owner_ = py::object(); });
      owner_.release();  // still there where the interpreter has gone, and all its objects with it
      return;
    }
    Mark* mark = written_ != nullptr ? written_->get() : nullptr;
    backend().release(device_, memory_, &mark, mark != nullptr ? 1 : 0);
  }

  int device() const { return device_; }
  Address stream() const { return stream_; }
  Address address() const { return address_of(memory_); }

  // The work queued on the stream so far makes the contents.
  void mark_written() { written_ = std::make_unique<StreamMark>(device_, stream_); }

  // Has a stream wait for the contents.
  void make_wait(Address stream) const {
    if (written_ != nullptr) {
      BackendError error;
      require(backend().wait_for_mark(device_, pointer(stream), written_->get(), &error), error);
    }
  }

  // Copies a number to the host. The stream may be gone by now, so the copy is on a stream that never is.
  template <class Number>
  Number read() const {
    const Address thread_stream = 2;
    const Address on = written_ != nullptr ? thread_stream : stream_;
    Number number{};
    BackendError error;
    BackendStatus status = BackendStatus::ok;
    without_lock([&] {
      if (written_ != nullptr) {
        status = backend().wait_for_mark(device_, pointer(on), written_->get(), &error);
      }
      if (status == BackendStatus::ok) {
        status = backend().copy_to_host(device_, pointer(on), memory_, sizeof number, &number, &error);
      }
    });
    require(status, error);
    return number;
  }

 private:
  int device_;
  Address stream_;
  void* memory_ = nullptr;
  std::unique_ptr<StreamMark> written_;
  py::object owner_;
};

// ---- DLPack, out

template <class Managed>
struct Export {
  Managed managed{};
  std::shared_ptr<void> owner;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
};

template <class Managed>
constexpr const char* name_of = dlpack::capsule_name;
template <>
constexpr const char* name_of<dlpack::ManagedTensorVersioned> = dlpack::versioned_capsule_name;

// The memory's owner lives until the capsule's consumer is done with it, or a capsule without consumer is dropped.
template <class Managed>
py::object make_capsule(std::shared_ptr<void> owner, dlpack::Tensor tensor, std::vector<std::int64_t> shape) {
  auto made = std::make_unique<Export<Managed>>();
  made->owner = std::move(owner);
  made->shape = std::move(shape);
  made->strides.resize(made->shape.size());
  std::int64_t stride = 1;
  for (std::size_t axis = made->shape.size(); axis-- > 0;) {
    made->strides[axis] = stride;
    stride *= made->shape[axis];
  }
  tensor.ndim = static_cast<std::int32_t>(made->shape.size());
  tensor.shape = made->shape.data();
  tensor.strides = made->strides.data();
  made->managed.tensor = tensor;
  made->managed.context = made.get();
  made->managed.deleter = [](Managed* managed) { delete static_cast<Export<Managed>*>(managed->context); };
  if constexpr (std::is_same_v<Managed, dlpack::ManagedTensorVersioned>) {
    made->managed.version = {1, 0};
  }
  PyObject* capsule = PyCapsule_New(&made->managed, name_of<Managed>, [](PyObject* dropped) {
    if (PyCapsule_IsValid(dropped, name_of<Managed>) != 0) {
      auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(dropped, name_of<Managed>));
      managed->deleter(managed);
    }
  });
  if (capsule == nullptr) {
    throw py::error_already_set();
  }
  made.release();
  return py::reinterpret_steal<py::object>(capsule);
}

// `device_type` is CUDA's but in tests, which give the stand-in's memory, the host's in truth, to libraries of the
// host.
py::object export_memory(const std::shared_ptr<DeviceMemory>& memory, std::vector<std::int64_t> shape, int code,
                         int bits, bool versioned, int device_type) {
  dlpack::Tensor tensor{};
  tensor.data = pointer(memory->address());
  tensor.device = {static_cast<dlpack::DeviceType>(device_type), memory->device()};
  tensor.dtype = {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1};
  return versioned ? make_capsule<dlpack::ManagedTensorVersioned>(memory, tensor, std::move(shape))
                   : make_capsule<dlpack::ManagedTensor>(memory, tensor, std::move(shape));
}

// ---- DLPack, in

// (address, shape, strides in elements or None, kind of dtype, bits, lanes, kind of device, device), of a tensor
// without a fault
py::tuple description_of(const dlpack::Tensor& tensor) {
  std::vector<std::int64_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  py::object strides = py::none();
  if (tensor.strides != nullptr) {
    strides = py::tuple(py::cast(std::vector<std::int64_t>(tensor.strides, tensor.strides + tensor.ndim)));
  }
  return py::make_tuple(address_of(tensor.data) + tensor.byte_offset, py::tuple(py::cast(shape)), strides,
                        static_cast<int>(tensor.dtype.code), static_cast<int>(tensor.dtype.bits),
                        static_cast<int>(tensor.dtype.lanes), static_cast<int>(tensor.device.type), tensor.device.id);
}

py::tuple description_in_capsule(const dlpack::Tensor& tensor) {
  const std::string fault = dlpack::fault_of(tensor);
  if (!fault.empty()) {
    throw py::type_error("a DLPack capsule that describes no array: " + fault);
  }
  return description_of(tensor);
}

// The same of a capsule, whether it has a version, and whether it says that it may be written. It is not consumed: the
// memory is there as long as the capsule is.
py::tuple describe_capsule(const py::object& capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::versioned_capsule_name) != 0) {
    const auto* managed = static_cast<dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), dlpack::versioned_capsule_name));
    if (managed->version.major != 1) {
      throw py::type_error("a DLPack capsule of version " + std::to_string(managed->version.major));
    }
    return py::make_tuple(description_in_capsule(managed->tensor), true,
                          (managed->flags & dlpack::flag_read_only) == 0);
  }
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::capsule_name) != 0) {
    const auto* managed =
        static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::capsule_name));
    return py::make_tuple(description_in_capsule(managed->tensor), false, false);
  }
  throw py::type_error("no DLPack capsule");
}

py::object describe_by_exchange(const py::object& object) {
  dlpack::Tensor tensor{};
  if (!exchange(object.ptr(), tensor) || !dlpack::fault_of(tensor).empty() || !dlpack::has_whole_bytes(tensor.dtype)) {
    return py::none();
  }
  return description_of(tensor);
}

// ---- calls

// Shape; strides of weights and of gradients, in elements, the latter empty where there are none.
using Axes = std::vector<std::int64_t>;
using DescribedLayout = std::tuple<Axes, Axes, Axes>;

// The order of the elements is that of the CPU engine: csrc/layout.h decides it for both.
Layout layout_of(const DescribedLayout& described, std::int64_t count, DType dtype) {
  const auto& [shape, weight_strides, gradient_strides] = described;
  const auto view_of = [&, &axes = shape](const Axes& strides) {
    ArrayView view;
    view.shape = axes.data();
    view.strides = strides.data();
    view.stride_unit = static_cast<std::int64_t>(item_size(dtype));
    view.axes = static_cast<int>(axes.size());
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

// The tensors of a call, described and judged.
class DeviceTensors {
 public:
  DeviceTensors(int device, Address stream) : device_(device), stream_(stream) {}

  // Addresses of the elements of index 0 of weights and gradients; count; dtype's number; index into strengths; layout
  // where the two are not without gaps and in one order.
  using Tensor = std::tuple<Address, Address, std::int64_t, int, std::uint32_t, std::optional<DescribedLayout>>;

  DeviceTensors(int device, Address stream, const std::vector<Tensor>& tensors) : device_(device), stream_(stream) {
    for (const auto& [weights, gradients, count, number, which, described] : tensors) {
      if (number < 0 || number >= dtype_count) {
        throw py::value_error("there is no dtype " + std::to_string(number));
      }
      const auto dtype = static_cast<DType>(number);
      std::optional<Layout> layout;
      if (described.has_value() && count != 0) {
        layout = layout_of(*described, count, dtype);
      }
      const bool is_plain = !layout.has_value() || (layout->weights_consecutive && layout->gradients_consecutive);
      add({pointer(weights), pointer(gradients), count, which, dtype, is_plain ? nullptr : &*layout});
    }
  }

  // Copies the item's layout.
  void add(DeviceItem item) {
    if (item.layout != nullptr) {
      item.layout = layouts_.emplace_back(std::make_unique<Layout>(*item.layout)).get();
    }
    items_.push_back(item);
  }

  int device() const { return device_; }
  Address stream() const { return stream_; }
  std::size_t size() const { return items_.size(); }
  std::vector<std::int64_t> sizes() const {
    std::vector<std::int64_t> sizes;
    sizes.reserve(items_.size());
    for (const DeviceItem& item : items_) {
      sizes.push_back(item.count);
    }
    return sizes;
  }
  std::vector<std::pair<std::uint32_t, int>> coefficient_types() const {
    std::vector<std::pair<std::uint32_t, int>> types;
    types.reserve(items_.size());
    for (const DeviceItem& item : items_) {
      types.emplace_back(item.strengths, static_cast<int>(item.dtype));
    }
    return types;
  }

  // Where results go, in device memory: for each tensor, or of all together; 0 where they are not wanted.
  struct Results {
    Address values;
    Address total;
    Address zeros;
    Address total_zeros;
  };

  // Returns the handle of what was captured, or 0.
  Address run(NormTask task, int exponent, Norm* norms, double factor, double max_norm, Address norm) const {
    const NormCall call{task,     device_, pointer(stream_), items_.data(), items_.size(),
                        exponent, norms,   factor,           max_norm,      static_cast<double*>(pointer(norm))};
    Recording* recording = nullptr;
    BackendError error;
    BackendStatus status = BackendStatus::ok;
    without_lock([&] { status = backend().norms(&call, &recording, &error); });
    require(status, error);
    return address_of(recording);
  }

  // Returns what set_strengths takes, or 0 where the stream is not being captured.
  Address evaluate(unsigned outputs, const std::vector<Coefficients>& strengths, const Results& results) const {
    const DeviceCall call{device_,
                          pointer(stream_),
                          items_.data(),
                          items_.size(),
                          strengths.data(),
                          strengths.size(),
                          outputs,
                          static_cast<double*>(pointer(results.values)),
                          static_cast<double*>(pointer(results.total)),
                          static_cast<std::int64_t*>(pointer(results.zeros)),
                          static_cast<std::int64_t*>(pointer(results.total_zeros))};
    Recording* recording = nullptr;
    BackendError error;
    BackendStatus status = BackendStatus::ok;
    without_lock([&] { status = backend().evaluate(&call, &recording, &error); });
    require(status, error);
    return address_of(recording);
  }

 private:
  int device_;
  Address stream_;
  std::vector<DeviceItem> items_;
  std::vector<std::unique_ptr<Layout>> layouts_;
};

// With proximal steps `grad_scale` is the step.
std::vector<Coefficients> coefficients_of(unsigned outputs, const std::vector<std::pair<double, double>>& strengths,
                                          double scale, double grad_scale) {
  const FloatEnvironment environment;
  std::vector<Coefficients> coefficients;
  coefficients.reserve(strengths.size());
  for (const auto& [l1, l2] : strengths) {
    coefficients.push_back(is_prox(outputs) ? make_prox_coefficients(l1, l2, scale, grad_scale)
                                            : make_coefficients(l1, l2, scale, grad_scale));
  }
  return coefficients;
}

}  // namespace

const Backend& cuda_functions() { return backend(); }

void require_success(BackendStatus status, const BackendError& error) { require(status, error); }

py::object device_tensors(const Call& call, PyObject* which) {
  void* stream = nullptr;
  if (!call.is_plainly_right() || cuda_backend().backend == nullptr || !torch_stream(call.device(), stream)) {
    return {};
  }
  auto tensors = std::make_unique<DeviceTensors>(call.device(), address_of(stream));
  for (std::size_t i = 0; i < call.size(); ++i) {
    const Item& item = call.items()[i];
    const std::size_t rule = PyLong_AsSize_t(PyTuple_GET_ITEM(which, static_cast<Py_ssize_t>(i)));
    tensors->add({item.weights, item.gradients, item.count, static_cast<std::uint32_t>(rule), item.dtype, item.layout});
  }
  return py::cast(std::move(tensors));
}

void add_device_functions(py::module_& m) {
  m.def("cuda_state", [] {
    const LoadedBackend& loaded = cuda_backend();
    return py::make_tuple(loaded.backend != nullptr, loaded.reason, loaded.device_count);
  });
  m.def("cuda_device_of", [](Address address) {
    int device = -1;
    BackendError error;
    require(backend().device_of(pointer(address), &device, &error), error);
    return device;
  });
  m.def("torch_stream", [](int device) -> py::object {
    void* stream = nullptr;
    return torch_stream(device, stream) ? py::object(py::int_(address_of(stream))) : py::none();
  });
  m.def(
      "learn_torch",
      [](const py::object& tensor, const py::object& parameter, const py::object& is_inference_mode_enabled,
         const py::object& flags, const TorchSamples& samples, std::uint64_t other_numbers, std::uint64_t not_inference,
         bool asks) {
        return learn_torch(tensor, parameter,
                           {samples, other_numbers, not_inference, is_inference_mode_enabled, flags, asks});
      },
      py::arg("tensor"), py::arg("parameter"), py::arg("is_inference_mode_enabled"), py::arg("flags"),
      py::arg("samples"), py::arg("other_numbers"), py::arg("not_inference"), py::arg("asks"));
  m.def("learn_torch_gradients", learn_torch_gradients, py::arg("samples"), py::arg("is_mode_enabled"));
  m.def("describe_by_exchange", describe_by_exchange);
  m.def("describe_capsule", describe_capsule);

  py::class_<StreamMark>(m, "StreamMark")
      .def(py::init<int, Address>(), py::arg("device"), py::arg("stream"))
      .def("has_passed", &StreamMark::has_passed);
  py::class_<DeviceMemory, std::shared_ptr<DeviceMemory>>(m, "DeviceMemory")
      .def(py::init<int, Address, std::size_t>(), py::arg("device"), py::arg("stream"), py::arg("bytes"))
      .def(py::init<int, Address, Address, py::object>(), py::arg("device"), py::arg("stream"), py::arg("address"),
           py::arg("owner"))
      .def_property_readonly("device", &DeviceMemory::device)
      .def_property_readonly("stream", &DeviceMemory::stream)
      .def_property_readonly("address", &DeviceMemory::address)
      .def("mark_written", &DeviceMemory::mark_written)
      .def("make_wait", &DeviceMemory::make_wait)
      .def("read", &DeviceMemory::read<double>)
      .def("read_integer", &DeviceMemory::read<std::int64_t>)
      .def("export", export_memory, py::arg("shape"), py::arg("code"), py::arg("bits"), py::arg("versioned"),
           py::arg("device_type") = static_cast<int>(dlpack::device_cuda));
  py::class_<DeviceTensors>(m, "DeviceTensors")
      .def(py::init<int, Address, const std::vector<DeviceTensors::Tensor>&>(), py::arg("device"), py::arg("stream"),
           py::arg("tensors"))
      .def_property_readonly("device", &DeviceTensors::device)
      .def_property_readonly("stream", &DeviceTensors::stream)
      .def_property_readonly("sizes", &DeviceTensors::sizes)
      .def_property_readonly("coefficient_types", &DeviceTensors::coefficient_types)
      .def("__len__", &DeviceTensors::size);

  m.def(
      "cuda_evaluate",
      [](const DeviceTensors& tensors, unsigned outputs, const std::vector<std::pair<double, double>>& strengths,
         double scale, double grad_scale, Address values, Address total, Address zeros, Address total_zeros) {
        return tensors.evaluate(outputs, coefficients_of(outputs, strengths, scale, grad_scale),
                                {values, total, zeros, total_zeros});
      },
      py::arg("tensors"), py::arg("outputs"), py::arg("strengths"), py::arg("scale"), py::arg("grad_scale"),
      py::arg("values"), py::arg("total"), py::arg("zeros"), py::arg("total_zeros"));
  m.def(
      "cuda_norm_sums",
      [](const DeviceTensors& tensors, int exponent) {
        std::vector<Norm> norms(tensors.size());
        tensors.run(NormTask::measure, exponent, norms.data(), 1.0, 0.0, 0);
        py::list result(norms.size());
        for (std::size_t i = 0; i < norms.size(); ++i) {
          const Norm& one = norms[i];
          result[i] = py::make_tuple(one.l1, one.l2, one.maximum, one.zeros, one.nonfinite);
        }
        return result;
      },
      py::arg("tensors"), py::arg("exponent"));
  m.def(
      "cuda_scale",
      [](const DeviceTensors& tensors, double factor) {
        return tensors.run(NormTask::scale, 0, nullptr, factor, 0.0, 0);
      },
      py::arg("tensors"), py::arg("factor"));
  m.def(
      "cuda_clip",
      [](const DeviceTensors& tensors, double max_norm, Address norm) {
        return tensors.run(NormTask::clip, 0, nullptr, 1.0, max_norm, norm);
      },
      py::arg("tensors"), py::arg("max_norm"), py::arg("norm"));
  m.def(
      "cuda_set_strengths",
      [](Address recording, unsigned outputs, const std::vector<std::pair<double, double>>& strengths, double scale,
         double grad_scale, Address stream) {
        const std::vector<Coefficients> coefficients = coefficients_of(outputs, strengths, scale, grad_scale);
        BackendError error;
        require(backend().set_strengths(static_cast<Recording*>(pointer(recording)), coefficients.data(),
                                        coefficients.size(), pointer(stream), &error),
                error);
      },
      py::arg("recording"), py::arg("outputs"), py::arg("strengths"), py::arg("scale"), py::arg("grad_scale"),
      py::arg("stream"));
  m.def("cuda_forget", [](Address recording) {
    without_lock([&] { backend().forget(static_cast<Recording*>(pointer(recording))); });
  });
  m.def("cuda_wait", wait);
  m.def("cuda_is_capturing", [](Address stream) {
    bool capturing = false;
    BackendError error;
    require(backend().is_capturing(pointer(stream), &capturing, &error), error);
    return capturing;
  });
  m.def("cuda_clear", [](int device, Address stream, Address address, std::size_t bytes) {
    BackendError error;
    require(backend().clear(device, pointer(stream), pointer(address), bytes, &error), error);
  });
  m.def("cuda_copy_from_host", [](int device, Address stream, Address address, const py::buffer& from) {
    const py::buffer_info numbers = from.request();
    BackendError error;
    BackendStatus status = BackendStatus::ok;
    without_lock([&] {
      status =
          backend().copy_from_host(device, pointer(stream), numbers.ptr,
                                   static_cast<std::size_t>(numbers.size * numbers.itemsize), pointer(address), &error);
    });
    require(status, error);
  });
  m.def("cuda_copy", [](int device, Address stream, Address address, std::size_t bytes) {
    py::bytearray copy(nullptr, 0);
    if (PyByteArray_Resize(copy.ptr(), static_cast<Py_ssize_t>(bytes)) != 0) {
      throw py::error_already_set();
    }
    void* to = PyByteArray_AS_STRING(copy.ptr());
    BackendError error;
    BackendStatus status = BackendStatus::ok;
    without_lock(
        [&] { status = backend().copy_to_host(device, pointer(stream), pointer(address), bytes, to, &error); });
    require(status, error);
    return copy;
  });
}

}  // namespace fastreg::python
