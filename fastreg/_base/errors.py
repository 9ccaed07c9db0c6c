"""The errors that several modules raise, and how messages describe an argument.

``TypeError`` for a wrong kind, ``ValueError`` for a wrong value, ``BufferError`` for memory that
may not be written.  Each message has the argument, what it was and what to pass instead.  Errors
are built here and raised where the fault is found, so that each has one text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np


def described(value: object, limit: int = 60) -> str:
    """Return what an argument was: its type, and its value where that is short."""
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    if value is None:
        return "None"
    if isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        try:
            text = repr(value)
        except ValueError:  # Python refuses to print integers of thousands of digits
            return f"a very large {name}"
        return f"{name} {text if len(text) <= limit else text[: limit - 3] + '...'}"
    return f"a {name}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean ...?)`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def listed(words: Iterable[str], limit: int = 8) -> str:
    """Join names for a message and cut long lists."""
    names = [repr(word) for word in words]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def name_of(function: object) -> str:
    """Return what messages call a callable: its own name, or that of its class."""
    return str(getattr(function, "__name__", None) or type(function).__name__)


@contextmanager
def prefixed(label: str) -> Iterator[None]:
    """Put a label before the message of a TypeError or ValueError that is raised inside."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{label}: {error}") from error


_HOLDERS = {
    ("torch", "Module"): (
        "pass its weight, layer.weight for example, or call fastreg.torch.attach(module, rules) "
        "for all of its parameters"
    ),
    ("keras", "Layer"): (
        "pass an array of it, layer.kernel for example, or give the layer "
        "kernel_regularizer=fastreg.keras.L1L2(...)"
    ),
    ("fastreg", "Layer"): (
        "pass an array of it, layer.kernel for example, or give the layer "
        "kernel_regularizer=L1L2(...)"
    ),
    ("fastreg", "Sequential"): (
        "pass an array of one of its layers, layer.kernel for example, or give the layers "
        "kernel_regularizer=L1L2(...)"
    ),
    ("equinox", "Module"): (
        "pass an array of it, layer.weight for example, or call fastreg.jax.attach(module, rules) "
        "for all of its leaves"
    ),
    ("flax", "Module"): (
        "pass an array of it, layer.kernel for example, or call fastreg.jax.attach(tree, rules) "
        "with the tree of parameters (nnx.state(module) or variables['params'])"
    ),
}
"""What to pass instead of a module or layer, by package and class."""


def holder_remedy(x: object) -> str | None:
    """Return what to pass instead of a module or layer, or None for other objects."""
    for kind in type(x).__mro__:
        remedy = _HOLDERS.get((kind.__module__.partition(".")[0], kind.__name__))
        if remedy is not None:
            return remedy
    return None


def kind_error(x: object, name: str) -> TypeError:
    """Build the error for an object that is not an array readable without a copy."""
    kind = type(x)
    package = kind.__module__.partition(".")[0]
    holder = holder_remedy(x)
    if holder is not None:
        remedy = holder
    elif x is None:
        remedy = "pass an array"
    elif isinstance(x, (list, tuple)):
        remedy = f"pass numpy.asarray({name}), or fastreg.attach for many arrays"
    elif isinstance(x, (int, float, complex)):
        remedy = f"pass numpy.asarray({name})"
    elif isinstance(x, (str, bytes, bytearray)):
        remedy = f"pass an array of numbers, for example numpy.frombuffer({name}, dtype=...)"
    elif isinstance(x, dict):
        remedy = "pass one array, or use fastreg.attach for a mapping of arrays (not nested)"
    elif package == "scipy":
        remedy = f"pass {name}.data (zeros add nothing to a penalty) or {name}.toarray()"
    elif package in ("pandas", "polars", "pyarrow"):
        remedy = f"pass {name}.to_numpy()"
    elif hasattr(kind, "__array__"):
        remedy = f"pass numpy.asarray({name}), which may copy"
    else:
        remedy = "pass a NumPy array or another array in host memory"
    return TypeError(f"{name} must be an array, not {described(x)}; {remedy}")


