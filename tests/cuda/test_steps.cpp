// The steps of optimizers: the bits of the CPU engine, whoever knows the numbers, the host or the device.
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "canonical_sum.h"
#include "steps.h"
#include "support.h"

namespace fastreg::test {
namespace {

constexpr int operand_count = 5;
enum Place { parameters, gradients, first, second, largest };

// A tensor of a step: as it lies in memory, each array with strides of its own where it has extents.
struct StepShape {
  DType dtype;
  std::int64_t count;
  bool is_converted = false;
  int offset = 0;
  int settings = 0;
  // NOLINTBEGIN(readability-redundant-member-init)
  Numbers extents = {};
  std::array<Numbers, operand_count> strides = {};
  // NOLINTEND(readability-redundant-member-init)
};

StepSettings sgd(Mode mode, unsigned flags = 0, double momentum = 0.9) {
  StepSettings s{};
  s.algorithm = Algorithm::sgd;
  s.mode = mode;
  s.flags = flags;
  s.lr = 0.0731;
  s.momentum = momentum;
  s.dampening = (flags & flag_nesterov) != 0 ? 0.0 : 0.13;
  s.weight_decay = 0.017;
  s.l1 = mode == Mode::none ? 0.0 : 0.21;
  s.l2 = mode == Mode::none ? 0.0 : 0.37;
  s.factor = 0.0731;
  return s;
}

StepSettings adamw(Mode mode, unsigned flags = 0) {
  StepSettings s = sgd(mode, flags, 0.0);
  s.algorithm = Algorithm::adamw;
  s.dampening = 0.0;
  s.beta1 = 0.9;
  s.beta2 = 0.997;
  s.eps = 1e-8;
  return s;
}

struct Options {
  Clip clip = Clip::none;
  double loss_scale = 1.0;
  double max_norm = 0.0;
  bool measures = false;
  bool skips_nonfinite = false;
  bool scale_on_device = false;
  float found_inf = 0.0f;
  bool counts_on_host = false;
  bool numbers_on_device = false;  // those that follow, which the settings then lack
  bool numbers_are_f64 = false;
  double lr = 0.0;
  double initial_lr = 1.0;
  double strength = 1.0;
};

// A graph that has been captured, and is replayed on its stream.
class Graph {
 public:
  template <class Queue>
  explicit Graph(Queue queue) {
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    recording = queue(stream);
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream, &graph);
    CHECK(cudaGraphInstantiate(&executable_, graph, 0) == cudaSuccess, stand_in::refusal());
    cudaGraphDestroy(graph);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    cudaGraphExecDestroy(executable_);
    if (recording != nullptr) {
      fastreg_backend()->forget(recording);
    }
  }

  void replay(const std::string& what) const {
    CHECK(cudaGraphLaunch(executable_, stream) == cudaSuccess, what, stand_in::refusal());
    CHECK(cudaDeviceSynchronize() == cudaSuccess, what, stand_in::refusal());
  }

  cudaStream_t stream = nullptr;
  Recording* recording = nullptr;

 private:
  cudaGraphExec_t executable_ = nullptr;
};

bool same(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b) || (std::isnan(a) && std::isnan(b));
}

// Tensors on the device, and the CPU's copy of them.
class StepTensors {
 public:
  StepTensors(std::vector<StepShape> shapes, std::vector<StepSettings> settings, std::uint64_t seed)
      : shapes_(std::move(shapes)),
        settings_(std::move(settings)),
        taken_(shapes_.size()),
        numbers_(16 * sizeof(double)),
        penalties_(shapes_.size() * sizeof(double)),
        zeros_(shapes_.size() * sizeof(std::int64_t)),
        counters_((shapes_.size() + 2) * sizeof(std::int64_t)) {
    std::memset(counters_.data, 0, (shapes_.size() + 2) * sizeof(std::int64_t));
    for (const StepShape& shape : shapes_) {
      StepItem item{};
      item.count = shape.count;
      item.dtype = shape.dtype;
      item.gradient_dtype = dtype_of(shape, gradients);
      host_items_.push_back(item);
      device_items_.push_back(item);
      for (int place = 0; place < operand_count; ++place) {
        make(shape, static_cast<Place>(place), ++seed);
      }
    }
  }

  void take(const std::string& what, const Options& options = {}) {
    const double factor = options.clip == Clip::none ? 1.0 : 0.37;
    set_rules(options, factor);
    StepCall call = call_for(StepTask::take);
    call.clip = options.clip;
    run(call, what);
    step_host();
    compare(what);
    for (std::int64_t& one : taken_) {
      ++one;
    }
  }

