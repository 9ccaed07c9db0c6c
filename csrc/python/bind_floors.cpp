// The benchmark's floors.
#include <cstdint>
#include <stdexcept>

#include "../cpu/floors.h"
#include "bindings.h"
#include "interpreter_lock.h"
#include "tensor.h"

namespace py = pybind11;

namespace fastreg::python {
namespace {

// The arrays of the floors: whole, and as large as each other.
ArrayView plain_bytes(const py::handle& object, bool writable) {
  ArrayView view;
  int device = on_host;
  if (!describe(object.ptr(), view, device) || device != on_host || !view.c_contiguous ||
      (writable && !view.writable)) {
    throw std::invalid_argument("the floors take C-contiguous NumPy arrays of numbers, the target writable");
  }
  return view;
}

std::size_t common_bytes(const ArrayView& target, const ArrayView& source) {
  if (target.count != source.count || target.dtype != source.dtype) {
    throw std::invalid_argument("the floors take two arrays of one size and dtype");
  }
  return static_cast<std::size_t>(source.count) * item_size(source.dtype);
}

}  // namespace

void add_floor_functions(py::module_& m) {
  m.def(
      "floor_read",
      [](const py::object& source) {
        const ArrayView from = plain_bytes(source, false);
        const std::size_t bytes = common_bytes(from, from);
        std::uint64_t seen = 0;
        without_lock([&] { seen = floor_read(from.data, bytes); });
        return seen;
      },
      py::arg("source"));
  m.def(
      "floor_copy",
      [](const py::object& target, const py::object& source) {
        const ArrayView to = plain_bytes(target, true);
        const ArrayView from = plain_bytes(source, false);
        const std::size_t bytes = common_bytes(to, from);
        without_lock([&] { floor_copy(to.data, from.data, bytes); });
      },
      py::arg("target"), py::arg("source"));
  m.def(
      "floor_add",
      [](const py::object& target, const py::object& source) {
        const ArrayView to = plain_bytes(target, true);
        const ArrayView from = plain_bytes(source, false);
        const std::size_t bytes = common_bytes(to, from);
        without_lock([&] { floor_add(to.data, from.data, bytes, from.dtype); });
      },
      py::arg("target"), py::arg("source"));
  m.def(
      "floor_step",
      [](const py::object& parameters, const py::object& gradients, const py::object& first, const py::object& second) {
        const ArrayView to = plain_bytes(parameters, true);
        const ArrayView from = plain_bytes(gradients, false);
        FloorStep step{to.data, from.data, nullptr, nullptr, common_bytes(to, from), 1};
        const auto moment = [&](const py::object& object) -> void* {
          if (object.is_none()) {
            return nullptr;
          }
          const ArrayView view = plain_bytes(object, true);
          const std::size_t bytes = static_cast<std::size_t>(view.count) * item_size(view.dtype);
          step.moment_times = step.bytes == 0 ? 1 : bytes / step.bytes;
          if (bytes != step.moment_times * step.bytes || step.moment_times < 1 || step.moment_times > 2) {
            throw std::invalid_argument(
                "the moments of the floor of a step have the bytes of the parameters, or twice");
          }
          return view.data;
        };
        step.first = moment(first);
        const std::size_t times = step.moment_times;
        step.second = moment(second);
        if (step.second != nullptr && (step.first == nullptr || step.moment_times != times)) {
          throw std::invalid_argument("the moments of the floor of a step are alike, and the first comes first");
        }
        without_lock([&] { floor_step(step); });
      },
      py::arg("parameters"), py::arg("gradients"), py::arg("first") = py::none(), py::arg("second") = py::none());
}

}  // namespace fastreg::python
