"""torch.optim.SGD with penalties in its step."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import torch

from ..._base import arguments, steps
from ..._base.array_types import Real
from ..._base.steps import Settings
from ...optimizers.base import Clip, OnNonfinite, Rate, flags
from ...optimizers.rules import Mode
from .base import Penalised
from .options import number
from .rules import ModedRules, Parameters

_NUMBERS = itemgetter("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


class SGD(Penalised):
    """``torch.optim.SGD`` that takes penalties, a clip and a guard into its step: one pass.

    Without rules the weights are those of torch's fused one to rounding; see
    :mod:`fastreg.torch` for where that one is wrong.

    Parameters
    ----------
    params : torch.nn.Module, or what ``torch.optim.SGD`` takes
        A module stands for its ``named_parameters()``.  Rules by name need names: those of pairs
        (name, parameter), in groups too.  Tied parameters step once.
    lr, momentum, dampening, weight_decay, nesterov, maximize
        As in torch, for all groups that do not have their own.  `lr` may be a tensor of one
        element; one on a device is read there, by each replay of a CUDA graph too.
    foreach, fused : bool, optional
        They change nothing: the step is fused.  Groups have them, for torch to load.
    differentiable : bool, optional
        False.
    rules, mode, strength, independent, initial_lr, cautious, max_norm, clip, on_nonfinite
        As for ``fastreg.optimizers.SGD``; `rules` may be what :func:`fastreg.torch.attach` takes,
        ``kernels(regularizer)`` for a module, or pairs with a mode.  Without `initial_lr` it is the
        group's, which schedulers set, else the `lr` that the group began with.

    Raises
    ------
    TypeError, ValueError
        For an argument that is not right, and a rule that never wins.

    Examples
    --------
    >>> import torch, fastreg.torch
    >>> from fastreg.regularizers import L1
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = model.weight.copy_(torch.tensor([[1.0, -0.25, 0.0]]))
    >>> optimizer = fastreg.torch.SGD(model, lr=0.5, rules=fastreg.torch.kernels(L1(0.25)))
    >>> model.weight.grad = torch.tensor([[0.25, -0.25, 0.125]])
    >>> optimizer.step()
    >>> model.weight.tolist()
    [[0.75, 0.0, 0.0]]
    >>> optimizer.last
    StepRecord(penalty=0.1875, norm=None, zeros=2, skipped=False, size=3)
    """

    _algorithm = steps.SGD
    _kinds = ("momentum_buffer",)

    def __init__(
        self,
        params: Parameters,
        lr: Real | torch.Tensor = 1e-3,
        momentum: Real = 0.0,
        dampening: Real = 0.0,
        weight_decay: Real = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        rules: ModedRules = None,
        mode: Mode = "proximal",
        strength: Rate = 1.0,
        independent: bool = False,
        initial_lr: Real | None = None,
        cautious: bool = False,
        max_norm: Real | None = None,
        clip: Clip = "total",
        on_nonfinite: OnNonfinite | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
            },
            rules=rules,
            mode=mode,
            strength=strength,
            independent=independent,
            initial_lr=initial_lr,
            cautious=cautious,
            max_norm=max_norm,
            clip=clip,
            on_nonfinite=on_nonfinite,
        )

    def _numbers(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        found: tuple[Any, ...] = _NUMBERS(group)
        return found

    def _checked(self, group: Mapping[str, Any], label: str) -> Settings:
        lr, momentum, dampening, weight_decay, nesterov, maximize = _NUMBERS(group)
        found = Settings(
            self._algorithm,
            steps.NONE,
            flags(
                nesterov=(nesterov, steps.NESTEROV),
                maximize=(maximize, steps.MAXIMIZE),
                cautious=(self._is_cautious, steps.CAUTIOUS),
            ),
            number(lr, f"{label}['lr']"),
            number(momentum, f"{label}['momentum']"),
            number(dampening, f"{label}['dampening']", arguments.multiplier),
            number(weight_decay, f"{label}['weight_decay']"),
        )
        if nesterov and (found.momentum == 0.0 or found.dampening != 0.0):
            raise ValueError(
                f"{label}['nesterov'] needs a momentum > 0 and a dampening of 0, not momentum="
                f"{found.momentum!r} and dampening={found.dampening!r}"
            )
        return found


# The package makes itself the module of this class; doctest then needs to be told of it.
__test__: dict[str, Any] = {"SGD": SGD}