  void measure(const std::string& what, const Options& options, int exponent = 0) {
    set_rules(options, 1.0);
    std::vector<Norm> found(shapes_.size());
    StepCall call = call_for(StepTask::measure);
    call.clip = options.clip;
    call.exponent = exponent;
    call.norms = found.data();
    run(call, what);
    std::vector<Norm> wanted(shapes_.size());
    measure_steps(host_items_.data(), host_items_.size(), options.clip, exponent, wanted.data());
    for (std::size_t i = 0; i < found.size(); ++i) {
      CHECK(same(found[i].l2, wanted[i].l2), "wrong squares:", what, "tensor", i, found[i].l2, wanted[i].l2);
      if (exponent == 0) {
        CHECK(same(found[i].maximum, wanted[i].maximum), "wrong maximum:", what, "tensor", i, found[i].maximum);
        CHECK(found[i].nonfinite == wanted[i].nonfinite, "wrong non-finite:", what, "tensor", i, found[i].nonfinite);
      }
    }
  }

  // All of it decided on the device.
  void decide(const std::string& what, const Options& options) {
    tell(options);
    queue(what, options, nullptr);
    CHECK(cudaDeviceSynchronize() == cudaSuccess, what, stand_in::refusal());
    compare_decided(what, options);
  }

  // The same by a graph that was captured with `queue`.
  void replay(const std::string& what, const Options& options, const Graph& graph) {
    tell(options);
    graph.replay(what);
    compare_decided(what, options);
  }

  // Puts what the device reads where it does.
  void tell(const Options& options) {
    const float scales[] = {static_cast<float>(options.loss_scale), options.found_inf};
    std::memcpy(numbers_.data + 64, scales, sizeof scales);
    const double numbers[] = {options.lr, options.strength};
    for (std::size_t i = 0; i < std::size(numbers); ++i) {
      const auto rounded = static_cast<float>(numbers[i]);
      char* const place = numbers_.data + 96 + 8 * i;
      options.numbers_are_f64 ? std::memcpy(place, numbers + i, sizeof numbers[i])
                              : std::memcpy(place, &rounded, sizeof rounded);
    }
  }

