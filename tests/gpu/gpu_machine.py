"""What a machine has for CUDA: devices, driver, compiler, headers, tools.  Standard library only.

Contract: nothing is installed or fetched, nothing on the device is changed, and what is missing is
said by name.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

#: Packages whose versions belong to a result.
PACKAGES = {
    "numpy": ("numpy",),
    "ml_dtypes": ("ml_dtypes",),
    "torch": ("torch",),
    "triton": ("triton",),
    "cupy": ("cupy", "cupy-cuda13x", "cupy-cuda12x"),
    "jax": ("jax",),
    "pytest": ("pytest",),
    "rich": ("rich",),
}

#: Folders and patterns of the sources that a result is of.
SOURCES = (("csrc", "*"), ("cmake", "*"), ("fastreg", "*"), ("tests/gpu", "*.py"))

#: The driver's numbers of a device's attributes.
ATTRIBUTES = {
    "multiprocessors": 16,
    "memory_bus_bits": 37,
    "l2_bytes": 38,
    "capability_major": 75,
    "capability_minor": 76,
}


class NoDeviceError(Exception):
    """Why there is no CUDA device."""


# ------------------------------------------------------------------------------------- devices


class Driver:
    """The calls of the driver's library that describe devices."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise NoDeviceError(f"the driver's library is not there ({error})") from None
        error = self.library.cuInit(0)
        if error != 0:
            text = ctypes.c_char_p()
            self.library.cuGetErrorName(error, ctypes.byref(text))
            raise NoDeviceError(f"the driver says {(text.value or b'?').decode()} ({error})")

    def integer(self, function: str, *arguments: Any) -> int:
        found = ctypes.c_int()
        error = getattr(self.library, function)(ctypes.byref(found), *arguments)
        if error != 0:
            raise NoDeviceError(f"{function} gives error {error}")
        return found.value

    def device(self, index: int) -> dict[str, Any]:
        device = self.integer("cuDeviceGet", index)
        name = ctypes.create_string_buffer(256)
        self.library.cuDeviceGetName(name, 256, device)
        memory = ctypes.c_size_t()
        self.library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        numbers = {
            key: self.integer("cuDeviceGetAttribute", number, device)
            for key, number in ATTRIBUTES.items()
        }
        capability = [numbers.pop("capability_major"), numbers.pop("capability_minor")]
        return {
            "name": name.value.decode(errors="replace"),
            "capability": capability,
            "memory_bytes": memory.value,
            **numbers,
        }


def devices() -> list[dict[str, Any]]:
    """Describe every device.

    Raises
    ------
    NoDeviceError
        When there is none, with the driver's reason.
    """
    driver = Driver()
    count = driver.integer("cuDeviceGetCount")
    if count == 0:
        raise NoDeviceError("the driver sees no device")
    return [driver.device(index) for index in range(count)]


def cuda_of_driver() -> str:
    """Return the version of CUDA that the driver speaks, such as 13.0."""
    version = Driver().integer("cuDriverGetVersion")
    return f"{version // 1000}.{version % 1000 // 10}"


def driver_version() -> str | None:
    """Return the driver's own version."""
    try:
        management = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if management.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(96)
    failed = management.nvmlSystemGetDriverVersion(text, 96)
    management.nvmlShutdown()
    return None if failed else text.value.decode()


# --------------------------------------------------------------------------------------- tools


def toolkit_folders() -> Iterator[Path]:
    """Return where a toolkit may be: as named, in its usual place, in Python's packages."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name])
    yield Path("/usr/local/cuda")
    yield from sorted(Path("/usr/local").glob("cuda-*"), reverse=True)
    for entry in dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")):
        yield from sorted(Path(entry).glob("nvidia/cu1[2-9]"), reverse=True)
        yield Path(entry) / "nvidia" / "cuda_nvcc"


def find_tool(name: str) -> str | None:
    """Return the path of one of CUDA's programs: that in PATH, else of a toolkit."""
    found = shutil.which(name)
    for folder in toolkit_folders():
        for place in ("bin", "compute-sanitizer"):
            found = found or shutil.which(name, path=str(folder / place))
    return found


def find_nvcc() -> str | None:
    return os.environ.get("CUDACXX") or find_tool("nvcc")


def known_architectures(nvcc: str) -> list[int]:
    """Return what a compiler can make code for, such as [75, 80, 90]; empty if it does not say."""
    said = output_of([nvcc, "--list-gpu-arch"]) or ""
    return sorted({int(number) for number in re.findall(r"compute_(\d+)\b", said)})


def architecture(capability: Sequence[int], known: Sequence[int]) -> str:
    """Return CMAKE_CUDA_ARCHITECTURES for one device.

    A compiler that is older than the device makes code that the driver translates.

    >>> architecture((9, 0), [75, 80, 90, 100])
    '90-real'
    >>> architecture((12, 0), [75, 80, 90])
    '90-virtual'
    """
    own = 10 * capability[0] + capability[1]
    older = [number for number in known if number <= own]
    return f"{own}-real" if own in known or not older else f"{max(older)}-virtual"


