// The module fastreg._core: its initialisation. Its functions are in bind_*.cpp, by family.
#include <pybind11/pybind11.h>

#include "../cpu/dispatch.h"
#include "../cpu/openmp_team.h"
#include "../cpu/policy.h"
#include "../cpu/pool.h"
#include "../jax/capsules.h"
#include "bindings.h"
#include "tensor.h"

// Written out, as PYBIND11_MODULE asks for the lock by PyGILState_Ensure before anything else: in a sub-interpreter
// CPython up to 3.11 then waits for ever.
static int pybind11_exec__core(PyObject*);

namespace {

int require_main_interpreter(PyObject*) {
  if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
    PyErr_SetString(PyExc_ImportError, "the compiled core works in the main interpreter, not in sub-interpreters");
    return -1;
  }
  try {
    PYBIND11_ENSURE_INTERNALS_READY
    return 0;
  }
  PYBIND11_CATCH_INIT_EXCEPTIONS
  return -1;
}

}  // namespace

// Python looks for this name.
// NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming)
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
  PYBIND11_CHECK_PYTHON_VERSION
  static PyModuleDef_Slot slots[] = {
      {Py_mod_exec, reinterpret_cast<void*>(require_main_interpreter)},
      {Py_mod_exec, reinterpret_cast<void*>(pybind11_exec__core)},
#ifdef Py_mod_multiple_interpreters
      {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
      {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
      {0, nullptr},
  };
  static PyModuleDef definition{PyModuleDef_HEAD_INIT, "_core", nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr};
  return PyModuleDef_Init(&definition);
}

PYBIND11_MODULE_EXEC(_core, m) {
  using namespace fastreg;
  using namespace fastreg::python;
  m.doc() = "The compiled core of fastreg.";
  import_numpy();
  // Wrong values of environment variables are refused at import, not in the midst of training.
  kernels();
  policy();
  get_num_threads();
  chosen_torch_threads();

  add_call_functions(m);
  add_setting_functions(m);
  add_step_functions(m);
  add_norm_functions(m);
  add_floor_functions(m);
  add_device_functions(m);
  add_jax_functions(m);
}