  Recording* queue(const std::string& what, const Options& options, cudaStream_t stream) {
    set_rules(options, 1.0);
    std::vector<StepSettings> settings;
    std::vector<std::int64_t*> taken;
    std::vector<NumbersThere> numbers;
    auto* const counters = reinterpret_cast<std::int64_t*>(counters_.data);
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      settings.push_back(settings_of(i));
      if (options.numbers_on_device) {
        settings.back().lr = settings.back().factor = 1e30;
        numbers.push_back({numbers_.data + 96, options.numbers_are_f64, options.initial_lr, numbers_.data + 104,
                           options.numbers_are_f64});
      }
      // Some are counted by the host, which cannot know of a step that is skipped.
      taken.push_back(options.counts_on_host ? nullptr : counters + i);
    }
    StepOnDevice there{};
    there.settings = settings.data();
    there.there = options.numbers_on_device ? numbers.data() : nullptr;
    there.loss_scale = options.scale_on_device ? 3e5 : options.loss_scale;
    there.loss_scale_there = options.scale_on_device ? reinterpret_cast<float*>(numbers_.data + 64) : nullptr;
    there.found_inf = reinterpret_cast<float*>(numbers_.data + 68);
    there.taken = taken.data();
    there.steps = taken_.data();
    there.optimizer_taken = counters + shapes_.size();
    there.skipped = counters + shapes_.size() + 1;
    there.measures = options.measures;
    there.skips_nonfinite = options.skips_nonfinite;
    there.max_norm = options.max_norm;
    there.norm = reinterpret_cast<double*>(numbers_.data + 32);
    StepCall call = call_for(StepTask::take);
    call.stream = stream;
    call.clip = options.clip;
    call.on_device = &there;
    Recording* recording = nullptr;
    BackendError error;
    CHECK(fastreg_backend()->steps(&call, &recording, &error) == BackendStatus::ok, what, error.text);
    return recording;
  }

  // Of a step that was queued with what `tell` has put there: it is taken on the host as well.
  void compare_decided(const std::string& what, const Options& options) {
    set_rules(options, 1.0);
    const auto* const counters = reinterpret_cast<const std::int64_t*>(counters_.data);
    double norm = 0.0;
    double factor = 1.0;
    bool is_finite = true;
    if (options.measures) {
      norm = norm_on_host(options, factor, is_finite);
      double found;
      std::memcpy(&found, numbers_.data + 32, sizeof found);
      CHECK(same(found, norm), "wrong norm:", what, found, "is not", norm);
    }
    const bool skips = options.found_inf != 0.0f || (options.skips_nonfinite && !is_finite);
    set_rules(options, factor);
    if (skips) {
      keep_host();
    } else {
      step_host();
      steps_ += 1;
      for (std::int64_t& one : taken_) {
        ++one;
      }
    }
    compare(what);
    for (std::size_t i = 0; i < shapes_.size() && !options.counts_on_host; ++i) {
      CHECK(counters[i] == taken_[i], "wrong count of steps:", what, "tensor", i, counters[i], "is not", taken_[i]);
    }
    CHECK(counters[shapes_.size()] == steps_, "wrong count of all steps:", what);
    CHECK(counters[shapes_.size() + 1] == (skips ? 1 : 0), "wrongly skipped or taken:", what);
  }

  void put(std::size_t tensor, Place place, double number) {
    for (std::vector<StepItem>* items : {&device_items_, &host_items_}) {
      auto* const data = operand((*items)[tensor], place).data;
      if (dtype_of(shapes_[tensor], place) == DType::f64) {
        *static_cast<double*>(data) = number;
      } else {
        *static_cast<float*>(data) = static_cast<float>(number);
      }
    }
  }

  // New settings, here and for the replays to come.
  void set_settings(const std::vector<StepSettings>& settings, const Graph& graph) {
    settings_ = settings;
    std::vector<StepSettings> of_items;
    of_items.reserve(shapes_.size());
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      of_items.push_back(settings_of(i));
    }
    BackendError error;
    CHECK(fastreg_backend()->set_settings(graph.recording, of_items.data(), of_items.size(), graph.stream, &error) ==
              BackendStatus::ok,
          error.text);
    CHECK(fastreg_backend()->set_settings(graph.recording, of_items.data(), 1, graph.stream, &error) ==
              BackendStatus::bad_argument,
          "another number of settings was taken");
  }

  void count_from(std::int64_t taken) {
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      taken_[i] = taken;
      reinterpret_cast<std::int64_t*>(counters_.data)[i] = taken;
    }
  }

 private:
  static DType dtype_of(const StepShape& shape, Place place) {
    const bool is_own = place == parameters || (place == gradients && !shape.is_converted);
    return is_own ? shape.dtype : arithmetic_of(shape.dtype);
  }

  static StepOperand& operand(StepItem& item, Place place) {
    StepOperand* const all[] = {&item.parameters, &item.gradients, &item.first, &item.second, &item.largest};
    return *all[place];
  }

  void make(const StepShape& shape, Place place, std::uint64_t seed) {
    const DType dtype = dtype_of(shape, place);
    const std::size_t size = item_size(dtype);
    const Numbers& strides = shape.strides[place];
    std::int64_t elements = shape.count;
    std::int64_t below = 0;
    if (!shape.extents.empty() && shape.count != 0) {
      elements = 1;
      for (std::size_t axis = 0; axis < strides.size(); ++axis) {
        const std::int64_t reach = (shape.extents[axis] - 1) * strides[axis];
        elements += std::abs(reach);
        below += std::max<std::int64_t>(0, -reach);
      }
    }
    const std::size_t skipped = static_cast<std::size_t>(shape.offset) * size;
    const std::size_t bytes = static_cast<std::size_t>(elements) * size;
    memory_.push_back(std::make_unique<Memory>(skipped + bytes));
    char* const data = memory_.back()->data + skipped;
    fill(data, dtype, elements, seed);
    if (place == second || place == largest) {  // squares
      for (std::int64_t i = 0; i < elements; ++i) {
        char& last = data[static_cast<std::size_t>(i + 1) * size - 1];
        last = static_cast<char>(last & 0x7f);
      }
    }
    host_.emplace_back(data, data + bytes);
    const std::size_t origin = static_cast<std::size_t>(below) * size;
    StepOperand& there = operand(device_items_.back(), place);
    StepOperand& here = operand(host_items_.back(), place);
    there.data = data + origin;
    here.data = host_.back().data() + origin;
    spans_.push_back({data, bytes, dtype});
    if (shape.extents.empty() || shape.count == 0) {
      return;
    }
    const auto view_of = [&](Place of) {
      ArrayView view;
      view.shape = shape.extents.data();
      view.strides = shape.strides[of].data();
      view.dtype = dtype_of(shape, of);
      view.stride_unit = static_cast<std::int64_t>(item_size(view.dtype));
      view.axes = static_cast<int>(shape.extents.size());
      fastreg::measure(view);
      return view;
    };
    const ArrayView weights = view_of(parameters);
    const ArrayView other = view_of(place);
    auto layout = std::make_unique<Layout>(make_layout(weights, place == parameters ? nullptr : &other));
    if (place == parameters ? !layout->weights_consecutive : !layout->gradients_consecutive) {
      layouts_.push_back(std::move(layout));
      there.layout = here.layout = layouts_.back().get();
    }
  }

  // What the host has of the settings, and what the device makes of them.
  const StepSettings& settings_of(std::size_t i) const {
    return settings_[static_cast<std::size_t>(shapes_[i].settings)];
  }
  StepSettings settings_with(const Options& options, std::size_t i) const {
    StepSettings found = settings_of(i);
    if (options.numbers_on_device) {
      const auto read = [&](double number) {
        return options.numbers_are_f64 ? number : static_cast<double>(static_cast<float>(number));
      };
      found.lr = read(options.lr);
      found.factor = found.lr / options.initial_lr;
      found.l1 = found.l1 * read(options.strength);
      found.l2 = found.l2 * read(options.strength);
    }
    return found;
  }

  void set_rules(const Options& options, double factor) {
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      host_items_[i].rule = rule_of(settings_with(options, i), taken_[i], options.loss_scale, options.clip, factor);
      device_items_[i].rule = host_items_[i].rule;
    }
  }

  StepCall call_for(StepTask task) {
    StepCall call{};
    call.task = task;
    call.items = device_items_.data();
    call.item_count = device_items_.size();
    if (task == StepTask::take) {
      call.penalties = reinterpret_cast<double*>(penalties_.data);
      call.zeros = reinterpret_cast<std::int64_t*>(zeros_.data);
      call.penalty = reinterpret_cast<double*>(numbers_.data);
      call.all_zeros = reinterpret_cast<std::int64_t*>(numbers_.data + 8);
    }
    return call;
  }

  static void run(const StepCall& call, const std::string& what) {
    BackendError error;
    const BackendStatus status = fastreg_backend()->steps(&call, nullptr, &error);
    CHECK(status == BackendStatus::ok, what, error.text);
    CHECK(cudaDeviceSynchronize() == cudaSuccess, what, stand_in::refusal());
  }

  void step_host() {
    host_penalties_.resize(shapes_.size());
    host_zeros_.resize(shapes_.size());
    take_steps(host_items_.data(), host_items_.size(), host_penalties_.data(), host_zeros_.data());
  }

  // What a skipped step reports: penalties and zeros as they are.
  void keep_host() {
    host_penalties_.assign(shapes_.size(), 0.0);
    host_zeros_.assign(shapes_.size(), 0);
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      const StepItem& item = host_items_[i];
      if (item.rule.counts) {
        Norm norm;
        const NormItem one{item.parameters.data, item.count, item.parameters.layout, item.dtype};
        measure_items(&one, 1, 0, &norm);
        host_penalties_[i] = penalty_value(item.rule.coefficients, norm.l1, norm.l2);
        host_zeros_[i] = norm.zeros;
      }
    }
  }

  // What Python does on the host (fastreg/_engine/totals.py).
  double norm_on_host(const Options& options, double& factor, bool& is_finite) {
    std::vector<Norm> norms(shapes_.size());
    const auto squares = [&](int exponent) {
      measure_steps(host_items_.data(), host_items_.size(), options.clip, exponent, norms.data());
      std::vector<double> terms;
      terms.reserve(norms.size());
      for (const Norm& norm : norms) {
        terms.push_back(norm.l2);
      }
      return canonical_sum_in_place(terms.data(), static_cast<std::int64_t>(terms.size()));
    };
    const double plain = squares(0);
    double most = 0.0;
    for (const Norm& norm : norms) {
      is_finite = is_finite && norm.nonfinite == 0;
      most = std::isnan(norm.maximum) || norm.maximum > most ? norm.maximum : most;
    }
    int exponent = 0;
    if (std::isfinite(most) && most != 0.0) {
      std::frexp(most, &exponent);
      exponent = exponent - 1 >= -400 && exponent - 1 <= 400 ? 0 : 1 - exponent;
    }
    const double scaled_norm = std::sqrt(exponent == 0 ? plain : squares(exponent));
    const double norm = std::ldexp(scaled_norm, -exponent);
    const int power = std::min(exponent, 0);
    const double quotient =
        std::ldexp(options.max_norm, power) / ((exponent < 0 ? scaled_norm : norm) + std::ldexp(1e-6, power));
    factor = quotient > 1.0 ? 1.0 : quotient;
    return norm;
  }

  void compare(const std::string& what) const {
    static const char* const names[] = {"parameters", "gradients", "first", "second", "largest"};
    for (std::size_t i = 0; i < spans_.size(); ++i) {
      const std::int64_t place =
          first_difference(spans_[i].dtype, host_[i].data(), spans_[i].data,
                           static_cast<std::int64_t>(spans_[i].bytes / item_size(spans_[i].dtype)));
      CHECK(place < 0, "wrong", names[i % operand_count], ":", what, "tensor", i / operand_count, "element", place);
    }
    std::vector<double> counted;
    std::int64_t zeros = 0;
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      if (!host_items_[i].rule.counts) {
        continue;
      }
      double penalty;
      std::int64_t found;
      std::memcpy(&penalty, penalties_.data + counted.size() * sizeof penalty, sizeof penalty);
      std::memcpy(&found, zeros_.data + counted.size() * sizeof found, sizeof found);
      CHECK(same(penalty, host_penalties_[i]), "wrong penalty:", what, "tensor", i, penalty, "is not",
            host_penalties_[i]);
      CHECK(found == host_zeros_[i], "wrong zeros:", what, "tensor", i, found, "are not", host_zeros_[i]);
      counted.push_back(host_penalties_[i]);
      zeros += host_zeros_[i];
    }
    double total;
    std::int64_t all;
    std::memcpy(&total, numbers_.data, sizeof total);
    std::memcpy(&all, numbers_.data + 8, sizeof all);
    CHECK(same(total, canonical_sum_in_place(counted.data(), static_cast<std::int64_t>(counted.size()))),
          "wrong total:", what, total);
    CHECK(all == zeros, "wrong total of zeros:", what, all, "are not", zeros);
  }

  struct DeviceSpan {
    char* data;
    std::size_t bytes;
    DType dtype;
  };

  std::vector<StepShape> shapes_;
  std::vector<StepSettings> settings_;
  std::vector<std::int64_t> taken_;
  std::int64_t steps_ = 0;
  std::vector<std::unique_ptr<Memory>> memory_;
  std::vector<std::vector<char>> host_;
  std::vector<DeviceSpan> spans_;
  std::vector<std::unique_ptr<Layout>> layouts_;
  std::vector<StepItem> device_items_;
  std::vector<StepItem> host_items_;
  std::vector<double> host_penalties_;
  std::vector<std::int64_t> host_zeros_;
  Memory numbers_;  // penalty, zeros, norm, and what the device is told
  Memory penalties_;
  Memory zeros_;
  Memory counters_;
};

