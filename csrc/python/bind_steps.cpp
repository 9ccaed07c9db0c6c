// The steps of optimizers, and the norms of what they clip. Their arguments are positional, and documented in
// fastreg/_core.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "../cpu/float_environment.h"
#include "../steps.h"
#include "arguments.h"
#include "bindings.h"
#include "device.h"
#include "operands.h"

namespace py = pybind11;

namespace fastreg::python {
namespace {

py::object not_implemented() { return py::reinterpret_borrow<py::object>(Py_NotImplemented); }

std::int64_t to_integer(const py::handle& number) { return number.cast<std::int64_t>(); }

// Returns false where the settings are not plainly right.
bool read_settings(const py::handle& object, StepSettings& settings) {
  const auto row = py::reinterpret_borrow<py::tuple>(object);
  constexpr std::size_t size = 13;
  if (!PyTuple_Check(object.ptr()) || row.size() != size) {
    throw py::type_error("settings are tuples of 13 numbers");
  }
  const std::int64_t algorithm = to_integer(row[0]);
  const std::int64_t mode = to_integer(row[1]);
  const std::int64_t flags = to_integer(row[2]);
  if (algorithm < 0 || algorithm >= algorithm_count || mode < 0 || mode >= mode_count || flags < 0 || flags > 15) {
    return false;
  }
  settings.algorithm = static_cast<Algorithm>(algorithm);
  settings.mode = static_cast<Mode>(mode);
  settings.flags = static_cast<unsigned>(flags);
  double* const numbers[] = {&settings.lr,    &settings.momentum, &settings.dampening, &settings.weight_decay,
                             &settings.beta1, &settings.beta2,    &settings.eps,       &settings.l1,
                             &settings.l2,    &settings.factor};
  for (std::size_t i = 0; i < std::size(numbers); ++i) {
    *numbers[i] = to_double(row[i + 3].ptr());
  }
  return settings.lr >= 0.0 && settings.l1 >= 0.0 && settings.l2 >= 0.0 &&
         !(settings.algorithm == Algorithm::sgd && settings.mode == Mode::scaled);
}

// The rules of a call, worked out whatever the caller's floating-point state.
class Rules {
 public:
  Rules(const py::tuple& settings, double loss_scale, std::int64_t clip, double factor)
      : loss_scale_(loss_scale), clip_(static_cast<Clip>(clip)), factor_(factor) {
    is_plain_ = clip >= 0 && clip < clip_count;
    for (const py::handle& row : settings) {
      is_plain_ &= read_settings(row, settings_.emplace_back());
    }
  }

  bool is_plain() const { return is_plain_; }
  Clip clip() const { return clip_; }
  bool has(std::int64_t place) const { return place >= 0 && std::cmp_less(place, settings_.size()); }
  const StepSettings& settings(std::int64_t place) const { return settings_[static_cast<std::size_t>(place)]; }

  // Most tensors have the rule of the one before them.
  const StepRule& find(std::int64_t place, std::int64_t steps) {
    if (place != place_ || steps != steps_) {
      const FloatEnvironment environment;
      rule_ = rule_of(settings(place), steps, loss_scale_, clip_, factor_);
      fits_f32_ = fits_f64_ = true;
      visit_numbers(rule_, [&](double number) {
        fits_f32_ &= std::isfinite(static_cast<float>(number));
        fits_f64_ &= std::isfinite(number);
      });
      place_ = place;
      steps_ = steps;
    }
    return rule_;
  }

  // Whether all numbers of the rule that was found last are finite in the type of the arithmetic.
  bool fits(DType arithmetic) const { return arithmetic == DType::f64 ? fits_f64_ : fits_f32_; }

 private:
  double loss_scale_;
  Clip clip_;
  double factor_;
  std::vector<StepSettings> settings_;
  bool is_plain_ = false;
  std::int64_t place_ = -1;
  std::int64_t steps_ = -1;
  StepRule rule_{};
  bool fits_f32_ = false;
  bool fits_f64_ = false;
};

// The tensors of a call in host memory. It borrows from them.
class StepTensors {
 public:
  enum class Use {
    measured,
    written,
    checked,  // written, and Python knows that no two elements share memory
  };

