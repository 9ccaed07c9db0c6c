// Words of objects that others have made, by their place, for torch_memory.cpp and torch_gradients.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastreg::python {

using Word = std::uint64_t;

inline Word word_at(const void* object, std::size_t place) {
  Word word;
  std::memcpy(&word, static_cast<const char*>(object) + place * sizeof word, sizeof word);
  return word;
}

inline const void* pointer(Word word) { return reinterpret_cast<const void*>(static_cast<std::uintptr_t>(word)); }

}  // namespace fastreg::python
