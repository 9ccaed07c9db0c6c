#include "capsules.h"

#include <string>

#include "handlers.h"

namespace py = pybind11;

namespace fastreg::python {

void add_jax_functions(py::module_& m) {
  m.def(
      "xla_handler",
      [](const std::string& platform) {
        xla::Handler* handler = platform == "cpu"    ? xla::evaluate_on_host
                                : platform == "CUDA" ? xla::evaluate_on_cuda
                                                     : nullptr;
        if (handler == nullptr) {
          throw py::value_error("platform must be 'cpu' or 'CUDA', not '" + platform + "'");
        }
        return py::capsule(reinterpret_cast<void*>(handler));
      },
      py::arg("platform"));
}

}  // namespace fastreg::python
