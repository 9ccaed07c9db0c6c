"""Facts about this installation and machine, for ``python -m fastreg info``.

Frameworks are looked up, never imported. What ``gather`` returns is what JSON can hold.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import textwrap
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import fastreg

from ._arrays.library import loaded
from ._engine import backend

#: How the arrays of a framework are read, in the order of the listing.
PATHS = {
    "numpy": "array struct, no copy",
    "torch": "DLPack C exchange (CPU and CUDA tensors and parameters), no copy",
    "jax": "buffer (CPU arrays), DLPack (CUDA arrays), read-only",
    "ml_dtypes": "bfloat16 arrays of NumPy by their descriptor, no copy",
    "keras": "the array inside the variable, by its framework's path",
    "tensorflow": "DLPack (CPU tensors)",
    "cupy": "CUDA array interface, no copy, where CUDA is available",
}

#: The adapters, each for a framework.
ADAPTERS = ("torch", "jax", "keras")

#: The distribution of another project which installs a module of the same name.
CLASHING_DISTRIBUTION = "fastreg"
OWN_DISTRIBUTION = "fastreg-kernels"

_SHADOWS = (
    "instead of the copy that is installed in {}, because this one comes first on Python's path: "
    "start Python in another directory to use that"
)

#: Of the text, in characters.
WIDTH = 80
INDENT = 18


@cache
def native_core() -> ModuleType | None:
    """Return the compiled core, or None where it is not built or cannot be loaded."""
    try:
        return importlib.import_module("fastreg._core")
    except ImportError:
        return None


def gather() -> dict[str, Any]:
    """Return all facts, in the order in which they are printed.

    >>> list(gather())[:5]
    ['fastreg', 'build', 'instruction_sets', 'policy', 'threads']
    """
    core = native_core()
    return {
        "fastreg": {
            "version": fastreg.__version__,
            "location": str(Path(fastreg.__file__).parent),
            "shadowed": shadowed(),
            "backend": backend.name,
            "reason": _backend_reason(core),
        },
        "build": dict(core.build_info()) if core is not None else None,
        "instruction_sets": _instruction_sets(core),
        "policy": core.policy() if core is not None else None,
        "threads": fastreg.get_num_threads() if _backend_is_usable(core) else None,
        "torch_threads": _torch_threads(core),
        "cuda": _cuda(core),
        "machine": machine(),
        "frameworks": frameworks(),
        "adapters": adapters(),
        "clash": name_clash(),
    }


def _torch_threads(core: ModuleType | None) -> dict[str, Any] | None:
    """Return whose threads take a large call on tensors of torch, how many, and why not torch's."""
    if core is None or backend.name == "numpy":
        return None
    whose, count, reason = core.torch_threads()
    return {"whose": whose, "threads": count, "reason": reason or None}


def _cuda(core: ModuleType | None) -> dict[str, Any]:
    """Return whether there is CUDA, and why not; this opens the library of the backend."""
    if core is None:
        return {"available": False, "reason": "not built: there is no compiled core"}
    available, reason, devices = core.cuda_state()
    return {"available": available, "reason": reason or None, "devices": devices}


