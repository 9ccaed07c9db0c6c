#include "tensor.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <array>
#include <atomic>
#include <cstring>

#include "dlpack_abi.h"
#include "torch_memory.h"

namespace py = pybind11;

namespace fastreg::python {
namespace {

static_assert(sizeof(npy_intp) == sizeof(std::int64_t), "fastreg supports 64-bit platforms");

// The dtypes' numbers by kind and size, or -1: every operand is looked up.
constexpr auto dtype_numbers = [] {
  std::array<std::array<std::int16_t, 9>, 7> numbers{};
  for (std::size_t kind = 0; kind < numbers.size(); ++kind) {
    for (std::size_t size = 0; size < numbers[kind].size(); ++size) {
      DType dtype{};
      numbers[kind][size] =
          find_dtype(static_cast<Kind>(kind), size, dtype) ? static_cast<std::int16_t>(dtype) : std::int16_t{-1};
    }
  }
  return numbers;
}();

bool look_up(std::size_t kind, std::size_t size, DType& dtype) {
  if (kind >= dtype_numbers.size() || size >= dtype_numbers[kind].size() || dtype_numbers[kind][size] < 0) {
    return false;
  }
  dtype = static_cast<DType>(dtype_numbers[kind][size]);
  return true;
}

// ---- NumPy

// ml_dtypes registers its types when it is imported, so their numbers are not constants. NumPy offers bfloat16 neither
// by the buffer protocol nor by DLPack: the descriptor is the only way.
bool is_bfloat16(PyArray_Descr* descr) {
  static std::atomic<int> known{-1};
  const int number = descr->type_num;
  if (number == known.load(std::memory_order_relaxed)) {
    return true;
  }
  if (number < NPY_USERDEF || PyDataType_ELSIZE(descr) != 2) {
    return false;
  }
  // Some releases name the type without its module.
  const char* name = descr->typeobj->tp_name;
  const char* dot = std::strrchr(name, '.');
  if (std::strcmp(dot != nullptr ? dot + 1 : name, "bfloat16") != 0) {
    return false;
  }
  known.store(number, std::memory_order_relaxed);
  return true;
}

// By kind and size: on one platform or another, two of C's integer types share a size.
// The dtype of a kind that is stored as a type of C, found at compile time.
template <Kind kind, class Stored>
bool is_kind(DType& dtype) {
  constexpr int number = dtype_numbers[static_cast<std::size_t>(kind)][sizeof(Stored)];
  static_assert(number >= 0);
  dtype = static_cast<DType>(number);
  return true;
}

bool dtype_of(PyArray_Descr* descr, DType& dtype) {
  switch (descr->type_num) {
    case NPY_HALF:
      return is_kind<Kind::floating, npy_half>(dtype);
    case NPY_FLOAT:
      return is_kind<Kind::floating, npy_float>(dtype);
    case NPY_DOUBLE:
      return is_kind<Kind::floating, npy_double>(dtype);
    case NPY_BOOL:
      return is_kind<Kind::boolean, npy_bool>(dtype);
    case NPY_BYTE:
      return is_kind<Kind::integer, npy_byte>(dtype);
    case NPY_SHORT:
      return is_kind<Kind::integer, npy_short>(dtype);
    case NPY_INT:
      return is_kind<Kind::integer, npy_int>(dtype);
    case NPY_LONG:
      return is_kind<Kind::integer, npy_long>(dtype);
    case NPY_LONGLONG:
      return is_kind<Kind::integer, npy_longlong>(dtype);
    case NPY_UBYTE:
      return is_kind<Kind::natural, npy_ubyte>(dtype);
    case NPY_USHORT:
      return is_kind<Kind::natural, npy_ushort>(dtype);
    case NPY_UINT:
      return is_kind<Kind::natural, npy_uint>(dtype);
    case NPY_ULONG:
      return is_kind<Kind::natural, npy_ulong>(dtype);
    case NPY_ULONGLONG:
      return is_kind<Kind::natural, npy_ulonglong>(dtype);
    default:
      return is_bfloat16(descr) && is_kind<Kind::bfloat, npy_half>(dtype);
  }
}

bool describe_numpy(PyArrayObject* array, ArrayView& view) {
  if (!dtype_of(PyArray_DESCR(array), view.dtype) || !PyArray_ISNOTSWAPPED(array)) {
    return false;
  }
  view.data = static_cast<char*>(PyArray_DATA(array));
  view.axes = PyArray_NDIM(array);
  view.shape = reinterpret_cast<const std::int64_t*>(PyArray_DIMS(array));
  view.strides = reinterpret_cast<const std::int64_t*>(PyArray_STRIDES(array));
  view.stride_unit = 1;
  view.writable = PyArray_ISWRITEABLE(array);
  view.count = 1;
  for (int axis = 0; axis < view.axes; ++axis) {
    view.count *= view.shape[axis];
  }
  view.c_contiguous = PyArray_IS_C_CONTIGUOUS(array);
  view.f_contiguous = PyArray_IS_F_CONTIGUOUS(array);
  return true;
}

// ---- torch, by DLPack's exchange table: 50 ns where __dlpack__ takes 3,000

// The two types whose tables are trusted. For subclasses (DTensor, FakeTensor) torch answers with a null pointer and
// the global shape, so they go the long way. The references are kept for good, so that an address cannot come to mean
// another type.
struct TorchTypes {
  PyTypeObject* tensor;
  PyTypeObject* parameter;
  const dlpack::ExchangeTable* table;
  py::object requires_grad;  // the descriptors of these attributes: a look-up by name takes 14 ns more
  py::object grad;
};

std::atomic<const TorchTypes*> known_torch{nullptr};

const TorchTypes* torch_types() { return known_torch.load(std::memory_order_acquire); }

bool is_plain(PyObject* object, const TorchTypes* types) {
  return types != nullptr && (Py_TYPE(object) == types->tensor || Py_TYPE(object) == types->parameter);
}

py::object get(PyObject* object, const py::object& descriptor, const char* name) {
  PyObject* value;
  if (Py_IS_TYPE(descriptor.ptr(), &PyGetSetDescr_Type)) {
    const PyGetSetDef* entry = reinterpret_cast<PyGetSetDescrObject*>(descriptor.ptr())->d_getset;
    value = entry->get(object, entry->closure);
  } else {
    value = PyObject_GetAttrString(object, name);
  }
  if (value == nullptr) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(value);
}

bool dtype_of(dlpack::DataType type, DType& dtype) {
  return type.lanes == 1 && type.bits % 8 == 0 && look_up(type.code, type.bits / 8u, dtype);
}

bool describe_torch(PyObject* object, ArrayView& view, int& device) {
  dlpack::Tensor tensor{};
  if (!exchange(object, tensor)) {
    return false;
  }
  const bool on_cuda = is_cuda(tensor.device.type);
  if (!on_cuda && tensor.device.type != dlpack::device_cpu && tensor.device.type != dlpack::device_cuda_host) {
    return false;
  }
  if (!dtype_of(tensor.dtype, view.dtype) || tensor.ndim > max_axes) {
    return false;
  }
  device = on_cuda ? tensor.device.id : on_host;
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.axes = tensor.ndim;
  view.shape = tensor.shape;
  view.strides = tensor.strides;
  view.stride_unit = static_cast<std::int64_t>(item_size(view.dtype));
  measure(view);
  if (tensor.data == nullptr && view.count != 0) {
    return false;  // no memory of its own: a wrapper
  }
  const TorchFlags flags = torch_flags(object, view);
  view.writable = flags.is_writable;
  if (!flags.has_elements) {
    return false;
  }
  return view.c_contiguous || view.f_contiguous || (on_cuda && make_layout(view, nullptr).weights_consecutive);
}

}  // namespace

void import_numpy() {
  if (PyArray_ImportNumPyAPI() < 0) {
    throw py::error_already_set();
  }
}

bool describe(PyObject* object, ArrayView& view, int& device) {
  if (PyArray_CheckExact(object)) {
    device = on_host;
    return describe_numpy(reinterpret_cast<PyArrayObject*>(object), view);
  }
  return describe_torch(object, view, device);
}

bool learn_torch(const py::object& tensor, const py::object& parameter, const TorchMemory& memory) {
  const py::object capsule = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
  auto* table =
      static_cast<const dlpack::ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::exchange_capsule_name));
  if (table == nullptr || table->header.version.major != 1 || table->tensor_from_py_object == nullptr) {
    PyErr_Clear();
    return false;  // an older torch
  }
  if (!learn_torch_memory(memory)) {
    return false;
  }
  capsule.inc_ref();
  known_torch.store(
      new TorchTypes{reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr()),
                     reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr()), table,
                     py::getattr(tensor, "requires_grad", py::none()), py::getattr(tensor, "grad", py::none())},
      std::memory_order_release);
  return true;
}

