"""torch.optim.AdamW with penalties in its step."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import torch

from ..._base import arguments, steps
from ..._base.array_types import Real
from ..._base.steps import Settings
from ...optimizers.adamw import checked_betas
from ...optimizers.base import Clip, OnNonfinite, Rate, flags
from ...optimizers.rules import Mode
from .base import Penalised
from .options import number
from .rules import ModedRules, Parameters

_NUMBERS = itemgetter("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")


class AdamW(Penalised):
    """``torch.optim.AdamW`` that takes penalties, a clip and a guard into its step: one pass.

    Without rules the weights are those of torch's fused one to rounding; moments are in float32 for
    half-precision parameters.

    Parameters
    ----------
    params, foreach, fused, differentiable, rules, mode, strength, independent, initial_lr, cautious
        As for :class:`SGD`.
    lr, betas, eps, weight_decay, amsgrad, maximize
        As in torch, for all groups that do not have their own.  `lr` and `betas` may be tensors of
        one element; an `lr` on a device is read there, by each replay of a CUDA graph too.
    capturable : bool, optional
        For parameters on CUDA: the device counts the steps from the first one on, and `step` in
        ``state_dict()`` lies there.  Steps can be captured into CUDA graphs without it too.
    scaled : bool, optional
        Whether proximal thresholds are those of Adam's metric, as for ``fastreg.optimizers.AdamW``.
    max_norm, clip, on_nonfinite
        As for :class:`SGD`.

    Raises
    ------
    TypeError, ValueError
        For an argument that is not right, and a rule that never wins.

    Examples
    --------
    >>> import torch, fastreg.torch
    >>> from fastreg.regularizers import L1
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = fastreg.torch.AdamW(
    ...     model, lr=0.125, weight_decay=0.0, rules={"weight": L1(0.25)}, max_norm=1.0
    ... )
    >>> with torch.no_grad():
    ...     _ = model.weight.copy_(torch.tensor([[1.0, -0.125, 0.0]]))
    >>> model(torch.tensor([[1.0, -1.0, 0.0]])).sum().backward()
    >>> optimizer.step()
    >>> [round(one, 4) for one in model.weight[0].tolist()]
    [0.8209, 0.0, 0.0]
    >>> optimizer.last.zeros, round(optimizer.last.norm, 4)
    (2, 1.7321)
    """

    _algorithm = steps.ADAMW
    _kinds = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self,
        params: Parameters,
        lr: Real | torch.Tensor = 1e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: Real = 1e-8,
        weight_decay: Real = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        rules: ModedRules = None,
        mode: Mode = "proximal",
        scaled: bool = True,
        strength: Rate = 1.0,
        independent: bool = False,
        initial_lr: Real | None = None,
        cautious: bool = False,
        max_norm: Real | None = None,
        clip: Clip = "total",
        on_nonfinite: OnNonfinite | None = None,
    ) -> None:
        self._is_scaled = arguments.flag(scaled, "scaled")
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
                "fused": fused,
                "decoupled_weight_decay": True,
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
        lr, betas, *others = _NUMBERS(group)
        return lr, *betas, *others

    def _checked(self, group: Mapping[str, Any], label: str) -> Settings:
        lr, betas, eps, weight_decay, amsgrad, maximize = _NUMBERS(group)
        beta1, beta2 = checked_betas(betas, f"{label}['betas']", number)
        return Settings(
            self._algorithm,
            steps.NONE,
            flags(
                maximize=(maximize, steps.MAXIMIZE),
                amsgrad=(amsgrad, steps.AMSGRAD),
                cautious=(self._is_cautious, steps.CAUTIOUS),
            ),
            number(lr, f"{label}['lr']"),
            weight_decay=number(weight_decay, f"{label}['weight_decay']"),
            beta1=beta1,
            beta2=beta2,
            eps=number(eps, f"{label}['eps']"),
        )


# The package makes itself the module of this class; doctest then needs to be told of it.
__test__: dict[str, Any] = {"AdamW": AdamW}
