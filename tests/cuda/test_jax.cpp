// The functions that XLA calls, with frames made by hand: on the stand-in for CUDA, and on the host.
#include <cmath>
#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "canonical_sum.h"
#include "cuda/loader.h"
#include "jax/handlers.h"
#include "support.h"

// The backend that is linked here, in the place of a library that would be opened.
namespace fastreg {
const LoadedBackend& cuda_backend() {
  static const LoadedBackend loaded{fastreg_backend(), "", 2};
  return loaded;
}
}  // namespace fastreg

// XLA's errors are XLA's to define.
struct fastreg::xla::Error {
  std::string text;
  ErrorCode code;
};
struct fastreg::xla::ExecutionContext {
  cudaStream_t stream;
  bool fails;
};

namespace fastreg::test {
namespace {

using namespace fastreg::xla;

const std::vector<Coefficients> two_rules = {strengths_for(term_l1 | term_l2), strengths_for(term_l2)};

const Api api{sizeof(Api),
              nullptr,
              {sizeof(ApiVersion), nullptr, 0, 7},
              nullptr,
              [](ErrorCreateArguments* arguments) { return new Error{arguments->message, arguments->code}; },
              nullptr,
              [](void* arguments) { delete static_cast<Error**>(arguments)[2]; },  // after size and extensions
              nullptr,
              [](StreamGetArguments* arguments) -> Error* {
                arguments->stream = arguments->context->stream;
                return arguments->context->fails ? new Error{"no stream", error_internal} : nullptr;
              }};

DataType xla_type(DType dtype) {
  constexpr DataType types[] = {type_f16, type_bf16, type_f32, type_f64, type_pred, type_s8, type_s16,
                                type_s32, type_s64,  type_u8,  type_u16, type_u32,  type_u64};
  return types[static_cast<int>(dtype)];
}

// A call as XLA would make it; what it points to lives here.
class Frame {
 public:
  explicit Frame(cudaStream_t stream = nullptr) : context_{stream, false} {}

  void add_operand(DataType dtype, const void* data, Numbers dims) {
    operands_.push_back(&buffer(dtype, const_cast<void*>(data), std::move(dims)));
  }
  void add_result(DataType dtype, void* data, Numbers dims) {
    results_.push_back(&buffer(dtype, data, std::move(dims)));
  }
  void set_which(Numbers which) { which_ = std::move(which); }
  void set_constants(std::vector<double> constants) { constants_ = std::move(constants); }
  void fail_to_give_a_stream() { context_.fails = true; }

  // The text of the error; empty when all is well.
  std::string call(Handler& handler, void (*change)(CallFrame&) = nullptr) {
    std::vector<ArgumentType> argument_types(operands_.size(), argument_buffer);
    std::vector<ResultType> result_types(results_.size(), result_buffer);
    Array arrays[] = {{type_s64, which_.size(), which_.data()}, {type_f64, constants_.size(), constants_.data()}};
    ByteSpan spans[] = {{"which", 5}, {"constants", 9}};
    ByteSpan* names[] = {&spans[0], &spans[1]};
    void* values[] = {&arrays[0], &arrays[1]};
    AttributeType attribute_types[] = {attribute_array, attribute_array};
    CallFrame frame{
        sizeof(CallFrame),
        nullptr,
        &api,
        &context_,
        stage_execute,
        {sizeof(Arguments), nullptr, static_cast<std::int64_t>(operands_.size()), argument_types.data(),
         operands_.data()},
        {sizeof(Results), nullptr, static_cast<std::int64_t>(results_.size()), result_types.data(), results_.data()},
        {sizeof(Attributes), nullptr, constants_.empty() ? 1 : 2, attribute_types, names, values},
        nullptr};
    if (change != nullptr) {
      change(frame);
    }
    Error* error = handler(&frame);
    const std::string text = error != nullptr ? error->text : "";
    delete error;
    return text;
  }

