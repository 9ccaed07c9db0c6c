// Norms, and the scaling of a clip. Their arguments are positional, and documented in fastreg/_core.pyi.
#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "../norms.h"
#include "arguments.h"
#include "bindings.h"
#include "operands.h"

namespace py = pybind11;

namespace fastreg::python {
namespace {

// The tensors of a call in host memory: NumPy arrays, torch tensors, and pairs (numpy.ndarray, name of the dtype), as
// Python has described others. It borrows from them.
class Tensors {
 public:
  enum class Use {
    read,
    written,
    checked,  // written, and Python knows that no two elements share memory
  };

  // Leaves no Python error. `is_plain` is false where one cannot be read directly, or must not be written.
  Tensors(const py::tuple& tensors, Use use) {
    items_.reserve(tensors.size());
    for (const py::handle& object : tensors) {
      if (!add(object.ptr(), use)) {
        is_plain_ = false;
        return;
      }
    }
    static thread_local std::vector<Span> known;
    is_plain_ = use != Use::written || spans_.are_disjoint(known);
  }

  bool is_plain() const { return is_plain_; }
  Owner owner() const { return owner_; }
  const std::vector<NormItem>& items() const { return items_; }

  template <class Body>
  void run(Body body) const {
    without_lock_if_long(bytes_, body);
  }

 private:
  bool add(PyObject* object, Use use) {
    ArrayView view;
    if (!describe_on_host(object, view)) {
      return false;
    }
    if (use != Use::read && !(view.writable && is_floating(view.dtype))) {
      return false;
    }
    if (use == Use::written) {
      if (!elements_are_distinct(view)) {
        return false;
      }
      if (view.count != 0) {
        spans_.add(extent_of(view), true);
      }
    }
    if (items_.empty() && is_plain_torch(object)) {
      owner_ = Owner::torch;
    }
    const Layout* layout = nullptr;
    if (!view.c_contiguous && !view.f_contiguous) {
      layout = layouts_.emplace_back(std::make_unique<Layout>(make_layout(view, nullptr))).get();
    }
    items_.push_back({view.data, view.count, layout, view.dtype});
    bytes_ += view.count * static_cast<std::int64_t>(item_size(view.dtype));
    return true;
  }

  std::vector<NormItem> items_;
  std::vector<std::unique_ptr<Layout>> layouts_;
  Spans spans_;
  std::int64_t bytes_ = 0;
  Owner owner_ = Owner::other;  // of the first
  bool is_plain_ = false;
};

py::object norm_sums(const py::tuple& objects, int exponent, bool written) {
  const Tensors tensors(objects, written ? Tensors::Use::written : Tensors::Use::read);
  if (!tensors.is_plain()) {
    return py::reinterpret_borrow<py::object>(Py_NotImplemented);
  }
  std::vector<Norm> norms(tensors.items().size());
  tensors.run([&] { measure_items(tensors.items().data(), norms.size(), exponent, norms.data(), tensors.owner()); });
  py::list result(norms.size());
  for (std::size_t i = 0; i < norms.size(); ++i) {
    const Norm& one = norms[i];
    result[i] = py::make_tuple(one.l1, one.l2, one.maximum, one.zeros, one.nonfinite);
  }
  return result;
}

py::object scale_tensors(const py::tuple& objects, double factor, bool checked) {
  const Tensors tensors(objects, checked ? Tensors::Use::checked : Tensors::Use::written);
  if (!tensors.is_plain()) {
    return py::reinterpret_borrow<py::object>(Py_NotImplemented);
  }
  tensors.run([&] { scale_items(tensors.items().data(), tensors.items().size(), factor, tensors.owner()); });
  return py::none();
}

}  // namespace

void add_norm_functions(py::module_& m) {
  m.def("norm_sums", norm_sums, py::arg("tensors"), py::arg("exponent"), py::arg("written"));
  m.def("scale_tensors", scale_tensors, py::arg("tensors"), py::arg("factor"), py::arg("checked"));
}

}  // namespace fastreg::python
