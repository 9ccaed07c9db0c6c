"""The classes: a regularizer of fastreg and one of Keras in one object.

They derive from the class of ``keras.regularizers`` with the same name for ``isinstance`` alone:
none of its code runs.  A call returns a tensor of the backend, also where fastreg alone returns a
float.  They are saved as "fastreg>L1" and so on, with the class names and configurations of Keras:
where ``fastreg.keras`` is imported this class is loaded, elsewhere Keras loads its own.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import regularizers
from ..regularizers.elementwise import SAME_PENALTY, Elementwise
from ._framework import backend, keras

if TYPE_CHECKING:  # Keras has no types, and a base without types would hide those of fastreg

    class _theirs:  # noqa: N801
        L1: TypeAlias = object
        L2: TypeAlias = object
        L1L2: TypeAlias = object
        OrthogonalRegularizer: TypeAlias = object
else:
    _theirs = keras.regularizers


def _tensor(value: Any, w: Any) -> Any:
    """Return the penalty of `w` as a tensor of the backend; it is a float where `w` is NumPy's."""
    if not isinstance(value, float):
        return value
    double = backend != "jax" and str(getattr(w, "dtype", "")) == "float64"
    return keras.ops.convert_to_tensor(value, "float64" if double else "float32")


def _call(self: Elementwise, w: Any, *, scale: Any = 1.0) -> Any:
    """Return the penalty of `w`, times `scale`, as a 0-d tensor of the backend."""
    return _tensor(Elementwise.__call__(self, w, scale=scale), w)


SAME_PENALTY.add(_call)


def _with_arguments_of(base: type, kind: type) -> str | None:
    """Return the docstring of a class, with Parameters and Raises of the one that it extends."""
    if kind.__doc__ is None or base.__doc__ is None:  # python -OO
        return None
    head, examples = inspect.cleandoc(kind.__doc__).split("Examples\n", 1)
    arguments = re.split(r"(?=Parameters\n|Notes\n|Examples\n)", inspect.cleandoc(base.__doc__))[1]
    return f"{head}{arguments}Examples\n{examples}"


class L1(regularizers.L1, _theirs.L1):
    """The penalty ``l1 * sum(abs(w))``, for the layers of Keras.

    Examples
    --------
    >>> import keras
    >>> layer = keras.layers.Dense(3, kernel_regularizer=L1(0.5))
    >>> layer.build((None, 4))
    >>> len(layer.losses)
    1
    >>> float(L1(0.5)(keras.ops.ones((4, 3))))
    6.0
    """

    __call__ = _call


class L2(regularizers.L2, _theirs.L2):
    """The penalty ``l2 * sum(w**2)``, for the layers of Keras: no half, no root.

    Examples
    --------
    >>> import keras
    >>> float(L2(0.5)(keras.ops.convert_to_tensor([3.0, -4.0])))
    12.5
    >>> isinstance(L2(), keras.regularizers.L2)
    True
    """

    __call__ = _call


class L1L2(regularizers.L1L2, _theirs.L1L2):
    """The penalty ``l1 * sum(abs(w)) + l2 * sum(w**2)``, for the layers of Keras.

    Examples
    --------
    >>> import keras
    >>> layer = keras.layers.Dense(3, kernel_regularizer=L1L2(l1=1e-5, l2=1e-4))
    >>> keras.layers.Dense.from_config(layer.get_config()).kernel_regularizer
    L1L2(l1=1e-05, l2=0.0001)
    """

    __call__ = _call


class OrthogonalRegularizer(regularizers.OrthogonalRegularizer, _theirs.OrthogonalRegularizer):
    """Push the rows (or columns) of a matrix to be orthogonal, for the layers of Keras.

    Examples
    --------
    >>> import keras
    >>> regularizer = OrthogonalRegularizer(factor=1.0)
    >>> w = keras.ops.convert_to_tensor([[1.0, 0.0], [3.0, 4.0]])
    >>> round(float(regularizer(w)), 6)
    0.6
    """

    # Named again beside __call__: a class that redefines only that one has lost its gradient.
    if not TYPE_CHECKING:
        gradient = regularizers.OrthogonalRegularizer.gradient

    def __call__(self, w: Any, *, scale: Any = 1.0) -> Any:
        """Return the penalty of a matrix, as a tensor of the backend."""
        return _tensor(regularizers.OrthogonalRegularizer.__call__(self, w, scale=scale), w)


_register = keras.saving.register_keras_serializable(package="fastreg")
for _class in (L1, L2, L1L2, OrthogonalRegularizer):
    _base: Any = getattr(regularizers, _class.__name__)
    # The class of fastreg.regularizers is saved under the same name, and loaded as the class here,
    # which is one of those as well: the later registration is the one that is found.
    _register(_base)
    _class.__module__ = __package__
    _class.__doc__ = _with_arguments_of(_base, _class)
    _register(_class)
del _class, _base