def pybind11_package(folder: Path) -> str | None:
    """Return the directory of pybind11's CMake package.

    Torch ships pybind11's headers: where pybind11 itself is missing, `folder` gets a CMake package
    around those.
    """
    found = output_of([sys.executable, "-m", "pybind11", "--cmakedir"])
    if found:
        return found
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    include = Path(torch.origin).parent / "include"
    header = include / "pybind11" / "detail" / "common.h"
    version = version_of_headers(header.read_text()) if header.exists() else None
    if version is None or int(version.split(".")[0]) < 3:  # what CMakeLists.txt asks for
        return None
    write_package(folder, include, version)
    return str(folder)


def version_of_headers(text: str) -> str | None:
    """Read pybind11's version.

    >>> version_of_headers("#define PYBIND11_VERSION_MAJOR 3\\n#define PYBIND11_VERSION_MINOR 0\\n")
    '3.0.0'
    """
    parts = dict(re.findall(r"#\s*define PYBIND11_VERSION_(MAJOR|MINOR|MICRO)\s+(\d+)", text))
    if not {"MAJOR", "MINOR"} <= parts.keys():
        return None
    return f"{parts['MAJOR']}.{parts['MINOR']}.{parts.get('MICRO', '0')}"


def write_package(folder: Path, include: Path, version: str) -> None:
    """Write a CMake package for headers that come without one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pybind11ConfigVersion.cmake").write_text(
        f'set(PACKAGE_VERSION "{version}")\nset(PACKAGE_VERSION_COMPATIBLE TRUE)\n'
    )
    (folder / "pybind11Config.cmake").write_text(
        "function(pybind11_add_module name)\n"
        '  cmake_parse_arguments(PARSE_ARGV 1 module "MODULE;NO_EXTRAS" "" "")\n'
        "  Python_add_library(${name} MODULE WITH_SOABI ${module_UNPARSED_ARGUMENTS})\n"
        f'  target_include_directories(${{name}} SYSTEM PRIVATE "{include.as_posix()}")\n'
        "endfunction()\n"
    )


def missing_for_build(nvcc: str | None, pybind11: str | None) -> list[str]:
    """Name what a build needs and this machine lacks."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = os.environ.get("CXX", "c++")
    needed = {
        "cmake": shutil.which("cmake"),
        "ninja or make": shutil.which("ninja") or shutil.which("make"),
        f"a C++ compiler ({compiler})": shutil.which(compiler),
        "nvcc": nvcc,
        f"Python's headers ({headers})": headers.exists(),
        "numpy": importlib.util.find_spec("numpy"),
        "pybind11 3 (or a torch that ships its headers)": pybind11,
    }
    return [name for name, found in needed.items() if not found]


# --------------------------------------------------------------------------------------- facts


def facts(root: Path) -> dict[str, Any]:
    """Describe the machine and the source, as a result needs them; no device is an entry too."""
    nvcc = find_nvcc()
    result: dict[str, Any] = {
        "python": sys.version.split()[0],
        "system": " ".join(os.uname()[index] for index in (0, 2, 4)),
        "cores": len(os.sched_getaffinity(0)),
        "commit": output_of(["git", "-C", str(root), "rev-parse", "HEAD"]),
        "sources": sources_hash(root),
        "changed_files": lines_of(["git", "-C", str(root), "status", "--porcelain"]),
        "nvcc": nvcc,
        "nvcc_version": lines_of([nvcc, "--version"])[-2:] if nvcc else [],
        "compute_sanitizer": find_tool("compute-sanitizer"),
        "packages": {name: package_version(names) for name, names in PACKAGES.items()},
        "driver": None,
        "cuda_of_driver": None,
        "devices": [],
        "no_device": None,
    }
    try:
        result["devices"] = devices()
        result["cuda_of_driver"] = cuda_of_driver()
        result["driver"] = driver_version()
    except NoDeviceError as error:
        result["no_device"] = str(error)
    return result


def sources_hash(root: Path) -> str:
    """Return a hash of what is built and run, for where no repository tells what it was."""
    digest = hashlib.sha256()
    files = [root / "CMakeLists.txt", root / "pyproject.toml"]
    for folder, pattern in SOURCES:
        files += [path for path in (root / folder).rglob(pattern) if path.is_file()]
    for path in sorted(set(files)):
        if path.exists() and "__pycache__" not in path.parts and path.suffix != ".so":
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def package_version(names: Sequence[str]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def output_of(command: Sequence[str]) -> str | None:
    """Return what a program prints, or None where it fails or is not there."""
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.rstrip()


def lines_of(command: Sequence[str]) -> list[str]:
    return (output_of(command) or "").splitlines()