std::vector<StepSettings> all_settings() {
  std::vector<StepSettings> all;
  for (const Mode mode : {Mode::none, Mode::gradient, Mode::proximal, Mode::decoupled}) {
    for (const unsigned flags : {0u, unsigned{flag_nesterov}, unsigned{flag_maximize} | flag_cautious}) {
      all.push_back(sgd(mode, flags));
    }
    all.push_back(sgd(mode, 0, 0.0));
    for (const unsigned flags : {0u, unsigned{flag_amsgrad}, unsigned{flag_maximize} | flag_cautious | flag_amsgrad}) {
      all.push_back(adamw(mode, flags));
    }
  }
  all.push_back(adamw(Mode::scaled));
  all.push_back(adamw(Mode::scaled, flag_amsgrad));
  // An absent strength leaves its operation out.
  for (const Mode mode : {Mode::gradient, Mode::proximal, Mode::scaled, Mode::decoupled}) {
    StepSettings only = adamw(mode);
    only.l1 = 0.0;
    all.push_back(only);
    only.l1 = 0.2;
    only.l2 = 0.0;
    only.weight_decay = 0.0;
    all.push_back(only);
  }
  return all;
}

std::string name_of(const StepSettings& s) {
  return std::string(s.algorithm == Algorithm::sgd ? "sgd" : "adamw") + " mode " +
         std::to_string(static_cast<int>(s.mode)) + " flags " + std::to_string(s.flags);
}

