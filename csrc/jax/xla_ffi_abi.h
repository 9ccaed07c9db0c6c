// The binary interface of XLA's typed FFI, as far as it is used here: memory layouts only, declared anew so that
// jaxlib, whose header has all of it (jax.ffi.include_dir(), xla/ffi/api/c_api.h), need not be there to build.
// tests/with_jax/test_jax_abi.py compares the two. https://openxla.org/xla/custom_call
//
// Every structure begins with its size. Minor versions append; what a frame holds by value has the size that is
// declared here, or `is_as_declared` is false.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastreg::xla {

constexpr int api_major = 0;
constexpr int oldest_api_minor = 1;  // the first one of JAX 0.5, which has all that is below

enum DataType : std::int32_t {
  type_pred = 1,
  type_s8 = 2,
  type_s16 = 3,
  type_s32 = 4,
  type_s64 = 5,
  type_u8 = 6,
  type_u16 = 7,
  type_u32 = 8,
  type_u64 = 9,
  type_f16 = 10,
  type_f32 = 11,
  type_f64 = 12,
  type_bf16 = 16
};

enum ErrorCode : std::int32_t { error_invalid_argument = 3, error_resource_exhausted = 8, error_internal = 13 };

enum Stage : std::int32_t { stage_execute = 3 };
enum ExtensionType : std::int32_t { extension_metadata = 1 };
enum ArgumentType : std::int32_t { argument_buffer = 1 };
enum ResultType : std::int32_t { result_buffer = 1 };
enum AttributeType : std::int32_t { attribute_array = 1 };

struct Extension {
  std::size_t struct_size;
  ExtensionType type;
  Extension* next;
};

struct ApiVersion {
  std::size_t struct_size;
  Extension* extensions;
  std::int32_t major;
  std::int32_t minor;
};

// What XLA asks a handler for when it is registered, and the call's first extension then.
struct Metadata {
  std::size_t struct_size;
  ApiVersion api_version;  // out: what the handler was built for
  std::uint32_t traits;    // out: none
};
struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct Error;
struct ExecutionContext;

struct ErrorCreateArguments {
  std::size_t struct_size;
  Extension* extensions;
  const char* message;
  ErrorCode code;
};

struct StreamGetArguments {
  std::size_t struct_size;
  Extension* extensions;
  ExecutionContext* context;
  void* stream;  // out
};

struct Api {
  std::size_t struct_size;
  Extension* extensions;
  ApiVersion api_version;
  const void* internal_api;
  Error* (*error_create)(ErrorCreateArguments*);
  void* error_get_message;
  void (*error_destroy)(void*);
  void* handler_register;
  Error* (*stream_get)(StreamGetArguments*);
};

struct Buffer {
  std::size_t struct_size;
  Extension* extensions;
  DataType dtype;
  void* data;  // in C order
  std::int64_t rank;
  std::int64_t* dims;
};

struct Arguments {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  ArgumentType* types;
  void** values;
};

struct Results {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  ResultType* types;
  void** values;
};

struct ByteSpan {
  const char* data;
  std::size_t size;
};

struct Array {
  DataType dtype;
  std::size_t size;
  void* data;
};

struct Attributes {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  AttributeType* types;
  ByteSpan** names;
  void** values;
};

struct CallFrame {
  std::size_t struct_size;
  Extension* extensions;
  const Api* api;
  ExecutionContext* context;
  Stage stage;
  Arguments arguments;
  Results results;
  Attributes attributes;
  void* future;
};

// A frame's size ends with its attributes.
constexpr std::size_t least_frame_size = offsetof(CallFrame, attributes) + sizeof(Attributes);

inline bool is_as_declared(const CallFrame& frame) {
  return frame.struct_size >= least_frame_size && frame.arguments.struct_size == sizeof(Arguments) &&
         frame.results.struct_size == sizeof(Results) && frame.attributes.struct_size == sizeof(Attributes) &&
         frame.api != nullptr && frame.api->struct_size >= sizeof(Api);
}

using Handler = Error*(CallFrame*);

}  // namespace fastreg::xla
