#include "handlers.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <string>
#include <vector>

#include "../canonical_sum.h"
#include "../cpu/float_environment.h"
#include "../cuda/loader.h"
#include "../plan.h"
#include "request.h"

namespace fastreg::xla {
namespace {

struct Failure : std::runtime_error {
  Failure(ErrorCode error_code, const std::string& text) : std::runtime_error(text), code(error_code) {}
  ErrorCode code;
};

Error* make_error(const CallFrame& frame, ErrorCode code, const std::string& text) {
  const std::string message = "fastreg: " + text;
  ErrorCreateArguments arguments{sizeof(ErrorCreateArguments), nullptr, message.c_str(), code};
  return frame.api->error_create(&arguments);
}

// XLA registers a handler: it asks for the version that the handler was built for. All of a major version serve, and
// XLA refuses those that are newer than itself or too old.
bool answer_metadata(const CallFrame& frame) {
  for (Extension* extension = frame.extensions; extension != nullptr; extension = extension->next) {
    if (extension->type == extension_metadata) {
      Metadata& metadata = *reinterpret_cast<MetadataExtension*>(extension)->metadata;
      const bool is_known = frame.api != nullptr && frame.api->api_version.major == api_major;
      metadata.api_version = {sizeof(ApiVersion), nullptr, api_major,
                              is_known ? frame.api->api_version.minor : oldest_api_minor};
      metadata.traits = 0;
      return true;
    }
  }
  return false;
}

template <class Body>
Error* handle(CallFrame* frame, Body body) {
  if (answer_metadata(*frame)) {
    return nullptr;
  }
  if (!is_as_declared(*frame)) {
    return frame->api != nullptr ? make_error(*frame, error_internal, "this version of XLA lays calls out differently")
                                 : nullptr;
  }
  try {
    if (frame->stage != stage_execute) {
      throw Failure(error_invalid_argument, "a handler of penalties can only be executed");
    }
    body(Request(*frame));
    return nullptr;
  } catch (const Failure& failure) {
    return make_error(*frame, failure.code, failure.what());
  } catch (const BadRequest& error) {
    return make_error(*frame, error_invalid_argument, error.what());
  } catch (const std::bad_alloc&) {
    return make_error(*frame, error_resource_exhausted, "there is no memory for the sums");
  } catch (const std::exception& error) {
    return make_error(*frame, error_internal, error.what());
  }
}

// ---- the host

Coefficients coefficients_at(const Batched& rule, std::int64_t element) {
  const DataType dtype = rule.buffer().dtype;
  const auto size = static_cast<std::int64_t>(strengths_size(dtype)) / rule.count();
  const auto [l1, l2] =
      decode_strengths(dtype, static_cast<const char*>(rule.buffer().data) + rule.offset(element) * size);
  return make_coefficients(l1, l2, 1.0, 1.0);
}

void write(const Buffer& result, std::int64_t index, double value) {
  if (result.dtype == type_f64) {
    static_cast<double*>(result.data)[index] = value;
  } else {
    static_cast<float*>(result.data)[index] = static_cast<float>(value);
  }
}

void require_reals(const Buffer& result) {
  if (result.dtype != type_f32 && result.dtype != type_f64) {
    throw BadRequest("results must be float32 or float64");
  }
}

void evaluate_request(const Request& request) {
  const FloatEnvironment environment;
  require_reals(*request.values);
  require_reals(*request.total);
  const std::size_t tensors = request.weights.size();
  const auto batch = static_cast<std::size_t>(request.batch);
  std::vector<Item> items;
  items.reserve(batch * tensors);
  std::vector<Coefficients> coefficients(request.strengths.size());
  for (std::int64_t element = 0; element < request.batch; ++element) {
    for (std::size_t rule = 0; rule < coefficients.size(); ++rule) {
      coefficients[rule] = coefficients_at(request.strengths[rule], element);
    }
    for (std::size_t i = 0; i < tensors; ++i) {
      items.push_back({request.weights_of(i, element), nullptr, request.weights[i].count(),
                       coefficients[request.which[i]], nullptr, request.dtype_of(i)});
    }
  }
  std::vector<double> values(items.size());
  evaluate(items.data(), items.size(), output_value, values.data());
  for (std::size_t i = 0; i < values.size(); ++i) {
    write(*request.values, static_cast<std::int64_t>(i), values[i]);
  }
  for (std::int64_t element = 0; element < request.batch; ++element) {
    double* own = values.data() + static_cast<std::size_t>(element) * tensors;
    write(*request.total, element, canonical_sum_in_place(own, static_cast<std::int64_t>(tensors)));
  }
}

// ---- CUDA

void require(BackendStatus status, const BackendError& error) {
  switch (status) {
    case BackendStatus::ok:
      return;
    case BackendStatus::out_of_memory:
      throw Failure(error_resource_exhausted, error.text);
    case BackendStatus::bad_argument:
      throw Failure(error_invalid_argument, error.text);
    default:
      throw Failure(error_internal, error.text);
  }
}

class OnStream {
 public:
  OnStream(const Backend& backend, const CallFrame& frame, const Request& request) : backend_(backend) {
    StreamGetArguments arguments{sizeof(StreamGetArguments), nullptr, frame.context, nullptr};
    if (Error* failed = frame.api->stream_get(&arguments)) {
      struct {
        std::size_t struct_size;
        Extension* extensions;
        Error* error;
      } destroyed{sizeof destroyed, nullptr, failed};
      frame.api->error_destroy(&destroyed);
      throw Failure(error_internal, "XLA gives no stream for this call");
    }
    stream_ = arguments.stream;
    BackendError error;
    require(backend.device_of(request.total->data, &device_, &error), error);
  }

