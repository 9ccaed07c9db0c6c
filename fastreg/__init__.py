"""L1, L2 and L1L2 penalties and their gradients: fused, repeatable, for training loops.

>>> import numpy
>>> from fastreg import regularizers
>>> w = numpy.array([1.0, -2.0, 0.0])
>>> grad = numpy.zeros(3)
>>> regularizers.L1L2(l1=0.5, l2=0.25).accumulate(w, grad)
2.75
>>> grad
array([ 1. , -1.5,  0. ])

``fastreg.attach`` does the same for the tensors of a whole model in one call.  NumPy is the only
package needed; torch, JAX and Keras arrays are taken as they are.  ``fastreg.layers`` has the
layers of Keras with their regularizer keywords, for loops in NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import regularizers
from ._autodiff import dispatch as _dispatch
from ._base import arguments as _arguments
from ._engine import backend as _backend
from ._norms import clip_by_global_norm, norms
from .penalties import Penalties, attach

if TYPE_CHECKING:
    from . import backend, cuda, layers, models, optimizers
    from . import jax as jax
    from . import keras as keras
    from . import torch as torch
    from .layers import Sequential

__all__ = [
    "Penalties",
    "Sequential",
    "__version__",
    "attach",
    "backend",
    "clip_by_global_norm",
    "cuda",
    "get_instruction_set",
    "get_num_threads",
    "layers",
    "models",
    "norms",
    "optimizers",
    "regularizers",
    "set_instruction_set",
    "set_num_threads",
]

__version__: str
"""Read at first use: importlib.metadata takes longer to import than this package."""

# Imported at first use, as most users of the penalties need none of them.  The adapters are
# not in __all__: `from fastreg import *` must not fail for want of a framework.
_ADAPTERS = ("jax", "keras", "torch")
_LAZY = ("backend", "cuda", "layers", "models", "optimizers", *_ADAPTERS)

# The port for arrays of Keras itself knows regularizers: it lies above dispatch.
_dispatch.PORTS["keras"] = "fastreg.keras.expression"


if not TYPE_CHECKING:  # or every name would be an attribute

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return import_module(f"{__name__}.{name}")
        if name == "Sequential":
            return import_module(f"{__name__}.layers").Sequential
        if name == "__version__":
            return _version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ADAPTERS})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    global __version__
    try:
        __version__ = version("fastreg-kernels")
    except PackageNotFoundError:  # run from a checkout
        __version__ = "0.0.0+source"
    return __version__


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, the caller's included.

    Parameters
    ----------
    n
        At least 1, else a TypeError or ValueError.  The bits of every result are the same for any
        number.  The NumPy fallback checks `n` and runs on one thread.

    >>> import fastreg
    >>> before = fastreg.get_num_threads()
    >>> fastreg.set_num_threads(1)
    >>> fastreg.get_num_threads()
    1
    >>> fastreg.set_num_threads(before)
    """
    _backend.set_num_threads(_arguments.thread_count(n, "n"))


def get_num_threads() -> int:
    """Return how many threads a call may use; see :func:`set_num_threads`."""
    return _backend.get_num_threads()


def set_instruction_set(name: str) -> None:
    """Force one of the instruction sets that this machine has; results keep their bits.

    Parameters
    ----------
    name
        "portable", "avx2", "avx512" or "neon"; "numpy" with the NumPy fallback.  ValueError when
        this build or machine does not have it; the message lists those it has.

    >>> import fastreg
    >>> fastreg.set_instruction_set(fastreg.get_instruction_set())
    """
    _backend.set_instruction_set(_arguments.choice(name, "name", _backend.instruction_sets()))


def get_instruction_set() -> str:
    """Return the instruction set in use; see :func:`set_instruction_set`."""
    return _backend.instruction_set()