 private:
  Buffer& buffer(DataType dtype, void* data, Numbers dims) {
    dims_.push_back(std::move(dims));
    return buffers_.emplace_back(Buffer{sizeof(Buffer), nullptr, dtype, data,
                                        static_cast<std::int64_t>(dims_.back().size()), dims_.back().data()});
  }

  ExecutionContext context_;
  std::deque<Numbers> dims_;
  std::deque<Buffer> buffers_;
  std::vector<void*> operands_;
  std::vector<void*> results_;
  Numbers which_;
  std::vector<double> constants_;
};

std::vector<Shape> shapes() {
  return {{DType::f32, 5037}, {DType::f16, 101, 0, 1}, {DType::f64, 4096}, {DType::i32, 33}};
}

// The strengths of a rule in device memory: two float64, or the same bits.
struct DeviceStrengths {
  explicit DeviceStrengths(const Coefficients& rule) : memory(2 * sizeof(double)) {
    const double pair[] = {rule.l1, rule.l2};
    std::memcpy(memory.data, pair, sizeof pair);  // the stand-in's memory is the host's
  }
  Memory memory;
};

void add_weights(Frame& frame, const DeviceCall& call) {
  Numbers which;
  for (std::size_t i = 0; i < call.item_count; ++i) {
    frame.add_operand(xla_type(call.items[i].dtype), call.items[i].weights, {call.items[i].count});
    which.push_back(call.items[i].strengths);
  }
  frame.set_which(which);
}

}  // namespace

TEST(jax_calls_on_a_stream) {
  for (const bool as_bits : {false, true}) {
    for (const bool knows_strengths : {false, true}) {
      stand_in::reset(1);
      cudaStream_t stream = nullptr;
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      Problem problem(shapes(), two_rules, output_value, 1);
      const DeviceCall call = problem.call(stream);
      Frame frame(stream);
      add_weights(frame, call);
      std::deque<DeviceStrengths> strengths;
      for (const Coefficients& rule : two_rules) {
        strengths.emplace_back(rule);
        frame.add_operand(as_bits ? type_u32 : type_f64, strengths.back().memory.data,
                          as_bits ? Numbers{2, 2} : Numbers{2});
      }
      const double unknown = std::nan("");
      frame.set_constants(knows_strengths
                              ? std::vector<double>{two_rules[0].l1, two_rules[0].l2, two_rules[1].l1, two_rules[1].l2}
                              : std::vector<double>{unknown, unknown, unknown, unknown});
      const auto tensors = static_cast<std::int64_t>(call.item_count);
      frame.add_result(as_bits ? type_u32 : type_f64, call.values, as_bits ? Numbers{tensors, 2} : Numbers{tensors});
      frame.add_result(as_bits ? type_u32 : type_f64, call.total, as_bits ? Numbers{2} : Numbers{});
      const std::size_t waits = stand_in::waits();
      CHECK(frame.call(evaluate_on_cuda).empty(), "a call on a stream");
      CHECK((stand_in::waits() == waits) == knows_strengths, "waits only for strengths that it does not know");
      CHECK(cudaDeviceSynchronize() == cudaSuccess, stand_in::refusal());
      problem.compare("a call from XLA");
    }
  }
}

TEST(jax_calls_of_a_batch) {
  stand_in::reset(1);
  Problem problem({{DType::f32, 300}, {DType::f32, 150}}, two_rules, output_value, 1);
  const DeviceCall call = problem.call();
  // The first tensor is a batch of three, the second is shared; so are the strengths.
  Frame frame;
  frame.add_operand(type_f32, call.items[0].weights, {3, 100});
  frame.add_operand(type_f32, call.items[1].weights, {1, 150});
  const DeviceStrengths strengths(two_rules[0]);
  frame.add_operand(type_f64, strengths.memory.data, {1, 2});
  frame.set_which({0, 0});
  const Memory values(6 * sizeof(double));
  const Memory totals(3 * sizeof(double));
  frame.add_result(type_f64, values.data, {3, 2});
  frame.add_result(type_f64, totals.data, {3});
  for (Handler* handler : {&evaluate_on_cuda, &evaluate_on_host}) {
    CHECK(frame.call(*handler).empty(), "a batch");
    CHECK(cudaDeviceSynchronize() == cudaSuccess, stand_in::refusal());
    double found[9];
    std::memcpy(found, values.data, 6 * sizeof(double));
    std::memcpy(found + 6, totals.data, 3 * sizeof(double));
    for (int element = 0; element < 3; ++element) {
      const Item items[] = {{problem.weights(0) + element * 400, nullptr, 100, two_rules[0], nullptr, DType::f32},
                            {problem.weights(1), nullptr, 150, two_rules[0], nullptr, DType::f32}};
      double expected[2];
      evaluate(items, 2, output_value, expected);
      CHECK(found[2 * element] == expected[0] && found[2 * element + 1] == expected[1], "values of", element);
      const double total = canonical_sum_in_place(expected, 2);
      CHECK(found[6 + element] == total, "total of", element);
    }
  }
}

TEST(jax_asks_for_the_version) {
  Frame frame;
  frame.call(evaluate_on_host, [](CallFrame& call) {
    static Metadata metadata{sizeof(Metadata), {}, 99};
    static MetadataExtension extension{{sizeof(MetadataExtension), extension_metadata, nullptr}, &metadata};
    call.extensions = &extension.base;
    CHECK(evaluate_on_host(&call) == nullptr, "an answer is no error");
    CHECK(metadata.api_version.major == api_major && metadata.api_version.minor == 7, metadata.api_version.minor);
    CHECK(metadata.traits == 0, metadata.traits);
    call.api = nullptr;
    CHECK(evaluate_on_cuda(&call) == nullptr && metadata.api_version.minor == oldest_api_minor, "without an API");
  });
}

TEST(jax_is_told_of_errors) {
  stand_in::reset(1);
  Problem problem({{DType::f32, 300}}, two_rules, output_value, 1);
  const DeviceCall call = problem.call();
  const DeviceStrengths strengths(two_rules[0]);
  const auto frame_of = [&](DataType weights, Numbers rule, DataType result) {
    Frame frame;
    frame.add_operand(weights, call.items[0].weights, {300});
    frame.add_operand(type_f64, strengths.memory.data, std::move(rule));
    frame.set_which({0});
    frame.add_result(result, call.values, {1});
    frame.add_result(result, call.total, {});
    return frame;
  };
  const auto must_tell = [](const std::string& text, const char* wanted) {
    CHECK(text == std::string("fastreg: ") + wanted, text);
  };
  must_tell(frame_of(static_cast<DataType>(15), {2}, type_f64).call(evaluate_on_host),
            "weights of a type that XLA numbers 15");
  must_tell(frame_of(type_f32, {3}, type_f64).call(evaluate_on_host), "a rule must have two strengths");
  must_tell(frame_of(type_f32, {2}, type_f16).call(evaluate_on_host), "results must be float32 or float64");
  must_tell(frame_of(type_f32, {2}, type_f32).call(evaluate_on_cuda),
            "results on CUDA must be float64, or its bits as uint32[..., 2]");
  must_tell(frame_of(type_f32, {2}, type_f64)
                .call(evaluate_on_host, [](CallFrame& frame) { frame.arguments.struct_size += 8; }),
            "this version of XLA lays calls out differently");
  must_tell(frame_of(type_f32, {2}, type_f64).call(evaluate_on_host, [](CallFrame& frame) { frame.stage = Stage{1}; }),
            "a handler of penalties can only be executed");
  Frame without_stream = frame_of(type_f32, {2}, type_f64);
  without_stream.fail_to_give_a_stream();
  must_tell(without_stream.call(evaluate_on_cuda), "XLA gives no stream for this call");
  stand_in::fail_launch(1, cudaErrorInvalidConfiguration);
  const std::string text = frame_of(type_f32, {2}, type_f64).call(evaluate_on_cuda);
  CHECK(text.find("launching a kernel") != std::string::npos, text);
  stand_in::drain();
  CHECK(problem.device_is_untouched(), "nothing was written");
}

}  // namespace fastreg::test
