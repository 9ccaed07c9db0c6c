"""Where there is no CUDA device: the import, the reason that is given, and device tensors refused.

What runs on a device is tested by tests/cuda on a stand-in, and by tests/gpu on a GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from interpreter import ROOT, runs

from fastreg import _info

pytestmark = pytest.mark.skipif(_info.native_core() is None, reason="needs the compiled core")

# A GPU that may be there after all is out of sight.
NO_DEVICE = {"CUDA_VISIBLE_DEVICES": ""}

STATE = """
import sys
from fastreg import _core
available, reason, devices = _core.cuda_state()
assert (available, devices) == (False, 0), (reason, devices)
print(reason)
"""

ON_DEVICE = """
class OnDevice:
    __cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (4096, False),
                                "strides": None, "stream": None, "version": 3}
    def __dlpack_device__(self):
        return (2, 0)
"""


def test_the_reason_is_one_that_the_build_knows() -> None:
    reason = runs(STATE, **NO_DEVICE).strip()
    known = (
        r"not built \((FASTREG_CUDA=OFF|no nvcc was found|.* cannot compile)\)",
        r"not built \(pip install with -C cmake\.define\.FASTREG_CUDA=ON builds it\)",
        r"there is no CUDA device, or no driver for it: cudaError(InsufficientDriver|NoDevice): .+",
    )
    assert re.fullmatch("|".join(known), reason), reason


def test_info_says_it() -> None:
    reason = runs(STATE, **NO_DEVICE).strip()
    output = runs("from fastreg.__main__ import main; main(['info'])", **NO_DEVICE)
    # It is wrapped, so as to be read at 80 columns.
    assert f"CUDA not available: {reason} machine" in " ".join(output.split())


def test_a_device_tensor_is_refused_with_the_reason() -> None:
    output = runs(
        STATE
        + ON_DEVICE
        + """
import numpy
import fastreg
from fastreg.regularizers import L2

grad = numpy.zeros(3, numpy.float32)
for call in (
    lambda: L2(0.5)(OnDevice()),
    lambda: L2(0.5).accumulate(OnDevice(), OnDevice()),
    lambda: fastreg.attach({"w": OnDevice()}, "l2").value(),
    lambda: L2(0.5).accumulate(OnDevice(), grad),
):
    try:
        call()
    except TypeError as error:
        message = str(error)
        assert "is on CUDA (cuda)" in message, message
        assert f"CUDA is off: {reason}; pass a copy in host memory" in message, message
        print("refused")
assert grad.tolist() == [0, 0, 0]
assert not {"torch", "cupy", "jax"} & set(sys.modules)
""",
        **NO_DEVICE,
    )
    assert output.splitlines()[1:] == ["refused"] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; CUDA is for Linux alone")
def test_the_library_is_opened_at_the_first_device_tensor_and_not_before() -> None:
    runs("""
        import numpy
        from fastreg.regularizers import L2
        L2(0.5)(numpy.ones(3))
        with open("/proc/self/maps") as maps:
            assert "libfastreg_cuda" not in maps.read()
    """)


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("/nowhere/libfastreg_cuda.so", "cannot be opened: .*/nowhere/libfastreg_cuda.so"),
        ("", "is of another version of fastreg"),  # the core, which is no backend
    ],
)
def test_a_wrong_library_is_told(library: str, words: str) -> None:
    core = _info.native_core()
    assert core is not None
    reason = runs(STATE, FASTREG_CUDA_LIBRARY=library or str(core.__file__))
    assert re.search(words, reason), reason


@pytest.fixture
def library_of_another_release(tmp_path: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path / "fastreg_kernels_cuda13"
    folder.mkdir()
    source, library = tmp_path / "backend.c", folder / "libfastreg_cuda.so"
    source.write_text(
        """
        struct { unsigned version; const char *name, *release; } backend = {8, "cuda", "9.9.9"};
        const void* fastreg_backend(void) { return &backend; }
        """
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


OF_ANOTHER_RELEASE = (
    "the library of the CUDA backend is that of fastreg-kernels 9.9.9, and this is {}; "
    "install the same version of both: "
)


def own_release() -> str:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^version = "(.*)"$', project, re.MULTILINE)[0]


def test_a_library_of_another_release_is_refused_and_the_cpu_goes_on(
    library_of_another_release: Path,
) -> None:
    output = runs(
        STATE
        + """
import numpy
from fastreg.regularizers import L2
assert L2(0.5)(numpy.ones(3)) == 1.5
""",
        FASTREG_CUDA_LIBRARY=str(library_of_another_release),
    )
    expected = OF_ANOTHER_RELEASE.format(own_release())
    assert output.strip() == expected + str(library_of_another_release)


def test_a_library_that_is_installed_by_itself_is_found(library_of_another_release: Path) -> None:
    """Beside the package, where there is none in it; here one that is then refused."""
    core = _info.native_core()
    assert core is not None
    package = library_of_another_release.parents[1] / "fastreg"
    package.mkdir()
    copy = shutil.copy(str(core.__file__), package)
    reason = runs(f"""
        import importlib.util
        spec = importlib.util.spec_from_file_location("fastreg._core", {copy!r})
        core = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(core)
        print(core.cuda_state()[1])
    """)
    assert reason.startswith(OF_ANOTHER_RELEASE.format(own_release())), reason
    assert reason.strip().endswith("/../fastreg_kernels_cuda13/libfastreg_cuda.so")


def test_the_distribution_of_the_library_has_the_version_of_this_one() -> None:
    project = (ROOT / "packages/cuda13/pyproject.toml").read_text(encoding="utf-8")
    version = own_release()
    assert f'version = "{version}"' in project.splitlines()
    assert f'dependencies = ["fastreg-kernels=={version}"]' in project.splitlines()