Options options_of(std::uint64_t seed) {
  Options options;
  options.clip = static_cast<Clip>(seed % 3);
  options.loss_scale = seed % 2 == 0 ? 1.0 : 1024.0;
  return options;
}

void take_each(const std::vector<std::int64_t>& sizes) {
  std::uint64_t seed = 0;
  for (const StepSettings& settings : all_settings()) {
    for (const DType dtype : floating_dtypes) {
      stand_in::reset(++seed);
      stand_in::set_processors(1 + static_cast<int>(seed % 3), 1);
      std::vector<StepShape> shapes;
      for (const std::int64_t size : sizes) {
        const bool is_converted = shapes.size() % 2 != 0 && dtype != DType::f32 && dtype != DType::f64;
        shapes.push_back({dtype, size, is_converted, static_cast<int>(seed % 2)});
      }
      StepTensors tensors(shapes, {settings}, seed);
      const std::string what = name_of(settings) + " " + fastreg::name_of(dtype);
      tensors.take(what + " first", options_of(seed));
      tensors.take(what, options_of(seed + 1));
    }
  }
}

// Tensors of all dtypes, with rules and without, some of them strided.
std::vector<StepShape> mixed(int count, std::int64_t longest, int settings) {
  std::vector<StepShape> shapes;
  for (int i = 0; i < count; ++i) {
    const std::int64_t size = (std::int64_t{7919} * i * i + 13 * i) % (longest + 1);
    const DType dtype = floating_dtypes[i * 7 % 4];
    StepShape shape{dtype, size, i % 3 == 0 && item_size(dtype) == 2, i % 3, i % settings};
    if (i % 5 == 3) {
      shape.count = (size + 1) * 3;
      shape.extents = {size + 1, 3};
      shape.strides = {Numbers{3, 1}, Numbers{1, size + 1}, Numbers{5, 1}, Numbers{-3, 1}, Numbers{3, 1}};
      if (i % 2 == 1) {
        shape.strides[0] = {4, 1};
      }
    }
    shapes.push_back(shape);
  }
  return shapes;
}

