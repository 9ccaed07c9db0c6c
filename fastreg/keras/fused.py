"""All weight penalties of a model from one call: a mixin, and a switch for models that exist.

Contract: ``model.losses`` has Keras' entries, in its order, and Keras does the rest with them: the
loss and its logs, loss scaling, gradient accumulation, compilation.  Fused are the regularizers
that the core evaluates, and L1, L2 and L1L2 of Keras itself, read at each call.  Saved forms do not
change.  ``_get_regularization_losses`` is private to Keras: a Keras without it is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

from ._framework import backend, keras
from .strengths import strengths_of

#: The module for this backend; None where Keras calls each regularizer.
_steps: Any = (
    import_module(f"{__package__}.steps_{backend}") if backend in ("torch", "jax") else None
)
_PLACE = "_get_regularization_losses"

Model = TypeVar("Model")


def fuse(model: Model) -> Model:
    """Have all weight penalties of a model computed by one call, and return the model back.

    Parameters
    ----------
    model : keras.Model
        Of any kind, before or after ``compile``.  It is the model that is trained: penalties of
        models inside it are among its own.  How it is saved does not change; a model that is
        loaded or cloned needs ``fuse`` of its own.

    Returns
    -------
    keras.Model
        `model`.  On other backends than PyTorch and JAX nothing about it has changed.  TypeError
        when it is no Keras model; RuntimeError when this version of Keras has no place for it.

    Examples
    --------
    >>> import keras
    >>> layers = [keras.layers.Dense(3, kernel_regularizer="l2") for _ in range(4)]
    >>> model = fuse(keras.Sequential([keras.Input((3,)), *layers]))
    >>> len(model.losses)
    4
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"model must be a keras.Model, not {type(model).__name__}; pass what is trained"
        )
    _require_place()
    state = vars(model)
    if _steps is None or isinstance(model, FusedPenalties) or _PLACE in state:
        return model
    state[_PLACE] = functools.partial(weight_losses, model, getattr(model, _PLACE))
    for which in ("train", "test"):
        name = f"make_{which}_function"
        state[name] = functools.partial(_make, model, which, getattr(model, name))
        # A function that was made before knows nothing of it.
        setattr(model, f"{which}_function", None)
    return model


class FusedPenalties:
    """A mixin for classes of models: all weight penalties of the model from one call.

    It stands before the class of Keras.  What :func:`fuse` does for one model, it does for all of
    the class.

    Examples
    --------
    >>> import keras
    >>> class Model(FusedPenalties, keras.Model):
    ...     pass
    >>> x = keras.Input((3,))
    >>> layer = keras.layers.Dense(2, kernel_initializer="ones", kernel_regularizer="l1")
    >>> len(Model(x, layer(x)).losses)
    1
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _require_place()

    def _get_regularization_losses(self) -> Sequence[Any]:
        original = super()._get_regularization_losses  # type: ignore[misc]
        return weight_losses(self, original)

    def make_train_function(self, force: bool = False) -> Any:
        """Compile the training step; strengths may be set between steps."""
        original = super().make_train_function  # type: ignore[misc]
        return _make(self, "train", original, force)

    def make_test_function(self, force: bool = False) -> Any:
        """Compile the evaluation step; strengths may be set between steps."""
        original = super().make_test_function  # type: ignore[misc]
        return _make(self, "test", original, force)


def _require_place() -> None:
    if not hasattr(keras.Layer, _PLACE):
        raise RuntimeError(
            f"this version of fastreg cannot fuse the penalties of Keras {keras.__version__}, "
            f"which has no keras.Layer.{_PLACE}; the regularizers work without it"
        )


def _make(model: Any, which: str, original: Callable[..., Any], force: bool = False) -> Any:
    """Have Keras make the function of a step, if it has none, and prepare it for its strengths."""
    if _steps is None or (getattr(model, f"{which}_function") is not None and not force):
        return original(force=force)
    return _steps.make(model, which, original)


def weight_losses(model: Any, original: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """Return what `original`, Keras' method, returns; fused penalties from one call."""
    variables = [v for v in model.trainable_weights if v.regularizer is not None]
    pairs = [strengths_of(variable.regularizer) for variable in variables]
    fused = [(v, pair) for v, pair in zip(variables, pairs, strict=True) if pair is not None]
    if _steps is None or not fused:
        return original()
    values = iter(_steps.losses(model, *zip(*fused, strict=True)))
    # Within a step there may be fewer: their sum.  A stateless one has arrays for the variables.
    losses = (
        variable.regularizer(variable.value if backend == "jax" else variable)
        if pair is None
        else next(values, None)
        for variable, pair in zip(variables, pairs, strict=True)
    )
    return [loss for loss in losses if loss is not None]