  void evaluate(const Request& request) const {
    const std::size_t tensors = request.weights.size();
    const std::size_t rules = request.strengths.size();
    std::vector<DeviceItem> items(tensors);
    std::vector<Coefficients> coefficients(rules);
    for (std::int64_t element = 0; element < request.batch; ++element) {
      for (std::size_t rule = 0; rule < rules; ++rule) {
        coefficients[rule] = coefficients_of(request, rule, element);
      }
      for (std::size_t i = 0; i < tensors; ++i) {
        items[i] = {request.weights_of(i, element),
                    nullptr,
                    request.weights[i].count(),
                    request.which[i],
                    request.dtype_of(i),
                    nullptr};
      }
      const DeviceCall call{device_,
                            stream_,
                            items.data(),
                            tensors,
                            coefficients.data(),
                            rules,
                            output_value,
                            static_cast<double*>(request.values->data) + static_cast<std::size_t>(element) * tensors,
                            static_cast<double*>(request.total->data) + element};
      BackendError error;
      require(backend_.evaluate(&call, nullptr, &error), error);
    }
  }

 private:
  Coefficients coefficients_of(const Request& request, std::size_t rule, std::int64_t element) const {
    if (!request.constants.empty() && !std::isnan(request.constants[2 * rule])) {
      return make_coefficients(request.constants[2 * rule], request.constants[2 * rule + 1], 1.0, 1.0);
    }
    const Batched& batched = request.strengths[rule];
    const DataType dtype = batched.buffer().dtype;
    const std::size_t size = strengths_size(dtype);
    char copy[2 * sizeof(double)];
    const auto offset = batched.offset(element) * static_cast<std::int64_t>(size) / batched.count();
    BackendError error;
    require(backend_.copy_to_host(device_, stream_, static_cast<const char*>(batched.buffer().data) + offset, size,
                                  copy, &error),
            error);
    const auto [l1, l2] = decode_strengths(dtype, copy);
    return make_coefficients(l1, l2, 1.0, 1.0);
  }

  const Backend& backend_;
  void* stream_ = nullptr;
  int device_ = 0;
};

void require_doubles(const Buffer& result) {
  if (result.dtype != type_f64 && (result.dtype != type_u32 || result.rank == 0 || result.dims[result.rank - 1] != 2)) {
    throw BadRequest("results on CUDA must be float64, or its bits as uint32[..., 2]");
  }
}

}  // namespace

Error* evaluate_on_host(CallFrame* frame) { return handle(frame, evaluate_request); }

Error* evaluate_on_cuda(CallFrame* frame) {
  return handle(frame, [frame](const Request& request) {
    const LoadedBackend& loaded = cuda_backend();
    if (loaded.backend == nullptr) {
      throw Failure(error_internal, "there is no CUDA here: " + loaded.reason);
    }
    const FloatEnvironment environment;
    require_doubles(*request.values);
    require_doubles(*request.total);
    OnStream(*loaded.backend, *frame, request).evaluate(request);
  });
}

}  // namespace fastreg::xla
