#include "torch_memory.h"

#include <pybind11/stl.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

namespace py = pybind11;

namespace fastreg::python {
namespace {

using Word = std::uint64_t;

Word word_at(const void* object, std::size_t place) {
  Word word;
  std::memcpy(&word, static_cast<const char*>(object) + place * sizeof word, sizeof word);
  return word;
}

const void* pointer(Word word) { return reinterpret_cast<const void*>(static_cast<std::uintptr_t>(word)); }

// A tensor, and what torch says of it: addresses of its objects for tensor and storage, dispatch keys, offset in the
// storage in elements, bytes of the storage.
using Sample = std::tuple<py::object, Word, Word, Word, Word, Word>;

// Where in torch's objects the words are.
struct Places {
  std::size_t tensor;                 // in Python's object
  std::size_t storage, keys, offset;  // in torch's object for a tensor
  std::size_t bytes;                  // in torch's object for a storage
  Word other_numbers;                 // keys of tensors whose numbers are not those in memory
  Word not_inference;                 // the key that inference tensors lack
};

// How far torch's objects are looked through: they are no smaller than that in any release with an exchange table.
constexpr std::size_t words_of_tensor = 23;
constexpr std::size_t words_of_storage = 8;

// The first place that has the right word in every sample.
template <class Object, class Wanted>
std::optional<std::size_t> find(const std::vector<Sample>& samples, std::size_t words, Object object, Wanted wanted) {
  for (std::size_t place = 0; place < words; ++place) {
    bool fits = true;
    for (const Sample& sample : samples) {
      fits = fits && word_at(object(sample), place) == wanted(sample);
    }
    if (fits) {
      return place;
    }
  }
  return std::nullopt;
}

const Places* find_places() {
  try {
    const auto [samples, other_numbers, not_inference] = py::cast<std::tuple<std::vector<Sample>, Word, Word>>(
        py::module_::import("fastreg._arrays.torch_memory").attr("samples")());
    const auto object = [](const Sample& sample) -> const void* { return std::get<0>(sample).ptr(); };
    const auto tensor = [](const Sample& sample) { return pointer(std::get<1>(sample)); };
    const auto storage = [](const Sample& sample) { return pointer(std::get<2>(sample)); };
    const auto words_of_object = static_cast<std::size_t>(Py_TYPE(object(samples.at(0)))->tp_basicsize) / sizeof(Word);
    const auto in_object = find(samples, words_of_object, object, [](const Sample& s) { return std::get<1>(s); });
    const auto in_tensor = [&](auto wanted) { return find(samples, words_of_tensor, tensor, wanted); };
    const auto to_storage = in_tensor([](const Sample& s) { return std::get<2>(s); });
    const auto keys = in_tensor([](const Sample& s) { return std::get<3>(s); });
    const auto offset = in_tensor([](const Sample& s) { return std::get<4>(s); });
    const auto bytes = find(samples, words_of_storage, storage, [](const Sample& s) { return std::get<5>(s); });
    if (!in_object || !to_storage || !keys || !offset || !bytes) {
      return nullptr;
    }
    return new Places{*in_object, *to_storage, *keys, *offset, *bytes, other_numbers, not_inference};
  } catch (py::error_already_set&) {
    return nullptr;
  } catch (py::cast_error&) {
    return nullptr;
  }
}

const Places* places() {
  static std::atomic<const Places*> known{nullptr};
  static std::atomic<int> tries_left{8};  // some states of torch, as a mode of fake tensors, spoil the samples
  const Places* found = known.load(std::memory_order_acquire);
  if (found == nullptr && tries_left.load(std::memory_order_relaxed) > 0) {
    tries_left.fetch_sub(1, std::memory_order_relaxed);
    found = find_places();
    known.store(found, std::memory_order_release);
  }
  return found;
}

bool is_in_inference_mode() {
  try {
    return py::cast<bool>(py::module_::import("torch").attr("is_inference_mode_enabled")());
  } catch (py::error_already_set&) {
    return false;
  }
}

TorchFlags ask(PyObject* tensor) {
  try {
    const auto [has_elements, is_writable] = py::cast<std::tuple<bool, bool>>(
        py::module_::import("fastreg._arrays.torch_memory").attr("flags")(py::handle(tensor)));
    return {has_elements, is_writable};
  } catch (py::error_already_set&) {
    return {false, false};
  }
}

}  // namespace

TorchFlags torch_flags(PyObject* object, const ArrayView& view) {
  const Places* at = places();
  if (at == nullptr) {
    return ask(object);
  }
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
  return {has_elements, (keys & at->not_inference) != 0 || is_in_inference_mode()};
}

}  // namespace fastreg::python
