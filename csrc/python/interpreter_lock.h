// The interpreter's lock (GIL), given up and taken back.
//
// Not pybind11's guards: they take the lock back in a destructor. Where the interpreter is ending meanwhile, CPython up
// to 3.13 ends a thread that asks for the lock, which unwinds its stack, and an unwinding that meets a destructor ends
// the process ("terminate called"). Such a thread sleeps here until the process has ended, as every thread does in
// CPython 3.14: its objects belong to an interpreter that is no more, so none of its frames may be left.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace fastreg::python {

[[noreturn]] inline void sleep_until_the_process_ends() {
  for (;;) {
#if defined(__unix__) || defined(__APPLE__)
    pause();
#endif
  }
}

// Runs body(), which takes the lock.
template <class Body>
void or_sleep(Body body) {
#if defined(__GLIBCXX__)
  try {
    body();
  } catch (const abi::__forced_unwind&) {
    sleep_until_the_process_ends();
  }
#else
  body();
#endif
}

// Runs body() without the lock.
template <class Body>
void without_lock(Body body) {
  PyThreadState* state = PyEval_SaveThread();
  std::exception_ptr thrown;
  try {
    body();
  } catch (const std::exception&) {
    thrown = std::current_exception();
  }
  or_sleep([&] { PyEval_RestoreThread(state); });
  if (thrown) {
    std::rethrow_exception(thrown);
  }
}

// Runs body() with the lock, on a thread that may never have had it; does nothing where the interpreter has ended.
template <class Body>
void with_lock(Body body) noexcept {
  if (Py_IsInitialized() == 0) {
    return;
  }
  or_sleep([&] {
    const PyGILState_STATE state = PyGILState_Ensure();
    body();
    PyGILState_Release(state);
  });
}

}  // namespace fastreg::python
