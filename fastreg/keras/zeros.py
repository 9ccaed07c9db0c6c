"""How many weights of a model are exactly 0, layer by layer: counted now, or after every epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .._base import errors
from ..penalties.report import share_of_zeros
from ..penalties.rules import Rules, match
from ._framework import keras
from .proximal import Proximal


class ZerosRow(NamedTuple):
    """The zeros of one layer, or of all.

    >>> ZerosRow(zeros=3, size=4).share
    0.75
    """

    zeros: int
    """How many elements are 0, of either sign."""
    size: int
    """How many elements were counted."""

    @property
    def share(self) -> float:
        """The share of zeros, from 0 to 1; 0.0 without elements."""
        return self.zeros / self.size if self.size else 0.0


class Zeros(dict[str, ZerosRow]):
    """Zeros by the path of a layer: a dict for programs, an aligned plain-text table as ``str``."""

    total: ZerosRow
    """The zeros of all of them."""

    def __init__(self, rows: Mapping[str, ZerosRow]) -> None:
        super().__init__(rows)
        self.total = ZerosRow(
            sum(row.zeros for row in rows.values()), sum(row.size for row in rows.values())
        )

    def __str__(self) -> str:
        cells = [("layer", "zeros", "elements", "share")]
        for name, row in [*self.items(), ("total", self.total)]:
            cells.append((name, f"{row.zeros:,}", f"{row.size:,}", f"{row.share:.1%}"))
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        return "\n".join(
            f"{line[0]:<{widths[0]}}  "
            + "  ".join(f"{line[column]:>{widths[column]}}" for column in (1, 2, 3))
            for line in cells
        )


def zeros(model: Any, names: str | Iterable[str] | None = None) -> Zeros:
    """Count the weights of a model that are exactly 0.

    Parameters
    ----------
    model : keras.Model
        Built.
    names : str or sequence of str, optional
        Globs over the paths of weights (``"*kernel"``): those count that one of them matches.
        Without, the weights that have a rule of the model's :class:`Proximal`; in a model that has
        none, all trainable ones.

    Returns
    -------
    Zeros
        A dict of :class:`ZerosRow` by the path of a layer; ``print`` shows a table.

    Raises
    ------
    TypeError
        When it is no Keras model, or for names that are no strings.
    ValueError
        For a glob that matches no weight, or none that an earlier one does not.

    Examples
    --------
    >>> import keras
    >>> layers = [keras.layers.Dense(2, name="first"), keras.layers.Dense(1, name="last")]
    >>> model = keras.Sequential([keras.Input((3,)), *layers], name="net")
    >>> _ = layers[0].kernel.assign([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    >>> _ = layers[1].kernel.assign([[1.0], [2.0]])
    >>> print(zeros(model, "*kernel"))
    layer      zeros  elements  share
    net/first      4         6  66.7%
    net/last       0         2   0.0%
    total          4         8  50.0%
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"model must be a keras.Model, not {errors.described(model)}")
    rows: dict[str, ZerosRow] = {}
    for weight in _chosen(model, _globs(names)):
        size = math.prod(weight.shape)
        share = share_of_zeros(weight.value, errors.listed([weight.path]))
        path = weight.path.rpartition("/")[0] or weight.path
        before = rows.get(path, ZerosRow(0, 0))
        rows[path] = ZerosRow(before.zeros + round(share * size), before.size + size)
    return Zeros(rows)


if TYPE_CHECKING:  # Keras has no types

    class _Callback:
        model: Any
else:
    _Callback = keras.callbacks.Callback


class ZerosLogger(_Callback):
    """A callback that counts the weights that are exactly 0 after every epoch.

    Their share of all that are counted goes into the logs as "zeros", so it is in the history, and
    callbacks that come after this one can monitor it.

    Parameters
    ----------
    names : str or sequence of str, optional
        Which weights count, as for :func:`zeros`.
    verbose : int, optional
        1 prints the table of the layers at the end of training, 2 after every epoch; 0 nothing.

    Examples
    --------
    >>> import keras, numpy as np
    >>> from fastreg.keras import L1, Proximal, ZerosLogger
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> model.compile(Proximal("sgd", {"*kernel": L1(1e3)}), "mse")
    >>> logger = ZerosLogger()
    >>> log = model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0, callbacks=[logger])
    >>> log.history["zeros"], logger.report.total
    ([1.0], ZerosRow(zeros=6, size=6))
    """

    def __init__(self, names: str | Iterable[str] | None = None, verbose: int = 0) -> None:
        super().__init__()
        self._names = _globs(names)
        self.verbose = verbose
        self.report: Zeros | None = None
        """The :class:`Zeros` of the last epoch; None before the first."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuse names that match nothing before the first epoch, not after it."""
        _chosen(self.model, self._names)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count, and log the share."""
        self.report = zeros(self.model, self._names)
        if logs is not None:
            logs["zeros"] = self.report.total.share
        if self.verbose > 1:
            print(f"\nzeros after epoch {epoch + 1}\n{self.report}")

    def on_train_end(self, logs: Any = None) -> None:
        """Print the last table."""
        if self.verbose == 1 and self.report is not None:
            print(f"\n{self.report}")


for _class in (Zeros, ZerosLogger, ZerosRow):
    _class.__module__ = str(__package__)
del _class


def _globs(names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    globs = (names,) if isinstance(names, str) else names
    if not isinstance(globs, Iterable) or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(
            f"names must be globs (str), not {errors.described(names)}; for example '*kernel'"
        )
    return tuple(globs)


def _chosen(model: Any, globs: tuple[str, ...] | None) -> list[Any]:
    if globs is not None:
        rules = Rules(dict.fromkeys(globs, True), False)
        paths = [weight.path for weight in model.weights]
        taken = match(paths, rules, argument="names", thing="weight")[0]
        return [weight for weight in model.weights if weight.path in taken]
    weights = list(model.trainable_weights)
    optimizer: Any = getattr(model, "optimizer", None)
    while not isinstance(optimizer, Proximal) and hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    if isinstance(optimizer, Proximal) and optimizer.built:
        return [weight for weight in weights if optimizer.rule_of(weight) is not None]
    return weights
