// Threads and instruction sets, the table of dtypes, and what `info` asks of the build.
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/openmp_team.h"
#include "../cpu/policy.h"
#include "../cpu/pool.h"
#include "../dtype.h"
#include "bindings.h"

namespace py = pybind11;

namespace fastreg::python {

void add_setting_functions(py::module_& m) {
  m.def("get_num_threads", get_num_threads);
  m.def("set_num_threads", set_num_threads, py::arg("n"));
  m.def("torch_threads", [] {
    const TorchThreads torchs = torch_threads();
    return std::make_tuple(torchs.team != nullptr ? "torch" : "own", std::min(get_num_threads(), torchs.most),
                           std::string(torchs.reason));
  });
  m.def("set_torch_threads", [](const std::string& name) { choose_torch_threads(name, "name"); }, py::arg("name"));
  m.def("instruction_set", [] { return std::string(kernels().name); });
  m.def("set_instruction_set", [](const std::string& name) { choose_instruction_set(name, "name"); }, py::arg("name"));
  m.def("instruction_sets", usable_instruction_sets);
  m.def("compiled_instruction_sets", compiled_instruction_sets);
  m.def("policy_names", policy_names);
  m.def("set_policy", [](const std::string& name) { force_policy(name, "name"); }, py::arg("name"));
  m.def("policy", [] {
    const ChosenPolicy& chosen = policy();
    py::dict classes;
    for (std::size_t i = 0; i < size_class_count; ++i) {
      const Policy& row = *chosen.policy;
      classes[size_class_names[i]] = py::make_tuple(name_of(row.reading[i]), name_of(row.writing[i]));
    }
    if (const auto halves = chosen.policy->halves) {
      classes["half precision"] = py::make_tuple(name_of(*halves), name_of(*halves));
    }
    py::dict facts;
    facts["name"] = chosen.policy->name;
    facts["reason"] = chosen.reason;
    facts["forced"] = chosen.is_forced;
    facts["record"] = chosen.policy->record;
    facts["l2_bytes"] = chosen.l2_bytes;
    facts["l3_bytes"] = chosen.l3_bytes;
    facts["variants"] = classes;
    return facts;
  });
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
