// Threads and instruction sets, the table of dtypes, and what `info` asks of the build.
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/pool.h"
#include "../dtype.h"
#include "bindings.h"

namespace py = pybind11;

namespace fastreg::python {

void add_setting_functions(py::module_& m) {
  m.def("get_num_threads", get_num_threads);
  m.def("set_num_threads", set_num_threads, py::arg("n"));
  m.def("instruction_set", [] { return std::string(kernels().name); });
  m.def("set_instruction_set", [](const std::string& name) { choose_instruction_set(name, "name"); }, py::arg("name"));
  m.def("instruction_sets", usable_instruction_sets);
  m.def("compiled_instruction_sets", compiled_instruction_sets);
  m.def("dtypes", [] {
    std::vector<std::tuple<std::string, int, int, bool>> rows;
    rows.reserve(dtype_count);
    for (int i = 0; i < dtype_count; ++i) {
      rows.emplace_back(dtype_rows[i].name, static_cast<int>(dtype_rows[i].kind), dtype_rows[i].size,
                        is_floating(static_cast<DType>(i)));
    }
    return rows;
  });
  m.def("build_info", [] {
    return std::map<std::string, std::string>{{"compiler", FASTREG_COMPILER},
                                              {"build_type", FASTREG_BUILD_TYPE},
                                              {"cxx_standard", std::to_string(__cplusplus)}};
  });
}

}  // namespace fastreg::python
