"""The end of the interpreter while calls run, and sub-interpreters."""

from __future__ import annotations

import sys
import sysconfig

import pytest
from interpreter import SANITIZED, python, runs

pytest.importorskip("fastreg._core", exc_type=ImportError)


@pytest.mark.skipif(SANITIZED, reason="threads that outlive the interpreter look like leaks")
@pytest.mark.parametrize(
    "call",
    [
        "L1L2(0.1, 0.2)(w)",
        "L1L2(0.1, 0.2).accumulate(w, np.zeros_like(w))",
        "L1L2(0.1, 0.2)(w[::2])",
        "fastreg.attach({'a': w, 'b': v}, L1L2(0.1, 0.2)).value()",
        "_core.floor_read(w)",
    ],
)
def test_daemon_threads_inside_a_call_when_the_interpreter_ends(call):
    """They must not end the process: its exit status is the program's own."""
    code = f"""
        import sys, threading, time
        import numpy as np
        import fastreg
        from fastreg import _core
        from fastreg.regularizers import L1L2

        w = np.ones(3_000_001, np.float32)
        v = np.ones(5, np.float32)

        def work():
            while True:
                {call}
                started.set()

        started = threading.Event()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        started.wait()
        sys.exit(7)
    """
    for _ in range(3):
        result = python(code, FASTREG_BACKEND="native")
        assert (result.returncode, result.stderr) == (7, "")


def sub_interpreter(isolated):
    """Return code that runs `code` in a sub-interpreter."""
    if sys.version_info >= (3, 13):
        kind = "isolated" if isolated else "legacy"
        return f"""
import _interpreters
interpreter = _interpreters.create({kind!r})
failure = _interpreters.exec(interpreter, code)
assert failure is None, failure
_interpreters.destroy(interpreter)
"""
    return f"""
import _xxsubinterpreters
interpreter = _xxsubinterpreters.create(isolated={isolated})
failure = _xxsubinterpreters.run_string(interpreter, code)
assert failure is None, failure
_xxsubinterpreters.destroy(interpreter)
"""


INSIDE = """
import sys, warnings
sys.path[:] = {path!r}
warnings.simplefilter("ignore")  # NumPy's, of sub-interpreters
try:
    import numpy
except ImportError as error:
    refusal = str(error)
    try:
        import fastreg
    except ImportError as error:
        assert refusal in str(error), error
        print("NumPy refuses")
else:
    import fastreg
    from fastreg._engine import backend
    print(backend.name, backend.reason, fastreg.regularizers.L1(0.5)(numpy.ones(4)), sep="|")
"""


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("main_first", [False, True])
def test_sub_interpreters_run_on_the_fallback(isolated, main_first):
    """The import does not hang: it says why the core is not there, or why NumPy is not."""
    output = runs(
        f"""
import sys
import warnings
warnings.simplefilter("ignore")
if {main_first}:
    import numpy
    import fastreg
code = {INSIDE!r}.format(path=sys.path)
{sub_interpreter(isolated)}
if {main_first}:
    assert fastreg.regularizers.L1(0.5)(numpy.ones(4)) == 2.0
"""
    )
    # A second import in one process, any that is isolated, and any at all without the lock.
    if output == "NumPy refuses\n":
        has_lock = not sysconfig.get_config_var("Py_GIL_DISABLED")
        assert main_first or (sys.version_info >= (3, 12) and (isolated or not has_lock))
        return
    name, reason, penalty = output.strip().split("|")
    assert (name, penalty) == ("numpy", "2.0")
    assert "sub-interpreters" in reason
