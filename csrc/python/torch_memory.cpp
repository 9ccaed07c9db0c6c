#include "torch_memory.h"

#include <pybind11/stl.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "foreign_words.h"

namespace py = pybind11;

namespace fastreg::python {
namespace {

// Where in torch's objects the words are.
struct Places {
  std::size_t tensor;                 // in Python's object
  std::size_t storage, keys, offset;  // in torch's object for a tensor
  std::size_t bytes;                  // in torch's object for a storage
  Word other_numbers;                 // keys of tensors whose numbers are not those in memory
  Word not_inference;                 // the key that inference tensors lack
};

// How far torch's objects are looked through. Of a tensor that is all in torch 2.13, which has 176 bytes.
constexpr std::size_t words_of_tensor = 22;
constexpr std::size_t words_of_storage = 8;

// The first place that has the right word in every sample.
template <class Object, class Wanted>
std::optional<std::size_t> find(const TorchSamples& samples, std::size_t words, Object object, Wanted wanted) {
  for (std::size_t place = 0; place < words; ++place) {
    bool fits = true;
    for (const TorchSample& sample : samples) {
      fits = fits && word_at(object(sample), place) == wanted(sample);
    }
    if (fits) {
      return place;
    }
  }
  return std::nullopt;
}

// What has been learned.
struct Learned {
  std::optional<Places> places;
  PyObject* is_inference_mode_enabled;
  PyObject* flags;
};
std::atomic<const Learned*> learned{nullptr};

std::optional<Places> find_places(const TorchMemory& memory) {
  const TorchSamples& samples = memory.samples;
  if (samples.empty()) {
    return std::nullopt;
  }
  const auto object = [](const TorchSample& sample) -> const void* { return std::get<0>(sample).ptr(); };
  const auto tensor = [](const TorchSample& sample) { return pointer(std::get<1>(sample)); };
  const auto storage = [](const TorchSample& sample) { return pointer(std::get<2>(sample)); };
  const auto size = static_cast<std::size_t>(Py_TYPE(std::get<0>(samples.at(0)).ptr())->tp_basicsize);
  const auto in_object =
      find(samples, size / sizeof(Word), object, [](const TorchSample& s) { return std::get<1>(s); });
  const auto in_tensor = [&](auto wanted) { return find(samples, words_of_tensor, tensor, wanted); };
  const auto to_storage = in_tensor([](const TorchSample& s) { return std::get<2>(s); });
  const auto keys = in_tensor([](const TorchSample& s) { return std::get<3>(s); });
  const auto offset = in_tensor([](const TorchSample& s) { return std::get<4>(s); });
  const auto bytes = find(samples, words_of_storage, storage, [](const TorchSample& s) { return std::get<5>(s); });
  if (!in_object || !to_storage || !keys || !offset || !bytes) {
    return std::nullopt;
  }
  return Places{*in_object, *to_storage, *keys, *offset, *bytes, memory.other_numbers, memory.not_inference};
}

bool is_in_inference_mode(const Learned& of) {
  const auto answer = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(of.is_inference_mode_enabled));
  PyErr_Clear();
  return answer.ptr() == Py_True;
}

TorchFlags ask(const Learned& of, PyObject* tensor) {
  try {
    const auto [has_elements, is_writable] = py::cast<std::tuple<bool, bool>>(py::handle(of.flags)(py::handle(tensor)));
    return {has_elements, is_writable};
  } catch (py::error_already_set&) {
    return {false, false};
  }
}

}  // namespace

bool learn_torch_memory(const TorchMemory& memory) {
  const std::optional<Places> places = find_places(memory);
  if (!places && !memory.asks) {
    return false;
  }
  const auto kept = [](const py::object& object) { return py::object(object).release().ptr(); };
  learned.store(new Learned{places, kept(memory.is_inference_mode_enabled), kept(memory.flags)},
                std::memory_order_release);
  return true;
}

TorchFlags torch_flags(PyObject* object, const ArrayView& view) {
  const Learned& of = *learned.load(std::memory_order_acquire);
  if (!of.places) {
    return ask(of, object);
  }
  const Places* at = &*of.places;
  const void* tensor = pointer(word_at(object, at->tensor));
  const Word keys = word_at(tensor, at->keys);
  bool has_elements = (keys & at->other_numbers) == 0;
  if (view.count != 0) {
    const void* storage = pointer(word_at(tensor, at->storage));
    // A size that is a symbol is a negative number.
    const auto bytes = storage == nullptr ? -1 : static_cast<std::int64_t>(word_at(storage, at->bytes));
    const Word offset = word_at(tensor, at->offset) * item_size(view.dtype);
    Word span = static_cast<Word>(view.count) * item_size(view.dtype);
    if (!view.c_contiguous && !view.f_contiguous) {
      const Extent extent = extent_of(view);
      span = extent.high - extent.low;
    }
    has_elements = has_elements && bytes >= 0 && offset + span <= static_cast<Word>(bytes);
  }
  return {has_elements, (keys & at->not_inference) != 0 || is_in_inference_mode(of)};
}

}  // namespace fastreg::python
