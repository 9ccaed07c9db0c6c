#include "torch_gradients.h"

#include <array>
#include <atomic>
#include <cstring>
#include <optional>

#include "foreign_words.h"

namespace py = pybind11;

namespace fastreg::python {

// Where the words are, but for `requires_grad`, which is a byte.
struct AutogradPlaces {
  std::size_t tensor;         // in Python's object
  std::size_t python;         // in torch's object for a tensor: Python's object
  std::size_t autograd;       // there too: the object for autograd, null where nothing is known
  std::size_t grad;           // in that: torch's object for the gradient
  std::size_t requires_grad;  // in that: true for a leaf that requires a gradient
  PyTypeObject* kind;         // of gradients
  PyObject* is_mode_enabled;

  bool operator==(const AutogradPlaces& other) const {
    return tensor == other.tensor && python == other.python && autograd == other.autograd && grad == other.grad &&
           requires_grad == other.requires_grad && kind == other.kind;
  }
};

namespace {

// How far torch's objects are looked through: past what is wanted in torch 2.13, where its place is 3 and 6 in a
// tensor, 5 and byte 128 for autograd, and far from the end, should another release have less of the rest.
constexpr std::size_t words_of_tensor = 8;
constexpr std::size_t words_of_autograd = 17;

template <std::size_t words>
using Snapshot = std::array<Word, words>;

std::atomic<const AutogradPlaces*> learned{nullptr};

Word address(const void* object) { return static_cast<Word>(reinterpret_cast<std::uintptr_t>(object)); }

unsigned char byte_at(const void* object, std::size_t place) {
  return static_cast<const unsigned char*>(object)[place];
}

bool is_aligned(Word word) { return word % alignof(void*) == 0; }

template <std::size_t words>
Snapshot<words> snapshot(const void* object) {
  Snapshot<words> found;
  std::memcpy(found.data(), object, sizeof found);
  return found;
}

// The only place that differs.
template <class Many>
std::optional<std::size_t> changed_place(const Many& before, const Many& after) {
  std::optional<std::size_t> found;
  for (std::size_t place = 0; place < before.size(); ++place) {
    if (before[place] != after[place]) {
      if (found) {
        return std::nullopt;
      }
      found = place;
    }
  }
  return found;
}

std::optional<std::size_t> place_of(const void* object, std::size_t words, Word wanted) {
  for (std::size_t place = 0; place < words; ++place) {
    if (word_at(object, place) == wanted) {
      return place;
    }
  }
  return std::nullopt;
}

Word torch_object(const py::object& tensor) { return py::cast<Word>(tensor.attr("_cdata")); }

std::optional<AutogradPlaces> places_in(const py::object& tensor, const py::object& gradient) {
  const void* const object = pointer(torch_object(tensor));
  const auto fresh = snapshot<words_of_tensor>(object);
  tensor.attr("requires_grad_")(true);
  const auto autograd = changed_place(fresh, snapshot<words_of_tensor>(object));
  if (!autograd || fresh[*autograd] != 0 || !is_aligned(word_at(object, *autograd))) {
    return std::nullopt;
  }
  const void* const meta = pointer(word_at(object, *autograd));
  const auto required = snapshot<words_of_autograd>(meta);
  tensor.attr("requires_grad_")(false);
  const auto frozen = snapshot<words_of_autograd>(meta);
  std::array<unsigned char, sizeof required> required_bytes;
  std::array<unsigned char, sizeof frozen> frozen_bytes;
  std::memcpy(required_bytes.data(), required.data(), sizeof required);
  std::memcpy(frozen_bytes.data(), frozen.data(), sizeof frozen);
  const auto requires_grad = changed_place(frozen_bytes, required_bytes);
  tensor.attr("requires_grad_")(true);
  tensor.attr("grad") = gradient;
  const auto grad = changed_place(required, snapshot<words_of_autograd>(meta));
  const bool is_there = grad && word_at(meta, *grad) == torch_object(gradient);
  tensor.attr("grad") = py::none();
  const bool is_back = snapshot<words_of_autograd>(meta) == required;
  const auto size = static_cast<std::size_t>(Py_TYPE(gradient.ptr())->tp_basicsize);
  const Word of_gradient = torch_object(gradient);
  const auto in_object = place_of(gradient.ptr(), size / sizeof(Word), of_gradient);
  const auto python = place_of(pointer(of_gradient), words_of_tensor, address(gradient.ptr()));
  if (!requires_grad || required_bytes[*requires_grad] != 1 || frozen_bytes[*requires_grad] != 0 || !is_there ||
      !is_back || !in_object || !python || place_of(tensor.ptr(), size / sizeof(Word), address(object)) != in_object ||
      place_of(object, words_of_tensor, address(tensor.ptr())) != python) {
    return std::nullopt;
  }
  return AutogradPlaces{*in_object, *python, *autograd, *grad, *requires_grad, Py_TYPE(gradient.ptr()), nullptr};
}

std::optional<AutogradPlaces> find_places(const AutogradSamples& samples) {
  std::optional<AutogradPlaces> found;
  for (const auto& [tensor, gradient] : samples) {
    const auto places = places_in(tensor, gradient);
    if (!places || (found && !(*found == *places))) {
      return std::nullopt;
    }
    found = places;
  }
  return found;
}

}  // namespace

bool learn_torch_gradients(const AutogradSamples& samples, const py::object& is_mode_enabled) {
#ifdef Py_GIL_DISABLED
  return false;  // another thread may set a gradient while it is read
#else
  std::optional<AutogradPlaces> places = find_places(samples);
  if (!places) {
    learned.store(nullptr, std::memory_order_release);
    return false;
  }
  places->is_mode_enabled = py::object(is_mode_enabled).release().ptr();
  learned.store(new AutogradPlaces(*places), std::memory_order_release);
  return true;
#endif
}

AutogradFields::AutogradFields() : places_(learned.load(std::memory_order_acquire)) {
  if (places_ != nullptr) {
    const auto answer = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(places_->is_mode_enabled));
    PyErr_Clear();
    if (answer.ptr() != Py_False) {
      places_ = nullptr;
    }
  }
}

bool AutogradFields::surely_requires(PyObject* tensor) const {
  if (places_ == nullptr) {
    return false;
  }
  const Word autograd = word_at(pointer(word_at(tensor, places_->tensor)), places_->autograd);
  return autograd != 0 && byte_at(pointer(autograd), places_->requires_grad) == 1;
}

bool AutogradFields::surely_requires_none(PyObject* tensor) const {
  // A tensor of a graph, and a view of one, has an object for autograd.
  return places_ != nullptr && word_at(pointer(word_at(tensor, places_->tensor)), places_->autograd) == 0;
}

py::object AutogradFields::gradient(PyObject* parameter) const {
  if (!surely_requires(parameter)) {
    return {};
  }
  const Word autograd = word_at(pointer(word_at(parameter, places_->tensor)), places_->autograd);
  const void* const gradient = pointer(word_at(pointer(autograd), places_->grad));
  if (gradient == nullptr) {
    return {};
  }
  // Null for a gradient that has not been seen by Python, and where there is none. Torch keeps Python's object as long
  // as its own has other owners, of which the parameter is one.
  const Word python = word_at(gradient, places_->python);
  if (python == 0 || !is_aligned(python)) {
    return {};
  }
  auto* const object = static_cast<PyObject*>(const_cast<void*>(pointer(python)));
  if (Py_TYPE(object) != places_->kind || word_at(object, places_->tensor) != address(gradient)) {
    return {};
  }
  return py::reinterpret_borrow<py::object>(object);
}

}  // namespace fastreg::python
