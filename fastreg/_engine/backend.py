"""The choice between the native core and the NumPy fallback.

Contract
--------
- ``FASTREG_BACKEND=numpy|native`` decides; unset, it is native where ``fastreg._core`` imports
  and numpy elsewhere, and `reason` keeps why the core did not import.
- A wrong value of FASTREG_BACKEND, FASTREG_ISA, FASTREG_POLICY, FASTREG_TORCH_THREADS or
  FASTREG_NUM_THREADS is a ValueError at import, whichever backend runs.  ``python -m fastreg``,
  whose own code comes after that, ends with its message and status 2.  Asking for a native core
  that is not there is no failure at import but a RuntimeError at the first use: ``import fastreg``
  must work everywhere.
- Callers go through the module (``backend.evaluate_one(...)``), so that :func:`select` takes
  effect at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from .._base import arguments, core, environment
from . import reference

BACKENDS = ("numpy", "native")
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "neon")
POLICIES = (
    *("default", "sapphire_rapids", "zen5", "zen4", "zen3"),
    *("plain", "near", "far", "pairs", "cached", "whole"),
)
TORCH_THREADS = ("torch", "own")
_SETTINGS_OF_THE_CORE = (
    "FASTREG_ISA",
    "FASTREG_POLICY",
    "FASTREG_TORCH_THREADS",
    "FASTREG_NUM_THREADS",
)

ENTRY_POINTS = (
    "evaluate_one",
    "evaluate_many",
    "accumulate_parameters",
    "have_members",
    "canonical_sum",
    "norm_sums",
    "scale_tensors",
    "measure_step",
    "take_step",
    "shares_address",
    "set_num_threads",
    "get_num_threads",
    "set_instruction_set",
    "instruction_set",
    "instruction_sets",
)

name: str
"""The backend in use: "numpy" or "native"."""

reason: str | None = None
"""Why the native core is not there; None when it is, or was not looked for."""

evaluate_one: Callable[..., Any]
evaluate_many: Callable[..., Any]
accumulate_parameters: Callable[..., Any]
have_members: Callable[..., bool]
canonical_sum: Callable[..., float]
norm_sums: Callable[..., Any]
scale_tensors: Callable[..., Any]
measure_step: Callable[..., Any]
take_step: Callable[..., Any]
shares_address: Callable[..., bool]
set_num_threads: Callable[[int], None]
get_num_threads: Callable[[], int]
set_instruction_set: Callable[[str], None]
instruction_set: Callable[[], str]
instruction_sets: Callable[[], tuple[str, ...]]


def _load_core() -> ModuleType | None:
    """Import the core, or give None and keep the reason."""
    global reason
    try:
        # By its full name, so that a missing core is called missing: `from . import _core` would
        # blame a circular import.
        module = importlib.import_module("fastreg._core")
    except ImportError as error:
        # Whatever stops the core's import comes as an ImportError; a setting that cannot be had
        # here is the user's mistake and not a missing core.
        if str(error).startswith(_SETTINGS_OF_THE_CORE):
            raise ValueError(f"the environment variable {error}") from None
        reason = str(error)
        return None
    reason = None
    return module


def _missing(*_: object, **__: object) -> NoReturn:
    raise RuntimeError(
        f"the native core of fastreg was asked for but is not there: {reason}; install with a C++ "
        "compiler, or set FASTREG_BACKEND=numpy"
    )


def select(backend: str) -> None:
    """Switch to the backend "numpy" or "native" within this process."""
    global name
    arguments.choice(backend, "backend", BACKENDS)
    module = reference if backend == "numpy" else _load_core()
    for entry_point in ENTRY_POINTS:
        globals()[entry_point] = _missing if module is None else getattr(module, entry_point)
    name = backend
    core.is_off = backend == "numpy"


def _select_by_environment() -> None:
    environment.choice("FASTREG_ISA", INSTRUCTION_SETS)
    environment.choice("FASTREG_POLICY", POLICIES)
    environment.choice("FASTREG_TORCH_THREADS", TORCH_THREADS)
    environment.thread_count("FASTREG_NUM_THREADS")
    wanted = environment.choice("FASTREG_BACKEND", BACKENDS)
    if wanted is None:
        wanted = "numpy" if _load_core() is None else "native"
    select(wanted)


try:
    _select_by_environment()
except ValueError as error:
    if not environment.runs_the_command():
        raise
    print(f"python -m fastreg: error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
