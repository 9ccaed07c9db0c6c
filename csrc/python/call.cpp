#include "call.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "tensor.h"

namespace py = pybind11;

namespace fastreg::python {
namespace {

// Giving the interpreter up and taking it back costs about 100 ns.
constexpr std::int64_t bytes_worth_releasing = std::int64_t{1} << 18;

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

bool same_order(const ArrayView& a, const ArrayView& b) {
  return (a.c_contiguous && b.c_contiguous) || (a.f_contiguous && b.f_contiguous);
}

// Asks fastreg._arrays for a view; raises the error that says why there is none.
py::object convert(PyObject* object, const char* argument, bool writable, ArrayView& view) {
  py::object pair = py::module_::import("fastreg._arrays")
                        .attr("host_view")(py::reinterpret_borrow<py::object>(object), argument, writable);
  describe_host_view(pair.ptr(), view);
  return pair;
}

struct Span {
  Extent extent;
  bool written;
};

bool operator==(const Span& a, const Span& b) {
  return a.extent.low == b.extent.low && a.extent.high == b.extent.high && a.written == b.written;
}

// No two spans of which one is written overlap.
bool are_disjoint(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.extent.low < b.extent.low; });
  std::uintptr_t read_end = 0;
  std::uintptr_t written_end = 0;
  for (const Span& span : spans) {
    if (span.extent.low < written_end || (span.written && span.extent.low < read_end)) {
      return false;
    }
    std::uintptr_t& end = span.written ? written_end : read_end;
    end = std::max(end, span.extent.high);
  }
  return true;
}

}  // namespace

void Call::describe_or_convert(PyObject* object, const char* argument, bool writable, ArrayView& view) {
  if (!describe(object, view)) {
    kept_.push_back(convert(object, argument, writable, view));
  }
}

void Call::add(PyObject* weights, PyObject* gradients, const char* gradient_argument, Strengths strengths,
               double scale, double grad_scale) {
  Operand& operand = slots_.operands[count_++];
  describe_or_convert(weights, "w", false, operand.weights);
  if (writes_gradients()) {
    describe_or_convert(gradients, gradient_argument, true, operand.gradients);
    operand.in_place = same_memory(operand.weights, operand.gradients);
  }
  operand.coefficients = make_coefficients(strengths.l1, strengths.l2, scale, grad_scale);
  bytes_ += operand.weights.count * static_cast<std::int64_t>(item_size(operand.weights.dtype));
}

bool Call::gradients_are_safe(const Operand& operand) const {
  return !writes_gradients() ||
         (is_floating(operand.weights.dtype) && operand.gradients.dtype == operand.weights.dtype &&
          operand.gradients.writable && same_shape(operand.weights, operand.gradients));
}

bool Call::coefficients_are_representable(const Operand& operand) const {
  const Coefficients& c = operand.coefficients;
  const auto fits = [&](double x) {
    return std::isfinite(operand.weights.dtype == DType::f64 ? x : static_cast<double>(static_cast<float>(x)));
  };
  return std::isfinite(c.l1) && std::isfinite(c.l2) &&
         (!writes_gradients() || (fits(c.gradient_l1) && fits(c.gradient_l2)));
}

bool Call::memory_is_disjoint() const {
  if (count_ == 1) {
    const Operand& one = slots_.operands[0];
    const Extent read = extent_of(one.weights);
    const Extent written = extent_of(one.gradients);
    return one.in_place || read.high <= written.low || written.high <= read.low;
  }
  std::vector<Span> spans;
  spans.reserve(2 * count_);
  for (std::size_t i = 0; i < count_; ++i) {
    const Operand& operand = slots_.operands[i];
    if (operand.weights.count != 0) {
      if (!operand.in_place) {
        spans.push_back({extent_of(operand.weights), false});
      }
      spans.push_back({extent_of(operand.gradients), true});
    }
  }
  // Whether spans are disjoint depends on nothing but the spans, and training loops bring the same ones at every step:
  // comparing is five times cheaper than sorting.
  static thread_local std::vector<Span> known;
  if (spans == known) {
    return true;
  }
  if (!are_disjoint(spans)) {
    return false;
  }
  known = std::move(spans);
  return true;
}

bool Call::is_plainly_right() const {
  const bool each = std::all_of(slots_.operands, slots_.operands + count_, [&](const Operand& operand) {
    return gradients_are_safe(operand) && coefficients_are_representable(operand) &&
           (!writes_gradients() || elements_are_distinct(operand.gradients));
  });
  return each && (!writes_gradients() || memory_is_disjoint());
}

void Call::require_safe() const {
  for (std::size_t i = 0; i < count_; ++i) {
    if (!gradients_are_safe(slots_.operands[i])) {
      throw std::logic_error("fastreg._checks.check_call let a call pass that cannot be made");
    }
  }
}

void Call::run() {
  for (std::size_t i = 0; i < count_; ++i) {
    const Operand& operand = slots_.operands[i];
    const ArrayView& weights = operand.weights;
    const ArrayView& gradients = writes_gradients() ? operand.gradients : weights;
    const Layout* layout = nullptr;
    if (!same_order(weights, gradients)) {
      auto made = std::make_unique<Layout>(make_layout(weights, &gradients));
      if (!made->weights_consecutive || !made->gradients_consecutive) {
        layout = layouts_.emplace_back(std::move(made)).get();
      }
    }
    slots_.items[i] = {weights.data, gradients.data, weights.count, operand.coefficients, layout, weights.dtype};
  }
  if (bytes_ >= bytes_worth_releasing) {
    const py::gil_scoped_release release;
    evaluate(slots_.items, count_, outputs_, slots_.values);
  } else {
    evaluate(slots_.items, count_, outputs_, slots_.values);
  }
}

bool shares_address(PyObject* const* objects, std::size_t count) {
  std::vector<std::uintptr_t> addresses;
  addresses.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    ArrayView view;
    py::object kept;
    if (!describe(objects[i], view)) {
      kept = convert(objects[i], "w", false, view);
    }
    if (view.count != 0) {
      addresses.push_back(extent_of(view).low);
    }
  }
  // As in memory_is_disjoint: a training loop asks about the same addresses at every step.
  static thread_local std::vector<std::uintptr_t> known_distinct;
  if (addresses == known_distinct) {
    return false;
  }
  std::vector<std::uintptr_t> sorted = addresses;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    return true;
  }
  known_distinct = std::move(addresses);
  return false;
}

}  // namespace fastreg::python