def dtype_error(name: str, dtype: object, remedy: str = "") -> TypeError:
    """Build the error for an element type that has no penalty."""
    return TypeError(
        f"{name} has dtype {dtype}; its elements must be float16, bfloat16, float32, float64, "
        "or an integer type of up to 64 bits or bool for a value"
        + (f"; {remedy}" if remedy else f"; pass for example {name}.astype(numpy.float32)")
    )


def dlpack_dtype_error(name: str, dtype: str) -> TypeError:
    """Build the error for an element type of another library's array."""
    return dtype_error(
        name, dtype, "convert it in the library that made it, for example to float32"
    )


def byte_order_error(name: str, dtype: object) -> TypeError:
    """Build the error for an array in the other byte order."""
    return TypeError(
        f"{name} has dtype {dtype}, which is not in this machine's byte order; pass "
        f'{name}.astype({name}.dtype.newbyteorder("="))'
    )


def device_error(name: str, device: str, reason: str = "") -> TypeError:
    """Build the error for an array outside host memory; `reason` is why there is no CUDA."""
    if device.startswith("cuda"):
        why = f"CUDA is off: {reason}" if reason else "this runs in host memory only"
        return TypeError(f"{name} is on CUDA ({device}); {why}; pass a copy in host memory")
    return TypeError(f"{name} is on the device {device!r}; pass a copy in host memory")


def special_array_error(name: str, what: str, remedy: str) -> TypeError:
    """Build the error for an array whose elements do not simply lie in memory."""
    return TypeError(f"{name} is {what}; {remedy}")


def dlpack_error(name: str, x: object, error: Exception) -> TypeError:
    """Build the error for an array whose ``__dlpack__`` fails."""
    remedy = "pass a copy"
    if type(x).__module__.partition(".")[0] == "pyarrow":
        remedy = f"pass {name}.to_numpy(zero_copy_only=False), which may copy"
    return special_array_error(name, f"{described(x)} whose __dlpack__ fails ({error})", remedy)


def read_only_error(name: str, why: str = "a read-only array", remedy: str = "") -> BufferError:
    """Build the error for memory which may not be written."""
    return BufferError(f"{name} is {why}; {remedy or 'pass a writable array or a copy'}")


def unversioned_error(name: str, x: object) -> BufferError:
    """Build the error for a DLPack capsule of the old kind, which has no read-only flag."""
    return read_only_error(
        name,
        f"{described(x)} whose DLPack capsule has no version and so cannot say that it may be "
        "written",
        "pass a NumPy view of it, or another array whose library can say",
    )


def number_error(value: object, name: str) -> TypeError:
    """Build the error for a callable that returned something other than one number."""
    shape = getattr(value, "shape", None)
    what = described(value) + (f" of shape {tuple(shape)}" if shape else "")
    return TypeError(f"{name} must be one number, not {what}; sum it")


def recorded_target_error(name: str) -> TypeError:
    """Build the error for a torch tensor whose in-place change autograd would miss."""
    return TypeError(
        f"{name} is a torch tensor that requires a gradient while torch records gradients: writing "
        "into it would make those gradients wrong; pass a tensor that does not require one (as "
        "parameter.grad is), or call this under torch.no_grad()"
    )


def changed_error(name: str = "an array of the call") -> RuntimeError:
    """Build the error for an array that another one's code has moved under the call."""
    return RuntimeError(
        f"{name} was moved, resized or freed by code that the call ran for another array (its "
        "__dlpack__, for example, or a rule); nothing was written; pass arrays that stay as they "
        "are"
    )


def matrix_error(shape: tuple[int, ...]) -> ValueError:
    """Build the error for an array that is not a matrix, to be made orthogonal."""
    return ValueError(
        f"w must have 2 axes for OrthogonalRegularizer, not shape {shape}; pass w.reshape(...)"
    )


def leaf_label(name: str) -> str:
    """Return what messages call a leaf; a tree that is one array has a leaf without a name."""
    return f"params[{name!r}]" if name else "params"
