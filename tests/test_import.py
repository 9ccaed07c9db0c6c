"""The import: no framework, no output, no change of the environment, and wrong settings refused."""

import pytest
from interpreter import python, runs

# A finder in front of all others: as if the package had been built without a compiler.
WITHOUT_CORE = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "fastreg._core":
            raise ImportError("there is no compiled core here")
sys.meta_path.insert(0, Finder())
"""


def test_import_is_quiet_and_changes_nothing():
    output = runs("""
        import os, sys
        before = dict(os.environ)
        import fastreg
        assert dict(os.environ) == before
        names = {name.partition(".")[0] for name in sys.modules}
        heavy = {"torch", "jax", "keras", "tensorflow", "cupy", "scipy", "pandas", "ml_dtypes",
                 "matplotlib", "rich", "sklearn"}
        assert not names & heavy, names & heavy
    """)
    assert output == ""


def test_a_version():
    assert runs("import fastreg; print(fastreg.__version__)").strip()[0].isdigit()


def test_the_version_is_read_when_it_is_asked_for():
    assert runs("""
        import sys, numpy
        sys.modules.pop("importlib.metadata", None)
        import fastreg
        print("importlib.metadata" in sys.modules, "__version__" in vars(fastreg))
        print(fastreg.__version__ is fastreg.__version__, "__version__" in dir(fastreg))
    """).split() == ["False", "False", "True", "True"]


@pytest.mark.parametrize("backend", ["numpy", ""])
def test_backend_of_the_environment(backend):
    output = runs(
        "from fastreg._engine import backend; print(backend.name)", FASTREG_BACKEND=backend
    )
    assert output.strip() in ({"numpy"} if backend else {"numpy", "native"})


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("FASTREG_BACKEND", "cuda", "'numpy', 'native'"),
        ("FASTREG_BACKEND", "Numpy", "did you mean 'numpy'"),
        ("FASTREG_ISA", "avx3", "'portable', 'avx2', 'avx512', 'neon'"),
        ("FASTREG_POLICY", "fast", "'default', 'sapphire_rapids', "),
        ("FASTREG_TORCH_THREADS", "ours", "'torch', 'own'"),
        ("FASTREG_NUM_THREADS", "0", "a positive integer"),
        ("FASTREG_NUM_THREADS", "-1", "a positive integer"),
        ("FASTREG_NUM_THREADS", "two", "a positive integer"),
        ("FASTREG_NUM_THREADS", "1.5", "a positive integer"),
        ("FASTREG_NUM_THREADS", "²", "a positive integer"),
        ("FASTREG_NUM_THREADS", "1025", "a positive integer up to 1024"),
        ("FASTREG_NUM_THREADS", "9" * 5000, "a positive integer up to 1024"),
    ],
)
@pytest.mark.parametrize("backend", ["numpy", None])
def test_wrong_settings(name, value, right, backend):
    settings = {name: value}
    if backend and name != "FASTREG_BACKEND":
        settings["FASTREG_BACKEND"] = backend
    result = python("import fastreg", PYTHONUTF8="1", **settings)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError")
    assert name in last
    assert right in last
    assert repr(value) in last


def test_without_core_the_fallback_runs():
    output = runs(
        WITHOUT_CORE
        + """
import numpy, fastreg
from fastreg._engine import backend
assert backend.name == "numpy"
assert "no compiled core" in backend.reason
assert fastreg.get_num_threads() == 1
fastreg.set_num_threads(4)
assert fastreg.get_instruction_set() == "numpy"
fastreg.set_instruction_set("numpy")
print(fastreg.regularizers.L1(0.5)(numpy.ones(4)))
"""
    )
    assert output == "2.0\n"


def test_asking_for_a_core_that_is_not_there_fails_at_the_first_use():
    output = runs(
        WITHOUT_CORE
        + """
import numpy, fastreg
for call in (
    lambda: fastreg.regularizers.L1(0.5)(numpy.ones(4)),
    lambda: fastreg.attach([numpy.ones(3)], "l1").value(),
    fastreg.get_num_threads,
):
    try:
        call()
    except RuntimeError as error:
        assert "no compiled core" in str(error)
        assert "FASTREG_BACKEND=numpy" in str(error)
        print("refused")
""",
        FASTREG_BACKEND="native",
    )
    assert output == "refused\n" * 3


def test_the_fallback_checks_threads_and_instruction_sets():
    output = runs(
        """
        import fastreg
        for call, argument in (
            (fastreg.set_num_threads, 0),
            (fastreg.set_num_threads, 1.0),
            (fastreg.set_num_threads, True),
            (fastreg.set_instruction_set, "avx2"),
            (fastreg.set_instruction_set, None),
        ):
            try:
                call(argument)
            except (TypeError, ValueError) as error:
                print(type(error).__name__)
        """,
        FASTREG_BACKEND="numpy",
    )
    assert output.split() == ["ValueError", "TypeError", "TypeError", "ValueError", "TypeError"]
