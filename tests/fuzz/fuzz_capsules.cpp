// DLPack capsules that no library should make, through the core as Python imports it: what describes no array is
// refused before anything is read, what describes one has the right elements, and each capsule is freed once.
#include <Python.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "input.h"
#include "python/dlpack_abi.h"

namespace fastreg::fuzz {
namespace {

using dlpack::ManagedTensor;
using dlpack::ManagedTensorVersioned;

PyObject* judge = nullptr;                // of capsule_calls.py
constexpr Py_ssize_t capsule_count = 12;  // of one array; a call may ask for several
int living = 0;                           // descriptions that nobody has freed

PyObject* checked(PyObject* object) {
  if (object == nullptr) {
    PyErr_Print();
    std::abort();
  }
  return object;
}

struct Description {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  std::unique_ptr<char[]> memory;
};

template <class Managed>
struct Owned {
  Managed managed{};
  std::shared_ptr<Description> description;
};

template <class Managed>
constexpr const char* name_of = dlpack::capsule_name;
template <>
constexpr const char* name_of<ManagedTensorVersioned> = dlpack::versioned_capsule_name;

template <class Managed>
void free_managed(Managed* managed) {
  --living;
  delete static_cast<Owned<Managed>*>(managed->context);
}

template <class Managed>
void drop(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, name_of<Managed>) != 0) {
    free_managed(static_cast<Managed*>(PyCapsule_GetPointer(capsule, name_of<Managed>)));
  }
}

template <class Managed, class Prepare>
PyObject* make_capsule(const dlpack::Tensor& tensor, const std::shared_ptr<Description>& description, Prepare prepare) {
  auto* owned = new Owned<Managed>;
  owned->description = description;
  owned->managed.tensor = tensor;
  owned->managed.context = owned;
  owned->managed.deleter = free_managed<Managed>;
  prepare(owned->managed);
  ++living;
  return checked(PyCapsule_New(&owned->managed, name_of<Managed>, drop<Managed>));
}

// A tensor whose memory ends where its elements do.
dlpack::Tensor make_array(Input& input, Description& description, std::vector<std::int64_t>& offsets) {
  const DTypeRow& row = dtype_rows[input.below(dtype_count)];
  const std::int64_t size = row.size;
  description.shape = small_shape(input);
  description.strides.resize(description.shape.size());
  const int kind = input.below(3);
  std::int64_t step = 1;
  for (std::size_t k = description.shape.size(); k-- > 0;) {
    description.strides[k] = kind == 2 ? static_cast<std::int8_t>(input.byte()) % 8 : step;
    step *= description.shape[k] == 0 ? 1 : description.shape[k];
  }
  std::vector<std::int64_t> strides = description.strides;
  for (std::int64_t& stride : strides) {
    stride *= size;
  }
  offsets = offsets_in_c_order(description.shape, strides);
  std::int64_t low = 0;
  std::int64_t high = 0;
  for (const std::int64_t offset : offsets) {
    low = std::min(low, offset);
    high = std::max(high, offset + size);
  }
  description.memory.reset(new char[static_cast<std::size_t>(high - low)]);
  for (std::int64_t i = 0; i < high - low; ++i) {
    // No NaN, and no sum that is rounded: 0 or 1 in integers, multiples of small numbers in others.
    description.memory[static_cast<std::size_t>(i)] = static_cast<char>(i % size == 0 ? input.below(2) : 0);
  }
  dlpack::Tensor tensor{};
  tensor.byte_offset = static_cast<std::uint64_t>(input.below(3) * size);
  tensor.data = description.memory.get() - low - static_cast<std::int64_t>(tensor.byte_offset);
  tensor.device = {dlpack::device_cpu, 0};
  tensor.ndim = static_cast<std::int32_t>(description.shape.size());
  tensor.dtype = {static_cast<std::uint8_t>(row.kind), static_cast<std::uint8_t>(8 * size), 1};
  tensor.shape = description.shape.data();
  tensor.strides = kind == 0 && input.below(2) == 0 ? nullptr : description.strides.data();
  return tensor;
}

enum class Found { right, refused, not_to_be_read, of_other_dtype };