std::vector<StepSettings> three(bool is_adamw) {
  if (is_adamw) {
    return {adamw(Mode::scaled, flag_amsgrad), adamw(Mode::none), adamw(Mode::gradient)};
  }
  return {sgd(Mode::proximal), sgd(Mode::none), sgd(Mode::gradient)};
}

}  // namespace

TEST(taken_steps_of_small_sizes) { take_each({0, 1, 31, 33, 130}); }
TEST(taken_steps_around_a_chunk) { take_each({4095, 4097}); }

TEST(taken_steps_of_many_tensors) {
  for (const bool is_adamw : {false, true}) {
    stand_in::reset(1);
    StepTensors tensors(mixed(120, 300, 3), three(is_adamw), 5);
    tensors.take("120 tensors first", options_of(1));
    tensors.take("120 tensors", options_of(2));
  }
}

TEST(taken_steps_in_any_layout) {
  for (const bool is_adamw : {false, true}) {
    for (const DType dtype : floating_dtypes) {
      for (const bool is_converted : {false, true}) {
        if (is_converted && item_size(dtype) != 2) {
          continue;
        }
        std::vector<StepShape> shapes;
        for (const int which : {0, 1, 2, 3}) {
          StepShape shape{dtype, 60 * 70 * 3, is_converted, 0, which % 3, {60, 70, 3}, {}};
          shape.strides.fill({210, 3, 1});
          shape.strides[0] = which == 0 ? Numbers{210, 3, 1} : which == 1 ? Numbers{1, 60, 4200} : Numbers{300, 4, 1};
          shape.strides[1] = which == 3 ? Numbers{-210, 3, 1} : Numbers{3, 180, 1};
          shape.strides[2] = which == 2 ? Numbers{1, 60, -4200} : Numbers{210, 3, 1};
          shapes.push_back(shape);
        }
        stand_in::reset(3);
        StepTensors tensors(shapes, three(is_adamw), 7);
        const std::string what = std::string("layouts of ") + fastreg::name_of(dtype);
        tensors.take(what + " first", options_of(4));
        tensors.take(what, options_of(5));
        tensors.measure(what + " measured", options_of(5));
      }
    }
  }
}