  explicit StepTensors(Use use) : use_(use) {}

  // None for moments that are not there. Returns false, and leaves no Python error, where one is not plainly right.
  bool add(PyObject* parameters, PyObject* gradients, const py::handle& first, const py::handle& second,
           const py::handle& largest, const StepRule& rule) {
    ArrayView weights;
    if (!describe_on_host(parameters, weights) || !is_floating(weights.dtype)) {
      return false;
    }
    if (items_.empty() && is_plain_torch(parameters)) {
      owner_ = Owner::torch;
    }
    StepItem item{};
    item.rule = rule;
    item.count = weights.count;
    item.dtype = weights.dtype;
    item.parameters.data = weights.data;
    if (!weights.c_contiguous && !weights.f_contiguous) {
      item.parameters.layout = keep(make_layout(weights, nullptr), &Layout::weights_consecutive);
    }
    if (use_ != Use::measured && !judge_written(weights)) {
      return false;
    }
    bytes_ += weights.count * static_cast<std::int64_t>(item_size(weights.dtype));
    const DType arithmetic = arithmetic_of(weights.dtype);
    ArrayView found;
    if (!read_operand(gradients, weights, found, item.gradients) ||
        (found.dtype != weights.dtype && found.dtype != arithmetic)) {
      return false;
    }
    item.gradient_dtype = found.dtype;
    if (use_ == Use::written && found.count != 0) {
      spans_.add(extent_of(found), false);
    }
    const bool is_adamw = rule.algorithm == Algorithm::adamw;
    const auto add_moment = [&](bool is_there, const py::handle& object, StepOperand& moment) {
      return !is_there || use_ == Use::measured ||
             (read_operand(object.ptr(), weights, found, moment) && found.dtype == arithmetic && judge_written(found));
    };
    if (!add_moment(is_adamw || (rule.operations & op_momentum) != 0, first, item.first) ||
        !add_moment(is_adamw, second, item.second) ||
        !add_moment((rule.operations & op_amsgrad) != 0, largest, item.largest)) {
      return false;
    }
    items_.push_back(item);
    return true;
  }

  bool is_plain() {
    static thread_local std::vector<Span> known;
    return spans_.are_disjoint(known);
  }

  const std::vector<StepItem>& items() const { return items_; }
  Owner owner() const { return owner_; }

  void reserve(std::size_t count) {
    items_.reserve(count);
    spans_.reserve(5 * count);
  }

  template <class Body>
  void run(Body body) const {
    without_lock_if_long(bytes_, body);
  }

 private:
  // Returns null for a layout in whose order the array is consecutive.
  const Layout* keep(const Layout& layout, bool Layout::* is_consecutive) {
    return layout.*is_consecutive ? nullptr : layouts_.emplace_back(std::make_unique<Layout>(layout)).get();
  }

  bool read_operand(PyObject* object, const ArrayView& weights, ArrayView& view, StepOperand& operand) {
    view = ArrayView{};
    if (!describe_on_host(object, view) || !same_shape(weights, view) || !is_floating(view.dtype)) {
      return false;
    }
    operand.data = view.data;
    if (!same_order(weights, view)) {
      operand.layout = keep(make_layout(weights, &view), &Layout::gradients_consecutive);
    }
    bytes_ += view.count * static_cast<std::int64_t>(item_size(view.dtype));
    return true;
  }

  bool judge_written(const ArrayView& view) {
    if (!view.writable) {
      return false;
    }
    if (use_ == Use::checked) {
      return true;
    }
    if (view.count != 0) {
      spans_.add(extent_of(view), true);
    }
    return elements_are_distinct(view);
  }