bool is_plain_torch(PyObject* object) { return is_plain(object, torch_types()); }

bool exchange(PyObject* object, dlpack::Tensor& tensor) {
  const TorchTypes* types = torch_types();
  if (!is_plain(object, types)) {
    return false;
  }
  if (types->table->tensor_from_py_object(object, &tensor) != 0) {
    PyErr_Clear();  // sparse, meta and wrapped tensors
    return false;
  }
  return true;
}

bool read_parameter(PyObject* object, const AutogradFields& fields, bool wants_grad, ParameterState& state) {
  const TorchTypes* types = torch_types();
  if (!is_plain(object, types)) {
    return false;
  }
  state.requires_grad =
      fields.surely_requires(object) || get(object, types->requires_grad, "requires_grad").ptr() == Py_True;
  if (state.requires_grad && wants_grad) {
    state.grad = fields.gradient(object);
    if (!state.grad) {
      state.grad = get(object, types->grad, "grad");
    }
  }
  return true;
}

bool requires_gradient(PyObject* object, const AutogradFields& fields) {
  const TorchTypes* types = torch_types();
  if (is_plain(object, types) && fields.surely_requires_none(object)) {
    return false;
  }
  return !is_plain(object, types) || get(object, types->requires_grad, "requires_grad").ptr() != Py_False;
}

bool torch_stream(int device, void*& stream) {
  const TorchTypes* types = torch_types();
  if (types == nullptr || types->table->current_work_stream == nullptr) {
    return false;
  }
  if (types->table->current_work_stream(dlpack::device_cuda, device, &stream) != 0) {
    PyErr_Clear();
    return false;
  }
  return true;
}

bool describe_view(PyObject* pair, ArrayView& view) {
  if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2 || !PyArray_Check(PyTuple_GET_ITEM(pair, 0)) ||
      !describe_numpy(reinterpret_cast<PyArrayObject*>(PyTuple_GET_ITEM(pair, 0)), view)) {
    return false;
  }
  const char* name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(pair, 1));
  if (name == nullptr) {
    PyErr_Clear();
    return false;
  }
  // What NumPy has no type for comes as its bits.
  const std::size_t size = item_size(view.dtype);
  for (int i = 0; i < dtype_count; ++i) {
    if (std::strcmp(name, dtype_rows[i].name) == 0) {
      view.dtype = static_cast<DType>(i);
      return dtype_rows[i].size == size;
    }
  }
  return false;
}

}  // namespace fastreg::python