TEST(taken_steps_of_two_levels) {
  stand_in::reset(1);
  StepTensors tensors({{DType::f16, std::int64_t{4096} * 4096 + 70000}, {DType::f16, 5}}, {sgd(Mode::proximal, 0, 0.0)},
                      3);
  tensors.take("two levels");
}

TEST(measured_steps) {
  for (const Clip clip : {Clip::none, Clip::data, Clip::total}) {
    for (const int exponent : {0, -900, -3, 500}) {
      stand_in::reset(2);
      Options options = options_of(static_cast<std::uint64_t>(exponent != 0));
      options.clip = clip;
      StepTensors tensors(mixed(12, 9000, 3), three(true), 5);
      tensors.measure("clip " + std::to_string(static_cast<int>(clip)) + " times 2^" + std::to_string(exponent),
                      options, exponent);
    }
  }
}

TEST(decided_steps) {
  for (const bool is_adamw : {false, true}) {
    for (const Clip clip : {Clip::none, Clip::data, Clip::total}) {
      stand_in::reset(4);
      Options options;
      options.clip = clip;
      options.max_norm = 0.5;
      options.measures = clip != Clip::none;
      options.scale_on_device = clip == Clip::data;
      options.loss_scale = clip == Clip::data ? 256.0 : 1.0;
      StepTensors tensors(mixed(12, 5000, 3), three(is_adamw), 40);
      for (int turn = 0; turn < 3; ++turn) {
        options.found_inf = turn == 1 ? 1.0f : 0.0f;
        tensors.decide("decided " + std::to_string(static_cast<int>(clip)) + " turn " + std::to_string(turn), options);
      }
      tensors.count_from((std::int64_t{1} << 33) + 5);
      options.found_inf = 0.0f;
      tensors.decide("decided after many steps", options);
      options.counts_on_host = true;
      tensors.decide("decided but for the counts", options);
    }
  }
}

TEST(decided_steps_of_numbers_that_are_not_finite) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const double number : {infinity, std::nan(""), 1e300, 1e-200}) {
    for (const bool skips : {false, true}) {
      stand_in::reset(4);
      Options options;
      options.measures = true;
      options.skips_nonfinite = skips;
      StepTensors one({{DType::f64, 1}, {DType::f64, 1}, {DType::f32, 70}}, {adamw(Mode::proximal)}, 21);
      one.put(0, gradients, number);
      one.put(1, gradients, number < 1.0 ? 0.0 : 1.0);
      for (const Clip clip : {Clip::none, Clip::total}) {
        options.clip = clip;
        options.max_norm = 1e-3;
        one.decide("decided with " + std::to_string(number), options);
      }
    }
  }
}

TEST(decided_steps_read_their_numbers) {
  for (const bool is_adamw : {false, true}) {
    for (const bool are_f64 : {false, true}) {
      stand_in::reset(5);
      StepTensors tensors(mixed(12, 3000, 3), three(is_adamw), 50);
      StepTensors decoupled(mixed(5, 900, 1), {is_adamw ? adamw(Mode::decoupled) : sgd(Mode::decoupled)}, 60);
      Options options;
      options.numbers_on_device = true;
      options.numbers_are_f64 = are_f64;
      options.initial_lr = 0.3;
      for (const double number : {0.1, 0.003, 0.0, 1e-40}) {
        options.lr = number;
        options.strength = 3.7 * number;
        tensors.decide("read there", options);
        decoupled.decide("read there, decoupled", options);
      }
    }
  }
}