// Breaks something, or nothing.
Found spoil(Input& input, dlpack::Tensor& tensor, Description& description) {
  const bool is_empty = std::find(description.shape.begin(), description.shape.end(), 0) != description.shape.end();
  const auto some_axis = [&] { return static_cast<std::size_t>(input.below(tensor.ndim)); };
  const int kind = input.below(9);
  if (tensor.ndim == 0 && (kind == 1 || kind == 4 || kind == 6 || kind == 7)) {
    return Found::right;
  }
  switch (kind) {
    case 0:
      tensor.ndim = input.below(2) == 0 ? -1 - input.byte() : max_axes + 1 + (input.byte() << 20);
      return Found::refused;
    case 1:
      tensor.shape = nullptr;
      return Found::refused;
    case 2:
      tensor.dtype.lanes = input.raw<std::uint16_t>();
      return tensor.dtype.lanes == 1 ? Found::right : Found::of_other_dtype;
    case 3:
      tensor.dtype.bits = static_cast<std::uint8_t>(8 * input.byte() + input.below(8));
      tensor.dtype.code = static_cast<std::uint8_t>(input.byte());
      return tensor.dtype.bits == 0 || tensor.dtype.bits % 8 != 0 ? Found::of_other_dtype : Found::not_to_be_read;
    case 4:
      description.shape[some_axis()] = -1 - input.byte();
      return Found::refused;
    case 5:
      tensor.data = nullptr;
      return is_empty ? Found::not_to_be_read : Found::refused;
    case 6:
      description.shape[some_axis()] = static_cast<std::int64_t>(input.raw<std::uint64_t>() >> 1);
      return Found::not_to_be_read;
    case 7:
      description.strides[some_axis()] = input.raw<std::int64_t>();
      return Found::not_to_be_read;
    default:
      return Found::right;
  }
}

PyObject* tuple_of(const std::int64_t* numbers, std::size_t count) {
  PyObject* tuple = checked(PyTuple_New(static_cast<Py_ssize_t>(count)));
  for (std::size_t i = 0; i < count; ++i) {
    PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i), checked(PyLong_FromLongLong(numbers[i])));
  }
  return tuple;
}

void run(Input& input) {
  const auto description = std::make_shared<Description>();
  std::vector<std::int64_t> offsets;
  dlpack::Tensor tensor = make_array(input, *description, offsets);
  const int version = input.below(4);  // none, another, 1 and read-only, 1
  Found found = spoil(input, tensor, *description);
  if (version == 1) {
    found = Found::refused;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
  std::int64_t ones = 0;
  if (found == Found::right) {
    for (const std::int64_t offset : offsets) {
      ones += reinterpret_cast<const char*>(address)[offset];
    }
  }
  PyObject* capsules = checked(PyTuple_New(capsule_count));
  for (Py_ssize_t i = 0; i < capsule_count; ++i) {
    PyObject* capsule = nullptr;
    if (version == 0) {
      capsule = make_capsule<ManagedTensor>(tensor, description, [](ManagedTensor&) {});
    } else {
      capsule = make_capsule<ManagedTensorVersioned>(tensor, description, [&](ManagedTensorVersioned& managed) {
        managed.version = {version == 1 ? 2u : 1u, 0};
        managed.flags = version == 2 ? dlpack::flag_read_only : 0;
      });
    }
    PyTuple_SET_ITEM(capsules, i, capsule);
  }
  PyObject* strides = tensor.strides == nullptr ? (Py_INCREF(Py_None), Py_None)
                                                : tuple_of(description->strides.data(), description->strides.size());
  PyObject* shape = tuple_of(description->shape.data(), description->shape.size());
  PyObject* done = PyObject_CallFunction(judge, "iNKNNiiiiL", static_cast<int>(found), capsules,
                                         static_cast<unsigned long long>(address), shape, strides,
                                         static_cast<int>(tensor.dtype.code), static_cast<int>(tensor.dtype.bits),
                                         version != 0 ? 1 : 0, version == 3 ? 1 : 0, static_cast<long long>(ones));
  Py_DECREF(checked(done));
  REQUIRE(living == 0);
}

}  // namespace
}  // namespace fastreg::fuzz

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  // The interpreter that NumPy is installed for, and the core of this build.
  const auto set = [&](wchar_t** place, const char* text) {
    if (PyStatus_Exception(PyConfig_SetBytesString(&config, place, text)) != 0) {
      std::abort();
    }
  };
  set(&config.executable, FASTREG_FUZZ_PYTHON);
  set(&config.program_name, FASTREG_FUZZ_PYTHON);
  set(&config.pythonpath_env, FASTREG_FUZZ_PATH);
  if (PyStatus_Exception(Py_InitializeFromConfig(&config)) != 0) {
    std::abort();
  }
  PyConfig_Clear(&config);
  PyObject* module = fastreg::fuzz::checked(PyImport_ImportModule("capsule_calls"));
  fastreg::fuzz::judge = fastreg::fuzz::checked(PyObject_GetAttrString(module, "judge"));
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fastreg::fuzz::Input input(data, size);
  fastreg::fuzz::run(input);
  return 0;
}
