"""Outputs of modules: which tensors are activations, and their batch sizes.

Contract
--------
- Modules of ``torch.nn`` are known: their batch axis (``batch_first``), their output for a single
  sample without a batch axis, and that states and attention weights are not activations.
- A tensor of any other module has its batch axis first, unless the caller says where.  Other
  outputs (tuples, dicts) are refused, unless the caller says which parts count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .._base import errors

ARGUMENT = "activity_batch_axis"

_ATTENDING = (
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
_SEQUENTIAL = (nn.RNNBase, *_ATTENDING)
_SPATIAL_NAMES = (
    *("Conv", "ConvTranspose", "InstanceNorm", "MaxPool", "AvgPool"),
    *("AdaptiveMaxPool", "AdaptiveAvgPool", "LPPool"),
)
_SPATIAL = {
    axes: tuple(
        getattr(nn, f"{name}{axes}d") for name in _SPATIAL_NAMES if hasattr(nn, f"{name}{axes}d")
    )
    for axes in (1, 2, 3)
}
_NORMALIZING = tuple(
    kind for kind in (nn.LayerNorm, getattr(nn, "RMSNorm", None)) if kind is not None
)


def checked_axes(axes: Any, label: str) -> Any:
    """Return batch axes: an int, None for a tensor that does not count, or both nested.

    They are nested in tuples and dicts as the output is; TypeError for other kinds.
    """
    if axes is None or (isinstance(axes, int) and not isinstance(axes, bool)):
        return axes
    if isinstance(axes, (tuple, list)):
        return tuple(checked_axes(part, f"{label}[{at}]") for at, part in enumerate(axes))
    if isinstance(axes, Mapping):
        return {key: checked_axes(part, f"{label}[{key!r}]") for key, part in axes.items()}
    raise TypeError(
        f"{label} must be the batch axis (int) of what the module gives, None for what does not "
        f"count, or a tuple or dict of those, not {errors.described(axes)}"
    )


def activations(module: Any, output: Any, axes: Any, default: int, label: str) -> Iterator[Any]:
    """Yield the tensors that have a penalty, each with its batch size.

    `axes` are the batch axes that the caller gave for this module, if any; `default` is that of
    modules with an unknown one.
    """
    if isinstance(axes, (tuple, dict)):
        yield from _chosen(output, axes, label)
        return
    tensor = output
    if isinstance(module, (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)) and (
        isinstance(output, tuple) and not isinstance(output, PackedSequence)
    ):
        tensor = output[0]  # the others are states and attention weights
    if isinstance(tensor, PackedSequence):
        yield tensor.data, max(int(tensor.batch_sizes[0]), 1)
        return
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"{label} has an activity regularizer and gives {errors.described(output)}, of which "
            f"fastreg does not know what counts; say it in {ARGUMENT}={{...}}, by a glob and the "
            "batch axes of the parts as they are nested, None for those that do not count, or put "
            "the regularizer on another module"
        )
    yield tensor, _batch_size(tensor, _axis(module, tensor, axes, default, label), label)


def _axis(module: Any, tensor: Any, axes: Any, default: int, label: str) -> int | None:
    """Return the batch axis of an output, or None where it has none."""
    if axes is not None:
        return int(axes)
    said = _said(module)
    if isinstance(module, _SEQUENTIAL):
        return said if tensor.ndim > 2 else None
    if said is not None:
        if said >= tensor.ndim - 1 and said:
            raise ValueError(
                f"{label} has batch_first=False and gives a tensor of shape "
                f"{tuple(tensor.shape)}, whose batch axis cannot be known; say it in "
                f"{ARGUMENT}={{...}}"
            )
        return said
    sample = _axes_of_a_sample(module)
    return None if sample is not None and tensor.ndim <= sample else default


def _said(module: Any) -> int | None:
    """Return the batch axis by ``batch_first``, if the module has it."""
    if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)) and len(module.layers):
        module = module.layers[0]
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        module = module.self_attn
    first = getattr(module, "batch_first", None)
    return (0 if first else 1) if isinstance(first, bool) else None


def _axes_of_a_sample(module: Any) -> int | None:
    """Return how many axes the output for one unbatched sample has, if modules take one."""
    for axes, kinds in _SPATIAL.items():
        if isinstance(module, kinds):
            return axes + 1
    if isinstance(module, _NORMALIZING):
        return len(module.normalized_shape)
    return 1 if isinstance(module, (nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNCellBase)) else None


def _batch_size(tensor: Any, axis: int | None, label: str) -> int:
    if axis is None or tensor.ndim == 0:
        return 1
    if not -tensor.ndim <= axis < tensor.ndim:
        raise ValueError(
            f"{label} gives a tensor of shape {tuple(tensor.shape)}, which has no axis {axis}; "
            f"correct {ARGUMENT}"
        )
    return max(int(tensor.shape[axis]), 1)


def _chosen(output: Any, axes: Any, label: str) -> Iterator[Any]:
    """Yield the tensors that the caller asked for, as they are nested."""
    if axes is None:
        return
    if isinstance(axes, int):
        if isinstance(output, PackedSequence):
            yield output.data, max(int(output.batch_sizes[0]), 1)
            return
        if isinstance(output, torch.Tensor):
            yield output, _batch_size(output, axes, label)
            return
    elif isinstance(axes, dict):
        if isinstance(output, Mapping):
            missing = [key for key in axes if key not in output]
            if not missing:
                for key, part in axes.items():
                    yield from _chosen(output[key], part, f"{label}[{key!r}]")
                return
    elif isinstance(output, (tuple, list)) and len(axes) <= len(output):
        for at, part in enumerate(axes):
            yield from _chosen(output[at], part, f"{label}[{at}]")
        return
    raise TypeError(
        f"{label} is {errors.described(output)}, which does not fit {axes!r} in {ARGUMENT}; give "
        "the batch axes of what the module gives, as it is nested"
    )
