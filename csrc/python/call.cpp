#include "call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "../canonical_sum.h"
#include "../cpu/float_environment.h"
#include "interpreter_lock.h"

namespace fastreg::python {
namespace {

bool same_memory(const ArrayView& a, const ArrayView& b) {
  if (a.data != b.data || a.dtype != b.dtype || !same_shape(a, b)) {
    return false;
  }
  if ((a.c_contiguous && b.c_contiguous) || (a.f_contiguous && b.f_contiguous)) {
    return true;
  }
  if (a.strides == nullptr || b.strides == nullptr) {
    return false;
  }
  for (int axis = 0; axis < a.axes; ++axis) {
    if (a.shape[axis] != 1 && a.stride(axis) != b.stride(axis)) {
      return false;
    }
  }
  return true;
}

bool fits_f32(double x) { return std::isfinite(static_cast<float>(x)); }

}  // namespace

Rule::Rule(unsigned outputs, double l1, double l2, double scale, double grad_scale) {
  const FloatEnvironment environment;
  const auto make = is_prox(outputs) ? make_prox_coefficients : make_coefficients;
  coefficients = make(FloatEnvironment::unmoved(l1), FloatEnvironment::unmoved(l2), scale, grad_scale);
  is_finite = std::isfinite(coefficients.l1) && std::isfinite(coefficients.l2) &&
              (!is_prox(outputs) || (scale >= 0.0 && grad_scale >= 0.0));
  gradient_fits_f32 = fits_f32(coefficients.gradient_l1) && fits_f32(coefficients.gradient_l2);
  gradient_fits_f64 = std::isfinite(coefficients.gradient_l1) && std::isfinite(coefficients.gradient_l2);
}

double total_of(std::vector<double>& values) {
  const FloatEnvironment environment;
  return FloatEnvironment::unmoved(canonical_sum_in_place(values.data(), static_cast<std::int64_t>(values.size())));
}

Call::Call(unsigned outputs, Slots slots, Operands operands) : outputs_(outputs), slots_(slots), operands_(operands) {
  if (writes_gradients() && slots.count > 1) {
    spans_.reserve(2 * slots.count);
  }
}

bool Call::describe_operand(PyObject* object, ArrayView& view) {
  int device = on_host;
  if (!(operands_ == Operands::views ? describe_view(object, view) : describe(object, view, device))) {
    return false;
  }
  if (device_ < on_host) {
    device_ = device;
  }
  return device_ == device && (device == on_host || operands_ == Operands::of_any_device);
}

bool Call::add(PyObject* object, PyObject* gradient_object, const Rule& rule) {
  ArrayView weights;
  ArrayView gradients;
  if (!describe_operand(object, weights)) {
    return false;
  }
  if (added_ == 0 && is_plain_torch(object)) {
    owner_ = Owner::torch;
  }
  is_plain_ &= rule.is_finite;
  if (writes_gradients()) {
    if (!describe_operand(gradient_object, gradients)) {
      return false;
    }
    judge_gradients(weights, gradients, rule);
  }
  slots_.items[added_++] = {weights.data,
                            gradients.data,
                            weights.count,
                            rule.coefficients,
                            layout_of(weights, writes_gradients() ? gradients : weights),
                            weights.dtype};
  bytes_ += weights.count * static_cast<std::int64_t>(item_size(weights.dtype));
  return true;
}

bool Call::add_copy(PyObject* target_object, PyObject* source_object) {
  ArrayView target;
  ArrayView source;
  int device = on_host;
  if (!describe_operand(target_object, target) || !describe(source_object, source, device) || device != device_) {
    return false;
  }
  const std::size_t size = item_size(target.dtype);
  if (!same_shape(target, source) || item_size(source.dtype) != size || !target.writable) {
    return false;
  }
  const Layout* layout = nullptr;
  if (!same_order(source, target)) {
    layout = layouts_.emplace_back(std::make_unique<Layout>(make_layout(source, &target))).get();
  }
  copies_.push_back({source.data, target.data, target.count, size, layout});
  return true;
}

void Call::copy(const Copy& copy) const {
  if (copy.layout == nullptr) {
    std::memcpy(copy.target, copy.source, static_cast<std::size_t>(copy.count) * copy.item_size);
    return;
  }
  constexpr std::int64_t step = 256;
  alignas(8) char buffer[step * sizeof(double)];
  for (std::int64_t begin = 0; begin < copy.count; begin += step) {
    const std::int64_t count = std::min(step, copy.count - begin);
    gather(*copy.layout, Operand::weights, copy.source, copy.item_size, begin, count, buffer);
    scatter(*copy.layout, Operand::gradients, copy.target, copy.item_size, begin, count, buffer);
  }
}

void Call::judge_gradients(const ArrayView& weights, const ArrayView& gradients, const Rule& rule) {
  const bool shapes_agree = same_shape(weights, gradients);
  is_safe_ &= is_floating(weights.dtype) && gradients.dtype == weights.dtype && gradients.writable && shapes_agree;
  is_plain_ &= (weights.dtype == DType::f64 ? rule.gradient_fits_f64 : rule.gradient_fits_f32) &&
               elements_are_distinct(gradients);
  if (!shapes_agree || weights.count == 0) {
    return;
  }
  const Extent read = extent_of(weights);
  const Extent written = extent_of(gradients);
  const bool in_place = same_memory(weights, gradients);
  is_plain_ &= in_place || read.high <= written.low || written.high <= read.low;
  if (slots_.count > 1) {
    if (!in_place) {
      spans_.add(read, false);
    }
    spans_.add(written, true);
  }
}

const Layout* Call::layout_of(const ArrayView& weights, const ArrayView& gradients) {
  if (same_order(weights, gradients) || !is_safe_) {
    return nullptr;
  }
  auto layout = std::make_unique<Layout>(make_layout(weights, &gradients));
  if (layout->weights_consecutive && layout->gradients_consecutive) {
    return nullptr;
  }
  return layouts_.emplace_back(std::move(layout)).get();
}

bool Call::is_plainly_right() const {
  if (!is_safe_ || !is_plain_ || spans_.empty()) {
    return is_safe_ && is_plain_;
  }
  static thread_local std::vector<Span> known;
  return spans_.are_disjoint(known);
}

void Call::add_addresses(std::vector<std::uintptr_t>& addresses) const {
  for (std::size_t i = 0; i < added_; ++i) {
    if (slots_.items[i].count != 0) {
      addresses.push_back(reinterpret_cast<std::uintptr_t>(slots_.items[i].weights));
    }
  }
}

std::int64_t Call::elements() const {
  return std::accumulate(slots_.items, slots_.items + added_, std::int64_t{0},
                         [](std::int64_t sum, const Item& item) { return sum + item.count; });
}

void Call::run() {
  without_lock_if_long(bytes_, [&] { evaluate(slots_.items, added_, outputs_, slots_.values, owner_, slots_.zeros); });
  for (const Copy& one : copies_) {
    copy(one);
  }
}

bool add_addresses(PyObject* const* objects, std::size_t count, std::vector<std::uintptr_t>& addresses) {
  for (std::size_t i = 0; i < count; ++i) {
    ArrayView view;
    int device = on_host;  // no two devices have an address in common
    if (!describe(objects[i], view, device)) {
      return false;
    }
    if (view.count != 0) {
      addresses.push_back(extent_of(view).low);
    }
  }
  return true;
}

// As in spans_are_disjoint: a training loop asks about the same addresses at every step.
bool has_duplicate(const std::vector<std::uintptr_t>& addresses) {
  static thread_local std::vector<std::uintptr_t> known_distinct;
  if (addresses == known_distinct) {
    return false;
  }
  std::vector<std::uintptr_t> sorted = addresses;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    return true;
  }
  known_distinct = addresses;
  return false;
}

}  // namespace fastreg::python
