// What the calls of several families ask of their operands in host memory.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../layout.h"
#include "interpreter_lock.h"
#include "tensor.h"

namespace fastreg::python {

// Describes a NumPy array, a torch tensor, or a pair (numpy.ndarray, dtype name) that stands for an array of another
// kind. Returns false, and leaves no Python error, for everything else, and for what is on a device.
inline bool describe_on_host(PyObject* object, ArrayView& view) {
  int device = on_host;
  return PyTuple_CheckExact(object) ? describe_view(object, view) : describe(object, view, device) && device == on_host;
}

inline bool same_order(const ArrayView& a, const ArrayView& b) {
  return (a.c_contiguous && b.c_contiguous) || (a.f_contiguous && b.f_contiguous);
}

// Memory that a call reads or writes.
struct Span {
  Extent extent;
  bool written;
  bool operator==(const Span& other) const {
    return extent.low == other.extent.low && extent.high == other.extent.high && written == other.written;
  }
};

class Spans {
 public:
  bool empty() const { return spans_.empty(); }
  void reserve(std::size_t count) { spans_.reserve(count); }
  void add(Extent extent, bool written) { spans_.push_back({extent, written}); }

  // No two spans of which one is written overlap. Whether they do depends on nothing but the spans, and training loops
  // bring the same ones at every step: comparing them is five times cheaper than sorting them. `known` is what the
  // caller keeps of its last call that was right.
  bool are_disjoint(std::vector<Span>& known) const {
    if (spans_ == known) {
      return true;
    }
    std::vector<Span> sorted = spans_;
    std::sort(sorted.begin(), sorted.end(), [](const Span& a, const Span& b) { return a.extent.low < b.extent.low; });
    std::uintptr_t read_end = 0;
    std::uintptr_t written_end = 0;
    for (const Span& span : sorted) {
      if (span.extent.low < written_end || (span.written && span.extent.low < read_end)) {
        return false;
      }
      std::uintptr_t& end = span.written ? written_end : read_end;
      end = std::max(end, span.extent.high);
    }
    known = spans_;
    return true;
  }

 private:
  std::vector<Span> spans_;
};

// Runs body(), without the interpreter's lock where so many bytes are worth it: giving it up and taking it back costs
// about 100 ns.
template <class Body>
void without_lock_if_long(std::int64_t bytes, Body body) {
  constexpr std::int64_t bytes_worth_releasing = std::int64_t{1} << 18;
  if (bytes >= bytes_worth_releasing) {
    without_lock(body);
  } else {
    body();
  }
}

}  // namespace fastreg::python
