#include "request.h"

#include <cstring>
#include <string>
#include <string_view>

namespace fastreg::xla {
namespace {

template <class Frame>
const Buffer& buffer_at(const Frame& list, std::int64_t index, const char* what) {
  if (static_cast<int>(list.types[index]) != static_cast<int>(argument_buffer)) {
    throw BadRequest(std::string(what) + " " + std::to_string(index) + " is no buffer");
  }
  return *static_cast<const Buffer*>(list.values[index]);
}

// The array of this name; null if there is none.
const Array* find_array(const Attributes& attributes, std::string_view name) {
  for (std::int64_t i = 0; i < attributes.size; ++i) {
    if (std::string_view(attributes.names[i]->data, attributes.names[i]->size) == name) {
      if (attributes.types[i] != attribute_array) {
        throw BadRequest("attribute " + std::string(name) + " is no array");
      }
      return static_cast<const Array*>(attributes.values[i]);
    }
  }
  return nullptr;
}

DType to_dtype(DataType type) {
  for (int i = 0; i < dtype_count; ++i) {
    if (dtype_rows[i].xla == static_cast<std::int32_t>(type)) {
      return static_cast<DType>(i);
    }
  }
  throw BadRequest("weights of a type that XLA numbers " + std::to_string(static_cast<int>(type)));
}

template <class T>
T at(const void* data, std::size_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * sizeof value, sizeof value);
  return value;
}

template <class T>
std::pair<double, double> pair_at(const void* data) {
  return {static_cast<double>(at<T>(data, 0)), static_cast<double>(at<T>(data, 1))};
}

}  // namespace

Batched::Batched(const Buffer& buffer, BatchAxes axes) : buffer_(&buffer), axes_(axes) {
  if (buffer.rank < axes.count) {
    throw BadRequest("an operand has fewer axes than the batch");
  }
  for (std::int64_t axis = 0; axis < buffer.rank; ++axis) {
    if (axis >= axes.count) {
      count_ *= buffer.dims[axis];
    } else if (buffer.dims[axis] != 1 && buffer.dims[axis] != axes.extents[axis]) {
      throw BadRequest("an operand does not fit the batch");
    }
  }
}

std::int64_t Batched::offset(std::int64_t element) const {
  std::int64_t index = 0;
  std::int64_t stride = 1;
  for (std::int64_t axis = axes_.count; axis-- > 0;) {
    index += stride * (buffer_->dims[axis] == 1 ? 0 : element % axes_.extents[axis]);
    stride *= buffer_->dims[axis];
    element /= axes_.extents[axis];
  }
  return index * count_;
}

Request::Request(const CallFrame& frame) {
  const Array* which_array = find_array(frame.attributes, "which");
  if (which_array == nullptr || which_array->dtype != type_s64) {
    throw BadRequest("attribute which must be int64 numbers");
  }
  const std::int64_t tensors = static_cast<std::int64_t>(which_array->size);
  const std::int64_t rules = frame.arguments.size - tensors;
  if (rules < 0 || frame.results.size != 2) {
    throw BadRequest("there must be an operand for each tensor and rule, and two results");
  }
  values = &buffer_at(frame.results, 0, "result");
  total = &buffer_at(frame.results, 1, "result");
  // A result of bits has two numbers for one.
  const BatchAxes axes{total->dims, total->rank - (total->dtype == type_u32 ? 1 : 0)};
  for (std::int64_t axis = 0; axis < axes.count; ++axis) {
    batch *= axes.extents[axis];
  }
  for (std::int64_t i = 0; i < frame.arguments.size; ++i) {
    (i < tensors ? weights : strengths).emplace_back(buffer_at(frame.arguments, i, "operand"), axes);
  }
  for (const Batched& tensor : weights) {
    to_dtype(tensor.buffer().dtype);
  }
  for (const Batched& rule : strengths) {
    if (rule.count() != (rule.buffer().dtype == type_u32 ? 4 : 2)) {
      throw BadRequest("a rule must have two strengths");
    }
    strengths_size(rule.buffer().dtype);
  }
  for (std::size_t i = 0; i < which_array->size; ++i) {
    const auto rule = at<std::int64_t>(which_array->data, i);
    if (rule < 0 || rule >= rules) {
      throw BadRequest("which must hold indices of rules");
    }
    which.push_back(static_cast<std::uint32_t>(rule));
  }
  if (const Array* array = find_array(frame.attributes, "constants")) {
    if (array->dtype != type_f64 || array->size != 2 * strengths.size()) {
      throw BadRequest("attribute constants must be two float64 for each rule");
    }
    for (std::size_t i = 0; i < array->size; ++i) {
      constants.push_back(at<double>(array->data, i));
    }
  }
}

DType Request::dtype_of(std::size_t tensor) const { return to_dtype(weights[tensor].buffer().dtype); }

const void* Request::weights_of(std::size_t tensor, std::int64_t element) const {
  const Batched& batched = weights[tensor];
  return static_cast<const char*>(batched.buffer().data) +
         batched.offset(element) * static_cast<std::int64_t>(item_size(dtype_of(tensor)));
}

std::size_t strengths_size(DataType dtype) {
  switch (dtype) {
    case type_f32:
      return 2 * sizeof(float);
    case type_f64:
    case type_u32:
      return 2 * sizeof(double);
    default:
      throw BadRequest("strengths must be float32, float64, or the bits of float64 as uint32");
  }
}

std::pair<double, double> decode_strengths(DataType dtype, const void* data) {
  return dtype == type_f32 ? pair_at<float>(data) : pair_at<double>(data);
}

}  // namespace fastreg::xla
