"""Check that JAX is there, and new enough: what every module of this package imports first."""

from __future__ import annotations

_OLDEST = (0, 5)

try:
    import jax
except ImportError as error:
    raise ImportError(
        "fastreg.jax needs JAX, which does not import here; install fastreg-kernels[jax]"
    ) from error

if jax.__version_info__[:2] < _OLDEST:
    raise ImportError(
        f"fastreg.jax needs JAX {_OLDEST[0]}.{_OLDEST[1]} or later, for jax.ffi, not "
        f"{jax.__version__}; install fastreg-kernels[jax]"
    )