namespace {

// Replays of one graph, each with other numbers, some of which are skipped; other calls between them.
void replay_each(const std::vector<StepShape>& shapes, bool is_adamw, Options options, int turns) {
  StepTensors tensors(shapes, three(is_adamw), 40);
  StepTensors other({{DType::f32, 5000}}, {adamw(Mode::proximal)}, 7);
  options.max_norm = 0.5;
  options.measures = options.clip != Clip::none;
  options.skips_nonfinite = options.measures;
  options.scale_on_device = options.numbers_on_device = true;
  options.lr = 0.3;  // those of the capture are not taken
  options.found_inf = 1.0f;
  options.loss_scale = 3.0;
  tensors.tell(options);
  const Graph graph([&](cudaStream_t stream) { return tensors.queue("captured", options, stream); });
  CHECK(graph.recording != nullptr, "no recording");
  const std::string what = "replayed " + std::to_string(static_cast<int>(options.clip)) + " turn ";
  for (int turn = 0; turn < turns; ++turn) {
    options.lr = 0.07 / (1 + turn);
    options.strength = turn * 0.5;
    options.loss_scale = turn % 2 == 0 ? 256.0 : 1.0;
    options.found_inf = turn == 1 ? 1.0f : 0.0f;
    tensors.put(0, gradients, turn == 2 ? std::numeric_limits<double>::infinity() : 0.25);
    tensors.replay(what + std::to_string(turn), options, graph);
    other.decide("between replays", Options{});
  }
  tensors.put(0, gradients, 0.5);
  tensors.decide(what + "beside the graph", options);
  std::vector<StepSettings> changed = three(is_adamw);
  for (StepSettings& one : changed) {
    one.l1 = one.l1 * 0.5;
    one.weight_decay = 0.3;
  }
  tensors.set_settings(changed, graph);
  tensors.replay(what + "of other settings", options, graph);
}

}  // namespace

TEST(captured_steps_are_replayed) {
  for (const bool is_adamw : {false, true}) {
    for (const Clip clip : {Clip::none, Clip::data, Clip::total}) {
      stand_in::reset(6);
      Options options;
      options.clip = clip;
      std::vector<StepShape> shapes = mixed(12, 5000, 3);
      shapes.insert(shapes.begin(), {DType::f32, 33});
      replay_each(shapes, is_adamw, options, 5);
    }
  }
}

TEST(a_copy_to_the_host_is_refused_in_a_capture) {
  stand_in::reset(1);
  const Backend& cuda = *fastreg_backend();
  BackendError error;
  const Memory memory(2 * sizeof(double));
  const double number = 2.5;
  double copy = 0.0;
  const Graph graph([&](cudaStream_t stream) {
    bool capturing = false;
    CHECK(cuda.is_capturing(stream, &capturing, &error) == BackendStatus::ok && capturing, error.text);
    CHECK(cuda.copy_to_host(0, stream, memory.data, sizeof copy, &copy, &error) == BackendStatus::failed, error.text);
    CHECK(std::strstr(error.text, "a copy to the host is waited for") != nullptr, error.text);
    // One from the host is there before the first replay.
    CHECK(cuda.copy_from_host(0, stream, &number, sizeof number, memory.data, &error) == BackendStatus::ok, error.text);
    return static_cast<Recording*>(nullptr);
  });
  bool capturing = true;
  CHECK(cuda.is_capturing(graph.stream, &capturing, &error) == BackendStatus::ok && !capturing, error.text);
  CHECK(cuda.copy_to_host(0, graph.stream, memory.data, sizeof copy, &copy, &error) == BackendStatus::ok, error.text);
  CHECK(copy == number, copy);
}

TEST(steps_that_are_measured_in_a_capture_are_refused) {
  stand_in::reset(1);
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  StepCall call{};
  call.task = StepTask::measure;
  call.stream = stream;
  BackendError error;
  CHECK(fastreg_backend()->steps(&call, nullptr, &error) == BackendStatus::failed, error.text);
  CHECK(std::strstr(error.text, "norms are waited for") != nullptr, error.text);
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream, &graph);
  cudaGraphDestroy(graph);
}

// What a sanitizer that takes a millisecond per thread can do.
TEST(taken_steps_tiny) {
  stand_in::reset(1);
  stand_in::set_processors(1, 2);
  StepTensors tensors(
      {{DType::f32, 9000},
       {DType::f64, 40, false, 0, 1},
       {DType::bf16, 4100, true, 1, 2},
       {DType::f32, 0},
       {DType::f16, 70, false, 0, 0, {70}, {Numbers{-1}, Numbers{2}, Numbers{1}, Numbers{-3}, Numbers{1}}}},
      three(true), 12);
  Options options;
  options.clip = Clip::total;
  options.measures = true;
  options.max_norm = 0.5;
  tensors.take("tiny", options);
  tensors.count_from(1);
  tensors.decide("tiny, decided", options);
  options.found_inf = 1.0f;
  tensors.decide("tiny, skipped", options);
}

TEST(captured_steps_tiny) {
  stand_in::reset(1);
  stand_in::set_processors(1, 2);
  Options options;
  options.clip = Clip::total;
  replay_each({{DType::f32, 70}, {DType::bf16, 40, true, 1, 2}}, true, options, 3);
}

}  // namespace fastreg::test