  Use use_;
  std::vector<StepItem> items_;
  std::vector<std::unique_ptr<Layout>> layouts_;
  Spans spans_;
  std::int64_t bytes_ = 0;
  Owner owner_ = Owner::other;  // of the first parameter
};

// A tuple of moments, or None for all of them.
class Moments {
 public:
  Moments(const py::object& moments, std::size_t count) : is_there_(!moments.is_none()) {
    if (is_there_) {
      if (!PyTuple_Check(moments.ptr()) || std::cmp_not_equal(PyTuple_GET_SIZE(moments.ptr()), count)) {
        throw py::type_error("moments are None, or tuples with one for each of the parameters");
      }
      tuple_ = moments;
    }
  }
  py::handle operator[](std::size_t place) const {
    return is_there_ ? PyTuple_GET_ITEM(tuple_.ptr(), static_cast<Py_ssize_t>(place)) : Py_None;
  }

 private:
  bool is_there_;
  py::object tuple_;
};

void require_sizes(const py::tuple& parameters, std::initializer_list<std::size_t> sizes) {
  for (const std::size_t size : sizes) {
    if (size != parameters.size()) {
      throw py::type_error("there is one of each for each of the parameters");
    }
  }
}

// Device and stream.
using Where = std::pair<int, Address>;

StepCall device_call(const StepTensors& tensors, const Where& where, StepTask task, Clip clip) {
  StepCall call{};
  call.task = task;
  call.device = where.first;
  call.stream = pointer_to<void>(where.second);
  call.items = tensors.items().data();
  call.item_count = tensors.items().size();
  call.clip = clip;
  return call;
}

Address run_on_device(const StepCall& call) {
  Recording* recording = nullptr;
  BackendError error;
  BackendStatus status = BackendStatus::ok;
  without_lock([&] { status = cuda_functions().steps(&call, &recording, &error); });
  require_success(status, error);
  return reinterpret_cast<Address>(recording);
}

py::object measure_step(const py::tuple& parameters, const py::tuple& gradients, const py::tuple& settings,
                        const py::tuple& which, double loss_scale, std::int64_t clip, int exponent,
                        const std::optional<Where>& place) {
  require_sizes(parameters, {gradients.size(), which.size()});
  Rules rules(settings, loss_scale, clip, 1.0);
  if (!rules.is_plain()) {
    return not_implemented();
  }
  StepTensors call(StepTensors::Use::measured);
  call.reserve(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::int64_t row = to_integer(which[i]);
    if (!rules.has(row) ||
        !call.add(parameters[i].ptr(), gradients[i].ptr(), py::none(), py::none(), py::none(), rules.find(row, 0))) {
      return not_implemented();
    }
  }
  std::vector<Norm> norms(parameters.size());
  if (!place.has_value()) {
    call.run([&] {
      measure_steps(call.items().data(), call.items().size(), rules.clip(), exponent, norms.data(), call.owner());
    });
  } else {
    StepCall there = device_call(call, *place, StepTask::measure, rules.clip());
    there.exponent = exponent;
    there.norms = norms.data();
    run_on_device(there);
  }
  py::list result(norms.size());
  for (std::size_t i = 0; i < norms.size(); ++i) {
    const Norm& one = norms[i];
    result[i] = py::make_tuple(one.l2, one.maximum, one.nonfinite);
  }
  return result;
}

py::object take_step(const py::tuple& parameters, const py::tuple& gradients, const py::object& first,
                     const py::object& second, const py::object& largest, const py::tuple& steps,
                     const py::tuple& settings, const py::tuple& which, double loss_scale, std::int64_t clip,
                     double factor, bool checked) {
  const std::size_t count = parameters.size();
  require_sizes(parameters, {gradients.size(), steps.size(), which.size()});
  const Moments firsts(first, count);
  const Moments seconds(second, count);
  const Moments largests(largest, count);
  Rules rules(settings, loss_scale, clip, factor);
  if (!rules.is_plain()) {
    return not_implemented();
  }
  StepTensors call(checked ? StepTensors::Use::checked : StepTensors::Use::written);
  call.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t place = to_integer(which[i]);
    const std::int64_t taken = to_integer(steps[i]);
    if (!rules.has(place) || taken < 0 ||
        !call.add(parameters[i].ptr(), gradients[i].ptr(), firsts[i], seconds[i], largests[i],
                  rules.find(place, taken)) ||
        !rules.fits(arithmetic_of(call.items().back().dtype))) {
      return not_implemented();
    }
  }
  if (!call.is_plain()) {
    return not_implemented();
  }
  std::vector<double> penalties(count);
  std::vector<std::int64_t> zeros(count);
  call.run([&] { take_steps(call.items().data(), count, penalties.data(), zeros.data(), call.owner()); });
  py::list values(count);
  py::list counts(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = penalties[i];
    counts[i] = zeros[i];
  }
  return py::make_tuple(values, counts);
}

// What the device knows of a step: see StepOnDevice.
struct Known {
  Address loss_scale;
  Address found_inf;
  std::vector<Address> taken;
  Address optimizer_taken;
  Address skipped;
  bool measures;
  bool skips_nonfinite;
  double max_norm;
  Address norm;
  std::vector<NumbersThere> there;  // of each row of settings; none where the host knows them all
};

// Of tuples (lr, whether it is a float64, initial_lr, strength, whether that is one), in which addresses may be 0.
std::vector<NumbersThere> read_numbers(const py::handle& rows) {
  std::vector<NumbersThere> found;
  for (const py::handle& one : rows) {
    const auto row = py::reinterpret_borrow<py::tuple>(one);
    found.push_back({pointer_to<void>(row[0].cast<Address>()), row[1].cast<bool>(), to_double(row[2].ptr()),
                     pointer_to<void>(row[3].cast<Address>()), row[4].cast<bool>()});
  }
  return found;
}

Known read_known(const py::tuple& given) {
  return {given[0].cast<Address>(), given[1].cast<Address>(),  given[2].cast<std::vector<Address>>(),
          given[3].cast<Address>(), given[4].cast<Address>(),  given[5].cast<bool>(),
          given[6].cast<bool>(),    to_double(given[7].ptr()), given[8].cast<Address>(),
          read_numbers(given[9])};
}

// The tensors are pairs that Python has judged. `known` is None, or what StepOnDevice has.
py::object cuda_take_step(const Where& place, const py::tuple& parameters, const py::tuple& gradients,
                          const py::object& first, const py::object& second, const py::object& largest,
                          const py::tuple& steps, const py::tuple& settings, const py::tuple& which, double loss_scale,
                          std::int64_t clip, double factor, const py::object& given,
                          const std::array<Address, 4>& results) {
  const std::size_t count = parameters.size();
  require_sizes(parameters, {gradients.size(), steps.size(), which.size()});
  const Moments firsts(first, count);
  const Moments seconds(second, count);
  const Moments largests(largest, count);
  Rules rules(settings, loss_scale, clip, factor);
  if (!rules.is_plain()) {
    return not_implemented();
  }
  StepTensors tensors(StepTensors::Use::checked);
  tensors.reserve(count);
  std::vector<StepSettings> of_items;
  std::vector<std::int64_t> taken;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t row = to_integer(which[i]);
    taken.push_back(to_integer(steps[i]));
    if (!rules.has(row) || taken.back() < 0 ||
        !tensors.add(parameters[i].ptr(), gradients[i].ptr(), firsts[i], seconds[i], largests[i],
                     rules.find(row, taken.back()))) {
      return not_implemented();
    }
    of_items.push_back(rules.settings(row));
  }
  StepCall call = device_call(tensors, place, StepTask::take, rules.clip());
  call.penalties = pointer_to<double>(results[0]);
  call.zeros = pointer_to<std::int64_t>(results[1]);
  call.penalty = pointer_to<double>(results[2]);
  call.all_zeros = pointer_to<std::int64_t>(results[3]);
  StepOnDevice there{};
  std::vector<std::int64_t*> counters;
  std::vector<NumbersThere> numbers;
  if (!given.is_none()) {
    const Known known = read_known(given);
    for (const Address one : known.taken) {
      counters.push_back(pointer_to<std::int64_t>(one));
    }
    counters.resize(count);
    if (!known.there.empty()) {
      for (std::size_t i = 0; i < count; ++i) {
        numbers.push_back(known.there.at(static_cast<std::size_t>(to_integer(which[i]))));
      }
      there.there = numbers.data();
    }
    there.settings = of_items.data();
    there.loss_scale = loss_scale;
    there.loss_scale_there = pointer_to<float>(known.loss_scale);
    there.found_inf = pointer_to<float>(known.found_inf);
    there.taken = counters.data();
    there.steps = taken.data();
    there.optimizer_taken = pointer_to<std::int64_t>(known.optimizer_taken);
    there.skipped = pointer_to<std::int64_t>(known.skipped);
    there.measures = known.measures;
    there.skips_nonfinite = known.skips_nonfinite;
    there.max_norm = known.max_norm;
    there.norm = pointer_to<double>(known.norm);
    call.on_device = &there;
  }
  return py::int_(run_on_device(call));
}