def machine() -> dict[str, Any]:
    """Return the processor, the cores which this process may use, system and interpreter."""
    return {
        "processor": _processor(),
        "cores": _usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def frameworks() -> dict[str, dict[str, str | None]]:
    """Return, by framework, its version (None: not installed) and how its arrays are read."""
    paths = dict(PATHS)
    if backend.name == "numpy":
        paths["torch"] = "data_ptr() (CPU tensors and parameters), no copy"
    return {name: {"version": version(name), "path": path} for name, path in paths.items()}


def adapters() -> dict[str, bool]:
    """Return, by module of an adapter, whether the framework that it needs is installed."""
    return {f"fastreg.{name}": version(name) is not None for name in ADAPTERS}


def name_clash() -> str | None:
    """Return what to do about another project's module ``fastreg``; None without one."""
    try:
        version = metadata.version(CLASHING_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    return (
        f"the distribution {CLASHING_DISTRIBUTION} {version}, a different project, installs a "
        f"module of the same name, and the two overwrite each other's files. Remove it with "
        f"`python -m pip uninstall {CLASHING_DISTRIBUTION}`, then install {OWN_DISTRIBUTION} "
        "again, or keep them in two virtual environments"
    )


def shadowed() -> str | None:
    """Return the directory of an installed copy that is not the one that runs, or None."""
    try:
        installed = metadata.distribution(OWN_DISTRIBUTION).locate_file("fastreg/__init__.py")
    except metadata.PackageNotFoundError:
        return None
    module = Path(str(installed))  # an editable installation has no such file
    if not module.is_file() or module.samefile(fastreg.__file__):
        return None
    return str(module.parent)


def _backend_is_usable(core: ModuleType | None) -> bool:
    """Return whether calls work: without a core, FASTREG_BACKEND=native fails in them."""
    return backend.name == "numpy" or core is not None


def _backend_reason(core: ModuleType | None) -> str:
    asked = "FASTREG_BACKEND" in os.environ
    if not _backend_is_usable(core):
        return f"asked for by FASTREG_BACKEND, but the compiled core is not there: {backend.reason}"
    if asked:
        return "asked for by FASTREG_BACKEND"
    if backend.name == "native":
        return "the compiled core is there"
    return f"the compiled core is not there: {backend.reason}"


def _instruction_sets(core: ModuleType | None) -> dict[str, Any]:
    compiled = list(core.compiled_instruction_sets()) if core is not None else []
    found = list(core.instruction_sets()) if core is not None else []
    return {
        "compiled": compiled,
        "found": found,
        "chosen": backend.instruction_set() if _backend_is_usable(core) else None,
        # compiled for other machines: this processor lacks them, so they cannot have run here
        "never_run_here": [name for name in compiled if name not in found],
    }


def version(module: str) -> str | None:
    """Return the version of an installed module, without importing it."""
    if module in sys.modules:
        return str(getattr(sys.modules[module], "__version__", "unknown version"))
    if find_spec(module) is None:
        return None
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:  # the distribution has another name, such as cupy-cuda12x
        names = metadata.packages_distributions().get(module, [])
        return metadata.version(names[0]) if names else "unknown version"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def render(facts: dict[str, Any]) -> str:
    """Return the facts as text, aligned, in 80 columns where no word is longer."""
    own, build, sets, host = (
        facts[key] for key in ("fastreg", "build", "instruction_sets", "machine")
    )
    compiler = (
        f"{build['compiler']}, C++{str(build['cxx_standard'])[2:4]}, {build['build_type']}"
        if build
        else "none: there is no compiled core"
    )
    cuda = facts["cuda"]
    lines = [
        ("fastreg", f"{own['version']}, in {own['location']}"),
        *([("", _SHADOWS.format(own["shadowed"]))] if own["shadowed"] else []),
        ("backend", f"{own['backend']}: {own['reason']}"),
        ("compiler", compiler),
        ("instruction sets", f"chosen    {sets['chosen'] or 'none'}"),
        ("", f"found     {_listed(sets['found'])}"),
        ("", f"compiled  {_listed(sets['compiled'])}"),
    ]
    if sets["never_run_here"]:
        missing = _listed(sets["never_run_here"])
        lines.append(("", f"compiled, never run here, as this processor lacks it: {missing}"))
    lines += [
        *_policy_lines(facts["policy"]),
        ("threads", str(facts["threads"] or "none")),
        *_lines_of_torch_threads(facts["torch_threads"]),
        ("CUDA", "available" if cuda["available"] else f"not available: {cuda['reason']}"),
        ("machine", f"{host['processor']}, {host['cores']} cores"),
        ("", f"{host['system']}, Python {host['python']}"),
        ("frameworks", ""),
    ]
    for name, found in facts["frameworks"].items():
        version = found["version"]
        lines.append((f"  {name}", f"{version}: {found['path']}" if version else "not installed"))
    lines.append(("adapters", ""))
    for name, is_there in facts["adapters"].items():
        needed = f"needs {name.rpartition('.')[2]}"
        lines.append((f"  {name}", "found" if is_there else needed))
    if facts["clash"]:
        lines.append(("name clash", facts["clash"]))
    return "\n".join(_aligned(label, text) for label, text in lines)


def _policy_lines(policy: dict[str, Any] | None) -> list[tuple[str, str]]:
    if policy is None:
        return [("policy", "none: there is no compiled core")]
    caches = f"L2 {policy['l2_bytes'] >> 10} KiB, L3 {policy['l3_bytes'] >> 10} KiB"
    variants = (
        f"{size}: {reading} to read, {writing} to write"
        for size, (reading, writing) in policy["variants"].items()
    )
    return [
        ("policy", f"{policy['name']}: {policy['reason']}"),
        ("", f"{caches} counted on"),
        *(("", line) for line in variants),
    ]


def _lines_of_torch_threads(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    text = f"for tensors of torch: {found['threads']}, {found['whose']}"
    if loaded("torch"):
        return [("", text + (f", as {found['reason']}" if found["reason"] else "'s"))]
    return [("", "for tensors of torch: torch's where they are found (info --torch looks)")]


def _aligned(label: str, text: str) -> str:
    start, indent = f"{label:{INDENT}}", " " * INDENT
    if INDENT + len(text) <= WIDTH:  # columns keep their spaces
        return (start + text).rstrip()
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
