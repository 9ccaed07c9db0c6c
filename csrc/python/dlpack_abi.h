// The binary interface of DLPack 1.x, as far as it is read here: memory layouts only, declared anew so that nothing
// need be installed to build. https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace fastreg::dlpack {

enum DeviceType : std::int32_t { device_cpu = 1, device_cuda = 2, device_cuda_host = 3, device_cuda_managed = 13 };

constexpr bool is_cuda(DeviceType type) { return type == device_cuda || type == device_cuda_managed; }

struct Device {
  DeviceType type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

// What a capsule named "dltensor" holds, until its consumer renames it.
struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

// The same of "dltensor_versioned".
struct ManagedTensorVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedTensorVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

constexpr std::uint64_t flag_read_only = 1;

constexpr char capsule_name[] = "dltensor";
constexpr char versioned_capsule_name[] = "dltensor_versioned";

struct ExchangeHeader {
  Version version;
  ExchangeHeader* previous;  // the table of an older major version, or null
};

// What a tensor type's attribute `__dlpack_c_exchange_api__` holds, in a capsule named "dlpack_exchange_api".
struct ExchangeTable {
  ExchangeHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object;
  void* managed_tensor_to_py_object;
  // Fills a description that borrows from the object; may be null. Nonzero with a Python error set on failure.
  int (*tensor_from_py_object)(void* py_object, Tensor* out);
  int (*current_work_stream)(DeviceType type, std::int32_t id, void** out);
};

constexpr char exchange_capsule_name[] = "dlpack_exchange_api";

}  // namespace fastreg::dlpack
