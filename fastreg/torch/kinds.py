"""Kinds of parameters: kernel, embedding or other, by the modules that hold them.

Contract
--------
- A kernel is a weight that multiplies activations.  In modules of ``torch.nn`` it is known, also
  where pruning, weight norm or a parametrization has renamed it; parameters that other modules hold
  themselves are judged by name and shape.
- A parameter that is an embedding in one place is an embedding in all: heads tied to embeddings.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from .._base import errors
from ..penalties.rules import Rule, checked_rule

KERNEL, EMBEDDING, OTHER = "kernel", "embedding", "other"

_WEIGHTED = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_WEIGHTS = re.compile(r"weight(_ih|_hh|_hr)?(_l\d+)?(_reverse)?|(in|q|k|v)_proj_weight")
_NORMS = tuple(
    kind
    for kind in (_NormBase, nn.LayerNorm, nn.GroupNorm, getattr(nn, "RMSNorm", None))
    if kind is not None
)

_NORM_CLASS = re.compile(r"norm(\dd)?$", re.IGNORECASE)
_EMBEDDING_CLASS = re.compile(r"embed", re.IGNORECASE)
_EMBEDDING_NAME = re.compile(r"embed|(^|_)(emb|pos|position\w*|tokens?)(_|$)", re.IGNORECASE)
_OTHER_NAME = re.compile(r"(^|_)(bias\w*|scales?|gamma|beta|gain|norm)(_|$)", re.IGNORECASE)


class Kernels:
    """A rule for the kernels of a module alone; made by :func:`kernels`."""

    __slots__ = ("embeddings", "regularizer")

    def __init__(self, regularizer: Any, embeddings: bool) -> None:
        self.regularizer: Any = regularizer
        self.embeddings: bool = embeddings

    def __repr__(self) -> str:
        embeddings = ", embeddings=True" if self.embeddings else ""
        return f"kernels({self.regularizer!r}{embeddings})"

    def takes(self, kind: str) -> bool:
        """Return whether parameters of a kind have this rule."""
        return kind == KERNEL or (self.embeddings and kind == EMBEDDING)


def kernels(regularizer: Rule, *, embeddings: bool = False) -> Kernels:
    """Return a rule for the weights of a module that multiply activations, and for no others.

    It needs no names.  Kernels are the weights of ``Linear``, ``Bilinear``, convolutions,
    ``RNN``, ``GRU``, ``LSTM`` and their cells, and ``MultiheadAttention``, of subclasses too;
    renamed ones (``weight_orig`` of pruning, ``weight_v`` of weight norm, ``original`` of
    ``torch.nn.utils.parametrize``); and of what other modules hold themselves, parameters with two
    or more axes that are longer than 1, unless by their name or the class of the module
    they are biases, scales, norms, embeddings, positions or tokens, or they are marked
    ``_no_weight_decay``.  Lazy parameters are taken in once they are there.

    Biases, the scales of norms and the magnitudes of weight norm (``weight_g``, ``original0``) are
    not kernels.  ``print(penalties.report())`` shows what was found.

    Parameters
    ----------
    regularizer : str, dict, class or callable
        What ``fastreg.regularizers.get`` takes.
    embeddings : bool, optional
        Whether embeddings have the penalty as well.  A head whose weight is that of an embedding is
        an embedding.

    Returns
    -------
    Kernels
        For :func:`fastreg.torch.attach`: as its rules, or as a rule in a mapping, where it takes
        the kernels among the names that its glob matches, and leaves others to later globs.

    Raises
    ------
    TypeError, ValueError
        What ``fastreg.regularizers.get`` raises; TypeError for None.

    Examples
    --------
    >>> import torch, fastreg.torch
    >>> from fastreg import regularizers
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    >>> fastreg.torch.attach(model, kernels(regularizers.L2(1e-4)))
    <Penalties on 1 of 4 parameters: '0.weight'>
    >>> rules = {"*": kernels("l2"), "*.bias": "l1"}
    >>> fastreg.torch.attach(model, rules)
    <Penalties on 3 of 4 parameters: '0.weight', '0.bias', '1.bias'>
    """
    found = checked_rule(regularizer, "regularizer")
    if found is None:
        raise TypeError(
            "regularizer must stand for a regularizer, not None; leave the glob out, or give it "
            "None itself"
        )
    if not isinstance(embeddings, bool):
        raise TypeError(f"embeddings must be True or False, not {errors.described(embeddings)}")
    return Kernels(found, embeddings)


def kinds(module: Any) -> dict[int, str]:
    """Return the kind of each parameter of a module, by its id."""
    found: dict[int, str] = {}

    def add(parameter: Any, kind: str) -> None:
        before = found.setdefault(id(parameter), kind)
        if EMBEDDING in (before, kind):
            found[id(parameter)] = EMBEDDING
        elif kind == KERNEL:
            found[id(parameter)] = KERNEL

    for path, owner in module.named_modules():
        if isinstance(owner, parametrize.ParametrizationList):
            continue  # it is seen with the module whose tensor it makes
        for name, parameter in owner.named_parameters(recurse=False):
            if isinstance(owner, (nn.ParameterList, nn.ParameterDict)):
                name = f"{path.rpartition('.')[2]}_{name}"
            add(parameter, _kind(owner, name, parameter))
        if parametrize.is_parametrized(owner):
            for name, made_of in owner.parametrizations.items():
                for part, parameter in made_of.named_parameters(recurse=False):
                    is_magnitude = part == "original0" and any(
                        type(step).__name__ == "_WeightNorm" for step in made_of
                    )
                    add(parameter, OTHER if is_magnitude else _kind(owner, name, parameter))
    return found


def _kind(owner: Any, name: str, parameter: Any) -> str:
    """Return the kind of a parameter, or of one that makes the tensor of this name."""
    owner_class = type(owner)
    class_name = owner_class.__name__
    if isinstance(owner, torch.jit.ScriptModule):  # its class is that of all scripted modules
        class_name = owner.original_name
        owner_class = getattr(nn, class_name, owner_class)
    # Pruning and spectral_norm keep `weight` as `weight_orig`, weight_norm its direction as
    # `weight_v`; the magnitude `weight_g` has at most one axis that is longer than 1.
    plain = name.removesuffix("_orig").removesuffix("_v")
    if issubclass(owner_class, _WEIGHTED) and _WEIGHTS.fullmatch(plain):
        return KERNEL
    if issubclass(owner_class, _NORMS) or _NORM_CLASS.search(class_name):
        return OTHER
    if _OTHER_NAME.search(plain) or getattr(parameter, "_no_weight_decay", False):
        return OTHER  # the mark is that of Mamba and its relatives, for logarithms of rates
    if _EMBEDDING_CLASS.search(class_name) or _EMBEDDING_NAME.search(plain):
        return EMBEDDING
    if nn.parameter.is_lazy(parameter):
        return KERNEL
    if plain in ("weight", "kernel"):
        return KERNEL if parameter.ndim > 1 else OTHER
    return KERNEL if sum(size > 1 for size in parameter.shape) > 1 else OTHER