void cuda_set_settings(Address recording, const py::tuple& settings, const py::tuple& which, Address stream) {
  const Rules rules(settings, 1.0, 0, 1.0);
  std::vector<StepSettings> of_items;
  for (const py::handle& row : which) {
    if (!rules.is_plain() || !rules.has(to_integer(row))) {
      throw py::value_error("settings are not those of a step");
    }
    of_items.push_back(rules.settings(to_integer(row)));
  }
  BackendError error;
  require_success(cuda_functions().set_settings(pointer_to<Recording>(recording), of_items.data(), of_items.size(),
                                                pointer_to<void>(stream), &error),
                  error);
}

}  // namespace

void add_step_functions(py::module_& m) {
  m.def(
      "measure_step",
      [](const py::tuple& parameters, const py::tuple& gradients, const py::tuple& settings, const py::tuple& which,
         double loss_scale, std::int64_t clip, int exponent) {
        return measure_step(parameters, gradients, settings, which, loss_scale, clip, exponent, std::nullopt);
      },
      py::arg("parameters"), py::arg("gradients"), py::arg("settings"), py::arg("which"), py::arg("loss_scale"),
      py::arg("clip"), py::arg("exponent"));
  m.def(
      "cuda_measure_step",
      [](const Where& place, const py::tuple& parameters, const py::tuple& gradients, const py::tuple& settings,
         const py::tuple& which, double loss_scale, std::int64_t clip, int exponent) {
        return measure_step(parameters, gradients, settings, which, loss_scale, clip, exponent, place);
      },
      py::arg("place"), py::arg("parameters"), py::arg("gradients"), py::arg("settings"), py::arg("which"),
      py::arg("loss_scale"), py::arg("clip"), py::arg("exponent"));
  m.def("cuda_take_step", cuda_take_step, py::arg("place"), py::arg("parameters"), py::arg("gradients"),
        py::arg("first"), py::arg("second"), py::arg("largest"), py::arg("steps"), py::arg("settings"),
        py::arg("which"), py::arg("loss_scale"), py::arg("clip"), py::arg("factor"), py::arg("known"),
        py::arg("results"));
  m.def("cuda_set_settings", cuda_set_settings, py::arg("recording"), py::arg("settings"), py::arg("which"),
        py::arg("stream"));
  m.def("take_step", take_step, py::arg("parameters"), py::arg("gradients"), py::arg("first"), py::arg("second"),
        py::arg("largest"), py::arg("steps"), py::arg("settings"), py::arg("which"), py::arg("loss_scale"),
        py::arg("clip"), py::arg("factor"), py::arg("checked"));
}

}  // namespace fastreg::python
