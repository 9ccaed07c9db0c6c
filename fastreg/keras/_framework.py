"""Keras 3 itself, or the reason why it is not there: the only import of Keras in this package."""

from __future__ import annotations

from importlib import import_module
from typing import Any

try:
    keras: Any = import_module("keras")
except ImportError as error:
    raise ImportError(
        "fastreg.keras needs Keras 3 and one of its backends, but `import keras` fails: "
        f"{error}. Install fastreg-kernels[keras] and PyTorch or JAX, and choose the backend by "
        "the environment variable KERAS_BACKEND, torch or jax"
    ) from error

_version = str(getattr(keras, "__version__", "unknown"))
if _version.split(".", 1)[0] in ("0", "1", "2"):
    raise ImportError(
        f"fastreg.keras needs Keras 3, not {_version}; install fastreg-kernels[keras]"
    )

backend: str = keras.backend.backend()
"""Chosen when Keras is imported, and the same from then on."""
